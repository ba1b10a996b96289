"""Potentials: energies of crystals, and the convex hull that judges them.

Every potential is a `types.Potential`; `loading.load_potential` makes one from a config
string, and `hull.load_hull` gives the hull whose entries the same potential has
evaluated.
"""
