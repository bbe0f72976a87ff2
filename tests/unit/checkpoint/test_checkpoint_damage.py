"""Whatever is wrong with a checkpoint is found before a value of it is used, and the file is named."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_engine import make_facts, on_ranks, save_on, small_state

from llmtrain.checkpoint import Checkpoint, newest, open_checkpoint
from llmtrain.errors import CheckpointError
from llmtrain.report.checkpoints import standing, standings
from llmtrain.report.run_folder import RunFolder
from llmtrain.train import find_checkpoint, warn

RANK_0, RANK_1 = "rank-00000.safetensors", "rank-00001.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 3 and 4, committed by two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    save_on(2, folder, small_state(3), make_facts(3))
    save_on(2, folder, small_state(4), make_facts(4))
    return folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def fallen_back(run: Path) -> tuple[int, str]:
    """The step that is taken, and why step 4 was not."""
    reasons: list[tuple[str, str]] = []
    found = newest(run, lambda path, reason: reasons.append((path.name, reason)))
    assert found is not None
    return found.step, dict(reasons).get("step-00000004", "")


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_an_undamaged_run_takes_its_newest(run: Path) -> None:
    assert fallen_back(run) == (4, "")


@pytest.mark.parametrize("name", [RANK_0, RANK_1, "config.json", "run.yaml", "manifest.json", "COMMIT"])
def test_every_flipped_bit_is_detected_and_the_file_named(run: Path, name: str) -> None:
    path = run / "checkpoints" / "step-00000004" / name
    whole = path.read_bytes()
    for bit in random.Random(name).sample(range(len(whole) * 8), 50):
        flip(path, bit)
        step, reason = fallen_back(run)
        assert step == 3 and (name in reason), (bit, reason)
        path.write_bytes(whole)
    assert fallen_back(run) == (4, "")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swap_ranks(path: Path) -> None:
    spare = path.with_name("spare")
    (path.parent / RANK_0).rename(spare)
    (path.parent / RANK_1).rename(path.parent / RANK_0)
    spare.rename(path.parent / RANK_1)


def take_other_step(path: Path) -> None:
    shutil.copy(path.parent.parent / "step-00000003" / path.name, path)


def make_link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "name, damage, reason",
    [
        (RANK_0, truncate, r"rank-00000.* bytes, its manifest says \d+"),
        (RANK_1, lambda path: path.write_bytes(b""), "rank-00001.* has 0 bytes"),
        (RANK_1, Path.unlink, "rank-00001.safetensors is missing"),
        (RANK_0, swap_ranks, "rank-0000[01].safetensors"),
        (RANK_0, take_other_step, "rank-00000.safetensors is damaged: its xxh3_128"),
        (RANK_0, make_link, "rank-00000.safetensors is a link"),
        (RANK_0, make_folder, "rank-00000.safetensors is a link or not a plain file"),
        (
            "rank-00002.safetensors",
            lambda path: path.write_bytes(b"x"),
            "00002.safetensors is not in the manifest",
        ),
        ("manifest.json", lambda path: path.write_bytes(b""), "manifest.json is damaged"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", take_other_step, "manifest.json is damaged: its sha256 is not the one in COMMIT"),
        ("COMMIT", lambda path: path.write_bytes(b""), "COMMIT is damaged: it is not the line"),
        ("COMMIT", lambda path: path.write_bytes(os.urandom(99)), "COMMIT is damaged"),
        ("COMMIT", lambda path: path.write_bytes(b"../" * 2000), "COMMIT is larger than 4096 bytes"),
        ("COMMIT", Path.unlink, "no finished checkpoint: it has no COMMIT"),
        ("COMMIT", make_link, "COMMIT is a link"),
        ("COMMIT", take_other_step, "manifest.json is damaged"),
        ("config.json", Path.unlink, "config.json is missing"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_taken(
    run: Path, name: str, damage: Callable[[Path], object], reason: str
) -> None:
    damage(run / "checkpoints" / "step-00000004" / name)
    step, given = fallen_back(run)
    assert step == 3
    assert re.search(reason, given), given


def rewrite(folder: Path, change: Callable[[dict], object]) -> None:
    """A manifest that COMMIT vouches for all the same, as somebody with bad intentions could write it."""
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    text = json.dumps(content).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "COMMIT").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


PAYLOADS = [
    "../secret",
    "/etc/passwd",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    ".hidden",
    "a\\..\\b\n",
    "C:\\x",
    "x" * 300,
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_manifest_cannot_name_a_file_outside_its_folder(run: Path, payload: str) -> None:
    (run / "checkpoints" / "secret").write_bytes(b"secret")
    path = run / "checkpoints" / "step-00000004"
    rewrite(path, lambda content: content["files"][0].update(name=payload))
    with pytest.raises(CheckpointError, match=r"manifest.json is not valid at files\.0\.name"):
        Checkpoint(path)


@pytest.mark.parametrize("digest", ["", f"md5:{0:032}", "xxh3_128:", f"xxh3_128:{0:033}", f"sha256:{0:032}"])
def test_a_file_without_a_hash_of_a_known_kind_is_refused(run: Path, digest: str) -> None:
    path = run / "checkpoints" / "step-00000004"
    rewrite(path, lambda content: content["files"][0].update(digest=digest))
    with pytest.raises(CheckpointError, match=r"manifest.json is not valid at files\.0\.digest"):
        Checkpoint(path)
    rewrite(path, lambda content: content["files"][0].pop("digest"))
    with pytest.raises(CheckpointError, match=r"manifest.json is not valid at files\.0\.digest"):
        Checkpoint(path)


def _without_last_slice(content: dict) -> None:
    content["tensors"]["model.embed.weight"]["slices"].pop()


def _slice_twice(content: dict) -> None:
    slices = content["tensors"]["model.embed.weight"]["slices"]
    slices.append(slices[0])


def _no_moment(content: dict) -> None:
    tensor = content["tensors"]["model.norm.weight"]
    tensor["slices"] = [piece for piece in tensor["slices"] if piece[0] != "exp_avg"]


@pytest.mark.parametrize(
    "change, reason",
    [
        (_without_last_slice, r"model.embed.weight \(exp_avg_sq\): 33 elements for a shape of 65"),
        (_slice_twice, "model.embed.weight .*elements from 0 on are there twice"),
        (_no_moment, r"model.norm.weight lacks \['exp_avg'\]"),
        (lambda content: content["tensors"]["model.norm.weight"].update(shape=[8]), "for a shape of 8"),
        (
            lambda content: content["tensors"]["model.scale"]["slices"][0].__setitem__(3, "x"),
            "which is not listed",
        ),
        (lambda content: content["files"].append(content["files"][0]), "a file is listed twice"),
        (lambda content: content.pop("identity"), "not valid at identity"),
        (lambda content: content.update(version=3), "has format version 3, this llmtrain reads 1 to 2"),
        (lambda content: content.update(format="zip"), "is not the manifest of a llmtrain-checkpoint"),
    ],
)
def test_a_manifest_that_is_not_a_whole_state_is_refused(
    run: Path, change: Callable[[dict], object], reason: str
) -> None:
    path = run / "checkpoints" / "step-00000004"
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=reason):
        Checkpoint(path)


def test_a_rank_file_that_lies_about_its_tensors_is_refused_by_the_reader(run: Path) -> None:
    path = run / "checkpoints" / "step-00000004"
    for header in (b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]", b"\x01" + b"\0" * 7 + b"{"):
        (path / RANK_0).write_bytes(header)
        with Checkpoint(path).reader() as reader, pytest.raises(CheckpointError, match=RANK_0):
            reader.read("model.embed.weight", "fp32", 0, 1)


def test_a_run_with_only_damaged_checkpoints_does_not_start_over(run: Path) -> None:
    for step in (3, 4):
        truncate(run / "checkpoints" / f"step-0000000{step}" / RANK_0)
    with pytest.raises(CheckpointError) as caught:
        newest(run)
    message = str(caught.value)
    assert "does not silently start over" in message and "new output_dir" in message
    assert "step-00000004: " in message and "step-00000003: " in message


def test_a_run_without_a_committed_checkpoint_has_none_and_says_what_it_passed_over(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    (tmp_path / "checkpoints" / "step-00000009").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").write_text("../../evil")
    passed: list[str] = []
    assert newest(tmp_path, lambda path, reason: passed.append(f"{path.name}: {reason}")) is None
    assert len(passed) == 1 and passed[0].startswith("step-00000009: ") and "no COMMIT" in passed[0]


def test_a_linked_checkpoint_folder_is_not_followed(run: Path) -> None:
    os.symlink(run / "checkpoints" / "step-00000004", run / "checkpoints" / "step-00000007")
    reasons: list[str] = []
    found = newest(run, lambda path, reason: reasons.append(reason))
    assert found is not None and found.step == 4 and "is a link" in reasons[0]


@pytest.mark.parametrize("name", ["step-00000007", "step-00000007.old"])
def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(run: Path, name: str) -> None:
    copy = Path(shutil.copytree(run / "checkpoints" / "step-00000004", run / "checkpoints" / name))
    expected = f"{copy / 'manifest.json'} is of step 4, its folder's name says step 7: one of them is another"
    reasons: list[str] = []
    found = newest(run, lambda path, reason: reasons.append(reason))
    assert found is not None and found.path.name == "step-00000004"
    assert len(reasons) == 1 and reasons[0].startswith(expected)
    for look in (open_checkpoint, Checkpoint):
        with pytest.raises(CheckpointError, match=re.escape(expected)):
            look(copy)
    assert [one.state for one in standings(run, verify=False)] == ["damaged", "complete", "complete"]
    kept = copy.rename(run / "the best one")  # a copy of another name means whatever is in it
    assert open_checkpoint(kept).step == 4 and standing(kept, verify=True).state == "good"


def test_all_ranks_share_the_hashing_and_take_the_same(run: Path) -> None:
    flip(run / "checkpoints" / "step-00000004" / RANK_1, 8 * 900)
    found = on_ranks(3, lambda comm: newest(run, comm=comm))
    assert [checkpoint.step for checkpoint in found] == [3, 3, 3]
    flip(run / "checkpoints" / "step-00000003" / "run.yaml", 3)
    failed = on_ranks(3, lambda comm: newest(run, comm=comm))
    assert all(isinstance(error, CheckpointError) for error in failed)
    assert len({str(error) for error in failed}) == 1


def test_what_means_a_run_folder_or_a_checkpoint(run: Path) -> None:
    assert open_checkpoint(run).step == 4
    assert open_checkpoint(run / "checkpoints" / "step-00000003").step == 3
    truncate(run / "checkpoints" / "step-00000003" / RANK_0)
    with pytest.raises(CheckpointError, match="rank-00000.safetensors has"):
        open_checkpoint(run / "checkpoints" / "step-00000003")


def test_a_run_says_on_stderr_and_in_its_log_what_it_does_not_go_on_from(
    run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flip(run / "checkpoints" / "step-00000004" / RANK_1, 8 * 900)
    (run / "checkpoints" / "step-00000005").mkdir()
    for rank, (found, warnings) in enumerate(
        on_ranks(2, lambda comm: find_checkpoint(RunFolder(run), "auto", comm))
    ):
        assert found.step == 3
        caplog.clear()
        warn(warnings, rank)
        told = [record.getMessage() for record in caplog.records]
        assert told[0] == "step-00000005 is left over from a save that never finished, and not used"
        assert told[1].startswith("step-00000004 is damaged and not used: ") and RANK_1 in told[1]
        assert told[1].endswith("; step 3 (step-00000003) is used instead")
        expected = "".join(f"warning: {text}\n" for text in told) if rank == 0 else ""
        assert capsys.readouterr().err == expected
