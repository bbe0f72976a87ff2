"""Ranks of one start meet, whatever earlier starts have left, and name those that don't come."""

from __future__ import annotations

import concurrent.futures
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from llmtrain.config.world import World
from llmtrain.engine import rendezvous
from llmtrain.engine.environment import free_port
from llmtrain.engine.rendezvous import is_kept_over_restarts, meet
from llmtrain.errors import EngineError


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The store that a launcher keeps."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    yield store


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place to meet where rank 0 is to host the store."""
    port = str(free_port())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", port)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(rendezvous, "FAREWELL_S", 0.3)
    return f"127.0.0.1:{port}"


def start(size: int, ranks: list[int], limit_s: float = 30) -> list[Any]:
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(meet, World(r, size, r, size, "torchrun"), limit_s) for r in ranks]
        for job in jobs:
            job.exception()
        return [job.result()[1] for job in jobs]


def said(size: int, ranks: list[int]) -> list[str]:
    """What each rank says when others don't come."""
    with ThreadPoolExecutor(size) as pool:
        jobs = [pool.submit(meet, World(r, size, r, size, "environment"), 0.5) for r in ranks]
        errors = [job.exception() for job in jobs]
    assert all(isinstance(error, EngineError) for error in errors), errors
    return [str(error) for error in errors]


def test_each_start_has_its_own_part_of_the_store(agent: Any) -> None:
    first = start(3, [0, 1, 2])
    first[2].set("address", "dead")
    second = start(3, [2, 1, 0])
    assert not second[0].check(["address"]), "what the first start left is seen by the second"
    second[0].set("address", "alive")
    assert second[1].get("address") == second[2].get("address") == b"alive"
    assert first[0].get("address") == b"dead"


def test_ranks_that_died_while_they_waited_mislead_nobody(agent: Any) -> None:
    with pytest.raises(EngineError, match=r"rank 0 has not come to 127.0.0.1:\d+ after 0 s$"):
        start(3, [1, 2], limit_s=0.3)
    with pytest.raises(EngineError, match="rank 1 has not come to"):
        start(2, [0], limit_s=0.3)
    stores = start(3, [0, 1, 2])
    stores[1].set("key", "value")
    assert stores[0].get("key") == stores[2].get("key") == b"value"


def test_every_rank_that_came_names_those_that_did_not(nobody: str) -> None:
    assert said(5, [0, 1, 3]) == [f"ranks 2, 4 have not come to {nobody} after 0 s"] * 3


def test_without_rank_0_there_is_nothing_to_come_to(nobody: str) -> None:
    first, second = said(3, [1, 2])
    assert first == second and first.startswith(f"rank 0 has not come to {nobody} after 0 s: nothing answers")


def test_a_whole_machine_that_is_missing_is_not_a_wall_of_numbers(nobody: str) -> None:
    assert re.match("ranks 1, 2, 3, 4, 5, 6, 7, 8 and 55 more have not come", said(64, [0])[0])


def test_a_rank_may_come_before_rank_0(nobody: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(meet, World(1, 2, 1, 2, "environment"), 30)
        with pytest.raises(concurrent.futures.TimeoutError):
            early.result(0.5)
        late = pool.submit(meet, World(0, 2, 0, 2, "environment"), 30)
        name, store = late.result()
        store.set("key", "value")
        assert early.result()[0] == name and early.result()[1].get("key") == b"value"


def test_only_torchruns_store_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert not is_kept_over_restarts()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert is_kept_over_restarts()
