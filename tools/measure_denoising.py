"""Where a model loses crystals: at which noise, and at which size.

    python tools/measure_denoising.py mini:ldm

Adds the noise of a timestep to the latents of mp_mini's test crystals, takes the
remaining DDIM steps, decodes, and prints the share of metastable crystals and the
median energy above the hull (CHGNet, unrelaxed, embedded hull), of all and by number of
atoms. The first row is of crystals that were only encoded and decoded: no denoiser can
do better. The last begins with noise alone, as `sample` does, but with the atom counts
of the test split.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon_jax.data.crystals import take
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.potentials.hull import load_hull
from chemeleon_jax.potentials.loading import load_potential
from chemeleon_jax.rewards.stability import METASTABLE
from chemeleon_jax.rl.sampler import Sampler, roll_out

KEY = jax.random.key(0)
SIZES = ((1, 5), (6, 10), (11, 15), (16, 20))  # atoms
BATCH = 72  # divides the 720 test crystals


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ldm", help="an unconditional model")
    parser.add_argument("--vae", default="mini:vae")
    parser.add_argument("--sampling_steps", type=int, default=50, help="DDIM, of all")
    parser.add_argument("--timesteps", default="100,200,300,500,700,980")
    args = parser.parse_args()
    model, policy = make_generator(
        combine_checkpoints(load_checkpoint(args.ldm), load_checkpoint(args.vae)),
        MAX_ATOMS,
    )
    schedule = make_schedule("ddim", args.sampling_steps)
    crystals = load_dataset("mp_mini").select("test").crystals
    potential = load_potential("chgnet")
    hull, energies = load_hull(potential), jax.jit(potential.energies)

    @partial(jax.jit, static_argnames="steps")
    def restore(crystals, key, steps: int):
        """Crystals after the noise of the last `steps` steps, and after these steps."""
        mask, z = crystals.mask, model.encode(crystals)
        if steps:
            last = jax.tree.map(lambda table: table[:steps], schedule)
            noise = jax.random.normal(key, (steps + 1, *z.shape)) * mask[..., None]
            z = last.add_noise(z, noise[-1], jnp.full(len(mask), steps - 1))
            sampler = Sampler(model, last)
            z, _ = roll_out(policy, z, lambda i: noise[i], mask, sampler=sampler)
        return model.decode(z, mask)

    sizes = "".join(f"{f'{low}-{high} atoms':>18}" for low, high in SIZES)
    print(f"{len(crystals.mask)} crystals: metastable; median eV/atom above the hull")
    print(f"{'from timestep':>14}{'all':>18}{sizes}")
    timesteps = [int(t) for t in args.timesteps.split(",")]
    for t in [None, *timesteps]:
        steps = 0 if t is None else int((schedule.model_timesteps <= t).sum())
        above = []
        for start in range(0, len(crystals.mask), BATCH):
            part = take(crystals, np.arange(start, start + BATCH))
            found = restore(part, jax.random.fold_in(KEY, start), steps)
            energy, status = jax.device_get(energies(found))
            energy = np.where(status == 0, energy, np.nan)
            above.append(hull.e_above_hull(np.asarray(found.atom_types), energy))
        print(f"{'decoded only' if t is None else t:>14}", end="")
        print(describe(np.concatenate(above), crystals.mask.sum(-1)), flush=True)


def describe(above: np.ndarray, num_atoms: np.ndarray) -> str:
    """Share of metastable crystals and median energy: of all, and of each size."""
    columns = []
    for low, high in ((1, MAX_ATOMS), *SIZES):
        mine = above[(low <= num_atoms) & (num_atoms <= high)]
        share = f"{np.mean(mine <= METASTABLE):.1%}"
        columns.append(f"{f'{share} {np.nanmedian(mine):.2f}':>18}")
    return "".join(columns)


if __name__ == "__main__":
    main()
