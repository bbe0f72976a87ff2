"""`--push` speaks to a Hub: the real client against a local server, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_models import build_model, save_model
from hub_stub import TOKEN, HubStub

_EXPORT = """
import sys
from pathlib import Path
from llmtrain.errors import LlmtrainError
from llmtrain.export import export
for push in sys.argv[3:]:
    try:
        print(export(Path(sys.argv[1]), Path(sys.argv[2]), push=push))
    except LlmtrainError as error:
        print(type(error).__name__, error)
"""


def export_to(hub: str, home: Path, run: Path, out: Path, *push: str, token: str = TOKEN) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-c", _EXPORT, str(run), str(out), *push]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pushed") / "run"
    save_model(build_model("llama"), folder)
    return folder


def test_a_checked_export_is_uploaded_whole_in_one_commit(run: Path, tmp_path: Path) -> None:
    with HubStub() as hub:
        printed = export_to(hub.url, tmp_path / "home", run, tmp_path / "out", "me/tiny")
        assert f"{hub.url}/me/tiny" in printed
        assert hub.repos == {"me/tiny": True}, "a new repository is private"
        assert hub.messages == ["llmtrain export of step 3"]
        there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert hub.files == there and "model.safetensors" in there and "tokenizer.json" in there
        assert b"# me/tiny\n" in there["README.md"]
    for path in [*tmp_path.rglob("*"), *run.rglob("*")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_push_that_cannot_work_is_refused_before_the_export(run: Path, tmp_path: Path) -> None:
    with HubStub() as hub:
        out, home = tmp_path / "out", tmp_path / "home"
        assert "no Hub token found: run `hf auth login`" in export_to(
            hub.url, home, run, out, "me/m", token=""
        )
        printed = export_to(hub.url, home, run, out, "me/bad name", "me/m", token="hf_wrong")
        assert "push = 'me/bad name' (--push): give a Hub name, OWNER/NAME" in printed
        assert "the Hub did not accept the token (401)" in printed
        assert not out.exists() and not hub.repos


def test_a_refused_upload_says_so_and_leaves_the_export(run: Path, tmp_path: Path) -> None:
    with HubStub() as hub:
        hub.refuse = ("/api/repos/create", 403)
        printed = export_to(hub.url, tmp_path / "home", run, tmp_path / "out", "them/tiny")
    assert "LlmtrainError pushing to them/tiny failed (" in printed
    assert f"push it later with `hf upload them/tiny {tmp_path / 'out'}`" in printed
    assert (tmp_path / "out" / "model.safetensors").exists()
