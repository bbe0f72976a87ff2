"""`llmtrain checkpoint export`: one tensor at a time, and whole under its name or not there."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed_files import write_zero3
from transformers import AutoConfig

from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.checkpoint.reader import CheckpointReader
from llmtrain.cli import main
from llmtrain.interchange.bring import Source, canon_of, write
from llmtrain.interchange.deepspeed_folder import read_folder

TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
}
FORMATS = ["universal", "dcp"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    canon = canon_of(AutoConfig.for_model(**TINY))
    write_zero3(folder / "ds", dict(canon.shapes))
    identity = {"vocab_size": 16, "seq_len": 8, "rows": 2, "seed": 1}
    facts = CheckpointFacts(
        step=4, tokens=64, topology={}, dataset="none", config=TINY, run_yaml="name: x\n", **identity
    )
    write(Source(read_folder(folder / "ds"), canon), folder / "run", facts)
    return folder / "run"


def export(run: Path, out: Path, form: str) -> int:
    return main(["checkpoint", "export", str(run), str(out), "--format", form])


@pytest.mark.parametrize("form", FORMATS)
def test_one_tensor_at_a_time_is_in_memory(
    run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    given: list[Any] = []
    original = CheckpointReader.tensor

    def counted(self: CheckpointReader, name: str, kind: str) -> torch.Tensor:
        assert sum(reference() is not None for reference in given) <= 1, "tensors pile up"
        values = original(self, name, kind).numpy().copy()
        given.append(weakref.ref(values))  # the memory itself, whatever views of it there are
        return torch.from_numpy(values)

    monkeypatch.setattr(CheckpointReader, "tensor", counted)
    assert export(run, tmp_path / "out", form) == 0
    assert len(given) == 3 * len(canon_of(AutoConfig.for_model(**TINY)).shapes)
    assert str(tmp_path / "out") in capsys.readouterr().out


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_there_already_stays(run: Path, tmp_path: Path, form: str, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    assert export(run, tmp_path / "out", form) == 2
    assert "is already there: give a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_failed_export_leaves_nothing(
    run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [5]
    original = CheckpointReader.tensor

    def failing(self: CheckpointReader, name: str, kind: str) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise OSError("the disk went away")
        return original(self, name, kind)

    monkeypatch.setattr(CheckpointReader, "tensor", failing)
    with pytest.raises(OSError, match="the disk went away"):
        export(run, tmp_path / "out", form)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_not_given(run: Path, tmp_path: Path, capsys: Any) -> None:
    file = run / "checkpoints/step-00000004/rank-00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert export(run, tmp_path / "out", "dcp") == 2
    assert "no checkpoint" in capsys.readouterr().err
    file.write_bytes(whole)
    assert not (tmp_path / "out").exists()
