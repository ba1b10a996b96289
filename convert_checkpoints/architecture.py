"""What a checkpoint is: kind, sizes from shapes, the rest from its hyper-parameters.

Nothing is guessed. Head counts are in no shape; they come from the pickled modules, or
from the user. Settings that this project's models do not have are refused.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from chemeleon_jax.data.types import CrystalBatch
from chemeleon_jax.models.condition import ConditionEncoder, input_width
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.predictor import Predictor
from chemeleon_jax.models.vae import VAE
from convert_checkpoints.records import CheckpointError, Record
from convert_checkpoints.tables import Flat

# What the original allows and this project's models, so far, do not: setting -> value
# that is supported.
DIFFUSION = {
    "diffusion_steps": 1000,
    "predict_xstart": False,
    "rescale_learned_sigmas": True,
    "noise_schedule": "linear",
    "use_kl": False,
    "sigma_small": False,
}


def find_kind(names) -> str:
    """One of "vae", "ldm" and "predictor", by the names of the tensors."""
    roots = {name.partition(".")[0] for name in names}
    if any("lora_" in name for name in names):
        raise CheckpointError(
            "carries LoRA adapters; merge them into the denoiser first (peft: "
            "merge_and_unload), then save it"
        )
    if "denoiser" in roots:
        return "ldm"
    if {"proj", "vae"} <= roots:
        return "predictor"
    if {"encoder", "decoder", "quant_conv"} <= roots:
        return "vae"
    raise CheckpointError(
        "is no Chemeleon2 VAE, LDM or predictor: its tensors are called "
        + (", ".join(sorted(map(str, names))[:5])[:300] or "nothing at all")
    )


def plain(value: Any, depth: int = 6) -> Any:
    """OmegaConf containers and attribute dicts as dicts, lists and scalars."""
    if depth == 0:
        raise CheckpointError("hyper-parameters are nested too deeply")
    if isinstance(value, Record):
        if value.get("_content") is not None:
            return plain(value.get("_content"), depth)
        if value.name.startswith("omegaconf."):
            return plain(value.get("_val"), depth - 1)
        return plain(value.pairs, depth) if value.pairs else value
    if isinstance(value, dict):
        return {k: plain(v, depth - 1) for k, v in value.items()}
    return value


def attribute(module: Any, *path: str) -> Any:
    """A submodule or attribute of a pickled torch module; None if it is not there."""
    for name in path:
        if not isinstance(module, Record):
            return None
        modules = module.get("_modules")
        modules = modules if isinstance(modules, dict) else {}
        module = modules[name] if name in modules else module.get(name)
    return module


def shape(tensors: Flat, name: str, axes: int = 2) -> tuple[int, ...]:
    """Shape of a tensor that must be there."""
    if name not in tensors:
        raise CheckpointError(f"tensor {name!r} is missing")
    if tensors[name].ndim != axes:
        raise CheckpointError(
            f"tensor {name!r} has shape {tensors[name].shape}, not {axes} axes"
        )
    return tensors[name].shape


def count(tensors: Flat, prefix: str) -> int:
    """How many numbered modules there are under a prefix."""
    found = {
        n[len(prefix) :].partition(".")[0] for n in tensors if n.startswith(prefix)
    }
    if found != {str(i) for i in range(len(found))} or not found:
        raise CheckpointError(f"modules {prefix}* are not numbered from 0")
    if len(found) > 200:
        raise CheckpointError(f"{len(found)} modules {prefix}* are not credible")
    return len(found)


def check_heads(heads: dict[str, int], found: dict[str, Any]) -> dict[str, int]:
    """Head counts: those `found` in the file, and the user's for the rest (None).

    By part: "encoder", "decoder" and "dit".
    """
    settled = {}
    for part, value in found.items():
        given = heads.get(part)
        if value is not None and given not in (None, value):
            raise CheckpointError(f"{part} has {value} heads by the file, not {given}")
        value = settled[part] = value if value is not None else given
        if value is not None and not (type(value) is int and 1 <= value <= 1024):
            raise CheckpointError(f"{part} cannot have {str(value)[:40]} heads")
    missing = [part for part, value in settled.items() if value is None]
    if missing:
        raise CheckpointError(
            f"does not say how many attention heads its {' and '.join(missing)} have, "
            "and no shape tells. An LDM file does not hold its VAE's: convert it "
            "together with the VAE checkpoint it was trained on. Or give "
            + " ".join(f"--heads {part}=NUMBER" for part in missing)
        )
    return settled


def check_width(part: str, width: int, heads: int) -> None:
    """Index embeddings want an even width, attention a multiple of the head count."""
    if width % 2 or width % heads:
        raise CheckpointError(f"{part}: a width of {width} does not fit {heads} heads")


def _same(values: list, what: str) -> Any:
    if any(type(v) is not int or v != values[0] for v in values):
        raise CheckpointError(f"{what} are not one number: not supported")
    return values[0]


def vae_heads(encoder: Any, decoder: Any) -> dict[str, int | None]:
    """Head counts of pickled VAE modules, after a look at what else they could be."""
    heads: dict[str, int | None] = {}
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        heads[part] = None
        if not isinstance(module, Record):
            continue
        if not module.name.startswith(f"src.vae_module.{part}s.transformer."):
            raise CheckpointError(f"{part} {module.name[:80]} is not supported")
        layers = attribute(module, "transformer", "layers", "_modules")
        if not isinstance(layers, dict) or not layers:
            continue
        for layer in layers.values():
            paths = "activation.approximate", "norm_first", "norm1.eps", "norm2.eps"
            settings = [attribute(layer, *path.split(".")) for path in paths]
            if settings != ["tanh", True, 1e-5, 1e-5]:
                raise CheckpointError(
                    f"{part}: only pre-norm layers with tanh-GELU and epsilon 1e-5 are "
                    "supported"
                )
        heads[part] = _same(
            [attribute(layer, "self_attn", "num_heads") for layer in layers.values()],
            "head counts of its layers",
        )
    return heads


def vae_config(tensors: Flat, heads: dict[str, int]) -> dict[str, Any]:
    """Keywords of `VAE`, from shapes (names without prefix) and head counts."""
    if "decoder.atom_types_head.weight" not in tensors:
        raise CheckpointError("a VAE that does not predict atom types is not supported")
    config: dict[str, Any] = {
        "latent_channels": shape(tensors, "quant_conv.weight")[0] // 2
    }
    for part in ("encoder", "decoder"):
        layers = f"{part}.transformer.layers."
        mlp_width, width = shape(tensors, f"{layers}0.linear1.weight")
        check_width(part, width, heads[part])
        config[part] = {
            "width": width,
            "layers": count(tensors, layers),
            "heads": heads[part],
            "mlp_width": mlp_width,
            # The layers say tanh-GELU, but in evaluation mode torch runs its fused
            # encoder layer, which has the exact one: so has every number of the
            # original that starts from a trained VAE. (With odd head counts torch has
            # no fused layer.)
            "activation": "gelu" if heads[part] % 2 else "gelu_exact",
        }
    return config


def dit_heads(denoiser: Any) -> int | None:
    """Head count of a pickled denoiser."""
    if not isinstance(denoiser, Record):
        return None
    if not denoiser.name.startswith("src.ldm_module.denoisers.dit."):
        raise CheckpointError(f"denoiser {denoiser.name[:80]} is not supported")
    blocks = attribute(denoiser, "blocks", "_modules")
    if not isinstance(blocks, dict) or not blocks:
        return attribute(denoiser, "num_heads")
    return _same([attribute(b, "attn", "num_heads") for b in blocks.values()], "heads")


def dit_config(tensors: Flat, heads: int) -> dict[str, Any]:
    """Keywords of `DiT`."""
    width, latent = shape(tensors, "x_embedder.weight")
    mlp_width, _ = shape(tensors, "blocks.0.mlp.fc1.weight")
    outputs, _ = shape(tensors, "final_layer.linear.weight")
    check_width("dit", width, heads)
    if outputs not in (latent, 2 * latent) or mlp_width % width:
        raise CheckpointError(
            f"a denoiser with {outputs} outputs for {latent} latent channels and an "
            f"MLP of {mlp_width} on a width of {width} is not supported"
        )
    return {
        "depth": count(tensors, "blocks."),
        "width": width,
        "heads": heads,
        "mlp_ratio": mlp_width // width,
        "latent_channels": latent,
        "learn_sigma": outputs == 2 * latent,
    }


def check_diffusion(settings: Any) -> dict[str, Any]:
    """Diffusion settings, all of which this project fixes; others are refused."""
    settings = plain(settings) or {}
    for name, supported in DIFFUSION.items():
        if settings.get(name, supported) != supported:
            raise CheckpointError(
                f"diffusion setting {name}={settings[name]!r} is not supported, only "
                f"{supported!r}"
            )
    return {"timesteps": 1000, "schedule": "linear"}


def condition_config(tensors: Flat, settings: Any) -> dict[str, Any]:
    """Keywords of `ConditionEncoder`."""
    settings = plain(settings)
    kinds = settings.get("condition_type") if isinstance(settings, dict) else None
    if not isinstance(kinds, dict):
        raise CheckpointError(
            "the kinds of its conditions are only in the hyper-parameters of the "
            "Lightning checkpoint: convert that file"
        )
    specs = []
    for name, kind in kinds.items():
        if kind not in ("float", "composition", "chemical_system", "categorical"):
            raise CheckpointError(f"condition {name!r} of kind {kind!r}: not supported")
        spec = {"name": str(name), "kind": kind}
        if kind == "float":
            stats = (settings.get("stats") or {}).get(name) or {}
            # Without statistics the original takes the value as it is.
            spec["mean"], spec["std"] = mean_and_std(stats, (0.0, 1.0))
        if kind == "categorical":
            spec["num_classes"] = shape(tensors, f"encoders.{name}.null_embed")[1]
        specs.append(spec)
    return {"specs": specs, "width": shape(tensors, "proj.2.weight")[0]}


def mean_and_std(stats: dict, missing: tuple[float, float]) -> tuple[float, float]:
    """Mean and standard deviation of labels, `missing` if one of them is unknown."""
    mean, std = stats.get("mean"), stats.get("std")
    return missing if mean is None or std is None else (float(mean), float(std))


def predictor_config(settings: dict, num_targets: int) -> dict[str, Any]:
    """Keywords of `Predictor`."""
    targets = plain(settings.get("target_conditions"))
    if not isinstance(targets, dict) or len(targets) != num_targets:
        raise CheckpointError(
            "the names and statistics of its targets are only in the hyper-parameters "
            "of the Lightning checkpoint: convert that file"
        )
    if (settings.get("reduce"), settings.get("use_encoder_features")) != ("mean", True):
        raise CheckpointError(
            "only predictors with reduce='mean' and use_encoder_features=True are "
            "supported"
        )
    # Without statistics the original leaves predictions alone; the module adds 1e-5.
    labels = [
        mean_and_std(stats if isinstance(stats, dict) else {}, (0.0, 1 - 1e-5))
        for stats in targets.values()
    ]
    return {
        "targets": [str(name) for name in targets],
        "mean": [mean for mean, _ in labels],
        "std": [std for _, std in labels],
    }


def target_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Paths and shapes of all parameters of the model that a config describes."""
    parts: dict[str, tuple] = {}  # a module, and inputs of it
    mask, vector = jnp.ones((1, 2), bool), jnp.zeros((1, 3))

    def per_atom(width: int):
        return jnp.zeros((1, 2, width))

    if config.get("vae"):
        vae = VAE(**config["vae"])
        types = jnp.ones((1, 2), jnp.int32)
        crystals = CrystalBatch(types, per_atom(3), vector, vector, mask)
        noise = per_atom(vae.latent_channels)
        parts["vae"] = vae, crystals, jnp.zeros((1, 3, 3)), noise
    if config.get("dit"):
        dit = DiT(**config["dit"])
        parts["dit"] = dit, per_atom(dit.latent_channels), jnp.zeros(1), mask
    if config.get("condition"):
        specs = config["condition"]["specs"]
        vectors = {s["name"]: jnp.zeros((1, input_width(s))) for s in specs}
        encoder = ConditionEncoder(**config["condition"])
        parts["condition"] = encoder, vectors, jnp.ones(1, bool)
    if config.get("predictor"):
        sizes = config["vae"]
        features = per_atom(sizes["encoder"]["width"])
        z = per_atom(sizes["latent_channels"])
        parts["predictor"] = Predictor(**config["predictor"]), features, z, mask
    shapes = {}
    for part, (module, *inputs) in parts.items():
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
        for path, leaf in flatten_dict(params, sep="/").items():
            shapes[f"{part}/{path}"] = leaf.shape
    return shapes


def check_floats(tensors: dict[str, Any]) -> Flat:
    """The same tensors, checked.

    Raises:
      CheckpointError: something that is no tensor, not of floats, or not finite.
    """
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray):
            raise CheckpointError(f"{str(name)[:80]!r} is not a plain tensor")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise CheckpointError(f"tensor {name!r} has type {value.dtype}, not floats")
        total = value.sum(dtype=np.float64)
        if not np.isfinite(total) and not np.isfinite(value).all():
            raise CheckpointError(f"tensor {name!r} has values that are not finite")
    return {str(name): value for name, value in tensors.items()}
