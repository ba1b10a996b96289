"""The fields of `config.reward`, their meaning and their checks. No JAX here."""

import math
import re
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from chemeleon_jax.errors import UserError, require

NORMALIZE_FNS = ("norm", "std", "subtract_mean", "clip", "none")  # see normalize.py
EXECUTORS = ("processes", "ray")
COMBINATIONS = ("max", "mean_plus_spread")  # see stability.py


def reward_config() -> ConfigDict:
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
    # What matches a crystal of so many last iterations is not creative; element_kl
    # counts their elements too.
    reward.recent_iterations = 0
    # So many crystals of an iteration are scored, as many of each group; what others
    # are worth a surrogate says (0: all are scored). docs/rewards.md
    reward.budget_per_iteration = 0
    reward.workers = 0  # processes; 0: as many as CPUs
    # Where the workers are: processes of this machine, or ray, a cluster whose address
    # is given as ray.init takes it (local: one of this machine's CPUs; auto; HOST:PORT)
    reward.executor = "processes"
    reward.ray_address = "local"
    reward.time_limit = 10.0  # s, for one crystal in a worker
    reward.memory_limit = 8.0  # GiB, of one worker; 0: none
    # Or sevennet-l3i5, sevennet-0, nequix:PATH, these with :uncorrected behind,
    # ase:module:callable (an ASE calculator)
    reward.potential = "chgnet"
    # Energies of that potential that make the hull, .csv or .npz (docs/potentials.md);
    # empty: those of reference_dataset
    reward.hull_file = ""
    # Every component sees the crystals as they relax, see energy.relax_steps
    reward.relaxed = False
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
            "max_fraction": 1.0,  # likewise with more atoms of one element than this
            "charge_balanced": False,  # likewise where charges cannot balance (SMACT)
            "new_only": False,  # likewise where not unique, novel, unlike recent ones
            # Who judges, with commas between (empty: reward.potential), and what counts
            # of what they say: max, or mean_plus_spread. Further apart than
            # max_disagreement, eV/atom, a crystal is disputed: the lowest value.
            "potentials": "",
            "combine": "max",
            "max_disagreement": placeholder(float),
            # The judges see the crystal after so many energies of a relaxation (0: as
            # it is) with one potential (empty: the first of them).
            "relax_steps": 0,
            "relax_with": "",
        },
        # minus how far atoms move in that relaxation, Å, within [-clip_max, 0]
        "displacement": {"weight": 0.0, "normalize_fn": "none", "clip_max": 1.0},
        # 1: the first of its kind in the batch
        "uniqueness": {"weight": 0.0, "normalize_fn": "none"},
        # 1: of the composition that a conditional model was asked for
        "asked_composition": {"weight": 0.0, "normalize_fn": "none"},
        # what a crystal adds to the diversity of the batch
        "structure_diversity": {"weight": 0.0, "normalize_fn": "norm"},
        "composition_diversity": {"weight": 0.0, "normalize_fn": "norm"},
        # minus what a crystal adds to the divergence of elements from the references'
        "element_kl": {
            "weight": 0.0,
            "normalize_fn": "none",
            "recent_iterations": placeholder(int),  # none: reward.recent_iterations
        },
        # how many operations the point group has, 0 (P1) to 1 (m-3m), within so many Å
        "symmetry": {"weight": 0.0, "normalize_fn": "none", "tolerance": 0.1},
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
        # your own function of a list of pymatgen Structures, as module:function or
        # FILE.py:function; left out as long as none is named
        "custom": {
            "weight": 1.0,
            "normalize_fn": "norm",
            "function": "",
            "time_limit": 60.0,  # s, for all crystals of a batch
        },
    }
    return reward


def active_components(config: Any) -> dict[str, dict]:
    """The reward components that count, as plain dicts by name."""
    components = config.reward.components.to_dict()
    if not components["custom"]["function"]:
        del components["custom"]
    return {name: c for name, c in components.items() if c["weight"] != 0}


