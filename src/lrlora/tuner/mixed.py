"""Another adapter for every row of a batch: model(..., adapter_names=["a", "b", "__base__"]), in evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from lrlora.errors import InputError
from lrlora.tuner.internals import AuxiliaryTrainingWrapper
from lrlora.tuner.layer import BASE, LRLoraLayer


@contextlib.contextmanager
def adapters_by_row(model: nn.Module, adapter_names: list[str], num_beams: int | None) -> Iterator[None]:
    """While open, hand every adapted layer of the model the name of the adapter for each row.

    With beam search a decoder sees every row `num_beams` times, an encoder once.

    Raises:
        InputError: names of no adapter, or a model in training.
    """
    if model.training:
        raise InputError("Cannot pass `adapter_names` when the model is in training mode; call model.eval() first")
    if not isinstance(adapter_names, list | tuple):
        raise InputError(f"adapter_names must be a list with one name per row, got {type(adapter_names).__name__}")
    layers = [m for m in model.modules() if isinstance(m, LRLoraLayer | AuxiliaryTrainingWrapper)]
    known = {name for layer in layers if isinstance(layer, LRLoraLayer) for name in layer.lrlora_delta}
    unknown = sorted(set(adapter_names) - known - {BASE})
    if unknown:
        raise InputError(
            f"no adapter named {', '.join(unknown)}; there are: {', '.join(sorted(known))}, and {BASE} for none"
        )
    get_encoder = getattr(model, "get_encoder", None)
    encoder = get_encoder() if callable(get_encoder) and getattr(model.config, "is_encoder_decoder", False) else None
    seen_once = {id(m) for m in encoder.modules()} if isinstance(encoder, nn.Module) else set()
    repeated = [name for name in adapter_names for _ in range(num_beams or 1)]
    handles = []
    for layer in layers:
        names = list(adapter_names) if id(layer) in seen_once else repeated

        def add_names(_: nn.Module, args: Any, kwargs: Any, names: list[str] = names) -> Any:
            return args, {**kwargs, "adapter_names": names}

        handles.append(layer.register_forward_pre_hook(add_names, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
