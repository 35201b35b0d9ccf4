"""LR-LoRA as mathematics: tensors in, tensors out, nothing imported but torch.

LR-LoRA (arXiv:2606.04325) passes the low-rank product of LoRA through a learned elementwise function,

    Z     = B A                                     [out, in], float32
    phi(Z)= tau (f(Z / tau) - f(0))                 elementwise
    f(u)  = [u +] sum_{k=-M..M, k != 0} c_k sinc(u - k)
    dW    = scale phi(Z)
    y     = x (W0 + dW)^T + bias

Then rank(dW) may exceed r, and the optimizer decides by how much. The symbols, used in all of this library:

    symbol  shape          meaning
    x       [*batch, in]   input of the adapted layer
    W0      [out, in]      its frozen weight; `bias` [out] is its bias
    A       [r, in]        first low-rank factor, random at the start
    B       [out, r]       second low-rank factor, zero at the start
    Z       [out, in]      B A
    c       [K]            coefficients of the sinc basis on the grid k = -M..M, K = 2M + 1; c[M] (k = 0) has no effect
    tau     scalar         knee: the size of an entry of Z at which phi bends; tau = inf is the limit phi(Z) = Z
    scale   scalar         s = alpha / r, or alpha / sqrt(r) with rsLoRA
    phi     "sinc" | "residual" | "sine": which f; the bracketed u belongs to "residual"

Start with `nonlinearity.py` (phi), then `update.py` (dW and y), then `rank.py` (what was learned). `fast.py` evaluates
the same phi with one polynomial for all K sincs.
"""
