"""What was saved on one number of ranks is read, element for element, on any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fake_engine import FakeEngine, empty_like, make_facts, on_ranks, same_state, save_on, small_state
from safetensors.torch import load_file

from llmtrain.checkpoint import Checkpoint, newest
from llmtrain.errors import CheckpointError


@pytest.mark.parametrize("saved", [1, 2, 3])
@pytest.mark.parametrize("loaded", [1, 2, 5])
def test_saved_on_one_world_loads_on_another(tmp_path: Path, saved: int, loaded: int) -> None:
    state = small_state()
    save_on(saved, tmp_path, state, make_facts())
    found = newest(tmp_path)
    assert found is not None and found.step == 3
    copy = empty_like(state)

    def load(comm: object) -> dict[str, float]:
        engine = FakeEngine(comm, copy)
        with found.reader() as reader:
            engine.load(reader, found.scalars)
        return engine.scalars()

    assert on_ranks(loaded, load) == [{"step": 3.0}] * loaded
    assert same_state(state, copy)


def test_rank_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    state = small_state()
    path = save_on(2, tmp_path, state, make_facts())
    halves = [load_file(path / f"rank-0000{rank}.safetensors") for rank in range(2)]
    embed = torch.cat([halves[0]["model.embed.weight|fp32|0"], halves[1]["model.embed.weight|fp32|33"]])
    assert torch.equal(embed, state["model.embed.weight"]["fp32"].reshape(-1))
    assert torch.equal(halves[0]["model.count|buffer|0"], state["model.count"]["buffer"].reshape(1))
    scale = torch.cat([halves[0]["model.scale|buffer|0"], halves[1]["model.scale|buffer|5"]])
    assert torch.equal(scale, state["model.scale"]["buffer"])


def test_a_range_over_several_slices_is_read_as_one(tmp_path: Path) -> None:
    state = small_state()
    path = save_on(5, tmp_path, state, make_facts())
    with Checkpoint(path).reader() as reader:
        for start, length in [(0, 65), (12, 1), (12, 28), (64, 1), (65, 0), (13, 13)]:
            wanted = state["model.embed.weight"]["exp_avg"].reshape(-1)[start : start + length]
            assert torch.equal(reader.read("model.embed.weight", "exp_avg", start, length), wanted)
        assert reader.tensor("model.mask", "buffer").shape == (3, 3)


def test_a_reader_says_what_is_not_there(tmp_path: Path) -> None:
    path = save_on(1, tmp_path, small_state(), make_facts())
    with Checkpoint(path).reader() as reader:
        with pytest.raises(CheckpointError, match="did you mean 'model.norm.weight'"):
            reader.read("model.norm.weights", "fp32", 0, 1)
        with pytest.raises(CheckpointError, match="no master of model.norm.weight, only fp32, exp_avg"):
            reader.read("model.norm.weight", "master", 0, 1)
        with pytest.raises(CheckpointError, match="has 7 elements, 5 to 9 were asked for"):
            reader.read("model.norm.weight", "fp32", 5, 4)
