"""Checkpoints that earlier versions of llmtrain committed load, and training goes on from them."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmtrain.checkpoint import Checkpoint, newest
from llmtrain.checkpoint.manifest import VERSION
from llmtrain.errors import CheckpointError

FORMATS = sorted(Path(__file__).parent.glob("checkpoint_format_*"))


def test_the_format_of_today_is_among_the_old_ones() -> None:
    """A new VERSION needs a folder written by `write_old_checkpoint.py`; the old folders stay."""
    assert [folder.name for folder in FORMATS] == [f"checkpoint_format_{n}" for n in range(1, VERSION + 1)]


@pytest.mark.parametrize(
    ("folder", "ranks", "template"),
    [(FORMATS[0], 2, "zero1"), *((folder, 1, "zero3") for folder in FORMATS)],
    ids=lambda value: getattr(value, "name", None),
)
def test_training_goes_on_from_an_old_checkpoint(
    worlds: Any, folder: Path, ranks: int, template: str
) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    results = worlds.run(
        "parity/rank_checkpoints.py:load_at",
        ranks,
        folder=str(folder),
        model="micro",
        precision="fp32",
        deepspeed=template,
    )
    for result in results:
        assert result["held_out"] == pytest.approx(expected["held_out"], rel=1e-6)
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_damage_to_an_old_checkpoint_is_found(tmp_path: Path, folder: Path) -> None:
    path = shutil.copytree(folder / "checkpoints" / "step-00000004", tmp_path / "step")
    checkpoint = Checkpoint(path)
    checkpoint.verify()
    draw = random.Random(folder.name)
    for entry in checkpoint.manifest.files:
        whole = (path / entry.name).read_bytes()
        for bit in draw.sample(range(8 * len(whole)), 30):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            (path / entry.name).write_bytes(content)
            with pytest.raises(CheckpointError, match=f"{entry.name} is damaged"):
                checkpoint.verify()
        (path / entry.name).write_bytes(whole)
    checkpoint.verify()


def test_a_newer_format_is_refused_by_a_sentence(tmp_path: Path) -> None:
    run = shutil.copytree(FORMATS[-1], tmp_path / "run")
    path = run / "checkpoints" / "step-00000004"
    content = json.loads((path / "manifest.json").read_text())
    text = json.dumps({**content, "version": VERSION + 1, "new": "field"}).encode()
    (path / "manifest.json").write_bytes(text)
    (path / "COMMIT").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")
    with pytest.raises(CheckpointError) as caught:
        newest(run)
    wanted = (
        f"has format version {VERSION + 1}, this llmtrain reads 1 to {VERSION}: "
        "use the llmtrain that wrote it"
    )
    assert wanted in str(caught.value) and "does not silently start over" in str(caught.value)
