"""Why crystals are dropped: each for one reason, the first that applies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chemeleon_jax.data.crystals import (
    VALIDITY_REASONS,
    formula_key,
    from_structures,
    read_structure,
    validity,
)
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.evaluation.judge import Row
from chemeleon_jax.rewards.matches import References, match_crystals, to_cells
from chemeleon_jax.rewards.stability import FAR_BELOW
from chemeleon_jax.workers.matching import cell_of, is_same
from chemeleon_jax.workers.outcome import Status
from chemeleon_jax.workers.pool import Pool

# In the order in which they are asked, and what is left after each. "" is a candidate.
REASONS = {
    "invalid": "unreadable, or no crystal that could be: atoms or cell",
    "not_compared": "its comparison with others failed, or took too long",
    "duplicate": "the likeness of one before it, as sampled or when relaxed",
    "known": "the likeness of a known crystal",
    "unbalanced": "charges cannot add up to zero by SMACT's rules",
    "no_energy": "a potential has no energy for it, or its hull does not reach",
    "disputed": "the potentials disagree about its distance from the hull",
    "unstable": "too far above the hull by a potential",
    "far_below_hull": "so far below the hull that it is rather an error",
    "not_converged": "its relaxation did not end",
    "dynamically_unstable": "a vibration of imaginary frequency",
    "elastically_unstable": "a strain that lowers its energy",
    "ranked_lower": "not looked at further: enough better ones",
}
LEFT = {
    "invalid": "valid",
    "not_compared": "compared",
    "duplicate": "distinct",
    "known": "new",
    "unbalanced": "of allowed charges",
    "no_energy": "with energies",
    "disputed": "undisputed",
    "unstable": "near the hull",
    "far_below_hull": "not far below it",
    "not_converged": "relaxed",
    "dynamically_unstable": "that vibrate",
    "elastically_unstable": "that are stiff",
    "ranked_lower": "candidates",
}

MIN_DROP = 0.001  # eV/atom: less is within the error of a potential
# GPa: molecular and layered crystals are as soft as a potential is wrong.
MIN_STIFFNESS = -1.0


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to."""

    max_e_above_hull: float  # eV/atom, by every potential
    max_spread: float  # eV/atom, between potentials
    min_frequency: float  # THz, below zero
    keep_known: bool = False
    charge_balanced: bool = False  # whether charges must add up to zero
    far_below: float = FAR_BELOW  # eV/atom
    min_stiffness: float = MIN_STIFFNESS  # GPa


def first_look(items: Sequence[Item], pool: Pool) -> list[dict[str, str]]:
    """Of each crystal as it was sampled `reason` and `detail`, "" where it goes on."""
    crystals = from_structures([item.structure for item in items])
    codes = validity(crystals)
    none = References({}, {})
    matches = match_crystals(to_cells(crystals), codes == 0, none, pool)
    found = []
    for item, code, unique, status in zip(
        items, codes, matches.unique, matches.status, strict=True
    ):
        reason, detail = ("", "") if unique else ("duplicate", "as sampled")
        if item.structure is None:
            reason, detail = "invalid", item.problem
        elif code:
            reason, detail = "invalid", VALIDITY_REASONS[code]
        elif status != Status.OK:
            reason, detail = "not_compared", f"matching: {Status(status).name.lower()}"
        found.append({"reason": reason, "detail": detail})
    return found


def second_look(row: Row, judges: Sequence[str], limits: Limits) -> tuple[str, str]:
    """Reason and detail of a relaxed crystal that was judged."""
    if not row["valid"]:
        return "invalid", f"relaxed: {row['relaxed_reason']}"
    if "matching" in row["status"]:  # it would count as known, and as a duplicate
        return "not_compared", row["status"]
    if not row["unique"]:
        return "duplicate", "relaxed"
    if not (row["novel"] or limits.keep_known):
        return "known", ""
    if limits.charge_balanced and row["smact_valid"] is False:
        return "unbalanced", ""
    reason, detail = off_the_hull(row, judges, limits)
    if not (reason or row["relaxed"]):
        return "not_converged", f"after {row['relax_steps']} steps"
    return reason, detail


