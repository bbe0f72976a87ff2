"""Beside the weights: the whole tokenizer, settings fit to the model, no word of what is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from export_models import build_model, reload_here, save_model, write_tokenizer

from data_prep.tokenizer import copy_tokenizer
from llmtrain.checkpoint import Checkpoint
from llmtrain.export import export
from llmtrain.trained import config_of

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
CODE = {"AutoConfig": "configuration_x.X", "AutoTokenizer": ["tokenization_x.X", None]}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    reload_here(monkeypatch)


def exported(folder: Path, model: Any | None = None, **facts: Any) -> Path:
    save_model(model or build_model("llama"), folder / "run", **facts)
    return export(folder / "run", folder / "out").path


def settings(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())  # type: ignore[no-any-return]


def edit(folder: Path, name: str, **content: Any) -> None:
    (folder / name).write_text(json.dumps(settings(folder, name) | content))


def test_code_and_a_quantization_that_the_config_names_are_not_exported(tmp_path: Path) -> None:
    model = build_model("llama")
    config = {**model.config.to_dict(), "auto_map": CODE, "quantization_config": FP8}
    write_tokenizer(tmp_path / "t")
    edit(tmp_path / "t", "tokenizer_config.json", auto_map={"AutoTokenizer": CODE["AutoTokenizer"]})
    out = exported(tmp_path, model, config=config, tokenizer_folder=tmp_path / "t")  # as 0.3 saved it
    assert not {"auto_map", "quantization_config"} & settings(out, "config.json").keys()
    assert "auto_map" not in settings(out, "tokenizer_config.json")
    text = "".join(path.read_text() for path in out.glob("*.json"))
    assert "configuration_x" not in text and "tokenization_x" not in text


def test_all_files_of_a_tokenizer_go_from_its_source_into_the_export(tmp_path: Path) -> None:
    source = tmp_path / "hub"
    write_tokenizer(source)
    (source / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (source / "spiece.model").write_bytes(b"\x80\x04a pickle in its place")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (source / "additional_chat_templates").mkdir()
    for name in ("tool_use.jinja", "rag.jinja", "evil.py", ".hidden.jinja"):
        (source / "additional_chat_templates" / name).write_text(f"{name} {{{{ messages[0].content }}}}")
    (source / "modeling_x.py").write_text("raise SystemExit")
    copy_tokenizer(source, tmp_path / "dataset")
    out = exported(tmp_path, tokenizer_folder=tmp_path / "dataset")
    kept = ["additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja"]
    kept += ["chat_template.jinja", "tokenizer.json", "tokenizer.model"]
    for name in kept:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert not [
        path.name for path in out.rglob("*") if path.name in ("evil.py", "spiece.model", ".hidden.jinja")
    ]
    assert not list(out.rglob("*.py"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert sorted(tokenizer.chat_template) == ["default", "rag", "tool_use"]


def test_a_folder_of_templates_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "hub")
    (tmp_path / "private").mkdir()
    (tmp_path / "hub/additional_chat_templates").symlink_to(tmp_path / "private")
    with pytest.raises(Exception, match="is a link that leads out of its folder"):
        copy_tokenizer(tmp_path / "hub", tmp_path / "copy")


def test_the_tokenizer_names_the_end_of_a_document_that_the_corpus_file_chose(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "t")
    edit(tmp_path / "t", "tokenizer_config.json", eos_token=None)
    out = exported(tmp_path, tokenizer_folder=tmp_path / "t", data={"document_end": "<eos>"})
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eos>", 5)


@pytest.mark.parametrize("seq_len, reach", [(8, 32), (48, 48)])
def test_the_length_trained_on_is_the_length_exported(tmp_path: Path, seq_len: int, reach: int) -> None:
    out = exported(tmp_path, seq_len=seq_len)
    assert settings(out, "config.json")["max_position_embeddings"] == reach
    assert settings(out, "tokenizer_config.json")["model_max_length"] == reach
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == reach


@pytest.mark.parametrize(
    "kind, says, reach",
    [
        ("llama", {"rope_type": "linear", "factor": 2.0}, 48),
        ("llama", {"rope_type": "dynamic", "factor": 2.0}, 32),
        ("llama", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 48),
        ("gemma3", None, 48),  # two kinds of layers
    ],
)
def test_a_length_that_decides_the_frequencies_stays(
    tmp_path: Path, kind: str, says: dict[str, Any] | None, reach: int
) -> None:
    model = build_model(kind)
    config = model.config.to_dict()
    if says is not None:
        config["rope_parameters"] = {"rope_theta": 1e4, **says}
    saved = Checkpoint(save_model(model, tmp_path / "run", config=config, seq_len=48))
    assert config_of(saved).max_position_embeddings == reach
