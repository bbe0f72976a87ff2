"""A container's user may have no name and no home; libraries then fail, or write into a folder called `~`."""

from __future__ import annotations

import os


def settle_home() -> None:
    """Where nobody says who and where the user is, caches go below the working folder, into `.cache`."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = os.getcwd()
    if not _has_name():
        os.environ["USER"] = f"uid-{os.getuid()}"  # torch.compile names a folder after it


def _has_name() -> bool:
    import getpass

    try:
        return bool(getpass.getuser())
    except (KeyError, OSError):
        return False
