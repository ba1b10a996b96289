"""Configs as the command line of `train` gives them."""

import contextlib

from paths import ROOT

from chemeleon_jax.cli import parse


def parsed(*arguments, config="configs/rl_dng.py"):
    with contextlib.chdir(ROOT):
        return parse(["train", f"--config={config}", *arguments])[0]
