"""What ranks say to each other, and what starting them leaves behind."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from llmtrain.config.world import World
from llmtrain.engine import start
from llmtrain.errors import EngineError


def test_ranks_exchange_json(worlds: Any) -> None:
    before = sorted(name for name in os.listdir("/dev/shm") if name.startswith("deepspeed_"))
    results = worlds.run("unit/engine/rank_comm.py:talk", 2)
    for result in results:
        assert result["everybody"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "é" * 50}]
        assert result["told"] == [0, "from", 0]
        assert result["total"] == [2.0, 1.0]
        assert result["timeout_s"] == 17, "a sub-group made without a timeout did not get ours"
        assert sorted(result["shm"]) == before, "DeepSpeed's shared-memory op was built"


def test_several_ranks_need_a_meeting_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    with pytest.raises(EngineError, match="MASTER_PORT is not set.*--ranks N"):
        start(World(0, 2, 0, 2, "environment"), "cpu")


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(EngineError, match=f"{port} is in use.*free port"):
            start(World(0, 1, 0, 1, "none"), "cpu")
