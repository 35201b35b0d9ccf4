"""Shards that are written tensor by tensor are safetensors files like any other."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lrlora import InputError
from lrlora.export.base import INDEX, SINGLE
from lrlora.export.merging.shards import DTYPES, Entry, read_layout, read_tensors, write_index, write_shard
from lrlora.files import read_json


def test_every_type_and_shape_comes_back_from_the_library(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name} {number}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
        for number, shape in enumerate([(3, 5), (), (0, 4), (7,)])
    }
    entries = [Entry(key, value.dtype, tuple(value.shape)) for key, value in tensors.items()]
    # the rows of a transposed tensor are not next to each other in memory
    tensors["F32 0"] = torch.rand(5, 3, generator=generator).T
    write_shard(tmp_path / SINGLE, entries, iter(tensors.values()))
    found = load_file(tmp_path / SINGLE)
    assert set(found) == set(tensors)
    for key, value in tensors.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key].float(), value.float()), key
    with safe_open(tmp_path / SINGLE, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    layout = read_layout(tmp_path)[SINGLE]
    assert sorted(layout, key=lambda e: e.name) == sorted(entries, key=lambda e: e.name)
    for entry, value in zip(layout, read_tensors(tmp_path / SINGLE, layout), strict=True):
        assert torch.equal(value.float(), tensors[entry.name].float())


def test_the_index_counts_bytes_and_one_file_has_none(tmp_path):
    a, b = Entry("b.weight", torch.bfloat16, (2, 3)), Entry("a.weight", torch.float32, (4,))
    write_index(tmp_path, {SINGLE: [a, b]})
    assert not (tmp_path / INDEX).exists()
    write_index(tmp_path, {"one.safetensors": [a], "two.safetensors": [b]})
    assert read_json(tmp_path / INDEX) == {
        "metadata": {"total_size": 12 + 16},
        "weight_map": {"a.weight": "two.safetensors", "b.weight": "one.safetensors"},
    }


def test_shards_that_cannot_be_merged_are_named(tmp_path):
    save_file({"w": torch.zeros(4, 4)}, tmp_path / SINGLE)
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[:-8])
    with pytest.raises(InputError, match=rf"{SINGLE} is not a whole safetensors file .*; download it again"):
        read_layout(tmp_path)
    save_file({"w": torch.zeros(4, 4, dtype=torch.uint16)}, tmp_path / SINGLE)
    with pytest.raises(InputError, match="holds tensors of type U16, which is not plain"):
        read_layout(tmp_path)
    (tmp_path / SINGLE).unlink()
    (tmp_path / INDEX).write_text('{"weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(InputError, match=r"the base lacks .*gone.safetensors, which its index names"):
        read_layout(tmp_path)
