"""The README tells the truth: its tree is the tree, its files exist, its commands are run somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_budgets import tracked_files

from data_prep.corpus import CorpusConfig
from llmtrain.config.load import load_run, load_yaml_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GPUS = "needs GPUs"
# Each command of the README: the test that runs it (file::function), or that it needs GPUs.
IN_ORDER = "tests/e2e/test_readme_commands.py::test_the_commands_in_order"
ON_TWO_CPU_RANKS = "tests/e2e/test_launchers.py::test_every_launcher_starts_the_same_run"
TO_STAND_INS = "tests/arch/test_launch_scripts.py::test_launcher_is_called_so"
COMMANDS = {
    "make demo": "tests/e2e/test_demo.py::test_demo",
    "make test": "this very run",
    "llmtrain data build recipes/stdlib.yaml": IN_ORDER,
    "llmtrain data show data/stdlib": IN_ORDER,
    "llmtrain plan recipes/demo.yaml": IN_ORDER,
    "llmtrain train recipes/demo.yaml --ranks 2": IN_ORDER,
    "llmtrain report runs/demo": IN_ORDER,
    "llmtrain checkpoint ls runs/demo": IN_ORDER,
    "llmtrain eval runs/demo --data data/stdlib": IN_ORDER,
    "llmtrain eval runs/demo --data data/stdlib --rolling --documents 4": IN_ORDER,
    "llmtrain export runs/demo export/demo": IN_ORDER,
    'llmtrain generate export/demo "def read("': IN_ORDER,
    "llmtrain doctor": IN_ORDER,
    "llmtrain train recipes/1b.yaml --ranks 8": GPUS,
    "deepspeed --num_gpus 8 --module llmtrain.train recipes/1b.yaml": ON_TWO_CPU_RANKS,
    "torchrun --nproc-per-node 8 -m llmtrain.train recipes/1b.yaml": ON_TWO_CPU_RANKS,
    "accelerate launch --config_file launch/accelerate/zero3.yaml -m llmtrain.train recipes/1b.yaml": (
        ON_TWO_CPU_RANKS
    ),
    "HOSTFILE=launch/hostfile launch/deepspeed.sh recipes/8b.yaml": TO_STAND_INS,
    "NODES=4 HEAD=node-0:29500 launch/torchrun.sh recipes/8b.yaml": TO_STAND_INS,
    "sbatch --nodes 4 launch/slurm.sbatch recipes/8b.yaml": TO_STAND_INS,
    "kubectl apply -f launch/k8s.yaml": GPUS,
}


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in fenced("sh") for line in block.splitlines() if line.strip()]


def tree_paths() -> list[str]:
    """Paths of the tree block, folders joined with what is indented below them."""
    block = next(block for block in fenced("text") if block.startswith("llmtrain/"))
    paths, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.append(name)
        else:
            paths.append(folder + name)
    return paths


def test_tree_lists_what_is_there() -> None:
    assert [path for path in tree_paths() if not (ROOT / path).exists()] == []


def test_tree_leaves_nothing_out() -> None:
    listed = {path.rstrip("/") for path in tree_paths()}
    top = {path.relative_to(ROOT).parts[0] for path in tracked_files()} - {".gitignore"}
    rooms = {
        f"llmtrain/{path.relative_to(ROOT).parts[1]}"
        for path in tracked_files()
        if path.is_relative_to(ROOT / "llmtrain")
    }
    rooms -= {"llmtrain/__init__.py", "llmtrain/__main__.py"}
    assert (top | rooms) - listed == set()


def test_every_purpose_is_said() -> None:
    block = next(block for block in fenced("text") if block.startswith("llmtrain/"))
    assert [line for line in block.splitlines() if len(line.split()) < 3] == []


def test_every_command_is_run_by_a_test_or_needs_gpus() -> None:
    assert sorted(set(commands()) - set(COMMANDS)) == []
    assert sorted(set(COMMANDS) - set(commands())) == [], "the table names commands that the README has not"


@pytest.mark.parametrize("where", sorted({where for where in COMMANDS.values() if "::" in where}))
def test_named_test_exists(where: str) -> None:
    file, _, function = where.partition("::")
    assert (ROOT / file).is_file()
    assert f"def {function}(" in (ROOT / file).read_text()


def test_paths_that_are_named_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    shown = re.findall(r"(?:recipes|launch|ds_configs|tests|benchmarks)/[\w./-]+\w", README)
    named = [path for path in [*links, *shown] if not path.startswith("http")]
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_make_targets_that_are_named_exist() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "benchmarks" / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ +)make ([a-z-]+)", text, re.MULTILINE)) - targets == set()


def test_examples_load_as_they_stand(tmp_path: Path) -> None:
    corpus, run = fenced("yaml")
    (tmp_path / "corpus.yaml").write_text(corpus)
    (tmp_path / "run.yaml").write_text(run)
    loaded = load_yaml_model(tmp_path / "corpus.yaml", CorpusConfig, ())
    trained = load_run(tmp_path / "run.yaml").config
    assert trained.data.train[0].path == loaded.config.output
    every_field = {"output_dir", "log"} | set(yaml.safe_load(run))
    assert set(type(trained).model_fields) == every_field, "the screen of configuration is not complete"


def test_bad_input_is_answered_as_shown(tmp_path: Path) -> None:
    (block,) = (block for block in fenced("text") if block.startswith("$ "))
    for example in filter(None, block.split("$ ")):
        command, *answer = example.splitlines()
        words = [sys.executable, "-m", *command.split()]
        words.insert(5, f"output_dir={tmp_path}")  # as if the demo had never run here
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.splitlines() == answer


def test_changelog_has_this_version() -> None:
    from llmtrain import __version__

    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_make_help_lists_the_targets() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert {"demo", "test", "check"} <= {line.split()[0] for line in done.stdout.splitlines()}
