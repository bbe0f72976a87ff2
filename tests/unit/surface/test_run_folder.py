from __future__ import annotations

import datetime
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import write_run

from llmtrain.config.load import load_run
from llmtrain.errors import InputError
from llmtrain.plan.plan import make_plan
from llmtrain.report.run_folder import RunFolder, resolved_yaml


@pytest.fixture
def quiet_log() -> Iterator[logging.Logger]:
    log = logging.getLogger("llmtrain")
    before = list(log.handlers), log.propagate, log.level
    yield log
    for handler in log.handlers:
        handler.close()
    log.handlers, log.propagate, log.level = before


def test_the_resolved_run_loads_to_the_same_run_and_tells_origins(tmp_path: Path) -> None:
    path = write_run(tmp_path, tmp_path / "data", seed=7)
    plan = make_plan(load_run(path, ["optimizer.lr=1e-5", "model.config.hidden_act=silu"]), 2, "cpu")
    folder = RunFolder(tmp_path / "out")
    folder.write(plan)
    assert load_run(folder.config).config == plan.run
    text = folder.config.read_text()
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["lr"].endswith("# command line")
    assert lines["seed"].endswith(f"# {path}:{1 + path.read_text().splitlines().index('seed: 7')}")
    assert lines["clip"].endswith("# default")
    assert "# auto" in lines["micro"]
    assert json.loads(folder.ds_config.read_text()) == plan.deepspeed


def test_a_later_start_writes_over_no_configuration_of_an_earlier_one(tmp_path: Path) -> None:
    path, folder = write_run(tmp_path, tmp_path / "data"), RunFolder(tmp_path / "run")

    def write(start: int, goes_on: bool, lr: float, ranks: int = 1) -> str:
        return folder.write(make_plan(load_run(path, [f"optimizer.lr={lr}"]), ranks, "cpu"), start, goes_on)

    def lr_in(name: str) -> float:
        return load_run(folder.path / name).config.optimizer.lr

    assert write(1, False, 1e-3) == "config.yaml"
    assert write(2, False, 2e-3) == "config.yaml", "nothing of start 1 is left but how it was meant"
    assert lr_in("starts/1/config.yaml") == 1e-3
    first = folder.config.read_bytes()
    assert write(3, True, 2e-3) == "config.yaml", "the same again"
    assert write(4, True, 3e-3) == "starts/4/config.yaml"
    assert write(5, True, 2e-3, ranks=2) == "starts/5/config.yaml", "another world"
    assert write(6, True, 3e-3) == "starts/4/config.yaml"
    assert folder.config.read_bytes() == first
    assert (lr_in("config.yaml"), lr_in("starts/4/config.yaml")) == (2e-3, 3e-3)
    assert json.loads((folder.path / "starts/5/ds_config.json").read_text())["train_batch_size"] == 4


def test_odd_values_survive_the_resolved_yaml(tmp_path: Path) -> None:
    changes = {
        "model": {
            "config": {
                "model_type": "llama",
                "rope_scaling": {"type": "yes", "factors": [1.5, 2]},
                "x": "a: b # c",
            }
        }
    }
    run = load_run(write_run(tmp_path, tmp_path / "my data: 1", **changes)).config
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(run, {}))
    assert load_run(again).config == run


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = make_plan(load_run(write_run(tmp_path, tmp_path)), 1, "cpu")
    with pytest.raises(InputError, match=r"output_dir = .*file/run: can't be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").write(plan)


def test_a_new_folder_is_private_and_an_open_one_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        plan = make_plan(load_run(write_run(tmp_path, tmp_path)), 1, "cpu")
        RunFolder(tmp_path / "new").write(plan)
        (tmp_path / "open").mkdir()
        assert capsys.readouterr().err == ""
        RunFolder(tmp_path / "open").write(plan)
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    said = f"warning: {tmp_path / 'open'} can be read by everyone on this machine"
    assert capsys.readouterr().err.startswith(said)


def test_each_rank_has_a_log_and_libraries_talk_into_it(
    tmp_path: Path, quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.log_to_file(3)
    quiet_log.info("opened")
    with folder.talk_to_log(3):
        print("chatter")
    assert "chatter" not in capsys.readouterr().out
    text = (tmp_path / "logs" / "rank-3.log").read_text()
    when = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d) INFO opened", text)
    assert when and abs(datetime.datetime.fromisoformat(when[1]).timestamp() - time.time()) < 600
    assert "chatter" in text


def test_a_log_on_a_full_disk_lacks_lines_and_says_nothing(
    tmp_path: Path, quiet_log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.logs.mkdir(parents=True)
    (folder.logs / "rank-0.log").symlink_to("/dev/full")
    folder.log_to_file(0)
    quiet_log.warning("nobody reads this")
    assert "".join(capsys.readouterr()) == ""
    with pytest.raises(OSError):
        quiet_log.handlers.pop().close()
