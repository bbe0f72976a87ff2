"""Ranks of one start meet under a name of their own, whatever earlier starts have left in the store."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain.config.world import World
from llmtrain.engine.rendezvous import is_kept_over_restarts, store_of_this_start


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The store that a launcher keeps."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    yield store


def start(size: int, ranks: list[int], timeout_s: float = 30) -> list[Any]:
    timeout = datetime.timedelta(seconds=timeout_s)
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(store_of_this_start, World(r, size, r, size, "torchrun"), timeout) for r in ranks]
        return [job.result() for job in jobs]


def test_each_start_has_its_own_part_of_the_store(agent: Any) -> None:
    first = start(3, [0, 1, 2])
    first[2].set("address", "dead")
    second = start(3, [2, 1, 0])
    assert not second[0].check(["address"]), "what the first start left is seen by the second"
    second[0].set("address", "alive")
    assert second[1].get("address") == second[2].get("address") == b"alive"
    assert first[0].get("address") == b"dead"


def test_ranks_that_died_while_they_waited_mislead_nobody(agent: Any) -> None:
    with pytest.raises(dist.DistStoreError):
        start(3, [1, 2], timeout_s=0.3)  # rank 0 never came
    with pytest.raises(RuntimeError, match="rank 1 never came"):
        start(2, [0], timeout_s=0.3)
    stores = start(3, [0, 1, 2])
    stores[1].set("key", "value")
    assert stores[0].get("key") == stores[2].get("key") == b"value"


def test_only_torchruns_store_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert not is_kept_over_restarts()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert is_kept_over_restarts()
