"""Mixtures of a run: weights, token budgets, phases and limits on epochs, each exact at every position."""

from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from dataset_folders import make_dataset

from llmtrain.config.load import load_run
from llmtrain.config.schema import DataSection
from llmtrain.data.batches import Batches
from llmtrain.data.course import Course, CoursePlanner
from llmtrain.data.order import LongMixture
from llmtrain.errors import ConfigError


def section(*sources: dict, seq_len: int = 10, **more) -> DataSection:
    named = [{"path": f"data/{'abcdef'[k]}", **source} for k, source in enumerate(sources)]
    return DataSection.model_validate({"train": named, "seq_len": seq_len, **more})


def course(data: DataSection, available, steps: int = 100, rows_per_step: int = 10) -> Course:
    return CoursePlanner(data, available, steps, rows_per_step).plan()


def drawn(made: Course, rows: int) -> np.ndarray:
    """The sources of the first rows, having checked turns, counts and that any part equals the whole."""
    source, turn = made(np.arange(rows))
    for number in np.unique(source).tolist():
        assert np.array_equal(turn[source == number], np.arange((source == number).sum()))
    for count in (0, 1, rows // 3, rows):
        sources = len(made.spans[0].before)
        assert made.given(count) == np.bincount(source[:count], minlength=sources).tolist()
    some = np.array(random.Random(1).sample(range(rows), min(rows, 40)))
    for got, whole in zip(made(some), (source, turn), strict=True):
        assert np.array_equal(got, whole[some])
    return source


def test_long_mixtures_stand_in_the_order_of_their_keys():
    rng = random.Random(1)
    for _ in range(40):
        parts = [rng.randint(1, 60) for _ in range(rng.randint(1, 6))]
        keys = sorted((Fraction(2 * j + 1, 2 * c), d, j) for d, c in enumerate(parts) for j in range(c))
        mixture, period = LongMixture(parts), sum(parts)
        source, rank = mixture(np.arange(2 * period))
        expected = [(d, j) for _, d, j in keys]
        expected += [(d, j + parts[d]) for d, j in expected]
        assert list(zip(source.tolist(), rank.tolist(), strict=True)) == expected
        assert [mixture.position(d, j) for d, j in expected] == list(range(2 * period))
        for number, part in enumerate(parts):
            off = np.cumsum(source == number) - part / period * np.arange(1, 2 * period + 1)
            assert np.abs(off).max() <= 0.5 + part / period * max(len(parts) - 2, 0) / 2 + 1e-9


def test_a_long_mixture_is_found_at_any_position():
    parts = [10**9, 3 * 10**8, 70_000_001, 5]
    mixture = LongMixture(parts)
    far = np.array([0, 10**9, sum(parts) - 1, 5 * sum(parts) + 17])
    source, rank = mixture(far)
    assert [
        mixture.position(s, r) for s, r in zip(source.tolist(), rank.tolist(), strict=True)
    ] == far.tolist()
    assert mixture.given(3 * sum(parts)) == [3 * part for part in parts]


@pytest.mark.parametrize(("rows_per_step", "steps"), [(10, 100), (1000, 97)])
def test_a_token_budget_is_met_exactly_and_evenly(rows_per_step, steps):
    rows = rows_per_step * steps
    budgets = [rows // 5 * 10, rows // 7 * 10 - 3]
    data = section({"tokens": budgets[0]}, {"weight": 2.0}, {"tokens": budgets[1]}, {})
    source = drawn(course(data, [10**9] * 4, steps, rows_per_step), rows)
    counts = np.bincount(source)
    assert counts[[0, 2]].tolist() == [-(-budget // 10) for budget in budgets]
    assert abs(counts[1] - 2 * counts[3]) <= 2
    for number, count in enumerate(counts):
        off = np.cumsum(source == number) - count / rows * np.arange(1, rows + 1)
        assert np.abs(off).max() < 1.6


def test_budgets_alone_must_be_the_run_to_within_a_step():
    data = section({"tokens": 7000}, {"tokens": 2995})
    assert np.bincount(drawn(course(data, [10**6] * 2), 1000)).tolist() == [700, 300]
    with pytest.raises(
        ConfigError, match=r"data.train.0.tokens = 6000.0 .*add up to 9,000 tokens and the run "
    ):
        course(section({"tokens": 6000}, {"tokens": 3000}), [10**6] * 2)
    with pytest.raises(ConfigError, match="takes 10,000, which leaves nothing for the sources with a weight"):
        course(section({"tokens": 10000}, {}), [10**6] * 2)


def test_a_source_that_gave_its_epochs_stops_and_the_others_share_its_rows():
    data = section({"weight": 5, "max_epochs": 2}, {"weight": 3}, {"weight": 2, "max_epochs": 1.5})
    source = drawn(course(data, [100, 77, 40]), 1000)
    assert np.bincount(source).tolist() == [200, 740, 60]
    ends = [int(np.flatnonzero(source == number)[-1]) + 1 for number in (0, 2)]
    assert abs(ends[1] - 60 / 0.2) < 3 and abs(ends[0] - ends[1] - 50 / (5 / 8)) < 3
    before, after = source[: ends[1]], source[ends[1] : ends[0]]
    assert abs((before == 0).mean() - 0.5) < 0.01 and abs((after == 0).mean() - 5 / 8) < 0.01


def test_a_run_that_needs_more_than_its_epochs_is_refused_with_the_sum():
    data = section({"max_epochs": 4}, {"max_epochs": 1})
    words = r"data.train.0.max_epochs = 4.0 \(f.yaml:3\): 4.00 epochs of a, 1.00 epochs of b have given all "
    words += r"they may after 6,000 tokens, and the run takes 10,000: raise it, add data, or shorten"
    planner = CoursePlanner(data, [100, 200], 100, 10, {"data.train.0.max_epochs": "f.yaml:3"})
    with pytest.raises(ConfigError, match=words):
        planner.plan()
    assert course(data, [100, 200], steps=60).end == 600
    budget = section({"tokens": 5000, "max_epochs": 4}, {})
    with pytest.raises(ConfigError, match=r"train.0.max_epochs .*takes 5.00 epochs of a; raise it or lower"):
        course(budget, [100, 200])


def test_phases_change_the_mixture_at_a_step():
    phases = [{"until": 0.795, "weights": {"a": 3, "b": 1}}, {"weights": {"b": 1, "c": 1}}]
    data = section({}, {"max_epochs": 3}, {}, phases=phases)
    source = drawn(course(data, [50, 100, 70]), 1000)
    first, second = source[:800], source[800:]  # step 79.5 is rounded to 80
    assert np.bincount(first, minlength=3).tolist() == [600, 200, 0]
    assert np.bincount(second, minlength=3).tolist() == [0, 100, 100]
    short = section({}, {"max_epochs": 2}, {}, phases=phases)
    assert np.bincount(drawn(course(short, [50, 100, 70]), 1000)).tolist() == [600, 200, 200]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"train": [{"path": "a", "weight": 2, "tokens": 5}]},
            r"data.train.0 .*give weight or tokens, not both",
        ),
        (
            {"phases": [{"weights": {"bcd": 1}}]},
            r"data .*phases.0.weights: no data.train source is 'bcd'; did you mean 'bc'",
        ),
        ({"phases": [{"weights": {"zzz": 1}}]}, r"no data.train source is 'zzz'; known are a, bc"),
        ({"phases": [{"until": 0.5, "weights": {"a": 1}}]}, r"phases end at \[0.5\]: .* the last at 1"),
        (
            {"phases": [{"weights": {"a": 1}}, {"weights": {"bc": 1}}]},
            "each must end later than the one before",
        ),
        ({"phases": [{"weights": {"a": 0}}]}, r"data.phases.0.weights.a = 0"),
        ({"phases": [{"weights": {}}]}, r"data.phases.0.weights"),
        (
            {"train": [{"path": "x/a"}, {"path": "y/a"}]},
            "two data.train sources are called 'a': give them a name",
        ),
        (
            {"train": [{"path": "a", "tokens": 9}, {"path": "bc"}]},
            "'a' has weight or tokens, and phases give",
        ),
        ({"eval": [{"path": "a", "tokens": 9}]}, r"data.eval.0.tokens = 9 .*unknown key"),
    ],
)
def test_shares_that_contradict_each_other_are_answered_by_a_sentence(tmp_path: Path, data, words):
    content = {"train": [{"path": "a"}, {"path": "bc"}], "phases": [{"weights": {"a": 1}}]} | data
    if "not both" in words:
        content["phases"] = []
    run = {"name": "r", "model": {"config": {}}, "schedule": {"steps": 5}, "data": content}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(ConfigError, match=words):
        load_run(tmp_path / "run.yaml")


