"""A whole iteration beside Chemeleon2's own: rollout, rewards, update.

    python -m benchmarks.beside_original --original=DIR

`DIR` is a checkout (https://github.com/hspark1212/chemeleon2, MIT), and what it imports
is installed: torch, lightning, torch_geometric, average-minimum-distance, chgnet.

Random weights of the same sizes, the same numbers of atoms and steps, the paper's own
reward (`rl_dng:compat`), unrelaxed energies of CHGNet, the embedded references. Both
score the same crystals, of the embedded model. CPU seconds, workers included.
"""

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

import chemeleon_jax
from benchmarks import original, original_rewards
from benchmarks.accelerator import Session, Setting
from benchmarks.accelerator_policy import Case, compile_case, make_models, run_case
from benchmarks.measure import print_table
from benchmarks.policy import PAPER_VAE
from benchmarks.rewards import timed
from chemeleon_jax import compute_rewards
from chemeleon_jax.configs.rl_dng import get_config
from chemeleon_jax.data.crystals import from_structures
from chemeleon_jax.models.dit import DiT, dit_size
from chemeleon_jax.rewards.loading import load_reward

STAGES = ("rollout", "rewards", "update")


def our_policy(setting: Setting, objective: str) -> dict[str, float]:
    """CPU seconds of a rollout and of an update."""
    session, case = Session(1e9), Case(setting.groups, objective=objective)
    run_case(session, setting, case, compile_case(setting, case), "policy")
    return {row["case"].partition(":")[0]: row["s"] for row in session.rows}


def our_rewards(setting: Setting, structures) -> float:
    """CPU seconds of the second of two calls, as `train` compiles them."""
    config = get_config("compat")
    config.reward.reference_dataset = config.data.dataset = "mp_mini"
    config.reward.workers = 1
    crystals = jax.tree.map(jnp.asarray, from_structures(structures, max_atoms=20))
    model = make_models(setting).sampler.model
    noise = jnp.zeros((*crystals.mask.shape, model.vae.latent_channels))
    inputs = crystals, crystals.lattice, noise
    params = jax.jit(model.vae.init)(jax.random.key(0), *inputs)["params"]
    reward = load_reward(config, model.replace(frozen={"vae": params}))
    score = jax.jit(
        lambda x: compute_rewards(x, reward=reward, group_size=setting.group_size)
    )
    call = partial(
        timed, reward.context.pool, lambda: jax.block_until_ready(score(crystals))
    )
    seconds = [call().cpu for _ in range(2)][1]
    reward.close()
    return seconds


def the_originals(setting: Setting, folder: Path, structures) -> dict[str, float]:
    """CPU seconds of its three stages, after a first call of each."""
    sys.path.insert(0, str(folder))
    session = Session(1e9)
    original.run(session, setting, folder)
    found = {row["case"].partition(":")[0]: row["s"] for row in session.rows}
    rl, _ = original.build(setting, "cpu")
    with tempfile.TemporaryDirectory() as files:
        reward = original_rewards.build(rl.ldm.vae, Path(files))
    for _ in range(2):
        began = time.process_time()
        original_rewards.score(reward, structures)
        found["rewards"] = time.process_time() - began
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--size", default="S", help="of the DiT: S, B, L or XL")
    parser.add_argument("--groups", type=int, default=5)
    parser.add_argument("--group_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    flags = parser.parse_args()
    dit = DiT(**dit_size(flags.size), learn_sigma=False)
    setting = Setting(dit, PAPER_VAE, flags.groups, flags.group_size, flags.steps)
    made = chemeleon_jax.load("mini:ldm").sample(2 * setting.batch).structures
    structures = [crystal for crystal in made if crystal is not None][: setting.batch]
    theirs = the_originals(setting, flags.original, structures)
    rows = [{"iteration": "the original's"} | theirs]
    rewards = our_rewards(setting, structures)
    for objective in ("grpo", "awm", "nft"):
        found = our_policy(setting, objective) | {"rewards": rewards}
        rows.append({"iteration": objective} | found)
    for row in rows:
        seconds = {f"{stage} s": row.pop(stage) for stage in STAGES}
        total = sum(seconds.values())
        row |= seconds | {"all s": total, "times as fast": sum(theirs.values()) / total}
    print_table(rows)


if __name__ == "__main__":
    main()
