"""Conditions: what a crystal is asked to be, as a vector (Chemeleon2, section 3)."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from pymatgen.core import Composition, Element

from chemeleon_jax.models.layers import Mlp

COMPOSITION_WIDTH = 100  # one place per atomic number


def input_width(spec: Mapping[str, Any]) -> int:
    """Length of the vector that a condition is preprocessed to."""
    if spec["kind"] == "categorical":
        return spec["num_classes"]
    return 1 if spec["kind"] == "float" else COMPOSITION_WIDTH


def preprocess(spec: Mapping[str, Any], values: Sequence) -> np.ndarray:
    """Condition values as vectors.

    Args:
      spec: `name`, `kind` ("float", "composition", "chemical_system", "categorical"),
        and for floats `mean` and `std`, for categories `num_classes`.
      values: B numbers, formulas ("LiMnO2"), systems ("Li-Mn-O") or class indices.

    Returns:
      [B, in] float32.

    Raises:
      ValueError: a value cannot be read; the message names it.
    """
    vectors = np.zeros((len(values), input_width(spec)), np.float32)
    for row, value in zip(vectors, values, strict=True):
        try:
            if spec["kind"] == "float":
                row[0] = (float(value) - spec["mean"]) / spec["std"]
            elif spec["kind"] == "categorical":
                row[int(value)] = 1.0
            elif spec["kind"] == "composition":
                reduced = Composition(value).get_reduced_composition_and_factor()[0]
                for element, fraction in reduced.fractional_composition.items():
                    row[element.Z] = fraction
            else:
                row[[Element(symbol).Z for symbol in value.split("-")]] = 1.0
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"condition {spec['name']!r} ({spec['kind']}) cannot be {value!r}: "
                f"{error}"
            ) from error
    return vectors


class ConditionEncoder(nn.Module):
    """Encodes named conditions, each of which may be dropped."""

    specs: Sequence[Mapping[str, Any]]  # see `preprocess`; the order matters
    width: int

    @nn.compact
    def __call__(self, vectors: dict[str, jax.Array], keep: jax.Array) -> jax.Array:
        """Encode preprocessed conditions.

        Args:
          vectors: {name: [B, in]}.
          keep: [B] bool; where False, the learned null vector stands in for the input.

        Returns:
          [B, D]
        """
        encoded = []
        for spec in self.specs:
            name, width = spec["name"], input_width(spec)
            null = self.param(f"{name}_null", nn.initializers.zeros, (1, width))
            vector = jnp.where(keep[:, None], vectors[name], null)
            encoded.append(Mlp(self.width, self.width, "silu", name=name)(vector))
        joined = jnp.concatenate(encoded, -1)
        return Mlp(self.width, self.width, "silu", name="joint")(joined)
