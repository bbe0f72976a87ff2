"""An export is the model that was trained: transformers alone gives the same logits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers
from export_models import CONFIGS, VOCAB, build_model, reload_here, save_model
from safetensors import safe_open

from llmtrain.checkpoint import Checkpoint
from llmtrain.export import export
from llmtrain.export.weights import lay_out


def names_in(folder: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.extend(file.keys())
    return sorted(found)


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_export_reloads_with_equal_logits_and_the_hubs_names(tmp_path: Path, family: str) -> None:
    model = build_model(family)
    save_model(model, tmp_path / "run")
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.path == tmp_path / "out" and done.dtype == "float32" and done.step == 3
    assert done.reloaded_loss == pytest.approx(done.recorded_loss, rel=1e-6)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert again.dtype == torch.float32
    tokens = torch.randint(0, VOCAB, (2, 20))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    model.save_pretrained(tmp_path / "theirs")
    names = names_in(tmp_path / "out")
    assert names == names_in(tmp_path / "theirs")
    assert ("lm_head.weight" in names) == (family in ("llama", "mixtral", "hrm_text"))
    experts = [name for name in names if name.endswith("block_sparse_moe.experts.2.w3.weight")]
    assert len(experts) == (2 if family == "mixtral" else 0)


@pytest.mark.parametrize("family, largest", [("llama", 1), ("gemma3", 1), ("mixtral", 1), ("hrm_text", 8)])
def test_tensors_are_streamed_one_at_a_time_where_the_family_allows(
    tmp_path: Path, family: str, largest: int
) -> None:
    model = build_model(family)
    with Checkpoint(save_model(model, tmp_path)).reader() as reader:
        layout = lay_out(model, reader, torch.bfloat16)
    assert max(len(group) for group, _ in layout.groups) == largest
    assert layout.size == 2 * sum(parameter.numel() for parameter in model.parameters())


def test_only_its_owner_can_write_an_export_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload_here(monkeypatch)
    save_model(build_model("llama"), tmp_path / "run")
    before = os.umask(0)
    try:
        export(tmp_path / "run", tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < modes.keys()
    assert set(modes.values()) == {0o644} and (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_shards_have_an_index_and_stay_below_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload_here(monkeypatch)
    model = build_model("mixtral")
    save_model(model, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", shard_bytes=8000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 8000 + 2000 for path in shards)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    tokens = torch.randint(0, VOCAB, (1, 9))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "precision, dtype, written",
    [
        ("bf16", "auto", torch.bfloat16),
        ("fp16", "auto", torch.float16),
        ("bf16", "fp32", torch.float32),
        ("fp32", "bf16", torch.bfloat16),
    ],
)
def test_dtype_is_the_runs_precision_or_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: str, written: torch.dtype
) -> None:
    reload_here(monkeypatch)
    model = build_model("llama")
    topology = {"world": 2, "pipeline": 1, "zero_stage": 1, "precision": precision}
    save_model(model, tmp_path / "run", topology=topology)
    export(tmp_path / "run", tmp_path / "out", dtype=dtype)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == written
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(written))


def test_generation_stops_at_the_datasets_eos_and_uses_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reload_here(monkeypatch)
    save_model(build_model("llama"), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token_id == 5 == config.eos_token_id == generation.eos_token_id
    assert generation.bos_token_id is None and config.use_cache is True
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    grown = model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    assert grown.shape[0] == 1 and 3 <= grown.shape[1] <= 5
