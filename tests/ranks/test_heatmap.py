"""The picture of a run's ranks, and the user's own matplotlib, which it leaves alone."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
import matplotlib
matplotlib.use("svg")
from lrlora.ranks.heatmap import rank_heatmap
from lrlora.ranks.measure import LayerRank
rows = [
    LayerRank(f"layer.{block}.{name}", block, "mlp", name, 1.0 + block, 1.0, None, None, 0.0, 0.5, 0.0, None)
    for block in (0, 1) for name in ("up", "down")
]
rank_heatmap(rows, Path(sys.argv[1]))
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert "matplotlib.pyplot" not in sys.modules
"""


def test_drawing_leaves_the_user_s_backend_as_it_is(tmp_path):
    file = tmp_path / "ranks.png"
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, str(file)], check=True, timeout=300)
    assert file.read_bytes().startswith(b"\x89PNG") and list(tmp_path.iterdir()) == [file]
