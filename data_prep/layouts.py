"""Splits of a dataset that lies in files: which file is of which split, and which are read.

A folder's own word comes first (`dataset_dict.json` and `state.json` of `datasets.save_to_disk`, `configs` in
the README.md of a Hub dataset), then the names: `test.jsonl`, `data/train-00000-of-00002.parquet`,
`gsm8k_test.csv`, `validation/part-0.arrow`. Files of several splits are never read as one unless the corpus
file says so: a model trained on its test set looks better than it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_prep.corpus import SourceSection
from data_prep.files import SourceFile, glob_regex
from llmtrain.errors import DataError

TRAIN = "train"
_SPELLINGS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"[-._](\d[-\w.]*|part.*)$")  # what numbers the files of a split: -00000-of-00002
_FIRST, _LAST = re.compile(r"([A-Za-z]+)(_\w+)?"), re.compile(r".*[-._]([A-Za-z]+)")
_DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "state.json", "dataset_infos.json")
_TEXT = ("text", "html", "warc")  # a folder of these is no dataset's: `test/` of a program's source, say
_PLAIN = (".txt", ".raw", ".tokens")  # but a file of these, named as a split, is one
_PART = re.compile(r"\[.*\]$")  # `train[:10%]`, which `datasets` cuts
_README_BYTES = 1 << 20


def of_split(files: Sequence[tuple[SourceFile, str]], section: SourceSection, field: str) -> list[SourceFile]:
    """Of the files of a source, each with its format, those that are data of the split that it names.

    Raises DataError where it names none and there are several, or one that isn't there.
    """
    layout = _Layout(files, section, field)
    marked: dict[str, list[SourceFile]] = {}
    for file, form in layout.data:
        marked.setdefault(layout.split_of(file, form) or "", []).append(file)
    unmarked = marked.pop("", [])
    if unmarked and TRAIN not in map(_spelled, marked):
        marked[TRAIN] = unmarked
    # A Hub dataset is read from its train split, as `datasets` names it, unless the source says another.
    wanted = section.split or (TRAIN if section.hub is not None and len(marked) > 1 else None)
    if wanted is None and len(marked) > 1:
        first = min(marked, key=lambda split: (not split.startswith(TRAIN), split))
        raise DataError(
            f"{field}: files of several splits lie there ({_listed(marked)}): say which to read with "
            f"`split`, such as `split: {first}`; `split: {'+'.join(sorted(marked))}` reads them all as one"
        )
    if section.path is not None and wanted is not None and "[" in wanted:
        raise DataError(f"{field}: split = {wanted!r} is of files, which are read whole: use `limit`")
    chosen = [*marked] if wanted is None else _asked(wanted, marked, field)
    return sorted((file for split in chosen for file in marked[split]), key=lambda file: file.name)


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _asked(wanted: str, marked: Mapping[str, Sequence[SourceFile]], field: str) -> list[str]:
    found: list[str] = []
    for name in (_PART.sub("", part).strip() for part in wanted.split("+")):
        same = [split for split in marked if split == name]
        same = same or [split for split in marked if _spelled(split) == _spelled(name)]
        if not same:
            raise DataError(f"{field}: no split '{name}' lies there ({_listed(marked)}): correct `split`")
        found += same
    return list(dict.fromkeys(found))


def _listed(marked: Mapping[str, Sequence[SourceFile]]) -> str:
    counts = ((split, len(files)) for split, files in sorted(marked.items()))
    return ", ".join(f"{split}: {count} file" + "s" * (count != 1) for split, count in counts)


def _spelled(split: str) -> str:
    """One of the usual three splits by its usual name; another as it is."""
    return _SPELLINGS.get(split.lower(), split)


class _Layout:
    """What a folder says of its files, which are asked for once."""

    def __init__(self, files: Sequence[tuple[SourceFile, str]], section: SourceSection, field: str):
        self._saved: dict[Path, set[str] | None] = {}
        self._dicts: dict[Path, bool] = {}
        place = section.hub or section.path or ""
        self._whole = Path(place).expanduser().is_dir()  # files that are named one by one are all wanted
        readme = _readme_of(files[0][0])
        self._patterns = _configured(readme, section, field)
        self.data = [(file, form) for file, form in files if self._is_data(file)]
        if self._whole and (section.hub is not None or readme):
            if any(form not in _TEXT for _, form in self.data):
                self.data = [(file, form) for file, form in self.data if form not in _TEXT]
            self.data = [each for each in self.data if not each[0].name.startswith(("README", "LICENSE"))]
            if section.subset is not None and not readme.get("configs"):
                self.data = _below(section.subset, self.data, field)

    def split_of(self, file: SourceFile, form: str) -> str | None:
        """The split that a file is of, if it is of one."""
        for split, patterns in self._patterns:
            if any(re.fullmatch(pattern, file.name) for pattern in patterns):
                return split or _split_by_name(file.name, form)
        if self._is_of_dict(file.path.parent):
            return file.path.parent.name
        return _split_by_name(file.name, form)

    def _is_data(self, file: SourceFile) -> bool:
        """Not what `datasets` keeps beside its data: descriptions, and what it remembers of `map`."""
        folder, name = file.path.parent, file.path.name
        listed = self._saved_files(folder)
        if name in _DESCRIPTIONS and (
            listed is not None or name.startswith(("dataset_dict", "dataset_infos"))
        ):
            return False
        if name.endswith(".arrow") and listed is not None:
            return name in listed
        named = [pattern for _, patterns in self._patterns for pattern in patterns]
        return not named or not self._whole or any(re.fullmatch(pattern, file.name) for pattern in named)

    def _saved_files(self, folder: Path) -> set[str] | None:
        """The names that `save_to_disk` lists in a folder; None when it wrote none there."""
        if folder not in self._saved:
            told = json_object(folder / "state.json").get("_data_files")
            named = isinstance(told, list) and all(isinstance(each, dict) for each in told)
            self._saved[folder] = {str(each.get("filename")) for each in told or ()} if named else None
        return self._saved[folder]

    def _is_of_dict(self, folder: Path) -> bool:
        if folder.parent not in self._dicts:
            self._dicts[folder.parent] = (folder.parent / "dataset_dict.json").is_file()
        return self._dicts[folder.parent]


def _split_by_name(name: str, form: str) -> str | None:
    """The split that a file's name says, or that of a folder above it; of text its own name alone."""
    path = PurePosixPath(name)
    stem = path.name
    while (
        (end := PurePosixPath(stem).suffix)
        and not _SHARD.fullmatch(end)
        and end[1:].lower() not in _SPELLINGS
    ):
        stem = stem.removesuffix(end)
    if form in _TEXT:
        if form != "text" or len(path.parts) > 1 or not set(path.suffixes) & {*_PLAIN}:
            return None
        return stem if stem.lower() in _SPELLINGS else None
    stem = _SHARD.sub("", stem)
    if (first := _FIRST.fullmatch(stem)) and first[1].lower() in _SPELLINGS:
        return stem.lower()
    last = _LAST.fullmatch(stem)
    for word in [last[1] if last else "", *reversed(path.parts[:-1])]:
        if word.lower() in _SPELLINGS:
            return word.lower()
    return None


