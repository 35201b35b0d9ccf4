import pytest

from lrlora.export.tolerance.search import AROUND, smallest_passing

SIZES = [50 * step + 1000 for step in range(400)]


def asked_and_found(is_enough, sizes=SIZES, known=(), **how) -> tuple[list[int], int | None]:
    asked: list[int] = []

    def passes(position: int) -> bool:
        assert position not in asked, "measured twice"
        asked.append(position)
        return is_enough(sizes[position])

    return asked, smallest_passing(passes, sizes, known, **how)


@pytest.mark.parametrize("edge", [1000, 1001, 1333, 4000, 12000, 20950])
def test_a_monotone_metric_gives_the_smallest_size_that_passes(edge):
    asked, found = asked_and_found(lambda size: size >= edge, resolution=0)
    assert SIZES[found] == min(size for size in SIZES if size >= edge)
    assert len(asked) < 25


def test_the_resolution_bounds_how_much_too_large_it_may_be():
    asked, found = asked_and_found(lambda size: size >= 7777)
    failed = max(position for position in asked if SIZES[position] < 7777)
    assert SIZES[failed] < 7777 <= SIZES[found] <= 1.02 * SIZES[failed] + 50


def test_every_measured_size_from_the_result_on_passes_and_its_neighbours_are_measured():
    # passes from 3,000 on, but not between 3,200 and 3,600: a bisection alone would stop at 3,000
    def is_enough(size: int) -> bool:
        return size >= 3000 and not 3200 <= size < 3600

    asked, found = asked_and_found(is_enough)
    assert SIZES[found] >= 3600
    assert all(is_enough(SIZES[position]) for position in asked if position >= found)
    for factor in AROUND:
        assert any(abs(SIZES[position] - factor * SIZES[found]) <= 50 for position in asked), factor


def test_nothing_passes_and_everything_passes():
    assert asked_and_found(lambda size: False) == ([len(SIZES) - 1], None)
    asked, found = asked_and_found(lambda size: True)
    assert found == 0 and {0, len(SIZES) - 1} < set(asked)
    assert asked_and_found(lambda size: True, sizes=[7]) == ([0], 0)


def test_a_search_that_was_stopped_comes_to_the_same_result():
    def is_enough(size: int) -> bool:
        return size >= 5000 and not 5400 <= size < 5600

    asked, found = asked_and_found(is_enough)
    for done in range(1, len(asked)):
        again, same = asked_and_found(is_enough, known=asked[:done])
        assert same == found and set(again) == set(asked)
