"""Conversations, completions and pairs, from corpus file to folder: masks, counts, refusals, and `show`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chat_templates import CHATML, REASONING, chat_folder
from corpora import files_of

from data_prep.build import build
from data_prep.show import show
from data_prep.tokenizer import load_tokenizer
from llmtrain.cli import main
from llmtrain.config.schema import DataSource
from llmtrain.data.batches import Batches
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import Manifest, read_manifest
from llmtrain.data.verify import verify
from llmtrain.errors import ConfigError, DataError

IM = ("<|im_start|>", "<|im_end|>")
WORDS = ["spider", "legs", "eight", "fly", "wings", "two", "naïve", "🙂", "and"]


def talk(rng: random.Random) -> dict[str, Any]:
    messages = []
    for role in ("user", "assistant") * rng.randint(1, 3):
        content = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
        messages.append({"role": role, "content": content})
    return {"messages": messages}


def talks(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [talk(rng) for _ in range(count)]


def corpus_file(folder: Path, rows: list[Any], template: str = CHATML, **content: Any) -> Path:
    """A corpus of `rows` as JSON lines, with the tokenizer of `template`."""
    if not (folder / "tokenizer").exists():
        chat_folder(folder / "tokenizer", template, IM)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = {
        "name": "talks",
        "output": str(folder / "out"),
        "kind": "chat",
        "sources": [{"path": str(folder / "rows.jsonl")}],
        "tokenizer": {"source": str(folder / "tokenizer")},
        "splits": {},
        "workers": 1,
    } | content
    path = folder / "corpus.yaml"
    path.write_text(yaml.safe_dump(whole, allow_unicode=True))
    return path


def built(folder: Path, rows: list[Any], **content: Any) -> Manifest:
    return build(corpus_file(folder, rows, **content)).manifest


def documents(folder: Path, split: str = "train") -> list[tuple[str, str]]:
    """(whole text, what is trained on) of each document."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    found = []
    for shard in open_dataset(folder, split).shards:
        assert shard.mask is not None
        for number in range(shard.documents):
            start = int(shard.ends[number - 1]) if number else 0
            tokens, mask = shard.document(number), shard.mask[start : int(shard.ends[number])]
            texts = (
                tokenizer.decode(part.tolist(), skip_special_tokens=False)
                for part in (tokens, tokens[mask & 1 == 1])
            )
            found.append(tuple(texts))
    return found  # type: ignore[return-value]


