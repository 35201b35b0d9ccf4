import pytest

from tests.evaluation.server import serve
from tests.talkers import grader


@pytest.fixture(scope="package")
def judge(tmp_path_factory, embedded_decoder):
    """URL and model of a real server, whose model answers [[7]]."""
    folder = grader(tmp_path_factory.mktemp("judge"), embedded_decoder)
    with serve(folder, folder.parent / "server.log") as url:
        yield url, str(folder)
