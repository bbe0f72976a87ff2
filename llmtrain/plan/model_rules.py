"""What a model can't be, told from its section of the run alone: each refused with the way out, before torch.

The names that count are those of the installed transformers (`llmtrain.plan.families`); what its own classes
find besides is said when the run starts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.config.load import LoadedRun
from llmtrain.errors import Problem, nearest
from llmtrain.plan.families import ROPE_KEYS, Family, activations, causal_families, family, rope_types

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "vocab_size",
    "num_experts_per_tok",
    "max_position_embeddings",
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "hidden_activations")


@dataclass(frozen=True)
class _Model:
    """The `model.config` of a run, with what its family says of what is left out."""

    given: dict[str, Any]
    family: Family
    loaded: LoadedRun

    def value(self, *names: str) -> Any:
        return self.family.value(self.given, *names)

    def number(self, *names: str) -> int | None:
        found = self.value(*names)
        return found if isinstance(found, int) and not isinstance(found, bool) else None

    def problem(self, names: Iterable[str], value: Any, fix: str) -> Problem:
        """On the key of those names that the run has, or else on the first."""
        real, asked = self.family.names, list(names)
        wanted = {real.get(name, name) for name in asked}
        known = [key for key in self.given if real.get(key, key) in wanted]
        field = f"model.config.{known[0] if known else asked[0]}"
        return Problem(field, value, self.loaded.origin(field) if known else "transformers' default", fix)


def model_problems(loaded: LoadedRun) -> list[Problem]:
    """All that is wrong with the model as the run and the installed transformers describe it."""
    config = loaded.config.model.config
    if config is None:
        found = length_problem(loaded, source_config(loaded.config.model.source or ""))
        return [found] if found else []
    kind = config.get("model_type")
    families = causal_families()
    if families and kind not in families:
        near = difflib.get_close_matches(str(kind), families, n=4, cutoff=0.5) or [
            "llama",
            "qwen3",
            "mixtral",
        ]
        fix = "transformers knows no causal language model of that type; near ones: " + ", ".join(near)
        if kind is None:
            fix = "say which architecture the model has, for example model_type: llama"
        field = "model.config.model_type"
        return [Problem(field, kind, loaded.origin(field) if kind else loaded.origin("model.config"), fix)]
    known = family(str(kind))
    if known is None:
        return []
    given = {key: value for key, value in config.items() if key != "model_type"}
    model = _Model(given, known, loaded)
    wrong = [*_unknown_keys(model, str(kind)), *_sizes(model)]
    if wrong:
        return wrong  # what else there is may only follow from these
    length = length_problem(loaded, config)
    ids = id_problems(loaded, model.number("vocab_size") if "vocab_size" in given else None)
    return [*_heads(model), *_experts(model), *_names(model), *ids, *([length] if length else [])]


def id_problems(loaded: LoadedRun, vocabulary: int | None) -> list[Problem]:
    """Special ids outside the vocabulary: the model's, which is the dataset's where the run does not say."""
    config = loaded.config.model.config or {}
    said = config.get("vocab_size")
    size = said if isinstance(said, int) else vocabulary
    problems: list[Problem] = []
    if size is None:
        return problems
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = config.get(key)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, int) and not 0 <= one < size for one in values):
            field = f"model.config.{key}"
            fix = f"ids run from 0 to {size - 1}; leave it out, and it is the dataset's"
            problems.append(Problem(field, value, loaded.origin(field), fix))
    return problems


def length_problem(loaded: LoadedRun, config: dict[str, Any]) -> Problem | None:
    """Rows longer than a model's table of positions; a rotation reaches any length."""
    known = family(str(config.get("model_type")))
    most = known.value(config, *LENGTHS) if known else None
    seq_len = loaded.config.data.seq_len
    if known is None or not known.has_table or not isinstance(most, int) or seq_len <= most:
        return None
    name = next((key for key in config if known.names.get(key, key) in LENGTHS), LENGTHS[0])
    fix = f"{config['model_type']} looks positions up in a table of {most}; use data.seq_len: {most} or less"
    if loaded.config.model.config is not None:
        fix += f", or model.config.{name}: {seq_len}"
    return Problem("data.seq_len", seq_len, loaded.origin("data.seq_len"), fix)


def length_note(config: dict[str, Any], seq_len: int) -> str:
    """What becomes of rows longer than the model says it reads; empty when they are not."""
    known = family(str(config.get("model_type")))
    most = known.value(config, *LENGTHS) if known else None
    if known is None or not known.is_rotary or not isinstance(most, int) or seq_len <= most:
        return ""
    return longer_note(most, seq_len)


