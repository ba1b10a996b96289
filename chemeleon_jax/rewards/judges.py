"""The potentials that judge crystals, and the one that relaxes them, by a config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.errors import UserError
from chemeleon_jax.potentials.hull import Hull, load_hull
from chemeleon_jax.potentials.hull_file import read_hull_file
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.potentials.types import Potential
from chemeleon_jax.rewards.relaxation import find_energies, relax_valid

# Fields of config.reward.components.energy that are not the component's alone.
FIELDS = ("potentials", "combine", "relax_steps", "relax_with")


@dataclass(frozen=True, eq=False)
class Judges:
    """Potentials with their hulls, and how crystals are relaxed before they judge."""

    energies: Callable | None = None  # `find_energies` of these potentials
    hulls: dict[str, Hull] = field(default_factory=dict)  # by name
    combine: str = "max"  # see `combine_opinions`
    relax: Callable | None = None  # `relax_valid`, if they are relaxed


def load_judges(
    config: Mapping[str, Any],
    dataset: Dataset,
    *,
    potential: Potential | None = None,
    hull: Hull | None = None,
) -> Judges:
    """The judges of the `reward` section of a config; none where it has no hull.

    Args:
      config: of `make_reward`.
      dataset: of the references.
      potential: in place of the first that the config names.
      hull: of this potential.

    Raises:
      UserError: there is no such potential, it cannot relax, or a file holds the hull
        of one potential and several judge.
    """
    energy = config["components"].get("energy") or {}
    names = split_names(energy.get("potentials") or config.get("potential", "chgnet"))
    if config.get("hull_file") and len(names) > 1:
        raise UserError(
            f"config.reward.hull_file = {config['hull_file']} holds energies of one "
            "potential, and several judge: name that one as "
            "config.reward.components.energy.potentials"
        )
    potentials = [potential or load_potential(names[0])]
    potentials += [load_potential(name) for name in names[1:]]
    steps = energy.get("relax_steps") or 0
    needed = bool(energy.get("weight") or steps)
    hull = hull or _main_hull(config, potentials[0], dataset, needed=needed)
    if hull is None:
        return Judges()
    hulls = {potentials[0].name: hull}
    for other in potentials[1:]:
        hulls[other.name] = _hull(config, other, dataset)
    relaxer = relax = None
    if steps:
        relaxer = _relaxer(energy.get("relax_with") or "", potentials)
        own = hulls.get(relaxer.name) or _hull(config, relaxer, dataset)
        relax = partial(relax_valid, potential=relaxer, hull=own, steps=steps)
    energies = partial(find_energies, potentials=tuple(potentials), relaxer=relaxer)
    return Judges(energies, hulls, energy.get("combine") or "max", relax)


def split_names(names: str) -> list[str]:
    """Potentials named one after another, with commas between.

    Raises:
      UserError: none is named, or one twice.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    if not found or len(set(found)) < len(found):
        raise UserError(
            f"config.reward.components.energy.potentials = {names!r}: name each "
            "potential once, with commas between"
        )
    return found


def _relaxer(name: str, potentials: list[Potential]) -> Potential:
    known = {potential.name: potential for potential in potentials}
    relaxer = known.get(name) or (load_potential(name) if name else potentials[0])
    if relaxer.name.startswith("ase:"):
        raise UserError(
            f"config.reward.components.energy.relax_with: {relaxer.name} is an ASE "
            "calculator, which has no gradients here; relax with a potential in JAX, "
            "chgnet for example, and let it judge"
        )
    return relaxer


def _main_hull(config, potential, dataset, *, needed: bool) -> Hull | None:
    """The hull of the user's own entries, else of the reference data set.

    Where it would have to be computed and nobody needs it, there is none.
    """
    if config.get("hull_file"):
        return read_hull_file(config["hull_file"], potential)
    if config.get("reference_dataset", "mp_mini") == "mp_mini" or needed:
        return _hull(config, potential, dataset)
    return None


def _hull(config, potential: Potential, dataset: Dataset) -> Hull:
    """The hull of the reference data set by a potential."""
    embedded = config.get("reference_dataset", "mp_mini") == "mp_mini"
    return load_hull(potential, None if embedded else dataset)
