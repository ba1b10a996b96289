"""Models by name: embedded, released, a directory of a model, a run."""

from importlib.resources import files
from pathlib import Path

from chemeleon_jax.errors import UserError
from chemeleon_jax.models import hub
from chemeleon_jax.models.condition import without_conditions
from chemeleon_jax.models.store import Checkpoint, load_model, load_run
from chemeleon_jax.runs.files import digest, user_path

MINI = Path(str(files("chemeleon_jax"))) / "assets" / "mini"
# SHA-256 of each config.json, which holds that of the parameters. Trained anew, a model
# needs its new one here.
MINI_MODELS = {
    "vae": "c843315f4ce7dcb8640679f66c4ca3044141c7ba2426052370d762d619cb0a6b",
    "ldm_conditional": (
        "4a0919ed5c751d6e7ed263d841843bb40a6ebd9a601f6fb469d5c3b83d9982eb"
    ),
    "predictor": "1993d5e3c8a2ae9fb7a881bfda33b9630335a1751c96e40cd146ebfa7e28db51",
}


def load_checkpoint(name, *, weights: str = "ema", step: str = "latest") -> Checkpoint:
    """Loads a model: embedded, from the hub, from a model or a run directory.

    Args:
      name: `mini:` and one of `MINI_MODELS`, or `mini:ldm`, which is the conditional
        one asked for nothing; `hub:` and one of `hub.FILES`, fetched and converted
        once, or OWNER/NAME of a published model; or a path. Of a run directory: its
        policy, with the frozen parts it started from; `RUN@best` is RUN with
        `step="best"`.
      weights: of a run directory: "ema", the moving average of its policies (where the
        run keeps none, the policy itself), or "raw".
      step: "latest", or "best" by validation score, of a run directory.

    Returns:
      Parameters as float32 NumPy arrays, and the model's config.

    Raises:
      UserError: no such name or path, a damaged file, or the hub is out of reach.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "mini":
        return _load_mini(rest)
    if kind == "hub":
        return load_model(hub.fetch(rest))
    path = user_path(name)
    if path.suffix == ".ckpt":
        raise UserError(
            f"{path}: a PyTorch checkpoint; convert it first: "
            f"python -m convert_checkpoints {path} --out converted/"
        )
    run = Path(str(path).removesuffix("@best"))
    if (run / "checkpoints").is_dir():
        return load_run(run, weights, "best" if run != path else step)
    return load_model(path)


def _load_mini(name: str) -> Checkpoint:
    if name == "ldm":  # one file for both
        return Checkpoint(*without_conditions(*_load_mini("ldm_conditional")))
    if name not in MINI_MODELS:
        raise UserError(
            f"mini:{name}: no such embedded model; there are "
            + ", ".join(f"mini:{m}" for m in ("ldm", *MINI_MODELS))
        )
    config = MINI / name / "config.json"
    if not config.is_file() or digest(config) != MINI_MODELS[name]:
        raise UserError(f"{config} was altered: install chemeleon_jax again")
    return load_model(MINI / name)
