"""`llmtrain checkpoint import`: a DeepSpeed folder goes on as a run, or a sentence says why it can't."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed_files import write_tied_pipeline, write_zero3
from transformers import AutoConfig

sys.path.append(str(Path(__file__).parents[1] / "surface"))
from small_runs import SHAPE, build_dataset, write_run  # noqa: E402

from llmtrain.checkpoint import Checkpoint  # noqa: E402
from llmtrain.cli import main  # noqa: E402
from llmtrain.errors import CheckpointError  # noqa: E402
from llmtrain.interchange.bring import Source, canon_of  # noqa: E402
from llmtrain.interchange.deepspeed_folder import read_folder  # noqa: E402

TINY = {**SHAPE, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("data"))


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return dict(canon_of(AutoConfig.for_model(**config)).shapes)


@pytest.fixture(scope="module")
def tiny() -> dict[str, tuple[int, ...]]:
    return shapes_of(TINY)


def test_a_deepspeed_folder_becomes_a_run_that_goes_on(
    worlds: Any, dataset: Path, tmp_path: Path, capsys: Any
) -> None:
    vocabulary = json.loads((dataset / "manifest.json").read_text())["tokenizer"]["vocab_size"]
    shapes = shapes_of({**SHAPE, "vocab_size": vocabulary})
    write_zero3(tmp_path / "ds", {f"module.{name}": shape for name, shape in shapes.items()})
    run = write_run(tmp_path, dataset)
    command = ["checkpoint", "import", str(tmp_path / "ds"), str(run), "seed=3"]
    assert main([*command, "schedule.steps=3"]) == 2
    assert "is at step 4 already" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(command) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "step 4 of" in told and "batch.rows" not in told
    assert "optimizer.betas was [0.9, 0.999] under DeepSpeed and is [0.9, 0.95] in the run" in told
    manifest = Checkpoint(tmp_path / "run/checkpoints/step-00000004").manifest
    assert manifest.scalars["updates"] == 4 and manifest.identity.seed == 3
    assert (manifest.topology.world, manifest.topology.zero_stage) == (2, 3)
    assert main(command) == 2
    assert "is there already: give a new output_dir" in capsys.readouterr().err
    run.write_text(run.read_text() + "seed: 3\n")
    worlds.run("parity/rank_interchange.py:train_run", run=str(run))
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [5, 6]


def found(folder: Path, shapes: Any, table: Any = None, **model: Any) -> Source:
    write_zero3(folder, shapes, **model)
    return Source(read_folder(folder), canon_of(AutoConfig.for_model(**TINY)), table)


def test_names_are_found_under_wrappings_or_in_a_table(tmp_path: Path, tiny: Any) -> None:
    wrapped = found(tmp_path / "a", {f"module.net.{name}": shape for name, shape in tiny.items()})
    assert sorted({piece.name for piece in wrapped.slices()}) == sorted(tiny)
    numbered = {f"layer.{place}": name for place, name in enumerate(tiny)}
    shapes = {theirs: tiny[name] for theirs, name in numbered.items()}
    assert {piece.name for piece in found(tmp_path / "b", shapes, numbered).slices()} == set(tiny)
    with pytest.raises(CheckpointError, match=r"\d+ parameters have no name .* layer.0 .*give --names FILE"):
        found(tmp_path / "c", shapes)
    twice = {f"{wrap}.{name}": shape for wrap in ("a", "b") for name, shape in tiny.items()}
    with pytest.raises(
        CheckpointError, match="a.model.embed_tokens.weight and b.model.embed_tokens.weight would"
    ):
        found(tmp_path / "d", twice)


def test_numbered_layers_and_a_tied_weight_of_a_pipeline_come_in_by_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canon = canon_of(AutoConfig.for_model(**TINY, tie_word_embeddings=True))
    embedding, *rest = canon.shapes
    table = {
        "tied_modules.embed.weight": embedding,
        **{f"{n}.layer.w": name for n, name in enumerate(rest, 1)},
    }
    theirs = {name: canon.shapes[ours] for name, ours in table.items()}
    tied, *layers = theirs
    half = len(layers) // 2
    stages = [
        {name: theirs[name] for name in names} for names in ((tied, *layers[:half]), (*layers[half:], tied))
    ]
    save = write_tied_pipeline(tmp_path, stages, monkeypatch)
    source = Source(read_folder(save), canon, table)
    values = {(piece.name, piece.kind): piece.tensor for piece in source.slices()}
    assert {name for name, _ in values} == set(canon.shapes)
    assert float(values[embedding, "fp32"][0]) == 0.0, "the first stage's copy counts"
    assert float(values[table[layers[half]], "exp_avg"][0]) == 1000.25


def test_another_model_is_refused(tmp_path: Path, tiny: Any) -> None:
    norm = "model.norm.weight"
    with pytest.raises(
        CheckpointError, match="lacks 1 tensors of the run's model, the first is model.norm.weight"
    ):
        found(tmp_path / "a", {name: shape for name, shape in tiny.items() if name != norm})
    with pytest.raises(
        CheckpointError, match=r"model.norm.weight has shape \[9\], .* \[8\]: the run file must"
    ):
        found(tmp_path / "b", {**tiny, norm: (9,)})


def test_what_can_not_be_imported_is_refused(tmp_path: Path, tiny: Any) -> None:
    refused = {
        "tensor parallelism": {"checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 2}},
        "frozen parameters": {"frozen_param_fragments": {"x": torch.ones(1)}},
        "does not say its step": {"global_steps": None},
        "is not whole: 1 stages of 3 ranks": {"dp_world_size": 3},
        r"not laid out as DeepSpeed 0.19 does it \(": {"param_shapes": 7},
    }
    for place, (why, change) in enumerate(refused.items()):
        write_zero3(tmp_path / f"{place}", tiny, **change)
        with pytest.raises(CheckpointError, match=why):
            read_folder(tmp_path / f"{place}")
    save = write_zero3(tmp_path / "x", tiny)
    optimizer = save / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    optimizer.unlink()
    with pytest.raises(CheckpointError, match="is not whole"):
        read_folder(tmp_path / "x")
    state = {"zero_stage": 3, "fp32_flat_groups": [torch.ones(3)], "optimizer_state_dict": {"state": {}}}
    torch.save({"optimizer_state_dict": state}, optimizer)
    with pytest.raises(CheckpointError, match="lacks parameter groups: 1 of 2 are there"):
        read_folder(save)
    state["fp32_flat_groups"] *= 2
    torch.save({"optimizer_state_dict": state}, optimizer)
    with pytest.raises(CheckpointError, match="has no exp_avg and exp_avg_sq for parameter group 0"):
        read_folder(save)
    for path in save.glob("*optim*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="saved without ZeRO, or without the optimizer"):
        read_folder(save)
    (save / "layer_0_expert_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointError, match="has experts split over ranks"):
        read_folder(save)
    with pytest.raises(CheckpointError, match="neither `latest` nor model states"):
        read_folder(tmp_path)


def test_a_wrong_table_of_names_is_refused(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path, tmp_path / "none")
    for content, why in (("[1]", "must be a JSON object"), ("{", "can't be read as JSON")):
        (tmp_path / "names.json").write_text(content)
        words = ["checkpoint", "import", str(tmp_path), str(run), "--names", str(tmp_path / "names.json")]
        assert main(words) == 2
        assert why in capsys.readouterr().err
