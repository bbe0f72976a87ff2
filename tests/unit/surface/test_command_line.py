from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import ROOT, write_run

from llmtrain.cli import main
from llmtrain.config.world import World, world_from_environment
from llmtrain.errors import ConfigError
from llmtrain.launch import rank_environment

VERBS = ("init", "data", "train", "eval", "export", "generate", "plan", "doctor", "demo")
HEAVY = ("torch", "transformers", "deepspeed", "datasets")


def light(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a fresh process that fails when anything heavy is imported."""
    code = (
        "import sys\n"
        "from llmtrain.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\n"
        "except SystemExit as end:\n    status = end.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else status)\n"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["data", "build", "--help"]])
def test_help_is_light(words: list[str]) -> None:
    done = light(*words)
    assert done.returncode == 0, done.stderr
    assert "usage: llmtrain" in done.stdout


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert [verb for verb in VERBS if f"\n    {verb} " in shown] == list(VERBS)


def test_config_errors_are_light_and_one_line_each(tmp_path: Path) -> None:
    path = write_run(tmp_path, tmp_path / "nowhere", batch={"rowz": 4}, precision="bf61")
    done = light("train", str(path), "optimizer.lr=fast", "--ranks", "2")
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    assert "did you mean 'rows'?" in done.stderr
    assert "optimizer.lr = 'fast' (command line)" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_dataset_is_light_and_leaves_nothing(tmp_path: Path) -> None:
    done = light("train", str(write_run(tmp_path, tmp_path / "nowhere")), "--ranks", "2")
    assert done.returncode == 2, done.stderr
    assert "nowhere" in done.stderr
    assert "llmtrain data build" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_ranks_own_door_answers_bad_input_without_torch(tmp_path: Path, own_dataset: Path) -> None:
    """Under one rank and under every launcher: what can be known without torch doesn't wait for it."""
    path = str(write_run(tmp_path, own_dataset))
    saved = tmp_path / "began" / "checkpoints" / "step-00000004"
    saved.mkdir(parents=True)
    (saved / "COMMIT").touch()
    identity = {
        "seq_len": 64,
        "rows": 8,
        "seed": 1234,
        "precision": "fp32",
        "dataset": "another",
        "model": "?",
    }
    (saved / "manifest.json").write_text(json.dumps({"step": 4, "identity": identity}))
    began = f"output_dir={tmp_path / 'began'}"
    tokenizer = tmp_path / "other"
    shutil.copytree(own_dataset / "tokenizer", tokenizer)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["vocab"] = {word: 399 - number for word, number in content["model"]["vocab"].items()}
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    never = [f"error: --resume never: {tmp_path / 'began'} already holds step 4"]
    cases: list[tuple[list[str], list[str]]] = [
        (["--local_rank=0", "seed=3", "precision=bf61"], ["error: precision = 'bf61'"]),
        (["data.train.0.path=nosuch"], ["error: nosuch"]),
        ([f"model.tokenizer={tokenizer}"], [f"error: model.tokenizer = '{tokenizer}' (command line): its"]),
        (["kernels=fused"], ["error: kernels = 'fused' (command line): fused kernels are made for GPUs"]),
        (["--resume", "must"], [f"error: --resume must: {tmp_path / 'run'} has no checkpoint"]),
        ([began, "--resume", "never"], never),
        (
            [began],
            [
                f"error: {saved} belongs to another run:",
                "error:   seq_len (saved 64, now 32): keep data.seq_len",
                "error:   rows (saved 8, now 4): keep batch.rows",
                "error:   to start another run with these settings beside this one: output_dir=other",
            ],
        ),
    ]
    code = (
        "import json, sys, llmtrain.train as t\n"
        "import importlib.util as u; there = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'tensorboard' else there(name, *more)\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    assert t.main(words) == 2, words\n"
        "    print('--', file=sys.stderr)\n"
        "sys.exit(9 if 'torch' in sys.modules else 0)"
    )
    missing = ["error: log.tensorboard = True (command line)"]
    cases.append((["log.tensorboard=true"], missing))
    command = [sys.executable, "-c", code, json.dumps([[path, *words] for words, _ in cases])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told = [each.strip().splitlines() for each in done.stderr.split("--\n")]
    for lines, (_, expected) in zip(told, cases, strict=False):
        assert len(lines) == len(expected), lines
        assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True)), lines
    assert not (tmp_path / "run").exists()


def test_plan_is_light_and_overrides_may_stand_anywhere(tmp_path: Path, own_dataset: Path) -> None:
    path = write_run(tmp_path, own_dataset)
    done = light("plan", "seed=5", str(path), "--ranks", "2", "schedule.steps=77")
    assert done.returncode == 2  # the first word is the file
    done = light("plan", str(path), "--ranks", "2", "schedule.steps=77")
    assert done.returncode == 0, done.stderr
    assert "77 steps" in done.stdout


