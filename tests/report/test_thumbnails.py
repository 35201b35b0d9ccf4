"""Thumbnails are those of the very images that were predicted, or there are none and the page says why."""

import base64
import io
import shutil

import numpy
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from lrlora.cli import main
from lrlora.data.embedded import digits
from lrlora.errors import InputError
from lrlora.files import read_json, write_json
from lrlora.report.page import write_report
from lrlora.report.predictions import predicted
from lrlora.report.thumbnails import thumbnail, thumbnails
from lrlora.saved.results import read_run
from lrlora.training import TrainConfig, train
from tests.report.planted import add_predictions, write_images, write_run


def pixels(uri: str) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


@pytest.fixture
def run(tmp_path):
    """All of its images are wrong; a part of them, in an order drawn by the seed."""
    data = write_images(tmp_path / "data", ["cat", "dog"], 8)
    run = write_run(tmp_path / "run")
    add_predictions(run, data, lambda place, true: ("cat" if true == "dog" else "dog", 0.9), eval_rows=10, split_seed=3)
    return run


def test_every_thumbnail_has_the_pixels_of_its_file(run):
    read = read_run(run)
    found = thumbnails(read, list(range(10)))
    assert isinstance(found, dict) and len(found) == 10
    for place, row in enumerate(read.predictions.rows):
        image = numpy.asarray(Image.open(row.file))
        numpy.testing.assert_array_equal(pixels(found[place].uri), image)
        assert (found[place].width, found[place].height, found[place].is_enlarged) == (96, 64, True)
    assert thumbnails(read, []) == {}


def test_an_image_is_not_written_over(run, tmp_path):
    file = next((tmp_path / "data").rglob("*.png"))
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"is there already, in .*data, which is read"):
        write_report([run], file)
    assert file.read_bytes() == before


def test_a_run_that_was_trained_on_the_digits(tmp_path, capsys):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(**small, image_size=16, patch_size=8)).save_pretrained(tmp_path / "base")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "base")
    given = {"data": "embedded-digits", "max_steps": 2, "batch_size": 4, "r": 2, "eval_rows": 40}
    for seed in (0, 1):
        train(TrainConfig.of(model=str(tmp_path / "base"), seed=seed, out=str(tmp_path / f"s{seed}"), **given))
    assert main(["report", str(tmp_path / "s0"), str(tmp_path / "s1")]) == 0
    text = (tmp_path / "s0" / "report.html").read_text()
    assert "reading the images that" in capsys.readouterr().err
    assert "No thumbnails" not in text and "at least one of 2 runs got wrong" in text
    runs = [read_run(tmp_path / f"s{seed}") for seed in (0, 1)]
    (found,) = predicted(runs)
    assert found.accuracy.mean == pytest.approx((runs[0].metrics["accuracy"] + runs[1].metrics["accuracy"]) / 2)
    assert found.macro_f1.mean == pytest.approx((runs[0].metrics["macro_f1"] + runs[1].metrics["macro_f1"]) / 2)
    of_row = {row["row"]: row for row in digits()[1]}
    made = thumbnails(runs[1], [each.place for each in found.mistakes])
    assert isinstance(made, dict) and len(made) > 10
    for each in found.mistakes:
        image = numpy.asarray(Image.open(io.BytesIO(of_row[each.row]["image"])).convert("RGB"))
        numpy.testing.assert_array_equal(pixels(made[each.place].uri), image)
        assert each.true == str(of_row[each.row]["label"]) and made[each.place].uri in text


def changed(run, tmp_path):
    file = next((tmp_path / "data" / "test").rglob("*.png"))
    Image.new("RGB", (12, 8)).save(file)


def changed_in_training(run, tmp_path):
    file = next((tmp_path / "data" / "train").rglob("*.png"))
    Image.new("RGB", (12, 8)).save(file)


def swapped(run, tmp_path):
    """The same images, two of them under each other's name: in another order."""
    one, two = sorted((tmp_path / "data" / "test").rglob("*.png"))[:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def renumbered(run, tmp_path):
    """Rows of the same content that are not the rows of the predictions."""
    lines = (run / "predictions.jsonl").read_text().splitlines(keepends=True)
    (run / "predictions.jsonl").write_text("".join(lines[:-1]))


def moved(run, tmp_path):
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")


def cut_short(run, tmp_path):
    file = next((tmp_path / "data" / "test").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:40])


def of_unknown_rows(run, tmp_path):
    described = read_json(run / "config.json")
    write_json(run / "config.json", {**described, "inputs": None})


HAS_CHANGED = "does not hold the images that run read: it has changed since"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (changed, HAS_CHANGED),
        (changed_in_training, HAS_CHANGED),
        (swapped, HAS_CHANGED),
        (renumbered, HAS_CHANGED),
        (moved, "cannot be read any more: no such file or folder"),
        (cut_short, "1 of 32 images cannot be read"),
        (of_unknown_rows, "run does not say which images it read"),
    ],
)
def test_images_that_are_not_those_of_the_run_are_not_shown(run, tmp_path, how, why):
    assert isinstance(thumbnails(read_run(run), [0]), dict)
    how(run, tmp_path)
    found = thumbnails(read_run(run), [0])
    assert isinstance(found, str) and why in found
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert why in text and "<img" not in text.split("<script")[0]
    assert text.split('<table class="mistakes">')[1].split("</table>")[0].count("<td>0.900</td>") in (9, 10)


@pytest.mark.parametrize(
    ("size", "shown", "enlarged"),
    [
        ((8, 8), (96, 96), True),
        ((28, 28), (84, 84), True),
        ((48, 20), (96, 40), True),
        ((49, 20), (49, 20), False),
        ((96, 96), (96, 96), False),
        ((400, 200), (96, 48), False),
        ((3000, 15), (96, 1), False),
    ],
)
def test_a_thumbnail_has_96_pixels_at_most_and_whole_ones(size, shown, enlarged):
    made = thumbnail(Image.new("RGB", size, (200, 30, 40)))
    assert ((made.width, made.height), made.is_enlarged) == (shown, enlarged)
    found = pixels(made.uri)
    assert found.shape[:2] == (size[::-1] if enlarged else shown[::-1])
    numpy.testing.assert_allclose(found, numpy.broadcast_to([200, 30, 40], found.shape), atol=0 if enlarged else 3)
