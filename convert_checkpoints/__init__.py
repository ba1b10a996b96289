"""PyTorch checkpoints of Chemeleon2 -> this project's parameters; no torch needed."""