def test_data_show_and_verify(own_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", str(own_dataset)]) == 0
    assert "is good" in capsys.readouterr().out
    assert main(["data", "show", str(own_dataset), "--rows", "1", "--seq-len", "16"]) == 0
    assert "row" in capsys.readouterr().out
    assert main(["data", "verify", str(own_dataset / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_corpus_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.yaml").write_text("name: x\nsourcez: []\n")
    assert main(["data", "build", str(tmp_path / "corpus.yaml")]) == 2
    assert "sourcez" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "run.yaml", "--rank", "2", "--color"], "unknown: --color"),
        (["doctor", "a=b"], "unknown: a=b"),
        (["trian"], "unknown: 'trian'; did you mean 'train'?"),
        (["data", "biuld"], "unknown: 'biuld'; did you mean 'build'?"),
        (["train", "run.yaml", "--resume", "atuo"], "unknown: 'atuo'; did you mean 'auto'?"),
        (["xyzzy"], "choose from"),
        (["data"], "text to a dataset folder"),
        (["train", "run.yaml", "--learning_rate", "1e-4"], "--learning_rate (write optimizer.lr) 1e-4"),
    ],
)
def test_what_nobody_knows_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_alone_gives_the_next_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for verb in ("doctor", "demo", "data build", "plan", "train", "generate"):
        assert f"\n  llmtrain {verb} " in said
    assert "llmtrain --help" in said


def test_numbers_below_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_run(tmp_path, tmp_path))
    assert main(["train", path, "--ranks", "0"]) == 2
    assert capsys.readouterr().err == "error: --ranks = 0 (command line): must be 1 or more\n"
    assert main(["plan", path, "--ranks", "-1"]) == 2


def test_ranks_are_not_started_inside_a_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", str(write_run(tmp_path, tmp_path)), "--ranks", "2"]) == 2
    assert "2 ranks that torchrun has started; leave --ranks out\n" in capsys.readouterr().err
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name)
    for name, value in {"STEP_ID": "0", "PROCID": "3", "NTASKS": "4"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(["train", str(write_run(tmp_path, tmp_path)), "--ranks", "2"]) == 2
    assert "leave --ranks out, or take a shell that is one task: srun --ntasks 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"},  # srun --pty bash
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "pod-0"},  # a pod of one
        {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    ],
)
def test_one_task_is_a_shell_in_which_ranks_are_started(
    tmp_path: Path, own_dataset: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    asked = []
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("llmtrain.launch.launch", lambda *words: asked.append(words[1]) or 0)
    assert main(["train", str(write_run(tmp_path, own_dataset)), "--ranks", "2"]) == 0
    assert asked == [2]
    told = rank_environment(1, 2, 5, environ)
    assert world_from_environment(told) == World(1, 2, 1, 2, "llmtrain")
    assert (told["MASTER_ADDR"], "TORCHELASTIC_USE_AGENT_STORE" in told) == ("127.0.0.1", False)


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        main(["plan", str(tmp_path / "no.yaml"), "--debug"])


def test_the_traceback_of_what_nobody_foresaw_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("DB_PASSWORD", "correct-horse-battery")
    assert main(["data", "verify", "nowhere"]) == 2
    capsys.readouterr()
    token = "hf_" + "aB3dE6gH9j" * 3
    sys.excepthook(ValueError, ValueError(f"{token} correct-horse-battery"), None)
    assert capsys.readouterr().err == "ValueError: [secret] [secret]\n"


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", "--version"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.startswith("llmtrain ")


def test_an_interrupted_build_says_that_it_can_go_on(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data_prep.build.build", interrupted)
    assert main(["data", "build", "corpus.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted: what is done is kept, the same command goes on\n"


PRINTS = """
import os, sys
from llmtrain.config.streams import steady_streams
steady_streams(stdout=True)
for number in (1, 2):
    stream = sys.stdout if number == 1 else sys.stderr
    for line in range(3):
        print("step", line, "日本", file=stream, flush=True)
    os.write(number, b"raw")
file = open("file", "w")
sys.exit(0 if file.fileno() > 2 else 5)
"""


@pytest.mark.parametrize("ends", ["| head -n 0", ">&- 2>&-", "> /dev/full", "> out.txt"])
def test_work_outlasts_whoever_reads_what_it_prints(tmp_path: Path, ends: str) -> None:
    (tmp_path / "prints.py").write_text(PRINTS, encoding="utf-8")
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} prints.py {ends}; echo ${{PIPESTATUS[0]}} > status"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (tmp_path / "status").read_text() == "0\n", done.stderr
    assert (tmp_path / "file").read_text() == "", "a library's prints went into a file"
    if "out" in ends:
        assert (tmp_path / "out.txt").read_text() == "step 0 \\u65e5\\u672c\n" + "".join(
            f"step {line} \\u65e5\\u672c\n" for line in (1, 2)
        ) + "raw"


@pytest.mark.parametrize("ends", ["| head -n 1", ">&-", "2>&- | head -n 1"])
def test_a_verb_that_prints_ends_quietly_with_its_reader(tmp_path: Path, ends: str) -> None:
    command = f"{sys.executable} -m llmtrain plan 125m {ends}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("door", ["llmtrain", "llmtrain.train"])
def test_a_locale_that_is_not_utf_8_changes_no_name_of_a_file(tmp_path: Path, door: str) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = write_run(tmp_path, tmp_path / "nowhere", name="größe").rename(tmp_path / "läuft.yaml")
    words = ["plan"] if door == "llmtrain" else []
    done = subprocess.run(
        [sys.executable, "-m", door, *words, path.name],
        cwd=tmp_path, env={**os.environ, **ascii_only}, capture_output=True, encoding="ascii", timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: name = 'gr\\xf6\\xdfe' (l\\xe4uft.yaml:"), done.stderr
