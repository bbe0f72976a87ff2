"""No file runs code, and none leads out of its folder: samples of rows S1, S2 and S4 of the fault table."""

from __future__ import annotations

import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import rows_of_paths as paths
import rows_of_strangers as rows  # which tells where the next ones are
from dataset_folders import make_dataset
from export_models import reload_here
from watched import Watched

from llmtrain.data.dataset import open_dataset
from llmtrain.errors import InputError
from llmtrain.export import export
from llmtrain.model.weights import WeightFiles
from llmtrain.trained import find_subject, load_model

# What DeepSpeed, Trainer, accelerate, torch and numpy would unpickle if they found it.
NAMES = (
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "latest",
    "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "random_states_0.pkl",
    "tokenizer.model", "adapter_model.bin", "00000.npy", "rank-0.pt",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rows.saved_run(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("victims")


@pytest.fixture
def bait(tmp_path: Path) -> tuple[bytes, Path]:
    """A hostile pickle, and the file that betrays that it was read."""
    alarm = tmp_path / "alarm"
    raw = pickle.dumps(rows.Canary(alarm))
    pickle.loads(raw)
    assert alarm.exists(), "the bait does not bite"
    alarm.unlink()
    return raw, alarm


def test_pickles_that_lie_about_are_not_read(
    run: Path, bait: tuple[bytes, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, alarm = bait
    reload_here(monkeypatch)
    mine, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run, mine)
    for folder in (mine, *[path for path in mine.rglob("*") if path.is_dir()]):
        for name in NAMES:
            (folder / name).write_bytes(raw)
    rows.use_run(mine, out)
    assert not [name for name in NAMES if (out / name).exists()], "the export carries them on"
    for name in NAMES:
        (out / name).write_bytes(raw)
    rows.use_hub_folder(out)
    assert not alarm.exists()


@pytest.mark.parametrize("form", range(len(rows.FORMS)), ids=rows.FORMS)
def test_a_pickle_in_place_of_any_file_is_not_executed(shared: Path, form: int) -> None:
    count = len(rows.victims_in(shared).uses)
    assert count >= 30
    for place in range(form, count, len(rows.FORMS)):
        assert not rows.pickle_in_place(shared, len(rows.FORMS) * place + form, random.Random(0))


def test_weights_that_are_only_there_as_pickle_are_refused(
    run: Path, bait: tuple[bytes, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, alarm = bait
    reload_here(monkeypatch)
    out = tmp_path / "out"
    export(run, out)
    (out / "model.safetensors").unlink()
    (out / "pytorch_model.bin").write_bytes(raw)
    with pytest.raises(InputError, match="pickle"):
        WeightFiles(str(out))
    with pytest.raises(InputError, match="neither a run folder, nor a checkpoint"):
        load_model(find_subject(str(out)))
    assert not alarm.exists()


def test_an_array_of_objects_beside_the_shards_is_not_read(bait: tuple[bytes, Path], tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "data", {"train": [[[3, 4, 0]] * 5]})
    np.save(folder / "train" / "00000.npy", np.array([rows.Canary(bait[1])], object), allow_pickle=True)
    assert open_dataset(folder, "train").tokens == 15
    assert not bait[1].exists()


def test_names_and_links_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "bait").touch()
    with Watched(tmp_path) as watched:
        (tmp_path / "bait").read_bytes()
    assert watched.seen == [("bait", 0x20)], "a read goes unnoticed"
    (tmp_path / "bait").unlink()
    for number in range(len(paths.DOORS)):
        assert not paths.traversal(tmp_path, number, random.Random(0)), number


@pytest.mark.parametrize("number", range(len(rows.CODE)))
def test_code_and_kernels_of_a_model_are_never_run(tmp_path: Path, number: int) -> None:
    assert not rows.code_of_a_model(tmp_path, number, random.Random(0))


def test_what_stands_in_for_remote_code_would_be_noticed(tmp_path: Path) -> None:
    """The alarm goes off for one who trusts the model: else the test above could not fail."""
    import transformers

    hub = rows.hub_folder(tmp_path / "hub")
    with rows.remote_code(tmp_path / "alarm"), pytest.raises(OSError, match="nothing is fetched here"):
        transformers.AutoModelForCausalLM.from_pretrained(hub, attn_implementation=rows.KERNEL)
    assert (tmp_path / "alarm").exists()
