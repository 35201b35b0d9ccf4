"""Images to pixels: every file as RGB, as a model's image processor wants it, and cropped at random while training.

Pillow and transformers' PIL image processors: torchvision is not needed, and would give slightly other pixels.
"""

from __future__ import annotations

import io
import math
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy
import torch
from PIL import Image, ImageOps

from lrlora.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from lrlora.data.tasks import TaskData

Augment = Literal["auto", "none", "crop", "crop-flip"]
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of the area and of the sides of a random crop: the defaults of torchvision's RandomResizedCrop."""
_TRIES = 10
_LONGEST = 200
"""The longer side over the shorter one at most: a longer image becomes gigabytes when its shorter side is resized."""
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises where a file is no image, or is cut short."""


def opened(content: bytes, is_sketch: bool = False) -> Image.Image:
    """An image file in RGB, 8 bits, upright.

    The rotation that EXIF names is done. Transparent pixels are laid on white. 16 bits are scaled to 8 (v / 257).
    Of several frames the first is read.

    Args:
        content: of the file.
        is_sketch: read a JPEG at an eighth of its size: enough to know that it is whole.

    Raises:
        ValueError: it cannot be decoded, with the reason.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            if is_sketch:
                file.draft(file.mode, (1, 1))
            short, long = sorted(file.size)
            if long > _LONGEST * short:
                raise ValueError(f"its sides are {short} and {long} pixels, more than 1 to {_LONGEST}")
            return _rgb(ImageOps.exif_transpose(file))
    except Image.UnidentifiedImageError as error:
        raise ValueError("it is empty" if not content else "it is in no format of images that Pillow reads") from error
    except _BROKEN as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def frames_of(content: bytes) -> int:
    """How many frames an image file that can be decoded has."""
    with Image.open(io.BytesIO(content)) as file:
        return getattr(file, "n_frames", 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(numpy.rint(numpy.asarray(image).astype(numpy.float64) / 257).astype("uint8")).convert(
            "RGB"
        )
    if image.mode in ("I", "F"):
        raise ValueError("its pixels are of 32 bits, whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def content_of(file: str, content: bytes | None) -> bytes:
    """The bytes of a row: its own, or those of its file.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        return Path(file).read_bytes() if content is None else content
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def random_crop(image: Image.Image, size: tuple[int, int], draw: random.Random, resample: int) -> Image.Image:
    """A part of random area and shape, resized: torchvision's RandomResizedCrop (arXiv 1409.4842), on Pillow.

    Args:
        image: in RGB.
        size: (height, width) of the result.
        draw: random numbers.
        resample: Pillow's number of the interpolation.
    """
    wide, high = image.size
    for _ in range(_TRIES):
        area = wide * high * draw.uniform(*_SCALE)
        ratio = math.exp(draw.uniform(*map(math.log, _RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= wide and 0 < h <= high:
            left, top = draw.randint(0, wide - w), draw.randint(0, high - h)
            break
    else:
        # the largest part in the middle whose sides are in the range
        w, h = min(wide, max(1, round(high * _RATIO[1]))), min(high, max(1, round(wide / _RATIO[0])))
        left, top = (wide - w) // 2, (high - h) // 2
    return image.resize((size[1], size[0]), Image.Resampling(resample), box=(left, top, left + w, top + h))


class Pixels(torch.utils.data.Dataset):
    """Rows of images as a Trainer and `lrlora.evaluation.score` read them; an image is decoded when it is asked for.

    What is drawn for a row depends on the seed, the pass over the rows and the number of the row in its file, and on
    nothing else: a run that was killed and resumed sees the same pixels.

    Args:
        rows: columns file, bytes, label and row, from `lrlora.data.images.rows_of_images`.
        processor: of transformers, from `lrlora.saved.processor.load_processor`.
        augment: "none", "crop" (at random), or "crop-flip": mirrored in one of two cases as well.
        seed: of what is drawn.
    """

    column_names = ("pixel_values", "labels")

    def __init__(self, rows: Dataset, processor: Any, augment: Augment = "none", seed: int = 0) -> None:
        self.rows, self.processor, self.augment, self.seed = rows, processor, augment, seed
        self.size = size_of(processor)
        # in memory that the processes of a data loader share
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def begin(self, epoch: int) -> None:
        """Draw anew: a pass over the rows begins."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        """A row by its number, several as a dictionary of lists, or the labels."""
        if which == "labels":
            return list(self.rows["label"])
        if isinstance(which, list):
            rows = [self._row(number) for number in which]
            return {name: [row[name] for row in rows] for name in self.column_names}
        return self._row(which)

    def _row(self, number: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[number]
        try:
            image = opened(content_of(row["file"], row["bytes"]))
        except ValueError as error:
            raise InputError(
                f"{row['file'] or 'row'} ({row['row']}) was readable when the run began: {error}"
            ) from error
        kept = {}
        if self.augment != "none":
            draw = random.Random(f"{self.seed} {int(self.epoch)} {row['row']}")
            image = random_crop(image, self.size, draw, self.processor.resample)
            if self.augment == "crop-flip" and draw.random() < 0.5:
                image = ImageOps.mirror(image)
            kept = {"do_resize": False, "do_center_crop": False}
        return {"pixel_values": pixel_values(image, self.processor, **kept), "labels": row["label"]}


def pixels_of(task: TaskData, processor: Any, augment: Augment, seed: int) -> tuple[Pixels, Pixels]:
    """The rows to train on, drawn anew in every pass, and those to evaluate on, which never are.

    Args:
        task: of images.
        processor: as in `Pixels`.
        augment: "auto" is crop-flip, and none for images that say which size they need, such as the digits.
        seed: of what is drawn.
    """
    own: Augment = "none" if task.image_size is not None else "crop-flip"
    return Pixels(task.train, processor, own if augment == "auto" else augment, seed), Pixels(
        task.evaluation, processor
    )


def pixel_values(image: Image.Image, processor: Any, **changed: Any) -> torch.Tensor:
    """[channels, height, width] of an RGB image, normalised by a processor."""
    # of an image three pixels high the processor would guess that its rows are the channels
    made = processor(image, return_tensors="pt", input_data_format="channels_last", **changed)
    return made["pixel_values"][0]


def size_of(processor: Any) -> tuple[int, int]:
    """(height, width) of what a processor makes of an image."""
    found = pixel_values(Image.new("RGB", (64, 64)), processor).shape
    return int(found[-2]), int(found[-1])


def collate_images(also: dict[str, Any]) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a batch of rows of `Pixels`: pixel_values [rows, channels, height, width], labels [rows], and more.

    Args:
        also: further arguments of the model's forward, such as interpolate_pos_encoding.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows]), **also}

    return collate
