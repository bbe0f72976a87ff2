"""Nobody else's code is loaded as DeepSpeed's op, and nobody else can read a run's state on an NVMe disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmtrain.checkpoint.agree import Alone
from llmtrain.engine import nvme
from llmtrain.engine.built_ops import library_of
from llmtrain.engine.zeropp import QUANTIZER, require_quantizer
from llmtrain.errors import ConfigError, EngineError

STRANGER = 54321


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An op that was built where nobody else can write."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    path = tmp_path / "extensions" / "async_io" / "async_io.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"machine code")
    for place in (path, path.parent, path.parent.parent):
        place.chmod(0o755)
    return path


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Makes `path` somebody else's; whose."""
    owner = path.stat().st_uid
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
        return STRANGER
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)  # else only root can give it away
    return owner


def test_what_only_its_user_could_have_built_is_loaded(library: Path) -> None:
    assert library_of("async_io") == library
    assert nvme.ASYNC_IO._distrust(library) == ""
    library.parents[1].chmod(0o1777)  # as /tmp: nobody can replace what is another's
    assert nvme.ASYNC_IO._distrust(library) == ""


@pytest.mark.parametrize("above", [-1, 0, 1])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_what_others_could_have_written_is_not_loaded(library: Path, above: int, mode: int) -> None:
    path = library if above < 0 else library.parents[above]
    path.chmod(mode)
    words = f"others may write to {path}, so it is not loaded: build it again, closed to them: {nvme.BUILD}"
    assert nvme.ASYNC_IO._distrust(library) == words


def test_the_sticky_bit_says_nothing_of_a_file(library: Path) -> None:
    library.chmod(0o1777)
    assert nvme.ASYNC_IO._distrust(library).startswith(f"others may write to {library}")


@pytest.mark.parametrize("above", [-1, 0, 1])
def test_what_is_a_strangers_is_not_loaded(
    library: Path, above: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = give_away(library if above < 0 else library.parents[above], monkeypatch)
    why = nvme.ASYNC_IO._distrust(library)
    assert f" is neither yours nor root's but user {owner}'s, so it is not loaded: set TORCH_EXT" in why


def test_a_build_begins_in_folders_closed_to_others(library: Path) -> None:
    other = library.parents[1] / "pin_memory" / "pin_memory.so"
    other.parent.mkdir()
    other.touch()
    library.parents[1].chmod(0o777)
    nvme.ASYNC_IO._close_to_others()
    assert not library.exists() and not other.exists(), "somebody else may have written it"
    assert [stat.S_IMODE(path.stat().st_mode) for path in library.parents[:2]] == [0o700, 0o755]
    library.write_bytes(b"fresh")
    library.chmod(0o700)
    nvme.ASYNC_IO._close_to_others()
    assert library.read_bytes() == b"fresh", "what is trusted is not built anew"


def test_a_build_makes_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "a" / "b"))
    nvme.ASYNC_IO._close_to_others()
    library = library_of("async_io")
    assert [stat.S_IMODE(path.stat().st_mode) for path in library.parents[:2]] == [0o700, 0o700]


def test_a_build_in_a_strangers_folder_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(library.parents[1], monkeypatch)
    with pytest.raises(EngineError, match="neither yours nor root's .* TORCH_EXTENSIONS_DIR to a folder of"):
        nvme.ASYNC_IO._close_to_others()
    library.parents[1].rename(library.parents[2] / "aside")
    library.parents[1].write_text("a file in the folder's place")
    with pytest.raises(EngineError, match="can't be closed to others .* TORCH_EXTENSIONS_DIR to a folder of"):
        nvme.ASYNC_IO._close_to_others()


def configured(folder: Path) -> Path:
    """The folder that DeepSpeed is given for a run whose optimizer goes to `folder/disk`."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    plan: Any = SimpleNamespace(
        deepspeed={
            "zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": str(disk)}},
        },
        run=SimpleNamespace(folder=folder / "runs" / "a"),
        origins={
            f"ds.zero_optimization.offload_optimizer.{name}": "ds.json" for name in ("nvme_path", "device")
        },
    )
    config = nvme.deepspeed_config(plan, Alone())
    return Path(config["zero_optimization"]["offload_optimizer"]["nvme_path"])


def test_a_runs_folder_on_the_disk_is_closed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvme, "load_op", lambda: "")
    folder = configured(tmp_path)
    assert folder.parent == tmp_path / "disk" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)  # as an earlier version left it
    assert configured(tmp_path) == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    words = f"ds.json.: {folder} is a link or another user's, so no weights are written there; remove it"
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path)
    folder.unlink()
    folder.touch()
    with pytest.raises(ConfigError, match="can't be made a folder of this user alone"):
        configured(tmp_path)
    folder.unlink()
    folder.mkdir()
    give_away(folder, monkeypatch)
    with pytest.raises(ConfigError, match=words):
        configured(tmp_path)


def test_a_machine_without_the_op_keeps_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvme, "load_op", lambda: "is not there")
    with pytest.raises(ConfigError, match="is not there"):
        configured(tmp_path)
    assert not list((tmp_path / "disk").iterdir())


def test_zeropp_is_refused_with_the_command_that_builds_its_op(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed would compile it with nvcc, in every rank, in the run."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    field = "zero_optimization.zero_quantized_gradients"
    plan: Any = SimpleNamespace(
        deepspeed={"zero_optimization": {"zero_quantized_weights": False, "zero_quantized_gradients": True}},
        origins={f"ds.{field}": "ds_configs/zeropp.json"},
    )
    with pytest.raises(ConfigError) as caught:
        require_quantizer(plan, Alone())
    library = tmp_path / "quantizer" / "quantizer.so"
    assert str(caught.value) == (
        f"{field} = True (ds_configs/zeropp.json): needs DeepSpeed's quantizer op, and {library} is not "
        "there; build it: python -m llmtrain.engine.zeropp"
    )
    plan.deepspeed["zero_optimization"]["zero_quantized_gradients"] = False
    require_quantizer(plan, Alone())
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(
        EngineError, match=r"^quantizer can't be built: it needs a CUDA device, and the CUDA tool"
    ):
        QUANTIZER.build()
