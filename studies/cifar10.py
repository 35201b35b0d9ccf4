"""Images of an .npz as rows for `lrlora study`: train.parquet and validation.parquet, with PNG bytes and classes.

    python studies/cifar10.py cifar10_test_10k.npz FOLDER

The .npz has `images` uint8 [n, height, width, 3], `labels` [n], numbers of `classes` (names). Of every class the same
share, drawn with a seed, goes into validation.parquet, which gives the results of a study; the rest into train.parquet.

studies/vision.yaml reads the 10,000 images of CIFAR-10's TEST set (Krizhevsky, 2009), split 8,000 / 2,000: its numbers
are of that split, and not to be compared with published ones.
"""

import argparse
import io
from pathlib import Path
from typing import Any

import numpy
from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
from PIL import Image as Pillow

from lrlora.errors import InputError


def rows_of(file: Path) -> tuple[numpy.ndarray, numpy.ndarray, list[str]]:
    """Images uint8 [n, height, width, 3], numbers of their classes [n], and the names of the classes.

    Raises:
        InputError: arrays that are missing, or of another shape or type.
    """
    with numpy.load(file) as held:
        missing = [name for name in ("images", "labels", "classes") if name not in held]
        if missing:
            raise InputError(f"{file} has no array {missing[0]!r}, got {', '.join(held)}")
        images, labels, classes = held["images"], held["labels"], [str(name) for name in held["classes"]]
    if images.dtype != numpy.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(f"{file}: images must be uint8 [n, height, width, 3], got {images.dtype} {images.shape}")
    if labels.shape != images.shape[:1] or not all(0 <= label < len(classes) for label in labels):
        raise InputError(f"{file}: labels must be {len(images)} numbers below {len(classes)}, one for each image")
    return images, labels, classes


def split(labels: numpy.ndarray, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the rows of two parts, in a random order; the second has `share` of every class, rounded."""
    draw = numpy.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in numpy.unique(labels):
        mine = draw.permutation(numpy.flatnonzero(labels == label)).tolist()
        held_out = round(share * len(mine))
        parts[1].extend(mine[:held_out])
        parts[0].extend(mine[held_out:])
    train, validation = (draw.permutation(part).tolist() for part in parts)
    return train, validation


def write(file: Path, folder: Path, share: float = 0.2, seed: int = 0) -> tuple[int, int]:
    """Write the two files, and return how many rows each has."""
    images, labels, classes = rows_of(file)
    features = Features(image=Image(), label=ClassLabel(names=classes))
    folder.mkdir(parents=True, exist_ok=True)
    parts = split(labels, share, seed)
    for name, rows in zip(("train", "validation"), parts, strict=True):
        columns: dict[str, Any] = {
            "image": [{"bytes": _png(images[row]), "path": None} for row in rows],
            "label": [int(labels[row]) for row in rows],
        }
        Dataset.from_dict(columns, features).to_parquet(folder / f"{name}.parquet")
    return len(parts[0]), len(parts[1])


def _png(pixels: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Parse, write, and say what was written."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, help="an .npz with images, labels and classes")
    parser.add_argument("folder", type=Path, help="gets train.parquet and validation.parquet")
    parser.add_argument("--share", type=float, default=0.2, help="of every class for validation.parquet")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    chosen = parser.parse_args()
    disable_progress_bars()
    train, validation = write(chosen.file, chosen.folder, chosen.share, chosen.seed)
    print(f"{chosen.folder}: train.parquet with {train:,} images, validation.parquet with {validation:,}")


if __name__ == "__main__":
    main()
