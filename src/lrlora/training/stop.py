"""SIGTERM and Ctrl-C while training: a checkpoint at the end of the step, then the end.

Elsewhere they end at once, as an exception, since no file is ever left half written. A second signal ends at
once wherever it comes. Signals that the host program handles or ignores itself are left to it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.training import processes

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_IN_HAND = (signal.SIG_DFL, signal.default_int_handler)
_SAID = b"\nstopping at the end of this step, with a checkpoint; once more stops at once, without\n"


class Interrupted(KeyboardInterrupt):
    """Training was told to stop.

    Args:
        number: of the signal.
        left: what is there now, and what the same command will do.
    """

    def __init__(self, number: int, left: str = "") -> None:
        super().__init__(left)
        self.number = number


class Stop(TrainerCallback):
    """Listens to the signals, and ends a training with a checkpoint.

    Example:
        stop = Stop()
        with stop.listening():
            trainer.add_callback(stop)
            with stop.at_the_next_step():
                trainer.train()
    """

    def __init__(self) -> None:
        self.number = 0
        self._came = 0.0
        self._is_training = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals that have Python's own handlers; only the main thread may."""
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {n: signal.getsignal(n) for n in _SIGNALS if signal.getsignal(n) in _IN_HAND}
        try:
            for number in before:
                signal.signal(number, self._heard)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_the_next_step(self) -> Iterator[None]:
        """While this lasts, a first signal waits for the end of the step.

        Raises:
            Interrupted: at the end, where a signal has come.
        """
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
        if processes.largest(self.number):
            raise Interrupted(self.number or signal.SIGTERM)

    def _heard(self, number: int, frame: Any) -> None:
        # torchrun, timeout and others pass on what has reached this process already: that is no second signal
        patience = 5.0 if processes.how_many() > 1 else 0.2
        if self.number and time.monotonic() - self._came < patience:
            return
        is_first_signal, self.number, self._came = not self.number, number, time.monotonic()
        if not (self._is_training and is_first_signal):
            raise Interrupted(number)
        if processes.is_first():
            with contextlib.suppress(OSError):
                # print may be in the middle of a line of its own here
                os.write(2, _SAID)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, in all processes at the same step."""
        if processes.largest(self.number):
            control.should_save = control.should_training_stop = True
