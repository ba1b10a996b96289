"""Models of the hub: those that the authors of Chemeleon2 released, and published ones.

A released file is fetched once and converted once, into the user's cache directory. It
is never unpickled as a whole: see `convert_checkpoints.unpickle`. Of a repository that
`chemeleon_jax.publish` made, the two files of a model directory are fetched, nothing
else: arrays in safetensors, and JSON.
"""

import re
import urllib.error
import urllib.request
from pathlib import Path

from chemeleon_jax.errors import UserError, one_line
from chemeleon_jax.runs.files import cache_folder, digest

REPO = "hspark1212/chemeleon2-checkpoints"
FILES = {
    "mp_20_vae": "v0.0.1/mp_20/vae/dng_m4owq4i5_v0.ckpt",
    "alex_mp_20_vae": "v0.0.1/alex_mp_20/vae/dng_j1jgz9t0_v1.ckpt",
    "mp_20_ldm_base": "v0.0.1/mp_20/ldm/ldm_null_4tfw67aq.ckpt",
    "alex_mp_20_ldm_base": "v0.0.1/alex_mp_20/ldm/ldm_null_k744ob4i.ckpt",
    "mp_20_ldm_rl": "v0.0.1/mp_20/ldm/ldm_rl_dng_xxq3a0mn.ckpt",
    "alex_mp_20_ldm_rl": "v0.0.1/alex_mp_20/ldm/ldm_rl_dng_tuor5vgd.ckpt",
}


def fetch(name: str) -> Path:
    """The model directory of a name, fetched and converted if need be.

    Args:
      name: one of `FILES`, or OWNER/NAME of a repository.

    Raises:
      UserError: no such name, or the hub is out of reach.
    """
    if "/" in name:
        return _fetch_published(name)
    if name not in FILES:
        raise UserError(
            f"hub:{name}: no such model; there are "
            + ", ".join(f"hub:{m}" for m in FILES)
            + ", and hub:OWNER/NAME of published ones"
        )
    models = cache_folder()
    directory = models / Path(FILES[name]).stem
    if (directory / "config.json").is_file():  # the last file to be written
        return directory
    # Only here: most runs never convert.
    from convert_checkpoints import conversion

    files = [_checked(name)]
    if not name.endswith("_vae"):
        # An LDM's file holds its VAE, but not that one's head counts.
        files.append(_checked(name.partition("_ldm_")[0] + "_vae"))
    conversion.convert(files, models if len(files) > 1 else directory)
    return directory


def _fetch_published(repo: str) -> Path:
    """The model directory of a repository, in the hub's local cache.

    It is of the newest revision, or of the one that was fetched last if the hub does
    not answer.

    Raises:
      UserError: there is no such repository, or no model in it, or it is damaged.
    """
    from huggingface_hub import hf_hub_download

    unreachable = None
    try:
        try:
            _ask()
        except OSError as error:
            unreachable = error
        cached = unreachable is not None
        config = Path(hf_hub_download(repo, "config.json", local_files_only=cached))
        weights = hf_hub_download(
            repo,
            "params.safetensors",
            revision=config.parent.name,  # both files are of one commit
            local_files_only=cached,
        )
    except Exception as e:  # its errors have no common base, its cause may be anything
        cause = unreachable or e
        raise UserError(
            f"hub:{repo}: cannot fetch config.json and params.safetensors of {repo} "
            f"({type(cause).__name__}: {one_line(cause)}). Without the network, use "
            "the embedded models (mini:vae, mini:ldm), or bring that model's folder "
            "here and give its path"
        ) from e
    _check(repo, Path(weights))
    return config.parent


def _checked(name: str) -> Path:
    """The file of a hub name, after a look at its checksum.

    Raises:
      UserError: it is another file.
    """
    path = _download(name)
    _check(name, path)
    return path


def _check(name: str, path: Path) -> None:
    """Compares a file with its checksum.

    The hub's cache calls a large file by the SHA-256 that the hub gives for it.

    Raises:
      UserError: it is another file.
    """
    expected = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", expected) and digest(path) != expected:
        raise UserError(
            f"hub:{name}: {path} is not the file that is known under this name (its "
            "SHA-256 differs): delete it to fetch it anew"
        )


def _ask() -> None:
    """Asks once, shortly, whether the hub answers. Any answer will do, a refusal too.

    The hub's client itself retries for half a minute.

    Raises:
      OSError: it does not.
    """
    from huggingface_hub import constants

    probe = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(probe, timeout=5).close()
    except urllib.error.HTTPError as answer:
        answer.close()


def _download(name: str) -> Path:
    """The checkpoint file of a hub name, from the hub's local cache or the network."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(REPO, FILES[name])
    if isinstance(cached, str):
        return Path(cached)
    try:
        _ask()
        return Path(hf_hub_download(REPO, FILES[name]))
    except Exception as e:  # its errors have no common base, its cause may be anything
        raise UserError(
            f"hub:{name}: cannot fetch {FILES[name]} of {REPO} "
            f"({type(e).__name__}: {e}). Without the network, use the embedded models "
            "(mini:vae, mini:ldm), or bring that file here, run `python -m "
            "convert_checkpoints FILE --out DIR` and give DIR instead of the hub name"
        ) from e
