"""Whether the Hub answers at all, asked once: its client would try for half a minute, for every file anew."""

from __future__ import annotations

import functools
import os
import socket
import sys
from urllib.parse import urlsplit

PATIENCE_S = 5.0
_PROXIES = ("https_proxy", "http_proxy", "all_proxy")


@functools.cache
def settle_reach() -> None:
    """Has this process look into the Hub's cache alone, and says so, when the Hub can't be reached.

    Behind a proxy, or where that was chosen already, nothing is asked.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(map(_given, _PROXIES)):
        return
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=PATIENCE_S).close()
    except OSError as error:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that are started from here
        constants.HF_HUB_OFFLINE = True
        print(
            f"warning: {address.hostname} can't be reached ({error}): only what was fetched from the "
            "Hub before is looked at",
            file=sys.stderr,
        )


def _given(variable: str) -> bool:
    return bool(os.environ.get(variable) or os.environ.get(variable.upper()))
