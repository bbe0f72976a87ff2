"""Rank side of test_comm."""

from __future__ import annotations

import os
from typing import Any

import torch

from llmtrain.config.world import World
from llmtrain.engine import start


def talk(world: World) -> dict[str, Any]:
    comm = start(world, "cpu", timeout_s=17)
    everybody = comm.gather({"rank": world.rank, "text": "é" * (world.rank * 50)})
    told = comm.broadcast([world.rank, "from", 0] if world.rank == 0 else None)
    total = comm.sum(torch.tensor([1.0, float(world.rank)]))
    comm.barrier()
    group = torch.distributed.new_group([0, 1])
    comm.barrier()  # rank 0 holds the store, which new_group needs to the end
    backend = group._get_backend(torch.device("cpu"))
    return {
        "everybody": everybody,
        "told": told,
        "total": total.tolist(),
        "timeout_s": backend.options._timeout.total_seconds(),
        "shm": [name for name in os.listdir("/dev/shm") if name.startswith("deepspeed_")],
    }


def alone(world: World) -> dict[str, Any]:
    os.environ.update(MASTER_ADDR="node-0.example.invalid", TORCHELASTIC_USE_AGENT_STORE="True")
    met: list[str] = []
    comm = start(world, "cpu", timeout_s=20, met=lambda: met.append("met"))
    return {"total": float(comm.sum_on_device(torch.ones(1))), "met": met}
