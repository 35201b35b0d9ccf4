"""A Trainer for causal models that makes logits only where a label asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from lrlora.data.encode import IGNORED
from lrlora.evaluation.labelled import base_in, head_of, head_sees


class LabelledTrainer(Trainer):
    """transformers' Trainer, with logits only for tokens that are labels, where the model allows it.

    The loss is the model's own, of the same tokens. Of T tokens in a batch of which N are labels, with a vocabulary
    of V, the head multiplies N instead of T rows, and the logits take 4 N V instead of 4 T V bytes.
    """

    _is_refused = False

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """As the Trainer does; see there."""
        head = head_of(self.model)
        labels = inputs["labels"][:, 1:]
        is_label = labels != IGNORED
        # DataParallel would cut the labels of all rows, which are in one row here, into pieces
        if head is None or self._is_refused or self.args.n_gpu > 1 or not is_label.any():
            return super().compute_loss(model, inputs, *rest, **named)
        wanted = labels[is_label][None]
        with head_sees(head, is_label), _loss_of(self.model, wanted) as calls:
            found = super().compute_loss(model, {**inputs, "labels": wanted}, *rest, **named)
        if calls:
            return found
        # a model whose forward computes its loss itself, and would have shifted the labels a second time
        self._is_refused = True
        return super().compute_loss(model, inputs, *rest, **named)


@contextmanager
def _loss_of(model: Any, wanted: Tensor) -> Iterator[list[None]]:
    """Makes the model's loss take labels that are already shifted; yields a list with a None per call of the loss."""
    base, calls = base_in(model), []

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
