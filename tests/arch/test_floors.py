"""The house's floors and doors: who may import what, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("llmtrain", "data_prep")

# A heavy dependency enters the code in one place. Key: what is imported; value: the modules that may.
DOORS = {
    "deepspeed": ("llmtrain.engine",),
    # its checkpoint format lives in the same package: docs/decisions/006-foreign-checkpoints.md
    "torch.distributed": ("llmtrain.engine", "llmtrain.interchange.dcp"),
    "datasets": ("data_prep.sources",),
    "ray": ("data_prep.on_ray",),
    "liger_kernel": ("llmtrain.model",),
    "triton": ("llmtrain.model",),
    "accelerate": ("llmtrain.config",),
    "tensorboard": ("llmtrain.report",),
    "torch.utils.tensorboard": ("llmtrain.report",),
}
# Reading one of these can run code that a stranger wrote.
PICKLES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
# A program of its own that reads DeepSpeed's checkpoints, and what writes them:
# docs/decisions/006-foreign-checkpoints.md
PICKLE_EXCEPTIONS = {
    "llmtrain.interchange.unpickle": "imports pickle",
    "llmtrain.interchange.universal": "calls torch.save",
}
LIGHT = ("llmtrain.errors", "llmtrain.config", "llmtrain.data", "llmtrain.plan", "llmtrain.cli", "data_prep")
HEAVY = ("torch", "deepspeed", "transformers", "datasets", "accelerate")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name imported anywhere in a module, inside functions too, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def dotted(node: ast.expr) -> str:
    """`torch.distributed` of an attribute chain, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def trespasses(tree: ast.Module, module: str) -> list[str]:
    used = set(imports_of(tree))
    used |= {(dotted(node), node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return [
        f"{module}:{line} uses {name}, which only {', '.join(allowed)} may"
        for name, line in sorted(used)
        for door, allowed in DOORS.items()
        if within(name, door) and not any(within(module, owner) for owner in allowed)
    ]


def unsafe_reads(tree: ast.Module, module: str) -> list[str]:
    found = [
        f"{module}:{line} imports {name}" for name, line in imports_of(tree) if name.split(".")[0] in PICKLES
    ]
    found += [f"{module}:{line} imports {name}" for name, line in imports_of(tree) if name == "torch.load"]
    return found + [
        f"{module}:{node.lineno} calls {dotted(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and dotted(node) in ("torch.load", "torch.save")
    ]


def test_heavy_dependencies_enter_by_their_door() -> None:
    found = [
        problem
        for path in sources()
        for problem in trespasses(ast.parse(path.read_text()), module_name(path))
    ]
    assert not found, "\n".join(found)


def test_nothing_reads_or_writes_a_pickle() -> None:
    found = {
        problem: PICKLE_EXCEPTIONS.get(module_name(path), "none")
        for path in sources()
        for problem in unsafe_reads(ast.parse(path.read_text()), module_name(path))
    }
    assert not [problem for problem, excepted in found.items() if not problem.endswith(excepted)], found
    assert sorted(PICKLE_EXCEPTIONS.values()) == sorted(set(found.values())), "an exception that nobody needs"


def test_the_reader_of_pickles_is_a_program_that_nobody_imports() -> None:
    reader = "llmtrain.interchange.unpickle"
    users = [
        path for path in sources() if reader in {name for name, _ in imports_of(ast.parse(path.read_text()))}
    ]
    assert not users
    (tree,) = [ast.parse(path.read_text()) for path in sources() if module_name(path) == reader]
    foreign = {name.split(".")[0] for name, _ in imports_of(tree)} - set(sys.stdlib_module_names)
    assert not foreign, "it must work without site-packages, and without us"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f():\n    import deepspeed.comm", "deepspeed.comm"),
        ("from torch import distributed", "torch.distributed"),
        ("import torch\ntorch.distributed.barrier()", "torch.distributed.barrier"),
    ],
)
def test_a_trespass_is_seen(code: str, expected: str) -> None:
    found = trespasses(ast.parse(code), "llmtrain.model.build")
    assert any(expected in problem for problem in found)
    assert not trespasses(ast.parse(code), "llmtrain.engine.zero")


@pytest.mark.parametrize("code", ["import pickle", "from torch import load", "import torch\ntorch.load('x')"])
def test_an_unsafe_read_is_seen(code: str) -> None:
    assert unsafe_reads(ast.parse(code), "llmtrain.export")


def test_import_linter_contracts_hold() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_light_modules_import_nothing_heavy() -> None:
    names = [module_name(path) for path in sources()]
    light = [name for name in names if any(within(name, package) for package in LIGHT)]
    assert len(light) > 15, "the list of light modules has lost its packages"
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [one for one in {HEAVY!r} if one in sys.modules]\n"
        "    assert not heavy, f'importing {name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_llmtrain_imports_only_itself() -> None:
    code = "import sys, llmtrain; print([m for m in sys.modules if m.startswith('llmtrain')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['llmtrain']", done.stdout + done.stderr
