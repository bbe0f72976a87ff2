"""A store of this start alone, where torchrun keeps one over its restarts.

torchrun's agent hosts the store in which ranks find each other's addresses, and after `--max-restarts` or a
change of nodes the next ranks get the same store with the addresses of the dead ones in it: they connect to
nobody until the timeout (torch 2.13, with every rendezvous backend). Its restart count can't tell starts
apart: it stays the same when nodes join, and differs between nodes when an agent was started anew. So rank 0
draws a name for the start, and hands it to each rank under a question that no earlier rank can have asked.
"""

from __future__ import annotations

import datetime
import os
import secrets
import time
from typing import Any

import torch.distributed as dist

from llmtrain.config.world import World

POLL_S = 0.05


def is_kept_over_restarts() -> bool:
    """Whether the launcher's store outlives its ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_this_start(world: World, timeout: datetime.timedelta) -> Any:
    """The launcher's store below a name that only the ranks of this start know."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world.size, is_master=False, timeout=timeout)
    mine = secrets.token_hex(8)
    if world.rank > 0:
        store.set(f"llmtrain/asks/{world.rank}", mine)
        name = store.get(f"llmtrain/answer/{mine}").decode()
        store.set(f"{name}/heard/{world.rank}", "")
        return dist.PrefixStore(name, store)
    waiting, answered = set(range(1, world.size)), dict[int, str]()
    deadline = time.monotonic() + timeout.total_seconds()
    while waiting:
        for rank in sorted(waiting):
            if store.check([f"{mine}/heard/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"llmtrain/asks/{rank}"]):  # by this start's rank, or by one that is dead
                asks = store.get(f"llmtrain/asks/{rank}").decode()
                if answered.get(rank) != asks:
                    store.set(f"llmtrain/answer/{asks}", mine)
                    answered[rank] = asks
        if waiting and time.monotonic() > deadline:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(waiting)))} never came")
        time.sleep(POLL_S if waiting else 0)
    return dist.PrefixStore(mine, store)
