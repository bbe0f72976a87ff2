"""A sample of the fault table's rows about saving and loading; `benchmarks/faults.py` runs all of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import checkpoint_faults as faults
import pytest
import rank_save_kills
from worlds import RankFailedError


@pytest.mark.parametrize(("keep", "wait"), [(1, False), (2, False), (1, True)])
def test_killed_before_any_file_operation_of_overlapping_saves(tmp_path: Path, keep: int, wait: bool) -> None:
    reached = True
    for at in range(2, 400, 9):
        broken, reached = faults.killed_at_operation(tmp_path / str(at), at, keep, wait)
        assert not broken, f"operation {at}: {broken}"
        if not reached:
            break
    assert not reached and at > 100, "the saves were not killed at enough points"


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_a_random_moment_with_slow_writers(tmp_path: Path, seed: int) -> None:
    assert not faults.killed_at_a_moment(tmp_path, seed)


@pytest.mark.parametrize("kind", list(faults.DAMAGE))
def test_damage_is_found_named_and_stepped_back_from(tmp_path: Path, kind: str) -> None:
    for seed in range(10):
        assert not faults.damaged(tmp_path, kind, seed), f"seed {seed}"


@pytest.mark.parametrize("wait", [False, True])
@pytest.mark.parametrize("percent", [10, 60, 99, 110])
def test_a_disk_of_any_size_that_fills(tmp_path: Path, percent: int, wait: bool) -> None:
    for preflight in (True, False):
        folder = tmp_path / str(preflight)
        folder.mkdir()
        try:
            broken = faults.disk_full(folder, percent, wait, preflight)
        except PermissionError as error:
            pytest.skip(f"needs the right to mount a small disk: {error}")
        assert not broken


@pytest.mark.parametrize("wait", [False, True])
def test_a_disk_that_becomes_read_only_costs_one_save(tmp_path: Path, wait: bool) -> None:
    try:
        broken = faults.read_only_disk(tmp_path, wait)
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a small disk: {error}")
    assert not broken


@pytest.mark.parametrize("seed", range(8))
def test_a_write_that_fails_costs_one_save(tmp_path: Path, seed: int) -> None:
    assert not faults.failing_writes(tmp_path, seed)


@pytest.mark.parametrize(("stage", "rank", "point"), random.Random(4).sample(rank_save_kills.cells(), 4))
def test_a_rank_killed_inside_a_save_of_a_real_engine(
    worlds: Any, tmp_path: Path, stage: int, rank: int, point: str
) -> None:
    with pytest.raises(RankFailedError):
        worlds.run(
            "faults/rank_save_kills.py:save_and_die",
            2,
            folder=str(tmp_path),
            victim=rank,
            point=point,
            stage=stage,
        )
    assert not rank_save_kills.judge(tmp_path, rank, point)
