"""Custom rewards of every kind of user; worker processes import them by name."""

import ctypes
import os
import signal
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


def overflows_for_three_sites(structures):
    """Finite as float64, infinite as float32."""
    return np.where(num_sites(structures) == 3, 1e39, num_sites(structures))


def masked_for_three_sites(structures):
    return np.ma.masked_equal(num_sites(structures), 3)


def huge(structures):
    return 1e30 * num_sites(structures)


class ScorerClass:
    def __init__(self, structures):
        self.structures = structures


async def asynchronous(structures):
    return num_sites(structures)


def two_arguments(structures, scale):
    return scale * num_sites(structures)


def complex_numbers(structures):
    return 1j * num_sites(structures)


def exits(structures):
    sys.exit(3)


def leaks_for_three_sites(structures):
    leaks_for_sizes({len(s) for s in structures}, 3)
    return num_sites(structures)


def leaks_for_sizes(sizes, size):
    leak = []
    while size in sizes:
        leak.append(bytes(1 << 26))


def misbehaves_by_size(structures):
    """One atom: killed from outside. Two: fills the memory. Three: segfaults."""
    sizes = {len(s) for s in structures}
    if 1 in sizes:
        os.kill(os.getpid(), signal.SIGKILL)
    leaks_for_sizes(sizes, 2)
    if 3 in sizes:
        ctypes.string_at(0)
    return num_sites(structures)


not_a_function = 1.0
