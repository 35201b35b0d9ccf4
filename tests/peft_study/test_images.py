"""Studies of images: from start to end with a kill, every method, what is drawn, what is refused."""

import collections
import dataclasses
import signal

import numpy
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from lrlora import InputError
from lrlora.cli.main import main
from lrlora.data.load import load_task
from lrlora.data.pixels import Pixels
from lrlora.data.source import DataSource
from lrlora.evaluation.score import score
from lrlora.saved.processor import load_processor
from lrlora.training.config import TrainConfig
from lrlora.training.model import base_of
from peft_study import read_study, run_study
from peft_study.arms import check_arm
from peft_study.cell import Bench
from peft_study.estimate import estimates
from peft_study.images import CLASSIFIED_IMAGES, stratified
from peft_study.kinds import load_parts
from peft_study.methods import METHODS
from peft_study.plan import digests_of, final_cells
from peft_study.spec import Arm, Study, Task
from peft_study.store import read_rows
from peft_study.workers import prepare_process
from studies import cifar10
from tests.peft_study.commands import lines_in, start, study_file, wait_for
from tests.peft_study.conftest import ALONE, without_measurements
from tests.peft_study.small_images import COLOURS, LORA, images_study, pictures, tiny_dinov2

SMALL = {"fourierft": {"n_frequency": 20}, "vera": {"r": 4}, "randlora": {"r": 4}, "hira": {"r": 4}, "peanut": {"r": 4}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("colours"))


def final_rows(study: Study, arm: Arm | None = None) -> list:
    """The final cells of an arm at the study's first rate, which must come through."""
    prepare_process(1)
    bench = Bench(study)
    cells = final_cells(study, digests_of(study), arm or study.arms[0], study.tasks[0], study.learning_rates[0])
    rows = [bench.run(cell) for cell in cells]
    assert [row.status for row in rows] == ["done"] * len(rows), rows[0].traceback
    return rows


def test_a_killed_study_goes_on_and_ends_where_an_undisturbed_one_ends(base, colours, tmp_path, capsys):
    study = images_study(base, colours)
    whole = run_study(study, tmp_path / "whole", ALONE, tell=lambda line: None)
    assert collections.Counter((row.arm, row.phase, row.status) for row in whole) == {
        (arm, phase, "done"): 2 for arm in ("lora", "ours") for phase in ("search", "final")
    }
    for row in whole:
        assert row.metric == "accuracy" and row.value == row.metrics["accuracy"]
        assert set(row.metrics) == {"accuracy", "macro_f1", "loss"}
        assert (row.train_rows, row.eval_rows) == (24, 6 if row.phase == "search" else 12)
        assert row.peak_kind == "rss_growth" and row.wall_s > 0
        assert row.total_parameters > row.trainable_parameters > 2 * 32 * 3  # the head of three classes is trained
    ranks = [row.ranks for row in whole if row.arm == "ours" and row.phase == "final"]
    assert [len(each) for each in ranks] == [12, 12]  # six layers of two blocks
    assert {row["kind"] for row in ranks[0]} == {"attention", "mlp"}
    file, out = study_file(study, tmp_path), tmp_path / "out"
    with start(file, out, "--workers", "1") as process:
        wait_for(process, lambda: lines_in(out / "results.jsonl") >= 3)
        process.send_signal(signal.SIGKILL)
    before = (out / "results.jsonl").read_bytes()
    assert 3 <= before.count(b"\n") < len(whole)
    run_study(read_study(file), out, ALONE, tell=lambda line: None)
    assert (out / "results.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert without_measurements(read_rows(out / "results.jsonl")) == without_measurements(whole)
    assert main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_every_method_trains_and_adapts_the_same_modules(base, colours):
    study = images_study(base, colours, task={"max_steps": 2}, seeds=(0,))
    data = load_parts(study, study.tasks[0]).final
    placed = {}
    for method in METHODS:
        arm = Arm("it", method, SMALL.get(method, {}))
        (row,) = final_rows(dataclasses.replace(study, arms=(arm,)))
        assert row.steps == 2 and (row.adapter is None) == (method == "full")
        if method != "full":
            model, _, word = base_of(TrainConfig(model=str(base), image_size=24), data)
            adapted, _ = CLASSIFIED_IMAGES.under_arm(study, arm, model, word, 10)
            placed[method] = {name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)}
            # the head is trained whole, whatever the method
            assert all(p.requires_grad for n, p in adapted.named_parameters() if "modules_to_save" in n)
            assert any("classifier.modules_to_save" in name for name, _ in adapted.named_parameters()), method
    assert len(placed["lora"]) == 12
    for method, modules in placed.items():
        assert modules == placed["lora"], method


