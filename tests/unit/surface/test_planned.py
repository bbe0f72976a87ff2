from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small_runs import ROOT, SHAPE, write_run

from llmtrain.errors import ConfigError
from llmtrain.plan.compute import PEAK_TFLOPS
from llmtrain.report.planned import DEVICE_GB, planned


def test_every_device_with_a_peak_has_its_memory() -> None:
    assert set(DEVICE_GB) == {name for name, _ in PEAK_TFLOPS}


def test_the_page_adds_up(tmp_path: Path, own_dataset: Path) -> None:
    report = planned(str(write_run(tmp_path, own_dataset)), ["batch.rows=8"], 2, "cpu")
    assert report.as_text().splitlines()[-1] == "(every value and where it came from: --origins)"
    assert len(report.as_text().splitlines()) < 24, "the sums fit a screen"
    text = report.as_text(origins=True)
    assert "8 rows × 32 tokens = 256 tokens" in text
    assert "6 steps = 1,536 tokens" in text
    assert "epochs" in text
    assert report.memory is not None
    assert f"{report.shape.parameters:,} parameters" in text  # type: ignore[union-attr]
    lines = dict(line.split("  ", 1) for line in text.splitlines() if " = " in line and "  " in line)
    assert lines["batch.rows = 8"].strip() == "command line"
    assert lines["precision = fp32"].strip().startswith(str(tmp_path / "run.yaml"))
    assert lines["ds.train_batch_size = 8"].strip() == "run: batch.rows"


def test_json_has_the_same(tmp_path: Path, own_dataset: Path) -> None:
    content = json.loads(planned(str(write_run(tmp_path, own_dataset)), [], 2, "h200").as_json())
    assert content["batch"] == {"rows": 4, "micro": 2, "accumulation": 1, "dp": 2}
    assert content["tokens"] == 6 * 4 * 32
    assert content["fits"] is True
    assert content["flops_per_token"]["6N+12Lds"] > content["flops_per_token"]["6N+6Lds"]
    assert content["origins"]["optimizer.lr"] == "default"
    assert content["run"]["schedule"]["steps"] == 6


def test_a_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    report = planned(str(ROOT / "recipes" / "8b.yaml"), [], 1, "a10")
    assert report.fits is False
    assert "DOES NOT FIT" in report.as_text()


def test_the_copy_that_saving_takes_is_counted_and_too_small_a_machine_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, told in ((2**50, False), (2**33, True), (None, False)):
        monkeypatch.setattr("llmtrain.report.planned.available_bytes", lambda free=free: free)
        report = planned(str(ROOT / "recipes" / "8b.yaml"), [], 16, "h200")
        assert report.memory is not None and report.shape is not None
        assert report.memory.copy == 12 * report.shape.parameters // 16
        text = " ".join(report.as_text().split())
        copy = report.memory.copy / 2**30
        assert f"and {copy:.2f} GiB of main memory for the copy from which a save is written" in text
        warning = f"8 such ranks need {8 * copy:.2f} GiB, of which this machine has 8.00 GiB free"
        assert (warning in text) is told
    assert json.loads(report.as_json())["memory_bytes_per_rank"]["copy"] == report.memory.copy


def test_a_plan_before_the_dataset_says_what_it_assumes(tmp_path: Path) -> None:
    report = planned(str(write_run(tmp_path, tmp_path / "nowhere")), [], 1, "h200")
    assert report.memory is not None
    assert "taken as 50,304 tokens until the dataset is built" in report.as_text()
    assert report.epoch_tokens is None


def test_a_models_own_config_is_read_from_its_folder(tmp_path: Path, own_dataset: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 4000}))
    report = planned(str(write_run(tmp_path, own_dataset, model={"source": str(folder)})), [], 1, "cpu")
    assert report.shape is not None
    assert report.shape.vocab == 4000


def test_an_unknown_device_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = str(write_run(tmp_path, tmp_path))
    near = {"h2000": "'h200'", "h2oo": "'h200'", "a1oo": "'a100'", "rtx490": "'rtx 4090'"}
    for typed, meant in near.items():
        with pytest.raises(ConfigError, match=f"--device = '{typed}' .*did you mean {meant}") as caught:
            planned(path, [], 1, typed)
        assert len(str(caught.value)) < 90, "not all thirty"
    with pytest.raises(ConfigError, match="cpu, or a GPU: a100, h100"):
        planned(path, [], 1, "tpu-v5")
    assert planned(path, [], 1, "NVIDIA H100 80GB HBM3").device_bytes == 80 * 10**9


def test_a_packing_says_what_it_pads_and_crops(tmp_path: Path, own_dataset: Path) -> None:
    path = str(write_run(tmp_path, own_dataset))
    for packing in ("best_fit", "best_fit_crop"):
        text = planned(path, [f"data.packing={packing}"], 1, "cpu").as_text()
        padded, cropped = re.search(
            rf"rows by {packing}: ([\d.]+)% .*, ([\d.]+)% of the tokens", text
        ).groups()  # type: ignore[union-attr]
        assert (float(padded) > 0) is (packing == "best_fit")
        assert (float(cropped) > 0) is (packing == "best_fit_crop")
    assert "rows by" not in planned(path, [], 1, "cpu").as_text()


def test_a_mixture_says_shares_epochs_and_repetitions_at_the_end_of_the_run(
    tmp_path: Path, own_dataset: Path
) -> None:
    train = [
        {"path": str(own_dataset), "name": "own", "tokens": 256},
        {"path": str(own_dataset), "split": "valid", "name": "rest"},
    ]
    path = str(write_run(tmp_path, own_dataset, data={"train": train, "seq_len": 32}))
    report = planned(path, [], 1, "cpu")
    found = json.loads(report.as_json())["sources"]
    assert [(share["name"], share["rows"]) for share in found] == [("own", 8), ("rest", 16)]
    assert re.search(r"data +own: 33.33% = 8 rows = \d+\.\d\d epochs\n +rest: 66.67%", report.as_text())
    assert found[1]["epochs"] > found[0]["epochs"] > 0
    with pytest.raises(ConfigError, match=r"data.train.0.tokens = 768.0 \(command line\).*leaves nothing"):
        planned(path, ["data.train.0.tokens=768"], 1, "cpu")


def test_a_batch_that_is_hardly_meant_is_warned_of(tmp_path: Path, own_dataset: Path) -> None:
    path = str(write_run(tmp_path, own_dataset))
    assert planned(path, [], 1, "cpu").warnings == ()
    report = planned(path, ["batch.rows=4194304"], 1, "cpu")
    large, many, repeated = report.warnings
    rows = "batch.rows = 4,194,304 (command line)"
    assert large.startswith(f"{rows} makes steps of 134,217,728 tokens, more than any published model")
    assert many == f"{rows}: each rank makes 32,768 micro-batches of 128 before the weights move once"
    assert repeated.startswith(f"{rows}, and all data together has ")
    assert report.as_text().count("\nWARNING  ") == 3
    changes = ["batch.rows=4194304", "parallel.pipeline=2", "deepspeed=pipeline"]
    told = planned(path, changes, 2, "cpu").warnings[1]
    assert told.endswith("once; in a pipeline a stop request waits for all of them")
