"""What ranks say to each other, and what starting them leaves behind."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch

from llmtrain.config.world import World
from llmtrain.engine import environment, start
from llmtrain.engine.comm import TorchComm
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
            start(World(0, 2, 0, 2, "environment"), "cpu")


def test_one_rank_alone_needs_no_address_that_is_left_over(worlds: Any) -> None:
    """As after `export MASTER_ADDR=node-0`, or as torchrun's only rank."""
    assert worlds.run("unit/engine/rank_comm.py:alone", 1, limit_s=30) == [{"total": 1.0, "met": ["met"]}]


def test_gloo_is_told_the_way_out_where_the_machines_name_leads_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.7")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(environment, "interface_to", lambda address: f"way-to-{address}")
    for host, size, told in (
        ("127.0.1.1", 4, "way-to-10.0.0.7"),
        ("10.0.0.3", 4, None),
        ("127.0.1.1", 2, None),
    ):
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        monkeypatch.setattr(socket, "gethostbyname", lambda _, host=host: host)
        environment._set_place(World(0, size, 0, 2, "slurm"), "cpu")
        assert os.environ.get("GLOO_SOCKET_IFNAME") == told
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine")
    environment._set_place(World(0, 4, 0, 2, "slurm"), "cpu")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_the_interface_of_a_route_is_one_of_this_machine_and_never_loopback() -> None:
    ours = {name for _, name in socket.if_nameindex()} - {"lo"}
    for address in ("127.0.0.1", "192.0.2.7", "no.such.host.invalid"):
        assert environment.interface_to(address) in ours | {""}


def test_free_memory_is_known_whatever_names_the_visible_gpus_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    monkeypatch.setattr(CUDA_Accelerator, "available_memory", CUDA_Accelerator.available_memory)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a2b,GPU-3c4d")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (7 if index is None else index, 80))
    environment._free_memory_by_torch()
    gpu = object.__new__(CUDA_Accelerator)
    assert (gpu.available_memory(), gpu.available_memory(1)) == (7, 1)


def test_the_proof_of_doctor_goes_the_way_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the world's own group, which is NCCL's on a GPU, with a tensor that lies there; not over gloo."""
    import torch.distributed as dist

    asked: list[tuple[str, Any]] = []
    comm = object.__new__(TorchComm)
    comm.device, comm._group = "meta", "gloo's"
    monkeypatch.setattr(
        dist, "all_reduce", lambda tensor, group=None: asked.append((tensor.device.type, group))
    )
    comm.sum_on_device(torch.ones(1))
    assert asked == [("meta", None)]