def longer_note(most: int, seq_len: int) -> str:
    """The sentence for a model without a table, of `most` positions, trained on rows of `seq_len`."""
    return (
        f"rows of {seq_len} tokens are longer than the model's max_position_embeddings of {most}: its "
        "positions have no end, so it is trained on them, and its config.json, the exported one too, will "
        f"say {seq_len}"
    )


def source_config(source: str) -> dict[str, Any]:
    """A local folder's configuration (of a multimodal model, its text part's); empty without one."""
    try:
        content = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content.get("text_config", content) if isinstance(content, dict) else {}


def _unknown_keys(model: _Model, kind: str) -> list[Problem]:
    known = {*model.family.keys, *(ROPE_KEYS if model.family.is_rotary else ())}
    return [
        model.problem([key], value, f"{kind} has no such key; {nearest(key, known)}".rstrip("; "))
        for key, value in model.given.items()
        if key not in known and not model.family.reads(key) and key != "head_dim"
    ]


def _sizes(model: _Model) -> list[Problem]:
    problems = []
    for name in _SIZES:
        value = model.value(name)
        if value is None or isinstance(value, list):  # some families have one for each layer
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(model.problem([name], value, "must be a whole number, 1 or more"))
    return problems


def _heads(model: _Model) -> list[Problem]:
    heads, hidden = model.number("num_attention_heads"), model.number("hidden_size")
    own, kv = model.number("head_dim"), model.number("num_key_value_heads")
    names = model.family.keys
    if not heads or not hidden or "kv_lora_rank" in names or "num_attention_heads" not in names:
        return []
    real = model.family.names
    said = {real.get(key, key) for key in model.given}
    if (
        own is None
        and hidden % heads
        and said & {real.get(n, n) for n in ("hidden_size", "num_attention_heads")}
    ):
        fix = f"hidden_size {hidden} does not divide into {heads} heads; change one of them"
        return [model.problem(["num_attention_heads"], heads, fix)]
    if kv and heads % kv:
        fix = f"{heads} attention heads can't share {kv} key-value heads evenly; use a divisor of {heads}"
        return [model.problem(["num_key_value_heads"], kv, fix)]
    width = own or hidden // heads
    rules = model.value("rope_parameters", "rope_scaling") or {}
    partial = rules.get("partial_rotary_factor") if isinstance(rules, dict) else None
    if width % 2 and model.family.is_rotary and (partial or model.value("partial_rotary_factor") or 1) == 1:
        fix = f"rotary positions turn pairs of numbers, and a head has {width}; make it even"
        return [model.problem(["head_dim"] if own else ["hidden_size"], own or hidden, fix)]
    return []


def _experts(model: _Model) -> list[Problem]:
    experts, taken = model.number(*_EXPERTS), model.number("num_experts_per_tok", "top_k")
    groups = model.number("n_group")
    problems = []
    if experts and taken and taken > experts:
        fix = f"a token can't go to {taken} of {experts} experts; use at most {experts}"
        problems.append(model.problem(["num_experts_per_tok", "top_k"], taken, fix))
    if experts and groups and experts % groups:
        fix = f"{experts} experts don't divide into {groups} groups"
        problems.append(model.problem(["n_group"], groups, fix))
    return problems


def _names(model: _Model) -> list[Problem]:
    problems = []
    for name in _ACTIVATIONS:
        value = model.given.get(name)
        if isinstance(value, str) and activations() and value not in activations():
            fix = f"transformers knows no such activation; {nearest(value, activations())}".rstrip("; ")
            problems.append(model.problem([name], value, fix))
    for name in ("rope_parameters", "rope_scaling"):
        rules = model.given.get(name)
        rules = {
            name: rules,
            **{f"{name}.{key}": rule for key, rule in (rules if isinstance(rules, dict) else {}).items()},
        }
        for place, rule in rules.items():
            key = "rope_type" if isinstance(rule, dict) and "rope_type" in rule else "type"
            kind = rule.get(key) if isinstance(rule, dict) else None
            if isinstance(kind, str) and rope_types() and kind not in rope_types():
                fix = f"no such rule of rotary frequencies; known are {', '.join(sorted(rope_types()))}"
                field = f"model.config.{place}.{key}"
                problems.append(Problem(field, kind, model.loaded.origin(field), fix))
    kinds, layers = model.given.get("layer_types"), model.number("num_hidden_layers")
    if isinstance(kinds, list) and layers and len(kinds) != layers:
        fix = f"it names {len(kinds)} layers, and num_hidden_layers is {layers}"
        problems.append(model.problem(["layer_types"], None, fix))
    return problems
