"""Evaluation protocols of others, by their definitions, beside the one of this package.

`chemeleon_jax.evaluation.protocols.choice` has them by name. What runs in workers
(`lemat_checks`, `mattergen_checks`, `disorder`) loads no JAX.
"""
