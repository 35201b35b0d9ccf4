"""Rows of images: folders of class folders, columns of files, what cannot be decoded."""

import io
import json
from pathlib import Path

import numpy
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from lrlora.data import DataSource, load_evaluation, load_task
from lrlora.data.images import BadImages
from lrlora.errors import InputError
from lrlora.saved.identity import digest_of_rows


def picture(seed: int, form: str = "PNG", size: tuple[int, int] = (16, 12)) -> bytes:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (*size, 3)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def class_folders(folder: Path, counts: dict[str, int], first: int = 0) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            first += 1
            (folder / name / f"{number}.png").write_bytes(picture(first))
    return folder


def source(path: Path, **more) -> DataSource:
    return DataSource(str(path), **more)


def test_a_flat_folder_is_split_and_the_classes_are_its_folders(tmp_path):
    folder = class_folders(tmp_path / "pets", {"cat": 12, "dog": 8})
    (folder / "dog" / "notes.txt").write_text("no image")
    (folder / "empty").mkdir()
    task = load_task(source(folder))
    assert (task.kind, task.name, task.labels) == ("image-classification", "pets", ["cat", "dog"])
    assert task.metrics == ("accuracy", "macro_f1")
    assert (len(task.train), len(task.evaluation)) == (18, 2)
    files = {row["file"]: row["label"] for row in [*task.train, *task.evaluation]}
    assert files == {str(f): int(f.parent.name == "dog") for f in folder.rglob("*.png")}
    assert any("empty, dog/notes.txt" in note for note in task.notes)
    assert task.train["bytes"][:] == [None] * 18


def test_train_and_test_folders(tmp_path):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    class_folders(tmp_path / "test", {"b": 2}, first=100)
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "unlabelled" / "x.png").write_bytes(picture(7))
    task = load_task(source(tmp_path))
    assert (len(task.train), len(task.evaluation), task.labels) == (6, 2, ["a", "b"])
    assert set(task.evaluation["label"]) == {1}
    assert any("not read: unlabelled" in note for note in task.notes)
    only = load_evaluation(source(tmp_path), "image-classification", ["a", "b"])
    assert digest_of_rows(only) != digest_of_rows(task) and only.evaluation["digest"][:] == task.evaluation["digest"][:]
    class_folders(tmp_path / "test", {"c": 1}, first=200)
    with pytest.raises(InputError, match=r"is of class 'c', which is none of the classes of .*train"):
        load_task(source(tmp_path))


def test_evaluation_images_that_are_trained_on_are_counted(tmp_path):
    class_folders(tmp_path / "train", {"a": 3, "b": 3})
    class_folders(tmp_path / "test", {"a": 2, "b": 2}, first=100)
    assert load_task(source(tmp_path)).notes == ()
    # one under another name and of another class
    copy = tmp_path / "test" / "b" / "1.png"
    copy.write_bytes((tmp_path / "train" / "a" / "1.png").read_bytes())
    (note,) = load_task(source(tmp_path)).notes
    assert note.startswith(f"1 of 4 evaluation rows are training rows as well, the first is {copy}: ")


def test_a_class_may_be_called_train(tmp_path):
    task = load_task(source(class_folders(tmp_path, {"bus": 6, "train": 6})))
    assert task.labels == ["bus", "train"]


def test_columns_of_paths_bytes_and_datasets_give_the_same_rows(tmp_path):
    class_folders(tmp_path / "files", {"a": 6, "b": 6})
    files = sorted((tmp_path / "files").rglob("*.png"))
    rows = [{"image": str(f.relative_to(tmp_path)), "label": f.parent.name} for f in files]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{r['image']},{r['label']}\n" for r in rows))
    contents = [f.read_bytes() for f in files]
    Dataset.from_dict({"img": contents, "label": [r["label"] for r in rows]}).to_parquet(tmp_path / "bytes.parquet")
    features = Features(picture=ImageFeature(), label=ClassLabel(names=["a", "b"]), width=Value("int64"))
    declared = {"picture": [{"bytes": c, "path": "x.png"} for c in contents], "label": [r["label"] for r in rows]}
    Dataset.from_dict({**declared, "width": [1] * 12}, features).to_parquet(tmp_path / "declared.parquet")
    names = ("rows.jsonl", "rows.csv", "bytes.parquet", "declared.parquet")
    tasks = [load_task(source(tmp_path / name)) for name in names]
    assert len({digest_of_rows(task) for task in tasks}) == 1
    assert tasks[0].labels == ["a", "b"]
    # another byte gives another number
    Image.new("RGB", (3, 3)).save(files[0])
    assert digest_of_rows(load_task(source(tmp_path / "rows.csv"))) != digest_of_rows(tasks[0])
    renamed = [{"photo": row["image"], "species": row["label"]} for row in rows]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    named = load_task(source(tmp_path / "named.jsonl", image_column="photo", label_column="species"))
    assert named.kind == "image-classification" and len(named.train) == 11 - 1


