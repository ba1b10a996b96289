"""Generators of crystals: `load` one, and `sample` it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from chemeleon_jax.data.crystals import to_structures
from chemeleon_jax.data.dataset import MAX_ATOMS, load_dataset
from chemeleon_jax.data.templates import draw_templates
from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.devices.compilation import PRECISIONS
from chemeleon_jax.devices.sharding import make_mesh, replicate
from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.interface.request import DEFAULTS, Plan, Request
from chemeleon_jax.interface.result import Crystals
from chemeleon_jax.models.diffusion import make_schedule
from chemeleon_jax.models.generator import combine_checkpoints, make_generator
from chemeleon_jax.models.loading import load_checkpoint
from chemeleon_jax.models.store import Checkpoint
from chemeleon_jax.rl.bulk import (
    compile_sampling,
    even_batch_size,
    fitting_batch,
    group_prompts,
    sample_in_bulk,
)
from chemeleon_jax.rl.prompts import (
    atom_count_shares,
    condition_values,
    condition_vectors_from_cli,
    draw_atom_counts,
    restrict_atom_counts,
)
from chemeleon_jax.rl.sample_files import describe_crystals, remember_batch
from chemeleon_jax.rl.sampler import make_sampler
from chemeleon_jax.runs import states
from chemeleon_jax.runs.files import read_json, user_path

WEIGHTS = ("latest", "best", "raw")  # of a run


@dataclass(frozen=True, eq=False)
class Model:
    """A generator of crystals; `load` makes one."""

    name: str  # as it was loaded
    checkpoint: Checkpoint = field(repr=False)  # with the VAE
    habit: dict[str, Any]  # how it samples by itself, see `Request.settings`
    run: dict[str, Any] | None = field(default=None, repr=False)  # the RL run's config
    iteration: int | None = None  # of a run's policy: how many it has had
    _compiled: dict = field(default_factory=dict, init=False, repr=False)

    def sample(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        composition: str | None = None,
        chemical_system: str | None = None,
        space_group: str | int | None = None,
        crystal_system: str | None = None,
        conditions: Mapping[str, Any] | None = None,
        num_atoms: int | Sequence[int] | None = None,
        dataset: str | None = None,
        sampler: str | None = None,
        sampling_steps: int | None = None,
        eta: float | None = None,
        cfg_scale: float | None = None,
        decoder_guidance: float | None = None,
        batch_size: int | None = None,
    ) -> Crystals:
        """Samples crystals, the same ones as `python -m chemeleon_jax.sample`.

        What is not given is as the model does it by itself: a run as it was trained.

        Args:
          num_samples: how many.
          seed: the same seed gives the same crystals, whatever `batch_size` is.
          composition: a formula, such as "LiMnO2".
          chemical_system: elements, such as "Li-Mn-O".
          space_group: "Fm-3m", 225 or "any"; see docs/sampling.md.
          crystal_system: such as "cubic".
          conditions: of the model, by name, such as {"dft_band_gap": 3.0}.
          num_atoms: per crystal; of several, in equal shares.
          dataset: whose atom counts are drawn, and whose symmetries.
          sampler: "ddim" or "ddpm".
          sampling_steps: of the sampler.
          eta: noise of DDIM, from 0 to 1.
          cfg_scale: classifier-free guidance towards the conditions.
          decoder_guidance: guidance towards the elements; 0 for none.
          batch_size: crystals at once, by default what fits into memory.

        Returns:
          All crystals, valid or not, and a table of `num_atoms`, `valid` and `reason`.

        Raises:
          UserError: the model does not take what is asked for, or a value is wrong.
        """
        plan = self.plan(
            Request(
                num_samples=num_samples,
                seed=seed,
                composition=composition,
                chemical_system=chemical_system,
                space_group=None if space_group is None else str(space_group),
                crystal_system=crystal_system,
                conditions=conditions or {},
                num_atoms=None if num_atoms is None else np.ravel(num_atoms).tolist(),
                dataset=dataset,
                sampler=sampler,
                sampling_steps=sampling_steps,
                eta=eta,
                cfg_scale=cfg_scale,
                decoder_guidance=decoder_guidance,
                batch_size=batch_size,
            )
        )
        crystals = self.make(plan, batch_size)
        table = pd.DataFrame(describe_crystals(crystals))
        return Crystals(to_structures(crystals), table)

    def plan(self, request: Request) -> Plan:
        """Checks a request, draws atom counts and symmetries; nothing is sampled yet.

        Raises:
          UserError: the model does not take what is asked for.
        """
        by_kind, by_name = condition_values(
            request.composition, request.chemical_system, request.conditions
        )
        settings = request.settings(
            self.habit, guided=bool(by_kind or by_name), elements=bool(by_kind)
        )
        specs = (self.checkpoint.config.get("condition") or {}).get("specs", ())
        condition = condition_vectors_from_cli(specs, by_kind, by_name)
        shares = restrict_atom_counts(
            self.count_shares(request.dataset),
            settings["num_atoms"],
            request.composition,
            request.chemical_system,
        )
        make_schedule(settings["sampler"], settings["sampling_steps"])  # or UserError
        key = jax.random.key(request.seed)
        counts, count = jax.random.fold_in(key, 0), request.num_samples
        settings |= {"conditions": by_kind | by_name}
        if asked := request.symmetry:
            source = self.symmetry_source(request.dataset)
            dataset = load_dataset(source)
            num_atoms, template = draw_templates(counts, count, dataset, shares, asked)
            settings |= {"symmetry": f"{asked} of {source}"}
        else:
            num_atoms, template = draw_atom_counts(counts, count, shares), None
        key = jax.random.fold_in(key, 1)
        return Plan(key, num_atoms, condition, settings, template)

    def make(
        self, plan: Plan, batch_size: int | None = None, folder: Path | None = None
    ) -> CrystalBatch:
        """The crystals of a plan, as NumPy arrays.

        With a `folder`, finished batches are kept there, and those that an earlier try
        has left are not sampled again.
        """
        mesh, model, policy = self._generator
        sampler = make_sampler(
            model,
            sampler=plan.settings["sampler"],
            sampling_steps=plan.settings["sampling_steps"],
            eta=plan.settings["eta"],
            cfg_scale=plan.settings["cfg_scale"],
            decoder_guidance=plan.settings["decoder_guidance"],
        )
        how = tuple((k, plan.settings[k]) for k in (*_SAMPLER, "precision"))
        if how not in self._compiled:  # a second `sample` compiles nothing
            precision = plan.settings["precision"]
            self._compiled[how] = compile_sampling(sampler, mesh, precision)
        count, guided = len(plan.num_atoms), sampler.cfg_scale is not None
        condition = plan.condition
        if condition is not None:
            condition = {name: np.repeat(x, count, 0) for name, x in condition.items()}
        largest = batch_size or fitting_batch(model, guided, mesh.size)
        batch_size = even_batch_size(count, largest, mesh.size)
        prompts = group_prompts(plan.key, plan.num_atoms, condition)
        return sample_in_bulk(
            policy,
            prompts._replace(template=plan.template),
            sample=self._compiled[how],
            batch_size=batch_size,
            progress=True,
            remember=folder and partial(remember_batch, folder, batch_size),
        )

    @cached_property
    def _generator(self):
        mesh = make_mesh()
        return mesh, *replicate(make_generator(self.checkpoint, MAX_ATOMS), mesh)

    def symmetry_source(self, source: str | None = None) -> str:
        """The data set to draw symmetries of: the named one, the run's, or mp_mini."""
        if source is None and self.run is not None:
            source = self.run["data"]["dataset"]
        # Of MP-20 only the histogram of atom counts is known.
        return "mp_mini" if source in (None, "mp_20") else source

    def count_shares(self, source: str | None = None) -> np.ndarray:
        """The atom counts to draw: of the named data set, the run's, or its own."""
        config = self.checkpoint.config
        if source is None and self.run is not None:
            source = self.run["data"]["dataset"]
        if source is None and "atom_counts" in config:
            own = checked_counts(self.name, config["atom_counts"])
            return np.resize(np.append(own, np.zeros(MAX_ATOMS)), MAX_ATOMS)
        return atom_count_shares(source or "mp_20", MAX_ATOMS)


