"""A save is all or nothing, whatever fails, and every rank hears the same sentence."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from fake_engine import FakeEngine, empty_like, make_facts, on_ranks, same_state, save_on, small_state
from kills import die_before

from llmtrain.checkpoint import Checkpoint, newest, save, take_probe
from llmtrain.data.rows import RowArrays
from llmtrain.engine.seam import Slice
from llmtrain.errors import EngineError


def failed_save(folder: Path, engine: type[FakeEngine] = FakeEngine, size: int = 2, step: int = 4) -> str:
    """The one sentence that all ranks raise."""
    facts = make_facts(step)
    errors = on_ranks(size, lambda comm: save(engine(comm, small_state(step)), folder, facts))
    assert [type(error) for error in errors] == [EngineError] * size, errors
    assert len({str(error) for error in errors}) == 1
    return str(errors[0])


def newest_step(folder: Path) -> int | None:
    found = newest(folder)
    return found.step if found else None


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_manifest_tells_where_the_state_came_from(tmp_path: Path) -> None:
    manifest = Checkpoint(save_on(2, tmp_path, small_state(), make_facts())).manifest
    assert (manifest.step, manifest.tokens, manifest.topology.zero_stage) == (3, 3072, 1)
    assert manifest.scalars == {"step": 3.0} and manifest.identity.seed == 1234
    assert {"llmtrain", "torch", "transformers", "deepspeed"} == set(manifest.versions)
    embed = manifest.tensors["model.embed.weight"]
    assert embed.shape == (13, 5) and embed.kinds() == ["fp32", "exp_avg", "exp_avg_sq"]
    assert embed.slices[0] == ("fp32", 0, 33, "rank-00000.safetensors", "F32")


def test_commit_and_every_file_can_be_checked_by_hand(tmp_path: Path) -> None:
    path = save_on(1, tmp_path, small_state(), make_facts())
    assert subprocess.run(["sha256sum", "--check", "COMMIT"], cwd=path, capture_output=True).returncode == 0
    files = Checkpoint(path).manifest.files
    assert {"rank-00000.safetensors", "config.json", "run.yaml"} <= {entry.name for entry in files}
    for entry in files:
        found = xxhash.xxh3_128_hexdigest((path / entry.name).read_bytes())
        assert entry.digest == f"xxh3_128:{found}"


def test_a_rank_that_fails_is_named_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def slices(self) -> Iterator[Slice]:
            yield from super().slices()
            if self.comm.rank == 1:
                raise RuntimeError("device lost")

    save_on(2, tmp_path, small_state(3), make_facts(3))
    assert failed_save(tmp_path, Failing) == "saving step 4 failed: rank 1: RuntimeError: device lost"
    assert steps(tmp_path) == ["step-00000003"] and newest_step(tmp_path) == 3


def test_a_state_with_a_gap_is_never_written(tmp_path: Path) -> None:
    class Forgetful(FakeEngine):
        def bounds(self, numel: int) -> tuple[int, int]:
            start, stop = super().bounds(numel)
            return start, stop - (numel == 65 and self.comm.rank == 1)

    assert "not whole: model.embed.weight (exp_avg): 64 elements for a shape of 65" in failed_save(
        tmp_path, Forgetful
    )
    assert not (tmp_path / "checkpoints").exists()


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_on(2, tmp_path, small_state(3), make_facts(3))
    values = list(os.statvfs(tmp_path))
    values[4] = 2_000_000 // values[1]  # free blocks
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    message = failed_save(tmp_path)
    assert re.search(r"no space in .*/checkpoints: need 16\.8 MB, have 2\.0 MB; free some, or lower", message)
    assert steps(tmp_path) == ["step-00000003"] and newest_step(tmp_path) == 3


@pytest.mark.parametrize(
    "code, sentence", [(errno.ENOSPC, "no space in"), (errno.EDQUOT, "quota is used up")]
)
@pytest.mark.parametrize("name", ["rank-00001.safetensors", "config.json", "manifest.json", "COMMIT.part"])
def test_a_disk_that_fills_while_writing_costs_this_save_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, sentence: str
) -> None:
    save_on(2, tmp_path, small_state(3), make_facts(3))
    write = os.write

    def full(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f"step-00000004/{name}"):
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    message = failed_save(tmp_path)
    assert sentence in message and re.search(r"need [\d.]+ MB, have [\d.]+ GB", message)
    assert ("rank 1: " in message) == name.startswith("rank")
    assert steps(tmp_path) == ["step-00000003"] and newest_step(tmp_path) == 3
    monkeypatch.undo()
    save_on(2, tmp_path, small_state(4), make_facts(4))
    assert newest_step(tmp_path) == 4


def test_a_file_size_limit_of_the_system_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        message = failed_save(tmp_path, size=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message.startswith("saving step 4 failed: rank 0: File too large (") and "rank-00000" in message
    assert steps(tmp_path) == []


def in_child(work: Callable[[], object]) -> int:
    """The exit status of `work` in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - a forked test must not come back
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_save(folder: Path, at: int, step: int) -> int:
    """Exit status of a two-rank save that is killed right before its `at`-th file operation (0: it ended)."""

    def work() -> None:
        die_before(at)
        save_on(2, folder, small_state(step), make_facts(step), keep=1)

    return in_child(work)


