"""What a set of crystals is worth: the parts of `python -m chemeleon_jax.evaluate`."""
