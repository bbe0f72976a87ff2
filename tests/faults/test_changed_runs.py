"""Whole runs that go on with other settings, or whose input is found wrong late: what they say and keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from rows_of_state import differs
from whole_runs import DROPOUT, Lab, committed, ledger
from worlds import RankFailedError, Worlds


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), worlds)


def log_of(run: Path) -> str:
    return (run.parent / "run" / "logs" / "rank-0.log").read_text()


def lr_in(path: Path) -> float:
    return float(yaml.safe_load(path.read_text())["optimizer"]["lr"])


def test_a_run_that_goes_on_with_other_settings_says_each_and_keeps_how_it_began(lab: Lab) -> None:
    run = lab.run(schedule={"steps": 4}, optimizer={"lr": 0.003})
    folder = run.parent / "run"
    assert not lab.forked(run, 1)
    first = (folder / "config.yaml").read_bytes()
    changed = ("optimizer.lr=1e-4", "schedule.steps=6", "health.skips=7")
    assert not lab.forked(run, 1, arguments=changed)
    said = log_of(run)
    for line in (
        "optimizer.lr 0.003 → 0.0001 (command line)",
        "schedule.steps 4 → 6 (command line)",
        "health.skips 20 → 7 (command line)",
    ):
        assert line in said and line in ledger_lines(run, 1)
    assert "learning rate of the next step 0.0003 → 1.86e-05: its cosine decay is drawn anew" in said
    assert "to end at step 6, not 4" in said
    assert (folder / "config.yaml").read_bytes() == first
    assert lr_in(folder / "config.yaml") == 0.003
    starts = ledger(run)["starts"]
    assert [start["config"] for start in starts] == ["config.yaml", "starts/2/config.yaml"]
    assert lr_in(folder / "starts/2/config.yaml") == 1e-4
    assert json.loads((folder / "starts/2/ds_config.json").read_text())["train_batch_size"] == 4

    assert not lab.forked(run, 1, arguments=(*changed, "optimizer.weight_decay=0.5", "schedule.steps=5"))
    said = log_of(run)[len(said) :]
    assert "nothing left to do: step 6 is in" in said
    assert "optimizer.weight_decay 0.1 → 0.5 (command line) has no effect: every step is done" in said
    assert "schedule.steps 6 → 5 (command line) has no effect" in said and "optimizer.lr" not in said
    assert "output_dir=other starts another run" in said
    assert len(ledger(run)["starts"]) == 2 and not (folder / "starts/3").exists()


def ledger_lines(run: Path, start: int) -> list[str]:
    from llmtrain.report.changes import Change

    return [str(Change(**change)) for change in ledger(run)["starts"][start]["changes"]]


def test_input_that_is_found_wrong_late_leaves_no_run_folder(lab: Lab) -> None:
    model = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32}
    model |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    run = lab.run(model={"config": model}, batch={"rows": 8192})
    assert lab.worlds.run("faults/rank_faulty.py:train", 1, fault={}, arguments=[str(run)]) == [2]
    assert not (run.parent / "run").exists()
    said = lab.forked(run, 2)
    assert "ended with 2" in said and "data.mask_documents = True" in said and "goodput" not in said, said
    assert "warning: batch.rows = 8,192" in said and "each step repeats rows" in said, "said at the start"
    assert not (run.parent / "run").exists()


def test_a_stop_leaves_the_step_it_comes_in_and_the_run_ends_as_if_it_had_not(lab: Lab) -> None:
    changes = {
        "deepspeed": "zero3",
        "batch": {"rows": 8, "micro": 1},
        "schedule": {"steps": 3},
        "model": {"config": DROPOUT},
        "data": {"train": [{"path": str(lab.dataset)}], "seq_len": 32},
    }
    golden, run = lab.golden(**changes), lab.run(**changes)
    fault = {"rank": 1, "place": "forward", "step": 2, "kind": "ask", "mark": str(run.parent / "struck")}
    with pytest.raises(RankFailedError, match="ended with 75") as caught:
        lab.worlds.run("faults/rank_faulty.py:train_asking", 2, fault=fault, arguments=[str(run)])
    assert "stopped on request (SIGTERM) after step 1 of 3" in str(caught.value), "not after step 2"
    assert committed(run) == [1]
    assert not lab.forked(run) and not differs(run, golden)
