"""RunFolder: what `lrlora train` writes where, and what is found there when a run starts again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from lrlora.errors import InputError
from lrlora.files import explained, new_file, new_folder, read_json, write_json
from lrlora.ranks import LayerRank, read_records
from lrlora.saved import names, owned
from lrlora.saved.base import AS_IT_IS, BaseOptions, image_heads
from lrlora.saved.checkpoints import last_checkpoint, whole_checkpoints
from lrlora.saved.kept_card import write_card
from lrlora.saved.lock import lock
from lrlora.saved.pooling import Pooling
from lrlora.saved.provenance import provenance, utc_now
from lrlora.saved.settings import Settings, changes, renewed
from lrlora.saved.sums import write_sums_of_run
from lrlora.saved.updates import order_config

FORMAT = 3
"""Of a run folder. Up to 2 tau was a text; 1, which its config.json does not say, had no `inputs` at first."""
_ADVICE = "pass another --out"
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run has written, is writing, or will write.

    Args:
        path: the folder; it need not be there yet.

    Raises:
        InputError: by what reads it: a file that is not JSON, or a run written by a newer version of lrlora.

    Example:
        >>> RunFolder(Path("runs/none")).is_finished
        False
    """

    path: Path

    @property
    def adapter(self) -> Path:
        """The adapter as PEFT saves it."""
        return self.path / names.ADAPTER

    @property
    def checkpoints(self) -> Path:
        """Where the Trainer writes its checkpoints."""
        return self.path / names.CHECKPOINTS

    @property
    def picture(self) -> Path:
        """The learned ranks as a heatmap."""
        return self.path / names.PICTURE

    @property
    def lora(self) -> RunFolder:
        """Plain LoRA with the same settings, where it was trained."""
        return RunFolder(self.path / names.LORA)

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return owned.is_run(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether it holds results; they are written last."""
        return self._metrics.exists()

    @property
    def ended(self) -> float:
        """When it was finished, in seconds since 1970."""
        return self._metrics.stat().st_mtime

    @property
    def described(self) -> dict[str, Any]:
        """config.json: "format", "settings", "versions", "inputs", "provenance"; of a folder without one nothing."""
        file = self.path / names.CONFIG
        if not file.exists():
            return {}
        found = read_json(file, _ADVICE)
        written = found.get("format", 1)
        if not isinstance(written, int) or written > FORMAT:
            raise InputError(
                f"{file} has format {written}, of a newer lrlora, and this one reads up to {FORMAT}; upgrade lrlora, "
                f"or {_ADVICE}"
            )
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """What it was trained with, by the names of the flags."""
        here = self.described
        return renewed(here.get("settings", {}), here.get("format", 1))

    @property
    def inputs(self) -> dict[str, str] | None:
        """What it has read, as numbers (see `lrlora.saved.identity`); None where an early version did not say."""
        return self.described.get("inputs") or None

    @property
    def metrics(self) -> dict[str, Any]:
        """The results; nothing where it is not finished."""
        return read_json(self._metrics, _ADVICE) if self._metrics.exists() else {}

    @property
    def ranks(self) -> list[LayerRank] | None:
        """The learned ranks at the end; None where there are none."""
        file = self.path / names.RANKS
        if not file.exists():
            return None
        try:
            return [LayerRank.from_dict(row) for row in read_json(file, _ADVICE)]
        except TypeError as error:
            raise InputError(f"{file} holds no rows of learned ranks ({error}); delete it, or {_ADVICE}") from error

    @property
    def records(self) -> list[dict[str, Any]]:
        """The ranks while training, as `lrlora.ranks.read_records` gives them."""
        return read_records(self.path)

    def check(self, settings: Settings, overwrite: bool, inputs: dict[str, str] | None = None) -> bool:
        """Whether the folder holds this very run, finished, and not to be extended. Changes nothing.

        Args:
            settings: of the run.
            overwrite: whether another run that is there shall be deleted.
            inputs: what the run reads, as numbers; None where it is not known yet.

        Raises:
            InputError: the folder holds a run with other settings or inputs and overwrite is off, or it holds files
                that no run wrote.
        """
        folder = self.path
        with explained(folder):
            if folder.exists() and not folder.is_dir():
                raise InputError(f"{folder} is a file, needed a folder or nothing; {_ADVICE}")
        if not self.is_run:
            owned.refuse(folder, owned.foreign_to_nobody(folder), overwrite)
            return False
        changed = self._changes(settings, inputs)
        if changed and self._has_results() and not overwrite:
            raise InputError(
                f"{folder} holds a run with other {_named(changed)}; pass another --out, or --overwrite to delete it"
            )
        if overwrite or changed:
            owned.refuse(folder, owned.foreign(folder), overwrite)
            self._refuse_what_is_read(settings)
            return False
        if self.is_finished:
            return not settings.is_longer(self.settings)
        owned.refuse(folder, owned.foreign_in_the_way(folder), overwrite)
        return False

    def start(
        self, settings: Settings, versions: dict[str, str], inputs: dict[str, str], overwrite: bool
    ) -> Path | None:
        """Make the folder and write config.json, once data and model are known; an old run is deleted here.

        Returns:
            The checkpoint to resume from.

        Raises:
            InputError: as `check`.
        """
        known: dict[str, str] | None = inputs
        if self.is_run:
            if overwrite or self._changes(settings, inputs):
                owned.remove(self.path)
            elif self._has_results():
                # a run of an earlier version: what it has read so far is not known, and cannot be found out any more
                known = self.inputs
                if settings.is_longer(self.settings):
                    # the results of the shorter run would be taken for those of the longer one
                    self._metrics.unlink(missing_ok=True)
        before = self.described.get("provenance", {})
        described = {"format": FORMAT, "settings": settings.values, "versions": versions, "inputs": known}
        described["provenance"] = provenance(inputs["model"], before)
        write_json(self.path / names.CONFIG, described)
        return last_checkpoint(self.checkpoints)

    def lock(self) -> FileLock:
        """Keep other processes from training here; see `lrlora.saved.lock`."""
        return lock(self.path)

    def what_is_left(self, settings: Settings, starts_again: bool) -> str:
        """What an interrupted run leaves, and what the same command will do, with --overwrite or without."""
        from_start = "the same command starts from the beginning"
        if not self.is_run:
            return f"nothing was written to {self.path}; {from_start}"
        if self._changes(settings, None):
            return f"{self.path} was not changed; {from_start}"
        found = whole_checkpoints(self.checkpoints)
        if self.is_finished:
            left, then = f"{self.path} holds a finished run", "shows it"
        elif found:
            left, then = f"{found[-1]} is written", "goes on from it"
        else:
            return f"{self.path} holds no checkpoint yet; {from_start}"
        if starts_again:
            return f"{left}; the same command without --overwrite {then}, with it it starts from the beginning"
        return f"{left}; the same command {then}"

    def save_adapter(
        self,
        model: Any,
        tokenizer: Any,
        pooling: Pooling = "auto",
        card: str | None = None,
        say: Say = lambda line: None,
        base: BaseOptions = AS_IT_IS,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Save the adapter, as PEFT saves it, its tokenizer, classes, pooling and base; an older one is replaced.

        Args:
            model: the PeftModel.
            tokenizer: of the model.
            pooling: that it was trained with.
            card: text of its model card; None leaves PEFT's template.
            say: gets a line where a README.md of somebody else is there and stays.
            base: how its base was loaded.
            state: its tensors by name, where the model is in shards; None: as they are in the model.
        """
        with new_folder(self.adapter, overwrite=True) as beside:
            model.save_pretrained(beside, **({} if state is None else {"state_dict": state}))
            order_config(beside)
            tokenizer.save_pretrained(beside)
            if card is not None:
                write_card(beside, card, self.adapter, say)
                if self.picture.exists():
                    shutil.copyfile(self.picture, beside / names.PICTURE)
            is_classifier = model.peft_config["default"].task_type == "SEQ_CLS" or image_heads(model.get_base_model())
            if is_classifier and model.config.num_labels > 1:
                write_json(beside / names.LABELS, list(model.config.id2label.values()))
            if pooling != "auto":
                write_json(beside / names.POOLING, pooling)
            if base.measured:
                write_json(beside / names.BASE, base.measured)

    def save_ranks(self, rows: list[LayerRank]) -> None:
        """Write the learned ranks at the end."""
        write_json(self.path / names.RANKS, [row.as_dict() for row in rows])

    def save_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Write what was predicted of every held-out row, a line each."""
        with new_file(self.path / names.PREDICTIONS) as beside:
            beside.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Write the results, last: a folder that has them is finished. Then the digests of all that it ends with."""
        described = self.described
        described.setdefault("provenance", {})["ended"] = utc_now()
        write_json(self.path / names.CONFIG, described)
        write_json(self._metrics, metrics)
        write_sums_of_run(self.path, self.adapter)

    @property
    def _metrics(self) -> Path:
        return self.path / names.METRICS

    def _has_results(self) -> bool:
        return self.is_finished or bool(owned.checkpoints(self.checkpoints))

    def _changes(self, settings: Settings, inputs: dict[str, str] | None) -> dict[str, list[str]]:
        return changes(self.settings, settings, self.inputs or {}, inputs or {})

    def _refuse_what_is_read(self, settings: Settings) -> None:
        for name in settings.places:
            place = Path(settings.values.get(name) or os.devnull).resolve()
            if place.is_relative_to(self.path.resolve()):
                raise InputError(
                    f"--{name} {settings.values[name]} is in {self.path}, whose run would be deleted before it is "
                    f"read; {_ADVICE}"
                )


def _named(changed: dict[str, list[str]]) -> str:
    return " and other ".join(f"{kind} ({', '.join(found[:3])})" for kind, found in changed.items())
