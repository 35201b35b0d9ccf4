"""A Trainer for causal models that makes logits only where a label asks for them."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

from lrlora.data.encode import IGNORED
from lrlora.evaluation.labelled import base_in, head_of, head_sees
from lrlora.internals import loss_of_shifted


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
        with head_sees(head, is_label), loss_of_shifted(base_in(self.model), wanted) as calls:
            found = super().compute_loss(model, {**inputs, "labels": wanted}, *rest, **named)
        if calls:
            return found
        # a model whose forward computes its loss itself, and would have shifted the labels a second time
        self._is_refused = True
        return super().compute_loss(model, inputs, *rest, **named)
