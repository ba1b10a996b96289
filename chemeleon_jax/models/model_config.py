"""What the `config.json` of a model says, checked before a model is built of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from chemeleon_jax.errors import one_line
from chemeleon_jax.models.condition import input_width
from chemeleon_jax.models.dit import DiT
from chemeleon_jax.models.vae import VAE, Decoder, Encoder

LARGEST = 2**16  # of a size


class Rule(NamedTuple):
    """What a value must be."""

    holds: Callable[[Any], bool]
    words: str


def one_of(*names: str) -> Rule:
    """One of some names."""
    return Rule(lambda x: x in names, f"one of {', '.join(names)}")


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and -1e30 < x < 1e30  # neither is NaN


def _is_size(x: Any) -> bool:
    return type(x) is int and 0 < x <= LARGEST


def _are_names(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(name, str) for name in x)


SIZE = Rule(_is_size, f"a whole number from 1 to {LARGEST}")
WIDTH = Rule(lambda x: _is_size(x) and x % 2 == 0, f"an even number up to {LARGEST}")
NUMBER = Rule(_is_number, "a finite number")
POSITIVE = Rule(lambda x: _is_number(x) and x > 1e-30, "a number above 0")
NUMBERS = Rule(
    lambda x: isinstance(x, list) and all(map(_is_number, x)), "a list of numbers"
)
FLAG = Rule(lambda x: isinstance(x, bool), "true or false")
NAME = Rule(lambda x: isinstance(x, str) and x != "", "a name")
NAMES = Rule(lambda x: _are_names(x) and len(x) > 0, "a list of names")
LIST = Rule(lambda x: isinstance(x, list) and len(x) > 0, "a list of conditions")
SECTION = Rule(lambda x: isinstance(x, Mapping), "a section")

CODER = {
    "width": WIDTH,
    "layers": SIZE,
    "heads": SIZE,
    "mlp_width": SIZE,
    "activation": one_of("gelu", "gelu_exact", "silu"),
}
# Keywords of modules, which have defaults.
MODULES = {
    "vae": {"encoder": SECTION, "decoder": SECTION, "latent_channels": SIZE},
    "dit": {
        "depth": SIZE,
        "width": WIDTH,
        "heads": SIZE,
        "mlp_ratio": SIZE,
        "latent_channels": SIZE,
        "learn_sigma": FLAG,
    },
}
PREDICTOR = {"targets": NAMES, "mean": NUMBERS, "std": NUMBERS}
CONDITION = {"width": SIZE, "specs": LIST}
SPEC = {
    "float": {"name": NAME, "mean": NUMBER, "std": POSITIVE},
    "categorical": {"name": NAME, "num_classes": SIZE},
    "composition": {"name": NAME},
    "chemical_system": {"name": NAME},
    "space_group": {"name": NAME},
    "crystal_system": {"name": NAME},
}
KINDS = {"vae": "vae", "ldm": "dit", "predictor": "predictor"}  # the part it is about


def check_config(config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Compares the config of a model with what there can be, and with its arrays.

    Raises:
      ValueError: the field, and what it must be.
    """
    _check({"kind": one_of(*KINDS)}, config)
    has = {KINDS[config["kind"]], *params}
    sections = ("vae", "dit", "condition", "predictor")
    has |= {name for name in sections if config.get(name) is not None}
    _check({name: SECTION for name in sections if name in has}, config)
    for name in MODULES.keys() & has:
        _check_keywords(MODULES[name], config[name], name)
    if "vae" in has:
        for name in ("encoder", "decoder"):
            _check_keywords(CODER, config["vae"].get(name, {}), f"vae.{name}")
    if "dit" in has:
        _check({"latent_std": POSITIVE}, config)
    if "condition" in has:
        _check_condition(config["condition"])
    if "predictor" in has:
        _check(PREDICTOR, config["predictor"], "predictor")
        if len({len(config["predictor"][name]) for name in PREDICTOR}) > 1:
            raise ValueError("predictor: its targets, mean and std differ in number")
        if "vae" not in params:
            _check({"vae_ckpt_path": NAME}, config)
    for field, said, found in _sizes(config, params):
        if found is not None and said != found:
            raise ValueError(
                f"{field}: makes {said} where params.safetensors has {found}"
            )


