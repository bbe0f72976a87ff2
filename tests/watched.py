"""A folder that tells who opens, makes, changes, moves or removes a file in it, by the kernel's inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_OPEN, _MODIFY, _MOVED, _CREATE, _DELETE = 0x20, 0x2, 0xC0, 0x100, 0x200
_IS_FOLDER = 0x40000000
_EVENT = struct.Struct("iIII")


class Watched:
    """`seen` is what befell the files of `folder` inside the `with`: names, each with its event's bits."""

    def __init__(self, folder: Path):
        self.folder, self.seen = folder, []

    def __enter__(self) -> Watched:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        events = _OPEN | _MODIFY | _MOVED | _CREATE | _DELETE
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, bytes(self.folder), events) < 0:
            raise OSError(ctypes.get_errno(), "inotify does not work here")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            raw = os.read(self._descriptor, 1 << 20)
        except BlockingIOError:
            raw = b""
        os.close(self._descriptor)
        while raw:
            _, mask, _, length = _EVENT.unpack_from(raw)
            name = raw[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            raw = raw[_EVENT.size + length :]
            self.seen += [] if mask & _IS_FOLDER else [(name, mask)]
