"""Image classifiers of every usual architecture: trained, killed and resumed, evaluated, merged, exported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessorPil,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipImageProcessorPil,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from lrlora.cli import main
from lrlora.errors import InputError
from lrlora.export import export_lora
from lrlora.export.compare import compare, run_config, score_model
from lrlora.export.merging.merge import merge
from lrlora.saved.load import load_adapter
from lrlora.saved.processor import forward_arguments, load_processor
from lrlora.training import TrainConfig, train
from tests.training.cases import contents

SIZE = 32
_VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
_OWN = {"image_size": SIZE, "patch_size": 8}
_TOWERS = {
    "vision_config": {**_VIT, **_OWN},
    "text_config": {**_VIT, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
}
_SQUARE = {"size": {"height": SIZE, "width": SIZE}}
_CROPPED = {"size": {"shortest_edge": SIZE + 8}, "crop_size": {"height": SIZE, "width": SIZE}}
_SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIZE, "patch_size": 4}
_CONV = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}
MODELS = {
    "vit": (ViTForImageClassification, ViTConfig(**_VIT, **_OWN, num_labels=7), ViTImageProcessorPil(**_SQUARE)),
    "vit-backbone": (ViTModel, ViTConfig(**_VIT, **_OWN), ViTImageProcessorPil(**_SQUARE)),
    "deit": (DeiTForImageClassification, DeiTConfig(**_VIT, **_OWN), DeiTImageProcessorPil(**_CROPPED)),
    "swin": (SwinForImageClassification, SwinConfig(**_SWIN), ViTImageProcessorPil(**_SQUARE)),
    "convnext": (
        ConvNextForImageClassification, ConvNextConfig(**_CONV),
        ConvNextImageProcessorPil(size={"shortest_edge": SIZE}),
    ),
    "dinov2": (Dinov2Model, Dinov2Config(**_VIT, **_OWN), BitImageProcessorPil(**_CROPPED)),
    "clip": (CLIPForImageClassification, CLIPConfig(**_TOWERS, num_labels=5), CLIPImageProcessorPil(**_CROPPED)),
    "siglip": (SiglipForImageClassification, SiglipConfig(**_TOWERS), SiglipImageProcessorPil(**_SQUARE)),
}  # fmt: skip
COLOURS = {"blue": (30, 40, 200), "green": (20, 200, 60), "red": (210, 30, 30)}


def model_folder(name: str, folder: Path) -> str:
    cls, config, processor = MODELS[name]
    torch.manual_seed(0)
    cls(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Class folders of three colours with noise."""
    folder, draw = tmp_path_factory.mktemp("pictures"), numpy.random.default_rng(0)
    for side, count in (("train", 6), ("test", 3)):
        for name, colour in COLOURS.items():
            (folder / side / name).mkdir(parents=True)
            for number in range(count):
                noise = draw.normal(0, 25, (40, 36, 3)) + numpy.array(colour)
                file = folder / side / name / f"{number}.png"
                Image.fromarray(noise.clip(0, 255).astype("uint8")).save(file)
    return folder


def settings(model: str, data: Path, out: Path, **more) -> TrainConfig:
    chosen = {"max_steps": 2, "batch_size": 4, "r": 2, "learning_rate": 1e-2, "save_steps": 2, "rank_steps": 0, **more}
    return TrainConfig.of(model=model, data=str(data), out=str(out), **chosen)


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_trained_reloaded_merged_and_exported(name, tmp_path, pictures):
    base = model_folder(name, tmp_path / "base")
    result = train(settings(base, pictures, tmp_path / "run"))
    run = str(tmp_path / "run")
    assert result.metrics["skipped_images"] == 0 and (result.metrics["train_rows"], result.metrics["eval_rows"]) == (
        18,
        9,
    )
    # every layer has learned something, and the head is trained whole
    assert result.ranks and all(row.relative_norm > 0 and "classifier" not in row.layer for row in result.ranks)
    found = compare(run, run_config(run), ("base", "adapter", "merged", "exported")).results
    assert found["adapter"]["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert found["merged"]["loss"] == pytest.approx(result.metrics["loss"], rel=1e-4)
    # energy 0.99 of an update that two steps made
    assert found["exported"]["loss"] == pytest.approx(result.metrics["loss"], rel=2e-2)
    assert abs(found["base"]["loss"] - found["adapter"]["loss"]) > 1e-4
    # the logits of a merged model as transformers alone loads it, on pixels of its own processor
    merge(run, tmp_path / "merged")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "merged", backend="pil")
    assert list(plain.config.id2label.values()) == list(COLOURS)
    image = Image.open(pictures / "test" / "red" / "0.png")
    pixels = processor(image, return_tensors="pt")
    adapted = load_adapter(run)
    with torch.no_grad():
        torch.testing.assert_close(plain(**pixels).logits, adapted(**pixels).logits, rtol=1e-4, atol=1e-5)
    assert score_model(str(tmp_path / "merged"), run_config(run, data=str(pictures))).results["model"]["loss"] == (
        pytest.approx(found["merged"]["loss"], rel=1e-5)
    )
    assert export_lora(run, tmp_path / "lora").layers


