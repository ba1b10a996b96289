"""How much of an update is signal: the gradients of many iterations of one policy.

    python -m tools.measure_gradients --config=rl_dng --iterations=40

Samples and scores so many iterations' crystals without training on them, and takes the
gradient of each iteration for each objective, at the same crystals and rewards;
`awm:16` is `awm` with 16 copies of each crystal, `own:16` that with an advantage of 1:
pretraining on its own crystals, of which a model had nothing to learn, were they as its
denoiser has it. What the gradients of any two iterations have in common is signal, the
rest is noise; each parameter is divided by the root of its mean square first, as Adam
does. Their ratio, of squared norms, says after how many iterations the one has become
as large as the other.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.cli import parse
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rl.bulk import draw_prompts
from chemeleon_jax.rl.forward_process import noise_latents
from chemeleon_jax.rl.learner import trajectory_gradient
from chemeleon_jax.rl.programs import Programs, make_programs
from chemeleon_jax.rl.prompts import asked_fractions, make_prompts
from chemeleon_jax.rl.scorer import Scorer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="rl_dng")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--objectives", default="grpo,awm:4,awm:16,nft:4")
    args, flags = parser.parse_known_args()
    config, _ = parse(["", f"--config={args.config}", *flags], "train")
    objectives = args.objectives.split(",")
    gradients = measure(config, objectives, args.iterations)
    print("objective | signal over noise, 1 / 1000 | standard error | 1 : 1 after")
    for objective, of_iterations in gradients.items():
        ratio, error = signal_over_noise(of_iterations)
        print(objective, f"{1e3 * ratio:.2f} {1e3 * error:.2f} {1 / ratio:.0f}")


def measure(config: Any, objectives: list[str], iterations: int) -> dict[str, list]:
    """Gradients of each iteration by each objective, {objective: [iterations]}."""
    config.rl.objective = "grpo"  # its rollouts record what the others need, and more
    start = combine_checkpoints(
        load_checkpoint(config.ldm_ckpt_path), load_checkpoint(config.vae_ckpt_path)
    )
    model, policy = make_generator(start, MAX_ATOMS)
    mesh, reward = make_mesh(1), load_reward(config, model)
    programs = make_programs(config, model, mesh)
    draw = make_prompts(model, config.data.dataset, config.data.max_atoms)
    gradient_of = {x: make_gradient(policy, programs, x) for x in objectives}
    found: dict[str, list] = {x: [] for x in objectives}
    with tempfile.TemporaryDirectory() as folder:
        scorer = Scorer(config, reward, model, mesh, Path(folder), 0)
        for iteration in range(iterations):
            key = jax.random.fold_in(jax.random.key(config.seed), iteration)
            groups = config.data.batch_size, config.rl.num_group_samples
            prompts = draw_prompts(draw, key, *groups)
            crystals, trajectory = programs.rollout(
                policy, prompts, sampler=programs.sampler
            )
            asked = asked_fractions(model, prompts.condition)
            advantage = scorer(jax.device_get(crystals), asked).advantage
            for objective, gradient in gradient_of.items():
                taken = gradient(trajectory, jnp.asarray(advantage))
                found[objective].append(jax.device_get(taken))
            print(f"iteration {iteration + 1} of {iterations}", flush=True)
    reward.close()
    return found


def make_gradient(policy: Any, programs: Programs, asked: str) -> Callable:
    """(trajectory, advantage) -> the gradient of an iteration at the first update."""
    objective, _, copies = asked.partition(":")
    own = objective == "own"
    objective = "awm" if own else objective
    rl = dataclasses.replace(programs.grpo, objective=objective, num_inner_batch=1)
    if copies:
        rl = dataclasses.replace(rl, timesteps_per_crystal=int(copies))

    @jax.jit
    def gradient(trajectory, advantage):
        grpo = objective == "grpo"
        gradient, _ = trajectory_gradient(
            policy,
            trajectory if grpo else noise_latents(trajectory, rl),
            jnp.ones_like(advantage) if own else advantage,
            sampler=programs.sampler,
            config=rl,
            old_params=None if grpo else policy,
            on_policy=True,
            reference_params=policy if rl.kl_target == "reference" else None,
        )
        return gradient

    return gradient


def signal_over_noise(gradients: list) -> tuple[float, float]:
    """Squared norm of the mean gradient over that of one iteration's noise.

    Without bias, from products of different iterations' gradients; and its standard
    error, from leaving out one iteration after the other.
    """
    products = np.zeros((len(gradients), len(gradients)))
    for leaves in zip(*map(jax.tree.leaves, gradients), strict=True):
        values = np.stack([leaf.ravel() for leaf in leaves])
        values /= np.sqrt((values**2).mean(0)) + 1e-20
        products += values @ values.T
    without = [
        _ratio(np.delete(np.delete(products, i, 0), i, 1)) for i in range(len(products))
    ]
    return _ratio(products), float(np.std(without) * np.sqrt(len(without) - 1))


def _ratio(products: np.ndarray) -> float:
    count, squares = len(products), np.trace(products)
    signal = (products.sum() - squares) / (count * (count - 1))
    return float(signal / (squares / count - signal))


if __name__ == "__main__":
    main()
