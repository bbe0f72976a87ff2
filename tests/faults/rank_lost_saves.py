"""Rank side of test_lost_saves: `llmtrain train` while the disk refuses the files of some step."""

from __future__ import annotations

import errno
import os
from typing import Any

from llmtrain.config.world import World


def train(world: World, run: str, refused: int, overrides: list[str]) -> dict[str, Any]:
    """Trains with a disk that is full for step `refused` on rank 1; a failed run ends the process."""
    from llmtrain.train import main

    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if f"step-{refused:08d}/rank-00001" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    os.write = full
    return {"status": main([run, *overrides])}
