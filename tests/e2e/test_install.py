"""Installed from a wheel, away from any checkout: what is shipped comes along and is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("llmtrain", "data_prep", "ds_configs", "recipes", "launch")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment with llmtrain's wheel, that borrows the packages it depends on."""
    folder = tmp_path_factory.mktemp("install")
    source, environment = folder / "source", folder / "environment"
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    quiet = ["--no-deps", "--no-index"]
    run([*pip, "wheel", *quiet, "--no-build-isolation", "-w", str(folder), str(source)], folder)
    run([sys.executable, "-m", "venv", "--without-pip", str(environment)], folder)
    (wheel,) = folder.glob("llmtrain-*.whl")
    run([*pip, "--python", str(environment / "bin/python"), "install", *quiet, str(wheel)], folder)
    (packages,) = environment.glob("lib/python3.*/site-packages")
    borrowed = [place for place in sys.path if place.endswith("-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return environment / "bin"


def run(command: list[str], folder: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


LOOK = """
import llmtrain
from llmtrain.config.shipped import shipped_folder
assert "site-packages" in llmtrain.__file__, llmtrain.__file__
print(*(path.relative_to(shipped_folder()) for path in shipped_folder().rglob("*") if path.is_file()))
"""


def test_everything_that_is_shipped_comes_along_and_is_found_from_an_empty_folder(
    bin_folder: Path, tmp_path: Path
) -> None:
    came = run([str(bin_folder / "python"), "-c", LOOK], tmp_path).split()
    expected = [path for name in ("ds_configs", "launch") for path in (ROOT / name).rglob("*.*")]
    expected += [*(ROOT / "recipes").glob("*.yaml"), ROOT / "launch/hostfile", ROOT / "constraints.txt"]
    assert sorted(came) == sorted(str(path.relative_to(ROOT)) for path in expected)
    llmtrain = str(bin_folder / "llmtrain")
    for name in ("125m", "recipes/125m.yaml"):
        assert run([llmtrain, "plan", name, "deepspeed=zero3"], tmp_path).startswith("125m on ")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.md").write_text("text")
    run([llmtrain, "init", "text", "--yes"], tmp_path)
    assert run([llmtrain, "plan", "text.yaml"], tmp_path).startswith("text on 1 ")
    scripts = bin_folder.parent / "share/llmtrain/launch"
    assert os.access(scripts / "torchrun.sh", os.X_OK)
