"""How chemeleon_jax/assets/nequix-oam-1-pft.safetensors was made.

    git clone https://github.com/atomicarchitects/nequix
    python -m tools.build_nequix nequix/models/nequix-oam-1-pft.nqx \
        nequix-oam-1-pft.safetensors

MIT licence (Koker et al., arXiv:2508.16067 and arXiv:2601.07742). The file is that of
commit 0ffdf88. Factors of normalisation are folded into the weights, as in
`potentials.nequix`, which reads it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict

from chemeleon_jax.potentials.nequix import read_model
from tools.build_chgnet import save_weights

CHECKPOINT = "models/nequix-oam-1-pft.nqx"  # in their repository
SOURCE = "https://github.com/atomicarchitects/nequix, commit 0ffdf88"


def build_nequix(checkpoint: Path, out: Path) -> None:
    """Convert a checkpoint of Nequix to the file `out`."""
    params, model = read_model(checkpoint.read_bytes(), str(checkpoint))
    (design,) = model.graph_energy.args  # pyright: ignore[reportFunctionMemberAccess]
    tensors = flatten_dict(params, sep="/")
    metadata = {
        "architecture": json.dumps(vars(design)),
        "model": checkpoint.stem,
        "source": SOURCE,
    }
    save_weights(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata, out
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    build_nequix(args.checkpoint, args.out)


if __name__ == "__main__":
    main()
