"""Keeps freed memory in the process, where glibc's allocator would give every large tensor back to the system."""

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 512 * 1024**2


def keep_freed_memory() -> bool:
    """Make glibc's `malloc` reuse large blocks; returns whether it did, which it does only where there is glibc.

    By default each large tensor is mapped from the system and unmapped again, and a training step on a CPU spends up to
    a third of its time on the page faults.  This costs peak memory (up to half a GB more) and no accuracy.
    https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, TOP_PAD_BYTES))
    results = [mallopt(parameter, value) for parameter, value in settings]  # all of them, whatever the first says
    return all(results)