def _check(rules: Mapping[str, Rule], values: Mapping[str, Any], where="") -> None:
    """Every field of `rules` is there and what it must be."""
    for field, rule in rules.items():
        value = values.get(field)
        if not rule.holds(value):
            found = one_line(repr(value))[:60] if field in values else "missing"
            place = f"{where}.{field}" if where else field
            raise ValueError(f"{place}: {found}, but must be {rule.words}")


def _check_keywords(rules: Mapping[str, Rule], values: Mapping, where: str) -> None:
    """Those that are there are what they must be, and no others are."""
    _check({k: rule for k, rule in rules.items() if k in values}, values, where)
    if unknown := sorted(values.keys() - rules.keys()):
        known = ", ".join(rules)
        raise ValueError(f"{where}: has no {one_line(unknown[0])[:60]!r}, but {known}")


def _check_condition(condition: Mapping[str, Any]) -> None:
    _check(CONDITION, condition, "condition")
    names = []
    for i, spec in enumerate(condition["specs"]):
        _check({f"{i}": SECTION}, {f"{i}": spec}, "condition.specs")
        _check({"kind": one_of(*SPEC)}, spec, f"condition.specs.{i}")
        _check(SPEC[spec["kind"]], spec, f"condition.specs.{i}")
        names.append(spec["name"])
    if len({*names}) < len(names):
        raise ValueError("condition.specs: two have the same name")


# ----------------------------------------------------------------------- the arrays


def _sizes(config: Mapping, params: Mapping) -> Iterator[tuple[str, int, int | None]]:
    """Fields, the sizes they stand for, and those of the arrays, None without any."""
    shapes = {name: x.shape for name, x in flatten_dict(params, sep="/").items()}

    def size(array: str) -> int | None:
        """Of the last axis."""
        return shapes[array][-1] if shapes.get(array) else None

    def count(start: str) -> int | None:
        rest = {n[len(start) :].split("/")[0] for n in shapes if n.startswith(start)}
        return len(rest) or None

    if "dit" in params:
        dit = DiT(**config["dit"])
        _check_heads("dit", dit)
        outputs = dit.latent_channels * (2 if dit.learn_sigma else 1)
        hidden = dit.mlp_ratio * dit.width
        yield "dit.width", dit.width, size("dit/latent/bias")
        yield "dit.depth", dit.depth, count("dit/block_")
        yield "dit.mlp_ratio", hidden, size("dit/block_0/mlp/in/bias")
        yield "dit.latent_channels or learn_sigma", outputs, size("dit/final/bias")
    if "vae" in params:
        vae = config["vae"]
        channels = vae.get("latent_channels", VAE.latent_channels)
        yield "vae.latent_channels", 2 * channels, size("vae/moments/kernel")
        for name, part, module, array in (
            ("encoder", "vae/encode_atoms", Encoder, "atom_type/embedding"),
            ("decoder", "vae/decode_atoms", Decoder, "latent/kernel"),
        ):
            coder, mlps = module(**vae.get(name, {})), f"{part}/transformer/mlp_"
            _check_heads(f"vae.{name}", coder)
            yield f"vae.{name}.width", coder.width, size(f"{part}/{array}")
            yield f"vae.{name}.layers", coder.layers, count(mlps)
            yield f"vae.{name}.mlp_width", coder.mlp_width, size(f"{mlps}0/in/bias")
    if config.get("condition"):
        condition = config["condition"]
        width = size("condition/joint/out/bias") or 0
        nulls = [n for n in params.get("condition", ()) if n.endswith("_null")]
        yield "condition.width", condition["width"], width
        yield "condition.specs", len(condition["specs"]), len(nulls)
        for i, spec in enumerate(condition["specs"]):
            found = size(f"condition/{spec['name']}_null") or 0
            yield f"condition.specs.{i}", input_width(spec), found
    if "predictor" in params:
        targets = config["predictor"]["targets"]
        yield "predictor.targets", len(targets), size("predictor/out/bias")


def _check_heads(where: str, module: DiT | Encoder | Decoder) -> None:
    if module.width % module.heads:
        raise ValueError(
            f"{where}.heads: {module.heads}, but must divide the width {module.width}"
        )
