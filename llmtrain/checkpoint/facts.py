"""What a save is told about the run, and what a resume compares with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.checkpoint.manifest import Identity, Topology
from llmtrain.checkpoint.probe import Probe
from llmtrain.data.tokenizer_files import tokenizer_files
from llmtrain.plan.begun import ADVICE, another_run, differences

# What a model's config holds besides the model: how it is run, who wrote the file.
_NOT_THE_MODEL = frozenset(
    [
        "architectures",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "use_cache",
        "transformers_version",
        "experts_implementation",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    ]
)


@dataclass(frozen=True)
class CheckpointFacts:
    """A run at one moment. `rows` and `seq_len` are those of a step; `tokens` were trained on so far.

    `topology`: world, pipeline, zero_stage, precision. `config`: the model's `to_dict()`.
    `generation`: the content of its generation_config.json. `data`: whatever the model card should say of
    the datasets, as JSON.
    """

    step: int
    tokens: int
    topology: Mapping[str, Any]
    dataset: str  # the fingerprint of all that decides which row comes where (`Batches.fingerprint`)
    config: Mapping[str, Any]
    vocab_size: int
    seq_len: int
    rows: int
    seed: int
    run_yaml: str
    tokenizer_folder: Path | None = None
    optimizer: str = "adamw"
    another: str = "name=other"  # what starts another run beside this one
    probe: Probe | Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Topology(**self.topology)  # a wrong key is found now, not when all ranks have written

    @property
    def identity(self) -> Identity:
        """What must be the same when the run goes on."""
        return Identity(
            dataset=self.dataset,
            model=config_hash(self.config),
            tokenizer=tokenizer_hash(self.tokenizer_folder),
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            rows=self.rows,
            seed=self.seed,
            optimizer=self.optimizer,
            precision=Topology(**self.topology).precision,
        )


def config_text(config: Mapping[str, Any]) -> str:
    """The content of config.json."""
    return json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (set, frozenset, tuple)) else str(value).removeprefix("torch.")


def flat_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values that make the model, as `a.b` and value, in order."""
    for key in sorted(config):
        if key in _NOT_THE_MODEL or key.startswith("_"):
            continue
        if isinstance(config[key], Mapping):
            yield from flat_config(config[key], f"{prefix}{key}.")
        else:
            yield prefix + key, config[key]


def config_hash(config: Mapping[str, Any]) -> str:
    """One hash of the model that a config describes."""
    values = dict(flat_config(json.loads(config_text(config))))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(folder: Path | None) -> str:
    """sha256 of tokenizer.json, or of all files of an older kind of tokenizer; empty without one."""
    files = tokenizer_files(folder)
    digest = hashlib.sha256()
    for path in [path for path in files if path.name == "tokenizer.json"] or files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else ""


def check_matches(where: Path, saved: Identity, config: Mapping[str, Any], facts: CheckpointFacts) -> None:
    """Raises one CheckpointError that names every field in which the run is not the one that was saved."""
    lines = differences(saved.model_dump(), facts.identity.model_dump())
    changed = _config_differences(config, facts.config)
    if changed:
        lines.append(f"model ({', '.join(changed)}): {ADVICE['model']}")
    if lines:
        raise another_run(where, lines, facts.another)


def _config_differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Keys that both have and that differ; a key that only one has is another transformers version's."""
    before = dict(flat_config(saved))
    now = dict(flat_config(json.loads(config_text(ours))))
    return [
        f"{key}: saved {before[key]!r}, now {now[key]!r}"
        for key in before
        if key in now and before[key] != now[key]
    ]