def test_the_rows_of_a_run_follow_its_course_and_its_fingerprint_names_it(tmp_path):
    def run(steps: int = 20, **changes) -> Batches:
        sources = [{"path": str(tmp_path / name), **changes.get(name, {})} for name in "ab"]
        data = DataSection.model_validate(
            {"train": sources, "seq_len": 8, "phases": changes.get("phases", [])}
        )
        return Batches.of_run(data, 5, 3, steps, {})

    for name, documents in {"a": 10, "b": 30}.items():
        make_dataset(tmp_path / name, {"train": [[[ord(name)] * 17 for _ in range(documents)]]})
    limited = run(a={"max_epochs": 2})
    rows = limited.rows(0, 100)
    counts = np.bincount(rows.row[rows.source == 0], minlength=limited.rows_of_sources[0])
    assert counts.tolist() == [2] * limited.rows_of_sources[0]  # every row of a twice, over two epochs
    assert (rows.read(0, 100).tokens[:, 0] == np.array([97, 98])[rows.source]).all()
    assert np.array_equal(limited.at(17).row, rows.row[85:90])
    phases = [{"until": 0.5, "weights": {"a": 1}}, {"weights": {"b": 1}}]
    prints = [
        each.fingerprint for each in (run(), run(steps=40), limited, run(steps=22, a={"max_epochs": 2}))
    ]
    assert prints[0] == prints[1] and prints[2] == prints[3] != prints[0]
    assert len({run(phases=phases).fingerprint, run(steps=40, phases=phases).fingerprint, *prints}) == 4
    assert run(a={"tokens": 80}).fingerprint != run(a={"tokens": 88}).fingerprint
    with pytest.raises(AssertionError, match="past the last row"):
        run(a={"max_epochs": 2}, b={"max_epochs": 3}).rows(0, 10**6)
