"""Files of the working folder that are named like modules are never executed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from llmtrain.config.search_path import (
    SAFE,
    SafeChildren,
    code_command,
    leave_out_working_folder,
    module_command,
    shadow_warnings,
)

WANTED = (
    "tokenizers",
    "torch",
    "statistics",
    "yaml",
    "pydantic",
    "numpy",
    "deepspeed",
    "argparse",
    "logging",
)


def hostile(folder: Path, names: tuple[str, ...] | frozenset[str] = WANTED) -> Path:
    """A folder in which every module that somebody may import writes its name to the file `taken`."""
    told = f"open({str(folder / 'taken')!r}, 'a').write(__name__ + ' ')\n"
    for name in names:
        (folder / f"{name}.py").write_text(told)
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text(told)
    return folder


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != SAFE}
    return subprocess.run(
        command, cwd=folder, env={**clean, **environment}, capture_output=True, text=True, timeout=60
    )


def taken(folder: Path) -> str:
    return (folder / "taken").read_text() if (folder / "taken").exists() else ""


def test_what_we_start_takes_no_module_from_the_working_folder(tmp_path: Path) -> None:
    hostile(tmp_path, frozenset({*sys.stdlib_module_names, *WANTED} - {"sys", "builtins"}))
    done = run([*module_command("llmtrain.train"), "nosuch.yaml"], tmp_path)
    assert (done.returncode, taken(tmp_path)) == (2, ""), done.stderr
    assert done.stderr.startswith("error: file = 'nosuch.yaml'")
    done = run(code_command("import tokenizers; print(tokenizers.__file__)"), tmp_path)
    assert "site-packages" in done.stdout and taken(tmp_path) == "", done.stderr
    assert run([sys.executable, "-c", "import datasets"], tmp_path).returncode == 0
    assert taken(tmp_path) == "datasets ", "the folder sets no trap"


def test_what_launchers_start_takes_none_either(tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "llmtrain.train", "nosuch.yaml"], hostile(tmp_path))
    assert (done.returncode, taken(tmp_path)) == (2, ""), done.stderr
    assert "warning" not in done.stderr
    as_accelerate = {"PYTHONPATH": f"{tmp_path}{os.pathsep}", SAFE: "1"}
    done = run([sys.executable, "-m", "llmtrain.train", "nosuch.yaml"], tmp_path, **as_accelerate)
    assert (done.returncode, taken(tmp_path)) == (2, ""), done.stderr


def test_what_python_s_own_search_has_executed_before_us_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    executed = types.ModuleType("weakly")
    executed.__file__ = str(tmp_path / "weakly.py")
    monkeypatch.setitem(sys.modules, "weakly", executed)
    leave_out_working_folder()
    assert str(tmp_path) not in sys.path
    warning = f"warning: {tmp_path / 'weakly.py'} has been executed: `python -m` takes files"
    assert warning in capsys.readouterr().err


def test_workers_of_a_build_take_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile(tmp_path, ("statistics", "multiprocessing", "runpy")))
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setenv(SAFE, "")
    worker = multiprocessing.get_context("spawn").Process(target=os.getpid)
    with SafeChildren():
        worker.start()
    worker.join(30)
    assert (worker.exitcode, taken(tmp_path), os.environ[SAFE]) == (0, "", "")


def test_what_a_foreign_launcher_may_execute_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile(tmp_path, ("statistics", "my_script")))
    monkeypatch.delenv(SAFE, raising=False)
    assert shadow_warnings("deepspeed") == [
        "datasets, statistics.py here: these are names of modules, so deepspeed's own processes may execute "
        "them; move them away, or set PYTHONSAFEPATH=1 (Python 3.11 and later)"
    ]
    assert shadow_warnings("llmtrain") == []
    monkeypatch.setenv(SAFE, "1")
    assert shadow_warnings("deepspeed") == []
