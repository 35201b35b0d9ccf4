"""`lrlora generate`: what a model writes after a prompt, or after every prompt of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

from transformers import GenerationConfig, set_seed

from lrlora.cli.generation import load_model, parse_with_arguments, streamer_of, tell_if_cut
from lrlora.data.prompts import Prompt, prompts_of, request
from lrlora.data.tables import read_table
from lrlora.errors import InputError
from lrlora.generation import LanguageModel
from lrlora.generation.answers import answer_file, answers
from lrlora.saved.part import check_out
from lrlora.training import processes


@dataclass
class _More:
    prompt: Optional[str] = field(
        default=None, metadata={"help": "a request, answered as an instruction of the training was"}
    )
    file: Optional[str] = field(
        default=None,
        metadata={"help": "a file of prompts in the formats of training rows (jsonl, json, csv, txt, parquet): "
                          "messages, instruction, prompt or text; columns of answers are not read"},
    )  # fmt: skip
    prompt_as: Literal["auto", "request", "text"] = field(
        default="auto",
        metadata={"help": "text: continue --prompt as it is; request: answer plain text of --file; auto: answer "
                          "--prompt, and continue plain text"},
    )  # fmt: skip
    text_column: Optional[str] = field(
        default=None, metadata={"help": "column of --file to read as text, where it has another name"}
    )
    out: Optional[str] = field(
        default=None, metadata={"help": "JSON lines to write: row, prompt, answer, finish, tokens; printed if left out"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace --out, or answers of other settings beside it"})
    batch_size: int = field(default=8, metadata={"help": "prompts of --file at once; does not change greedy answers"})
    seed: int = field(default=0, metadata={"help": "of what --do_sample draws"})
    json: bool = field(default=False, metadata={"help": "print --prompt and its answer as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Generate, and print or write the answers."""
    example = 'lrlora generate runs/demo --prompt "Name a colour."'
    chosen, config = parse_with_arguments(_More, "generate", arguments, example)
    if (chosen.prompt is None) == (chosen.file is None):
        raise InputError("lrlora generate needs --prompt TEXT or --file FILE, one of them")
    if chosen.out is not None:
        check_out(Path(chosen.out), chosen.overwrite)
    prompts, numbers = _prompts(chosen.prompt, chosen.file, chosen.text_column, chosen.prompt_as)
    model = load_model(chosen)
    if chosen.prompt is not None and chosen.out is None and not chosen.json:
        set_seed(chosen.seed)
        _stream(model, prompts[0], config)
        return
    settings = (config, chosen.batch_size, chosen.seed)
    if chosen.out is None:
        found = answers(model, prompts, numbers, *settings, say=processes.tell)
        for record in found:
            print(json.dumps(record, ensure_ascii=False))
        return
    found = answer_file(Path(chosen.out), model, prompts, numbers, *settings, chosen.overwrite, processes.tell)
    long = sum(record["finish"] == "length" for record in found)
    print(f"{chosen.out}: {len(found)} answers" + (f", {long} of them cut at max_new_tokens" if long else ""))


def _prompts(
    text: str | None, file: str | None, column: str | None, written: Literal["auto", "request", "text"]
) -> tuple[list[Prompt], list[int]]:
    if file is None:
        assert text is not None
        if column is not None:
            raise InputError("--text_column is of --file; leave it out")
        return [request(text, written)], [1]
    table, notes = read_table(Path(file).expanduser()), []
    prompts = prompts_of(table, column, written, notes)
    for note in notes:
        processes.tell(note)
    return prompts, list(table.numbers)


def _stream(model: LanguageModel, prompt: Prompt, config: GenerationConfig) -> None:
    """Print an answer as it is written; of several beams only the end is known."""
    streamer = streamer_of(model) if (config.num_beams or 1) == 1 else None
    (answer,) = model.generate([model.prompt(prompt)[1]], config, streamer)
    if streamer is None:
        print(answer.text)
    tell_if_cut(answer)
