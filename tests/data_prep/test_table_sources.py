"""Parquet files and Hub datasets, which come through `datasets`. The Hub is played by a local folder."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from corpora import corpus_file, some_text, texts_of

from data_prep.build import build
from llmtrain.errors import DataError


def parquet(path: Path, texts: list, column: str = "text") -> None:
    table = pyarrow.table({column: texts, "score": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, path, row_group_size=50)


@pytest.fixture
def texts() -> list[str]:
    rng = random.Random(0)
    return [some_text(rng, rng.randint(1, 30)).strip() or "x" for _ in range(180)]


def test_parquet_rows_are_documents_and_bad_ones_are_counted(tmp_path, texts):
    parquet(tmp_path / "a.parquet", [*texts[:100], None, ""])
    parquet(tmp_path / "b.parquet", texts[100:])
    report = build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.parquet")}]))
    assert texts_of(tmp_path / "out", "train") == texts
    assert report.manifest.counts.rejected == {"no field 'text'": 1, "empty": 1}
    assert report.manifest.counts.examples["empty"] == ("a.parquet:102",)


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path, texts):
    parquet(tmp_path / "a.parquet", texts, column="body")
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.parquet")}])
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text' \(it has body, score\)"):
        build(path)
    build(path, ["sources.0.field=body"])
    assert texts_of(tmp_path / "out", "train") == texts


def test_a_damaged_parquet_file_is_counted_and_named(tmp_path, texts):
    parquet(tmp_path / "a.parquet", texts)
    parquet(tmp_path / "b.parquet", texts)
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    report = build(corpus_file(tmp_path, sources=[{"path": str(tmp_path / "*.parquet")}]))
    assert report.manifest.counts.rejected == {"damaged parquet file": 1}
    assert "b.parquet:1" in report.render()
    assert texts_of(tmp_path / "out", "train") == texts


def test_a_hub_dataset_is_streamed_row_by_row(tmp_path, texts):
    (tmp_path / "hub").mkdir()
    parquet(tmp_path / "hub/train.parquet", texts)
    path = corpus_file(
        tmp_path, sources=[{"hub": str(tmp_path / "hub"), "limit": 150}], splits={"valid": 0.1}
    )
    report = build(path)
    got = texts_of(tmp_path / "out", "train") + texts_of(tmp_path / "out", "valid")
    assert sorted(got) == sorted(texts[:150])
    assert report.manifest.sources[0].documents == 150
    with pytest.raises(
        DataError, match=r"sources\.0\.hub = '.*' has no column 'content' \(it has text, score\)"
    ):
        build(path, ["sources.0.field=content"], overwrite=True)


def test_a_hub_dataset_is_pinned_to_its_commit_and_an_unreachable_one_is_named(tmp_path, monkeypatch):
    class Offline:
        def dataset_info(self, name, revision=None):
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", Offline)
    path = corpus_file(tmp_path, sources=[{"hub": "some/data"}])
    with pytest.raises(DataError, match=r"sources\.0\.hub = 'some/data' can't be reached on the Hub: no net"):
        build(path)


def test_neither_torch_nor_transformers_is_imported_on_the_way(tmp_path, texts):
    parquet(tmp_path / "a.parquet", texts)
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "a.parquet")}])
    script = (
        "import sys; from data_prep.build import build; from data_prep.show import show\n"
        "assert 'datasets' not in sys.modules, 'datasets at import'\n"
        "build(sys.argv[1]); show(sys.argv[2], rows=1, seq_len=16)\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