_NOT_NEGATIVE = ("creativity.max_amd", "energy.decay", "energy.min_hull_entries")
_NUMBERS = (
    "energy.min_e_above_hull",
    "predictor.target",
    "predictor.clip_min",
    "predictor.clip_max",
)
_POSITIVE = (
    "energy.clip_max",
    "displacement.clip_max",
    "symmetry.tolerance",
    "custom.time_limit",
)


def check_reward(config: Any) -> None:
    """Checks the values of `config.reward`, before anything is loaded.

    Raises:
      UserError: one is out of range, or they do not fit together.
    """
    rule = f"one of {NORMALIZE_FNS}"
    require(config, "reward.normalize_fn", lambda x: x in NORMALIZE_FNS, rule)
    rule = f"one of {EXECUTORS}"
    require(config, "reward.executor", lambda x: x in EXECUTORS, rule)
    for field in ("workers", "recent_iterations", "memory_limit"):
        require(config, f"reward.{field}", lambda x: x >= 0, "0 or more")
    for field in ("eps", "time_limit"):
        require(config, f"reward.{field}", lambda x: x > 0, "above 0")
    active = active_components(config)
    if not active:
        names = ", ".join(config.reward.components)
        raise UserError(
            "config.reward.components: none has a weight, so there is nothing to "
            f"learn; give one of {names} a weight, or custom a function"
        )
    if not {"creativity", "element_kl"} & set(active):
        rule = "0 where creativity has no weight, nor element_kl"
        require(config, "reward.recent_iterations", lambda x: x == 0, rule)
    for name in active:
        field = f"reward.components.{name}"
        require(
            config,
            f"{field}.normalize_fn",
            lambda x: x in NORMALIZE_FNS,
            f"one of {NORMALIZE_FNS}",
        )
        require(
            config,
            f"{field}.weight",
            lambda x: 0 < x < math.inf,
            "a finite number above 0 (for less of a thing, reward minus it)",
        )
    for field in _NOT_NEGATIVE:
        require(config, f"reward.components.{field}", lambda x: x >= 0, "0 or more")
    for field in _POSITIVE:
        require(config, f"reward.components.{field}", lambda x: x > 0, "above 0")
    for field in _NUMBERS:
        rule = "a number, or left out"
        known = lambda x: x is None or not math.isnan(x)  # noqa: E731
        require(config, f"reward.components.{field}", known, rule)
    predictor = config.reward.components.predictor
    low = predictor.clip_min
    if low is not None and predictor.clip_max is not None:
        rule = f"above clip_min = {low}"
        require(config, "reward.components.predictor.clip_max", lambda x: x > low, rule)
    _check_judges(config, active)
    if "custom" in active:
        require(
            config,
            "reward.components.custom.function",
            re.compile(r"([\w.]+|.+\.py):\w+").fullmatch,
            "module:function, the module as Python imports it, or FILE.py:function",
        )


def _check_judges(config: Any, active: dict[str, dict]) -> None:
    field = "reward.components.energy"
    require(config, f"{field}.relax_steps", lambda x: x >= 0, "0 or more")
    rule = f"one of {COMBINATIONS}"
    require(config, f"{field}.combine", lambda x: x in COMBINATIONS, rule)
    if config.reward.components.energy.max_disagreement is not None:
        require(config, f"{field}.max_disagreement", lambda x: x > 0, "above 0")
    rule = "above 0, at most 1"
    require(config, f"{field}.max_fraction", lambda x: 0 < x <= 1, rule)
    judges = config.reward.components.energy.potentials
    if judges and config.reward.potential != "chgnet":
        rule = (
            f"one of config.{field}.potentials = {judges}, which takes its place; set "
            "that too, or leave it empty"
        )
        asked = [name.strip() for name in judges.split(",")]
        require(config, "reward.potential", lambda x: x in asked, rule)
    if not config.reward.components.energy.relax_steps:
        rule = f"False where config.{field}.relax_steps is 0"
        require(config, "reward.relaxed", lambda x: not x, rule)
        rule = f"0 where config.{field}.relax_steps is 0"
        if "displacement" in active:
            field = "reward.components.displacement.weight"
            require(config, field, lambda x: x == 0, rule)
