"""What the demo's minutes buy: bits per byte of held-out files against seconds of training, before and now.

    python benchmarks/demo.py [--ranks 2] [--points 6] [--record]

Both recipes train on the same files of the standard library and are scored on all tokens of the same held-out
files. `xz`, and a 5-gram model that has counted the whole training text, stand beside them. The seconds are
those of the steps, so it wants a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from record import machine, publish  # noqa: E402
from text_models import ngram_bits  # noqa: E402

from llmtrain.data.dataset import open_dataset  # noqa: E402
from llmtrain.data.vocabulary import token_bytes  # noqa: E402
from llmtrain.demo import texts_of, xz_bits_per_byte  # noqa: E402
from llmtrain.report.metrics import read_metrics  # noqa: E402

ALL_ROWS = 100_000  # more than there are: every held-out token counts
BEFORE = """
name: before
model:
  config: {model_type: llama, num_hidden_layers: 4, hidden_size: 256, intermediate_size: 768,
    num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 128, tie_word_embeddings: true}
data: {train: [{path: data, split: train}], eval: [{path: data, split: valid}], seq_len: 128}
batch: {rows: 16}
schedule: {steps: 360, warmup: 0.05, decay: cosine, min_lr_ratio: 0.1}
optimizer: {lr: 3e-3, betas: [0.9, 0.95], weight_decay: 0.1, clip: 1.0}
precision: bf16
deepspeed: zero1
"""  # recipes/demo.yaml of 0.3.1, with 8,192 token ids


@dataclass(frozen=True)
class Curve:
    """One recipe's way: (seconds of training, bits per byte) at each evaluation, and how much it read."""

    tokens: int
    points: list[tuple[float, float]]


def build(vocabulary: int | None, folder: Path) -> None:
    """The demo's dataset, with another number of token ids when one is given."""
    overrides = [] if vocabulary is None else [f"tokenizer={{train: bpe, vocab_size: {vocabulary}}}"]
    _llmtrain("data", "build", str(ROOT / "recipes" / "stdlib.yaml"), f"output={folder}", *overrides)


def train(recipe: dict[str, Any], dataset: Path, ranks: int, points: int) -> Curve:
    """Trains the recipe with `points` evaluations on all held-out tokens."""
    folder = dataset.parent / f"run-{recipe['name']}"
    every = max(1, recipe["schedule"]["steps"] // points)
    for part in ("train", "eval"):
        recipe["data"][part][0]["path"] = str(dataset)
    recipe |= {"output_dir": str(folder), "eval": {"every": every, "rows": ALL_ROWS}}
    file = dataset.parent / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    _llmtrain("train", str(file), "--ranks", str(ranks))
    seconds, found, tokens = 0.0, [], 0
    for record in read_metrics(folder / "metrics.jsonl"):
        seconds += record.get("step_s", 0.0)
        tokens = max(tokens, record.get("tokens", 0))
        if "bits_per_byte" in record:
            found.append((seconds, record["bits_per_byte"]))
    return Curve(tokens, found)


def floors(dataset: Path) -> dict[str, float]:
    """What needs no network pays for the held-out files, in bits per byte."""
    held, known = open_dataset(str(dataset), "valid"), open_dataset(str(dataset), "train")
    lengths = token_bytes(held.tokenizer_folder)
    assert lengths is not None, "the demo's tokenizer tells each token's bytes"
    test = np.concatenate([shard.tokens for shard in held.shards])
    bits = ngram_bits(np.concatenate([shard.tokens for shard in known.shards]), test, held.vocab_size)
    documents = texts_of(held)
    return {
        "xz -9e, each file alone": xz_bits_per_byte(documents),
        "xz -9e, all files in one": xz_bits_per_byte(documents, together=True),
        "5-gram model of the training text": bits / int(lengths[test].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--points", type=int, default=6, help="evaluations on the way")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="demo-") as scratch:
        recipes = {"before": yaml.safe_load(BEFORE)}
        recipes["now"] = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text()) | {"name": "now"}
        vocabularies = {"before": 8192, "now": None}
        curves = {}
        for name, recipe in recipes.items():
            dataset = Path(scratch, name)
            build(vocabularies[name], dataset)
            curves[name] = train(recipe, dataset, chosen.ranks, chosen.points)
        body = table(curves, floors(Path(scratch, "now")), chosen.ranks)
    publish(
        "The demo: bits per byte against seconds of training",
        "python " + " ".join(sys.argv),
        body,
        chosen.record,
    )


def table(curves: dict[str, Curve], beside: dict[str, float], ranks: int) -> str:
    """The curves side by side, then the floors."""
    lines = [f"{machine()}; {ranks} ranks", ""]
    read = ", ".join(f"{name} {curve.tokens / 1e6:.2f} M" for name, curve in curves.items())
    lines += [f"Tokens read in training: {read}. Scored on all held-out tokens.", ""]
    lines += ["| recipe | " + "seconds: bits per byte | " * len(next(iter(curves.values())).points)]
    lines += ["|---" * (1 + len(next(iter(curves.values())).points)) + "|"]
    for name, curve in curves.items():
        cells = [f"{seconds:.0f}: {bits:.3f}" for seconds, bits in curve.points]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| beside it, on the same files | bits per byte |", "|---|---|"]
    lines += [f"| {name} | {bits:.3f} |" for name, bits in beside.items()]
    return "\n".join(lines)


def _llmtrain(*words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "llmtrain", *words], check=True, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    main()