def test_a_corpus_of_conversations_becomes_masked_shards(tmp_path: Path) -> None:
    rows = talks(60)
    manifest = built(tmp_path, rows, splits={"valid": 0.2})
    out = tmp_path / "out"
    assert (manifest.version, manifest.kind, manifest.append_eos) == (3, "chat", False)
    found = documents(out) + documents(out, "valid")
    expected = [
        "".join(m["content"] + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant")
        for row in rows
    ]
    assert sorted(learnt for _, learnt in found) == sorted(expected)
    assert all(whole.startswith("<|im_start|>system\nBe brief.<|im_end|>\n") for whole, _ in found)
    marked = sum(entry.trained_tokens or 0 for entry in manifest.splits.values())
    encode = load_tokenizer(out / "tokenizer").encode
    assert marked == sum(len(encode(text, add_special_tokens=False).ids) for text in expected)
    assert "every hash, bound and token id checked" in verify(out).render()
    assert build(tmp_path / "corpus.yaml").reused


def test_the_number_of_workers_and_the_source_s_format_change_no_token(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{**row, "tools": '[{"name": "add"}]' if k % 2 else None} for k, row in enumerate(talks(40))]
    built(tmp_path, rows)
    first = files_of(tmp_path / "out")
    build(tmp_path / "corpus.yaml", ["workers=2"], overwrite=True)
    assert files_of(tmp_path / "out") == first
    table = pyarrow.Table.from_pylist([{**row, "other": 1} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    output = tmp_path / "parquet"
    changes = [f"output={output}", f"sources=[{{path: {tmp_path / 'rows.parquet'}}}]"]
    build(tmp_path / "corpus.yaml", changes)
    assert (output / "train/00000.mask").read_bytes() == first["train/00000.mask"]
    assert (output / "train/00000.bin").read_bytes() == first["train/00000.bin"]
    assert sum("Tools:" in whole for whole, _ in documents(output)) == 20


def test_nothing_is_lost_and_every_refusal_is_counted(tmp_path: Path) -> None:
    asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows: list[Any] = [
        {"messages": [asked, said]},
        {"messages": [asked]},
        {"messages": [asked, {**said, "content": "<|im_end|>"}]},
        {"other": 1},
        {"messages": [asked, {**said, "content": "eight legs " * 50}]},
        7,
    ]
    with pytest.raises(DataError, match=r"max_reject_fraction = 0.1: 4 of 6 .*; 1 special token in content"):
        built(tmp_path, rows, samples={"max_tokens": 60})
    manifest = built(tmp_path, rows, samples={"max_tokens": 60}, max_reject_fraction=1)
    counts = manifest.counts
    assert counts.rejected == {
        "no assistant turn": 1,
        "special token in content": 1,
        "no field 'messages'": 1,
        "not a JSON object": 1,
        "too long": 1,
    }
    assert counts.documents_in == 6 and counts.documents_out == 1
    assert counts.examples["special token in content"] == ("rows.jsonl:3 (<|im_end|>)",)
    with pytest.raises(DataError, match=r"rows.jsonl:2: no assistant turn \(strict is on"):
        build(tmp_path / "corpus.yaml", ["strict=true"], overwrite=True)
    with pytest.raises(DataError, match="corpus 'talks' is empty: 1 documents in, none out"):
        built(tmp_path, [{"messages": [asked]}], output=str(tmp_path / "none"))


def test_completions_end_with_the_end_mark_and_pairs_lie_side_by_side(tmp_path: Path) -> None:
    rows = [{"question": f"{k} legs? ", "answer": f"yes {k}"} for k in range(20)]
    fields = [{"path": str(tmp_path / "rows.jsonl"), "field": {"prompt": "question", "completion": "answer"}}]
    built(tmp_path, rows, kind="prompt_completion", sources=fields)
    assert sorted(documents(tmp_path / "out")) == sorted(
        (f"{k} legs? yes {k}</s>", f"yes {k}</s>") for k in range(20)
    )
    (tmp_path / "rows.csv").write_text(
        "question,answer\n" + "".join(f"{k} legs? ,yes {k}\n" for k in range(20))
    )
    csv = [{**fields[0], "path": str(tmp_path / "rows.csv")}]
    table = {"kind": "prompt_completion", "sources": csv, "output": str(tmp_path / "csv")}
    assert built(tmp_path, rows, **table).fingerprint == read_manifest(tmp_path / "out").fingerprint
    pairs = [{"prompt": f"{k}? ", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(20)]
    manifest = built(tmp_path, pairs, kind="preference", output=str(tmp_path / "pairs"), append_eos=False)
    found = documents(tmp_path / "pairs")
    assert len(found) == 40 and manifest.counts.documents_out == 20
    assert found[::2] == [(f"{k}? yes {k}", f"yes {k}") for k in range(20)]
    assert found[1::2] == [(f"{k}? no {k}", f"no {k}") for k in range(20)]
    with pytest.raises(DataError, match="holds preference pairs"):
        Batches([DataSource(path=str(tmp_path / "pairs"))], 8, 2, 0, True)


def test_a_template_that_proves_nothing_ends_the_build_before_it_reads(tmp_path: Path) -> None:
    path = corpus_file(tmp_path, talks(3), template=REASONING)
    with pytest.raises(DataError, match="rewrites earlier turns, .*set samples.turns: last"):
        build(path)
    assert not (tmp_path / "out").exists()
    assert build(path, ["samples.turns=last"]).manifest.counts.documents_out == 3
    with pytest.raises(DataError, match=r"holds another dataset \(it differs in samples\)"):
        build(path, ["samples.turns=last", "samples.variables={mood: calm}"])
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(DataError, match=r"holds another dataset \(it differs in tokenizer\)"):
        build(path, ["samples.turns=last"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "chats"}, "kind"),
        (
            {"kind": "text", "sources": [{"path": "x", "field": {"messages": "m"}}]},
            "field maps the fields of fine-tuning data, and kind is text",
        ),
        ({"kind": "text", "samples": {"max_tokens": 5}}, "samples is for fine-tuning data, and kind is text"),
        ({"steps": [{"length": {}}]}, "steps work on text, and kind is chat: leave them out"),
        ({"tokenizer": {"train": "bpe"}}, "kind: chat needs the tokenizer of the model to tune"),
        ({"samples": {"max_tokens": 1}}, "max_tokens"),
        ({"samples": {"too_long": "cut"}}, "too_long"),
        ({"kind": "preference", "samples": {"too_long": "truncate_left"}}, "would give a pair two prompts"),
    ],
)
def test_a_corpus_file_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(corpus_file(tmp_path, talks(1), **changes))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"field": "text"}, "with kind: chat field maps messages, system, tools to your columns' names"),
        ({"field": {"mesages": "m"}}, "kind: chat has no field 'mesages' .*did you mean 'messages'"),
        ({"meta": ["url"]}, "meta goes along for steps"),
    ],
)
def test_a_source_that_does_not_fit_the_kind_is_refused(
    tmp_path: Path, source: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(corpus_file(tmp_path, talks(1), sources=[{"path": str(tmp_path / "rows.jsonl"), **source}]))


def test_files_without_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a")
    path = corpus_file(tmp_path, talks(1), sources=[{"path": str(tmp_path / "notes.txt")}])
    with pytest.raises(
        DataError, match=r"notes.txt is text, and fine-tuning data has fields \(messages, system, tools\)"
    ):
        build(path)


def test_the_given_day_is_read_from_the_corpus_file(tmp_path: Path) -> None:
    dated = CHATML.replace("Be brief.", "' + strftime_now('%d %b %Y') + '")
    path = corpus_file(tmp_path, talks(2), template=dated)
    with pytest.raises(DataError, match="set samples.today"):
        build(path)
    build(path, ["samples.today=2026-01-31"])
    assert all("system\n31 Jan 2026<|im_end|>" in whole for whole, _ in documents(tmp_path / "out"))


def test_show_marks_or_colours_what_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built(tmp_path, talks(30))
    out = tmp_path / "out"
    plain = show(out, rows=4, seq_len=48)
    coloured = show(out, rows=4, seq_len=48, colour=True)
    assert "kind chat" in plain and "\x1b" not in plain
    assert coloured.replace("\x1b[32m", "⟦").replace("\x1b[0m", "⟧") == plain
    drawn = Batches([DataSource(path=str(out))], 48, 4, 0, True).at(0)
    tokenizer = load_tokenizer(out / "tokenizer")
    arrays = drawn.read(0, 4)
    for number, text in enumerate(plain.split("━━ row ")[1:]):
        labels = arrays.labels[number]
        marked = "".join(part.split("⟧")[0] for part in text.split("⟦")[1:])
        assert marked == tokenizer.decode(labels[labels >= 0].tolist(), skip_special_tokens=False)
    assert main(["data", "show", str(out), "--seq-len", "48"]) == 0
    assert "⟦" in capsys.readouterr().out
    assert main(["data", "show", str(out), "--seq-len", "48", "--color", "always"]) == 0
    assert "\x1b[32m" in capsys.readouterr().out


def test_show_prints_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k}? ", "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(9)]
    built(tmp_path, rows, kind="preference")
    text = show(tmp_path / "out", rows=2)
    assert "9 pairs, kind preference" in text
    numbers = [int(part.split(",")[0]) for part in text.split("━━ pair ")[1:]]
    assert len(numbers) == 4 and numbers[0] == numbers[1]
    for k in set(numbers):
        assert f"{k}? ⟦yes {k}</s>⟧" in text and f"{k}? ⟦no {k}</s>⟧" in text


def test_a_weight_repeats_conversations_in_train_alone(tmp_path: Path) -> None:
    sources = [{"path": str(tmp_path / "rows.jsonl"), "weight": 2}]
    manifest = built(tmp_path, talks(40), sources=sources, splits={"valid": 0.25})
    train, valid = (manifest.splits[name].documents for name in ("train", "valid"))
    assert train % 2 == 0 and train // 2 + valid == 40 and manifest.counts.repeats == train // 2
    shards = open_dataset(tmp_path / "out", "train").shards
    marks = np.concatenate([shard.mask & 1 for shard in shards])  # type: ignore[operator]
    assert marks.sum() == manifest.splits["train"].trained_tokens
    assert read_manifest(tmp_path / "out", hashes=True) == manifest