def test_a_run_on_class_folders_and_every_verb_after_it(tmp_path, pictures, capsys):
    base, run = model_folder("vit", tmp_path / "base"), tmp_path / "run"
    words = f"--model {base} --data {pictures} --out {run} --max_steps 30 --batch_size 6 --r 2 --learning_rate 1e-2"
    assert main(f"train {words} --augment none".split()) == 0
    said = capsys.readouterr()
    assert "read as images; their class, one of 3, is learned" in said.err and "predictions.jsonl" in said.out
    assert "pixels a side" in said.err
    metrics = json.loads((run / "metrics.json").read_text())
    # colours are easy: a model that learns nothing has 1/3
    assert metrics["accuracy"] > 0.8 and metrics["metric"] == "accuracy"
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["true"] for row in rows] == [name for name in COLOURS for _ in range(3)]
    assert all(Path(row["file"]).parent.name == row["true"] and 1 / 3 <= row["confidence"] <= 1 for row in rows)
    assert sum(row["true"] == row["predicted"] for row in rows) / 9 == pytest.approx(metrics["accuracy"])
    assert json.loads((run / "adapter" / "labels.json").read_text()) == list(COLOURS)
    card = (run / "adapter" / "README.md").read_text()
    assert "AutoModelForImageClassification" in card and "image-classification" in card and str(tmp_path) not in card
    assert main(["evaluate", str(run), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    for name in ("adapter", "merged"):
        assert results[name]["accuracy"] == metrics["accuracy"] and results[name]["macro_f1"] == metrics["macro_f1"]
    assert main(["evaluate", str(run), "--data", str(pictures / "train"), "--models", "adapter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 18
    assert main(["ranks", str(run)]) == 0
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "lora")]) == 0
    small = ["export", str(run), "--out", str(tmp_path / "small"), "--tolerance", "0.2", "--choose_on", "all"]
    assert main(small) == 0
    for folder in (run / "adapter", tmp_path / "merged", tmp_path / "lora", tmp_path / "small"):
        assert (folder / "preprocessor_config.json").exists()
    assert main(["train", *words.split(), "--augment", "none"]) == 0
    assert "finished before" in capsys.readouterr().err


def test_the_code_of_the_card_runs(tmp_path, pictures):
    base, run = model_folder("dinov2", tmp_path / "base"), tmp_path / "run"
    train(settings(base, pictures, run))
    card = (run / "adapter" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('folder = "."', f"folder = {str(run / 'adapter')!r}")
    made: dict = {}
    exec(code, made)
    image = Image.open(pictures / "test" / "red" / "0.png")
    with torch.no_grad():
        pixels = made["processor"](image, return_tensors="pt")
        torch.testing.assert_close(made["model"](**pixels).logits, load_adapter(str(run))(**pixels).logits)


def test_a_head_that_knows_the_classes_is_kept_and_gives_their_order(tmp_path, pictures):
    torch.manual_seed(0)
    named = dict(enumerate(["RED", "BLUE", "GREEN"]))
    config = ViTConfig(**_VIT, **_OWN, id2label=named, label2id={v: k for k, v in named.items()})
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path / "base")
    ViTImageProcessorPil(**_SQUARE).save_pretrained(tmp_path / "base")
    train(settings(str(tmp_path / "base"), pictures, tmp_path / "run", learning_rate=1e-8))
    assert json.loads((tmp_path / "run" / "adapter" / "labels.json").read_text()) == ["red", "blue", "green"]
    trained = load_adapter(str(tmp_path / "run")).get_base_model().classifier.modules_to_save["default"]
    torch.testing.assert_close(trained.weight, model.classifier.weight, rtol=0, atol=1e-6)


_KILLED = """
import os, signal, sys
from transformers import TrainerCallback
from lrlora.training import TrainConfig, train
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
train(TrainConfig.of(**eval(sys.argv[1])), [Kill()])
"""


def test_a_killed_run_ends_with_the_bytes_of_one_that_was_not(tmp_path, pictures):
    base = model_folder("vit", tmp_path / "base")
    # five steps an epoch: it is killed in the second, after the checkpoint of step 7
    given = {
        "model": base, "data": str(pictures), "max_steps": 12, "batch_size": 4, "r": 2, "save_steps": 7,
        "rank_steps": 0, "augment": "crop-flip",
    }  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(TrainConfig.of(**given, out=str(whole)))
    words = [sys.executable, "-W", "ignore", "-c", _KILLED, repr({**given, "out": str(killed)})]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["checkpoint-7"]
    assert train(TrainConfig.of(**given, out=str(killed))).metrics["was_resumed"]
    a, b = contents(whole / "adapter"), contents(killed / "adapter")
    # the card names the time of nothing, and the folder of neither
    assert a == b
    assert (whole / "predictions.jsonl").read_text() == (killed / "predictions.jsonl").read_text()
    # without augmentation, or with that of another seed, the weights are others
    train(TrainConfig.of(**{**given, "augment": "none"}, out=str(tmp_path / "plain")))
    name = "adapter_model.safetensors"
    assert contents(tmp_path / "plain" / "adapter")[name] != a[name]


def test_an_image_size_changes_resize_and_crop_and_positions(tmp_path, pictures):
    base = model_folder("deit", tmp_path / "base")
    processor = load_processor(base, size=48)
    assert processor.size.shortest_edge == 60 and processor.crop_size.height == 48
    result = train(settings(base, pictures, tmp_path / "run", image_size=48))
    run = str(tmp_path / "run")
    found = compare(run, run_config(run), ("adapter", "merged"))
    assert found.results["adapter"]["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert found.results["merged"]["loss"] == pytest.approx(result.metrics["loss"], rel=1e-4)
    merge(run, tmp_path / "merged")
    assert load_processor(str(tmp_path / "merged")).crop_size.height == 48
    assert forward_arguments(load_adapter(run), processor) == {"interpolate_pos_encoding": True}
    with pytest.raises(InputError, match=r"50 x 50 pixels are no multiple of the patches of 8 .* --image_size 48"):
        train(settings(base, pictures, tmp_path / "other", image_size=50))


def test_skipped_images_are_counted_and_named(tmp_path, capsys):
    draw = numpy.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 256, (9, 9, 3)).astype("uint8")
            Image.fromarray(pixels).save(tmp_path / "rows" / name / f"{number}.png")
    (tmp_path / "rows" / "b" / "torn.png").write_bytes(b"torn")
    base, run = model_folder("vit", tmp_path / "base"), tmp_path / "run"
    words = f"train --model {base} --data {tmp_path / 'rows'} --out {run} --max_steps 1 --r 2".split()
    assert main(words) == 2
    assert "1 of 17 images cannot be read" in (said := capsys.readouterr().err) and "b/torn.png" in said
    assert main([*words, "--bad_images", "skip"]) == 0
    assert "b/torn.png: it is in no format" in capsys.readouterr().err
    assert json.loads((run / "metrics.json").read_text())["skipped_images"] == 1
    assert main(["evaluate", str(run), "--models", "adapter"]) == 0


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--max_length 32", "--max_length is of text"),
        ("--template plain", "--template is of text"),
        ("--pooling mean", "--pooling is of text"),
        ("--train_sampling_strategy group_by_length", "images have no length"),
        ("--packing True", "packing is no argument of TrainingArguments"),
        ("--kind causal", "no rows of a language model"),
    ],
)
def test_flags_of_text_are_refused_by_name(flag, said, tmp_path, pictures, capsys):
    base = model_folder("vit", tmp_path / "base")
    assert main(["train", "--model", base, "--data", str(pictures), "--out", str(tmp_path / "run"), *flag.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--image_size 32", "--augment crop", "--bad_images skip"])
def test_flags_of_images_are_refused_for_text(flag, tmp_path, sentences, tiny_encoder, capsys):
    words = ["train", "--model", str(tiny_encoder), "--data", str(sentences), "--out", str(tmp_path / "run")]
    assert main([*words, *flag.split()]) == 2
    assert f"{flag.split()[0]} is of images" in capsys.readouterr().err


def test_evaluate_refuses_what_is_not_of_images(tmp_path, pictures, sentences, capsys):
    base, run = model_folder("vit", tmp_path / "base"), tmp_path / "run"
    train(settings(base, pictures, run))
    assert main(["evaluate", str(run), "--max_length", "9"]) == 2
    assert "--max_length is of text" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", str(sentences)]) == 2
    assert "no column of images" in capsys.readouterr().err
    assert main(["chat", str(run)]) == 2


def test_batch_normalisation_and_a_text_model_are_refused(tmp_path, pictures, tiny_encoder):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ConvNextImageProcessorPil(size={"shortest_edge": SIZE}).save_pretrained(tmp_path / "resnet")
    with pytest.raises(InputError, match=r"has batch normalisation .*an adapter does not hold them"):
        train(settings(str(tmp_path / "resnet"), pictures, tmp_path / "run"))
    with pytest.raises(InputError, match="cannot load the model"):
        train(settings(str(tiny_encoder), pictures, tmp_path / "run"))
