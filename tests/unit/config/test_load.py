"""A run is loaded strictly, and everything that is wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from llmtrain.config import foreign_names
from llmtrain.config.load import load_run, load_yaml_model
from llmtrain.config.schema import RunConfig
from llmtrain.errors import ConfigError

RUN = """\
name: demo
model:
  config: {model_type: llama, hidden_size: 64, rms_norm_eps: 1e-6}
data:
  train:
    - path: data/stdlib
      split: train
  seq_len: 128
schedule: {steps: 300}
optimizer: {lr: 1e-3, betas: [0.9, 0.95]}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    assert caught.value.exit_status == 2
    return [str(problem) for problem in caught.value.problems]


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_defaults_file_and_command_line_have_their_origins(run_file: Path) -> None:
    loaded = load_run(run_file, ["batch.rows=32", "data.train.0.weight=1e-2"])
    assert loaded.config.batch.rows == 32
    assert loaded.config.data.train[0].weight == 0.01
    assert loaded.origins["batch.rows"] == "command line"
    assert loaded.origins["data.train.0.weight"] == "command line"
    assert loaded.origins["data.train.0.path"] == f"{run_file}:6"
    assert loaded.origins["optimizer.lr"] == f"{run_file}:10"
    assert loaded.origins["optimizer.eps"] == "default"
    assert "batch.rows" in loaded.explicit
    assert "optimizer.eps" not in loaded.explicit
    assert loaded.path == str(run_file)


def test_every_leaf_has_an_origin(run_file: Path) -> None:
    loaded = load_run(run_file)

    def leaves(value: object, path: str) -> list[str]:
        if isinstance(value, dict) and value:
            return [leaf for name, item in value.items() for leaf in leaves(item, f"{path}.{name}")]
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            return [leaf for i, item in enumerate(value) for leaf in leaves(item, f"{path}.{i}")]
        return [path[1:]]

    assert set(leaves(loaded.config.model_dump(), "")) == set(loaded.origins)


def test_scientific_notation_is_a_number_everywhere(run_file: Path) -> None:
    run = load_run(run_file, ["schedule.steps=null", "schedule.tokens=1e9"]).config
    assert run.optimizer.lr == 1e-3
    assert run.schedule.tokens == 1e9
    assert run.model.config is not None
    assert run.model.config["rms_norm_eps"] == 1e-6


def test_override_values_are_yaml(run_file: Path) -> None:
    run = load_run(
        run_file,
        ["data.mask_documents=false", "data.eval=[{path: d, split: valid}]", "model.config.tie=true"],
    ).config
    assert run.data.mask_documents is False
    assert run.data.eval[0].split == "valid"
    assert run.model.config is not None
    assert run.model.config["tie"] is True


def test_all_problems_are_reported_in_one_error(run_file: Path) -> None:
    found = problems_of(
        run_file,
        "optimiser.lr=3",
        "lr=3",
        "batch.micro=some",
        "optimizer.lr=-1",
        "schedule.warmup=abc",
        "precision=fp8",
        "noequals",
        "data.train.5.path=x",
        "schedule.tokens=1e9",
    )
    text = "\n".join(found)
    assert "optimiser (command line): unknown key; did you mean 'optimizer'?" in found
    assert "lr = 3 (command line): unknown key; did you mean 'optimizer.lr'?" in found
    assert "batch.micro = 'some' (command line): must be a whole number or 'auto'" in found
    assert "optimizer.lr = -1 (command line): must be more than 0" in found
    assert "schedule.warmup = 'abc' (command line): must be a number" in found
    assert "precision = 'fp8' (command line): must be 'bf16', 'fp16' or 'fp32'" in found
    assert "noequals (command line): write it as key=value or section.key=value" in found
    assert "data.train.5.path = 'x' (command line): 'data.train' is a list of 1" in text
    # hidden behind schedule.warmup, which pydantic stumbles over first
    assert "give exactly one of schedule.steps, schedule.tokens and schedule.epochs" in text
    assert len(found) == 9


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: demo", "nmae: demo", "run.yaml:1): unknown key; did you mean 'name'?"),
        ("seq_len: 128", "seqlen: 128", "data.seqlen = 128 ({file}:8): unknown key; did you mean 'seq_len'?"),
        ("split: train", "splt: train", "data.train.0.splt = 'train' ({file}:7): unknown key; did you mean"),
        ("lr: 1e-3", "learning: 1e-3", "optimizer.learning = 0.001 ({file}:10): unknown key"),
        ("name: demo", "", "name ({file}): is required; add it"),
        ("path: data/stdlib", "weight: 2", "data.train.0.path ({file}:6): is required; add it"),
        ("name: demo", "name: a b", "name = 'a b' ({file}:1): must be text that matches"),
        ("steps: 300", "steps: 0", "schedule.steps = 0 ({file}:9): must be at least 1"),
        ("steps: 300", "steps: 1.5", "schedule.steps = 1.5 ({file}:9): must be a whole number"),
        (
            "steps: 300",
            "warmup: 0.1",
            "give exactly one of schedule.steps, schedule.tokens and schedule.epochs",
        ),
        ("  seq_len: 128", "  mask_documents: 3", "must be true or false"),
        (
            "optimizer: {lr: 1e-3, betas: [0.9, 0.95]}",
            "optimizer: 3",
            "must be a section with keys of its own",
        ),
        ("optimizer: {lr: 1e-3, betas: [0.9, 0.95]}", "optimizer: {betas: [1, 2, 3]}", "a list of at most 2"),
    ],
)
def test_each_mistake_names_field_value_place_and_fix(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path / "run.yaml", RUN.replace(old, new, 1))
    assert message.format(file=path) in "\n".join(problems_of(path))


