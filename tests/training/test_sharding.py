"""Settings of accelerate that cannot work are refused before a model is loaded."""

import pytest
import torch

from lrlora import InputError
from lrlora.evaluation.score import batches
from lrlora.training.sharding import check_environment


@pytest.mark.parametrize(("name", "said"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_shards_without_devices_are_refused(monkeypatch, name, said):
    check_environment()
    monkeypatch.setenv(name, "true")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"accelerate uses {said} only where each process has a device"):
        check_environment()


def test_weights_of_the_first_process_alone_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    check_environment()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with pytest.raises(InputError, match="set it to false"):
        check_environment()


@pytest.mark.parametrize(("rows", "many"), [(9, 2), (1, 3), (8, 2), (7, 1)])
def test_all_processes_score_as_many_batches(rows, many):
    from datasets import Dataset

    encoded = Dataset.from_dict({"input_ids": [[1] * (1 + n % 3) for n in range(rows)]})

    def collate(found):
        return {"count": torch.tensor([len(found)])}

    of_each = [[n for n, _ in batches(encoded, collate, 2, torch.device("cpu"), rank, many)] for rank in range(many)]
    assert len({len(found) for found in of_each}) == 1
    assert {number for found in of_each for batch in found for number in batch} == set(range(rows))
    # the batches themselves do not depend on the number of processes
    whole = [n for n, _ in batches(encoded, collate, 2, torch.device("cpu"))]
    assert all(batch in whole for found in of_each for batch in found)
