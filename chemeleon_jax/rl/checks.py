"""Checks of an RL config, before anything is loaded or compiled."""

import math
from typing import Any

from chemeleon_jax.errors import UserError, require, require_each
from chemeleon_jax.rewards.config import active_components, check_reward
from chemeleon_jax.rewards.judges import split_names
from chemeleon_jax.rl.config import grpo_config
from chemeleon_jax.runs.mirror import import_wandb

_CHOICES = {
    "precision": ("default", "float32", "bfloat16"),
    "sampling.sampler": ("ddim", "ddpm"),
}
_AT_LEAST_ONE = (
    "num_iterations",
    "checkpoint_every",
    "max_skipped",
    "validation_samples",
    "rl.num_group_samples",
    "rl.window_iterations",
    "data.batch_size",
    "data.max_atoms",
    "fsdp",
)
_NOT_NEGATIVE = (
    "validate_every",
    "validation_pictures",
    "rl.grad_accum",
    "rl.num_train_steps",
    "rl.window",
    "judge.relax_steps",
    "sampling.cfg_scale",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
)
_POSITIVE = (
    "rl.memory_budget",
    "alarms.kl_div",
    "alarms.ratio_max",
    "alarms.element_growth",
    "alarms.element_share",
    "alarms.diluted",
    "alarms.judge_gap",
    "optimizer.lr",
    "optimizer.max_grad_norm",
)

_FINITE = ("optimizer.lr", "optimizer.weight_decay", "reward.eps")


def check_rl(config: Any, num_devices: int) -> None:
    """Checks the values of an RL config, before anything is loaded or compiled.

    Raises:
      UserError: one is out of range, or they do not fit together. It names the fields.
    """
    for field, choices in _CHOICES.items():
        require(config, field, lambda x, c=choices: x in c, f"one of {choices}")
    require_each(config, _AT_LEAST_ONE, lambda x: x >= 1, "at least 1")
    require_each(config, _NOT_NEGATIVE, lambda x: x >= 0, "0 or more")
    require_each(config, _POSITIVE, lambda x: x > 0, "above 0")
    require_each(config, _FINITE, math.isfinite, "a finite number")
    # Keys are of 32 bits; validation and base have the two seeds after it.
    require(config, "seed", lambda x: 0 <= x < 2**32 - 2, "from 0 to 2^32 - 3")
    grpo_config(config.rl, 1)
    require(config, "rl.num_group_samples", lambda x: x >= 2, "at least 2, a group")
    _check_replay(config, num_devices)
    _check_budget(config)
    if config.sampling.decoder_guidance is not None:
        rule = "none where config.rl.objective is grpo, whose steps are trained on"
        grpo = config.rl.objective == "grpo"
        require(config, "sampling.decoder_guidance", lambda x: not grpo, rule)
        require(config, "sampling.decoder_guidance", lambda x: x >= 0, "0 or more")
    if config.rl.objective == "grpo":
        require(config, "sampling.eta", lambda x: 0 < x <= 1, "above 0, at most 1")
    else:
        require(config, "sampling.eta", lambda x: 0 <= x <= 1, "from 0 to 1")
    require(
        config, "sampling.sampling_steps", lambda x: 2 <= x <= 1000, "from 2 to 1000"
    )
    _check_step_choice(config)
    check_reward(config)
    _check_judge(config)
    if config.tracking.wandb:
        import_wandb()
    check_divisible(
        config.data.batch_size,
        config.rl.num_group_samples,
        config.rl.num_inner_batch,
        max(config.rl.grad_accum, 1),
        num_devices,
    )


