"""Configs of RL runs: every field, its meaning and its presets.

`mini` is for the embedded model on two CPU cores; `unrelaxed` is the same with a reward
of crystals as they are generated; `mp_20` and `alex_mp_20` are the setting of the
Chemeleon2 paper (arXiv:2511.07158) on the released models, for a GPU; `compat` is
`mp_20` with nothing that the paper's own code does not do.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from chemeleon_jax.errors import UserError, require
from chemeleon_jax.rewards.config import active_components, reward_config

PRESETS = ("mini", "unrelaxed", "mp_20", "alex_mp_20", "compat")
RELAXED = ("mini", "mp_20", "alex_mp_20")  # that judge crystals as they relax


def rl_config(preset: str, *own: str) -> ConfigDict:
    """The config of an RL run without a reward: no component is on.

    Args:
      preset: one of `PRESETS`.
      own: presets that the config file makes of these, to be named with them.

    Raises:
      UserError: it is none of them.
    """
    if preset not in PRESETS:
        names = ", ".join((*PRESETS, *own))
        raise UserError(f"no preset '{preset}': there are {names}")
    models = {"compat": "mp_20", "unrelaxed": "mini"}.get(preset, preset)
    config = _paper(models) if models != "mini" else _mini()
    config.reward = reward_config()
    if preset == "compat":
        config.reward.components.creativity.max_amd = float("inf")
    return config


def judge_relaxed(config: ConfigDict) -> None:
    """Sets that crystals count as they relax, and that two potentials judge them.

    Atoms of generated crystals are 0.1 Å off, so that unrelaxed energies mostly measure
    this; and what one potential gets wrong, a policy learns to make
    (docs/rewards-are-exams.md).
    """
    config.reward.relaxed = True
    energy = config.reward.components.energy
    energy.relax_steps = 16
    energy.relax_with = "chgnet"
    # CHGNet learnt corrected energies. The rules of the corrections favour salts with
    # too much sulfur or chlorine, so the other judge has none of them.
    energy.potentials = "chgnet,sevennet-l3i5:uncorrected"
    energy.max_disagreement = 0.3  # eV/atom
    energy.decay = 0.1  # eV/atom: what counts is to be metastable, and stable


def learn_by_nft(config: ConfigDict) -> None:
    """Sets `nft` with what it needs, for the mini models; docs/objectives.md."""
    config.rl.objective = "nft"
    # Crystals of few steps teach the faults of few steps, and few copies are noise.
    config.sampling.sampling_steps = 50
    config.rl.timesteps_per_crystal = 16
    config.optimizer.lr = 4e-4
    config.rl.ema_decay = 0.93
    config.rl.kl_weight = 0.0


def describe(config: Any) -> dict[str, str]:
    """What a run of a config is, for its first lines on the terminal."""
    groups, of_each = config.data.batch_size, config.rl.num_group_samples
    sampling, active = config.sampling, active_components(config)
    weights = {name: component["weight"] for name, component in active.items()}
    heaviest_first = sorted(weights, key=weights.__getitem__, reverse=True)
    return {
        "model": f"{config.ldm_ckpt_path}, decoded by {config.vae_ckpt_path}",
        "crystals": f"{groups * of_each} per iteration: {groups} groups of {of_each}, "
        f"{sampling.sampling_steps} {sampling.sampler} steps",
        "reward": " + ".join(f"{weights[x]:g} {x}" for x in heaviest_first),
        "judges": describe_judges(config.reward),
    }


def describe_judges(reward: ConfigDict) -> str:
    """Who says how stable a crystal is, and of which crystal."""
    energy = reward.components.energy
    judges = energy.potentials or reward.potential
    if not energy.relax_steps:
        return f"{judges}, of crystals as they are"
    relaxer = energy.relax_with or judges.partition(",")[0]
    return f"{judges}, of crystals relaxed {energy.relax_steps} steps by {relaxer}"


def _paper(models: str) -> ConfigDict:
    config = ConfigDict()
    # The policy, and the VAE that decodes its latents: hub:NAME, mini:NAME or a path.
    config.ldm_ckpt_path = f"hub:{models}_ldm_base"
    config.vae_ckpt_path = f"hub:{models}_vae"
    config.seed = 0
    # Several processes, docs/scaling.md: True, False, or where a launcher says so.
    config.distributed = placeholder(bool)
    config.fsdp = 1  # devices that share one copy of the parameters
    config.precision = "default"  # of matrix products: or float32, or bfloat16
    config.num_iterations = 1000  # rollouts; each makes rl.num_inner_batch updates
    config.checkpoint_every = 20
    config.validate_every = 20  # 0: never
    config.validation_samples = 320
    config.validation_pictures = 12  # crystals drawn for TensorBoard; 0: no picture

    config.rl = ConfigDict()
    config.rl.num_group_samples = 64  # K, crystals per group
    config.rl.group_reward_norm = True  # advantage within the group, else the batch
    config.rl.num_inner_batch = 2  # optimiser steps per iteration
    # What is learnt from: grpo, the steps of each trajectory; awm or nft, so many
    # noised copies of each crystal, at timesteps of a density (uniform; logit_normal,
    # with mean and std of the logit). These two want sampling.sampling_steps=50, see
    # docs/objectives.md.
    config.rl.objective = "grpo"
    config.rl.timesteps_per_crystal = 4
    config.rl.timesteps = "logit_normal"
    config.rl.timestep_mean, config.rl.timestep_std = -0.6, 1.0
    # So many of the best crystals of so many last iterations are trained on again in
    # each (awm and nft; 0: none): of each iteration the best share by reward, of one
    # formula the best so many of all.
    config.rl.replay = ConfigDict()
    config.rl.replay.crystals = 0
    config.rl.replay.iterations = 50
    config.rl.replay.share = 0.2
    config.rl.replay.per_formula = 2
    # nft: how far the implicit policies lie from the old one, and the advantage from
    # which on a crystal is as good as can be
    config.rl.nft_beta = 1.0
    config.rl.advantage_clip = 5.0
    # awm, nft: a copy of a bad crystal whose noise is predicted with a mean square
    # error above this is not pushed further. 1: that of predicting none.
    config.rl.error_limit = 1.0
    # Parts of one optimiser step: less memory, less padding, same result. 0: as few as
    # fit into memory_budget, GB per device (and on a CPU at least one per 32 crystals).
    config.rl.grad_accum = 0
    config.rl.memory_budget = 8.0
    # Steps of each trajectory that are trained on, docs/performance.md: so many random
    # ones; or a window outside of which sampling is deterministic, and how many
    # iterations it stays before it moves on. 0 and 0: all.
    config.rl.num_train_steps = 0
    config.rl.window = 0
    config.rl.window_iterations = 25
    # Of each step in the gradient: none, as the original has it, or std, its noise's.
    config.rl.step_weight = "none"
    config.rl.clip_ratio = 1e-3
    config.rl.kl_weight = 1.0
    config.rl.kl_target = "old"  # old: the policy that sampled; reference: the LDM
    config.rl.entropy_weight = 1e-5
    # Of the moving average of policies, which is what is validated, and what `sample`
    # and others take of a run. 0: none, they take the policy itself.
    config.rl.ema_decay = 0.0
    config.rl.sample_average = False  # crystals are made by that average

    # An update that is not finite is skipped; so many iterations in a row with one end
    # the run, its state saved.
    config.max_skipped = 10
    # Above these a run warns, and counts train/alarm/*; inf: never. To compare:
    # in 200 iterations of rl_dng:unrelaxed at most 0.12, and 1.13 (three seeds).
    config.alarms = ConfigDict()
    config.alarms.kl_div = 0.5  # nats per coordinate and step
    config.alarms.ratio_max = 10.0
    # An element in more of the last crystals (1,000 or more) than this share, and in so
    # many times the share that it has in the original model's.
    config.alarms.element_growth = 3.0
    config.alarms.element_share = 0.15
    # Crystals with more than three quarters of one element, of these last ones
    config.alarms.diluted = 0.1
    # How much wider the gap below may be than that of the original model's crystals
    config.alarms.judge_gap = 0.1

    # A potential that the reward does not ask, at every validation (empty: none). It
    # judges the crystals as the reward judged them, relaxed further over so many
    # energies (0: not), by itself or by another. The gap is the metastable share by the
    # reward minus that by the judge; wider than at the start by more than max_gap, it
    # ends the run (none: never). The best state is then the judge's.
    config.judge = ConfigDict()
    config.judge.potential = ""
    config.judge.relax_steps = 50
    config.judge.relax_with = ""
    config.judge.max_gap = placeholder(float)

    config.data = ConfigDict()
    # Where atom counts, and conditions if any, are drawn from: 'mp_mini' (embedded),
    # 'mp_20' (its histogram of atom counts), or the path of a CSV or npz file.
    config.data.dataset = "mp_20"
    # What a conditional model is asked for, one of them for each group: formulas with
    # commas between, or a file with one in each line, each with the atom counts that it
    # may have, if not any: 'LiMnO2,CaTiO3 5 10'. Empty: those of the data set.
    config.data.compositions = ""
    config.data.batch_size = 5  # G, groups
    # Larger crystals are not trained on. Validation has all.
    config.data.max_atoms = 20

    config.sampling = ConfigDict()
    config.sampling.sampler = "ddim"  # or ddpm
    config.sampling.sampling_steps = 50
    config.sampling.eta = 1.0  # noise of a DDIM step; grpo needs it above 0
    config.sampling.cfg_scale = 2.0  # of conditional models only
    # Towards the elements that are asked for (none: no such guidance); awm and nft only
    config.sampling.decoder_guidance = placeholder(float)

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.warmup_steps = 0  # of the learning rate, in optimiser steps

    config.tracking = ConfigDict()
    config.tracking.wandb = False  # the events on Weights & Biases too
    return config


def _mini() -> ConfigDict:
    config = _paper("mini")
    config.ldm_ckpt_path = "mini:ldm"
    config.vae_ckpt_path = "mini:vae"
    config.num_iterations = 100
    config.validation_samples = 80
    config.data.dataset = "mp_mini"
    config.rl.num_group_samples = 16
    config.sampling.sampling_steps = 25
    config.optimizer.lr = 1e-4
    return config


# ------------------------------------------------------------- what functions take


@dataclasses.dataclass(frozen=True)
class GRPOConfig:
    """How a policy learns from trajectories; fields as in `config.rl`.

    Raises:
      UserError: a value is out of range. It names the field.
    """

    clip_ratio: float = 1e-3  # the ratio of policies counts within 1 -+ this
    kl_weight: float = 1.0
    kl_target: str = "old"  # the policy that sampled; reference: the original one
    entropy_weight: float = 1e-5
    step_weight: str = "none"  # of steps in the gradient; std: that of their noise
    num_inner_batch: int = 1  # minibatches, an optimiser step each
    grad_accum: int = 1  # microbatches of each, one after another
    ema_decay: float = 0.0  # of the moving average of policies
    objective: str = "grpo"  # awm, nft: see `rl.forward_process`
    sample_average: bool = False  # crystals are those of that average
    timesteps_per_crystal: int = 4  # that awm and nft noise it to
    timesteps: str = "logit_normal"  # their density
    timestep_mean: float = -0.6
    timestep_std: float = 1.0
    nft_beta: float = 1.0  # b of nft
    advantage_clip: float = 5.0  # c of nft
    error_limit: float = 1.0  # of bad copies of awm and nft

    def __post_init__(self):
        """Checks every value."""
        for field, holds, rule in (
            ("clip_ratio", lambda x: x > 0, "above 0"),
            ("kl_weight", lambda x: x >= 0, "0 or more"),
            ("kl_target", KL_TARGETS.__contains__, f"one of {KL_TARGETS}"),
            ("entropy_weight", lambda x: x >= 0, "0 or more"),
            ("step_weight", STEP_WEIGHTS.__contains__, f"one of {STEP_WEIGHTS}"),
            ("num_inner_batch", lambda x: x >= 1, "at least 1"),
            ("grad_accum", lambda x: x >= 1, "at least 1"),
            ("ema_decay", lambda x: 0 <= x < 1, "from 0 to below 1"),
            ("objective", OBJECTIVES.__contains__, f"one of {OBJECTIVES}"),
            ("timesteps_per_crystal", lambda x: x >= 1, "at least 1"),
            ("timesteps", DENSITIES.__contains__, f"one of {DENSITIES}"),
            ("timestep_std", lambda x: x > 0, "above 0"),
            ("nft_beta", lambda x: x > 0, "above 0"),
            ("error_limit", lambda x: x > 0, "above 0"),
            ("advantage_clip", lambda x: x > 0, "above 0"),
        ):
            require({"rl": vars(self)}, f"rl.{field}", holds, rule)


KL_TARGETS = ("old", "reference")
STEP_WEIGHTS = ("none", "std")
OBJECTIVES = ("grpo", "awm", "nft")
DENSITIES = ("uniform", "logit_normal")


def grpo_config(rl: ConfigDict, grad_accum: int) -> GRPOConfig:
    """What of `config.rl` the update needs; `grad_accum`: where that leaves it open."""
    fields = {field.name: rl[field.name] for field in dataclasses.fields(GRPOConfig)}
    return GRPOConfig(**fields | {"grad_accum": rl.grad_accum or grad_accum})


def alarm_limits(alarms: ConfigDict) -> dict[str, float]:
    """The limits of an iteration's metrics; see `rewards.drift` and `rewards.audit`."""
    other = ("element_share", "judge_gap")
    return {k: v for k, v in alarms.to_dict().items() if k not in other}
