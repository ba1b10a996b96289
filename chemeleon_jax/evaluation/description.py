"""What an evaluation's numbers depend on, and what must be stated with them."""

import importlib.metadata
from typing import Any

from chemeleon_jax import __version__
from chemeleon_jax.data.crystals import MIN_DISTANCE
from chemeleon_jax.data.dataset import Dataset
from chemeleon_jax.evaluation import statistics
from chemeleon_jax.evaluation.judge import STABLE
from chemeleon_jax.evaluation.protocols.choice import PROTOCOLS
from chemeleon_jax.evaluation.scores import RESAMPLES
from chemeleon_jax.evaluation.terms import Judges
from chemeleon_jax.models.store import params_digest
from chemeleon_jax.rewards.stability import FAR_BELOW, MAX_FRACTION, METASTABLE
from chemeleon_jax.runs.files import digest
from chemeleon_jax.workers.prefilter import ANGLE_TOL, LENGTH_TOL, SITE_TOL
from chemeleon_jax.workers.symmetry import SYMMETRY_TOLERANCE


def describe_protocol(args, dataset: Dataset, vae_params, judges) -> dict[str, Any]:
    """The protocol of `summary.json`, of the flags of a command."""
    metrics = PROTOCOLS.get(args.protocol)
    return ({"metrics_of": metrics.description()} if metrics else {}) | {
        **describe_judging(args.reference, dataset, judges),
        "matcher": {"ltol": LENGTH_TOL, "stol": SITE_TOL, "angle_tol": ANGLE_TOL},
        "potential": args.potential,
        "hull": str(args.hull or args.reference),
        "hull_sha256": digest(args.hull) if args.hull else None,
        "relaxed": args.relax,
        "relaxed_with": args.relax_with if args.relax else None,
        "relax_steps": args.relax_steps if args.relax else None,
        "max_force": args.max_force if args.relax else None,
        "relax_time_limit": args.relax_time_limit if args.relax else None,
        "metastable": METASTABLE,
        "stable": STABLE,
        "far_below_hull": FAR_BELOW,
        "max_fraction": MAX_FRACTION,
        "min_distance": MIN_DISTANCE,
        "symmetry_tolerance": SYMMETRY_TOLERANCE,
        "vae": args.vae,
        "vae_sha256": params_digest(vae_params),
        "bootstrap": {"resamples": RESAMPLES, "confidence": statistics.CONFIDENCE},
        "smact": importlib.metadata.version("smact"),
        "pymatgen": importlib.metadata.version("pymatgen"),
    }


def describe_judging(reference: str, dataset: Dataset, judges: Judges) -> dict:
    """Known crystals, by which name, and potentials: for any protocol."""
    return {
        "reference": {
            "name": reference,
            "size": len(dataset),
            "sha256": dataset.digest,
        },
        "potentials": {
            name: {
                "sha256": potential.digest,
                "corrections": potential.scheme,
                "hull_entries": len(hull),
            }
            for name, (potential, hull) in judges.items()
        },
        "version": __version__,
    }
