"""How much memory a process may still take, on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.plan.host_memory import available_bytes

MEMINFO = "MemTotal:       1000 kB\nMemAvailable:    800 kB\n"


def _cgroup(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text("300000\n")
    (folder / "memory.stat").write_text("anon 100000\ninactive_file 50000\nactive_file 1000\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 819_200), ("400000", 151_000), ("100000", 0), ("9999999", 819_200)]
)
def test_a_container_may_have_less_than_the_machine(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert available_bytes(tmp_path / "meminfo", _cgroup(tmp_path, limit)) == expected


def test_a_system_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) is None
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert available_bytes(tmp_path / "meminfo", tmp_path / "no cgroup") == 819_200