def test_a_misspelt_source_of_the_model_is_not_hidden(run_file: Path) -> None:
    found = problems_of(run_file, "model=null")
    assert found == ["model (command line): give exactly one of model.source and model.config"]


def test_missing_file_is_one_sentence(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "none.yaml") == [
        f"file = '{tmp_path}/none.yaml' ({tmp_path}/none.yaml): there is no such file; check the path"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "must hold `key: value` lines, but holds a list"),
        ("just words", "must hold `key: value` lines, but holds a str"),
        ("a: [1, 2\nb: 3\n", "run.yaml:2): is not valid YAML"),
        ("a: 1\n\tb: 2\n", "run.yaml:2): is not valid YAML"),
        (
            "name: x\nbatch:\n  rows: 1\n  rows: 2\nname: y\n",
            "batch.rows (FILE:4): this key stands already in line 3",
        ),
    ],
)
def test_files_that_are_no_run(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "run.yaml", text)
    found = problems_of(path)
    assert message.replace("FILE", str(path)) in found[0]


def test_duplicate_keys_are_all_named(tmp_path: Path) -> None:
    path = written(tmp_path / "run.yaml", "name: x\nbatch:\n  rows: 1\n  rows: 2\nname: y\n")
    assert len(problems_of(path)) == 2


def test_a_folder_or_binary_file_is_refused(tmp_path: Path) -> None:
    assert "this is a folder" in problems_of(tmp_path)[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "can't be read as UTF-8 text" in problems_of(tmp_path / "b.yaml")[0]


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    path = written(tmp_path / "run.yaml", RUN + "eval:\nbatch:\n")
    assert load_run(path).config.batch.rows == 64


def test_override_into_a_scalar_is_refused(run_file: Path) -> None:
    assert "'name' is 'demo', not a section" in problems_of(run_file, "name.first=x")[0]
    assert "is 'llama', not a section" in problems_of(run_file, "model.config.model_type.x=1")[0]


def test_override_that_is_no_yaml(run_file: Path) -> None:
    assert "the value is not valid YAML; quote it" in problems_of(run_file, "name=[1")[0]


class Corpus(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    workers: int = 1


def test_any_model_is_loaded_as_strictly(tmp_path: Path) -> None:
    path = written(tmp_path / "c.yaml", "name: c\nworker: 3\n")
    with pytest.raises(ConfigError, match="did you mean 'workers'"):
        load_yaml_model(path, Corpus)
    path.write_text("name: c\n")
    loaded = load_yaml_model(path, Corpus, ["workers=4"])
    assert loaded.config.workers == 4
    assert loaded.origins["workers"] == "command line"


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("learning_rate", "write optimizer.lr"),
        ("warmup_steps", "write schedule.warmup"),
        ("per_device_train_batch_size", "write batch.micro"),
        ("save_total_limit", "write checkpoint.keep"),
        ("gradient_accumulation_steps", "it follows from batch.rows and batch.micro: rows ÷ ranks ÷ micro"),
        ("num_train_epochs", "write schedule.epochs"),
        ("bf16", "write precision: bf16"),
        ("logging_steps", "write log.every"),
        ("eval_steps", "write eval.every"),
        ("save_steps", "write checkpoint.every"),
        ("max_seq_length", "write data.seq_len"),
        ("block_size", "write data.seq_len"),
        ("global-batch-size", "write batch.rows"),
        ("weight_decay", "did you mean 'optimizer.weight_decay'?"),
    ],
)
def test_the_names_of_other_trainers_are_answered_with_ours(run_file: Path, name: str, fix: str) -> None:
    assert problems_of(run_file, f"{name}=3") == [f"{name} = 3 (command line): unknown key; {fix}"]
    run_file.write_text(f"{RUN}{name}: 3\n")
    assert problems_of(run_file) == [f"{name} = 3 ({run_file}:11): unknown key; {fix}"]


def test_every_name_of_another_trainer_leads_to_a_key_that_there_is() -> None:
    for key, names in foreign_names._SAME.items():
        model: Any = RunConfig
        *sections, leaf = key.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
        assert leaf in model.model_fields, f"{names} lead to {key}"
        assert not set(names.split()) & set(RunConfig.model_fields), f"{names}: one of them is our own key"
    assert not foreign_names.pointer("rows")


def test_home_is_where_the_shell_has_it(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home-of-mine")
    places = {
        "output_dir": "~/runs/x",
        "data.train.0.path": "~/data",
        "data.eval": "[{path: ~/held}]",
        "model.tokenizer": "~/tok",
        "deepspeed": "~/ds.json",
    }
    run = load_run(run_file, [f"{name}={value}" for name, value in places.items()]).config
    assert run.folder == "/home-of-mine/runs/x"
    assert (run.data.train[0].path, run.data.eval[0].path) == ("/home-of-mine/data", "/home-of-mine/held")
    assert (run.model.tokenizer, run.deepspeed) == ("/home-of-mine/tok", "/home-of-mine/ds.json")
    source = load_run(run_file, ["model={source: ~/base}"]).config.model.source
    assert source == "/home-of-mine/base"


def test_one_length_and_which_to_take_out(run_file: Path) -> None:
    (said,) = problems_of(run_file, "schedule.epochs=3")
    assert said == (
        f"schedule ({run_file}:9): give exactly one of schedule.steps, schedule.tokens and schedule.epochs "
        "(schedule.steps=null or schedule.epochs=null takes one out)"
    )
    assert load_run(run_file, ["schedule.steps=null", "schedule.epochs=2.5"]).config.schedule.epochs == 2.5
