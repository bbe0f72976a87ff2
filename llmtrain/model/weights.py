"""Weights of a Hugging Face folder, read by name into whatever part of the model a rank holds.

Only safetensors are read: a pickle can run any code. What transformers converts on loading (say, Mixtral's
experts, saved one by one and computed as one tensor) is converted by the same rules here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from llmtrain.config.hub_names import looks_like_a_path, no_such_path
from llmtrain.errors import CheckpointError
from llmtrain.model.initialise import Fill, is_set, mark_set
from llmtrain.model.weight_index import BESIDE, INDEX, unreadable, weight_files

SHOWN = 5  # names listed in a message
_FLOATS = ("F64", "F32", "F16", "BF16")
# What lies beside weights that are quantized: by fp8, GPTQ and AWQ, bitsandbytes, MXFP4.
_SCALES = ("weight_scale", "weight_scale_inv", ".qweight", ".qzeros", ".absmax", "_blocks", "_scales")


@dataclass
class _Recipe:
    """How files make one or several tensors of the model."""

    target: str  # the first tensor made
    targets: tuple[str, ...]
    converter: WeightConverter | None = None
    sources: list[tuple[str, str]] = field(default_factory=list)  # (pattern, name in the files)


class WeightFiles:
    """The safetensors of a folder or of a Hub repository, read lazily by name.

    CheckpointError when there are none, or when a file can't be read.
    """

    def __init__(self, source: str):
        self.source = source
        here = Path(source).expanduser()
        self.folder = here if here.is_dir() else _download(source)
        self._multimodal = _is_multimodal(self.folder)
        self._file: dict[str, Path] = {}
        self._shape: dict[str, tuple[int, ...]] = {}
        self._dtype: dict[str, str] = {}  # as safetensors spells it
        for path in weight_files(self.folder, source):
            self._index(path)
        self.bytes_read = 0

    def names(self) -> list[str]:
        """The tensors as the files name them."""
        return sorted(self._file)

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as opened:
                found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dict
                self._shape |= {name: tuple(each.get_shape()) for name, each in found.items()}
                self._dtype |= {name: each.get_dtype() for name, each in found.items()}
        except Exception as error:
            raise unreadable(path, error) from error
        twice = next((name for name in found if name in self._file), None)
        if twice is not None:
            raise CheckpointError(
                f"{self.source} has {twice} in {self._file[twice].name} and in {path.name}: remove the file "
                "that is another save's"
            )
        self._file |= dict.fromkeys(found, path)

    def _read(self, name: str) -> torch.Tensor:
        with safe_open(self._file[name], framework="pt") as opened:
            tensor = opened.get_slice(name)[...] if self._shape[name] else opened.get_tensor(name)
        self.bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def fill_for(self, hf: Any) -> Fill:
        """A function that puts these weights into the units of `hf`, which is the whole model, on meta.

        CheckpointError now when a tensor is missing, superfluous or of another shape.
        """
        expected = {name: tuple(tensor.shape) for name, tensor in hf.state_dict().items()}
        recipes, unexpected = self._recipes(hf, expected)
        self._refuse_quantized(recipes, unexpected, hf.state_dict())
        makers = {name: recipe for recipe in recipes for name in recipe.targets}
        tied = dict(hf.all_tied_weights_keys)
        self._settle_tied(tied, makers)
        missing = [name for name in expected if name not in makers and name not in tied]
        self._refuse("lacks", _without(missing, hf._keys_to_ignore_on_load_missing))
        self._refuse("has unknown", _without(unexpected, hf._keys_to_ignore_on_load_unexpected))
        self._check_shapes(recipes, expected)
        return partial(self._fill, hf, makers, expected)

    def _refuse_quantized(
        self, recipes: list[_Recipe], unexpected: list[str], state: Mapping[str, torch.Tensor]
    ) -> None:
        """Numbers that mean nothing without scales beside them would be taken for the weights themselves."""
        sources = [(name, recipe.target) for recipe in recipes for _, name in recipe.sources]
        narrow = [
            name
            for name, target in sources
            if self._dtype[name] not in _FLOATS and state[target].is_floating_point()
        ]
        scales = [name for name in unexpected if name.endswith(_SCALES)]
        if narrow or scales:
            what = f"{narrow[0]} is {self._dtype[narrow[0]]}" if narrow else f"{scales[0]} belongs to them"
            raise CheckpointError(
                f"{self.source} has quantized weights ({what}), which are not trained or read here: take "
                "the model in bf16, fp16 or fp32, as published, or as transformers dequantizes it"
            )

    def _recipes(self, hf: Any, expected: dict[str, tuple[int, ...]]) -> tuple[list[_Recipe], list[str]]:
        mapping = get_model_conversion_mapping(hf)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        shapes = hf.state_dict()
        found: dict[str, _Recipe] = {}
        unexpected = []
        for source in sorted(self._file, key=_natural):
            named = _text_name(source) if self._multimodal else source
            if named is None:
                continue  # of another medium than text
            target, pattern = rename_source_key(named, renamings, converters, hf.base_model_prefix, shapes)
            if target not in expected and named in expected:
                target, pattern = named, None
            if target not in expected:
                unexpected.append(source)
                continue
            converter = by_pattern.get(pattern) if pattern else None
            if target not in found:
                found[target] = _Recipe(target, _targets(target, converter), converter)
            found[target].sources.append((pattern or source, source))
        return list(found.values()), unexpected

    def _settle_tied(self, tied: dict[str, str], makers: dict[str, _Recipe]) -> None:
        """One tensor for tied weights: either name may be in the files, and both only when they are equal."""
        for target, source in tied.items():
            if target in makers and source in makers:
                if not torch.equal(self._make(makers[target], None)[target], self._made(makers, source)):
                    raise CheckpointError(
                        f"{self.source} has different weights for {target} and {source}, which its "
                        "config.json ties; set tie_word_embeddings to false there"
                    )
                del makers[target]
            elif target in makers:
                makers[source] = _Recipe(source, (source,), None, makers.pop(target).sources)

    def _made(self, makers: dict[str, _Recipe], name: str) -> torch.Tensor:
        return self._make(makers[name], None)[name]

    def _refuse(self, what: str, names: list[str]) -> None:
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise CheckpointError(
                f"{self.source} {what} weights: {', '.join(sorted(names)[:SHOWN])}{more}; "
                "its files do not belong to the model of its config.json"
            )

    def _check_shapes(self, recipes: Iterable[_Recipe], expected: dict[str, tuple[int, ...]]) -> None:
        for recipe in recipes:
            if recipe.converter is None:
                self._check_shape(recipe.target, self._shape[recipe.sources[0][1]], expected[recipe.target])

    def _check_shape(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if found != wanted:
            raise CheckpointError(
                f"{self.source} has {name} of shape {list(found)}, the model of its config.json wants "
                f"{list(wanted)}; its files and its config.json do not belong together"
            )

    def _make(self, recipe: _Recipe, hf: Any) -> dict[str, torch.Tensor]:
        if recipe.converter is None:
            return {recipe.target: self._read(recipe.sources[0][1])}
        converter = copy.deepcopy(recipe.converter)
        for pattern, source in recipe.sources:
            reader: Callable[[], torch.Tensor] = partial(self._read, source)
            converter.add_tensor(recipe.target, source, pattern, reader)
        try:
            made = converter.convert(recipe.target, model=hf, config=hf.config)
        except Exception as error:
            raise CheckpointError(f"{self.source}: {recipe.target} can't be made: {error}") from error
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _fill(
        self,
        hf: Any,
        makers: dict[str, _Recipe],
        expected: dict[str, tuple[int, ...]],
        name: str,
        unit: nn.Module,
        parameters: bool,
    ) -> None:
        wanted = {f"{name}.{key}".lstrip("."): tensor for key, tensor in _state(unit).items()}
        made: dict[str, torch.Tensor] = {}
        for full, tensor in wanted.items():
            if full not in makers or (isinstance(tensor, nn.Parameter) and not parameters):
                continue
            if is_set(tensor):
                continue  # tied, and filled under its other name
            if full not in made:
                made.update(self._make(makers[full], hf))
            value = made.pop(full)
            self._check_shape(full, tuple(value.shape), expected[full])
            tensor.data.copy_(value)
            mark_set(tensor)


def _is_multimodal(folder: Path) -> bool:
    try:
        return "text_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _text_name(name: str) -> str | None:
    """What a multimodal model's tensor is called in its text part alone; None: it is not of that part."""
    found = re.fullmatch(r"(?:model\.)?language_model\.(?:model\.)?(.+)", name)
    if found is None:
        return name if name.startswith("lm_head.") else None
    return found[1] if found[1].startswith("lm_head.") else f"model.{found[1]}"


def _state(unit: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in unit.state_dict(keep_vars=True).items() if value is not None}


def _targets(target: str, converter: WeightConverter | None) -> tuple[str, ...]:
    if converter is None:
        return (target,)
    first = converter.target_patterns[0]
    return tuple(target.replace(first, pattern) for pattern in converter.target_patterns)


def _without(names: Iterable[str], ignored: Iterable[str] | None) -> list[str]:
    patterns = [*(ignored or ()), r"rotary_emb\.inv_freq"]
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def _natural(name: str) -> list[Any]:
    """Expert 10 after expert 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if looks_like_a_path(source):
        raise CheckpointError(f"model.source {source!r}: {no_such_path(source)}")
    wanted, beside = ["*.safetensors", INDEX, "config.json", "generation_config.json"], [*BESIDE, "*/*"]
    try:
        return Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=beside))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"model.source {source!r} is no folder here, and the Hub gave nothing for it: {error}"
        ) from error
