"""Sizes and names: what keeps the house small enough to read."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from llmtrain.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
# A knob is a promise for ever. Raise this only with a line in CHANGELOG.md that says what the new one is for.
RUN_KNOBS = 52
EMPTY_WORDS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "stuff"}


def python_files() -> list[Path]:
    folders = ("llmtrain", "data_prep", "tests", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def tracked_files() -> list[Path]:
    """What git holds or would add; every file of the project when this copy has no git."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [path for path in map(ROOT.joinpath, done.stdout.splitlines()) if path.is_file()]
    hidden = {".git", ".venv", "runs", "data"}
    return [
        path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] not in hidden
    ]


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert not {name: lines for name, lines in long.items() if lines > MOST_FILE_LINES}


def test_functions_are_short() -> None:
    long = []
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_names_say_something() -> None:
    bad = []
    for path in python_files():
        for word in (*path.relative_to(ROOT).parts[:-1], path.stem):
            if word in EMPTY_WORDS or set(word.split("_")) & EMPTY_WORDS or re.search(r"_v\d+$", word):
                bad.append(str(path.relative_to(ROOT)))
    assert not bad


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "two test files share a name, which pytest can't import"


def test_nothing_is_left_for_later() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in python_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert not found


def test_no_file_names_the_machine_it_was_written_on() -> None:
    private = re.compile(
        r"(?<![\w.-])/(work|farm|root|home/\w+)/|bash_" + r"jobs|\.libr" + r"ary/|/opt/(pypi|wheels)"
    )
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in private.finditer(text)]
    assert not found


def leaves(model: type[BaseModel]) -> int:
    """Fields of a model that hold a value, those of its sections counted one by one."""
    return sum(sum(map(leaves, sections)) or 1 for sections in map(sections_in, field_types(model)))


def field_types(model: type[BaseModel]) -> list[Any]:
    return [field.annotation for field in model.model_fields.values()]


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_in(argument)]


def test_the_run_has_no_new_knobs() -> None:
    assert leaves(RunConfig) == RUN_KNOBS


@pytest.mark.parametrize("name", ["deepspeed.sh", "torchrun.sh", "accelerate.sh", "slurm.sbatch"])
def test_launch_scripts_hold_no_logic(name: str) -> None:
    script = ROOT / "launch" / name
    lines = script.read_text().splitlines()
    assert len(lines) <= 25
    commands = re.sub(r"\\\n", " ", script.read_text()).splitlines()
    assert commands[-1].startswith("exec "), f"{name} must end in exec, so that signals reach the run"
    assert script.stat().st_mode & 0o111, f"{name} is not executable"
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