_SAMPLER = ("sampler", "sampling_steps", "eta", "cfg_scale", "decoder_guidance")


# -------------------------------------------------------------------------- by name


def load(
    name: str | Path, *, vae: str | None = None, weights: str = "latest", base=False
) -> Model:
    """Loads a generator of crystals.

    Args:
      name: a run or model directory, mini:NAME or hub:NAME, see `load_checkpoint`.
      vae: of a denoiser without one; by default the one it was trained with.
      weights: of a run: "latest" or "best" (by validation), averaged where the run
        keeps an average, or "raw", the latest without averaging.
      base: the model that a run started from, which then samples as the run does.

    Raises:
      UserError: there is no such model, or it generates nothing.
    """
    name, run = str(name), run_config(name)
    if weights not in WEIGHTS:
        raise UserError(f"--weights={weights}: must be one of {', '.join(WEIGHTS)}")
    if weights != "latest" and run is None:
        raise UserError(f"--weights={weights}: {name} is no directory of an RL run")
    if base and run is None:
        raise UserError(f"--base: {name} is no directory of an RL run")
    if run is None:
        checkpoint = load_generator(name, vae, weights)
        own = checked_habit(name, checkpoint.config.get("sampling", {}))
        return Model(name, checkpoint, own)
    habit = run["sampling"] | {"precision": run.get("precision", "default")}
    folder = user_path(name.removesuffix("@best"))
    if base:
        return Model(name, load_checkpoint(folder / "model"), habit, run)
    best = weights == "best" or name.endswith("@best")
    iteration = states.find_iteration(folder / "checkpoints", best=best)
    return Model(name, load_generator(name, vae, weights), habit, run, iteration)


