"""The components by the name that a config gives."""

from collections.abc import Callable

from chemeleon_jax.rewards.analysis import Component, Context
from chemeleon_jax.rewards.composition import (
    asked_composition_component,
    uniqueness_component,
)
from chemeleon_jax.rewards.creativity import creativity_component
from chemeleon_jax.rewards.diversity import (
    composition_diversity_component,
    structure_diversity_component,
)
from chemeleon_jax.rewards.drift import element_kl_component
from chemeleon_jax.rewards.energy import displacement_component, energy_component
from chemeleon_jax.rewards.predictor import predictor_component
from chemeleon_jax.rewards.symmetry import symmetry_component
from chemeleon_jax.workers.custom import BATCH_TIME_LIMIT, CustomReward


def custom_component(
    context: Context, *, function: str, time_limit: float = BATCH_TIME_LIMIT
) -> Component:
    """The user's own function of crystals, see `CustomReward`."""
    call = CustomReward(function, context.pool, time_limit=time_limit)
    return Component(
        lambda batch: call(batch.cells, batch.valid),
        custom=call,
        of_batch=True,  # a user's function may compare crystals
    )


# A component of any other name is a custom one if it has a `function`.
COMPONENTS: dict[str, Callable[..., Component]] = {
    "creativity": creativity_component,
    "energy": energy_component,
    "displacement": displacement_component,
    "uniqueness": uniqueness_component,
    "asked_composition": asked_composition_component,
    "structure_diversity": structure_diversity_component,
    "composition_diversity": composition_diversity_component,
    "element_kl": element_kl_component,
    "symmetry": symmetry_component,
    "predictor": predictor_component,
    "custom": custom_component,
}
