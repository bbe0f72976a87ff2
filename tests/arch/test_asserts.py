"""`python -O` takes assertions away: none may do what the program needs."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What assertions call: questions, none of which changes anything.
QUESTIONS = {
    "all",
    "any",
    "cumsum",
    "elements",
    "get",
    "isinstance",
    "len",
    "max",
    "min",
    "numel",
    "sum",
    "tuple",
}


def called(node: ast.AST) -> set[str]:
    """The names of all that is called, or bound, in an assertion's condition."""
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else ast.unparse(call) for call in calls}
    return names | {ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.NamedExpr)}


def test_an_assertion_only_asks() -> None:
    wrong, seen = [], 0
    for package in ("llmtrain", "data_prep"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Assert):
                    seen += 1
                    wrong += [f"{path.name}:{node.lineno} {name}" for name in called(node.test) - QUESTIONS]
    assert seen > 30 and not wrong


def test_what_an_assertion_does_is_found() -> None:
    statement = ast.parse("assert shapes.setdefault(name, shape) == shape and (n := 1)").body[0]
    assert called(statement) - QUESTIONS == {"setdefault", "(n := 1)"}