def checked_habit(name: str, sampling: Any) -> dict[str, Any]:
    """How a model's config says that it samples.

    Raises:
      UserError: a value cannot be that.
    """
    try:
        sampling = dict(sampling)
        Request(num_samples=1, **{k: sampling[k] for k in _SAMPLER if k in sampling})
        told = DEFAULTS | {k: x for k, x in sampling.items() if x is not None}
        make_schedule(told["sampler"], told["sampling_steps"])
        if told.get("precision", "default") not in [*PRECISIONS]:
            raise ValueError(f"precision: must be one of {', '.join(PRECISIONS)}")
    except (TypeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(f"{name}: config.json: sampling: {one_line(error)}") from error
    return sampling


def checked_counts(name: str, counts: Any) -> np.ndarray:
    """Shares of atom counts from 1 on, of a model's config.

    Raises:
      UserError: they are no shares, or all of more than `MAX_ATOMS` atoms.
    """
    try:
        own = np.asarray(counts, float)
    except (TypeError, ValueError, OverflowError):
        own = np.zeros(0)
    if own.ndim != 1 or not (own >= 0).all():
        own = np.zeros(0)
    if not 0 < own[:MAX_ATOMS].sum() < np.inf:
        raise UserError(
            f"{name}: config.json: atom_counts: must be shares of 1 to {MAX_ATOMS} "
            "atoms"
        )
    return own


def run_config(name: str | Path) -> dict[str, Any] | None:
    """The config of an RL run, None of anything else."""
    folder = user_path(str(name).rstrip("/").removesuffix("@best"))
    file = folder / "config.json"
    if not ((folder / "checkpoints").is_dir() and file.is_file()):
        return None
    config = read_json(file)
    if isinstance(config, dict) and "sampling" not in config:
        return None
    parts = [config[name] for name in ("sampling", "data")] if config else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{file}: is not what `train` wrote; put that back")
    return config


def load_generator(name: str, vae: str | None, weights: str) -> Checkpoint:
    """The checkpoint, with the VAE that decodes its latents.

    Raises:
      UserError: it has no denoiser, or no VAE can be told.
    """
    checkpoint = load_checkpoint(
        name,
        weights="raw" if weights == "raw" else "ema",
        step="best" if weights == "best" else "latest",
    )
    if "dit" not in checkpoint.params:
        raise UserError(
            f"--checkpoint={name}: of kind {checkpoint.config['kind']!r}, which "
            "generates nothing; give an LDM or an RL run"
        )
    if vae is None and "vae" in checkpoint.params:
        return checkpoint
    return combine_checkpoints(checkpoint, load_checkpoint(vae or default_vae(name)))


def default_vae(name: str) -> str:
    """The VAE of an LDM that comes without one.

    Raises:
      UserError: it is not known.
    """
    kind, _, rest = name.partition(":")
    if kind == "mini":
        return "mini:vae"
    if kind == "hub" and "/" not in rest:
        return f"hub:{rest.partition('_ldm_')[0]}_vae"
    training = user_path(name) / "training" / "config.json"
    if training.is_file() and "vae_ckpt_path" in (config := read_json(training)):
        return stored_path(config["vae_ckpt_path"], training)
    raise UserError(
        f"--checkpoint={name}: holds no VAE; name the one it was trained with by --vae"
    )


def stored_path(path: str, origin: Path) -> str:
    """A model's path in a config, relative to where the training was started.

    That was here, or some folder above the model.

    Raises:
      UserError: it is nowhere there.
    """
    if path.startswith(("mini:", "hub:")):
        return path
    for folder in (Path(), *origin.resolve().parents):
        if (folder / user_path(path)).exists():
            return str(folder / user_path(path))
    raise UserError(
        f"{origin}: says that the VAE is {path!r}, which is neither here nor above the "
        "model; name the one it was trained with by --vae"
    )
