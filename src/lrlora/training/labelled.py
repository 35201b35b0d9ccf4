"""A causal model's logits only where a label asks for them: with a large vocabulary they are most of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from lrlora.data.encode import IGNORED


class LabelledTrainer(Trainer):
    """transformers' Trainer, with logits only for tokens that are labels, where the model allows it.

    The loss is the model's own, of the same tokens. Of T tokens in a batch of which N are labels, with a vocabulary
    of V, the head multiplies N instead of T rows, and the logits take 4 N V instead of 4 T V bytes.
    """

    _is_refused = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """As the Trainer does; see there."""
        head = _head_of(self.model)
        labels = inputs["labels"][:, 1:]
        is_label = labels != IGNORED
        # DataParallel would cut the labels of all rows, which stand in one row here, into pieces
        if head is None or self._is_refused or self.args.n_gpu > 1 or not is_label.any():
            return super().compute_loss(model, inputs, *rest, **named)
        wanted = labels[is_label][None]
        with _head_sees(head, is_label), _loss_of(self.model, wanted) as calls:
            found = super().compute_loss(model, {**inputs, "labels": wanted}, *rest, **named)
        if calls:
            return found
        # a model whose forward works out its loss by itself, and would have moved the labels by one once more
        self._is_refused = True
        return super().compute_loss(model, inputs, *rest, **named)


def labelled_logits(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """What a causal model gives for the tokens that are labels.

    Args:
        model: as it is called.
        batch: its inputs with labels [B, T], where IGNORED stands for none; the first token of a row has no logits.

    Returns:
        Logits [N, V], the labels [N], and which tokens behind the first they are, [B, T - 1].
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    labels = batch["labels"][:, 1:]
    is_label = labels != IGNORED
    if (head := _head_of(model)) is None:
        # virtual tokens of a learned prompt come before those of the row, and have logits too
        logits = model(**inputs).logits[:, -batch["labels"].shape[1] :]
        return logits[:, :-1][is_label], labels[is_label], is_label
    with _head_sees(head, is_label):
        return model(**inputs).logits[0], labels[is_label], is_label


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _head_of(model: Any) -> nn.Module | None:
    """The layer that makes the logits, where nothing behind it counts tokens; None where that is not known."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return None  # virtual tokens have places too
    base = _base(model)
    if getattr(base, "loss_function", None) is not ForCausalLMLoss or not hasattr(base, "get_output_embeddings"):
        return None
    return base.get_output_embeddings()


@contextmanager
def _head_sees(head: nn.Module, is_label: Tensor) -> Iterator[None]:
    """Gives a head those of the hidden states [B, T, d] whose next token is a label, as [1, N, d]."""

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return hidden[:, :-1][is_label][None], *rest

    hook = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _loss_of(model: Any, wanted: Tensor) -> Iterator[list[None]]:
    """Makes the model's loss one of labels that stand where they are predicted; yields a list with a None per call."""
    base, calls = _base(model), []

    def loss(logits: Tensor, labels: Tensor, vocab_size: int, **named: Any) -> Tensor:
        calls.append(None)
        return ForCausalLMLoss(logits, labels, vocab_size, **{**named, "shift_labels": wanted})

    before = vars(base).get("_loss_function")
    base.loss_function = loss
    try:
        yield calls
    finally:
        if before is None:
            del base._loss_function
        else:
            base.loss_function = before
