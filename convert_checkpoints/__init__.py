"""PyTorch checkpoints of Chemeleon2 -> this project's models; no torch needed."""

from typing import Any

__all__ = ["CheckpointError", "convert", "read_checkpoint"]

_HOMES = {
    "CheckpointError": "records",
    "convert": "conversion",
    "read_checkpoint": "unpickle",
}


def __getattr__(name: str) -> Any:
    # Lazily, because reading a file needs no JAX.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
