"""Memory that was freed, but not given back."""

import ctypes


def give_back() -> None:
    """Returns to the system what glibc's allocator holds of freed memory.

    Compilation leaves it gigabytes, and in a long run what is in use scatters over its
    pages, so that resident memory creeps up. Of another allocator, nothing is asked.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
