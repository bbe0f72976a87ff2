"""A pickle is read without being run, or not at all: nothing that it names is called."""

from __future__ import annotations

import collections
import os
import pickle
import random
import socket
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed_files import write_zero3

from llmtrain.errors import CheckpointError
from llmtrain.interchange.deepspeed_folder import read_folder
from llmtrain.interchange.torchfile import Stored, read_torch_file


class Call:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def zipped(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, **storages: bytes) -> Path:
    """A file as torch.save lays it out, with this pickle in it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", content)
        for key, raw in storages.items():
            archive.writestr(f"a/data/{key.removeprefix('s')}", raw)
    return path


def test_what_torch_saved_is_read_as_it_was(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    content = {
        "view": whole[1],
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "empty": torch.empty(0),
        3: [None, True, "text", 1.5, -7, {"nested": (1, 2)}],
        "ordered": collections.OrderedDict(a=whole.shape),
    }
    torch.save(content, tmp_path / "file.pt")
    found = read_torch_file(tmp_path / "file.pt")
    view, half = found["view"], found["half"]
    assert isinstance(view, Stored) and view.shape == (3, 4) and half.dtype == torch.bfloat16
    assert torch.equal(view.part(0, 12).reshape(3, 4), whole[1])
    assert torch.equal(view.part(5, 3), whole[1].flatten()[5:8])
    assert torch.equal(half.part(0, 2), content["half"])
    assert found["empty"].part(0, 0).numel() == 0
    assert found[3] == [None, True, "text", 1.5, -7, {"nested": [1, 2]}]
    assert found["ordered"] == {"a": [2, 3, 4]}


@pytest.mark.parametrize(
    "place", ["alone", "nested", "as a key", "as a tensor", "in a state", "after a bomb"]
)
def test_nothing_a_pickle_names_is_called(tmp_path: Path, place: str) -> None:
    alarm = tmp_path / "alarm"
    bait = Call(os.system, f"touch {alarm}")
    state = collections.OrderedDict()
    state["x"] = bait
    content: dict[str, Any] = {
        "alone": bait,
        "nested": {"optimizer_state_dict": {"state": {0: [{"exp_avg": (1, bait)}]}}},
        "as a key": {Call(os.system, f"touch {alarm}"): 1},
        "as a tensor": Call(torch._utils._rebuild_tensor_v2, bait, 0, (1,), (1,), False, {}),
        "in a state": state,
        "after a bomb": [[0] * 100_000, bait],
    }
    raw = pickle.dumps(content[place], protocol=2)
    if place == "alone":
        pickle.loads(raw)
        assert alarm.exists(), "the bait does not bite"
        alarm.unlink()
    for file in (zipped(tmp_path / "bad.pt", raw), tmp_path / "saved.pt"):
        if file.name == "saved.pt":
            torch.save(content[place], file)
        with pytest.raises(
            CheckpointError, match=rf"{file.name} is not read: it asks for (posix|nt)\.system"
        ):
            read_torch_file(file)
    assert not alarm.exists()


@pytest.mark.parametrize(
    "function", [eval, getattr, print, subprocess.Popen, socket.socket, pickle.loads, torch.load, Path]
)
def test_no_other_name_is_known(tmp_path: Path, function: Any) -> None:
    raw = pickle.dumps(Call(function, "1"), protocol=4)
    with pytest.raises(CheckpointError, match=r"is not read: it asks for \S+\.\S+, which"):
        read_torch_file(zipped(tmp_path / "x.pt", raw))


def test_attributes_of_a_known_name_are_not_reached(tmp_path: Path) -> None:
    for name in ("OrderedDict.fromkeys", "OrderedDict.__init__.__globals__"):
        raw = b"\x80\x04\x8c\x0bcollections\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
        with pytest.raises(CheckpointError, match="it asks for collections.OrderedDict"):
            read_torch_file(zipped(tmp_path / "x.pt", raw))


def _laughs(depth: int) -> bytes:
    """Lists of ten times the list before: 10 ** depth values."""
    raw = b"\x80\x02]q\x00"
    for level in range(depth):
        raw += b"](" + b"h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"eq" + bytes([level + 1])
    return raw + b"."


BOMBS = {
    "laughs": _laughs(40),
    "memo": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".",
    "depth": b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "length": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "number": b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".",
    "text": b"\x80\x02]q\x00("
    + b"X"
    + struct.pack("<I", 1 << 20)
    + b"x" * (1 << 20)
    + b"q\x01"
    + b"h\x01" * 999
    + b"e.",
    "cut": b"\x80\x02]q",
    "nothing": b"",
    "noise": bytes(range(256)) * 50,
    "class": b"\x80\x02ccollections\nOrderedDict\n.",
    "class changed": b"\x80\x02cdeepspeed.runtime.zero.config\nZeroStageEnum\n}X\x06\x00\x00\x00called]sb.",
    "storage": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x08tQ.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_damage_are_refused(tmp_path: Path, name: str) -> None:
    file = zipped(tmp_path / "bomb.pt", BOMBS[name], s0=bytes(31))
    if name == "text":  # a gigabyte of answer from a megabyte of file
        with pytest.raises(CheckpointError, match="can't be told|takes more than"):
            read_torch_file(file)
        return
    with pytest.raises(CheckpointError, match="bomb.pt(: | is not read: )") as caught:
        read_torch_file(file)
    assert len(str(caught.value)) < 600


def test_files_that_are_none_of_torchs_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    torch.save({"x": torch.ones(1000)}, good)
    whole = good.read_bytes()
    bare = tmp_path / "bare.pt"
    bare.write_bytes(pickle.dumps([1]))
    with pytest.raises(CheckpointError, match="bare.pt is not read: it is no zip file"):
        read_torch_file(bare)
    with pytest.raises(CheckpointError, match="compressed or too short"):
        read_torch_file(zipped(tmp_path / "packed.pt", pickle.dumps([0] * 9999), zipfile.ZIP_DEFLATED))
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut.pt is not read"):
        read_torch_file(cut)
    link = tmp_path / "link.pt"
    link.symlink_to(good)
    with pytest.raises(CheckpointError, match="link.pt is a link"):
        read_torch_file(link)
    with pytest.raises(CheckpointError, match="none.pt is missing"):
        read_torch_file(tmp_path / "none.pt")
    torch.save({"x": torch.ones(4, 4).T[:, 1:]}, good)
    with pytest.raises(CheckpointError, match="does not lie in one piece"):
        read_torch_file(good)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    """torch itself finds none of those in tensors. A flip that nothing depends on changes nothing."""
    good, bad, draw = tmp_path / "good.pt", tmp_path / "bad.pt", random.Random(3)
    values = torch.rand(2000)
    torch.save({"x": values[:1500], "y": {"z": values[1500:]}}, good)
    whole, found = good.read_bytes(), 0
    for _ in range(25):
        raw = bytearray(whole)
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        bad.write_bytes(raw)
        try:
            content = read_torch_file(bad)
            got = content["x"].part(0, 1500), content["y"]["z"].part(0, 500)
            assert torch.equal(torch.cat(got), values)
        except CheckpointError as error:
            assert "bad.pt" in str(error)
            found += 1
    assert found > 15


def test_a_pointer_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    write_zero3(tmp_path / "evil", {"w": (2, 2), "b": (2,)})
    home = tmp_path / "home"
    home.mkdir()
    for tag in (
        "../evil/global_step4",
        str(tmp_path / "evil" / "global_step4"),
        "..",
        ".",
        "gone",
        "link",
        "",
    ):
        (home / "latest").write_text(tag)
        if tag == "link":
            (home / "link").symlink_to(tmp_path / "evil" / "global_step4")
        with pytest.raises(
            CheckpointError, match="latest names .*, which is no folder in .*: it is not followed"
        ):
            read_folder(home)
    assert read_folder(tmp_path / "evil").step == 4


def test_the_reader_can_open_nothing_more() -> None:
    """Whatever got in would find no file, no socket and no process."""
    program = Path(read_torch_file.__code__.co_filename).with_name("unpickle.py")
    code = (
        "import os, runpy, socket\n"
        f"runpy.run_path({str(program)!r})['confine']()\n"
        "for attempt in (lambda: open('/etc/hostname'), socket.socket, os.pipe):\n"
        "    try:\n"
        "        attempt()\n"
        "        print('opened')\n"
        "    except OSError as error:\n"
        "        print(error.errno)\n"
    )
    done = subprocess.run(
        [os.path.realpath("/proc/self/exe"), "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        env={},
        timeout=60,
    )
    assert done.stdout.split() == ["24", "24", "24"], done.stdout + done.stderr
