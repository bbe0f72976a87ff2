"""Files mapped into memory without a descriptor each: a thousand shards need none while they are read.

Python's own `mmap` keeps a copy of the descriptor for as long as the map lives, so that `ulimit -n 128` ends
a run on 130 shards. The system does not ask for that: a map outlives the descriptor it was made with.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_FAILED = ctypes.c_void_p(-1).value


def map_array(path: Path, dtype: np.dtype) -> np.ndarray:
    """A whole file as a read-only array; it must have a multiple of the dtype's size. Raises OSError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return np.zeros(0, dtype)
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    held: Any = (ctypes.c_char * size).from_address(address)
    # the array holds `held`, and so does every view of it; what is left at the end goes with the process
    weakref.finalize(held, _libc().munmap, address, size).atexit = False
    array = np.frombuffer(held, dtype)
    array.flags.writeable = False
    return array


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    number, place = ctypes.c_int, ctypes.c_void_p
    libc.mmap.argtypes = (place, ctypes.c_size_t, number, number, number, ctypes.c_int64)
    libc.mmap.restype = place
    libc.munmap.argtypes = (place, ctypes.c_size_t)
    return libc
