"""Nobody need read what is printed: a pipe or terminal that is gone, or that lacks a letter, ends no work."""

from __future__ import annotations

import io
import os
import sys


def speak_utf_8() -> None:
    """Starts this program again in Python's UTF-8 mode where the machine's locale has another encoding.

    Names of files, words of the command line and libraries follow the locale otherwise. What is printed still
    comes in the terminal's encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ.setdefault("PYTHONIOENCODING", f"{shown}:backslashreplace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def steady_streams(stdout: bool = False) -> None:
    """Makes stderr, and with `stdout` that too, outlast its reader; a letter that it lacks is escaped.

    A verb that only prints ends with its reader, so it leaves stdout as it is.
    """
    for number in range(3):  # where one is closed, the next file that is opened would get its number
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
            setattr(sys, name, stream)
        elif stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue  # somebody else's, as in a notebook
        if (number == 2 or stdout) and not isinstance(getattr(stream.buffer, "raw", None), _Steady):
            stream.flush()
            steady = io.BufferedWriter(_Steady(number, "w", closefd=False))
            stream = io.TextIOWrapper(
                steady, stream.encoding, stream.errors, line_buffering=number == 2 or stream.line_buffering
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        stream.reconfigure(errors="backslashreplace")


class _Steady(io.FileIO):
    """A file that turns into /dev/null when it can't be written to any more."""

    def write(self, content) -> int:  # type: ignore[no-untyped-def]
        """Takes all of it, in any case."""
        try:
            return super().write(content)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)
