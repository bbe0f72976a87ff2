"""No file runs code: pickles under every name that some tool would open, and in every file's place."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

sys.path += [str(Path(__file__).parents[1] / "unit" / folder) for folder in ("export", "data")]
from dataset_folders import make_dataset  # noqa: E402
from export_models import build_model, reload_here, save_model  # noqa: E402

from llmtrain.checkpoint import newest  # noqa: E402
from llmtrain.data.dataset import open_dataset  # noqa: E402
from llmtrain.data.verify import verify  # noqa: E402
from llmtrain.errors import InputError, LlmtrainError  # noqa: E402
from llmtrain.evaluate import find_subject  # noqa: E402
from llmtrain.export import export  # noqa: E402
from llmtrain.generate import Sampling, generate, load_model  # noqa: E402
from llmtrain.model.weights import WeightFiles  # noqa: E402

# What DeepSpeed, Trainer, accelerate, torch and numpy would unpickle if they found it.
NAMES = (
    "pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "latest",
    "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "random_states_0.pkl",
    "tokenizer.model", "adapter_model.bin", "00000.npy", "rank-0.pt",
)  # fmt: skip


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    run = {
        "name": "tiny",
        "model": {"config": {"model_type": "llama"}},
        "data": {"train": [{"path": "data"}]},
        "schedule": {"steps": 3},
    }
    save_model(build_model("llama"), folder, run_yaml=yaml.safe_dump(run))
    return folder


@pytest.fixture
def bait(tmp_path: Path) -> tuple[bytes, Path]:
    """A hostile pickle, and the file that betrays that it was read."""
    alarm = tmp_path / "alarm"
    raw = pickle.dumps(Canary(alarm))
    pickle.loads(raw)
    assert alarm.exists(), "the bait does not bite"
    alarm.unlink()
    return raw, alarm


def use_run(run: Path, out: Path) -> None:
    """All that reads a run folder: the newest checkpoint, its state, its model, its export."""
    checkpoint = newest(run)
    assert checkpoint is not None
    with checkpoint.reader() as reader:
        for name, entry in checkpoint.manifest.tensors.items():
            for piece in entry.slices:
                reader.read(name, piece.kind, piece.start, piece.length)
    load_model(find_subject(str(run)))
    export(run, out)


def use_hub_folder(folder: Path) -> None:
    """All that reads a Hugging Face folder: as weights to start from, and to complete a prompt."""
    WeightFiles(str(folder))
    list(generate(str(folder), "w3 w4", Sampling(max_new_tokens=1, temperature=0.0)))


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
    use_run(mine, out)
    assert not [name for name in NAMES if (out / name).exists()], "the export carries them on"
    for name in NAMES:
        (out / name).write_bytes(raw)
    use_hub_folder(out)
    assert not alarm.exists()


def test_a_pickle_in_place_of_any_file_is_refused_unread(
    run: Path, bait: tuple[bytes, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, alarm = bait
    reload_here(monkeypatch)
    mine, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run, mine)
    export(mine, out)
    (checkpoint,) = (mine / "checkpoints").iterdir()
    files = [path for path in checkpoint.iterdir() if path.is_file()]
    assert len(files) >= 6
    for number, path in enumerate(files):
        whole = path.read_bytes()
        path.write_bytes(raw)
        with pytest.raises(InputError):
            use_run(mine, tmp_path / f"out-{number}")
        path.write_bytes(whole)
    for path in (out / "model.safetensors", out / "config.json", out / "tokenizer.json"):
        whole = path.read_bytes()
        path.write_bytes(raw)
        with pytest.raises((LlmtrainError, ValueError, OSError)):
            use_hub_folder(out)
        path.write_bytes(whole)
    assert not alarm.exists()


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


def test_a_pickle_in_a_dataset_is_refused_unread(bait: tuple[bytes, Path], tmp_path: Path) -> None:
    raw, alarm = bait
    folder = make_dataset(tmp_path / "data", {"train": [[[3, 4, 0]] * 5]})
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        whole = path.read_bytes()
        for hostile in (raw, raw.ljust(len(whole), b"\0")[: max(len(whole), len(raw))]):
            path.write_bytes(hostile)
            with pytest.raises(InputError):
                verify(folder)
        path.write_bytes(whole)
    np.save(folder / "train" / "00000.npy", np.array([Canary(alarm)], object), allow_pickle=True)
    assert open_dataset(folder, "train").tokens == 15
    assert not alarm.exists()