def _check_judge(config: Any) -> None:
    if config.judge.max_gap is not None:
        require(config, "judge.max_gap", lambda x: x > 0, "above 0")
        rule = "above 0 where config.judge.max_gap is set: validations ask the judge"
        require(config, "validate_every", lambda x: x > 0, rule)
    if not config.judge.potential:
        rule = "none where config.judge.potential is empty"
        require(config, "judge.max_gap", lambda x: x is None, rule)
        return
    energy = active_components(config).get("energy")
    if energy:
        asked = split_names(energy["potentials"] or config.reward.potential)
        networks = {_network(name) for name in asked}
        rule = f"a potential that the reward does not ask; it asks {', '.join(asked)}"

        def is_another(judge):
            return not networks & {_network(name) for name in split_names(judge)}

        require(config, "judge.potential", is_another, rule)


def _network(potential: str) -> str:
    """A potential's name without what is said of its corrections."""
    return potential.removesuffix(":uncorrected")


def _check_replay(config: Any, num_devices: int) -> None:
    field = "rl.replay"
    require(config, f"{field}.crystals", lambda x: x >= 0, "0 or more")
    if not config.rl.replay.crystals:
        return
    if config.rl.objective == "grpo":
        rule = "0 where config.rl.objective is grpo, which needs their trajectories"
        require(config, f"{field}.crystals", lambda x: x == 0, rule)
    parts = config.rl.num_inner_batch * max(config.rl.grad_accum, 1) * num_devices
    rule = (
        "a multiple of config.rl.num_inner_batch * config.rl.grad_accum * devices = "
        f"{parts}"
    )
    require(config, f"{field}.crystals", lambda x: x % parts == 0, rule)
    for name in ("iterations", "per_formula"):
        require(config, f"{field}.{name}", lambda x: x >= 1, "at least 1")
    require(config, f"{field}.share", lambda x: 0 < x <= 1, "above 0, at most 1")


def _check_budget(config: Any) -> None:
    groups, of_each = config.data.batch_size, config.rl.num_group_samples
    rule = (
        f"0, or a multiple of config.data.batch_size = {groups} from {2 * groups} to "
        f"{groups * of_each}"
    )

    def holds(budget):
        return not budget or 2 * groups <= budget <= groups * of_each

    require(config, "reward.budget_per_iteration", holds, rule)
    require(config, "reward.budget_per_iteration", lambda x: x % groups == 0, rule)
    if config.reward.budget_per_iteration and config.rl.replay.crystals:
        rule = "0 where config.reward.budget_per_iteration leaves crystals unscored"
        require(config, "rl.replay.crystals", lambda x: x == 0, rule)


def _check_step_choice(config: Any) -> None:
    if config.rl.objective != "grpo":
        for field in ("rl.num_train_steps", "rl.window"):
            rule = "0 where config.rl.objective is not grpo: no steps are trained on"
            require(config, field, lambda x: x == 0, rule)
    recorded = config.sampling.sampling_steps - (config.sampling.sampler == "ddim")
    for field in ("rl.num_train_steps", "rl.window"):
        rule = f"at most {recorded}, the steps that have a density"
        require(config, field, lambda x: x <= recorded, rule)
    if not config.rl.window:
        return
    rule = "0 where config.rl.window chooses the steps"
    require(config, "rl.num_train_steps", lambda x: x == 0, rule)
    rule = "'ddim' for config.rl.window: DDPM has no deterministic steps"
    require(config, "sampling.sampler", lambda x: x == "ddim", rule)


def check_divisible(
    batch_size: int,
    num_group_samples: int,
    num_inner_batch: int,
    grad_accum: int,
    num_devices: int,
) -> None:
    """Checks that an iteration's crystals split into equal parts, and those by device.

    Raises:
      UserError: they do not. The message names the config fields.
    """
    crystals = batch_size * num_group_samples
    parts = num_inner_batch * grad_accum * num_devices
    if crystals % parts:
        raise UserError(
            f"config.data.batch_size * config.rl.num_group_samples = {batch_size} * "
            f"{num_group_samples} = {crystals} crystals cannot be cut into "
            f"config.rl.num_inner_batch * config.rl.grad_accum * devices = "
            f"{num_inner_batch} * {grad_accum} * {num_devices} = {parts} equal parts: "
            f"make the first product a multiple of {parts}"
        )
