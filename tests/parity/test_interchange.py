"""What DeepSpeed saved goes on under llmtrain, and what llmtrain saved under DeepSpeed and in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rank_programs import MODELS, ROWS, SEQ_LEN, VOCAB
from transformers import AutoConfig, AutoModelForCausalLM

from llmtrain.checkpoint import Checkpoint
from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.cli import main
from llmtrain.interchange.bring import Source, canon_of, write
from llmtrain.interchange.deepspeed_folder import read_folder

PROGRAM = "parity/rank_interchange.py"
MODEL = "llama-tied"
PLAIN: dict[str, dict[str, Any]] = {
    "zero1": {"deepspeed": "zero1"},
    "zero2": {"deepspeed": "zero2"},
    "zero3": {"deepspeed": "zero3"},
    "bf16": {"deepspeed": "zero1", "precision": "bf16"},
    "fp16": {"deepspeed": "zero2", "precision": "fp16"},
}


def facts(precision: str, step: int = 4) -> CheckpointFacts:
    return CheckpointFacts(
        step=step,
        tokens=step * ROWS * SEQ_LEN,
        topology={"precision": precision},
        dataset="random",
        config=MODELS[MODEL],
        vocab_size=VOCAB,
        seq_len=SEQ_LEN,
        rows=ROWS,
        seed=7,
        run_yaml="name: parity\n",
    )


def bring(folder: Path, run: Path, precision: str = "fp32") -> Path:
    config = AutoConfig.for_model(**{**MODELS[MODEL], "vocab_size": VOCAB})
    return write(Source(read_folder(folder), canon_of(config)), run, facts(precision))


@pytest.fixture(scope="module")
def saved(worlds: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Folders that DeepSpeed saved, and the losses with which it went on itself."""
    root = tmp_path_factory.mktemp("deepspeed")
    folders = {str(root / name): sections for name, sections in PLAIN.items()}
    (losses, _) = worlds.run(f"{PROGRAM}:save_plain", 2, folders=folders, model=MODEL)
    pipeline = {"deepspeed": "pipeline", "parallel": {"pipeline": 2}}
    (losses[str(root / "pipeline")], _) = worlds.run(
        f"{PROGRAM}:save_pipeline", 2, folder=str(root / "pipeline"), model=MODEL, **pipeline
    )
    worlds.run(
        f"{PROGRAM}:to_universal", folders=[str(root / name) for name in ("zero1", "zero3", "pipeline")]
    )
    return root, {Path(folder).name: run for folder, run in losses.items()}


def test_what_deepspeed_saved_goes_on(worlds: Any, saved: Any, tmp_path: Path) -> None:
    root, losses = saved
    places = {name: root / name for name in ("zero1", "zero2", "zero3", "pipeline")}
    places |= {
        f"{name} universal": root / name / "global_step4_universal" for name in ("zero1", "zero3", "pipeline")
    }
    for name, place in places.items():
        bring(place, tmp_path / name)
    bring(root / "bf16", tmp_path / "bf16", "bf16")
    runs = [str(tmp_path / name) for name in places]
    (got,) = worlds.run(f"{PROGRAM}:load_many", folders=runs, model=MODEL, deepspeed="zero1")
    for name, run in zip(places, got, strict=True):
        assert run == pytest.approx(losses[name.split()[0]], rel=1e-5), name
    (bf16,) = worlds.run(
        f"{PROGRAM}:load_many", folders=[str(tmp_path / "bf16")], model=MODEL, precision="bf16"
    )
    assert bf16[0] == pytest.approx(losses["bf16"], rel=1e-3)


def test_an_fp16_loss_scale_and_its_skipped_steps_come_along(saved: Any, tmp_path: Path) -> None:
    root, _ = saved
    checkpoint = Checkpoint(bring(root / "fp16", tmp_path / "run", "fp16"))
    skipped = torch.load(root / "fp16/global_step4/mp_rank_00_model_states.pt")["skipped_steps"]
    assert checkpoint.scalars["updates"] == 4 - skipped
    assert checkpoint.scalars["cur_iter"] == 4 and checkpoint.scalars["cur_scale"] == 2.0 ** (16 - skipped)


def test_deepspeed_goes_on_from_a_universal_checkpoint(worlds: Any, saved: Any, tmp_path: Path) -> None:
    root, losses = saved
    bring(root / "zero1", tmp_path / "run")
    assert (
        main(["checkpoint", "export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "universal"])
        == 0
    )
    templates = ["zero1", "zero2", "zero3"]
    runs, _ = worlds.run(
        f"{PROGRAM}:load_universal", 2, folder=str(tmp_path / "out"), model=MODEL, templates=templates
    )
    for template, run in zip(templates, runs, strict=True):
        assert run == pytest.approx(losses["zero1"], rel=1e-5), template
    again = Checkpoint(bring(tmp_path / "out", tmp_path / "again"))
    first = Checkpoint(tmp_path / "run/checkpoints/step-00000004")
    assert again.scalars["updates"] == first.scalars["updates"] == 4
    for name, tensor in first.manifest.tensors.items():
        for kind in tensor.kinds():
            assert torch.equal(again.reader().tensor(name, kind), first.reader().tensor(name, kind))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_loads_a_distributed_checkpoint(saved: Any, tmp_path: Path) -> None:
    """Into a model and an AdamW of plain torch, which then hold exactly what the checkpoint holds."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    root, _ = saved
    checkpoint = Checkpoint(bring(root / "zero2", tmp_path / "run"))
    assert (
        main(["checkpoint", "export", str(tmp_path / "run"), str(tmp_path / "out"), "--format", "dcp"]) == 0
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**MODELS[MODEL], "vocab_size": VOCAB}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=7e-4)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {
        "model": {k: v for k, v in model_state.items() if k != "lm_head.weight"},
        "optimizer": optimizer_state,
    }
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, storage_reader=dcp.FileSystemReader(tmp_path / "out"), planner=planner, no_dist=True)
    weights = {**state["model"], "lm_head.weight": state["model"]["model.embed_tokens.weight"]}
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state["optimizer"])
    reader = checkpoint.reader()
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter]
        assert torch.equal(parameter, reader.tensor(name, "fp32")), name
        assert torch.equal(moments["exp_avg"], reader.tensor(name, "exp_avg")), name
        assert torch.equal(moments["exp_avg_sq"], reader.tensor(name, "exp_avg_sq")), name
        assert float(moments["step"]) == 4
    assert optimizer.param_groups[0]["lr"] == 7e-4
