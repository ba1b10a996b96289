"""A run on disk: its directory, states, events, crystals, and how it ends."""