def test_a_dataset_of_the_hub_is_not_decoded_until_a_batch_needs_it(monkeypatch):
    features = Features(img=ImageFeature(), label=ClassLabel(names=["a", "b"]))
    splits = {}
    for split, first in (("train", 0), ("test", 50)):
        cells = [{"bytes": picture(first + n), "path": None} for n in range(6)]
        splits[split] = Dataset.from_dict({"img": cells, "label": [n % 2 for n in range(6)]}, features)
    monkeypatch.setattr("datasets.load_dataset", lambda name, subset: splits)
    decoded = []
    monkeypatch.setattr(ImageFeature, "decode_example", lambda *given, **named: decoded.append(given))
    task = load_task(source(Path("someone/pets")))
    assert (task.kind, task.labels, len(task.train), len(task.evaluation)) == ("image-classification", ["a", "b"], 6, 6)
    assert task.train["bytes"][:] == [picture(n) for n in range(6)] and not decoded


def test_text_with_a_column_of_that_name_stays_text(tmp_path):
    rows = [{"text": f"t{n}", "image": "x.png", "label": n % 2} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_task(source(tmp_path / "rows.jsonl")).kind == "classification"


def broken_folder(folder: Path) -> dict[str, str]:
    """20 broken or odd images among good ones: the broken ones with a part of the reason."""
    class_folders(folder, {"a": 8, "b": 8})
    png, jpeg = picture(1, size=(64, 64)), picture(2, "JPEG", (64, 64))
    crc = bytearray(png)
    crc[60] ^= 255
    odd = {
        "grey.png": Image.new("L", (9, 9)), "alpha.png": Image.new("RGBA", (9, 9)), "dot.png": Image.new("RGB", (1, 1)),
        "deep.tiff": Image.fromarray(numpy.zeros((4, 4), "uint16")), "cmyk.jpg": Image.new("CMYK", (9, 9)),
        "palette.gif": Image.new("P", (9, 9)), "bit.png": Image.new("1", (9, 9)), "web.webp": Image.new("RGB", (9, 9)),
    }  # fmt: skip
    for name, image in odd.items():
        image.save(folder / "a" / name)
    (folder / "a" / "wrong-ending.jpg").write_bytes(png)
    broken = {
        "empty.png": (b"", "empty"), "text.jpg": (b"<html>", "no format"), "zeros.png": (bytes(500), "no format"),
        "half.png": (png[: len(png) // 2], ""), "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "head.png": (png[:30], ""), "head.jpg": (jpeg[:20], ""), "crc.png": (bytes(crc), ""),
        "float.tiff": (None, "32 bits"), "long.png": (None, "1 and 300 pixels"), "half.gif": (b"GIF89a\x05", ""),
    }  # fmt: skip
    for name, (content, _) in broken.items():
        if content is not None:
            (folder / "b" / name).write_bytes(content)
    Image.fromarray(numpy.zeros((4, 4), "float32")).save(folder / "b" / "float.tiff")
    Image.new("L", (1, 300)).save(folder / "b" / "long.png")
    assert len(odd) + 1 + len(broken) == 20
    return {name: reason for name, (_, reason) in broken.items()}


def load(folder: Path, bad: BadImages):
    return load_task(source(folder, bad_images=bad))


def test_broken_images_are_refused_with_all_their_names_or_left_out_and_named(tmp_path):
    broken = broken_folder(tmp_path)
    with pytest.raises(InputError) as refused:
        load(tmp_path, "refuse")
    lines = str(refused.value).splitlines()
    assert lines[0].startswith("11 of 36 images cannot be read") and len(lines) == 12
    for name, reason in broken.items():
        assert any(f"/b/{name}: " in line and reason in line for line in lines[1:]), name
    task = load(tmp_path, "skip")
    assert task.skipped == 11 and len(task.train) + len(task.evaluation) == 25
    said = [note for note in task.notes if note.startswith("left out")]
    assert len(said) == 11 and all(any(f"/b/{name}: " in note for note in said) for name in broken)


def test_of_many_broken_images_20_are_listed(tmp_path):
    class_folders(tmp_path, {"a": 3, "b": 3})
    for number in range(25):
        (tmp_path / "a" / f"x{number:02}.png").write_bytes(b"broken")
    with pytest.raises(InputError) as refused:
        load(tmp_path, "refuse")
    assert str(refused.value).count("x") >= 20 and str(refused.value).endswith("and 5 more")


def test_a_missing_file_and_a_cell_without_image_are_named_by_row(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [{"image": name, "label": n % 2} for n, name in enumerate(["a.png", "gone.png", None, 7, *["a.png"] * 9])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError) as refused:
        load_task(source(tmp_path / "rows.jsonl"))
    said = str(refused.value)
    for part in ("3 of 13", "row 2, ", "gone.png: No such file", "row 3: it has no image", "row 4: a int is no image"):
        assert part in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image_column": "photo"}, "no column 'photo', got columns image, label"),
        ({"text_columns": ("caption",)}, "no column of text"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path, more, said):
    class_folders(tmp_path, {"a": 6, "b": 6})
    with pytest.raises(InputError, match=said):
        load_task(source(tmp_path, **more))


def test_a_folder_of_neither_files_nor_images_says_what_is_needed(tmp_path):
    (tmp_path / "x.png").write_bytes(picture(0))
    with pytest.raises(InputError, match="folders of images that are named after their classes"):
        load_task(source(tmp_path))
