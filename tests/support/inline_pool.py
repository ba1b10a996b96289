"""A pool without processes: what it runs can be replaced by a test."""

from chemeleon_jax.workers.outcome import Outcome, Status


class InlinePool:
    """Maps functions over items here and now; what one raises is its outcome."""

    def map(self, function, items, **_):
        outcomes = []
        for item in items:
            try:
                outcomes.append(Outcome(Status.OK, function(item)))
            except Exception as error:
                outcomes.append(Outcome(Status.RAISED, None, repr(error)))
        return outcomes
