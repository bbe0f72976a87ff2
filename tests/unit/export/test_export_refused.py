"""What must not be exported is not: the message says why, and nothing is left at OUT."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_models import build_model, probe_rows, reload_here, save_model
from transformers import GenerationConfig, LlamaConfig

from llmtrain.checkpoint.probe import taken_otherwise
from llmtrain.errors import CheckpointError, ConfigError, LlmtrainError
from llmtrain.export import export, hub_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    save_model(build_model("llama"), folder)
    return folder


def test_a_loss_that_is_not_the_recorded_one_is_refused_with_both_numbers(tmp_path: Path) -> None:
    save_model(build_model("llama"), tmp_path / "run", probe={**probe_rows(), "loss": 1.25})
    with pytest.raises(
        CheckpointError, match=r"loss of \d\.\d{6} on the probe rows, training recorded 1.250000"
    ):
        export(tmp_path / "run", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_loss_that_is_not_a_number_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_folder, "_reloaded_loss", lambda folder, probe: float("nan"))
    with pytest.raises(CheckpointError, match="loss of nan"):
        export(run, tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_an_export_that_transformers_cannot_load_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = hub_folder._write

    def without_a_tensor(checkpoint: object, folder: Path, *rest: object) -> None:
        write(checkpoint, folder, *rest)
        os.truncate(folder / "model.safetensors", 5000)

    monkeypatch.setattr(hub_folder, "_write", without_a_tensor)
    with pytest.raises(
        CheckpointError, match="could not be loaded with transformers, so it was removed: .*afetensor"
    ):
        export(run, tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_a_tensor_that_transformers_would_make_up_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = hub_folder._write

    def with_another_layer(checkpoint: object, folder: Path, *rest: object) -> None:
        write(checkpoint, folder, *rest)
        config = json.loads((folder / "config.json").read_text())
        config["num_hidden_layers"] = 3
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(hub_folder, "_write", with_another_layer)
    with pytest.raises(CheckpointError, match="does not take the export as it is.*missing_keys.*layers.2"):
        export(run, tmp_path / "out")


def test_a_checkpoint_without_a_probe_is_refused(tmp_path: Path) -> None:
    save_model(build_model("llama"), tmp_path / "run", probe=None)
    with pytest.raises(CheckpointError, match="has no probe"):
        export(tmp_path / "run", tmp_path / "out")


def test_out_that_is_there_and_a_wrong_dtype_are_named_together(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(ConfigError) as caught:
        export(run, tmp_path / "out", dtype="bf61")
    assert "one of auto, bf16, fp16, fp32; did you mean 'bf16'?" in str(caught.value)
    assert "it is already there: give a new folder" in str(caught.value)
    assert (tmp_path / "out" / "mine").read_text() == "keep"


def test_an_empty_out_is_taken(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reload_here(monkeypatch)
    (tmp_path / "out").mkdir()
    export(run, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert {"model.safetensors", "config.json", "README.md"} < set(os.listdir(tmp_path / "out"))


def test_a_config_that_is_not_the_states_is_refused(tmp_path: Path) -> None:
    model = build_model("llama")
    model.config.num_hidden_layers = 3
    save_model(model, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lacks \['model.layers.2"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_type_that_transformers_lacks_is_refused(tmp_path: Path) -> None:
    model = build_model("llama")
    config = {**model.config.to_dict(), "model_type": "llamma", "auto_map": {"AutoConfig": "evil.Config"}}
    save_model(model, tmp_path / "run", config=config)
    with pytest.raises(CheckpointError, match="config.json that transformers refuses"):
        export(tmp_path / "run", tmp_path / "out")


def test_a_folder_that_is_no_run_and_a_run_without_a_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run folder nor a checkpoint"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not exist"):
        export(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no finished checkpoint yet"):
        export(tmp_path / "run", tmp_path / "out")


def test_an_export_without_room_says_need_and_have(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    values = list(real)
    values[4] = 1000  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(LlmtrainError, match=r"no space for the export in .*: need 0\.02 GB, have 0\.00 GB"):
        export(run, tmp_path / "out")
    assert not os.listdir(tmp_path)


def test_what_a_killed_export_left_goes_and_one_under_way_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload_here(monkeypatch)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left, under_way = (tmp_path / f".out.{pid}-0123abcd.part" for pid in (gone.pid, os.getpid()))
    other = tmp_path / f".outer.{gone.pid}-0123abcd.part"
    for folder in (left, under_way, other):
        folder.mkdir()
        (folder / "half.safetensors").touch()
    export(run, tmp_path / "out")
    assert not left.exists()
    assert under_way.exists() and other.exists()


def test_settings_that_are_taken_otherwise_or_must_not_be_there_are_told(tmp_path: Path) -> None:
    class Loaded:
        generation_config = GenerationConfig(eos_token_id=2)

    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"quantization_config": {}}}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    wrong = taken_otherwise(tmp_path, Loaded)
    assert wrong["quantization_config"] == "said of weights that are not quantized"
    assert wrong["eos_token_id"] == {"written": [2, 5], "taken": 2}


def test_a_family_whose_config_knows_one_end_gets_one() -> None:
    class OneEnd(LlamaConfig):  # as inkling_text, which older versions of transformers lack
        @classmethod
        def from_dict(cls, content: dict[str, Any], **more: Any) -> Any:
            if isinstance(content["eos_token_id"], list):
                raise TypeError("eos_token_id expected int")
            return super().from_dict(content, **more)

    for config, found in ((LlamaConfig(), [5, 7]), (OneEnd(), 7)):
        hub_folder._set_ends(config, [5, 7])
        assert config.eos_token_id == found