def test_the_score_of_a_cell_is_that_of_the_model_on_the_evaluation_folder(base, colours):
    # at a rate of nothing the model is the base with the head that the seed draws
    study = images_study(base, colours, learning_rates=(1e-30,), seeds=(3,), arms=(LORA,), task={"max_steps": 1})
    (row,) = final_rows(study)
    task = load_task(DataSource(str(colours), kind="image-classification"))
    torch.manual_seed(3)
    model, processor, _ = base_of(TrainConfig(model=str(base), image_size=24), task)
    found = score(model, processor, task, Pixels(task.evaluation, processor), 5)
    assert found == pytest.approx(row.metrics, rel=1e-5)


def test_the_seed_draws_the_crops_and_the_same_cell_is_the_same(base, colours):
    study = images_study(base, colours, arms=(LORA,))
    losses = [row.loss for row in final_rows(study)]
    assert [row.loss for row in final_rows(study)] == losses
    by_augment = {}
    for augment in ("none", "crop", "crop-flip", "auto"):
        task = dataclasses.replace(study.tasks[0], augment=augment)
        by_augment[augment] = [row.train_loss for row in final_rows(dataclasses.replace(study, tasks=(task,)))]
    assert by_augment["auto"] == by_augment["crop-flip"]
    assert len({losses[0] for losses in by_augment.values()}) == 3
    # of two seeds in one process, each has its own crops, as it has alone
    (alone,) = final_rows(dataclasses.replace(study, seeds=(1,)))
    assert alone.loss == losses[1] != losses[0]


def test_what_a_cell_is_known_by(base, colours):
    def prints(**changed):
        study = images_study(base, colours, task=changed)
        return {c.fingerprint for c in final_cells(study, digests_of(study), LORA, study.tasks[0], 1e-3)}

    first = prints()
    assert prints() == first
    for changed in ({"image_size": 32}, {"augment": "none"}, {"train_rows": 9}):
        assert not prints(**changed) & first
    # the place of the rows and how they were read decide nothing where the rows are the same
    assert prints(image_column="image", bad_images="skip") == first
    assert set(CLASSIFIED_IMAGES.settings(images_study(base, colours).tasks[0], "final")) == {
        "name", "task", "subset", "kind", "label_column", "epochs", "max_steps", "batch_size", "gradient_accumulation",
        "image_size", "augment",
    }  # fmt: skip


def test_every_class_has_its_share_of_every_part(base, tmp_path):
    folder = pictures(tmp_path / "p", train=20, test=3)
    for number in range(10):  # red has half as many as the others
        (folder / "train" / "red" / f"{number}.png").unlink()
    study = images_study(base, folder, task={"train_rows": 25, "validation_rows": 10, "test_rows": 10})
    task = dataclasses.replace(study.tasks[0], test_from="training")
    parts = load_parts(study, task)
    shares = [
        [each["label"].count(number) for number in range(3)]
        for each in (parts.final.train, parts.search.evaluation, parts.final.evaluation)
    ]
    assert shares == [[10, 10, 5], [4, 4, 2], [4, 4, 2]]
    files = [{*each["file"]} for each in (parts.final.train, parts.search.evaluation, parts.final.evaluation)]
    assert sum(map(len, files)) == len(set.union(*files)) == 45
    rows = load_task(DataSource(str(folder), kind="image-classification")).train
    ordered = stratified(rows)
    assert sorted(ordered["file"]) == sorted(rows["file"]) and ordered["file"] == stratified(rows)["file"]
    for first in range(1, 51):
        counts = [ordered["label"][:first].count(number) for number in range(3)]
        assert all(
            abs(count - first * share) <= 1 for count, share in zip(counts, (0.4, 0.4, 0.2), strict=True)
        )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_length": 32}, "max_length is of text, and task 'colours' is of images; leave it out"),
        ({"text_columns": ("a",)}, "text_columns is of text"),
        ({"pooling": "mean"}, "pooling is of text"),
        ({"template": "plain"}, "template is of text"),
        ({"commonsense": ("obqa",)}, "commonsense is of text"),
        ({"facts": 8}, "facts is of tasks of kind facts"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"kind": "classification"}, "image_size is of images; give task 'colours' kind: image-classification"),
        ({"kind": None, "image_size": None, "augment": "crop"}, "augment is of images"),
    ],
)
def test_fields_that_do_not_apply_are_refused_by_name(fields, said, base, colours):
    with pytest.raises(InputError, match=said):
        images_study(base, colours, task=fields)


def test_what_else_does_not_apply_is_refused_before_a_cell_runs(base, colours, tmp_path):
    study = images_study(base, colours)
    with pytest.raises(InputError, match="'colours' is of images, which the embedded encoder does not read"):
        dataclasses.replace(study, model=None)
    with pytest.raises(InputError, match="'colours' is of images and task 'rte' is not"):
        dataclasses.replace(study, tasks=(*study.tasks, Task("rte", data="glue")))
    with pytest.raises(InputError, match="PromptTuningConfig learns prompts of tokens"):
        check_arm(study, Arm("p", "prompt_tuning", {"num_virtual_tokens": 4}))
    with pytest.raises(InputError, match="the rows of task 'colours' are images; give it kind: image-classification"):
        load_parts(study, Task("colours", data=str(colours)))
    with pytest.raises(InputError, match="has 30 rows to train on, and validation_rows takes 30 of them"):
        load_parts(study, dataclasses.replace(study.tasks[0], validation_rows=30))
    row = Bench(bad := images_study(base, colours, task={"image_size": 30})).run(
        final_cells(bad, digests_of(bad), LORA, bad.tasks[0], 1e-3)[0]
    )
    assert row.status == "failed" and "no multiple of the patches of 8" in row.reason


