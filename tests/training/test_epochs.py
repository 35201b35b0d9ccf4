"""Rows of like length in a batch: less padding, every row once an epoch, and the same order after a kill."""

from dataclasses import replace

import pytest
import torch

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.encode import encode
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from lrlora.training.epochs import RowsOfLikeLength, lengths_of
from lrlora.training.model import build
from lrlora.training.of_kind import check_kind
from lrlora.training.trainer import make_trainer
from tests.conftest import write_rows
from tests.training.test_run import config_for, run_killed_after, weights

LENGTHS = [1 + n * 7 % 40 for n in range(60)]


def order_of(seed: int, epoch: int) -> list[int]:
    sampler = RowsOfLikeLength(LENGTHS, 4, seed)
    sampler.begin(epoch)
    torch.rand(1)
    return list(sampler)


def test_the_order_is_that_of_the_seed_and_the_epoch():
    orders = {(seed, epoch): order_of(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(map(tuple, orders.values()))) == 4
    for key, order in orders.items():
        assert sorted(order) == list(range(60)) and order_of(*key) == order
        batches = [[LENGTHS[n] for n in order[at : at + 4]] for at in range(0, 60, 4)]
        padded = sum(4 * max(batch) for batch in batches)
        # of rows in the order of the file it is 1.7 times
        assert padded < 1.3 * sum(LENGTHS)


def test_a_run_killed_in_its_second_epoch_ends_where_an_uninterrupted_one_ends(tiny_encoder, tmp_path):
    rows = [{"sentence": "a fine film " * (1 + n % 7), "label": n % 2} for n in range(24)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    whole = config_for(
        tiny_encoder, file, tmp_path / "whole", max_steps=-1, epochs=3, eval_data=str(file),
        train_sampling_strategy="group_by_length",
    )  # fmt: skip
    assert train(whole).metrics["steps"] == 18
    killed = replace(whole, out=str(tmp_path / "killed"))
    run_killed_after(9, killed)
    assert train(killed).metrics["was_resumed"]
    resumed = weights(tmp_path / "killed")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, resumed[name]), name


def test_pairs_go_by_the_length_to_which_they_are_padded(tiny_decoder, tmp_path):
    words = "is warm and kind " * 6
    pairs = [
        {"prompt": "Tell me. " * (1 + n % 5), "chosen": words[: 5 + 7 * (n % 6)], "rejected": words[: 5 + 9 * (n % 4)]}
        for n in range(40)
    ]
    config = config_for(
        tiny_decoder, write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "run",
        train_sampling_strategy="group_by_length", precision="fp32",
    )  # fmt: skip
    task, tokenizer = load_task(config.data_source()), load_tokenizer(str(tiny_decoder))
    model, _ = build(config, task)
    rows, _ = encode(task, tokenizer, 64)
    trainer = make_trainer(config, task, model, tokenizer, rows, tmp_path / "out")
    lengths = lengths_of(trainer.train_dataset)
    ordered = [lengths[n] for n in trainer.order]
    batches = list(trainer.get_train_dataloader())
    assert [batch["input_ids"].shape[1] for batch in batches] == [
        max(ordered[at : at + 4]) for at in range(0, len(ordered), 4)
    ]
    assert min(batch["attention_mask"].float().mean() for batch in batches[1:]) > 0.6


@pytest.mark.parametrize("strategy", ["group_by_lenght", 3])
def test_a_strategy_that_transformers_would_take_for_random_is_refused(strategy):
    with pytest.raises(InputError, match=f"train_sampling_strategy must be one of random, .*, got {strategy!r}"):
        TrainConfig(trainer={"train_sampling_strategy": strategy})


def test_pairs_have_no_length_for_batch_rebalance(tmp_path):
    file = write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": f"b{n}", "rejected": "c"} for n in range(20)]
    )
    config = TrainConfig(data=str(file), trainer={"train_sampling_strategy": "batch_rebalance"})
    with pytest.raises(InputError, match="no length of a pair; group_by_length finds it"):
        check_kind(config, load_task(DataSource(str(file))))
