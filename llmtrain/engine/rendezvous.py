"""Where the ranks of a start meet: a store that is theirs alone, and who has not come is named.

torchrun's agent hosts the store in which ranks find each other's addresses, and after `--max-restarts` or a
change of nodes the next ranks get the same store with the addresses of the dead ones in it: they connect to
nobody until the timeout (torch 2.13, with every rendezvous backend). Its restart count can't tell starts
apart: it stays the same when nodes join, and differs between nodes when an agent was started anew. So rank 0
draws a name for the start, and hands it to each rank under a question that no earlier rank can have asked.
Under every other launcher rank 0 hosts the store itself, and they meet in the same way.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import time
from typing import Any

import torch.distributed as dist

from llmtrain.config.world import World
from llmtrain.errors import EngineError

POLL_S = 0.05
LATE_S = 30.0  # rank 0 began to wait later than the others, and speaks for all
FAREWELL_S = 1.0  # so long rank 0's store stays after it has said who is missing
_NAMED = 8  # missing ranks


def is_kept_over_restarts() -> bool:
    """Whether the launcher's store outlives its ranks."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet(world: World, limit_s: float) -> tuple[str, Any]:
    """Waits for all ranks; a name that only the ranks of this start know, and a store below it.

    Raises EngineError that names the ranks that have not come in `limit_s`; RuntimeError when rank 0 can't
    open its port.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = is_kept_over_restarts() and world.size > 1  # one rank alone needs no store of others
    hosts = world.rank == 0 and not kept
    limit = datetime.timedelta(seconds=limit_s)
    if world.rank > 0 and not kept:
        _reach(address, port, limit_s)
    try:
        store = dist.TCPStore(
            address, port, world.size, is_master=hosts, timeout=limit, wait_for_workers=False
        )
    except dist.DistNetworkError as error:
        if hosts:
            raise
        if kept:
            raise EngineError(f"torchrun's store can't be reached at {_where()}: {error}") from error
        raise EngineError(f"{_not_come([0], limit_s)}: {error}") from error
    name = _gather(store, world, limit_s) if world.rank == 0 else _come(store, world, limit_s)
    return name, dist.PrefixStore(name, store)


def _reach(address: str, port: int, limit_s: float) -> None:
    """Waits until something listens there. torch's own tries overshoot the limit, and print a stack first."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection(
                (address, port), timeout=max(POLL_S, deadline - time.monotonic())
            ).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                why = "nothing answers there (is its process up, and the port open?)"
                raise EngineError(f"{_not_come([0], limit_s)}: {why}") from error
        time.sleep(4 * POLL_S)


def _come(store: Any, world: World, limit_s: float) -> str:
    """The name of this start, once all have come."""
    mine = secrets.token_hex(8)
    store.set(f"llmtrain/asks/{world.rank}", mine)
    try:
        name = str(store.get(f"llmtrain/answer/{mine}").decode())
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise EngineError(_not_come([0], limit_s)) from error
    store.set_timeout(datetime.timedelta(seconds=limit_s + LATE_S))
    try:
        store.set(f"{name}/heard/{world.rank}", "")
        missing = store.get(f"{name}/missing").decode()
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise EngineError(f"rank 0 came to {_where()}, and was gone before all ranks were there") from error
    if missing:
        raise EngineError(_not_come([int(rank) for rank in missing.split()], limit_s))
    return name


def _gather(store: Any, world: World, limit_s: float) -> str:
    """Hands out a name for this start until all have heard it."""
    name, waiting, answered = secrets.token_hex(8), set(range(1, world.size)), dict[int, str]()
    deadline = time.monotonic() + limit_s
    while waiting and time.monotonic() < deadline:
        for rank in sorted(waiting):
            if store.check([f"{name}/heard/{rank}"]):
                waiting.remove(rank)
            elif store.check([f"llmtrain/asks/{rank}"]):  # by this start's rank, or by one that is dead
                asks = store.get(f"llmtrain/asks/{rank}").decode()
                if answered.get(rank) != asks:
                    store.set(f"llmtrain/answer/{asks}", name)
                    answered[rank] = asks
        time.sleep(POLL_S if waiting else 0)
    missing = sorted(waiting)
    store.set(f"{name}/missing", " ".join(map(str, missing)))
    if missing:
        time.sleep(FAREWELL_S)
        raise EngineError(_not_come(missing, limit_s))
    return name


def _not_come(missing: list[int], limit_s: float) -> str:
    named = ", ".join(map(str, missing[:_NAMED]))
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    ranks = f"ranks {named}{more} have" if len(missing) > 1 else f"rank {named} has"
    return f"{ranks} not come to {_where()} after {limit_s:.0f} s"


def _where() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
