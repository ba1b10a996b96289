"""Crystals and data sets as padded arrays: types, lattices, files, batches."""
