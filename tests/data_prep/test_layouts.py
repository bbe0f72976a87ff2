"""Files of several splits are not read as one: a split is chosen, or the named one is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from corpora import corpus_file, texts_of
from text_files import arrow, jsonl, source

from data_prep.build import build
from llmtrain.errors import DataError, InputError


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jsonl([name]))
    return folder


def names(path: Path, **options: object) -> list[str]:
    return [file.name for file in source(path, **options).files]


SEVERAL = [
    (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ),
    ("train.jsonl", "test.jsonl"),
    ("train.txt", "valid.txt"),
    ("gsm8k_train.csv", "gsm8k_test.csv"),
    ("train/a.jsonl", "dev/a.jsonl.gz"),
    ("train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"),
    ("rows.jsonl", "test.jsonl"),
    ("wiki.train.jsonl", "wiki.valid.jsonl"),
]
ONE = [
    ("test/test_a.py", "src/train.py", "eval.md"),
    ("a.jsonl", "test-driven-development.jsonl"),
    ("test.jsonl",),
    ("books-00000-of-00002.jsonl", "wiki-00000-of-00002.jsonl"),
    ("train-00000.jsonl", "train-00001.jsonl"),
]


@pytest.mark.parametrize("files", SEVERAL)
def test_files_of_several_splits_are_refused_until_one_is_chosen(tmp_path, files):
    lay(tmp_path, *files)
    for path in (tmp_path, tmp_path / "**/*"):
        with pytest.raises(
            DataError, match=r"several splits lie there \(.*: say which .* `split: train"
        ) as said:
            names(path)
        offered = str(said.value).split("`split: ")[1].split("`")[0]
        assert names(path, split=offered) == sorted(
            name for name in files if "train" in name or name == "rows.jsonl"
        )
    both = str(said.value).split("`split: ")[2].split("`")[0]
    assert names(tmp_path, split=both) == sorted(files)
    with pytest.raises(DataError, match="no split 'sound' lies there .*: correct `split`"):
        names(tmp_path, split="sound")


@pytest.mark.parametrize("files", ONE)
def test_what_only_sounds_like_splits_is_read_whole(tmp_path, files):
    assert names(lay(tmp_path, *files)) == sorted(files)


def test_a_saved_datasetdict_gives_the_named_split_and_its_listed_files(tmp_path):
    for split in ("train", "test", "probe"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        listed = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / "state.json").write_text(json.dumps(listed))
        (folder / "dataset_info.json").write_text("{}")
        (folder / "data-00000-of-00001.arrow").write_bytes(arrow([f"{split} text"], stream=True))
        (folder / "cache-1f.arrow").write_bytes(arrow(["what map remembers"], stream=True))
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test", "probe"]}')
    path = corpus_file(tmp_path, sources=[{"path": str(tmp_path / "saved")}])
    with pytest.raises(DataError, match=r"saved'.*\(probe: 1 file, test: 1 file, train: 1 file\)"):
        build(path)
    report = build(path, ["sources.0.split=probe+train"])
    assert texts_of(tmp_path / "out", "train") == ["probe text", "train text"]
    assert not report.manifest.counts.rejected and report.manifest.sources[0].source.endswith(
        "saved (probe+train)"
    )
    with pytest.raises(DataError, match="was written by `save_to_disk`: give it by `path`"):
        build(corpus_file(tmp_path, sources=[{"hub": str(tmp_path / "saved")}]))


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - {split: learn, path: "main/part*.jsonl"}
  - {split: held_out, path: [main/last.jsonl]}
- config_name: odd
  data_files: odd/*.jsonl
---
# A dataset
"""


def test_a_clone_of_a_hub_dataset_gives_its_data_alone(tmp_path):
    clone = lay(
        tmp_path / "clone", "main/part1.jsonl", "main/last.jsonl", "odd/x.jsonl", "LICENSE", "load.py"
    )
    (clone / "README.md").write_text(CARD)
    assert names(clone, split="learn") == ["main/part1.jsonl"]
    assert names(clone, split="held_out+train") == ["main/last.jsonl", "odd/x.jsonl"]
    assert names(clone, subset="odd") == ["odd/x.jsonl"]
    with pytest.raises(DataError, match=r"no subset 'even' \(main, odd\): correct `subset`"):
        names(clone, subset="even")
    (clone / "README.md").write_text("---\nlicense: mit\n---\n")
    assert names(clone) == ["main/last.jsonl", "main/part1.jsonl", "odd/x.jsonl"]


def test_a_split_of_what_has_none_is_refused(tmp_path):
    (tmp_path / "d.txt").write_text("text")
    for source_, message in (
        ({"stdlib": True, "split": "train"}, "split is for a dataset on the Hub"),
        (
            {"path": str(tmp_path / "d.txt"), "split": "train[:5%]"},
            "files, which are read whole: use `limit`",
        ),
        ({"path": str(tmp_path / "d.txt"), "split": "test"}, r"no split 'test' lies there \(train: 1 file\)"),
    ):
        with pytest.raises(InputError, match=message):
            build(corpus_file(tmp_path, sources=[source_]))
