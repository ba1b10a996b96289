"""What the RL configs share: every field, its meaning, and its presets.

`mini` is for the embedded model on two CPU cores; `mp_20` and `alex_mp_20` are the
setting of the Chemeleon2 paper (arXiv:2511.07158) on the released models, for a GPU;
`compat` is `mp_20` with nothing that the paper's own code does not do.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from chemeleon_jax.errors import UserError

PRESETS = ("mini", "mp_20", "alex_mp_20", "compat")


def rl_config(preset: str) -> ConfigDict:
    """The config of an RL run without a reward: no component is on.

    Args:
      preset: one of `PRESETS`.

    Raises:
      UserError: it is none of them.
    """
    if preset not in PRESETS:
        raise UserError(f"no preset '{preset}': there are {', '.join(PRESETS)}")
    models = "mp_20" if preset == "compat" else preset
    config = _paper(models) if preset != "mini" else _mini()
    config.reward = _reward()
    if preset == "compat":
        config.reward.components.creativity.max_amd = float("inf")
    return config


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
    # Parts of one optimiser step: less memory, less padding, same result. 0: as few as
    # fit into memory_budget, GB per device (and on a CPU at least one per 32 crystals).
    config.rl.grad_accum = 0
    config.rl.memory_budget = 8.0
    # Parts of the rollout: while the devices sample one, the host compares the crystals
    # of the one before with the known ones. Same result. docs/performance.md
    config.rl.rollout_parts = 1
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

    # An update that is not finite is skipped; so many iterations in a row with one end
    # the run, its state saved.
    config.max_skipped = 10
    # Above these a run warns, and counts train/alarm/*; inf: never. To compare:
    # in 200 iterations of rl_dng at most 0.12, and 1.13 (three seeds).
    config.alarms = ConfigDict()
    config.alarms.kl_div = 0.5  # nats per coordinate and step
    config.alarms.ratio_max = 10.0

    config.data = ConfigDict()
    # Where atom counts, and conditions if any, are drawn from: 'mp_mini' (embedded),
    # 'mp_20' (its histogram of atom counts), or the path of a CSV or npz file.
    config.data.dataset = "mp_20"
    config.data.batch_size = 5  # G, groups
    # Larger crystals are not trained on. Validation has all.
    config.data.max_atoms = 20

    config.sampling = ConfigDict()
    config.sampling.sampler = "ddim"  # or ddpm
    config.sampling.sampling_steps = 50
    config.sampling.eta = 1.0  # noise of a DDIM step; RL needs it above 0
    config.sampling.cfg_scale = 2.0  # of conditional models only

    config.optimizer = ConfigDict()
    config.optimizer.lr = 1e-5
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 1.0
    config.optimizer.warmup_steps = 0  # of the learning rate, in optimiser steps
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


def _reward() -> ConfigDict:
    """Every component there is; weight 0 leaves one out, at no cost.

    A component's raw values are normalised over the batch (`normalize_fn`: norm, std,
    subtract_mean, clip or none), times its weight, and added up; `reward.normalize_fn`
    makes the advantage of the sum.
    """
    reward = ConfigDict()
    reward.normalize_fn = "std"
    reward.normalize_in_group = False  # components, within a group instead of the batch
    reward.eps = 1e-4
    reward.reference_dataset = "mp_mini"  # what is novel is not in here
    # What matches a crystal of so many last iterations is not creative.
    reward.recent_iterations = 0
    reward.workers = 0  # processes; 0: as many as CPUs
    # Where the workers are: processes of this machine, or ray, a cluster whose address
    # is given as ray.init takes it (local: one of this machine's CPUs; auto; HOST:PORT)
    reward.executor = "processes"
    reward.ray_address = "local"
    reward.time_limit = 10.0  # s, for one crystal in a worker
    reward.memory_limit = 8.0  # GiB, of one worker; 0: none
    reward.potential = "chgnet"  # or ase:module:callable, an ASE calculator
    # Energies of that potential that make the hull, .csv or .npz (docs/rewards.md);
    # empty: those of reference_dataset
    reward.hull_file = ""
    reward.components = {
        # 1: unique and novel, 0: neither, else the distance to the nearest crystal, at
        # most max_amd (inf: as the original has it)
        "creativity": {
            "weight": 0.0,
            "normalize_fn": "none",
            "max_amd": 1.0,
            "min_elements": 1,  # crystals of fewer are worth 0
        },
        # minus the energy above the hull, eV/atom, within [-clip_max, 0]
        "energy": {
            "weight": 0.0,
            "normalize_fn": "norm",
            "clip_max": 1.0,
            "decay": 0.0,  # eV/atom; above it the value levels off. 0: it does not
            # the lowest value for crystals of fewer elements, of a chemical system with
            # fewer known compounds, or further below the hull, eV/atom (none: any)
            "min_elements": 1,
            "min_hull_entries": 0,
            "min_e_above_hull": placeholder(float),
        },
        # what a crystal adds to the diversity of the batch
        "structure_diversity": {"weight": 0.0, "normalize_fn": "norm"},
        "composition_diversity": {"weight": 0.0, "normalize_fn": "norm"},
        # a predicted property: minus its squared distance to the target, or, without a
        # target, the property itself
        "predictor": {
            "weight": 0.0,
            "normalize_fn": "norm",
            "ckpt_path": "mini:predictor",
            "property": "band_gap",
            "target": placeholder(float),
            "clip_min": placeholder(float),
            "clip_max": placeholder(float),
        },
        # your own function of a list of pymatgen Structures, as module:function;
        # left out as long as none is named
        "custom": {
            "weight": 1.0,
            "normalize_fn": "norm",
            "function": "",
            "time_limit": 60.0,  # s, for all crystals of a batch
        },
    }
    return reward
