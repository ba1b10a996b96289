"""What a generator is asked for: checked, and its atom counts drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from chemeleon_jax.data.templates import AskedSymmetry
from chemeleon_jax.data.types import SymmetryTemplate
from chemeleon_jax.errors import UserError

# How a model samples where neither it nor a request says so.
DEFAULTS = {
    "sampler": "ddim",
    "sampling_steps": 50,
    "eta": 1.0,
    "cfg_scale": 2.0,
    "decoder_guidance": 6.0,
}
_BOUNDS = (
    ("num_samples", 1, 1e6),
    ("batch_size", 1, 1e9),
    ("seed", 0, 2**32 - 1),  # a key of JAX has no room for more
    ("sampling_steps", 1, 1e6),
    ("eta", 0, 1),
    ("cfg_scale", 0, 1e6),
    ("decoder_guidance", 0, 1e6),
)
_WHOLE = ("num_samples", "batch_size", "seed")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What crystals are asked for; None where the model's own habit will do.

    Raises:
      UserError: a number is out of range.
    """

    num_samples: int
    seed: int = 0
    composition: str | None = None  # a formula
    chemical_system: str | None = None  # such as Li-Mn-O
    space_group: str | None = None  # international symbol, number, or "any"
    crystal_system: str | None = None  # such as cubic
    conditions: Mapping[str, Any] = field(default_factory=dict)  # by name
    num_atoms: Sequence[int] | None = None  # per crystal, in equal shares
    dataset: str | None = None  # whose atom counts are drawn
    sampler: str | None = None  # ddim, ddpm
    sampling_steps: int | None = None
    eta: float | None = None  # noise of DDIM
    cfg_scale: float | None = None  # of conditional sampling
    decoder_guidance: float | None = None  # towards the elements
    batch_size: int | None = None  # crystals at once; None: what fits

    def __post_init__(self):
        """Checks the numbers."""
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"--{name}={value}: must be from {low} to {high:g}")
        counts = () if self.num_atoms is None else self.num_atoms
        whole = [(name, getattr(self, name)) for name in _WHOLE]
        for name, value in (*whole, *(("num_atoms", count) for count in counts)):
            if value is not None and value != int(value):
                raise UserError(f"--{name}={value}: must be a whole number")
        if self.num_atoms is not None and not len(self.num_atoms):
            raise UserError("--num_atoms: names no count")

    @property
    def symmetry(self) -> AskedSymmetry | None:
        """The symmetry asked for, and the elements that should have it, or None."""
        if self.space_group is None and self.crystal_system is None:
            return None
        return AskedSymmetry(*(getattr(self, name) for name in AskedSymmetry._fields))

    def settings(
        self, own: Mapping[str, Any], *, guided: bool, elements: bool
    ) -> dict[str, Any]:
        """How to sample: as asked, else as a model does by itself, else `DEFAULTS`.

        The crystals are `guided` if anything is asked of them, and `elements` says
        whether that is a composition or a chemical system.

        Raises:
          UserError: guidance without a condition.
        """
        settings = DEFAULTS | {"precision": "default"}
        settings |= {name: value for name, value in own.items() if value is not None}
        given = {name: getattr(self, name) for name in DEFAULTS}
        settings |= {name: value for name, value in given.items() if value is not None}
        if not guided:
            if self.cfg_scale is not None:
                raise UserError(
                    "--cfg_scale: nothing to guide to; give --composition, "
                    "--chemical_system or --condition too"
                )
            settings["cfg_scale"] = None
        if elements and self.symmetry:
            if self.decoder_guidance is not None:
                raise UserError(
                    "--decoder_guidance: not with --space_group or --crystal_system, "
                    "where atoms have the elements asked for anyway"
                )
            settings["decoder_guidance"] = None
        if not elements:
            if self.decoder_guidance is not None:
                raise UserError(
                    "--decoder_guidance: no elements to guide to; give --composition "
                    "or --chemical_system too"
                )
            settings["decoder_guidance"] = None
        counts = list(self.num_atoms) if self.num_atoms is not None else None
        return settings | {"num_atoms": counts}


class Plan(NamedTuple):
    """All that n crystals depend on, but for the model."""

    key: jax.Array  # crystal i draws from fold_in(key, i)
    num_atoms: np.ndarray  # [n]
    condition: dict[str, np.ndarray] | None  # of all of them, {name: [1, in]}
    settings: dict[str, Any]  # how to sample, JSON values
    template: SymmetryTemplate | None = None  # [n], of symmetric crystals
