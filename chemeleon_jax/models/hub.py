"""The models that the authors of Chemeleon2 released, by name.

A file is fetched once and converted once, into the user's cache directory. It is never
unpickled as a whole: see `convert_checkpoints.unpickle`.
"""

import re
import urllib.error
import urllib.request
from pathlib import Path

from chemeleon_jax.errors import UserError
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
    """The model directory of a released model, fetched and converted if need be.

    Raises:
      UserError: no such name, or the hub is out of reach.
    """
    if name not in FILES:
        raise UserError(
            f"hub:{name}: no such model; there are "
            + ", ".join(f"hub:{m}" for m in FILES)
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


def _checked(name: str) -> Path:
    """The file of a hub name, after a look at its checksum.

    The hub's cache calls a large file by the SHA-256 that the hub gives for it.

    Raises:
      UserError: it is another file.
    """
    path = _download(name)
    expected = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", expected) and digest(path) != expected:
        raise UserError(
            f"hub:{name}: {path} is not the file that is known under this name (its "
            "SHA-256 differs): delete it to fetch it anew"
        )
    return path


def _download(name: str) -> Path:
    """The checkpoint file of a hub name, from the hub's local cache or the network."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(REPO, FILES[name])
    if isinstance(cached, str):
        return Path(cached)
    try:
        # hf_hub_download retries for half a minute: ask once, shortly, whether the hub
        # answers at all. Any answer will do, a refusal too.
        probe = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            urllib.request.urlopen(probe, timeout=5).close()
        except urllib.error.HTTPError as answer:
            answer.close()
        return Path(hf_hub_download(REPO, FILES[name]))
    except Exception as e:  # its errors have no common base, its cause may be anything
        raise UserError(
            f"hub:{name}: cannot fetch {FILES[name]} of {REPO} "
            f"({type(e).__name__}: {e}). Without the network, use the embedded models "
            "(mini:vae, mini:ldm), or bring that file here, run `python -m "
            "convert_checkpoints FILE --out DIR` and give DIR instead of the hub name"
        ) from e
