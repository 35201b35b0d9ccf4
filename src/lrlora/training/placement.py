"""Which modules get an adapter, and which are trained whole: checked before PEFT, which accepts some wrong names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lrlora.errors import InputError
from lrlora.saved.base import image_heads

ALL_LINEAR = "all-linear"

# PEFT adds these to modules_to_save, and takes every module whose name ends in one of them
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def trained_whole(base: Any, config: Any) -> list[str]:
    """Modules that must go into `modules_to_save`, besides those that are in it.

    Weights that the base's files do not hold are random at every load; what was trained on them would be lost with
    them. So the smallest modules that hold such weights are trained and saved whole. And PEFT takes a module such as
    DistilBERT's `pre_classifier` for the head `classifier`: it cannot be adapted as well.

    Args:
        base: a model, from `load_base` if it is to be known what is new in it.
        config: of any of PEFT's methods.

    Raises:
        InputError: new weights that no module holds, that the method cannot save, or that are a language model's head.
    """
    kept = _saved_names(config)
    names = [name for name, _ in base.named_modules() if name]
    taken = {name for name in names if name.endswith(kept)} if kept else set()
    mistaken = [name for name in sorted(taken) if not _matches(name, kept)]
    found = [*mistaken, *_new_modules(base, config), *image_heads(base)]
    whole: list[str] = []
    # parents come before their children
    for name in sorted(dict.fromkeys(found)):
        around = {name[:end] for end in (*(m.start() for m in re.finditer(r"\.", name)), len(name))}
        if not around & {*whole, *(taken - set(mistaken))}:
            whole.append(name)
    if whole and not hasattr(config, "modules_to_save"):
        raise InputError(
            f"the files of {_name_of(base)} lack {whole[0]}, which is random at every load, and "
            f"{type(config).__name__} cannot save it; take a base that has it, or another method"
        )
    return [name for name in whole if name not in kept]


_UNUSED = {"SiglipForImageClassification": "vision_model.head", "Siglip2ForImageClassification": "vision_model.head"}
"""Modules whose output a classifier of transformers does not read: in place of SigLIP's pooling it takes a mean."""


def leave_unused_out(base: Any, config: Any) -> str | None:
    """Exclude modules from a config whose output the model does not read: what is learned there changes nothing.

    Returns:
        The module that they are in; None where there is none, or where names of modules are a regular expression.
    """
    unused = _UNUSED.get(type(base).__name__)
    excluded = getattr(config, "exclude_modules", None)
    if unused is None or isinstance(excluded, str) or not hasattr(config, "exclude_modules"):
        return None
    within = [name for name, module in base.named_modules() if _is_linear_in(name, module, unused)]
    config.exclude_modules = sorted({*(excluded or ()), *within})
    return unused


def _is_linear_in(name: str, module: Any, around: str) -> bool:
    return name.startswith(f"{around}.") and isinstance(module, torch.nn.Linear | Conv1D)


def check_names(base: Any, config: Any) -> None:
    """Refuse names of modules, parameters and blocks that match nothing in a model; PEFT lets them pass where one does.

    Raises:
        InputError: naming them, and what there is.
    """
    modules = {name: module for name, module in base.named_modules() if name}
    _check_targets(base, config, modules)
    # a name excludes the module itself and not those within it
    leaves = [name for name, module in modules.items() if not any(True for _ in module.children())]
    _check_list(base, "exclude_modules", getattr(config, "exclude_modules", None), leaves)
    own = _HEADS.get(_task_of(config), ())
    kept = [name for name in getattr(config, "modules_to_save", None) or () if name not in own]
    _check_list(base, "modules_to_save", kept, modules)
    parameters = [name for name, _ in base.named_parameters()]
    _check_list(base, "target_parameters", getattr(config, "target_parameters", None), parameters)
    for field in ("rank_pattern", "alpha_pattern"):
        for word in getattr(config, field, None) or {}:
            if not any(re.match(rf"(.*\.)?({word})$", name) for name in (*modules, *parameters)):
                raise _matches_nothing(base, field, word, leaves)
    blocks = getattr(config, "layers_to_transform", None)
    if blocks is not None:
        wanted = {blocks} if isinstance(blocks, int) else set(blocks)
        there = {int(part) for name in modules for part in name.split(".") if part.isdigit()}
        if wanted - there:
            lost = sorted(wanted - there)
            raise InputError(f"layers_to_transform {lost} are no blocks of {_name_of(base)}, which has {len(there)}")


