"""A run goes on only from its own checkpoint: each field that differs is named, with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_engine import make_facts, save_on, small_state

from llmtrain.checkpoint import Checkpoint
from llmtrain.errors import CheckpointError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(save_on(1, tmp_path_factory.mktemp("own"), small_state(), make_facts()))


def test_the_same_run_at_another_topology_and_step_matches(saved: Checkpoint) -> None:
    topology = {"world": 64, "pipeline": 4, "zero_stage": 3, "precision": "fp32"}
    saved.check_matches(make_facts(0, topology=topology, run_yaml="name: other\n", probe=None))


def test_how_a_model_is_run_is_not_the_model(saved: Checkpoint) -> None:
    config = dict(make_facts().config)
    config.update(
        use_cache=True, dtype="bfloat16", transformers_version="9", _name_or_path="x", new_default=1
    )
    saved.check_matches(make_facts(config=config))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"dataset": "e" * 64},
            "dataset (saved dddddddddddd…, now eeeeeeeeeeee…): the datasets, their order, their shares",
        ),
        ({"vocab_size": 14}, "vocab_size (saved 13, now 14): use the tokenizer and model"),
        ({"seq_len": 16}, "seq_len (saved 8, now 16): keep data.seq_len"),
        ({"rows": 8}, "rows (saved 4, now 8): keep batch.rows"),
        ({"seed": 1, "dataset": "e" * 64}, "seed (saved 1234, now 1)"),
        ({"seed": 1}, "seed (saved 1234, now 1): keep the seed"),
        ({"optimizer": "muon"}, "optimizer (saved adamw, now muon): keep optimizer.type"),
        ({"topology": {"precision": "bf16"}}, "precision (saved fp32, now bf16): keep precision"),
        (
            {"config": {"model_type": "qwen3"}},
            "model (model_type: saved 'llama', now 'qwen3'): use the model",
        ),
        ({"config": {"hidden_size": 6}}, "model (hidden_size: saved 5, now 6)"),
        (
            {"config": {"rope_parameters": {"rope_theta": 5e5}}},
            "model (rope_parameters.rope_theta: saved 10000.0, now 500000.0)",
        ),
    ],
)
def test_one_changed_field_is_refused_by_name(
    saved: Checkpoint, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        saved.check_matches(make_facts(**changes))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("belongs to another run:") and len(lines) == 3
    assert message in lines[1]
    assert lines[2] == "  to start another run with these settings beside this one: name=other"


def test_all_changed_fields_are_named_at_once(saved: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        saved.check_matches(make_facts(seed=1, seq_len=9, tokenizer_folder=tmp_path))
    message = str(caught.value)
    assert "tokenizer (saved none, now 44136fa355b3…)" in message
    assert "seed" in message and "seq_len" in message and len(message.splitlines()) == 5


def test_only_a_tokenizers_files_are_copied_into_a_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "hub"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors", "notes.txt"):
        (source / name).write_text(name)
    path = save_on(1, tmp_path / "run", small_state(), make_facts(tokenizer_folder=source))
    names = {entry.name for entry in path.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "run.yaml"} < names
    assert not names & {"model.safetensors", "notes.txt"}
    (source / "tokenizer_config.json").write_text("only how it is printed")
    Checkpoint(path).check_matches(make_facts(tokenizer_folder=source))