def test_killed_before_any_file_operation_the_old_or_the_new_checkpoint_is_whole(tmp_path: Path) -> None:
    outcomes = []
    for at in range(200):
        folder = tmp_path / str(at)
        save_on(2, folder, small_state(3), make_facts(3))
        status = killed_save(folder, at, step=4)
        found = newest(folder)
        assert found is not None
        copy = empty_like(small_state())
        FakeEngine(on_ranks(1, lambda comm: comm)[0], copy).load(found.reader(), {})
        assert same_state(copy, small_state(found.step)), "a mix of two checkpoints"
        outcomes.append(found.step)
        save_on(2, folder, small_state(5), make_facts(5), keep=1)  # and the run goes on from there
        assert steps(folder) == ["step-00000005"]
        if status == 0:
            break
        assert status == 9
    assert status == 0 and len(outcomes) > 25, "the save was not killed at enough points"
    assert outcomes == sorted(outcomes) and set(outcomes) == {3, 4}


def test_killed_while_the_same_step_is_saved_again_one_of_both_is_whole(tmp_path: Path) -> None:
    for at in range(200):
        folder = tmp_path / str(at)
        save_on(1, folder, small_state(1), make_facts(4))
        status = killed_save(folder, at, step=4)
        found = newest(folder)
        assert found is not None and found.step == 4
        copy = empty_like(small_state())
        FakeEngine(on_ranks(1, lambda comm: comm)[0], copy).load(found.reader(), {})
        assert same_state(copy, small_state(1)) or same_state(copy, small_state(4))
        if status == 0:
            assert same_state(copy, small_state(4)) and steps(folder) == ["step-00000004"]
            return
    raise AssertionError("the save never ended")


def test_a_step_saved_again_that_fails_leaves_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_on(2, tmp_path, small_state(1), make_facts(4))
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    write = os.write

    def broken(descriptor: int, data: Any) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("manifest.json"):
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", broken)
    assert "Input/output error (" in failed_save(tmp_path)
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert steps(tmp_path) == ["step-00000004"]


def test_keep_counts_committed_ones_and_clears_older_leftovers(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_on(1, tmp_path, small_state(), make_facts(step), keep=3)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000003" / "COMMIT").unlink()
    (folder / "step-00000009").mkdir()
    (folder / "mine").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (folder / "step-00000000").symlink_to(tmp_path / "elsewhere")
    save_on(1, tmp_path, small_state(), make_facts(4), keep=2)
    assert steps(tmp_path) == ["mine", "step-00000000", "step-00000002", "step-00000004", "step-00000009"]
    save_on(1, tmp_path, small_state(), make_facts(5), keep=1)
    assert steps(tmp_path) == ["mine", "step-00000000", "step-00000005", "step-00000009"]


def test_a_newer_damaged_checkpoint_never_costs_the_one_just_saved(tmp_path: Path) -> None:
    save_on(1, tmp_path, small_state(), make_facts(9))
    os.truncate(tmp_path / "checkpoints" / "step-00000009" / "rank-00000.safetensors", 9)
    save_on(1, tmp_path, small_state(), make_facts(5), keep=1)
    assert steps(tmp_path) == ["step-00000005", "step-00000009"] and newest_step(tmp_path) == 5


def test_old_checkpoints_that_cannot_be_removed_do_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    save_on(1, tmp_path, small_state(), make_facts(1))
    monkeypatch.setattr(shutil, "rmtree", refuse)
    save_on(1, tmp_path, small_state(), make_facts(2), keep=1)
    assert newest_step(tmp_path) == 2
    assert "old checkpoints could not be removed: Permission denied" in caplog.text


@pytest.mark.parametrize(
    "umask, files, folders", [(0, 0o640, 0o750), (0o022, 0o640, 0o750), (0o077, 0o600, 0o700)]
)
def test_checkpoints_are_private(tmp_path: Path, umask: int, files: int, folders: int) -> None:
    before = os.umask(umask)
    try:
        path = save_on(1, tmp_path, small_state(), make_facts())
    finally:
        os.umask(before)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.iterdir()} == {files}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path, path.parent)} == {folders}


def test_ranks_that_see_another_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: is_dir(path) and path.name != "step-00000004")
    assert "rank 1: " in failed_save(tmp_path) and "one shared run folder" in failed_save(tmp_path)


def test_one_piece_at_a_time_is_copied(tmp_path: Path) -> None:
    """The engine's own tensors are the only whole ones: each slice leaves before the next one is made."""
    alive: list[int] = []

    class Counting(FakeEngine):
        def slices(self) -> Iterator[Slice]:
            import weakref

            made: list[Any] = []
            for index in range(6):
                tensor = torch.full((1000,), float(index))
                made.append(weakref.ref(tensor))
                yield Slice(f"t{index}", "fp32", (1000,), 0, tensor)
                del tensor
                alive.append(sum(reference() is not None for reference in made))

    on_ranks(1, lambda comm: save(Counting(comm, {}), tmp_path, make_facts()))
    assert newest_step(tmp_path) == 3 and max(alive) <= 1


def test_a_probe_is_the_first_rows_and_what_the_engine_makes_of_them(tmp_path: Path) -> None:
    class FourRows:
        count, seq_len, valid_tokens = 4, 3, 11

        def read(self, start: int, stop: int) -> RowArrays:
            tokens = np.arange(12, dtype=np.int64).reshape(4, 3)
            labels = tokens + 1
            labels[0, 2] = -100
            return RowArrays(tokens[start:stop], labels[start:stop], (tokens % 3)[start:stop])

    probes = on_ranks(2, lambda comm: take_probe(FakeEngine(comm, {}), FourRows()))
    assert probes[0] == probes[1] and probes[0].loss == 2.5
    assert probes[0].tokens == ((0, 1, 2), (3, 4, 5)) and probes[0].labels == ((1, 2, -100), (4, 5, 6))
    path = save_on(1, tmp_path, small_state(), make_facts(probe=probes[0]))
    assert Checkpoint(path).manifest.probe == probes[0]
    assert json.loads((path / "manifest.json").read_text())["probe"]["positions"] == [[0, 1, 2], [0, 1, 2]]
