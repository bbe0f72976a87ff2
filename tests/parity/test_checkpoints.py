"""Saved in one topology, loaded in another: the run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROGRAM = "parity/rank_checkpoints.py"

# ranks, pipeline, template
LAYOUTS: dict[str, tuple[int, int, str]] = {
    "zero0 dp2": (2, 1, "zero0"),
    "zero1 dp1": (1, 1, "zero1"),
    "zero1 dp2": (2, 1, "zero1"),
    "zero2 dp2": (2, 1, "zero2"),
    "zero2 dp3": (3, 1, "zero2"),
    "zero3 dp2": (2, 1, "zero3"),
    "zero3 dp4": (4, 1, "zero3"),
    "pp2": (2, 2, "pipeline"),
    "pp2 zero0": (2, 2, "zero0"),
    "pp2 dp2": (4, 2, "pipeline"),
}
SAVED_AT = ["zero0 dp2", "zero1 dp2", "zero3 dp2", "pp2", "pp2 dp2"]
LOADED_AT = [layout for layout in LAYOUTS if layout != "zero2 dp3"]  # 8 rows are no three shares


def _run(worlds: Any, what: str, layout: str, folder: Path, **more: Any) -> list[dict[str, Any]]:
    ranks, pipeline, template = LAYOUTS[layout]
    return worlds.run(
        f"{PROGRAM}:{what}",
        ranks,
        folder=str(folder),
        deepspeed=template,
        parallel={"pipeline": pipeline},
        **more,
    )


@pytest.mark.parametrize("saved_at", SAVED_AT)
def test_fp32_goes_on_equal_in_every_topology(worlds: Any, tmp_path: Path, saved_at: str) -> None:
    settings = {"model": "llama-tied", "precision": "fp32"}
    expected = _run(worlds, "save_at", saved_at, tmp_path, **settings)[0]
    for loaded_at in LOADED_AT:
        for result in _run(worlds, "load_at", loaded_at, tmp_path, **settings):
            if loaded_at == saved_at:
                assert result == expected, "the same topology must go on bit for bit"
            else:
                assert result["held_out"] == pytest.approx(expected["held_out"], rel=1e-6), loaded_at
                assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), loaded_at


@pytest.mark.parametrize("saved_at", ["zero0 dp2", "zero1 dp2", "zero3 dp2", "pp2"])
def test_bf16_goes_on_in_every_topology(worlds: Any, tmp_path: Path, saved_at: str) -> None:
    """Saved behind the loop: written only when the weights had changed three more times."""
    settings = {"model": "llama", "precision": "bf16"}
    expected = _run(worlds, "save_at", saved_at, tmp_path, behind=True, **settings)[0]
    for loaded_at in ("zero0 dp2", "zero1 dp2", "zero2 dp2", "zero3 dp2", "pp2"):
        for result in _run(worlds, "load_at", loaded_at, tmp_path, **settings):
            if loaded_at == saved_at:
                assert result == expected, "the same topology must go on bit for bit"
            else:
                # weights are equal (same masters); sums of gradients are taken in another order
                assert result["held_out"] == pytest.approx(expected["held_out"], rel=1e-4), loaded_at
                assert result["losses"] == pytest.approx(expected["losses"], rel=5e-3), loaded_at


@pytest.mark.parametrize("model", ["gemma3", "mixtral", "gpt_neox"])
def test_other_families_change_topology(worlds: Any, tmp_path: Path, model: str) -> None:
    settings = {"model": model, "precision": "fp32"}
    expected = _run(worlds, "save_at", "zero3 dp2", tmp_path, **settings)[0]
    for loaded_at in ("zero1 dp2", "pp2"):
        (result, *_) = _run(worlds, "load_at", loaded_at, tmp_path, **settings)
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), loaded_at


def test_three_ranks_give_and_take(worlds: Any, tmp_path: Path) -> None:
    settings = {"model": "llama", "precision": "fp32", "batch": {"rows": 12, "micro": 1}}
    expected = _run(worlds, "save_at", "zero2 dp3", tmp_path / "three", **settings)[0]
    _run(worlds, "save_at", "zero3 dp2", tmp_path / "two", **settings)
    for loaded_at, folder in (("pp2", "three"), ("zero2 dp3", "two")):
        (result, *_) = _run(worlds, "load_at", loaded_at, tmp_path / folder, **settings)
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), loaded_at
