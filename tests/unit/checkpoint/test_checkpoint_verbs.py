"""`llmtrain checkpoint`: what it shows, what it finds, and that it never takes the newest good one away."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fake_engine import make_facts, save_on, small_state

from llmtrain.checkpoint import newest
from llmtrain.cli import main


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 to 5, and what is left of a save of step 6."""
    folder = tmp_path_factory.mktemp("verbs")
    for step in range(1, 6):
        save_on(2, folder, small_state(step), make_facts(step), keep=9)
    (folder / "checkpoints" / "step-00000006").mkdir()
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def damage(run: Path, step: int) -> None:
    """One bit of a rank's file."""
    path = run / "checkpoints" / f"step-0000000{step}" / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name[-1]) for path in (run / "checkpoints").iterdir())


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["checkpoint", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_ls_without_verify_claims_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run, 4)
    os.unlink(run / "checkpoints" / "step-00000003" / "manifest.json")
    status, out, _ = said(capsys, "ls", run)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 8
    assert lines[1].split() == ["step-00000006", "unfinished"]
    assert lines[2].split()[:2] == ["5", "5,120"] and lines[2].split()[4:] == ["step-00000005", "complete"]
    assert lines[-1] == "(complete: saved to the end; to compare every hash: --verify)"
    assert "complete" in lines[3] and "damaged: " in lines[4] and "manifest.json is missing" in lines[4]


def test_ls_verify_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run, 4)
    states = [line.split()[5] for line in said(capsys, "ls", run, "--verify")[1].splitlines()[2:]]
    assert states == ["good", "damaged:", "good", "good", "good"]


def test_verify_has_a_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "verify", run)[0] == 0
    damage(run, 4)
    status, out, _ = said(capsys, "verify", run)
    assert status == 1 and "step-00000004: damaged: " in out and "rank-00001.safetensors is damaged" in out
    assert said(capsys, "verify", run / "checkpoints" / "step-00000004")[0] == 1
    status, out, _ = said(capsys, "verify", run / "checkpoints" / "step-00000005")
    assert status == 0 and out.endswith("step-00000005: good\n")
    status, _, err = said(capsys, "verify", run / "checkpoints" / "step-00000006")
    assert status == 2 and "has no finished checkpoint" in err


def test_show_tells_where_a_checkpoint_comes_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "show", run)
    assert status == 0
    for part in (
        "step-00000005, format 2",
        "5 (5,120 tokens)",
        "2 ranks, ZeRO-1, 1 stages, fp32",
        "73 trained parameters in 6 tensors; step 3",
        "vocab_size 13",
        "llmtrain ",
        "rank-00001.safetensors",
        "probe      none",
    ):
        assert part in out, part
    assert "step-00000002" in said(capsys, "show", run / "checkpoints" / "step-00000002")[1]


def test_prune_counts_good_ones_only(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(run, 5)
    damage(run, 3)
    status, out, _ = said(capsys, "prune", run, "--keep", 2)
    assert status == 0 and steps(run) == [2, 4, 5, 6]
    assert "step-00000005 stays, though it is damaged: " in out
    assert "step-00000003 removed" in out and "step-00000001 removed" in out
    assert said(capsys, "prune", run, "--keep", 9)[1].endswith("nothing to remove\n")
    said(capsys, "prune", run, "--keep", 1)
    assert steps(run) == [4, 5, 6]
    found = newest(run)
    assert found is not None and found.step == 4


def test_prune_removes_nothing_when_nothing_is_good(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in range(1, 6):
        damage(run, step)
    status, _, err = said(capsys, "prune", run, "--keep", 1)
    assert status == 2 and "has no good checkpoint, so none is removed" in err and len(steps(run)) == 6


@pytest.mark.parametrize("last", [True, False])
def test_prune_keeps_a_step_that_had_stepped_aside_only_when_it_is_needed(
    run: Path, capsys: pytest.CaptureFixture[str], last: bool
) -> None:
    folder = run / "checkpoints"
    shutil.copytree(folder / "step-00000005", folder / "step-00000005.old")
    if last:
        damage(run, 5)
    said(capsys, "prune", run, "--keep", 1)
    left = sorted(path.name for path in folder.iterdir())
    kept = ["step-00000005", "step-00000005.old"] if last else ["step-00000005"]
    assert left == [*kept, "step-00000006"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ls", "nowhere"), "nowhere does not exist: no such file or folder (seen from "),
        (("prune", "nowhere", "--keep", "0"), "--keep = 0 (command line): must be 1 or more"),
        (("show", "runs/nowhere"), "runs/nowhere does not exist: no such file or folder (seen from "),
        (("verify", "nowhere"), "nowhere does not exist: "),
    ],
)
def test_what_is_not_there_is_answered_by_a_sentence(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    status, _, err = said(capsys, *words)
    assert status == 2 and sentence in err
