"""README.md of an export: what the model is, what it was trained on, what it scored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llmtrain.checkpoint import Checkpoint

_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}")
_SCORES = {"eval_loss": "loss (nats per token)", "perplexity": "perplexity", "bits_per_byte": "bits per byte"}


def model_card(checkpoint: Checkpoint, name: str, parameters: int, dtype: str) -> str:
    """The Markdown text, with the front matter that the Hub reads."""
    manifest = checkpoint.manifest
    topology = manifest.topology
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n"
        "tags:\n- llmtrain\n- " + str(checkpoint.config.get("model_type", "unknown")) + "\n---\n",
        f"# {name}\n",
        f"A `{checkpoint.config.get('model_type')}` causal language model with {parameters:,} parameters, "
        f"stored as {dtype}. Its license is unknown: whoever publishes it has to say.\n",
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
            yield f"- {key}: {value if isinstance(value, str) else json.dumps(value)}\n"


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
