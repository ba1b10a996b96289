"""Conditions: what a crystal is asked to be, as a vector."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze
from pymatgen.core import Composition, Element

from chemeleon_jax.data.symmetry import (
    CRYSTAL_SYSTEMS,
    read_crystal_system,
    read_space_group,
)
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.layers import Mlp

COMPOSITION_WIDTH = 100  # one place per atomic number
WIDTHS = {
    "float": 1,
    "composition": COMPOSITION_WIDTH,
    "chemical_system": COMPOSITION_WIDTH,
    "space_group": 230,
    "crystal_system": len(CRYSTAL_SYSTEMS),
}


def input_width(spec: Mapping[str, Any]) -> int:
    """Length of the vector that a condition is preprocessed to."""
    kind = spec["kind"]
    return spec["num_classes"] if kind == "categorical" else WIDTHS[kind]


def preprocess(spec: Mapping[str, Any], values: Sequence) -> np.ndarray:
    """Condition values as vectors.

    Args:
      spec: `name`, `kind` ("float", "composition", "chemical_system", "space_group",
        "crystal_system", "categorical"), and for floats `mean` and `std`, for
        categories `num_classes`.
      values: B numbers, formulas ("LiMnO2"), systems ("Li-Mn-O"), space groups
        ("Fm-3m" or 225), crystal systems ("cubic") or class indices.

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
            elif spec["kind"] == "composition":
                reduced = Composition(value).get_reduced_composition_and_factor()[0]
                for element, fraction in reduced.fractional_composition.items():
                    row[element.Z] = fraction
            elif spec["kind"] == "chemical_system":
                row[[Element(symbol).Z for symbol in value.split("-")]] = 1.0
            else:
                row[_class_index(spec, value)] = 1.0
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"condition {spec['name']!r} ({spec['kind']}) cannot be {value!r}: "
                f"{error}"
            ) from error
    return vectors


def _class_index(spec: Mapping[str, Any], value) -> int:
    """Of a category, space group or crystal system, from 0."""
    if spec["kind"] == "crystal_system":
        return read_crystal_system(value)
    if spec["kind"] == "space_group":
        return read_space_group(value) - 1
    index, count = int(value), spec["num_classes"]
    if not 0 <= index < count:
        raise ValueError(f"there are 0 to {count - 1}")
    return index


def condition_vectors(
    specs: Sequence[Mapping[str, Any]],
    crystals: CrystalBatch,
    labels: Mapping[str, jax.Array],
) -> tuple[dict[str, jax.Array], jax.Array]:
    """What crystals of a data set would have been asked to be, inside jit.

    Args:
      specs: see `preprocess`.
      crystals: B crystals; composition and chemical system are read off them.
      labels: {name: [B]} floats and class indices, NaN where unknown; those of
        symmetry as `data.symmetry.with_symmetry_labels` finds them.

    Returns:
      {name: [B, in]}, and [B] True where all of a crystal's conditions are known.
    """
    chex.assert_rank(crystals.mask, 2, custom_message="mask [B, N]")
    chex.assert_equal_shape([crystals.atom_types, crystals.mask])
    types = jax.nn.one_hot(crystals.atom_types, COMPOSITION_WIDTH)
    counts = (types * crystals.mask[..., None]).sum(1)
    vectors, known = {}, jnp.ones(len(counts), bool)
    for spec in specs:
        name, kind = spec["name"], spec["kind"]
        if kind == "composition":
            vectors[name] = counts / counts.sum(-1, keepdims=True)
        elif kind == "chemical_system":
            vectors[name] = (counts > 0).astype(jnp.float32)
        else:
            present = ~jnp.isnan(labels[name])
            value = jnp.where(present, labels[name], 0.0)
            known &= present
            if kind == "float":
                vectors[name] = ((value - spec["mean"]) / spec["std"])[:, None]
            else:
                classes = input_width(spec)
                vectors[name] = jax.nn.one_hot(value.astype(jnp.int32), classes)
    return vectors, known


