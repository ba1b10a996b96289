"""The policy at work, and how it learns."""
