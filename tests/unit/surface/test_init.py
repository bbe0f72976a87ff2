"""`llmtrain init`: what it writes is a run that can be planned, sized by the rules that it states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus import CorpusConfig
from llmtrain.cli import main
from llmtrain.config.load import load_yaml_model
from llmtrain.init.sizing import LADDER, Machine, Text, new_model, rows_per_step, strategy
from llmtrain.init.writing import corpus_file, run_file, write
from llmtrain.report.planned import planned

H200 = Machine("H200", "cuda", 8, 141 * 10**9)


def text_of(size: float, documents: int = 10**6) -> Text:
    return Text("text", 100, size, documents)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a folder of text of an awkward name in it."""
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "my notes: é, {1}"
    text.mkdir()
    for number in range(30):
        (text / f"{number}.txt").write_text("Some words of a text. " * 200, encoding="utf-8")
    return text


def test_what_it_writes_is_planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", folder.name + "/*.txt", "--name", "notes", "--yes", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("30 files of text, 0.1 MB; 1 × CPU of ")
    assert said.endswith("llmtrain plan notes.yaml\n  llmtrain train notes.yaml\n")
    assert main(["plan", "notes.yaml"]) == 0
    assert "about" in capsys.readouterr().out
    corpus = load_yaml_model("notes-corpus.yaml", CorpusConfig).config
    assert corpus.sources[0].path == folder.name + "/*.txt" and corpus.output == "data/notes"
    assert corpus.splits == {"valid": 0.17}


@pytest.mark.parametrize("name", ["_", "a b", "#!: {x}", "наброски"])
def test_any_folder_gives_a_name_that_a_run_may_have(folder: Path, name: str) -> None:
    assert main(["init", str(folder.rename(folder.parent / name)), "--yes"]) == 0
    (run,) = [path for path in Path(".").glob("*.yaml") if "-corpus" not in path.name]
    assert planned(str(run), [], 1, "cpu").plan.run.name == run.stem


def test_nothing_is_overwritten_or_half_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.yaml").write_text("mine")
    assert main(["init", str(folder), "--name", "notes", "--yes"]) == 2
    assert capsys.readouterr().err == (
        "error: file = 'notes.yaml' (init): is there already and is never overwritten; give another --name\n"
    )
    assert not Path("notes-corpus.yaml").exists()
    with pytest.raises(FileExistsError):
        write({Path("notes-corpus.yaml"): "new", Path("notes.yaml"): "new"})
    assert not Path("notes-corpus.yaml").exists() and Path("notes.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["TEXT", "--hours", "-1"], "--hours = -1.0 (command line): must be above 0"),
        (["TEXT", "--device", "h2oo"], "--device = 'h2oo' (command line): "),
        (["TEXT", "--ranks", "0"], "--ranks = 0 (command line): must be 1 or more"),
        (["chats.jsonl"], "these are conversations"),
    ],
)
def test_what_can_not_be_is_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("chats.jsonl").write_text('{"messages": []}\n')
    assert main(["init", *(str(folder) if word == "TEXT" else word for word in words), "--yes"]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path(".").glob("*.yaml"))


@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_conversations_and_a_model_are_a_fine_tuning(folder: Path, field: str) -> None:
    record = json.dumps({field: [{"role": "user", "content": "Hello"}]}) + "\n"
    Path("chats.jsonl").write_text(record * 5000)
    config = {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80}
    Path("base").mkdir()
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672}
    Path("base/config.json").write_text(json.dumps({**config, "vocab_size": 128_256}))
    assert main(["init", "chats.jsonl", "--model", "base", "--device", "h200", "--ranks", "16", "--yes"]) == 0
    corpus = load_yaml_model("chats-corpus.yaml", CorpusConfig).config
    assert (corpus.kind, corpus.tokenizer.source) == ("chat", "base")
    found = planned("chats.yaml", [], 16, "h200")
    assert found.plan.run.deepspeed == "zero3"
    assert (found.plan.run.model.source, found.plan.run.data.packing) == ("base", "best_fit")


@pytest.mark.parametrize("size", [1e3, 1e6, 1e8, 1e10, 1e12])
@pytest.mark.parametrize(
    "machine", [Machine("CPU", "cpu", 1, None, 2), Machine("T4", "cuda", 6, 16 * 10**9), H200]
)
def test_every_size_and_machine_gives_a_run_that_fits(folder: Path, size: float, machine: Machine) -> None:
    text = text_of(size)
    sizes = new_model(text, machine, 24)
    Path("run.yaml").write_text(run_file("run", text, sizes, machine, None))
    Path("run-corpus.yaml").write_text(corpus_file("run", text, sizes, None))
    load_yaml_model("run-corpus.yaml", CorpusConfig)
    found = planned("run.yaml", [], machine.count, machine.name.lower())
    assert found.fits is not False
    assert sizes.shape is not None
    assert sizes.tokens <= 4.2 * sizes.text_tokens or sizes.tokens == 2048
    if sizes.config != new_model(text_of(1), machine, 24).config:  # not the smallest there is
        assert 4.2 * sizes.text_tokens >= 20 * sizes.shape.active_matmul_parameters


def test_more_text_time_and_memory_carry_larger_models() -> None:
    def layers_and_width(size: float, hours: float, machine: Machine) -> tuple[Any, Any]:
        config = new_model(text_of(size), machine, hours).config
        assert config is not None
        return config["num_hidden_layers"], config["hidden_size"]

    largest = LADDER[-1][:2]
    assert layers_and_width(1e13, 24 * 100, Machine("H200", "cuda", 512, 141 * 10**9)) == largest
    assert layers_and_width(1e13, 24, H200) < largest, "a day"
    assert layers_and_width(1e9, 24 * 100, H200) == (8, 512), "text"
    assert layers_and_width(1e13, 1e5, Machine("T4", "cuda", 1, 16 * 10**9)) <= (24, 1024), "memory"


def test_the_strategy_is_the_first_at_which_the_states_fit() -> None:
    assert [strategy(size, H200) for size in (10**9, 13 * 10**9, 25 * 10**9, 10**12)] == [
        "zero1", "zero2" if 13 * (2 + 18 / 8) <= 84.6 < 13 * 7.5 else "zero1", "zero3", None,
    ]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 3, 8, 384])
def test_every_rank_has_as_many_rows(ranks: int) -> None:
    for tokens in (1e4, 1e7, 1e12):
        rows = rows_per_step(tokens, 512, ranks)
        assert rows % ranks == 0 and rows >= ranks
