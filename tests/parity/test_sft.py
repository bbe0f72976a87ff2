"""Fine-tuning on conversations: from a corpus file to losses, equal to transformers with labels of -100."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.build import build
from data_prep.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "data_prep"))
from chat_templates import FAMILIES, chat_folder  # noqa: E402

PROGRAM = "parity/rank_sft.py"
STEPS = 6


def sums(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Conversations with something to learn: a digit goes up by one."""
    rows = []
    for _ in range(count):
        messages = []
        for _ in range(rng.randint(1, 3)):
            digit = rng.randint(0, 8)
            messages += [
                {"role": "user", "content": f"after {digit}"},
                {"role": "assistant", "content": f"{digit + 1}"},
            ]
        rows.append({"messages": messages})
    return rows


@pytest.fixture(scope="module")
def tuned(worlds: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a dataset of conversations rendered by its template."""
    folder = tmp_path_factory.mktemp("sft")
    family = FAMILIES["chatml"]
    model = chat_folder(folder / "model", family.template, family.special)
    vocab_size = load_tokenizer(model).get_vocab_size()
    worlds.run(f"{PROGRAM}:make_model", folder=str(model), vocab_size=vocab_size)
    rows = sums(random.Random(4), 80)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = {
        "name": "sums",
        "output": str(folder / "data"),
        "kind": "chat",
        "sources": [{"path": str(folder / "rows.jsonl")}],
        "tokenizer": {"source": str(model)},
        "splits": {},
        "workers": 1,
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(corpus))
    build(folder / "corpus.yaml")
    return folder


def run_file(folder: Path, name: str, **sections: Any) -> str:
    content = {
        "name": name,
        "output_dir": str(folder / name),
        "seed": 5,
        "model": {"source": str(folder / "model")},
        "data": {"train": [{"path": str(folder / "data")}], "seq_len": 48, "too_long": "truncate_left"},
        "batch": {"rows": 4, "micro": 1},
        "schedule": {"steps": STEPS, "warmup": 0, "decay": "constant"},
        "optimizer": {"lr": 5e-3, "clip": 0.5},
        "precision": "fp32",
    } | sections
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_losses_are_those_of_transformers_with_ignored_labels(worlds: Any, tuned: Path) -> None:
    expected = worlds.run(f"{PROGRAM}:by_hand", run=run_file(tuned, "by-hand"))[0]
    assert expected[-1] < expected[0], "nothing was learnt, so nothing was compared"
    tokenizer = load_tokenizer(tuned / "model")
    ends = [tokenizer.token_to_id(token) for token in ("</s>", "<|im_end|>")]
    for ranks, sections in [
        (1, {"deepspeed": "zero1"}),
        (2, {"deepspeed": "zero3"}),
        (2, {"deepspeed": "pipeline", "parallel": {"pipeline": 2}}),
    ]:
        run = run_file(tuned, f"{sections['deepspeed']}-{ranks}", **sections)
        for losses in worlds.run(f"{PROGRAM}:train", ranks, run=run):
            assert losses == pytest.approx(expected, rel=1e-5), sections
        log = (Path(run).with_suffix("") / "logs" / "rank-0.log").read_text()
        assert "20 of 80 conversations are longer than a row of 48 tokens, the longest 65: 20 cut from" in log
        (saved,) = (tuned / Path(run).stem / "checkpoints").glob("*/generation_config.json")
        assert json.loads(saved.read_text()) == {"eos_token_id": ends}, "what the template and the source say"
