"""Files with a `get_config`, for --config=FILE[:PRESET]."""
