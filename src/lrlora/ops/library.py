"""native.cpp as a library on this machine: compiled once by its C++ compiler, kept in the cache, loaded by ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lrlora.files import cache_folder

SOURCE = Path(__file__).with_name("native.cpp")

# by what torch found of the processor: its own kernels run with these instructions as well
_INSTRUCTIONS = {
    "AVX512": (64, "-mavx512f -mavx512vl -mavx512dq -mavx512bw -mfma -mf16c -mprefer-vector-width=512"),
    "AVX2": (32, "-mavx2 -mfma -mf16c"),
}
_FLAGS = "-O2 -std=c++17 -fPIC -fno-exceptions -fno-math-errno -fno-trapping-math -ffp-contract=fast"
_MOST_SECONDS = 300

_log = logging.getLogger(__name__)
_found: dict[torch.dtype, Library] = {}
_one_at_a_time = threading.Lock()


class Library(NamedTuple):
    """The functions of native.cpp in one precision, or why they are not there.

    Args:
        failure: why the passes cannot run; None: they can.
        weight, gradients, nonzero_rows: as in native.cpp.
        step: entries of which the rows of A in memory are a multiple.
        is_threaded: whether it runs in the threads of torch.
    """

    failure: str | None
    weight: Callable[..., Any]
    gradients: Callable[..., Any]
    nonzero_rows: Callable[..., Any]
    step: int = 0
    is_threaded: bool = False


def loaded(dtype: torch.dtype) -> Library:
    """The library for factors of a precision, float32 or float64; compiled at the first call on a machine.

    A line on stderr says that it compiles. Where nothing can be compiled or loaded, a warning says once why.
    """
    found = _found.get(dtype)
    if found is not None:
        return found
    with _one_at_a_time:
        if dtype not in _found:
            try:
                _found[dtype] = _functions(_load(dtype))
            except _CannotRun as error:
                _log.warning("LR-LoRA runs its plain passes, which are several times slower: %s", error)
                _found[dtype] = Library(str(error), _unavailable, _unavailable, _unavailable)
        return _found[dtype]


def prepare() -> None:
    """Compile for float32 in another thread, so that the first step need not wait; nothing where CPUs do not train."""
    if not torch.accelerator.is_available():
        threading.Thread(target=loaded, args=(torch.float32,)).start()


class _CannotRun(Exception):
    """Why there is no library."""


def _unavailable(*_: Any) -> None:
    raise RuntimeError("the native passes cannot run; ask `why_not` first")


def _functions(library: ctypes.CDLL) -> Library:
    pointer = ctypes.c_void_p
    library.lrlora_weight.argtypes = [pointer] * 2
    library.lrlora_gradients.argtypes = [pointer] * 6
    library.lrlora_weight.restype = library.lrlora_gradients.restype = None
    library.lrlora_nonzero_rows.argtypes = [pointer, *[ctypes.c_int64] * 3, ctypes.c_int32, pointer]
    library.lrlora_step.restype = library.lrlora_nonzero_rows.restype = ctypes.c_int64
    return Library(
        None,
        lambda matrix, *places: library.lrlora_weight(ctypes.addressof(matrix), *places),
        lambda matrix, *places: library.lrlora_gradients(ctypes.addressof(matrix), *places),
        library.lrlora_nonzero_rows,
        library.lrlora_step(),
        bool(library.lrlora_is_threaded()),
    )


def _load(dtype: torch.dtype) -> ctypes.CDLL:
    flags = [*_FLAGS.split(), *_flags_of(torch.backends.cpu.get_cpu_capability())]
    flags += ["-DDOUBLE"] if dtype == torch.float64 else []
    openmp = _torch_openmp()
    flags += ["-fopenmp"] if openmp else []
    made_of = [SOURCE.read_text(encoding="utf-8"), *flags, platform.machine(), *platform.libc_ver(), sys.platform]
    name = f"native-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:16]}.so"
    cache = cache_folder()
    if openmp:
        # what the library leaves open, GOMP_parallel and its kind, is then found there
        ctypes.CDLL(openmp, ctypes.RTLD_GLOBAL)
    try:
        if _is_whole(cache / name):
            return ctypes.CDLL(str(cache / name))
    except OSError:
        pass  # what cannot be loaded is made again
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".native-") as folder:
            made = _compile(flags, Path(folder))
            # several processes may do this at once: each of them renames the same whole file
            _seal(made)
            made.replace(cache / name)
        return ctypes.CDLL(str(cache / name))
    except OSError as error:
        return _load_once(flags, error)


def _seal(library: Path) -> None:
    """Write its own hash behind a library, where no loader looks."""
    content = library.read_bytes()
    library.write_bytes(content + hashlib.sha256(content).digest())


def _is_whole(library: Path) -> bool:
    """Whether a file is what `_seal` sealed: loading a part of a library would end the process."""
    content = library.read_bytes() if library.is_file() else b""
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def _load_once(flags: list[str], reason: OSError) -> ctypes.CDLL:
    """For this process only: where the cache cannot be written or run from."""
    try:
        with tempfile.TemporaryDirectory(prefix="lrlora-native-") as folder:
            return ctypes.CDLL(str(_compile(flags, Path(folder))))
    except OSError as error:
        raise _CannotRun(f"the compiled library cannot be kept ({reason}) or loaded ({error})") from error


def _flags_of(capability: str) -> list[str]:
    lane_bytes, instructions = _INSTRUCTIONS.get(capability, (16, ""))
    return [f"-DLANE_BYTES={lane_bytes}", *instructions.split()]


def _compile(flags: list[str], folder: Path) -> Path:
    compiler = _compiler()
    print("lrlora: compiling the passes of phi for this machine, once, some 2 s", file=sys.stderr, flush=True)
    part, made = folder / "native.o", folder / "native.so"
    # linked by itself: OpenMP's flag would link a second runtime beside torch's
    libraries = ["-nodefaultlibs", "-lgcc", "-lc"] if sys.platform == "linux" else ["-undefined", "dynamic_lookup"]
    _run([compiler, *flags, "-c", str(SOURCE), "-o", str(part)])
    _run([compiler, "-shared", str(part), "-o", str(made), *libraries])
    return made


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_MOST_SECONDS)
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:300]
        raise _CannotRun(f"{command[0]} failed with exit status {error.returncode}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _CannotRun(f"{command[0]} cannot be run: {error}") from error


def _compiler() -> str:
    chosen = os.environ.get("CXX")
    names = [chosen] if chosen else ["g++", "clang++", "c++"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise _CannotRun(f"no C++ compiler found (looked for {', '.join(names)})")


def _torch_openmp() -> str | None:
    """The OpenMP runtime that torch has loaded, if it is one for GCC's calls."""
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.partition("/")[2]
        if path and ("libgomp" in path or "libiomp5" in path) and hasattr(ctypes.CDLL("/" + path), "GOMP_parallel"):
            return "/" + path
    return None
