"""What the installed transformers says of a model family, read from its source: an import would cost torch.

Where a family's files are not as expected, nothing is said, and what is wrong is found when the run starts.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Older spellings that transformers still turns into `rope_parameters`.
ROPE_KEYS = ("rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base", "partial_rotary_factor")


@dataclass(frozen=True)
class Family:
    """A configuration class: the keys it declares, those with a plain default, and other names for keys."""

    keys: frozenset[str]
    defaults: dict[str, Any]
    names: dict[str, str]  # other name → key
    code: str  # of its models

    def value(self, config: dict[str, Any], *names: str) -> Any:
        """What the first of these names has that `config` or the class gives a value to."""
        given = {self.names.get(key, key): value for key, value in config.items()}
        for name in names:
            key = self.names.get(name, name)
            value = given.get(key, self.defaults.get(key))
            if value is not None:
                return value
        return None

    @property
    def is_rotary(self) -> bool:
        """Positions are rotations, of any length."""
        return "rope_parameters" in self.keys

    @property
    def has_table(self) -> bool:
        """Positions are looked up in a table of as many as the configuration says."""
        length = r"max_position_embeddings|n_positions|max_seq_len|max_positions"
        return not self.is_rotary and bool(
            re.search(rf"(Embedding|alibi\w*|positions)\([^)]*\b({length})\b", self.code)
        )

    def reads(self, key: str) -> bool:
        """Its models read this key of their configuration, declared or not."""
        return bool(re.search(rf"config\.{re.escape(key)}\b|config,\s*[\"']{re.escape(key)}[\"']", self.code))


@functools.cache
def family(model_type: str) -> Family | None:
    """The family of this model type; None when its files are not as expected."""
    name = model_type.replace("-", "_")
    for folder in (name, name.removesuffix("_text")):
        tree = _parsed(f"models/{folder}/configuration_{folder}.py")
        code = _text(f"models/{folder}/modeling_{folder}.py")
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)} if tree else {}
        found = [node for node in classes.values() if _assigned(node).get("model_type") == model_type]
        base = _parsed("configuration_utils.py")
        if found and code and base:
            roots = {node.name: node for node in base.body if isinstance(node, ast.ClassDef)}
            return _family(found[0], {**roots, **classes}, code)
    return None


def _family(made: ast.ClassDef, classes: dict[str, ast.ClassDef], code: str) -> Family | None:
    keys: set[str] = set()
    defaults: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in reversed(list(_line(made, classes))):
        said = _assigned(node)
        names |= said.get("attribute_map") or {}
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        for each in fields:
            key = ast.unparse(each.target)
            keys.add(key)
            defaults.pop(key, None)
            with_default = _default(each.value)
            if with_default is not None:
                defaults[key] = with_default
    return Family(frozenset(keys | set(names)), defaults, names, code) if defaults else None


def _line(made: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """A class and those it inherits from, nearest first."""
    yield made
    for base in made.bases:
        name = ast.unparse(base)
        if name in classes and classes[name] is not made:
            yield from _line(classes[name], classes)


def _assigned(node: ast.ClassDef) -> dict[str, Any]:
    """Plain class attributes with a literal value."""
    found = {}
    for each in node.body:
        target = each.targets[0] if isinstance(each, ast.Assign) else getattr(each, "target", None)
        if isinstance(target, ast.Name) and isinstance(each, ast.Assign | ast.AnnAssign):
            found[target.id] = _default(each.value)
    return found


def _default(value: ast.expr | None) -> Any:
    """The literal, or that in `default=…`; None for anything else."""
    if isinstance(value, ast.Call):
        value = next((each.value for each in value.keywords if each.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


@functools.cache
def activations() -> frozenset[str]:
    """The names of activation functions; empty when they are not found."""
    return _keys_of("activations.py", "ACT2CLS")


@functools.cache
def rope_types() -> frozenset[str]:
    """The names of rules for rotary frequencies; empty when they are not found."""
    known = _keys_of("modeling_rope_utils.py", "ROPE_INIT_FUNCTIONS")
    return known | {"default"} if known else known


@functools.cache
def causal_families() -> frozenset[str]:
    """The model types that a causal language model is made of; empty when they are not found."""
    text = _text("models/auto/modeling_auto.py")
    body = re.search(
        r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\((.*?)^\)", text, re.DOTALL | re.MULTILINE
    )
    return frozenset(re.findall(r"^\s+\(\"([^\"]+)\",", body[1], re.MULTILINE)) if body else frozenset()


def _keys_of(file: str, variable: str) -> frozenset[str]:
    tree = _parsed(file)
    for node in tree.body if tree else ():
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == variable and isinstance(value, ast.Dict):
            return frozenset(str(key.value) for key in value.keys if isinstance(key, ast.Constant))
    return frozenset()


def _parsed(file: str) -> ast.Module | None:
    text = _text(file)
    return ast.parse(text) if text else None


@functools.cache
def _text(file: str) -> str:
    spec = importlib.util.find_spec("transformers")  # which imports nothing
    for place in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(place, file)
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return ""
