"""How the property tests draw: always the same examples, nothing kept on disk."""

from hypothesis import HealthCheck, settings

FAST = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SLOW = settings(FAST, max_examples=5)  # where an example takes a second
