"""Base models and saved adapters, loaded: every tensor must find its place, and the base must be what it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig

from lrlora.data.embedded import model_folder
from lrlora.errors import InputError, first_lines
from lrlora.internals import class_of_the_base, from_config, is_adapter
from lrlora.saved.adapter import AUTO_CLASSES, AdapterFolder, read_adapter
from lrlora.saved.base import AS_IT_IS, IMAGE_CLS, BaseOptions, image_heads, left_plain
from lrlora.saved.local import absolute, check_local
from lrlora.saved.names import PROCESSOR
from lrlora.saved.pooling import set_pooling
from lrlora.saved.precision import keep_in_float32
from lrlora.saved.processor import load_processor
from lrlora.saved.tokens import load_tokenizer, settle_padding

ADAPTER = "default"
_PREFIX = "base_model.model."


def load_base(
    name: str, task_type: str | None, auto_class: Any = None, options: BaseOptions = AS_IT_IS, **more: Any
) -> Any:
    """A base model from a local folder or the hub, in float32 unless the options say otherwise.

    Its attribute `new_parameters` names those that the files do not hold, which are random: see `put_on` in
    `lrlora.training.model`.

    Args:
        name: a folder, a name on the hub, or embedded-decoder.
        task_type: PEFT's word for the kind of task.
        auto_class: class of transformers that loads it; None: the one of the task.
        options: how it is loaded.
        more: of `from_pretrained`, such as `num_labels`.

    Raises:
        InputError: it is not there, is an adapter, needs code of its own or a package that is not installed, is
            quantised twice, or transformers has no such model for this kind of task.
    """
    name, auto_class = absolute(model_folder(name)), auto_class or AUTO_CLASSES[task_type]
    check_local(name)
    skipped = None
    if options.quantization != "none":
        options.check(None if options.revision is None else name)
        skipped = left_plain(bare_base(name, auto_class, options, more))
    if task_type == IMAGE_CLS:
        # their heads are mostly of other classes, and are trained anew
        more = {**more, "ignore_mismatched_sizes": True}
    with _explained(name):
        base, info = auto_class.from_pretrained(name, output_loading_info=True, **{**options.loading(skipped), **more})
        other = [entry[0] for entry in info.get("mismatched_keys", ())]
        if wrong := sorted(key for key in other if key.split(".")[0] not in image_heads(base)):
            raise ValueError(f"{wrong[0]} has not the shape that is needed ({len(wrong)} such tensors)")
    if is_adapter(base):
        raise InputError(f"{name} is an adapter, not a base model: merge it first and pass the merged model")
    base.new_parameters = sorted({*info["missing_keys"], *other})
    return base


def bare_base(name: str, auto_class: Any, options: BaseOptions, more: dict[str, Any]) -> Any:
    """A base model without weights, on torch's meta device; arguments and errors as `load_base`.

    Its attribute `written_dtype` is the type of the weights that its config.json names, None where it names none.

    Raises:
        InputError: besides, options with a quantisation for a base whose files are quantised.
    """
    name = absolute(model_folder(name))
    with _explained(name):
        config = AutoConfig.from_pretrained(name, **options.which, **more)
        if options.quantization != "none" and getattr(config, "quantization_config", None):
            raise InputError("its files are quantised already; leave --quantization out, or take the base that is not")
        written = None if config.dtype is None else str(config.dtype).removeprefix("torch.")
        own = (getattr(config, "auto_map", None) or {}).get(auto_class.__name__)
        if own and options.trust_remote_code:
            # `from_config` would run the code of the main branch, whatever the revision
            auto_class = class_of_the_base(own, name, options.revision)
        known = {"trust_remote_code": False} if hasattr(auto_class, "from_config") else {}
        # what a constructor draws on the CPU is not taken from the run's own random numbers
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            base = from_config(auto_class, config, dtype=torch.float32, **known)
    # `from_config` writes its own into the config
    base.written_dtype = written
    for module in base.modules():
        # what its constructor made elsewhere, uninitialised: XLNet's bare FloatTensors
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type != "meta":
                setattr(module, parameter_name, torch.nn.Parameter(parameter.data.to("meta")))
    return base


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = first_lines(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that are needed; has it a head for another number of classes?"
        if "trust_remote_code" in str(error):
            reason = (
                "it comes with Python code of its own, which transformers would run to load it; read that code, and "
                "pass --trust_remote_code to run it here with your rights: it is code of strangers. Pin it with "
                "--revision COMMIT: a branch can change"
            )
        raise InputError(f"cannot load the model {name!r}: {reason}") from error


def load_base_of(saved: AdapterFolder, options: BaseOptions | None = None, **more: Any) -> Any:
    """The base of a saved adapter with its head, pooling, vocabulary and padding, loaded as its run has loaded it.

    Args:
        saved: the adapter.
        options: how the base is loaded; None: as the adapter or its run says.
        more: of `from_pretrained`.

    Raises:
        InputError: as `load_base`.
    """
    saved.check_base()
    head = saved.head_options()
    try:
        how = saved.options if options is None else options
        base = load_base(saved.base, saved.task, saved.auto_class, how, **head, **more)
    except InputError as error:
        raise InputError(f"{error}{saved.base_advice}") from error
    settle(base, saved)
    return base


def load_adapter(folder: str, model: str | None = None, options: BaseOptions | None = None) -> PeftModel:
    """An adapter with its base model under it, in evaluation mode; the base is loaded as it was for the training.

    Args:
        folder: an adapter folder, or a run folder that holds one.
        model: base model; None means the one that the adapter names.
        options: how the base is loaded; None: in the precision and quantisation saved with the adapter, the revision
            in adapter_config.json, and the rest as the run around it says. `trust_remote_code` is taken from a run
            only: an adapter folder of others cannot switch it on.

    Raises:
        InputError: no adapter there, a file cut short, a base of other shapes or layers, or one with weights that
            neither its files nor the adapter hold.
    """
    saved = read_adapter(folder, model)
    base = load_base_of(saved, options)
    refuse_random(saved, base.new_parameters)
    return put_saved_on(base, saved).eval()


def tokenizer_of(saved: AdapterFolder) -> Any:
    """The tokenizer or image processor saved with an adapter, else its base's; errors as `load_tokenizer`."""
    if saved.task == IMAGE_CLS:
        is_own = (saved.folder / PROCESSOR).exists()
        return load_processor(str(saved.folder) if is_own else saved.base, saved.options)
    is_own = (saved.folder / "tokenizer_config.json").exists()
    return load_tokenizer(str(saved.folder) if is_own else saved.base, saved.options)


