"""Texts that filters are tried on, with more or less of each fault, and how steps are run over documents."""

from __future__ import annotations

import ast
import random
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

from data_prep.documents import Document, Tally
from data_prep.steps.registry import StepSection, apply_steps, make_steps

STOPS = ["the", "be", "to", "of", "and", "that", "have", "with"]
NOUNS = ["river", "stone", "engine", "paper", "window", "history", "morning", "teacher", "garden", "letter"]


def run(steps: list[dict[str, Any]], *documents: Document) -> tuple[list[Document], Tally]:
    tally = Tally()
    made = make_steps([StepSection.model_validate(step) for step in steps])
    return list(apply_steps(made, iter(documents), tally)), tally


def prose(rng: random.Random, words: int) -> str:
    """Sentences of made-up words that seldom repeat, in lines of a few sentences."""
    text, line = [], []
    while words > 0:
        count = min(words, rng.randint(6, 14))
        picked = [
            rng.choice(STOPS) if rng.random() < 0.4 else rng.choice(NOUNS) + str(rng.choice("abcdefgh"))
            for _ in range(count)
        ]
        line.append(" ".join(picked).capitalize() + ".")
        words -= count
        if rng.random() < 0.4:
            text.append(" ".join(line))
            line = []
    return "\n".join([*text, " ".join(line)]).strip()


def spoiled(rng: random.Random, text: str) -> str:
    """The text with one or two of the faults that the rules are about, more or less of each."""
    for _ in range(rng.randint(0, 2)):
        lines = text.split("\n")
        share = rng.random() ** 2
        fault = rng.randrange(11)
        if fault == 0:
            lines += rng.choices(lines, k=int(share * len(lines)) + 1)
        elif fault == 1:
            piece = " ".join(text.split()[: rng.randint(2, 14)])
            lines += [f"{piece} {number}" for number in range(int(share * 40))]
        elif fault == 2:
            lines = [("- " if rng.random() < share * 2 else "") + line for line in lines]
        elif fault == 3:
            lines = [line + ("..." if rng.random() < share else "") for line in lines]
        elif fault == 4:
            lines += ["12 34 # 5"] * int(share * 60)
        elif fault == 5:
            lines = "\n\n".join(lines + lines[: int(share * len(lines))]).split("\n")
        elif fault == 6:
            lines += ["Menu", "Home page", "We use cookies.", "Enable Javascript now."] * int(share * 10)
        elif fault == 7:
            lines = [line + rng.choice(["", "", "[1]", '"', "[edit]"]) for line in lines]
        elif fault == 8:
            lines.append(rng.choice(["{", "x = {}", "Lorem ipsum dolor.", "no mark", "W" * 1200 + " x y."]))
        elif fault == 9:
            lines = text.replace(". ", ".\n").split("\n")
        else:
            lines = "\n\n\n\n\n".join(text.replace(". ", ".\n").split("\n")).split("\n")
        text = "\n".join(lines)
    return text


@cache
def texts() -> list[str]:
    """Random texts, and prose and code of the standard library."""
    rng = random.Random(20211208)
    made = [spoiled(rng, prose(rng, rng.choice([20, 45, 60, 150, 400]))) for _ in range(350)]
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted(library.glob("*.py"))[:90]:
        source = path.read_text(encoding="utf-8", errors="ignore")
        found.append(source[:6000])
        docstrings = [
            ast.get_docstring(node)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        found.append("\n".join(text for text in docstrings if text)[:8000])
    return [text for text in made + found if text.split()]
