"""What a run has learnt: fresh crystals of its base and of its policy, side by side.

    python tools/measure_learning.py runs/rl_dng --num_samples=512 --picture=dng.png

Samples both with the run's own settings and the same noise, scores them with the run's
own reward, and prints means with standard errors. The picture shows the run's curves.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chemeleon_jax import compute_rewards
from chemeleon_jax.data.dataset import MAX_ATOMS
from chemeleon_jax.devices.sharding import make_mesh
from chemeleon_jax.models.generator import make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.rewards.loading import load_reward
from chemeleon_jax.rl.bulk import compile_sampling, draw_prompts, sample_in_bulk
from chemeleon_jax.rl.prompts import asked_fractions, make_prompts
from chemeleon_jax.rl.sampler import make_sampler
from chemeleon_jax.runs.tracking import read_scalars

BATCH = 64
SEED = 2026


def sample(config, checkpoint, num_samples: int):
    """Crystals of a checkpoint with a run's settings, what was asked, and the model."""
    model, policy = make_generator(checkpoint, MAX_ATOMS)
    asked_for = config.data.compositions
    draw = make_prompts(model, config.data.dataset, MAX_ATOMS, compositions=asked_for)
    prompts = [
        draw_prompts(draw, jax.random.fold_in(jax.random.key(SEED), i), BATCH)
        for i in range(-(-num_samples // BATCH))
    ]
    prompts = jax.tree.map(lambda *x: jnp.concatenate(x)[:num_samples], *prompts)
    sampler = make_sampler(model, **config.sampling)
    sample = compile_sampling(sampler, make_mesh(1), config.precision)
    crystals = sample_in_bulk(policy, prompts, sample=sample, batch_size=BATCH)
    return crystals, asked_fractions(model, prompts.condition), model


def measure(config, checkpoint, num_samples: int) -> dict[str, np.ndarray]:
    """Values per crystal, {name: [num_samples]}."""
    crystals, asked, model = sample(config, checkpoint, num_samples)
    reward = load_reward(config, model)
    score = jax.jit(
        lambda c: compute_rewards(
            c, reward=reward, group_size=num_samples, with_energies=True, asked=asked
        )
    )
    found = jax.device_get(score(jax.tree.map(jnp.asarray, crystals)))
    reward.close()
    metastable = found.e_above_hull <= 0.1
    values = {"reward": found.raw, **found.components}
    values |= {"valid": found.valid, "unique": found.unique, "novel": found.novel}
    values["metastable"] = metastable
    values["msun"] = metastable & found.unique & found.novel
    return {name: np.asarray(v, float) for name, v in values.items()}


def draw_curves(run: Path, file: Path, tags: list[str]) -> None:
    """The curves of a run, from its own events."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scalars = read_scalars(run)
    figure, axes = plt.subplots(1, len(tags), figsize=(3.6 * len(tags), 2.8))
    for axis, tag in zip(np.atleast_1d(axes), tags, strict=True):
        steps, values = scalars[f"train/{tag}"]
        axis.plot(steps, values, color="0.75", linewidth=1)
        width = max(len(values) // 10, 1)
        mean = np.convolve(values, np.ones(width) / width, "valid")
        axis.plot(steps[width - 1 :], mean, color="C0")
        axis.set(xlabel="iteration", title=tag.replace("_", " "))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--num_samples", type=int, default=512)
    parser.add_argument("--picture", type=Path, help="PNG of the run's curves")
    parser.add_argument("--tags", default="reward,kl_div,valid", help="of the picture")
    args = parser.parse_args()
    if args.picture:
        draw_curves(args.run, args.picture, args.tags.split(","))
    config = ConfigDict(json.loads((args.run / "config.json").read_text()))
    base = measure(config, load_checkpoint(args.run / "model"), args.num_samples)
    tuned = measure(config, load_checkpoint(args.run), args.num_samples)
    print(f"{args.num_samples} crystals each, seed {SEED}: mean and standard error")
    print(f"{'':24}{'base':>18}{'tuned':>18}{'difference':>12}{'in SE':>8}")
    for name in base:
        a, b = base[name], tuned[name]
        errors = [x.std(ddof=1) / np.sqrt(len(x)) for x in (a, b)]
        difference, error = b.mean() - a.mean(), np.hypot(*errors)
        shown = [
            f"{x.mean():10.4f} ± {e:.4f}" for x, e in zip((a, b), errors, strict=True)
        ]
        sigma = difference / error if error > 0 else 0.0
        print(f"{name:24}{shown[0]:>18}{shown[1]:>18}{difference:12.4f}{sigma:8.1f}")


if __name__ == "__main__":
    main()
