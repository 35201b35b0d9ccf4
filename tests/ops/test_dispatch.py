"""Which backend is chosen, and what `using` puts in its place."""

import dataclasses

import pytest
import torch

from lrlora.ops import IMPLEMENTATIONS, choose, compiled, eager
from lrlora.ops.dispatch import using

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def test_the_backend_that_is_chosen_and_why():
    assert set(IMPLEMENTATIONS) == {"auto", "definition", "eager", "compiled", "triton"}
    small, large = ((torch.ones(2, n), torch.ones(n, 2)) for n in (8, 300))
    assert choose("auto", *small)[1] == "eager, because so small a matrix is not worth a compilation"
    # what another test's compilation met does not count here
    fresh = compiled.Compiler().passes()
    with using(fresh):
        assert choose("auto", *large) == (fresh, "compiled")
    assert choose("eager", *large)[1] == "eager was asked for"


def test_using_puts_passes_in_the_place_of_those_of_their_name():
    small = torch.ones(2, 8), torch.ones(8, 2)
    own = dataclasses.replace(eager.ON_CPU, tile_entries=7)
    before = choose("eager", *small)[0]
    with using(own):
        assert choose("eager", *small)[0] is choose("auto", *small)[0] is own
        with using(eager.ON_CPU):
            assert choose("eager", *small)[0] is eager.ON_CPU
        assert choose("eager", *small)[0] is own
    assert choose("eager", *small)[0] is before
