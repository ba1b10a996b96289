"""Verify against recorded numbers: `python -m convert_checkpoints.verify DIR`.

DIR holds Chemeleon2 checkpoints, `golden.npz` (what the original computes with them)
and `meta.json`. Every array of the recording is computed again from the converted
parameters and compared; the exit status is 0 only if all agree.
"""

import json
import os
import sys
from pathlib import Path

from chemeleon_jax.errors import ProgramParser, UserError
from convert_checkpoints.comparison import HEADER, Recording, Row
from convert_checkpoints.records import CheckpointError

PLAIN_ARITHMETIC = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def verify(directory: str | Path, precision: str = "highest") -> list[Row]:
    """Recompute a recording.

    Args:
      directory: of the recording.
      precision: of matrix products, as JAX names it. The tolerances are those of the
        default; lower ones are for a look at what they cost.

    Returns:
      One row per array of the recording; `ok` is False where it differs or where
      nothing compares it.

    Raises:
      UserError: a file is missing or cannot be converted.
    """
    import jax

    from chemeleon_jax.models.store import Checkpoint
    from convert_checkpoints import recompute, replay
    from convert_checkpoints.conversion import convert_source, read_source

    directory = Path(directory)
    recording = Recording(directory / "golden.npz")
    try:
        meta = json.loads((directory / "meta.json").read_text())
        if not meta.keys() >= {"structures", "conditions", "cfg"}:
            raise KeyError("structures, conditions and cfg should be in it")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{directory / 'meta.json'}: {error!r}") from None
    sources = [read_source(path) for path in sorted(directory.glob("*.ckpt"))]
    with jax.default_matmul_precision(precision):
        batch = recompute.check_batch(recording, meta)
        for source in sources:
            params, config = convert_source(source, "raw", {}, sources)
            model = Checkpoint(jax.tree.map(jax.numpy.asarray, params), config)
            if source.kind == "vae":
                recompute.check_vae(recording, model, batch)
            elif source.kind == "predictor":
                recompute.check_predictor(recording, model, batch)
            else:
                name = source.path.stem
                recompute.check_ldm(recording, name, model, batch.mask, meta)
        ldms = [source for source in sources if source.kind == "ldm"]
        tensors = {source.path.stem: source.part("denoiser.") for source in ldms}
        replay.check_moves(recording, tensors)
        recompute.check_rewards(recording)
    return recording.table()


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = ProgramParser("convert_checkpoints.verify", __doc__)
    parser.add_argument("directory", metavar="DIR")
    args = parser.parse_args(argv)
    # Compiles in half the time, and adds and multiplies in the order that is written,
    # which is closer to the original's arithmetic than fused operations are.
    if "jax" not in sys.modules:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {PLAIN_ARITHMETIC}"
    try:
        rows = verify(args.directory)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(HEADER)
    for row in rows:
        print(row)
    failed = [row for row in rows if not row.ok]
    compared = sum(row.max_rel is not None for row in rows)
    print(f"{len(rows)} arrays, {compared} compared directly, {len(failed)} failed")
    for row in failed:
        print(f"failed: {row.key}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