def said_of_expressions(base: Any, config: Any) -> list[str]:
    """A line for each field that was taken as a regular expression, with how many modules it matches."""
    lines = []
    for field in ("target_modules", "exclude_modules"):
        word = getattr(config, field, None)
        if isinstance(word, str) and word != ALL_LINEAR:
            matched = [name for name, _ in base.named_modules() if name and _is_chosen(name, word)]
            lines.append(f"{field} {word!r} is taken as a regular expression, which matches {len(matched)} modules")
    return lines


def _check_targets(base: Any, config: Any, modules: dict[str, Any]) -> None:
    targets = getattr(config, "target_modules", None)
    if targets is None or targets == ALL_LINEAR:
        return
    if not isinstance(targets, str) and ALL_LINEAR in targets:
        raise InputError(
            f"target_modules: {ALL_LINEAR} must be the only entry, got {sorted(targets)}; drop the others or it"
        )
    wanted = [targets] if isinstance(targets, str) else sorted(targets)
    matched = {w: [name for name in modules if _is_chosen(name, targets if targets == w else [w])] for w in wanted}
    if missing := [w for w in wanted if not matched[w]]:
        linear = (torch.nn.Linear, Conv1D)
        kinds = sorted({name.split(".")[-1] for name, module in modules.items() if isinstance(module, linear)})
        raise InputError(
            f"no module of {_name_of(base)} matches target_modules {missing}; its linear layers end in: "
            f"{', '.join(kinds)}"
        )
    left_alone, whole = getattr(config, "exclude_modules", None), _saved_names(config)
    for word, names in matched.items():
        if all(_is_chosen(name, left_alone) or _is_within(name, whole) for name in names):
            raise InputError(
                f"target_modules {word!r} matches {names[0]} ({len(names)} modules), which exclude_modules "
                "excludes, or which is trained and saved whole because it is new in this base, a head, or in "
                "modules_to_save; drop it from target_modules"
            )


def _check_list(base: Any, field: str, chosen: Any, names: Iterable[str]) -> None:
    names = list(names)
    for word in [chosen] if isinstance(chosen, str) else sorted(chosen or ()):
        if any(_is_chosen(name, chosen if chosen == word else [word]) for name in names):
            continue
        raise _matches_nothing(base, field, word, names)


def _matches_nothing(base: Any, field: str, word: str, names: Iterable[str]) -> InputError:
    endings = sorted({".".join(name.split(".")[-n:]) for name in names for n in (1, 2)})
    within = [name for name in endings if name.startswith(f"{word}.")]
    near = within[:3] or difflib.get_close_matches(word, endings)
    there = f"; near names: {', '.join(near)}" if near else ""
    return InputError(f"{field} {word!r} matches nothing in {_name_of(base)}{there}")


def _new_modules(base: Any, config: Any) -> list[str]:
    """The modules that hold weights which the base's files lack."""
    new = getattr(base, "new_parameters", ())
    if not new:
        return []
    output = base.get_output_embeddings() if _task_of(config) == "CAUSAL_LM" else None
    heads = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    named = dict(base.named_parameters())
    for name in new:
        if id(named.get(name)) in heads:
            raise InputError(
                f"{_name_of(base)} is no causal model: its files lack {name}, the layer that predicts tokens; pass one "
                "that was trained as a causal model"
            )
        if "." not in name:
            raise InputError(
                f"the files of {_name_of(base)} lack {name}, which no module holds: it cannot be trained and "
                "saved with an adapter; pass a base that has it"
            )
    return [name.rpartition(".")[0] for name in new]


def _saved_names(config: Any) -> tuple[str, ...]:
    return (*(getattr(config, "modules_to_save", None) or ()), *_HEADS.get(_task_of(config), ()))


def _task_of(config: Any) -> str:
    task = getattr(config, "task_type", None)
    return str(getattr(task, "value", task))


def _matches(name: str, words: Iterable[str]) -> bool:
    return any(name == word or name.endswith(f".{word}") for word in words)


def _is_within(name: str, words: Iterable[str]) -> bool:
    parts = name.split(".")
    return any(_matches(".".join(parts[:n]), words) for n in range(1, len(parts) + 1))


def _is_chosen(name: str, words: Any) -> bool:
    """Whether PEFT takes a module: by a regular expression for its whole name, or by the end of it."""
    if not isinstance(words, str):
        return _matches(name, words or ())
    try:
        return re.fullmatch(words, name) is not None
    except re.error as error:
        raise InputError(f"{words!r} is not a regular expression: {error}") from error


def _name_of(base: Any) -> str:
    return getattr(getattr(base, "config", None), "name_or_path", "") or type(base).__name__
