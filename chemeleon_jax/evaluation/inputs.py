"""The known crystals that others are compared with."""

import logging

import numpy as np

from chemeleon_jax.data import crystals, dataset
from chemeleon_jax.data.readers.content import kind_of
from chemeleon_jax.data.readers.files import read_crystals
from chemeleon_jax.data.readers.item import Item
from chemeleon_jax.errors import UserError

logger = logging.getLogger(__name__)


def load_reference(source: str) -> dataset.Dataset:
    """The known crystals: "mp_mini", a CSV or npz data set, or any file of crystals.

    Raises:
      UserError: it cannot be read.
    """
    if source == "mp_mini" or kind_of(source) in (".csv", ".npz"):
        return dataset.load_dataset(source)
    items = read_crystals(source)
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
