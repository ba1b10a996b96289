"""Chemeleon2's own rollout and update, by torch, where its code is at hand.

Nothing of it is in this repository. The folder named is a checkout, with `src/` in it
(https://github.com/hspark1212/chemeleon2, MIT); what it imports must be installed:
torch, lightning, torch_geometric, ase, pymatgen.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.accelerator import Session, Setting
from benchmarks.measure import busy, measure
from benchmarks.policy import typical_atom_counts, useful_operations


def build(setting: Setting, device: str) -> tuple[Any, Any]:
    """The original's RL module with random weights, and the batch that it asks for.

    Its constructors load checkpoints; here the same parts are put together without.
    """
    import torch
    from lightning import LightningModule
    from src.data.schema import CrystalBatch, create_empty_batch
    from src.ldm_module.denoisers.dit import DiT
    from src.ldm_module.diffusion import create_diffusion
    from src.ldm_module.ldm_module import LDMModule
    from src.rl_module.rl_module import RLModule
    from src.vae_module.decoders.transformer import TransformerDecoder
    from src.vae_module.encoders.transformer import TransformerEncoder
    from src.vae_module.vae_module import VAEModule

    torch.manual_seed(0)
    dit, layers = setting.dit, setting.vae
    sizes = {
        "d_model": layers["width"],
        "nhead": layers["heads"],
        "dim_feedforward": layers["mlp_width"],
        "num_layers": layers["layers"],
    }
    vae = VAEModule(
        TransformerEncoder(**sizes),
        TransformerDecoder(**sizes),
        dit.latent_channels,
        {"fa": 0.0},
        *(None,) * 2,
        True,
        *(None,) * 3,
    )
    diffusion = {"timestep_respacing": "", "learn_sigma": False}
    ldm = LDMModule.__new__(LDMModule)
    LightningModule.__init__(ldm)
    ldm.register_buffer("latent_std", torch.tensor(1.0))
    ldm.denoiser = DiT(
        latent_dim=dit.latent_channels,
        depth=dit.depth,
        hidden_size=dit.width,
        num_heads=dit.heads,
        learn_sigma=False,
    )
    for parameter in ldm.denoiser.parameters():  # its own start predicts zero
        torch.nn.init.normal_(parameter, std=0.02)
    ldm.vae, ldm.use_cfg = vae.eval().requires_grad_(False), False
    ldm.save_hyperparameters({"diffusion_configs": diffusion}, logger=False)
    ldm.diffusion = create_diffusion(**diffusion)

    rl = RLModule.__new__(RLModule)
    LightningModule.__init__(rl)
    rl.clip_ratio, rl.kl_weight, rl.entropy_weight = 1e-3, 1.0, 1e-5
    rl.num_group_samples, rl.group_reward_norm = setting.group_size, True
    rl.num_inner_batch, rl.ldm, rl.use_cfg = 2, ldm, False
    rl.sampling_configs = SamplingConfigs(setting.steps)
    respaced = diffusion | {"timestep_respacing": f"ddim{setting.steps}"}
    rl.sampling_diffusion = create_diffusion(**respaced)
    rl.manual_backward = lambda loss: loss.backward()
    counts = typical_atom_counts(setting.groups).tolist()
    batch = CrystalBatch.collate(create_empty_batch(counts, "cpu").to_data_list())
    return rl.to(device), batch.repeat(setting.group_size).to(device)


class SamplingConfigs(SimpleNamespace):
    """What `sample` takes as keywords, and the loss reads as fields."""

    def __init__(self, steps: int):
        """DDIM with all of its noise."""
        super().__init__(
            sampler="ddim",
            sampling_steps=steps,
            eta=1.0,
            cfg_scale=2.0,
            collect_trajectory=True,
            progress=False,
        )

    def keys(self):
        """Names of the fields."""
        return vars(self).keys()

    def __getitem__(self, name: str):
        """A field."""
        return vars(self)[name]


def update(rl: Any, trajectory: dict[str, Any], advantages: Any, optimizer: Any):
    """An iteration's optimiser steps, by the original's loss: its `training_step`."""
    import torch

    parts = rl.num_inner_batch
    for i in range(parts):
        optimizer.zero_grad()
        rl.calculate_loss(
            zs=trajectory["zs"].chunk(parts, dim=1)[i],
            log_probs=trajectory["log_probs"].chunk(parts, dim=1)[i],
            advantages=advantages.chunk(parts)[i],
            mask=trajectory["mask"].chunk(parts)[i],
        )
        torch.nn.utils.clip_grad_norm_(rl.ldm.denoiser.parameters(), max_norm=1.0)
        optimizer.step()


def run(session: Session, setting: Setting, folder: Path) -> None:
    """Times both, by float32 and by TF32 products."""
    import torch

    sys.path.insert(0, str(folder))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rl, batch = build(setting, device)
    optimizer = torch.optim.AdamW(
        rl.ldm.denoiser.parameters(), lr=1e-5, weight_decay=0.0
    )
    counts = np.repeat(typical_atom_counts(setting.groups), setting.group_size)
    forward = useful_operations(setting.dit, counts)
    advantages = torch.randn(len(counts), device=device)

    def timed(function) -> float:
        """The least of two calls, after one that warms up."""

        def call():
            function()
            if device == "cuda":
                torch.cuda.synchronize()

        return busy(measure(call, repeats=2))

    precisions = {"float32": "highest"} | ({"TF32": "high"} if device == "cuda" else {})
    for name, precision in precisions.items():
        torch.set_float32_matmul_precision(precision)
        _, trajectory = rl.rollout(batch)
        steps = setting.steps
        for what, function, passes in (
            ("rollout", lambda: rl.rollout(batch), steps),
            (
                "update",
                lambda: update(rl, trajectory, advantages, optimizer),  # noqa: B023
                3 * (steps - 1),
            ),
        ):
            seconds = timed(function)
            session.add(
                "original",
                f"{what}: {len(counts)} crystals, {name}, torch {torch.__version__}",
                **{
                    "s": seconds,
                    "crystals/s": len(counts) / seconds,
                    "TFLOP/s": forward * passes / seconds / 1e12,
                },
            )
