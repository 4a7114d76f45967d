"""Memory of a CPU that computes: kept by the process from one step to the next."""

import ctypes
import platform

# As glibc's malloc.h numbers them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER, _GIB = -1, 2**30


def keep() -> None:
    """Tells the C library to give no memory back to the system while the process runs.

    XLA allocates a step's buffers anew, step after step. The C library would map fresh pages for
    each and unmap them again, and the kernel clear every page: an eighth of a step on a CPU. Where
    the C library is not glibc, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    for setting, value in (*settings, (_TOP_PAD, _GIB // 8)):
        mallopt(setting, value)
