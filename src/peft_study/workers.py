"""Processes that run cells, each one after the other: starting torch takes ten seconds and more, so they stay."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from peft_study.plan import Cell
from peft_study.result import CellResult
from peft_study.spec import Study

GRACE_S = 10
"""Seconds that an idle worker has to end by itself."""
_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Pool(Protocol):
    """Where cells run: processes of this machine, or a Ray cluster."""

    def idle(self) -> list[int]:
        """Numbers of the workers that have nothing to do."""
        ...

    def start(self, worker: int, cell: Cell) -> None:
        """Give a cell to an idle worker."""
        ...

    def finished(self) -> list[tuple[Cell, CellResult | None, str | None]]:
        """Wait until a cell is through: its row; or, where its worker died, None and what is known of that death."""
        ...

    def close(self) -> None:
        """Stop all workers."""
        ...


class LocalPool:
    """Worker processes of this machine.

    Args:
        study: whose cells they run.
        workers: how many, at least 1.
        threads: torch threads of each.
    """

    def __init__(self, study: Study, workers: int, threads: int) -> None:
        self._study, self._threads = study, threads
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[Any] = [None] * workers
        self._pipes: list[Connection | None] = [None] * workers
        self._running: dict[int, Cell] = {}

    def idle(self) -> list[int]:
        """As `Pool.idle`."""
        return [number for number in range(len(self._processes)) if number not in self._running]

    def start(self, worker: int, cell: Cell) -> None:
        """As `Pool.start`; the process comes up with its first cell, and again where it had died."""
        process = self._processes[worker]
        if process is None or not process.is_alive():
            self._spawn(worker)
        pipe = self._pipes[worker]
        assert pipe is not None
        self._running[worker] = cell
        try:
            pipe.send(cell)
        except OSError:
            return  # it died just now; `finished` finds that out

    def finished(self) -> list[tuple[Cell, CellResult | None, str | None]]:
        """As `Pool.finished`."""
        watched = {}
        for worker in self._running:
            watched[self._pipes[worker]] = watched[self._processes[worker].sentinel] = worker
        done = []
        for worker in sorted({watched[ready] for ready in wait(list(watched))}):
            cell = self._running.pop(worker)
            row, death = self._outcome(worker)
            done.append((cell, row, death))
        return done

    def _outcome(self, worker: int) -> tuple[CellResult | None, str | None]:
        pipe, process = self._pipes[worker], self._processes[worker]
        assert pipe is not None
        try:
            return pipe.recv(), None
        except (EOFError, OSError):
            process.join()
            return None, _death(process.exitcode)

    def _spawn(self, worker: int) -> None:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._study, self._threads), daemon=True, name=f"lrlora-study-{worker}"
        )
        with _environment(self._threads, gpu_of(worker)), _without_ctrl_c():
            process.start()
        theirs.close()
        self._processes[worker], self._pipes[worker] = process, mine

    def close(self) -> None:
        """As `Pool.close`."""
        # an idle worker ends by itself when nothing can be asked of it any more, and leaves nothing behind
        for worker, (process, pipe) in enumerate(zip(self._processes, self._pipes, strict=True)):
            if process is not None and pipe is not None:
                pipe.close()
                if worker in self._running:
                    process.terminate()
        for process in self._processes:
            if process is not None:
                process.join(GRACE_S)
                process.terminate()
                process.join()


def prepare_process(threads: int) -> None:
    """What a process that runs cells sets first: threads, and quiet libraries."""
    import datasets
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _work(pipe: Connection, study: Study, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops its workers
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    from peft_study.cell import Bench

    prepare_process(threads)
    bench = Bench(study)
    while True:
        try:
            cell = pipe.recv()
            pipe.send(bench.run(cell))
        except (EOFError, OSError):
            return


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def gpu_of(worker: int) -> str | None:
    """The one GPU that a worker shall see, of several; None where there is at most one.

    transformers.Trainer would distribute a cell over all GPUs that it sees, which changes its batch.
    """
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
    return gpus[worker % len(gpus)] if len(gpus) > 1 else None


@contextmanager
def _environment(threads: int, gpu: str | None) -> Iterator[None]:
    """A spawned process reads these when it first loads a library of numbers."""
    before = {name: os.environ.get(name) for name in (*_ENVIRONMENT, "CUDA_VISIBLE_DEVICES")}
    os.environ.update(dict.fromkeys(_ENVIRONMENT, str(threads)))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """A process that starts here never sees Ctrl-C, which reaches all processes of a terminal: it is the parent's."""
    resource_tracker.ensure_running()  # it would lift the block when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = "; the system kills so when memory is out" if name == "SIGKILL" else ""
        return f"its worker process was ended by {name}{hint}"
    return f"its worker process ended with status {exit_code}"
