from dataclasses import dataclass

import numpy
import pytest
from scipy import stats

from lrlora.ranks.layers import attention_against_mlp, block_pairs, layer_variation

MODULES = {"attention": ("query", "key", "value", "output"), "mlp": ("up", "down")}


@dataclass
class Row:
    layer: str
    block: int | None
    kind: str
    stable_rank: float
    stable_rank_ba: float = 1.0
    stable_rank_initial: float | None = None


def draw(generator, blocks: int, seeds: int, difference: float = 0.0) -> list[list[Row]]:
    """Ranks of a model: each block has a level, each layer a skewed rank around it, each seed its noise."""
    level = {b: generator.normal(0, 0.5) for b in range(blocks)}
    layers = [(b, kind, name) for b in range(blocks) for kind, names in MODULES.items() for name in names]
    of_layer = {key: generator.lognormal(level[key[0]], 0.6) for key in layers}
    return [
        [
            Row(
                layer=f"layer.{b}.{name}",
                block=b,
                kind=kind,
                stable_rank=1 + of_layer[b, kind, name] * generator.lognormal(0, 0.1) + difference * (kind == "mlp"),
            )
            for b, kind, name in layers
        ]
        for _ in range(seeds)
    ]


@pytest.mark.parametrize(("blocks", "draws"), [(6, 1000), (12, 400)])
def test_a_difference_that_is_not_there_is_called_null_in_95_of_100_draws(blocks, draws):
    generator = numpy.random.default_rng(blocks)
    wrong = sum(attention_against_mlp(draw(generator, blocks, seeds=3)).is_shown for _ in range(draws))
    assert stats.binomtest(wrong, draws, 0.05, alternative="greater").pvalue > 0.01, wrong


def test_seeds_are_no_blocks():
    # ten seeds, each with the same six blocks, in which attention happens to be higher: one seed knows as much
    generator = numpy.random.default_rng(1)
    (once,) = draw(generator, blocks=6, seeds=1)
    many, one = attention_against_mlp([once] * 10), attention_against_mlp([once])
    assert (many.n, many.p_value) == (one.n, one.p_value) == (6, one.p_value)
    assert (many.mean, many.low) == pytest.approx((one.mean, one.low))


def test_a_difference_that_is_there_is_found_with_its_size():
    found = attention_against_mlp(draw(numpy.random.default_rng(2), 12, seeds=3, difference=2.0))
    assert found.is_shown and found.n == 12
    assert found.low is not None and found.high is not None
    assert found.low < -2.0 < found.high
    assert found.verdict.startswith("lower by")


def test_below_six_blocks_nothing_can_be_concluded():
    found = attention_against_mlp(draw(numpy.random.default_rng(3), 5, seeds=3, difference=100.0))
    assert (found.p_value, found.is_shown) == (None, False)
    assert found.verdict == (
        "nothing can be concluded: a test across blocks needs 6 blocks with attention and MLP, there are 5"
    )
    assert attention_against_mlp([]).verdict.endswith("there are none")


def test_blocks_without_both_kinds_and_layers_outside_blocks_are_left_out():
    rows = [Row("a.0.q", 0, "attention", 2.0), Row("a.1.q", 1, "attention", 2.0), Row("a.1.up", 1, "mlp", 3.0)]
    rows += [Row("pooler", None, "other", 9.0)]
    assert block_pairs([rows]) == {1: (2.0, 3.0)}


def test_layer_variation_beside_its_nulls():
    generator = numpy.random.default_rng(4)
    rows = draw(generator, 6, seeds=3)
    for row in (row for of_seed in rows for row in of_seed):
        row.stable_rank_ba, row.stable_rank_initial = 1.0, row.stable_rank
    found = layer_variation(rows)
    assert found.spread_ba == 0 < found.spread == found.spread_initial
    assert found.against_ba.is_shown and found.against_ba.mean > 0 and found.spread_against_ba.is_shown
    assert found.against_initial is not None and found.against_initial.verdict == "no difference at all"
    # seed noise is a sixth of the spread of the layers
    assert found.between_layers is not None and found.between_layers > 0.9


def test_layers_that_another_seed_orders_anew_are_seen_as_noise():
    generator = numpy.random.default_rng(5)
    rows = [draw(generator, 6, seeds=1)[0] for _ in range(4)]
    for row in (row for of_seed in rows for row in of_seed):
        row.stable_rank = 1 + generator.exponential()
    share = layer_variation(rows).between_layers
    assert share is not None and share < 0.3


def test_one_seed_and_no_second_null():
    (rows,) = draw(numpy.random.default_rng(6), 6, seeds=1)
    found = layer_variation([rows])
    assert (found.between_layers, found.against_initial, found.spread_initial, found.seeds) == (None, None, None, 1)
    with pytest.raises(ValueError, match="no layer that all seeds have"):
        layer_variation([])


def test_a_sure_difference_of_a_hundredth_of_a_rank_is_not_shown():
    rows = [
        Row(f"{b}.{kind}", b, kind, 2.0 + 0.01 * (kind == "attention") + b, stable_rank_ba=1.99 + b)
        for b in range(8)
        for kind in ("attention", "mlp")
    ]
    found = attention_against_mlp([rows])
    assert found.p_value is not None and found.p_value < 0.01
    assert found.verdict == "higher by 0.01 in the mean, smaller than 0.05, the smallest effect of interest"
    assert attention_against_mlp([rows], smallest_effect=0.005).is_shown
    assert layer_variation([rows]).against_ba.is_too_small
