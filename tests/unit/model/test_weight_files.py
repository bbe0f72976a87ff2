"""Weights saved by transformers come back exactly, whole and at every stage, or are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import stage_models, tiny_config, whole_model
from transformers import AutoModelForCausalLM

from llmtrain.config.schema import ModelSection
from llmtrain.errors import CheckpointError
from llmtrain.model.build import build_partitioned, hf_config
from llmtrain.model.weights import WeightFiles

FAMILIES = ["llama", "llama_tied", "mixtral", "gemma3", "gpt_neox"]


def saved(folder: Path, family: str, shard: str = "100KB") -> dict[str, torch.Tensor]:
    """A model saved in shards by transformers; its weights as from_pretrained gives them back."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(family)).save_pretrained(folder, max_shard_size=shard)
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_of_from_pretrained_whole_and_staged(family: str, tmp_path: Path) -> None:
    expected = saved(tmp_path, family)
    config = hf_config(ModelSection(source=str(tmp_path)), 97)
    files = WeightFiles(str(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for stages in ([whole_model(config, weights=files)], stage_models(config, 2, weights=files)):
        found = {s.canonical_name(n): p for s in stages for n, p in s.named_parameters()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_mixtrals_experts_are_saved_one_by_one_and_read_as_one_tensor(tmp_path: Path) -> None:
    expected = saved(tmp_path, "mixtral")
    files = WeightFiles(str(tmp_path))
    assert any(name.endswith("experts.3.w1.weight") for name in files.names())
    stage = whole_model(hf_config(ModelSection(source=str(tmp_path)), 97), weights=files)
    merged = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(stage.hf.get_parameter(merged), expected[merged])


def test_a_stage_reads_only_its_own_bytes(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    config = hf_config(ModelSection(source=str(tmp_path)), 97)
    read = []
    for index in range(2):
        files = WeightFiles(str(tmp_path))
        stage = stage_models(config, 2, weights=None)[index]
        from llmtrain.model.build import build_stage

        stage = build_stage(config, stage.cut, torch.float32, "cpu", 0, files)
        assert files.bytes_read == sum(p.numel() * 4 for p in stage.parameters())
        read.append(files.bytes_read)
    assert sum(read) == sum(p.numel() * 4 for p in whole_model(config).parameters())


def test_weights_are_rounded_to_the_runs_dtype(tmp_path: Path) -> None:
    expected = saved(tmp_path, "llama")
    config = hf_config(ModelSection(source=str(tmp_path)), 97)
    stage = whole_model(config, dtype=torch.bfloat16, weights=WeightFiles(str(tmp_path)))
    for name, parameter in stage.hf.named_parameters():
        assert torch.equal(parameter, expected[name].bfloat16())


@pytest.mark.parametrize("family", ["mixtral", "llama_tied"])
def test_weights_come_into_zero3_on_the_writer_rank(family: str, tmp_path: Path) -> None:
    from test_initial_weights import FakeZero3

    expected = saved(tmp_path, family)
    config = hf_config(ModelSection(source=str(tmp_path)), 97)
    zero3 = FakeZero3(torch.float32)
    files = WeightFiles(str(tmp_path))
    stage = build_partitioned(config, torch.float32, "cpu", 0, files, zero3=zero3)
    for name, parameter in stage.hf.named_parameters():
        assert torch.equal(zero3.whole[parameter], expected[name])


def one_file(folder: Path, family: str = "llama") -> tuple[Path, dict[str, torch.Tensor]]:
    saved(folder, family, shard="1GB")
    path = folder / "model.safetensors"
    return path, load_file(path)


def refused(folder: Path, message: str) -> None:
    config = hf_config(ModelSection(source=str(folder)), 97)
    with pytest.raises(CheckpointError, match=message):
        whole_model(config, weights=WeightFiles(str(folder)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path, tensors = one_file(tmp_path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, r"lacks weights: model.layers.2.mlp.up_proj.weight;")


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    path, tensors = one_file(tmp_path)
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, r"has unknown weights: model.layers.9.mlp.up_proj.weight;")


def test_another_shape_is_named(tmp_path: Path) -> None:
    path, tensors = one_file(tmp_path)
    tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, r"model.norm.weight of shape \[3\].*wants \[64\]")


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    path, tensors = one_file(tmp_path, "llama_tied")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, path, {"format": "pt"})
    refused(tmp_path, "different weights for lm_head.weight and model.embed_tokens.weight")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    config = hf_config(ModelSection(source=str(tmp_path)), 97)
    stage = whole_model(config, weights=WeightFiles(str(tmp_path)))
    assert torch.equal(stage.hf.lm_head.weight, tensors["lm_head.weight"])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path, _ = one_file(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="model.safetensors is not a readable safetensors file"):
        WeightFiles(str(tmp_path))


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="only as pickle.*safetensors first"):
        WeightFiles(str(tmp_path))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="has no .safetensors file"):
        WeightFiles(str(tmp_path))


def test_what_is_neither_a_folder_nor_on_the_hub_is_named() -> None:
    with pytest.raises(CheckpointError, match="'nobody/has-this-model' is no folder here, and the Hub"):
        WeightFiles("nobody/has-this-model")
