"""Execute the notebooks of this folder anew, each in a fresh kernel and an empty folder, and keep what they print.

    python notebooks/execute.py                           # all of them, in place; make notebooks does the same
    python notebooks/execute.py which_rank --out FOLDER   # one of them, into another folder

Needs nbclient and ipykernel (the extra `dev`), no network, and no Jupyter on the machine.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
OF_OTHERS = re.compile(r"torchao|kernels-community|register_constant\(\) on Enum subclasses")
"""What torchao and bitsandbytes, which PEFT imports where they are installed, print of themselves."""
ABOUT_NO_CELL = (
    "IProgress not found",
    "`is_gradient_checkpointing` is deprecated",
    "`gradient_checkpointing` is deprecated",
    "`gradient_checkpointing_enable` is deprecated",
)
"""How warnings begin that are about no cell: progress bars, and names that transformers has changed and PEFT uses."""
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    # progress bars are of no use to a reader
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": ",".join(f"ignore:{start}" for start in ABOUT_NO_CELL),
    # the numbers depend a little on the number of threads
    "OMP_NUM_THREADS": "1",
}


def execute(file: Path) -> Any:
    """Run a notebook from its first cell to its last, and return it with its new outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
        SystemExit: a cell wrote on stderr, or files were left behind.
    """
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as jupyter:
        # neither the user's kernels and start-up files are read, nor is anything written to them
        os.environ["JUPYTER_RUNTIME_DIR"] = jupyter
        kernels = KernelSpecManager(kernel_dirs=[])
        # sockets in a folder of ours in place of ports, which other users of the machine can reach
        sockets = {"transport": "ipc", "ip": f"{jupyter}/kernel"}
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels, **sockets)
        client = NotebookClient(
            notebook, manager, timeout=1800, coalesce_streams=True, record_timing=False,
            resources={"metadata": {"path": folder}},
        )  # fmt: skip
        client.execute(cleanup_kc=True, env={**os.environ, **SETTINGS, "IPYTHONDIR": jupyter})
        if left := sorted(path.name for path in Path(folder).iterdir()):
            raise SystemExit(f"{file.name}: left {', '.join(left)} behind; write into a temporary folder")
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_with_small_figures(output) for output in cell.outputs if not _is_noise(output, file)]
    return notebook


def _with_small_figures(output: Any) -> Any:
    """The output with its figure in 128 colours, which makes the file a third as large and is not seen."""
    png = output.get("data", {}).get("image/png")
    if png is not None:
        small = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128).save(small, "PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return output


def _is_noise(output: Any, file: Path) -> bool:
    """Whether an output is what other packages print when they are imported; all else on stderr ends the script."""
    if output.output_type != "stream" or output.name != "stderr":
        return False
    if strange := [line for line in output.text.splitlines() if line.strip() and not OF_OTHERS.search(line)]:
        raise SystemExit(f"{file.name}: a cell wrote on stderr:\n" + "\n".join(strange))
    return True


def main() -> None:
    """Execute the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="without .ipynb; all if left out")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to; in place if left out")
    chosen = parser.parse_args()
    for name in chosen.names or sorted(file.stem for file in HERE.glob("*.ipynb")):
        print(name, file=sys.stderr, flush=True)
        nbformat.write(execute(HERE / f"{name}.ipynb"), chosen.out / f"{name}.ipynb")


if __name__ == "__main__":
    main()
