"""What crystals are asked for: drawn from a data set, or by hand."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.dataset import MP20_ATOM_COUNTS, load_dataset
from chemeleon_jax.data.formula import parse_chemical_system, parse_composition
from chemeleon_jax.data.symmetry import with_symmetry_labels
from chemeleon_jax.errors import UserError
from chemeleon_jax.models.condition import (
    condition_vectors,
    input_width,
    preprocess,
)
from chemeleon_jax.models.generator import Generator
from chemeleon_jax.runs.files import user_path


def make_prompts(
    model: Generator, source: str, max_atoms: int, compositions: str = ""
) -> Callable:
    """What the policy is asked for: (key, groups) -> num_atoms [G], conditions.

    Atom counts, and with a conditional model its conditions, are those of crystals
    drawn from a data set, of at most `max_atoms` atoms. Of "mp_20" only the histogram
    of atom counts is known here.

    Args:
      model: what conditions it takes.
      source: the data set.
      max_atoms: of a crystal.
      compositions: that take the place of the data set's: see `prompts_of_formulas`.

    Raises:
      UserError: no crystal is left, or a conditional model lacks its conditions.
    """
    if compositions:
        specs = model.condition.specs if model.condition is not None else ()
        formulas = read_formulas(compositions)
        shares = atom_count_shares(source, max_atoms)
        return prompts_of_formulas(specs, formulas, shares)
    if source == "mp_20":
        if model.condition is not None:
            raise UserError(
                "config.data.dataset = 'mp_20': gives atom counts only, and this model "
                "takes conditions; name a data set that has them"
            )
        shares = jnp.asarray(MP20_ATOM_COUNTS[:max_atoms])
        counts, shares = jnp.arange(1, len(shares) + 1), shares / shares.sum()
        return lambda key, groups: (
            jax.random.choice(key, counts, (groups,), p=shares),
            None,
        )
    dataset = load_dataset(source)
    num_atoms, condition = jnp.asarray(dataset.crystals.mask.sum(-1)), None
    if model.condition is not None:
        dataset = with_symmetry_labels(dataset, model.condition.specs)
        labels = {
            spec["name"]: dataset.label(spec["name"], f"config.data.dataset = {source}")
            for spec in model.condition.specs
            if spec["kind"] not in ("composition", "chemical_system")
        }
        crystals = jax.tree.map(jnp.asarray, dataset.crystals)
        condition, known = condition_vectors(model.condition.specs, crystals, labels)
        num_atoms, condition = jax.tree.map(lambda x: x[known], (num_atoms, condition))
    small = num_atoms <= max_atoms
    num_atoms, condition = jax.tree.map(lambda x: x[small], (num_atoms, condition))
    if not len(num_atoms):
        raise UserError(
            f"config.data.dataset = {source!r}: has no crystal of at most "
            f"config.data.max_atoms = {max_atoms} atoms"
        )

    def draw(key: jax.Array, groups: int):
        picked = jax.random.randint(key, (groups,), 0, len(num_atoms))
        return jax.tree.map(lambda x: x[picked], (num_atoms, condition))

    return draw


def read_formulas(compositions: str) -> list[tuple[str, list[int]]]:
    """Formulas with commas between, or the lines of a file.

    Each with its atom counts, if any follow it: "CaTiO3 5 10".

    Raises:
      UserError: there are none, or the file cannot be read.
    """
    field, found = "config.data.compositions", compositions
    if Path(compositions).suffix[1:].isalpha():  # .txt; not the .5 of Li0.5MnO2
        try:
            found = user_path(compositions).read_text().replace("\n", ",")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{field} = {compositions}: {error}") from error
    formulas = []
    for words in filter(None, map(str.split, found.split(","))):
        parts = [*takewhile(lambda word: not word.isdecimal(), words)]
        counts = words[len(parts) :]
        if not parts or not all(map(str.isdecimal, counts)):
            raise UserError(
                f"{field} = {compositions}: '{' '.join(words)}' has no formula with "
                "its atom counts behind it, as in CaTiO3 5 10"
            )
        formulas.append(("".join(parts), [int(n) for n in counts]))
    if not formulas:
        raise UserError(f"{field} = {compositions}: holds no formula")
    return formulas


def prompts_of_formulas(
    specs: Sequence[Mapping[str, Any]],
    formulas: Sequence[tuple[str, list[int]]],
    shares: np.ndarray,
) -> Callable:
    """What a conditional model is asked for: each group one of the formulas.

    A formula is as likely as any other; none comes again before all have come. Its atom
    counts are those that are named with it, or that it allows, in the shares [N] of 1,
    2, ..., N atoms, see `restrict_atom_counts`.

    Raises:
      UserError: a formula cannot be read, has too many atoms, or the model does not
        take compositions.
    """
    if not any(spec["kind"] == "composition" for spec in specs):
        raise UserError(
            "config.data.compositions: the model of config.ldm_ckpt_path does not "
            "take a composition"
        )
    asked = []
    for formula, counts in formulas:
        by_kind, _ = condition_values(formula, None, {})
        allowed = restrict_atom_counts(shares, counts, formula, None)
        asked.append((condition_vectors_from_cli(specs, by_kind, {}), allowed))
    conditions = jax.tree.map(lambda *x: jnp.concatenate(x), *(c for c, _ in asked))
    logits = jnp.log(jnp.asarray(np.stack([allowed for _, allowed in asked])))

    def draw(key: jax.Array, groups: int):
        rounds = -(-groups // len(asked))
        keys = jax.random.split(key, rounds)
        order = jax.vmap(lambda key: jax.random.permutation(key, len(asked)))(keys)
        picked = order.ravel()[:groups]
        own = jax.random.fold_in(key, rounds)  # none of `keys`
        counts = jax.random.categorical(own, logits[picked])
        return counts + 1, jax.tree.map(lambda x: x[picked], conditions)

    return draw


def asked_fractions(
    model: Generator, condition: Mapping[str, jax.Array] | None
) -> np.ndarray | None:
    """The compositions that crystals are asked for, [B, 100]; None without any."""
    if condition is None:
        return None
    for spec in model.condition.specs:
        if spec["kind"] == "composition":
            return np.asarray(condition[spec["name"]])
    return None


def condition_values(
    composition: str | None, chemical_system: str | None, named: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """What a user asks for, as text: formulas by kind of condition, the rest by name.

    A composition implies its chemical system.

    Raises:
      UserError: a value cannot be read, or two of them contradict each other.
    """
    by_kind = {}
    if chemical_system is not None:
        by_kind["chemical_system"] = "-".join(
            sorted(parse_chemical_system(chemical_system))
        )
    if composition is not None:
        atoms, _ = parse_composition(composition)
        implied = "-".join(sorted(e.symbol for e in atoms))
        if by_kind.setdefault("chemical_system", implied) != implied:
            raise UserError(
                f"--composition={composition} --chemical_system={chemical_system}: "
                "their elements differ"
            )
        by_kind["composition"] = atoms.formula.replace(" ", "")
    return by_kind, {name: str(value) for name, value in named.items()}


def condition_vectors_from_cli(
    specs: Sequence[Mapping[str, Any]],
    by_kind: Mapping[str, str],
    by_name: Mapping[str, str],
) -> dict[str, np.ndarray] | None:
    """Conditions as the model takes them, {name: [1, in]}, NaN where not asked for.

    Of the specs of the model's conditions, see `models.condition.preprocess`, and of
    what `condition_values` gave. None for an unconditional model, which has no specs.

    Raises:
      UserError: the model does not take what is asked for.
    """
    known = {spec["name"]: spec for spec in specs}
    kinds = {spec["kind"] for spec in specs}
    takes = ", ".join(f"{s['name']} ({s['kind']})" for s in specs) or "none at all"
    for name in by_name:
        if name not in known:
            raise UserError(
                f"--condition {name}: the model has no such condition; it takes {takes}"
            )
        if (kind := known[name]["kind"]) in ("composition", "chemical_system"):
            # These say how many atoms there can be, too.
            raise UserError(f"--condition {name}: give it as --{kind}")
    # The chemical system that a composition implies need not be known to the model.
    for kind in ("composition",) if "composition" in by_kind else by_kind:
        if kind not in kinds:
            raise UserError(f"--{kind}: the model does not take one; it takes {takes}")
    if not specs:
        return None
    vectors = {}
    for name, spec in known.items():
        value = by_name.get(name, by_kind.get(spec["kind"]))
        if value is None:
            vectors[name] = np.full((1, input_width(spec)), np.nan, np.float32)
            continue
        try:
            vectors[name] = preprocess(spec, [_read_value(spec, value)])
        except ValueError as error:
            raise UserError(str(error)) from error
    return vectors


def _read_value(spec: Mapping[str, Any], value: str):
    if spec["kind"] in ("composition", "chemical_system"):
        return value  # as `condition_values` wrote it
    if spec["kind"] in ("space_group", "crystal_system"):
        return value.strip()
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"condition {spec['name']!r} cannot be {value!r}: not a finite number"
        )
    if spec["kind"] == "categorical" and not 0 <= number < spec["num_classes"]:
        raise ValueError(
            f"condition {spec['name']!r} cannot be {value!r}: its classes are 0 to "
            f"{spec['num_classes'] - 1}"
        )
    return number


def atom_count_shares(source: str, max_atoms: int) -> np.ndarray:
    """Share of crystals with 1, 2, ..., max_atoms atoms in a data set, [max_atoms].

    Of "mp_20" the histogram alone is known; for others, see `load_dataset`.
    """
    if source == "mp_20":
        shares = MP20_ATOM_COUNTS
    else:
        shares = load_dataset(source).atom_count_histogram
    return np.resize(np.append(shares, np.zeros(max_atoms)), max_atoms)


def restrict_atom_counts(
    shares: np.ndarray,
    num_atoms: Sequence[int] | None,
    composition: str | None,
    chemical_system: str | None,
) -> np.ndarray:
    """Of the shares [N] of 1, 2, ..., N atoms, those that what is asked for allows.

    Those named by hand, in equal shares; else the data set's, of which a reduced
    formula leaves its multiples, a multiple of it exactly its own atoms, and a chemical
    system those with room for each element. -> [N], adding up to 1.

    Raises:
      UserError: nothing is left.
    """
    counts = np.arange(1, len(shares) + 1)
    wrong = [n for n in num_atoms or () if not 1 <= n <= len(shares)]
    if wrong:
        raise UserError(f"--num_atoms={wrong[0]}: must be from 1 to {len(shares)}")
    if num_atoms:
        shares = np.isin(counts, num_atoms).astype(float)
    allowed, asked = np.ones(len(shares), bool), ""
    if composition is not None:
        atoms, factor = parse_composition(composition)
        unit = round(atoms.num_atoms)
        exact = factor > 1 and not num_atoms
        allowed = counts == unit if exact else counts % (unit // factor) == 0
        asked = f"--composition={composition}: "
    elif chemical_system is not None:
        allowed = counts >= len(parse_chemical_system(chemical_system))
        asked = f"--chemical_system={chemical_system}: "
    if num_atoms and not allowed[np.array(num_atoms) - 1].all():
        bad = next(n for n in num_atoms if not allowed[n - 1])
        raise UserError(f"{asked}a crystal of it cannot have --num_atoms={bad}")
    if not allowed.any():
        raise UserError(f"{asked}has more than {len(shares)} atoms, the most possible")
    kept = np.where(allowed, shares, 0.0)
    kept = kept if kept.sum() > 0 else allowed.astype(float)
    return kept / kept.sum()


def draw_atom_counts(key: jax.Array, count: int, shares: np.ndarray) -> np.ndarray:
    """Atom counts of `count` crystals, [count]; the i-th depends on key and i alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    draw = jax.vmap(lambda k: jax.random.choice(k, len(shares), p=jnp.asarray(shares)))
    return np.asarray(jax.jit(draw)(keys)) + 1