def settle(base: Any, saved: AdapterFolder) -> None:
    """Give a base what the run changed of it: its pooling, the length of its vocabulary, the token to pad with.

    Raises:
        InputError: a base that cannot have this pooling; a vocabulary of another length whose weights the adapter holds
            in part.
    """
    if saved.task == IMAGE_CLS:
        return
    set_pooling(base, saved.pooling)
    _resize(base, saved)
    if (saved.folder / "tokenizer_config.json").exists():
        settle_padding(base, load_tokenizer(str(saved.folder), saved.options))


def _resize(base: Any, saved: AdapterFolder) -> None:
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


def _saved_rows(base: Any, module: Any, saved: AdapterFolder) -> int | None:
    name = next((name for name, inside in base.named_modules() if inside is module), None)
    holders = ("", ".base_layer", ".token_adapter.base_layer")
    keys = [f"{_PREFIX}{name}{holder}.weight" for holder in holders]
    return next((saved.shapes[key][0] for key in keys if key in saved.shapes), None)


def refuse_random(saved: AdapterFolder, lacking: Sequence[str]) -> None:
    """Refuse to use an adapter whose base has weights that are random at every load.

    Args:
        saved: the adapter.
        lacking: parameters of the model that the base's files do not hold.

    Raises:
        InputError: the adapter does not hold them either, and it is of a task with a head, where they are used.
    """
    if saved.task in (None, "FEATURE_EXTRACTION"):
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
            "tensors): it is random at every load, and so is every result of this model; pass as --model the base that "
            "it was trained on, or train again with lrlora train, which saves such layers"
        )


def put_saved_on(base: Any, saved: AdapterFolder, is_sparing: bool = False) -> PeftModel:
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
            # an error here, below
            warnings.filterwarnings("ignore", ".* tensors of the adapter have no place")
            config = PeftConfig.from_pretrained(str(saved.folder))
            config.inference_mode, config.base_model_name_or_path = True, None
            model: Any = get_peft_model(base, config, ADAPTER, low_cpu_mem_usage=is_sparing)
            keep_in_float32(model)
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
