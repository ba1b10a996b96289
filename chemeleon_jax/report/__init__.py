"""One page of what runs have learnt: `python -m chemeleon_jax.report RUN`."""
