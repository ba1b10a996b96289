"""Random damage to files, and an alarm for readers that hang."""

import contextlib
import random
import signal

INTERESTING = [b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"(", b"R", b"b", b"cos\nsystem\n"]
TIME_LIMIT = 20  # s, for one file


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four random edits: bits, bytes, cuts, copies, insertions."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 4, 30, 1000]))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                data[at:at] = rng.choice(INTERESTING)
            case _:
                data[at : at + 8] = rng.choice(INTERESTING)
    return bytes(data)


class HangError(BaseException):
    """Not an Exception: a reader would take it for its parser's."""


@contextlib.contextmanager
def alarm(seconds: float = TIME_LIMIT):
    """Ends a block that takes longer by `HangError`."""

    def ring(signum, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
