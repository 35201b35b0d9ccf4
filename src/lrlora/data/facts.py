"""Facts that a model can only memorise: random ones, which do not compress, and pairs of a file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lrlora.data.encode import IGNORED
from lrlora.data.shape import texts
from lrlora.data.source import DataSource, training_tables
from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

PATTERN = "{question} = {answer}"
"""How a pair becomes a text for a causal model, where nobody says."""
ATTRIBUTES = (
    "age", "border", "clock", "coat", "colour", "friend", "garden", "height", "home", "horse", "island", "key", "lamp",
    "meal", "mother", "number", "river", "ship", "song", "street", "teacher", "tower", "trade", "voice",
)  # fmt: skip
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
MOST_FACTS = len(ATTRIBUTES) * len(_SYLLABLES) ** 3 // 2
"""Half of the pairs of attribute and entity: beyond it most draws would be of a pair that is taken."""
MOST_VALUES = len(_SYLLABLES) ** 2


@dataclass(frozen=True)
class Facts:
    """Questions, each with its answer.

    Args:
        questions: all different.
        answers: as many.
        values: all answers that could have been drawn, in the order of their numbers; empty: nobody knows.
        source: where they are from, for the record.
        notes: what the user should know of how they were read.
    """

    questions: list[str]
    answers: list[str]
    values: list[str]
    source: str
    notes: tuple[str, ...] = ()


def drawn_facts(count: int, values: int) -> Facts:
    """Facts "the ATTRIBUTE of ENTITY" with an answer that is uniform in `values` words: log2(values) bits each.

    Entities and answers are made of syllables, three and two of them. The draw depends only on `values`: fewer facts
    are the first of more.

    Args:
        count: how many, at most MOST_FACTS.
        values: number of answers, in [2, MOST_VALUES].

    Raises:
        InputError: a number out of its range.

    Example:
        >>> facts = drawn_facts(2, 16)
        >>> [question.split()[:2] for question in facts.questions][0][0], len(facts.values)
        ('the', 16)
    """
    if not 1 <= count <= MOST_FACTS:
        raise InputError(f"between 1 and {MOST_FACTS:,} facts can be drawn, got {count}")
    if not 2 <= values <= MOST_VALUES:
        raise InputError(f"values must be in [2, {MOST_VALUES}], got {values}")
    draw = random.Random(f"facts of {values} values")
    words: list[str] = []
    while len(words) < values:
        word = "".join(draw.choices(_SYLLABLES, k=2))
        if word not in words:
            words.append(word)
    answers: dict[str, str] = {}
    while len(answers) < count:
        question = f"the {draw.choice(ATTRIBUTES)} of {''.join(draw.choices(_SYLLABLES, k=3))}"
        if question not in answers:
            answers[question] = draw.choice(words)
    return Facts(list(answers), list(answers.values()), words, f"{count} facts of {values} values, drawn")


def read_facts(
    source: DataSource, question: str, answer: str, count: int | None = None, draw_seed: int | None = 0
) -> Facts:
    """Pairs of a file, without repeated questions, which is said; so is a file that seems to be sorted.

    Args:
        source: where the rows are; of a folder or a dataset its training rows.
        question: column of the questions.
        answer: column of their answers.
        count: how many, at most; None: all.
        draw_seed: of a draw from all rows, in which fewer are the first of more; None: the first ones. All rows stay in
            their order.

    Raises:
        InputError: rows that cannot be read, a column that is not there, a row without text in it, fewer pairs than
            `count`.
    """
    table, _, _ = training_tables(source)
    if missing := [column for column in (question, answer) if column not in table.columns]:
        raise InputError(f"{table.where}: no column {missing[0]!r}, got columns {', '.join(table.columns)}")
    notes: list[str] = []
    questions, replies = (texts(table, column, notes) for column in (question, answer))
    empty = next(
        (n for n, pair in enumerate(zip(questions, replies, strict=True)) if not all(map(str.strip, pair))), None
    )
    if empty is not None:
        raise table.error(empty, f"has an empty {question!r} or {answer!r}, needed a text in both")
    # by question, the row in which it comes first
    rows: dict[str, int] = {}
    for row, asked in enumerate(questions):
        rows.setdefault(asked, row)
    if count is not None and len(rows) < count:
        raise InputError(
            f"{table.where} has {len(rows)} different questions in its {len(table)} rows, fewer than the {count} "
            "facts that were asked for; ask for fewer"
        )
    whole = list(rows.values())
    is_drawn = draw_seed is not None and count is not None
    drawn = random.Random(f"pairs of seed {draw_seed or 0}").sample(whole, len(whole))[:count]
    taken = drawn if is_drawn else whole[:count]
    considered = whole if is_drawn else taken
    looked_at = len(questions) if len(considered) == len(whole) else considered[-1] + 1
    if dropped := looked_at - len(considered):
        notes.append(
            f"{table.where}: {dropped} of the first {looked_at} rows repeat a question and were dropped; the first "
            "answer of each was kept"
        )
    here, anywhere = (len({replies[row] for row in some}) for some in (taken, drawn))
    if 2 * here < anywhere:
        notes.append(
            f"{table.where} seems to be sorted: its first {len(taken)} pairs have {here} different answers, as many "
            f"drawn from all of it {anywhere}; draw them, with a draw_seed that is a number"
        )
    source_of_pairs = f"{table.where}, {len(taken)} pairs" + (f" drawn, seed {draw_seed}" if is_drawn else "")
    return Facts(
        [questions[row] for row in taken],
        [replies[row] for row in taken],
        [],
        source_of_pairs,
        tuple(dict.fromkeys(notes)),
    )


def check_pattern(pattern: str) -> None:
    """Raise InputError where a pattern has not {question} once, and {answer} once behind it."""
    marks = ("{question}", "{answer}")
    if [pattern.count(mark) for mark in marks] != [1, 1] or pattern.index(marks[0]) > pattern.index(marks[1]):
        raise InputError(f"pattern needs {{question}} once and {{answer}} once behind it, got {pattern!r}")


def written(pattern: str, question: str, answer: str) -> tuple[str, str]:
    """A pair as a text, and the part of it before the answer.

    Example:
        >>> written("{question} = {answer}.", "one", "eins")
        ('one = eins.', 'one = ')
    """
    before, _, rest = pattern.partition("{question}")
    between, _, behind = rest.partition("{answer}")
    return f"{before}{question}{between}{answer}{behind}", f"{before}{question}{between}"


def encode_labelled(rows: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    """Drawn facts for a classifier: input_ids, attention_mask, labels.

    Args:
        rows: columns text, label.
        tokenizer: of the model.
        max_length: tokens of a row at most.

    Raises:
        InputError: a longer row; a fact that is cut is another fact.
    """
    from datasets import Dataset

    fields = dict(tokenizer(rows["text"][:], truncation=False, verbose=False))
    _check_lengths(fields["input_ids"], max_length, rows["text"][:])
    return Dataset.from_dict({**fields, "labels": rows["label"][:]})


def encode_recalled(rows: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    """Facts for a causal model: the labels are the tokens of the answer and the end token; the others are ignored.

    The text is read whole, as it would be without a border: the answer begins with the first token that depends on it.

    Args:
        rows: columns text, the pair as a text, and prompt, the part of it before the answer.
        tokenizer: of the model.
        max_length: tokens of a row at most.

    Raises:
        InputError: a longer row; a row that has no token before the answer.
    """
    from datasets import Dataset

    made: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": []}
    wholes, prompts = (tokenizer(rows[name][:], verbose=False)["input_ids"] for name in ("text", "prompt"))
    end = tokenizer.eos_token_id
    for whole, prompt, text in zip(wholes, prompts, rows["text"][:], strict=True):
        ids = whole if end is None or whole[-1:] == [end] else [*whole, end]
        known = next(
            (n for n, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), min(len(whole), len(prompt))
        )
        if not 0 < known < len(ids):
            raise InputError(f"no token is before the answer in {text!r}, or none in it; give another pattern")
        made["input_ids"].append(ids)
        made["attention_mask"].append([1] * len(ids))
        made["labels"].append([IGNORED] * known + ids[known:])
    _check_lengths(made["input_ids"], max_length, rows["text"][:])
    return Dataset.from_dict(made)


def encode_texts(texts: Sequence[str], tokenizer: Any, length: int) -> Dataset:
    """Plain text for a causal model, each cut to its first `length` tokens: every token but the first is a label."""
    from datasets import Dataset

    ids = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    labels = [[IGNORED, *row[1:]] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": labels})


def _check_lengths(ids: list[list[int]], max_length: int, texts: Sequence[str]) -> None:
    longest = max(range(len(ids)), key=lambda number: len(ids[number]))
    if len(ids[longest]) > max_length:
        raise InputError(
            f"fact {longest + 1} has {len(ids[longest])} tokens, more than max_length {max_length}, and a fact that is "
            f"cut is another one: {texts[longest]!r}; pass max_length {len(ids[longest])} or more"
        )
