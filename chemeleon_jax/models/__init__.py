"""The networks, as Flax Linen modules."""
