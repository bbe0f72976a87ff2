"""The card says what the model was trained on and scored, and no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from export_models import build_model, save_model

from llmtrain.checkpoint import Checkpoint
from llmtrain.export.card import model_card


def test_card_tells_data_scores_and_run_and_hides_tokens(tmp_path: Path) -> None:
    secret = "hf_" + "Q" * 30
    path = save_model(
        build_model("llama"),
        tmp_path,
        data={"train": [{"name": "stdlib", "tokens": 123456, "weight": 2.0}], "note": "a | b"},
        run_yaml=f"name: tiny\n# {secret}\n",
    )
    lines = [
        {"step": 2, "eval_loss": 9.0, "perplexity": 8103.1, "bits_per_byte": 4.0},
        {"step": 3, "loss": 1.0},
        {"step": 3, "eval_loss": 2.5, "perplexity": 12.18, "bits_per_byte": 1.125},
        {"step": 4, "eval_loss": 1.0, "perplexity": 2.72, "bits_per_byte": 0.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "eval'
    (tmp_path / "metrics.jsonl").write_text(text)
    card = model_card(Checkpoint(path), "me/tiny", 12345, "bfloat16")
    assert card.startswith("---\nlibrary_name: transformers\n") and "license: unknown\n" in card
    assert "12,345 parameters, stored as bfloat16" in card and "Its license is unknown" in card
    assert "| name | tokens | weight |\n| --- | --- | --- |\n| stdlib | 123,456 | 2.0 |\n" in card
    assert "| perplexity | 12.1800 |" in card and "after step 3" in card and "2.72" not in card
    assert "3,072 tokens in 3 optimizer steps of 4 rows of 8 tokens" in card
    assert "name: tiny" in card and secret not in card


@pytest.mark.parametrize(
    "source, base, named",
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        (f"/cache/hub/models--Qwen--Qwen3-0.6B/snapshots/{'0' * 40}", "Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("/models/mine/", None, "mine"),
        ("runs/exported", None, "exported"),
    ],
)
def test_card_names_the_base_model_and_no_path(
    tmp_path: Path, source: str, base: str | None, named: str
) -> None:
    path = save_model(
        build_model("llama"),
        tmp_path,
        run_yaml=f"model: {{source: {source}}}\n",
        data={"document_end": "<eos>"},
    )
    card = model_card(Checkpoint(path), "me/tiny", 12345, "bfloat16")
    front = card.split("---")[1]
    assert (f"base_model: {base}\n" in front) if base else ("base_model" not in front)
    assert f"It was trained from the weights of `{named}`." in card
    assert "- document_end: `<eos>`\n" in card
