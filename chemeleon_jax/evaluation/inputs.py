"""The sets of crystals, and the known ones that they are compared with."""

import logging
from pathlib import Path

import numpy as np

from chemeleon_jax.data import crystals, dataset
from chemeleon_jax.data.readers.content import kind_of, stem_of
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.data.readers.item import Item, unreadable
from chemeleon_jax.errors import UserError

MAX_ATOMS = 1000  # of a crystal; all pairs are looked at

logger = logging.getLogger(__name__)


def load_reference(source: str) -> dataset.Dataset:
    """The known crystals: "mp_mini", a CSV or npz data set, or any file of crystals.

    Raises:
      UserError: it cannot be read.
    """
    if source == "mp_mini" or kind_of(source) in (".csv", ".npz"):
        return dataset.load_dataset(source)
    return known_of(read_crystals(source), source)


def known_of(items: list[Item], source: str) -> dataset.Dataset:
    """Known crystals that a user gives, as a data set; the others are warned of.

    Raises:
      UserError: none of them is a crystal.
    """
    known = [item for item in items if item.structure is not None]
    warn_of_unreadable(source, items)
    if not known:
        raise UserError(
            f"--reference={source}: no readable crystal in it; the first: "
            f"{items[0].name}: {items[0].problem}"
        )
    batch = crystals.from_structures([item.structure for item in known])
    ids = np.array([item.name for item in known])
    return dataset.Dataset(batch, {}, ids, np.zeros(len(ids), np.int8))


def read_set(source: Path) -> list[Item]:
    """The crystals of one set; those of too many atoms count as unreadable."""
    items = [of_possible_size(item) for item in read_crystals(source)]
    warn_of_unreadable(source, items)
    return items


def of_possible_size(item: Item) -> Item:
    """The item; of more than `MAX_ATOMS` atoms it counts as unreadable."""
    if item.structure is None or len(item.structure) <= MAX_ATOMS:
        return item
    return unreadable(f"more than {MAX_ATOMS} atoms", item.name)


def warn_of_unreadable(source, items: list[Item]) -> None:
    """Says how many crystals cannot be read, and of the first ones why."""
    bad = [item for item in items if item.problem.startswith("unreadable")]
    if bad:
        first = "; ".join(f"{i.name}: {i.problem}" for i in bad[:3])
        more = "; ..." if len(bad) > 3 else ""
        logger.warning(
            "%s: %d of %d crystals cannot be read: %s%s",
            *(source, len(bad), len(items), first, more),
        )


def find_sets(paths: list[Path], out: Path | None) -> dict[Path, Path]:
    """Each set of crystals, bases of sampled ones included, and where its results go.

    Raises:
      UserError: two sets would have their results in one place, or one in itself.
    """
    sets = list(dict.fromkeys(paths))
    sets += [p / "base" for p in paths if (p / "base" / "crystals.jsonl").is_file()]
    sets = list(dict.fromkeys(sets))
    if out is None:
        places = [(p if p.is_dir() else p.parent) / "evaluation" for p in sets]
    elif len(sets) == 1:
        places = [out]
    else:
        names = [_name_of_set(path.resolve()) for path in sets]
        places = [out / name for name in names]
    if len(set(places)) < len(places):
        twice = next(p for p in places if places.count(p) > 1)
        raise UserError(
            f"two sets of crystals would be evaluated in {twice}: evaluate them one by "
            "one, each with its own --out"
        )
    for source, place in zip(sets, places, strict=True):
        check_place(source, place)
    return dict(zip(sets, places, strict=True))


def check_place(source: Path, out: Path) -> None:
    """Checks that a folder is not judged into itself.

    Raises:
      UserError: it is; its results would be read as crystals the next time.
    """
    if source.resolve() == out.resolve():
        raise UserError(
            f"--out={out}: is the folder of the crystals, where results would be read "
            "as crystals the next time; give another one"
        )


def _name_of_set(path: Path) -> str:
    if path.name == "base":
        return f"{path.parent.name}_base"
    return path.name if path.is_dir() else stem_of(path)