def test_images_that_cannot_be_read_stop_a_study_or_are_in_the_notes(base, tmp_path):
    folder = pictures(tmp_path / "p")
    (folder / "train" / "red" / "torn.png").write_bytes(b"torn")
    study = images_study(base, folder, arms=(LORA,), seeds=(0,))
    with pytest.raises(InputError, match="1 of 43 images cannot be read"):
        digests_of(study)
    (row,) = final_rows(dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], bad_images="skip"),)))
    assert row.train_rows == 24
    assert any(note.startswith("left out, it cannot be read:") and "torn.png" in note for note in row.notes)


def test_a_dry_run_counts_patches_and_classes(base, colours, tmp_path, capsys):
    study = images_study(base, colours, device_tflops=1.0)
    lora = estimates(study)[0]
    (row,) = final_rows(dataclasses.replace(study, seeds=(0,)))
    assert (lora.trainable_parameters, lora.total_parameters) == (row.trainable_parameters, row.total_parameters)
    assert (lora.sizes.train_rows, lora.sizes.classes, lora.sizes.is_assumed) == (24, 3, False)
    # 9 patches and the class token of 24 pixels; 16 and one of the processor's own 32
    larger = estimates(images_study(base, colours, device_tflops=1.0, task={"image_size": None}))[0]
    assert larger.hours_of_a_cell / lora.hours_of_a_cell == pytest.approx(17 / 10)
    assert main(["study", str(study_file(study, tmp_path)), "--dry_run"]) == 0
    assert "colours: ESTIMATES, nothing was run; 24 rows to train on, 3 classes" in capsys.readouterr().out


def test_the_embedded_model_on_the_embedded_digits(embedded_vision, tmp_path):
    (tmp_path / "study.yaml").write_text(
        "study: digits\nmodel: embedded-vision\nlearning_rates: [1e-3]\nseeds: [0]\ndata_root: /nowhere\n"
        "tasks: [{name: digits, data: embedded-digits, train_rows: 40, validation_rows: 20, test_rows: 40, "
        "max_steps: 10, batch_size: 8}]\n"
        "arms: [{name: lora, method: lora, r: 2}]\n"
    )
    study = read_study(tmp_path / "study.yaml")
    assert study.tasks[0].is_images
    (row,) = final_rows(study)
    assert (row.train_rows, row.eval_rows) == (40, 40)
    # a model that learns nothing has a tenth
    assert row.value > 0.3


def test_an_npz_becomes_rows_of_png_in_two_parts(base, tmp_path):
    draw = numpy.random.default_rng(0)
    labels = numpy.arange(50) % 3
    images = draw.integers(0, 256, (50, 32, 32, 3), dtype=numpy.uint8)
    numpy.savez(tmp_path / "few.npz", images=images, labels=labels, classes=numpy.array(["b", "a", "c"]))
    assert cifar10.write(tmp_path / "few.npz", tmp_path / "out") == (41, 9)
    task = load_task(DataSource(str(tmp_path / "out")))
    assert (task.kind, task.labels) == ("image-classification", ["b", "a", "c"])
    assert collections.Counter(task.evaluation["label"]) == {0: 3, 1: 3, 2: 3}
    # every image is in one part, pixel by pixel, with its class
    processor = load_processor(str(base))
    plain = {"do_resize": False, "do_center_crop": False, "do_rescale": False, "do_normalize": False}
    wanted = {(each.tobytes(), label) for each, label in zip(images, labels.tolist(), strict=True)}
    found = set()
    for rows in (task.train, task.evaluation):
        made = Pixels(rows, load_processor(str(base)))
        made.processor = processor.__class__(**plain)
        for number in range(len(rows)):
            row = made[number]
            pixels = row["pixel_values"].permute(1, 2, 0).to(torch.uint8).numpy()
            found.add((pixels.tobytes(), row["labels"]))
    assert found == wanted
    first = [(tmp_path / "out" / name).read_bytes() for name in ("train.parquet", "validation.parquet")]
    cifar10.write(tmp_path / "few.npz", tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes() for name in ("train.parquet", "validation.parquet")] == first
    numpy.savez(tmp_path / "bad.npz", images=images[..., :1], labels=labels, classes=list(COLOURS))
    with pytest.raises(InputError, match=r"images must be uint8 \[n, height, width, 3\], got uint8 \(50, 32, 32, 1\)"):
        cifar10.write(tmp_path / "bad.npz", tmp_path / "bad")