def _readme_of(file: SourceFile) -> dict[str, Any]:
    """What the README.md of a Hub dataset says at its top; empty when there is none such."""
    base = file.path.parents[len(PurePosixPath(file.name).parts) - 1]
    try:
        with open(base / "README.md", encoding="utf-8", errors="replace") as opened:
            text = opened.read(_README_BYTES)
        top = text.split("\n---", 1)[0].removeprefix("---\n") if text.startswith("---\n") else ""
        content = yaml.safe_load(top)
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _configured(readme: Mapping[str, Any], section: SourceSection, field: str) -> list[tuple[str, list[str]]]:
    """Splits and the patterns of their files, as a README.md's `configs` say ("" for: by their names)."""
    given, subset = readme.get("configs"), section.subset
    configs = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    names = [str(each.get("config_name", "default")) for each in configs]
    chosen = configs
    if subset is not None and configs:
        chosen = [each for each, name in zip(configs, names, strict=True) if name == subset]
        if not chosen:
            raise DataError(f"{field}: there is no subset '{subset}' ({', '.join(names)}): correct `subset`")
    elif section.hub is not None and len(configs) > 1:
        pairs = zip(configs, names, strict=True)
        chosen = [each for each, name in pairs if each.get("default") or name == "default"][:1]
        if not chosen:
            raise DataError(f"{field}: it has the subsets {', '.join(names)}: say which with `subset`")
    return [pair for config in chosen for pair in _splits_of(config)]


def _splits_of(config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    said, below = config.get("data_files"), config.get("data_dir")
    prefix = f"{below}/" if isinstance(below, str) else ""
    if said is None:
        return [("", [glob_regex(f"{prefix}**")])] if prefix else []
    if isinstance(said, dict):
        said = [{"split": split, "path": path} for split, path in said.items()]
    entries = said if isinstance(said, list) else [said]
    pairs = []
    for entry in entries:
        split, path = (
            (entry.get("split", TRAIN), entry.get("path")) if isinstance(entry, dict) else (TRAIN, entry)
        )
        paths = path if isinstance(path, list) else [path]
        pairs.append((str(split), [glob_regex(prefix + str(each)) for each in paths]))
    return pairs


def _below(subset: str, files: Sequence[tuple[SourceFile, str]], field: str) -> list[tuple[SourceFile, str]]:
    found = [each for each in files if each[0].name.startswith(f"{subset}/")]
    if not found:
        folders = sorted({file.name.partition("/")[0] for file, _ in files if "/" in file.name})
        raise DataError(
            f"{field}: there is no subset '{subset}' (folders there: {', '.join(folders) or 'none'}): "
            "correct `subset`, or leave it out"
        )
    return found


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
