import pytest

from tests.generation.cases import learned


@pytest.fixture(scope="package")
def run(tmp_path_factory, tiny_decoder):
    """A run folder whose adapter knows `cases.ROWS` by heart."""
    return learned(tmp_path_factory.mktemp("learned"), tiny_decoder)
