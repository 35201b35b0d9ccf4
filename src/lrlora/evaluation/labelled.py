"""A causal model's logits only where a label asks for them: with a large vocabulary they are most of its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lrlora.data.encode import IGNORED
from lrlora.internals import has_causal_loss


def labelled_logits(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What a causal model gives for the tokens that are labels.

    Args:
        model: as it is called.
        batch: its inputs with labels [B, T], where IGNORED means none; the first token of a row has no logits.

    Returns:
        Logits [N, V], the labels [N], and which tokens behind the first they are, [B, T - 1].
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    is_label = labels != IGNORED
    if (head := head_of(model)) is None:
        # virtual tokens of a learned prompt come before those of the row, and have logits too
        logits = model(**inputs).logits[:, -batch["labels"].shape[1] :]
        return logits[:, :-1][is_label], labels[is_label], is_label
    with head_sees(head, is_label):
        return model(**inputs).logits[0], labels[is_label], is_label


def base_in(model: Any) -> Any:
    """The model under an adapter, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> nn.Module | None:
    """The layer that makes the logits, where nothing behind it counts tokens; None where that is not known."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return None  # virtual tokens have places too
    base = base_in(model)
    if not has_causal_loss(base) or not hasattr(base, "get_output_embeddings"):
        return None
    return base.get_output_embeddings()


@contextmanager
def head_sees(head: nn.Module, is_label: Tensor) -> Iterator[None]:
    """Gives a head those of the hidden states [B, T, d] whose next token is a label, as [1, N, d]."""

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden[:, :-1][is_label][None], *rest

    hook = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
