"""The two files, commented: what each number is, and what else could stand there."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from llmtrain.errors import ConfigError, Problem
from llmtrain.init.sizing import PASSES, Machine, Sizes, Text


def safe_name(path: str) -> str:
    """A run's name from a folder's."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).resolve().name).strip("-._")
    return re.sub(r"\.(jsonl|json|txt|md|parquet|gz|zst|bz2|xz|csv)\b", "", name) or "mine"


def paths(name: str) -> tuple[Path, Path]:
    """The corpus file and the run file of a name. Raises ConfigError when one is there already."""
    both = Path(f"{name}-corpus.yaml"), Path(f"{name}.yaml")
    there = [
        Problem("file", str(path), "init", "is there already and is never overwritten; give another --name")
        for path in both
        if path.exists()
    ]
    if there:
        raise ConfigError(there)
    return both


def write(files: dict[Path, str]) -> None:
    """Writes new files, all or none."""
    made: list[Path] = []
    try:
        for path, text in files.items():
            with open(path, "x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except BaseException:
        for path in made:
            os.unlink(path)
        raise


def corpus_file(name: str, text: Text, sizes: Sizes, model: str | None) -> str:
    """What `llmtrain data build` reads."""
    quoted = _scalar(text.path)
    if text.messages:
        field = "" if text.messages == "messages" else f", field: {{messages: {_scalar(text.messages)}}}"
        return f"""\
# Conversations, rendered by the model's own chat template; only what the assistant says is learnt.
# Next:  llmtrain data build {name}-corpus.yaml   then  llmtrain data show data/{name}
name: {name}
output: data/{name}
kind: chat                     # or prompt_completion: columns prompt and completion
sources:
  - {{path: {quoted}{field}}}
tokenizer: {{source: {_scalar(model or "")}}}
samples:
  max_tokens: {sizes.seq_len}            # as many as data.seq_len of the run
  too_long: drop               # or truncate
{_splits(text)}
"""
    tokenizer = f"{{train: bpe, vocab_size: {sizes.vocab}}}   # or {{source: a Hub id or a folder}}"
    if model:
        tokenizer = f"{{source: {_scalar(model)}}}   # the model's own"
    return f"""\
# {text.files:,} files, about {_count(text.bytes)} bytes of text: some {_count(sizes.text_tokens)} tokens.
# Next:  llmtrain data build {name}-corpus.yaml   then  llmtrain data show data/{name}
name: {name}
output: data/{name}
sources:                       # more: another line each; `weight: 2` reads one twice
  - {{path: {quoted}}}
tokenizer: {tokenizer}
steps: []                      # filters, duplicates, personal data, language: recipes/web-corpus.yaml
{_splits(text)}
"""


def _splits(text: Text) -> str:
    if not text.held_out:
        return "splits: {}                     # too few documents to hold any out; else {valid: 0.01}"
    return f"splits: {{valid: {text.held_out}}}          # share that is held out, never trained on"


def run_file(name: str, text: Text, sizes: Sizes, machine: Machine, model: str | None) -> str:
    """What `llmtrain train` reads."""
    per_step = sizes.rows * sizes.seq_len
    every = max(1, min(1000, sizes.steps // 5))
    passes = sizes.tokens / max(sizes.text_tokens, 1)
    most = f" ({PASSES} at most)" if sizes.config else ""
    chat, ranks = bool(text.messages), f" --ranks {machine.count}" if machine.count > 1 else ""
    lines = [
        f"# Made for {machine.count} × {machine.name}. What it takes:  llmtrain plan {name}.yaml{ranks}",
        f"# First:  llmtrain data build {name}-corpus.yaml   Then:  llmtrain train {name}.yaml{ranks}",
        f"name: {name}",
        *_model(sizes, model),
        "data:",
        f"  train: [{{path: data/{name}, split: train}}]",
        *([f"  eval: [{{path: data/{name}, split: valid}}]"] if text.held_out else []),
        _line(f"  seq_len: {sizes.seq_len}", "tokens of a row"),
        _line(f"  packing: {'best_fit' if chat else 'concat'}", "concat | best_fit | best_fit_crop"),
        _line(f"batch: {{rows: {sizes.rows}}}", f"{per_step:,} tokens per step over all ranks"),
        "schedule:",
        _line(
            f"  tokens: {sizes.tokens:.3g}", f"{sizes.steps:,} steps, {passes:.1f} passes over the text{most}"
        ),
        _line("  warmup: 0.03", "share of the steps"),
        _line(f"  decay: {'linear' if chat else 'cosine'}", "cosine | linear | constant"),
        "  min_lr_ratio: 0.1",
        f"optimizer: {{lr: {_number(sizes.lr)}, weight_decay: {0 if chat else 0.1}, clip: 1.0}}",
        _line(f"precision: {machine.precision}", "bf16 | fp16 | fp32"),
        _line(f"deepspeed: {sizes.deepspeed}", "zero1 | zero2 | zero3: less memory, more traffic"),
        f"checkpoint: {{every: {every}, keep: 2}}",
        *([f"eval: {{every: {every}, rows: 64}}"] if text.held_out else []),
    ]
    return "\n".join(lines) + "\n"


def _line(text: str, comment: str) -> str:
    return f"{text:<30} # {comment}"


def _model(sizes: Sizes, model: str | None) -> list[str]:
    if sizes.config is None or sizes.shape is None:
        return ["model:", _line(f"  source: {_scalar(model or '')}", "weights on the Hub, or in a folder")]
    size = f"about {_count(sizes.shape.parameters)} parameters, untrained"
    values = (f"    {key}: {_scalar(value)}" for key, value in sizes.config.items())
    return ["model:", _line("  config:", size), *values]


def _scalar(value: object) -> str:
    """A value as YAML reads it back, inside braces too."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()
    return text[1:-1]


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def _count(number: float) -> str:
    """`3.4 million`."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:.0f}"
