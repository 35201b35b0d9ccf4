"""What a study says, in sentences: answers to its questions, and what to know before one trusts them."""

from __future__ import annotations

from collections.abc import Sequence

from lrlora.statistics import PairedDifference
from peft_study.scales import scale_lines
from peft_study.summary import ArmResult


def summary_lines(results: Sequence[ArmResult]) -> list[str]:
    """What to say next to the table: other scales at one rank, rates at the edge of their grid, cells that failed."""
    lines = scale_lines((r.arm, r.scale) for r in results)
    for edge in (r for r in results if r.at_the_edge):
        lines.append(
            f"{edge.task}, {edge.arm}: the best learning rate, {edge.learning_rate:g}, is at the edge of its grid "
            f"({', '.join(f'{rate:g}' for rate in edge.rates_tried)}); widen the grid of every arm before you trust a "
            "difference"
        )
    for lost in (r for r in results if r.diverged):
        rates = ", ".join(f"{rate:g}" for rate in lost.diverged)
        end = "no learning rate came through" if lost.learning_rate is None else "they have lost"
        lines.append(f"{lost.task}, {lost.arm}: diverged at the learning rates {rates}; {end}")
    for bad in (r for r in results if r.failed):
        what = "no learning rate came through" if bad.learning_rate is None else "the rest are counted"
        lines.append(f"{bad.task}, {bad.arm}: {bad.failed} cells failed, {what}; --retry_failed runs them again")
    return lines


def answers(results: Sequence[ArmResult], reference: str) -> list[tuple[str, str]]:
    """What a study says to each of its questions, in a sentence: pairs of question and answer, task by task.

    Args:
        results: as `summary` returns them.
        reference: the arm that others were compared with.
    """
    found = []
    for task in dict.fromkeys(result.task for result in results):
        mine = [r for r in results if r.task == task]
        asked = (
            (f"Does an arm differ from {reference} in {mine[0].metric}", [(r.arm, r.difference) for r in mine], 4),
            ("Is SR(dW) beyond SR(BA)", [(r.arm, r.ranks and r.ranks.beyond_lora) for r in mine], 2),
            ("Attention - MLP of SR(dW)", [(r.arm, r.ranks and r.ranks.attention_minus_mlp) for r in mine], 2),
        )
        for question, pairs, digits in asked:
            known = [(arm, difference) for arm, difference in pairs if difference is not None]
            if known:
                found.append((f"{task}: {question}?", _sentence(known, digits)))
    return found


def _sentence(known: Sequence[tuple[str, PairedDifference]], digits: int) -> str:
    """Which differences are shown; where none is, the largest; how many would be shown by chance; what is too small."""
    shown = [(arm, difference) for arm, difference in known if difference.is_shown]
    if all(difference.p_value is None for _, difference in known):
        return f"nothing can be concluded: {known[0][1].test}"
    if shown:
        told = "; ".join(f"{arm}, {_said(difference, digits)}" for arm, difference in shown)
        chance = f" (chance alone would show {0.05 * len(known):.1f})" if len(known) > 1 else ""
        said = f"shown for {len(shown)} of {len(known)}{chance}: {told}"
    else:
        arm, largest = max(known, key=lambda pair: abs(pair[1].mean))
        said = f"no difference is shown, of {len(known)} compared; the largest is {arm}, {_said(largest, digits)}"
    small = [f"{arm}, {_said(difference, digits)}" for arm, difference in known if difference.is_too_small]
    return f"{said}; {known[0][1].below}: {'; '.join(small)}" if small else said


def _said(value: PairedDifference, digits: int) -> str:
    return ", ".join(filter(None, (value.signed(digits), value.chance)))
