"""What a run's crystals were made of, iteration by iteration, as a picture.

    python tools/draw_drift.py runs/rl_dng --elements=H,O,Ga --picture=drift.png

From the crystals that the run has saved: the share of the valid ones that contain each
element, the effective number of elements, and what the reward called metastable; each
of the last five iterations together.
"""

import argparse
from pathlib import Path

import numpy as np

from chemeleon_jax.data.crystals import SYMBOLS, crystals_of
from chemeleon_jax.rewards.drift import count_atoms, effective_elements, element_shares
from chemeleon_jax.rewards.stability import is_metastable
from chemeleon_jax.runs.iteration_files import read_iteration

WINDOW = 5  # iterations


def measure(run: Path, elements: list[str]) -> dict[str, list[float]]:
    """Curves of a run, {name: one value per iteration}."""
    numbers = [SYMBOLS.index(symbol) for symbol in elements]
    curves: dict[str, list[float]] = {name: [] for name in elements}
    curves |= {"effective elements": [], "metastable": []}
    counts, metastable = [], []
    for file in sorted((run / "crystals").glob("iteration_*.npz")):
        arrays = read_iteration(file)
        counts.append(count_atoms(crystals_of(arrays))[arrays["valid"]])
        metastable.append(is_metastable(arrays["e_above_hull"]))
        last = np.concatenate(counts[-WINDOW:])
        shares = element_shares(last)
        for symbol, number in zip(elements, numbers, strict=True):
            curves[symbol].append(shares[number])
        curves["effective elements"].append(effective_elements(last))
        curves["metastable"].append(np.concatenate(metastable[-WINDOW:]).mean())
    return curves


def draw(curves: dict[str, list[float]], elements: list[str], file: Path) -> None:
    """Three panels side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
    axes[0].plot(100 * np.array(curves["metastable"]))
    axes[0].set_title("metastable by the reward, %")
    for symbol in elements:
        axes[1].plot(100 * np.array(curves[symbol]), label=symbol)
    axes[1].legend()
    axes[1].set_title("crystals with the element, %")
    axes[2].plot(curves["effective elements"])
    axes[2].set_title("effective number of elements")
    for axis in axes:
        axis.set(xlabel="iteration", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--elements", default="H,O,Ga")
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()
    elements = args.elements.split(",")
    curves = measure(args.run, elements)
    draw(curves, elements, args.picture)
    for name, values in curves.items():
        every = values[:: max(len(values) // 10, 1)]
        print(f"{name:20}", *(f"{x:7.3f}" for x in every))


if __name__ == "__main__":
    main()
