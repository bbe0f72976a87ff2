"""The benchmarks' own arithmetic, without running a model."""

from __future__ import annotations

import re
from pathlib import Path

import checkpoint
import pytest
from contestants import IGNORED, RandomRows, Spec
from presets import PRESETS
from step_time import Round, worst_disagreement

from llmtrain.plan.model_shape import shape_of


def spec(step_rows: int = 4) -> Spec:
    preset = PRESETS["tiny"]
    return Spec("bare", "", preset.config, preset.seq, step_rows, 2, 0, 1, "fp32", "zero1", "")


def test_rows_are_a_function_of_the_step_and_hold_no_zeros() -> None:
    first, again, other = RandomRows(spec(), 3), RandomRows(spec(), 3), RandomRows(spec(), 4)
    assert (first.tokens == again.tokens).all()
    assert (first.tokens != other.tokens).any()
    assert first.tokens.min() > 0
    assert first.tokens.max() < PRESETS["tiny"].config["vocab_size"]


def test_labels_are_the_following_tokens() -> None:
    rows = RandomRows(spec(), 0)
    part = rows.read(1, 3)
    assert (part.labels[:, :-1] == part.tokens[:, 1:]).all()
    assert (part.labels[:, -1] == IGNORED).all()
    assert (RandomRows(spec(), 0).read(0, 4).labels != IGNORED).sum() == rows.valid_tokens


@pytest.mark.parametrize(
    ("name", "millions"), [("cpu", 14), ("125m", 124), ("350m", 360), ("1.3b", 1317), ("3b", 3213)]
)
def test_presets_have_the_size_they_are_named_for(name: str, millions: int) -> None:
    shape = shape_of(PRESETS[name].config)
    assert shape is not None
    assert shape.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert PRESETS[name].rows % PRESETS[name].micro == 0


def test_curves_that_disagree_are_found() -> None:
    agreeing, straying = Round([5.0, 4.0], 1.0, 1.0, 0.0, 0), Round([5.0, 4.4], 1.0, 1.0, 0.0, 0)
    rounds = {"bare": [agreeing], "llmtrain:auto": [agreeing, straying]}
    apart, name = worst_disagreement(rounds)
    assert name == "llmtrain:auto"
    assert apart == pytest.approx(0.1)


def test_the_checkpoint_benchmark_times_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["checkpoint.py", "--folder", str(tmp_path), "--gigabytes", "0.002", "--rounds", "1"]
    monkeypatch.setattr("sys.argv", options)
    checkpoint.main()
    text = capsys.readouterr().out
    rows = dict(re.findall(r"^\| (\w[^|]*) \| ([\d.]+) \| [\d.]+ \| [\d.]+ \|$", text, re.MULTILINE))
    assert list(rows) == [
        "raw write",
        "save, waited for",
        "save, behind the loop",
        "raw copy",
        "stall of it",
        "raw read",
        "load, unverified",
        "load, verified",
    ]
    assert re.search(r"^Goal \(total >= 0\.8 of the raw write rate\): (met|missed) \(", text, re.MULTILINE)
    assert re.search(r"^Goal \(stall <= 3% .*\): met when a step takes [\d.]+ s or more", text, re.MULTILINE)
    assert re.search(r"^Goal \(verified load <= 2 x unverified\): (met|missed) \(", text, re.MULTILINE)
    assert "of the state)" in text
    assert not list(tmp_path.iterdir()), "it clears away what it wrote"