def drop_conditions(
    key: jax.Array, vectors: dict[str, jax.Array], rate: jax.Array | float
) -> dict[str, jax.Array]:
    """Drops each of several conditions at random, so that some can do without others.

    A share `rate` of the crystals loses a condition {name: [B, in]}, which is NaN then,
    each condition for itself. A single condition is left as it is.
    """
    chex.assert_rank(list(vectors.values()), 2, custom_message="conditions [B, in]")
    if len(vectors) == 1:
        return vectors
    keys = jax.random.split(key, len(vectors))
    return {
        name: jnp.where(jax.random.bernoulli(k, rate, (len(x), 1)), jnp.nan, x)
        for k, (name, x) in zip(keys, vectors.items(), strict=True)
    }


class ConditionEncoder(nn.Module):
    """Encodes named conditions, each of which may be dropped."""

    specs: Sequence[Mapping[str, Any]]  # see `preprocess`; the order matters
    width: int

    @nn.compact
    def __call__(self, vectors: dict[str, jax.Array], keep: jax.Array) -> jax.Array:
        """Encode preprocessed conditions.

        Args:
          vectors: {name: [B, in]}; a row of NaN is a condition that nobody asked for.
          keep: [B] bool; where False, none of the conditions counts. A learned null
            vector stands in for one that does not.

        Returns:
          [B, D]
        """
        chex.assert_rank(keep, 1, custom_message="keep [B]")
        chex.assert_equal_shape_prefix([keep, *vectors.values()], 1)
        encoded = []
        for spec in self.specs:
            name, width = spec["name"], input_width(spec)
            null = self.param(f"{name}_null", nn.initializers.zeros, (1, width))
            asked = keep[:, None] & ~jnp.isnan(vectors[name])
            vector = jnp.where(asked, vectors[name], null)
            encoded.append(Mlp(self.width, self.width, "silu", name=name)(vector))
        joined = jnp.concatenate(encoded, -1)
        return Mlp(self.width, self.width, "silu", name="joint")(joined)


def make_condition_encoder(config: Mapping[str, Any]) -> ConditionEncoder:
    """The encoder of a checkpoint's config: `specs` and `width`, made hashable."""
    return ConditionEncoder(
        tuple(freeze(dict(s)) for s in config["specs"]), config["width"]
    )


def with_more_conditions(
    params: Mapping[str, Any], known: Sequence[str], wanted: Sequence[str]
) -> dict[str, Any]:
    """An encoder's parameters with places for more conditions, which say nothing yet.

    Args:
      params: of a `ConditionEncoder`.
      known: names of its conditions, in their order.
      wanted: names of those of another encoder, `known` among them.

    Returns:
      The same parameters, but that the layer which joins the conditions takes all that
      are wanted: with zeros for those that are new.
    """
    joint = params["joint"]
    rows = np.split(np.asarray(joint["in"]["kernel"]), len(known))
    of_name = dict(zip(known, rows, strict=True))
    nothing = np.zeros_like(rows[0])
    kernel = np.concatenate([of_name.get(name, nothing) for name in wanted])
    return {**params, "joint": {**joint, "in": {**joint["in"], "kernel": kernel}}}


def without_conditions(
    params: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A conditional denoiser that nobody asks for anything, without its encoder.

    The encoding of nothing is one vector, added to that of the timestep: it becomes
    part of that layer's bias, and the outputs stay what they are. From parameters
    {"dit": ..., "condition": ...} and config, those of the unconditional model.
    """
    specs = config["condition"]["specs"]
    nothing = {s["name"]: jnp.zeros((1, input_width(s))) for s in specs}
    encode = jax.jit(make_condition_encoder(config["condition"]).apply)
    encoded = encode({"params": params["condition"]}, nothing, jnp.zeros(1, bool))
    dit = copy.deepcopy(params["dit"])
    dit["timestep"]["out"]["bias"] += np.asarray(encoded)[0]
    return {"dit": dit}, {**config, "condition": None}
