"""A matrix of several tiles is one matrix."""

import pytest
import torch

from lrlora.method import update as definition
from lrlora.ops import eager
from lrlora.ops.passes import factors_in_precision, signs_of
from tests.ops.cases import CARRIERS, carried, inputs

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.mark.parametrize("entries", [1, 1000, 1 << 20])
def test_the_tiles_do_not_change_the_signs(entries):
    given = carried(inputs(150, "sinc", dtype=torch.float32), CARRIERS[1])
    numbers = (given[name] for name in ("A", "B", "c", "tau", "scale"))
    passes = eager.of_tiles(entries)
    factors = factors_in_precision(passes, *numbers, "sinc", *signs_of(passes, CARRIERS[1], given["A"], given["B"]))
    made = passes.weight(None, factors, torch.float32)
    # B A of a tile is rounded otherwise, but a sign that moved would change an entry as a whole
    plain = {name: given[name] for name in ("A", "B", "c", "tau", "scale", "phi", "carrier")}
    torch.testing.assert_close(made, definition.delta_weight(**plain), rtol=1e-4, atol=1e-5)
