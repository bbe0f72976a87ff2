"""Optimizer state on an NVMe disk: it trains as in memory, is saved whole, and goes on anywhere.

The op that DeepSpeed needs for it is built on purpose: python -m llmtrain.engine.nvme, in some minutes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "parity/rank_nvme.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(worlds: Any) -> None:
    (why,) = worlds.run(f"{PROGRAM}:lacking")
    if why:
        pytest.skip(why)


def strategy(folder: Path, weights: bool = False, **offload: Any) -> str:
    """The shipped file with a disk of this test, and sub-groups so small that some stay in memory."""
    content = json.loads((ROOT / "ds_configs" / "zero3_nvme.json").read_text())
    zero = content["zero_optimization"]
    (folder / "disk").mkdir(exist_ok=True)
    zero["sub_group_size"] = 200_000
    zero["offload_optimizer"] |= {"nvme_path": str(folder / "disk"), **offload}
    if weights:  # 16-bit weights as well: none may stay in main memory
        disk = {"device": "nvme", "nvme_path": str(folder / "disk"), "max_in_cpu": 0}
        zero["offload_param"] = {**disk, "buffer_count": 20, "buffer_size": 600_000}
    path = folder / "nvme.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def closed() -> Iterator[None]:
    """What is made is closed to others, whatever this machine's umask is."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("closed")
def test_a_machine_that_is_not_ready_is_told_before_the_model_is_built(worlds: Any, tmp_path: Path) -> None:
    """Alike on both ranks, of which one has a file in the op's place."""
    on_nvme, extensions = strategy(tmp_path), tmp_path / "extensions"
    damaged = tmp_path / "extensions1" / "pin_memory" / "pin_memory.so"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no library")

    def told() -> str:
        one, other = worlds.run(f"{PROGRAM}:refusal", 2, extensions=str(extensions), deepspeed=on_nvme)
        assert one == other
        return one

    field = f"zero_optimization.offload_optimizer.device = 'nvme' ({on_nvme}): needs DeepSpeed's async_io op"
    missing = extensions.with_name("extensions0") / "pin_memory" / "pin_memory.so"
    assert told() == f"{field}, and {missing} is not there; build it: python -m llmtrain.engine.nvme"
    missing.parent.mkdir(parents=True)
    missing.write_bytes(b"no library either")
    assert told().startswith(f"{field}, and {missing} can't be loaded")
    missing.chmod(0o666)
    assert told().startswith(f"{field}, and others may write to {missing}, so it is not loaded: build it")
    (tmp_path / "disk").rmdir()
    path = f"zero_optimization.offload_optimizer.nvme_path = '{tmp_path}/disk' ({on_nvme})"
    assert told() == f"{path}: there is no such folder; name one on an NVMe disk of every machine"
    (said,) = worlds.run(f"{PROGRAM}:build_without_headers")
    assert (
        "install a C++ compiler and libaio's headers (Debian and Ubuntu: apt-get install g++ libaio-dev"
        in said
    )


def test_fp32_trains_as_in_memory_and_goes_on_anywhere(worlds: Any, tmp_path: Path, built: None) -> None:
    on_nvme = strategy(tmp_path)
    memory, disk = str(tmp_path / "memory"), str(tmp_path / "saved")
    expected = worlds.run(f"{PROGRAM}:save_at", 2, folder=memory, deepspeed="zero3")[0]
    for result in worlds.run(f"{PROGRAM}:save_at", 2, folder=disk, deepspeed=on_nvme):
        assert {True, False} == set(result["on disk"]), "both kinds of sub-groups must be there"
        assert result["first"] == pytest.approx(expected["first"], rel=1e-5)
        assert result["went on"]["losses"] == pytest.approx(expected["went on"]["losses"], rel=1e-5)
        assert result["again"] == result["went on"]["losses"], "taken back, it must go on bit for bit"
    assert not list((tmp_path / "disk").iterdir()), "a run that ends leaves nothing on the disk"
    (saved, *_) = worlds.run(f"{PROGRAM}:load_at", 2, folder=disk, deepspeed=on_nvme)
    assert saved == result["went on"], "the same topology must go on bit for bit"
    for deepspeed, folder in (("zero3", disk), ("zero1", disk), (on_nvme, memory)):
        (found, *_) = worlds.run(f"{PROGRAM}:load_at", 2, folder=folder, deepspeed=deepspeed)
        assert found["losses"] == pytest.approx(expected["went on"]["losses"], rel=1e-5), (deepspeed, folder)


def test_bf16_is_saved_behind_the_steps(worlds: Any, tmp_path: Path, built: None) -> None:
    settings = {"folder": str(tmp_path / "saved"), "precision": "bf16"}
    pipelined = strategy(tmp_path, True, pipeline_read=True, pipeline_write=True, buffer_count=12)
    expected = worlds.run(f"{PROGRAM}:save_behind", 2, deepspeed=pipelined, **settings)[0]
    assert not list((tmp_path / "disk").iterdir())
    (found, *_) = worlds.run(f"{PROGRAM}:load_at", 2, deepspeed=pipelined, **settings)
    assert found == expected, "the same topology must go on bit for bit"
    for other in (strategy(tmp_path), "zero1"):
        (found, *_) = worlds.run(f"{PROGRAM}:load_at", 2, deepspeed=other, **settings)
        assert found["held_out"] == pytest.approx(expected["held_out"], rel=1e-4)
        assert found["losses"] == pytest.approx(expected["losses"], rel=5e-3)
