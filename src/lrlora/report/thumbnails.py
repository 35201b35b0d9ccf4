"""Small copies of a run's held-out images, inside the page; only of images that are proven to be the run's."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from lrlora.data import load_task
from lrlora.data.pixels import content_of, opened
from lrlora.errors import InputError
from lrlora.export.compare import run_config
from lrlora.saved.identity import digest_of_rows
from lrlora.saved.results import Run
from lrlora.training.processes import tell

SIDE = 96
"""Pixels of the longer side at most."""


@dataclass(frozen=True)
class Thumbnail:
    """A small image.

    Args:
        uri: PNG or JPEG as a data URI.
        width, height: on the page, in pixels.
        is_enlarged: whether each of its pixels is several on the page.
    """

    uri: str
    width: int
    height: int
    is_enlarged: bool


def thumbnails(run: Run, places: Sequence[int]) -> dict[int, Thumbnail] | str:
    """Thumbnails of held-out images of a run, read again from its data.

    All rows of the data are read, as the training read them, and their digest is compared with the run's: the image at
    a place is then the one that was predicted.

    Args:
        run: with predictions.
        places: of the images among the held-out rows.

    Returns:
        By place, nothing where no place is asked for; or why there are none, in words.
    """
    assert run.predictions is not None
    if not places:
        return {}
    known = (run.inputs or {}).get("data")
    if known is None:
        return f"{run.folder.name} does not say which images it read"
    tell(f"reading the images that {run.folder} was trained and evaluated on, for thumbnails of its mistakes")
    try:
        task = load_task(run_config(str(run.folder)).data_source(), run.predictions.classes)
    except (InputError, OSError) as error:
        return f"the images of {run.folder.name} cannot be read any more: {str(error).splitlines()[0].rstrip(':')}"
    rows = task.evaluation
    predicted = [(each.row, each.true) for each in run.predictions.rows]
    has_them = list(zip(rows["row"], (task.labels[label] for label in rows["label"]), strict=True)) == predicted
    if digest_of_rows(task) != known or not has_them:
        return f"{task.source} does not hold the images that {run.folder.name} read: it has changed since"
    found = {}
    for place in places:
        row = rows[place]
        try:
            content = content_of(row["file"], row["bytes"])
            if hashlib.sha256(content).hexdigest() != row["digest"]:
                raise ValueError("it has just been changed")
            found[place] = thumbnail(opened(content))
        except ValueError as error:
            return f"image {row['file'] or row['row']} of {run.folder.name} cannot be read any more: {error}"
    return found


def thumbnail(image: Image.Image) -> Thumbnail:
    """A small copy of an image in RGB: at most `SIDE` pixels a side; up to half of that, enlarged by a whole number."""
    times = SIDE // max(image.size)
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file, form = io.BytesIO(), "png" if times > 1 else "jpeg"
    small.save(file, form, quality=85)
    uri = f"data:image/{form};base64,{base64.b64encode(file.getvalue()).decode()}"
    width, height = (max(1, times) * pixels for pixels in small.size)
    return Thumbnail(uri, width, height, times > 1)
