"""A saved adapter put on its base: every tensor of it must find its place, and the base must be what it was."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model

from lrlora.errors import InputError, first_lines
from lrlora.training.pooling import set_pooling
from lrlora.training.saved import SavedAdapter
from lrlora.training.tokens import load_tokenizer, settle_padding

ADAPTER = "default"
_PREFIX = "base_model.model."


def settle(base: Any, saved: SavedAdapter) -> None:
    """Give a base what the run changed of it: its pooling, the length of its vocabulary, the token to pad with.

    Raises:
        InputError: a base that cannot have this pooling; a vocabulary of another length whose weights the adapter holds
            in part.
    """
    set_pooling(base, saved.pooling)
    _resize(base, saved)
    if (saved.folder / "tokenizer_config.json").exists():
        settle_padding(base, load_tokenizer(str(saved.folder)))


def _resize(base: Any, saved: SavedAdapter) -> None:
    """The vocabulary of the saved embedding: PEFT saves it whole where it was resized."""
    table = base.get_input_embeddings()
    rows = _saved_rows(base, table, saved)
    if rows is None or rows == table.weight.shape[0]:
        return
    had = table.weight.shape[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base.resize_token_embeddings(rows, mean_resizing=False)
    output = base.get_output_embeddings()
    is_tied = output is None or output.weight is base.get_input_embeddings().weight
    if not is_tied and _saved_rows(base, output, saved) != rows:
        raise InputError(
            f"{saved.folder} holds an embedding of {rows} tokens, {saved.base} has {had}, and the output layer of "
            "that length is not in the adapter; save the base as it was resized, and pass that as --model"
        )


def _saved_rows(base: Any, module: Any, saved: SavedAdapter) -> int | None:
    name = next((name for name, inside in base.named_modules() if inside is module), None)
    holders = ("", ".base_layer", ".token_adapter.base_layer")
    keys = [f"{_PREFIX}{name}{holder}.weight" for holder in holders]
    return next((saved.shapes[key][0] for key in keys if key in saved.shapes), None)


def refuse_random(saved: SavedAdapter, lacking: Sequence[str]) -> None:
    """Refuse to use an adapter whose base has weights that are random at every load.

    Args:
        saved: the adapter.
        lacking: parameters of the model that the base's files do not hold.

    Raises:
        InputError: the adapter does not hold them either, and it is of a task with a head, where they are used.
    """
    if saved.config.get("task_type") in (None, "FEATURE_EXTRACTION"):
        return
    # a prompt is put before the base itself, any other method on a tuner's model around it
    held = {
        key.removeprefix(prefix).replace(".base_layer", "")
        for key in saved.shapes
        for prefix in (_PREFIX, "base_model.")
    }
    random = [name for name in lacking if name not in held]
    if random:
        raise InputError(
            f"neither the base {saved.base} nor the adapter {saved.folder} holds {random[0]} ({len(random)} such "
            "tensors): it is random at every load, and so is whatever this model says; pass as --model the base that "
            "it was trained on, or train again with lrlora train, which saves such layers"
        )


def put_saved_on(base: Any, saved: SavedAdapter, is_sparing: bool = False) -> PeftModel:
    """A model with a saved adapter on it.

    Args:
        base: the model.
        saved: the adapter.
        is_sparing: make the adapter's tensors as they are read, for a base without weights.

    Raises:
        InputError: tensors of the adapter that have no place in the base, layers of the base without tensors, other
            shapes, or a config that PEFT does not take.
    """
    try:
        with warnings.catch_warnings():
            # PEFT's own warnings about tied embeddings; where they matter, merging refuses them by name
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")
            config = PeftConfig.from_pretrained(str(saved.folder))
            config.inference_mode, config.base_model_name_or_path = True, None
            model: Any = get_peft_model(base, config, ADAPTER, low_cpu_mem_usage=is_sparing)
            found = model.load_adapter(str(saved.folder), ADAPTER, torch_device="cpu", low_cpu_mem_usage=is_sparing)
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{saved.folder} holds no tensors for {error}, which {saved.base} has") from error
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"cannot put the adapter {saved.folder} on {saved.base}: {first_lines(error)}") from error
    # bias="all" makes PEFT save the biases of a head twice
    mark = ".modules_to_save."
    twice = {key for key in found.unexpected_keys if mark in key and key.replace(mark, ".") in saved.shapes}
    # PEFT puts a learned prompt in its place itself
    placed = {"prompt_embeddings"} if config.is_prompt_learning else set()
    if names := [key.removeprefix(_PREFIX) for key in found.unexpected_keys if key not in twice | placed]:
        raise InputError(
            f"{len(names)} tensors of {saved.folder} have no place in {saved.base}, the first is {names[0]}: they "
            "would be dropped; pass the base that it was trained on as --model, or restore its adapter_config.json"
        )
    if names := [key.removeprefix(_PREFIX) for key in found.missing_keys]:
        raise InputError(
            f"{saved.folder} holds no tensors for {names[0]} ({len(names)} such tensors), which the base {saved.base} "
            "has; pass the base that it was trained on as --model"
        )
    return model
