import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import paths
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import chemeleon_jax

ROOT = paths.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = sorted((ROOT / "constraints").glob("*.txt"))


def normalized(name):
    return re.sub("[-_.]+", "-", name).lower()


def pins(file):
    """{package: version}."""
    lines = file.read_text().lower().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {normalized(name): version for name, version in pairs}


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.stem)
def test_every_dependency_is_pinned_and_no_address_is_named(file):
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    names = {normalized(re.match(r"[\w-]+", w).group()) for w in wanted}
    assert names <= set(pins(file))
    assert not {"torch", "nvidia", "average-minimum-distance"} & set(pins(file))
    assert "://" not in file.read_text()


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.stem)
def test_tested_versions_are_those_that_are_allowed(file):
    bounds = {Requirement(d).name: Requirement(d) for d in PROJECT["dependencies"]}
    for package, pin in pins(file).items():
        if package in bounds:
            assert bounds[package].specifier.contains(pin), package
    python, jax = re.fullmatch(r"py3(\d+)-jax([\d.]+)", file.stem).groups()
    assert pins(file)["jax"].startswith(f"{jax}.")
    assert f"3.{python}" in SpecifierSet(PROJECT["requires-python"])


def test_the_default_versions_are_tested_ones():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    (include,) = (line for line in lines if not line.startswith("#"))
    assert ROOT / include.removeprefix("-c ") in CONSTRAINTS


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