def off_the_hull(row: Row, judges: Sequence[str], limits: Limits) -> tuple[str, str]:
    """Reason and detail of a crystal whose distances from the hull will not do."""
    distances = np.array(
        [np.nan if (x := row.get(f"e_above_hull:{n}")) is None else x for n in judges]
    )
    if not np.isfinite(distances).all():
        return "no_energy", row.get("status", "")
    if np.ptp(distances) > limits.max_spread:
        return "disputed", f"by {np.ptp(distances):.3f} eV/atom"
    if distances.max() > limits.max_e_above_hull:
        worst = judges[int(distances.argmax())]
        return "unstable", f"{distances.max():.3f} eV/atom by {worst}"
    if distances.min() < limits.far_below:
        return "far_below_hull", f"{distances.min():.3f} eV/atom"
    return "", ""


def third_look(record: dict, judges: Sequence[str], limits: Limits) -> tuple[str, str]:
    """Reason and detail of a crystal whose stability was looked at, if it was."""
    found = record.get("stability")
    if found is None:
        return "", ""
    if "problem" in found:
        return "not_converged", found["problem"]
    descents = record.get("descents", [])
    soft = weaknesses(found, descents, limits)
    if not (soft or record.get("new_at_rest", True) or limits.keep_known):
        return "known", told_descents(descents)
    if not soft and total_drop(descents) == 0:
        return "", ""
    if not soft:
        reason, detail = off_the_hull(record, judges, limits)
        return reason, f"{detail}, {told_descents(descents)}" if reason else ""
    if soft[0] == "vibration":
        reason, amount = (
            "dynamically_unstable",
            f"{found['lowest_frequency']:.2f} THz",
        )
    else:
        reason, amount = (
            "elastically_unstable",
            f"{found['lowest_stiffness']:.1f} GPa",
        )
    return reason, f"{amount}; {told_descents(descents)}" if descents else amount


def last_look(
    records: Sequence[dict], judges: Sequence[str], limits: Limits, pool: Pool
) -> list[tuple[str, str]]:
    """Reasons and details of examined crystals, best first, as `third_look`.

    Of two that have come to be one off a saddle, the second is a duplicate.
    """
    found = [third_look(record, judges, limits) for record in records]
    moved = [is_another(record.get("descents", [])) for record in records]
    if not any(moved):
        return found
    cells = [cell_of(read_structure(record["primitive"])) for record in records]
    formulas = [formula_key(cell.atom_types) for cell in cells]
    for i in range(len(records)):
        earlier = [
            (cells[j], cells[i])
            for j in range(i)
            if formulas[i] == formulas[j] and (moved[i] or moved[j]) and not found[j][0]
        ]
        alike = pool.map(is_same, earlier)
        if not found[i][0] and any(o.status == Status.OK and o.value for o in alike):
            found[i] = "duplicate", "at rest"
    return found


def is_flat(descent: dict) -> bool:
    """Whether there was as good as nothing to gain along a way that seemed downhill."""
    return descent["converged"] and descent["drop"] < MIN_DROP


def told_descents(descents: Sequence[dict]) -> str:
    """Where a crystal that is dropped has gone from the saddle that it stood on."""
    last, drop = descents[-1], 1000 * total_drop(descents)
    group = last["space_group"] or "no space group"
    end = "" if last["converged"] else ", not at rest"
    return f"off a saddle by {drop:.1f} meV/atom, to {group}{end}"


def is_another(descents: Sequence[dict]) -> bool:
    """Whether a crystal has come to rest as another one, by `StructureMatcher`."""
    return any(d["converged"] and not (d["same"] or is_flat(d)) for d in descents)


def total_drop(descents: Sequence[dict]) -> float:
    """How far a crystal has fallen, eV/atom; what is flat does not count."""
    return sum(d["drop"] for d in descents if not is_flat(d))


def weaknesses(stability: dict, descents: Sequence[dict], limits: Limits) -> list[str]:
    """Along what a crystal is not stable: a "vibration", a "strain".

    Not those along which it has nothing to gain, as its last `descents` have shown.
    """
    flat = set()
    for descent in descents:
        flat = flat | {descent["along"]} if is_flat(descent) else set()
    return [
        way
        for way, value, limit in (
            ("vibration", stability.get("lowest_frequency", 0.0), limits.min_frequency),
            ("strain", stability.get("lowest_stiffness", 0.0), limits.min_stiffness),
        )
        if value < limit and way not in flat
    ]


def funnel(reasons: Sequence[str]) -> dict[str, int]:
    """How many crystals are left after each question, all of them first."""
    dropped, left = Counter(reasons), len(reasons)
    counts = {"sampled": left}
    for reason in REASONS:
        left -= dropped[reason]
        counts[LEFT[reason]] = left
    return counts
