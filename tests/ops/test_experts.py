"""A stack of experts equals the definition, expert by expert."""

import pytest
import torch

from lrlora.method.nonlinearity import FORMS, initial_coefficients
from lrlora.ops import delta_weight, experts_weight
from tests.conftest import rel_rms

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

EXPERTS, OUT, IN, RANK = 3, 130, 140, 4


def inputs(phi: str, is_shared: bool) -> dict:
    """Three experts, each with a knee and, unless shared, coefficients of its own."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    c = None
    if phi != "sine":
        c = initial_coefficients(11, phi)
        c = c + 0.1 * (random(len(c)) if is_shared else random(EXPERTS, len(c)))
    tau = torch.tensor([0.3, 0.5, 0.9])
    return dict(A=random(EXPERTS, RANK, IN), B=random(EXPERTS, OUT, RANK), c=c, tau=tau, scale=1.5, phi=phi)


def leaves_of(given: dict) -> dict[str, torch.Tensor]:
    return {k: given[k].clone().requires_grad_() for k in ("A", "B", "c") if given[k] is not None}


@pytest.mark.parametrize("impl", ["auto", "eager", "native", "definition"])
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("phi", FORMS)
def test_weights_and_gradients_are_the_definition_s(phi, is_shared, impl):
    given = inputs(phi, is_shared)
    W0 = torch.randn(EXPERTS, OUT, IN)
    direction = torch.randn(EXPERTS, OUT, IN)
    fast = leaves_of(given)
    weights = experts_weight(W0, **{**given, **fast}, impl=impl)
    (weights * direction).sum().backward()

    slow = {k: v.detach().double().requires_grad_() for k, v in fast.items()}
    each = [
        delta_weight(
            slow["A"][e], slow["B"][e], None if "c" not in slow else slow["c"] if is_shared else slow["c"][e],
            given["tau"][e].double(), given["scale"], phi=phi, impl="definition",
        )
        for e in range(EXPERTS)
    ]  # fmt: skip
    truth = W0.double() + torch.stack(each)
    (truth * direction.double()).sum().backward()
    assert rel_rms(weights.detach(), truth.detach()) < 1e-6
    for name, leaf in fast.items():
        assert rel_rms(leaf.grad, slow[name].grad) < 1e-5, name


def test_experts_without_gradient_are_left_out():
    given = inputs("sinc", is_shared=False)
    leaves = leaves_of(given)
    experts_weight(None, **{**given, **leaves})[1].sum().backward()
    for leaf in leaves.values():
        assert leaf.grad.flatten(1).any(1).tolist() == [False, True, False]


def test_the_weight_s_precision_is_kept_and_the_update_s_is_not():
    given = inputs("sinc", is_shared=False)
    W0 = torch.zeros(EXPERTS, OUT, IN, dtype=torch.bfloat16)
    weights = experts_weight(W0, **given)
    assert weights.dtype == torch.bfloat16
    exact = experts_weight(None, **given)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(weights, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": torch.zeros(EXPERTS, RANK + 1, IN)}, r"needed A \[experts, r, in\]"),
        ({"tau": torch.tensor(0.5)}, r"tau \(\)"),
        ({"phi": "sine"}, "c"),
    ],
)
def test_what_does_not_fit_is_said(change, words):
    with pytest.raises(ValueError, match=words):
        experts_weight(None, **{**inputs("sinc", is_shared=False), **change})
