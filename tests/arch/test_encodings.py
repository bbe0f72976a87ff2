"""Text files and pipes are UTF-8 by our word, not the locale's: a machine set to Latin-1 reads the same."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READERS = {"read_text": 0, "write_text": 1}  # the place of `encoding` among the positional arguments
OTHERS = {"os", "tarfile", "gzip", "bz2", "lzma", "zipfile", "Work", "SampleParser", "Image", "pa", "io"}


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls that open text in the encoding of the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: word.value for word in node.keywords}
        if "encoding" in given or None in given:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""
        piped = "text" in given and ast.unparse(given["text"]) == "True"
        if piped or (name in READERS and len(node.args) <= READERS[name]):
            yield node
        elif name in ("open", "fdopen") and (owner not in OTHERS or name == "fdopen"):
            at = 0 if name == "open" and isinstance(node.func, ast.Attribute) else 1
            mode = given.get("mode") or (node.args[at] if len(node.args) > at else None)
            if mode is None and at == 0 and not owner:  # something's own open()
                continue
            if not (isinstance(mode, ast.Constant) and "b" in str(mode.value)):
                yield node


@pytest.mark.parametrize("package", ["llmtrain", "data_prep"])
def test_every_text_file_and_pipe_is_utf_8(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for call in without_encoding(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert wrong == []


def test_what_is_looked_for_is_found() -> None:
    bad = "open(p); open(p, 'w'); p.open('a'); p.read_text(); p.write_text(t)"
    bad += "; run(c, text=True); os.fdopen(1, 'w')"
    good = "open(p, 'rb'); p.open('ab'); os.open(p, 0); p.read_text('utf-8'); open(p, encoding='utf-8')"
    assert len(list(without_encoding(ast.parse(bad)))) == 7
    assert list(without_encoding(ast.parse(good))) == []
