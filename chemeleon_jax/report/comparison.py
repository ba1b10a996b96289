"""Base against tuned: scores with their intervals, and the gain with its own."""

import math
from typing import NamedTuple

from chemeleon_jax.report.runs import CrystalSet, Run


class Score(NamedTuple):
    """How a score of `summary.json` is shown."""

    label: str
    share: bool = True  # of all crystals, shown in percent
    better: int = 1  # 1: higher is better, -1: lower is, 0: neither


SCORES = {
    "valid": Score("valid"),
    "smact_valid": Score("charge-balanced (SMACT)"),
    "unique": Score("unique"),
    "novel": Score("novel"),
    "symmetric": Score("symmetric (not P1)"),
    "diluted": Score("one element above three quarters", better=-1),
    "metastable": Score("metastable"),
    "stable": Score("stable"),
    "msun": Score("metastable, unique, novel (MSUN)"),
    "msun_near_hull": Score("MSUN not far below the hull"),
    "msun_undiluted": Score("MSUN, no element above three quarters"),
    "sun": Score("stable, unique, novel (SUN)"),
    "far_below_hull": Score("far below the hull", better=-1),
    "e_above_hull": Score("energy above hull, eV/atom", False, -1),
    "metastable_unrelaxed": Score("metastable, unrelaxed"),
    "e_above_hull_unrelaxed": Score("energy above hull, unrelaxed, eV/atom", False, -1),
    "effective_elements": Score("effective number of elements", False),
    "effective_prototypes": Score("effective number of prototypes", False),
    "frechet_structure": Score("Fréchet distance, structures", False, -1),
    "frechet_composition": Score("Fréchet distance, compositions", False, -1),
}


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def interval(crystals: CrystalSet, name: str) -> Interval | None:
    """A score of a set, if it has one that is finite."""
    found = crystals.scores.get(name) or {}
    try:
        numbers = Interval(*(float(found[k]) for k in Interval._fields))
    except (KeyError, TypeError, ValueError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def gain(base: Interval, tuned: Interval) -> Interval:
    """The difference of two independent estimates, with its interval.

    Made of the two intervals by MOVER (Zou and Donner, Statistics in Medicine 27, 1693
    (2008); for shares Newcombe's method 10, ibid. 17, 873 (1998)). Both sets are
    sampled with the same noise, which can only make them more alike than assumed here.
    """
    difference = tuned.value - base.value
    return Interval(
        difference,
        difference - math.hypot(tuned.value - tuned.low, base.high - base.value),
        difference + math.hypot(tuned.high - tuned.value, base.value - base.low),
    )


def score_names(sets: list[CrystalSet]) -> list[str]:
    """Scores that any set has: those known here first, in their order."""
    present = {name for s in sets for name in s.scores if interval(s, name)}
    known = [name for name in SCORES if name in present]
    return known + sorted(present - set(SCORES))


def describe(name: str) -> Score:
    """How a score is shown; of one unknown here, as a number with its own name.

    One by a potential of several, `metastable:NAME`, is shown as the score is.
    """
    what, _, judge = name.partition(":")
    known = SCORES.get(what, Score(what.replace("_", " "), False, 0))
    return known._replace(label=f"{known.label}: {judge}") if judge else known


def verdict(name: str, change: Interval) -> str:
    """`better`, `worse` or `changed` where the interval excludes 0, else `unclear`."""
    if change.low <= 0 <= change.high:
        return "unclear"
    direction = describe(name).better * (1 if change.value > 0 else -1)
    return {1: "better", -1: "worse", 0: "changed"}[direction]


def format_interval(name: str, x: Interval, sign: str = "") -> tuple[str, str]:
    """The value with its unit, and its interval; a `sign` of "+" shows both signs."""
    if describe(name).share:
        numbers, unit = [f"{100 * v:{sign}.1f}" for v in x], " pp" if sign else " %"
    else:
        numbers, unit = [f"{v:{sign}.3g}" for v in x], ""
    value, low, high = (number.replace("-", "−") for number in numbers)
    return f"{value}{unit}", f"{low} to {high}"


Shown = tuple[str, str]  # a value with its unit, and its interval


def compare(
    run: Run, name: str
) -> tuple[Shown | None, Shown | None, tuple[str, str, str] | None]:
    """A run's score as shown: of its base, of its policy, and the verdict on the gain.

    The verdict comes with the gain's value and interval. None where one is unknown.
    """
    base, tuned = (s and interval(s, name) for s in (run.base, run.tuned))
    before, after = (x and format_interval(name, x) for x in (base, tuned))
    if base is None or tuned is None:
        return before, after, None
    change = gain(base, tuned)
    return before, after, (verdict(name, change), *format_interval(name, change, "+"))
