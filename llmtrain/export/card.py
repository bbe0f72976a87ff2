"""README.md of an export: what the model is, what it was trained on, what it scored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from llmtrain.checkpoint import Checkpoint
from llmtrain.config.hub_names import looks_like_a_path

_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}")
_CACHED = re.compile(r"/models--([A-Za-z0-9][\w.-]*)/snapshots/[0-9a-f]{40}/?$")
_SCORES = {"eval_loss": "loss (nats per token)", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}


def model_card(checkpoint: Checkpoint, name: str, parameters: int, dtype: str) -> str:
    """The Markdown text, with the front matter that the Hub reads."""
    manifest = checkpoint.manifest
    topology, base = manifest.topology, _base_model(checkpoint.run_yaml)
    kind = str(checkpoint.config.get("model_type", "unknown"))
    origin = f" It was trained from the weights of `{Path(base).name}`." if base else ""
    parts = [
        _front_matter(kind, base),
        f"# {name}\n",
        f"A `{kind}` causal language model with {parameters:,} parameters, stored as {dtype}.{origin} "
        "Its license is unknown: whoever publishes it has to say.\n",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n',
        "## Training\n",
        f"- {manifest.tokens:,} tokens in {manifest.step:,} optimizer steps of "
        f"{manifest.identity.rows} rows of {manifest.identity.seq_len} tokens, {topology.precision}\n"
        f"- {topology.world} ranks, ZeRO stage {topology.zero_stage}, pipeline of {topology.pipeline}\n"
        f"- data fingerprint `{manifest.identity.dataset}`\n"
        + "".join(f"- {package} {version}\n" for package, version in manifest.versions.items()),
        *_data(manifest.data),
        *_scores(checkpoint),
        f"## The run\n\n```yaml\n{checkpoint.run_yaml.strip()}\n```\n",
    ]
    return _SECRET.sub(lambda match: match[1] + "(removed)", "\n".join(parts))


def _front_matter(kind: str, base: str | None) -> str:
    known = f"base_model: {base}\n" if base and not looks_like_a_path(base) else ""
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n"
        f"{known}tags:\n- llmtrain\n- {kind}\n---\n"
    )


def _base_model(run_yaml: str) -> str | None:
    """What the run started from: a folder, or a Hub name also where the Hub's cache was given."""
    try:
        source = yaml.safe_load(run_yaml)["model"]["source"]
    except (yaml.YAMLError, KeyError, TypeError):
        return None
    if not isinstance(source, str):
        return None
    cached = _CACHED.search(source)
    return cached[1].replace("--", "/") if cached else source


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    """What the checkpoint says of its datasets: lists of records as tables, the rest as lines."""
    if data:
        yield "## Data\n"
    for key, value in data.items():
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            columns = list(dict.fromkeys(column for row in value for column in row))
            yield f"{key}:\n\n" + _table(
                columns, [[row.get(column, "") for column in columns] for row in value]
            )
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"- {key}: `{text}`\n" if "<" in text else f"- {key}: {text}\n"  # no tag of HTML


def _scores(checkpoint: Checkpoint) -> Iterator[str]:
    """The last evaluation at or before the checkpoint's step, when the run folder has one."""
    last: dict[str, Any] = {}
    path = checkpoint.path.parent.parent / "metrics.jsonl"
    for line in path.read_text(errors="replace", encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "eval_loss" in record and record.get("step", 0) <= checkpoint.step:
            last = record
    rows = [[label, f"{last[key]:.4f}"] for key, label in _SCORES.items() if isinstance(last.get(key), float)]
    if rows:
        yield f"## Evaluation\n\nOn held-out rows, after step {last['step']:,}:\n\n" + _table(
            ["measure", "value"], rows
        )


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(_cell(value) for value in line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
