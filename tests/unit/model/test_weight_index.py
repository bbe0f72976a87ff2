"""A model's weights are what its index names, whatever lies beside; what is missing is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_weight_files import one_file, saved
from tiny_models import whole_model

from llmtrain.config.schema import ModelSection
from llmtrain.errors import CheckpointError
from llmtrain.model.build import hf_config
from llmtrain.model.weight_index import INDEX
from llmtrain.model.weights import WeightFiles


def weights(folder: Path) -> dict[str, torch.Tensor]:
    config = hf_config(ModelSection(source=str(folder)), 97)
    return dict(whole_model(config, weights=WeightFiles(str(folder))).hf.named_parameters())


def strangers(folder: Path, shards: list[Path]) -> None:
    """Shards of another save, in Mistral's names, and an adapter: all would change what is read."""
    for name in ("model-00009-of-00009.safetensors", "zz.safetensors", "consolidated.00.safetensors"):
        tensors = load_file(shards[0])
        save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / name)
    save_file({"layers.0.attention.wq.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")


def test_what_lies_beside_the_shards_of_the_index_is_no_weight(tmp_path: Path) -> None:
    expected = saved(tmp_path, "llama")
    shards = sorted(tmp_path.glob("*.safetensors"))
    strangers(tmp_path, shards)
    found = weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_lies_beside_the_one_file_is_no_weight(tmp_path: Path) -> None:
    path, expected = one_file(tmp_path)
    strangers(tmp_path, [path])
    found = weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        weights(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].unlink()
    name = re.escape(shards[1].name)
    refused(
        tmp_path, rf"lacks 1 of {len(shards)} weights files that {INDEX} names, the first is {name}; fetch"
    )
    (tmp_path / INDEX).unlink()
    refused(tmp_path, rf"has {len(shards) - 1} of {len(shards)} weights files and no {INDEX}: fetch it again")


def test_two_saves_without_an_index_are_refused(tmp_path: Path) -> None:
    path, _ = one_file(tmp_path)
    shutil.copy(path, tmp_path / "a.safetensors")
    path.rename(tmp_path / "b.safetensors")
    refused(
        tmp_path, r"has \S+ in a.safetensors and in b.safetensors: remove the file that is another save's"
    )


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", 3])
def test_an_index_leads_nowhere_else(tmp_path: Path, name: object) -> None:
    one_file(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refused(
        tmp_path, "is no index of weights" if name == 3 else "which is no file beside it: it is not followed"
    )


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    one_file(tmp_path)
    (tmp_path / INDEX).write_text(content)
    refused(tmp_path, f"{INDEX} is no index of weights: it has no weight_map; fetch or save it again")


def test_a_git_lfs_pointer_is_named_as_such(tmp_path: Path) -> None:
    path, _ = one_file(tmp_path)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4096\n"
    path.write_text(pointer)
    refused(
        tmp_path,
        "model.safetensors is a git-lfs pointer, not the weights: fetch the file itself with",
    )


@pytest.mark.parametrize("form", ["fp8", "int8", "gptq"])
def test_quantized_weights_are_refused_as_such(tmp_path: Path, form: str) -> None:
    path, tensors = one_file(tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = tensors.pop(name)
    if form == "gptq":
        tensors[name.replace("weight", "qweight")] = weight.to(torch.int32)
    else:
        tensors[name] = weight.to(torch.float8_e4m3fn if form == "fp8" else torch.int8)
        tensors[name + "_scale_inv"] = torch.ones(1)
    save_file(tensors, path, {"format": "pt"})
    what = {"fp8": "is F8_E4M3", "int8": "is I8", "gptq": "belongs to them"}[form]
    refused(tmp_path, rf"has quantized weights \(model\S+ {what}\), which are not trained or read here: take")


def test_what_a_config_says_of_a_quantization_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    _, expected = one_file(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    left = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    code = {"auto_map": {"AutoConfig": "configuration_x.X"}, "quantization_config": left}
    (tmp_path / "config.json").write_text(json.dumps(content | code))
    assert not code.keys() & hf_config(ModelSection(source=str(tmp_path)), 97).to_dict().keys()
    found = weights(tmp_path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
