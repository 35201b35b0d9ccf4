"""Answers to many prompts: in batches, and into a file that a killed run goes on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, set_seed

from lrlora.data.encode import Say
from lrlora.errors import InputError
from lrlora.generation.model import LanguageModel
from lrlora.generation.options import reads_prompt
from lrlora.saved.part import Record, check_out, resumable

_SAY_EVERY_S = 10.0


def answers(
    model: LanguageModel,
    prompts: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    config: GenerationConfig,
    batch_size: int = 8,
    seed: int = 0,
    done: Sequence[Record] = (),
    keep: Callable[[Record], None] = lambda record: None,
    say: Say = lambda line: None,
) -> list[Record]:
    """Answer prompts, those of like length together.

    The seed is set anew for every batch, so that sampled answers do not depend on which batches were there already.

    Args:
        model: as `lrlora.generation.model.load` returns it.
        prompts: rows of `lrlora.data.prompts`.
        numbers: of each in its file.
        config: as `generation_config` makes it.
        batch_size: prompts at once, at least 1.
        seed: of what is sampled.
        done: records that are there; they are not generated again.
        keep: gets every new record.
        say: gets a line about the progress.

    Returns:
        A record of each prompt in their order: "row", its number; "prompt", the text that the model read; "answer";
        "finish" and "tokens" as in `Answer`.

    Raises:
        InputError: a prompt that cannot be written or is too long, by its number; or as `LanguageModel.generate`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    read = list(_read(model, prompts, numbers))
    found = {record["row"]: record for record in done}
    began = said = time.monotonic()
    for place, batch in enumerate(_batches([ids for _, ids in read], batch_size, reads_prompt(config))):
        if all(numbers[i] in found for i in batch):
            continue
        set_seed(seed + place)
        for i, answer in zip(batch, model.generate([read[i][1] for i in batch], config), strict=True):
            if numbers[i] not in found:
                shown = {"answer": answer.text, "finish": answer.finish, "tokens": answer.tokens}
                found[numbers[i]] = {"row": numbers[i], "prompt": read[i][0], **shown}
                keep(found[numbers[i]])
        if time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            say(f"{len(found)} of {len(read)} prompts answered after {said - began:.0f} s")
    return [found[number] for number in numbers]


def answer_file(
    out: Path,
    model: LanguageModel,
    prompts: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    config: GenerationConfig,
    batch_size: int = 8,
    seed: int = 0,
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> list[Record]:
    """Answer prompts into a file of JSON lines, which is there once all are answered.

    Until then they are in `.NAME.part` next to it, whose first line says what they were made with: the same call goes
    on from there.

    Args:
        out: the file.
        model: as in `answers`.
        prompts: as there.
        numbers: as there.
        config: as there.
        batch_size: as there.
        seed: as there.
        overwrite: replace a file that is there, and begin anew where answers of other settings are.
        say: as there.

    Returns:
        As `answers`.

    Raises:
        InputError: besides, `out` is there, another process writes it, or answers made with other settings are there.
    """
    out = out.expanduser()
    check_out(out, overwrite)
    with resumable(out, _settings(model, prompts, config, batch_size, seed), overwrite) as part:
        if part.done:
            say(f"{out}: {len(part.done)} of {len(prompts)} prompts were answered before; the others are now")
        found = answers(model, prompts, numbers, config, batch_size, seed, part.done, part.keep, say)
        part.finish(found)
    return found


def _read(
    model: LanguageModel, prompts: Sequence[dict[str, Any]], numbers: Sequence[int]
) -> Iterator[tuple[str, list[int]]]:
    for prompt, number in zip(prompts, numbers, strict=True):
        try:
            yield model.prompt(prompt)
        except InputError as error:
            raise InputError(f"row {number}: {error}") from error


def _batches(prompts: Sequence[list[int]], batch_size: int, needs_one_length: bool) -> list[list[int]]:
    """Numbers of prompts in batches, the longest first: little padding, and too little memory shows at once."""
    made: list[list[int]] = []
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        fits = bool(made) and len(made[-1]) < batch_size
        if fits and needs_one_length:
            fits = len(prompts[made[-1][0]]) == len(prompts[i])
        made[-1].append(i) if fits else made.append([i])
    return made


def _settings(
    model: LanguageModel, prompts: Sequence[dict[str, Any]], config: GenerationConfig, batch_size: int, seed: int
) -> dict[str, Any]:
    """What decides the answers."""
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
    drawn = {"seed": seed, "batch_size": batch_size} if config.do_sample else {}
    arguments = {**config.to_diff_dict(), **drawn}
    named = {"model": model.source, "template": model.template, "bf16": model.is_bf16, "prompts": digest}
    return {**named, **arguments}
