"""The cells of a study on a Ray cluster."""

import signal

import pytest

from peft_study import Machines, run_study
from tests.peft_study.conftest import without_measurements


@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_of_this_machine_gives_the_same_rows(whole, tmp_path):
    pytest.importorskip("ray", reason='needs ray: pip install "lrlora[cluster]"')
    study, _, rows = whole
    handlers = []

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        machines = Machines(2, 1, ray="local")
        tell = lambda line: handlers.append(signal.getsignal(signal.SIGTERM))  # noqa: E731
        through_ray = run_study(study, tmp_path / "out", machines, tell=tell)
        handlers.append(signal.getsignal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert without_measurements(through_ray) == without_measurements(rows)
    # Ray would put a handler of its own there, and the study could not say what it has kept
    assert set(handlers) == {stop} and len(handlers) == len(rows) + 1
