"""Writes a checkpoint of this version's format, and how training goes on from it, for later versions to read.

    PYTHONPATH=. python tests/parity/write_old_checkpoint.py tests/parity/checkpoint_format_1

Run once, by the last version that writes a format; the folder is committed and never written again.
`test_old_formats.py` loads it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rank_checkpoints import save_at

from llmtrain.config.world import World

SETTINGS = {"model": "micro", "precision": "fp32", "deepspeed": "zero1"}


def _rank(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    result = save_at(World(rank, 2, rank, 2, "llmtrain"), folder, **SETTINGS)
    if rank == 0:
        Path(folder, "expected.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    from multiprocessing import get_context

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29571", DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1")
    ranks = [get_context("spawn").Process(target=_rank, args=(rank, sys.argv[1])) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(process.exitcode or 0 for process in ranks))
