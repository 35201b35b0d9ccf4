"""Logits of labels alone are those of all tokens."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lrlora.data.encode import IGNORED
from lrlora.evaluation.labelled import labelled_logits


def test_labelled_logits():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))
    model.eval()
    ids = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = labels[1, 7:] = labels[2, :6] = IGNORED
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    logits, wanted, is_label = labelled_logits(model, rows)
    whole = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    torch.testing.assert_close(logits, whole[:, :-1][is_label])
    assert wanted.tolist() == rows["labels"][:, 1:][is_label].tolist() and logits.shape == (11, 64)
