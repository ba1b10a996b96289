"""Custom rewards of every kind of user; worker processes import them by name."""

import os
import sys
import time

import numpy as np


def num_sites(structures):
    return np.array([len(s) for s in structures])


def ranks(structures):
    """Depends on the whole batch."""
    return np.argsort(np.argsort([s.volume for s in structures])).tolist()


def raises(structures):
    raise RuntimeError("no such phonon")


def raises_for_three_sites(structures):
    if any(len(s) == 3 for s in structures):
        raise RuntimeError("three is a crowd")
    return num_sites(structures)


def nan_for_three_sites(structures):
    return np.where(num_sites(structures) == 3, np.nan, num_sites(structures))


def one_number(structures):
    return 1.0


def hangs_for_three_sites(structures):
    while any(len(s) == 3 for s in structures):
        time.sleep(0.01)
    return num_sites(structures)


def hangs(structures):
    while True:
        time.sleep(0.01)


def dies_for_three_sites(structures):
    if any(len(s) == 3 for s in structures):
        os.abort()
    return num_sites(structures)


def exits(structures):
    sys.exit(3)


def leaks_for_three_sites(structures):
    leak = []
    while any(len(s) == 3 for s in structures):
        leak.append(bytes(1 << 26))
    return num_sites(structures)


not_a_function = 1.0
