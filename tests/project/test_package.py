import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import paths
import pytest

import chemeleon_jax

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.strip().lower().split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def normalized(name):
    return re.sub("[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_no_address_is_named():
    pins = {normalized(name) for name in PINS}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    names = {normalized(re.match(r"[\w-]+", w).group()) for w in wanted}
    assert names <= pins
    assert not {"torch", "nvidia", "average-minimum-distance"} & pins
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_the_installed_version_is_this_one():
    try:
        installed = version("chemeleon_jax")
    except PackageNotFoundError:
        pytest.skip("run from a clone that is not installed")
    assert installed == chemeleon_jax.__version__


def test_importing_is_light_and_touches_no_network():
    code = (
        "import sys, chemeleon_jax, chemeleon_jax.models.hub, chemeleon_jax.cli;"
        "heavy = {'pymatgen', 'orbax', 'huggingface_hub', 'tensorboardX'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        chemeleon_jax.nothing  # noqa: B018


def test_the_notice_credits_every_source():
    notice = (ROOT / "NOTICE").read_text()
    for words in (
        "CC-BY-4.0",
        "Materials Project",
        "CHGNet",
        "through Lawrence Berkeley National",
        "BSD 3-Clause License",
        "2511.07158",
    ):
        assert words in notice
    assert "MIT License" in (ROOT / "LICENSE").read_text()
