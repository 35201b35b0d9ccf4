"""What a model card says of the training: base, data, settings, results. Without a path of this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrlora.data.embedded import DECODER, DIGITS, VISION, encoder_folder, model_folder
from lrlora.errors import InputError
from lrlora.ranks import LayerRank
from lrlora.saved.card_text import listed, table, without_places
from lrlora.saved.local import cached, run_around
from lrlora.saved.names import CONFIG
from lrlora.saved.run import RunFolder
from lrlora.saved.settings import Settings

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SNAPSHOT = re.compile(r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{40})/?")
_NOT_NUMBERS = ("method", "task", "source", "metric", "train_rows", "eval_rows", "wall_s", "was_resumed", "warnings")
_ELSEWHERE = ("model", "data", "eval_data")


@dataclass(frozen=True)
class Base:
    """A base model as a card names it.

    Args:
        name: of the hub, or the last part of a local folder.
        hub_name: the name on the hub; None for a folder.
        identity: its revision on the hub or the digest of its files, with that word before it; empty if not known.
        how: Python that gives its folder, where lrlora has it; else None.
    """

    name: str
    hub_name: str | None
    identity: str = ""
    how: str | None = None

    def text(self) -> str:
        """A line for the card."""
        where = "of the hub" if self.hub_name else "in a package that lrlora reads" if self.how else "a local folder"
        return f"`{self.name}`, {where}" + (f"; {self.identity}" if self.identity else "") + "."


def base_of(name: str, known: str | None = None) -> Base:
    """How a card names a base.

    Args:
        name: folder, or name on the hub.
        known: what named its weights while training (`lrlora.saved.identity.digest_of_model`), if that was this base.
    """
    revision = known.rpartition("@")[2] if known and "@" in known else None
    if found := _SNAPSHOT.fullmatch(name):
        owner, model, commit = found.groups()
        return Base(f"{owner}/{model}", f"{owner}/{model}", f"revision {commit}")
    if not Path(name).expanduser().is_dir() and not os.path.isabs(name):
        if revision is None and (place := cached(name, CONFIG)) is not None:
            revision = place.name
        return Base(name, name, f"revision {revision}" if revision else "")
    identity = f"digest of its files {known}" if known and not revision else ""
    for title, how, folder in (
        ("all-MiniLM-L6-v2", "lrlora.data.embedded.encoder_folder()", encoder_folder),
        (
            "SmolLM2-135M-Instruct",
            f"lrlora.data.embedded.model_folder({DECODER!r})",
            lambda: _made(name, DECODER, "SmolLM2-135M-Instruct"),
        ),
        ("DINOv2-small", f"lrlora.data.embedded.model_folder({VISION!r})", lambda: _made(name, VISION, "DINOv2-small")),
    ):
        try:
            if os.path.realpath(folder()) == os.path.realpath(name):
                return Base(title, None, identity, how)
        except InputError:  # not installed: then it is another folder
            continue
    return Base(os.path.basename(name.rstrip("/")), None, identity)


def _made(name: str, embedded: str, folder: str) -> str:
    # making it takes up to half a minute: it is asked for only where it can be the one
    return model_folder(embedded) if name.rstrip("/").endswith(f"lrlora/{folder}") else ""


@dataclass(frozen=True)
class Origin:
    """What was trained, from what. All but the base is empty where it is not known.

    Args:
        base: the base model.
        settings: all settings, by the names of the flags.
        known: their defaults, and which of them decide a result.
        metrics: as in metrics.json.
        ranks: as in ranks.json.
        versions: of the libraries that trained it.
        data: digest of the rows.
    """

    base: Base
    settings: dict[str, Any] = field(default_factory=dict)
    known: Settings | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    ranks: list[LayerRank] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    data: str | None = None

    def data_text(self) -> str:
        """The rows: where from, how many, and their digest."""
        if not self.settings:
            return ""
        named = {name: self.settings.get(name) for name in ("data", "subset", "task", "eval_data")}
        demo = "the embedded digits" if self.metrics.get("task") == DIGITS else "the embedded BBC News titles"
        said = {"data": demo, **{k: f"`{without_places(v)}`" for k, v in named.items() if v}}
        for name, title in (("train_rows", "rows trained on"), ("eval_rows", "rows held out")):
            if name in self.metrics:
                said[title] = self.metrics[name]
        return listed({**said, **({"digest of the rows": self.data} if self.data else {})})

    def settings_text(self) -> str:
        """The settings that are not the defaults."""
        if not self.settings or self.known is None:
            return ""
        free = {*self.known.free, *_ELSEWHERE}
        defaults = self.known.defaults
        rows = [
            (name, f"`{without_places(value)}`", f"`{defaults.get(name)}`")
            for name, value in self.settings.items()
            if name not in free and value != defaults.get(name)
        ]
        return table(("setting", "value", "default"), rows) if rows else "None."

    def results_text(self) -> str:
        """The numbers of metrics.json."""
        rows = [
            (name, f"{value:.4f}" if isinstance(value, float) else f"{value:,}")
            for name, value in self.metrics.items()
            if name not in _NOT_NUMBERS and isinstance(value, int | float)
        ]
        return f"On the held-out rows, at the end of training.\n\n{table(('', 'value'), rows)}" if rows else ""


def origin_of_run(
    run: RunFolder, base: str, known: Settings, metrics: dict[str, Any], ranks: list[LayerRank]
) -> Origin:
    """What a run folder says, with the results that are not written yet.

    Args:
        run: the folder; its config.json is there.
        base: that its adapter names.
        known: settings with the defaults of this version.
        metrics: the results.
        ranks: the learned ranks.
    """
    inputs = run.inputs or {}
    named = base_of(base, inputs.get("model"))
    versions = run.described.get("versions", {})
    return Origin(named, run.settings, known, metrics, ranks, versions, inputs.get("data"))


def origin_of_adapter(folder: Path, base: str, known: Settings, is_base_given: bool = False) -> Origin:
    """What is known of an adapter: of one in a run what the run says, of any other its base alone.

    Args:
        folder: the adapter.
        base: that it is used with.
        known: settings with the defaults of this version.
        is_base_given: whether that is another one than it names; then the run does not know it.
    """
    around = run_around(folder)
    if not around:
        return Origin(base_of(base))
    run = RunFolder(around[0])
    # of a checkpoint of a run neither its results nor its ranks are those of the end
    is_end = run.adapter.resolve() == folder.resolve()
    found = origin_of_run(run, base, known, run.metrics if is_end else {}, (run.ranks or []) if is_end else [])
    if not is_base_given:
        return found
    return Origin(base_of(base), *(getattr(found, name) for name in ("settings", "known", "metrics", "ranks")),
                  versions=found.versions, data=found.data)  # fmt: skip


def is_dataset_of_hub(data: Any) -> bool:
    """Whether the setting `data` is a name of the hub: a path of this machine is absolute by then."""
    return isinstance(data, str) and _HUB_NAME.fullmatch(data) is not None and not os.path.exists(data)
