"""The same workers as actors of a Ray cluster, for studies on several machines. Needs the extra `cluster`."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lrlora.errors import InputError
from peft_study.plan import Cell
from peft_study.result import CellResult
from peft_study.spec import Study


class RayPool:
    """Actors of a Ray cluster, each with one GPU where the cluster has some.

    The machines need lrlora, the base model and the data under the same names and paths as this one.

    Args:
        study: whose cells they run.
        workers: how many actors; 0: one per GPU of the cluster, or one per `threads` CPUs.
        threads: torch threads, and CPUs, of each.
        address: of the cluster; "local" starts one on this machine.

    Raises:
        InputError: ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, study: Study, workers: int, threads: int, address: str = "local") -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise InputError('--ray needs ray: pip install "lrlora[cluster]"') from error
        self._ray: Any = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            self._before = signal.getsignal(signal.SIGTERM)
            start: dict[str, Any] = {"num_cpus": max(1, workers) * threads} if address == "local" else {}
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False, **start)
            except ConnectionError as error:
                raise InputError(f"no Ray cluster at {address!r}: {error}") from error
            # Ray has put a handler in its place, which leaves with status 15 and without a word about the study
            if callable(self._before):
                self._restore_handler()
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0))
        count = workers or gpus or max(1, int(there.get("CPU", 1)) // threads)
        self._needs = {"num_cpus": threads, "num_gpus": 1 if gpus else 0}
        self._study, self._threads = study, threads
        self._actors: list[Any] = [None] * count
        self._running: dict[Any, tuple[int, Cell]] = {}

    def idle(self) -> list[int]:
        """As `Pool.idle`."""
        busy = {worker for worker, _ in self._running.values()}
        return [number for number in range(len(self._actors)) if number not in busy]

    def start(self, worker: int, cell: Cell) -> None:
        """As `Pool.start`."""
        if self._actors[worker] is None:
            actor = self._ray.remote(_Actor).options(**self._needs)
            self._actors[worker] = actor.remote(self._study, self._threads)
        self._running[self._actors[worker].run.remote(cell)] = (worker, cell)

    def finished(self) -> list[tuple[Cell, CellResult | None, str | None]]:
        """As `Pool.finished`."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1)
        done = []
        for reference in ready:
            worker, cell = self._running.pop(reference)
            try:
                done.append((cell, self._ray.get(reference), None))
            except self._ray.exceptions.RayError as error:
                self._actors[worker] = None
                done.append((cell, None, f"its Ray actor died: {str(error).splitlines()[0]}"))
        return done

    def close(self) -> None:
        """As `Pool.close`; a cluster that was there before stays."""
        for actor in self._actors:
            if actor is not None:
                self._ray.kill(actor)
        if self._owns:
            self._ray.shutdown()
            self._restore_handler()

    def _restore_handler(self) -> None:
        if self._before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)


class _Actor:
    def __init__(self, study: Study, threads: int) -> None:
        from peft_study.cell import Bench
        from peft_study.workers import prepare_process

        prepare_process(threads)
        self._bench = Bench(study)

    def run(self, cell: Cell) -> CellResult:
        return self._bench.run(cell)
