"""Which backend is chosen, and what `using` puts in its place."""

import pytest
import torch

from lrlora.ops import IMPLEMENTATIONS, choose, eager, native
from lrlora.ops.dispatch import using

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def test_the_backend_that_is_chosen_and_why():
    assert set(IMPLEMENTATIONS) == {"auto", "definition", "eager", "native", "triton"}
    small, large = ((torch.ones(2, n), torch.ones(n, 2)) for n in (8, 300))
    assert choose("auto", *small) == choose("auto", *large) == (native.PASSES, "native")
    assert choose("eager", *large) == (eager.ON_CPU, "eager was asked for")
    assert choose("auto", *(t.to("meta") for t in large))[1].startswith(
        "eager, because the Triton kernels are for CUDA"
    )


def test_using_puts_passes_in_the_place_of_those_of_their_name():
    small = torch.ones(2, 8), torch.ones(8, 2)
    own = eager.of_tiles(7)
    before = choose("eager", *small)[0]
    with using(own):
        assert choose("eager", *small)[0] is own
        with using(eager.ON_CPU):
            assert choose("eager", *small)[0] is eager.ON_CPU
        assert choose("eager", *small)[0] is own
    assert choose("eager", *small)[0] is before
