"""Whether a name that no file here has is meant as a path or as a repository of the Hub: the one rule.

The Hub is never asked for what looks like a path: a mistyped folder is answered at once, with what lies near
it, and its name does not leave the machine.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Literal

from llmtrain.errors import nearest

OWN_FOLDERS = ("runs", "data", "checkpoints", "exports")  # where this project's own verbs write
SHOWN = 6  # names said to lie near a missing one
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_OF_FILES = (".yaml", ".yml", ".json", ".jsonl", ".parquet", ".safetensors", ".txt")
_ALIKE = 0.8  # how alike a word and a name here are when the word is that name, mistyped


def looks_like_a_path(name: str) -> bool:
    """True for a name that must be a file or folder here, whether or not anything lies there.

    It is no repository's name (`./x`, `~/x`, `/x`, `a/b/c`, `x/`), or lies there, or its first part is a
    folder here or one of OWN_FOLDERS, or it is one word and almost the name of something here. What was
    fetched from the Hub before is a repository's name.
    """
    if Path(name).expanduser().exists():
        return True
    if not _REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith(_OF_FILES):
        return True
    if _was_fetched(name):
        return False
    owner, _, rest = name.partition("/")
    if rest:
        return owner in OWN_FOLDERS or Path(owner).is_dir()
    return bool(difflib.get_close_matches(name, _names_in(Path()), n=1, cutoff=_ALIKE))


def no_such_path(name: str, kind: Literal["model", "dataset"] = "model") -> str:
    """Says that nothing lies at a path, and what lies near it: `no such file or folder (seen from …)…`.

    `kind` is what a repository of that name would be.
    """
    missing = Path(name).expanduser()
    parent = next((each for each in missing.parents if each.is_dir()), Path("/"))
    wanted = missing.relative_to(parent).parts[0] if missing != parent else missing.name
    names = _names_in(parent)
    near = difflib.get_close_matches(wanted, names, n=1)
    said = f"no such file or folder (seen from {os.getcwd()})"
    if near:
        said += f", {nearest(wanted, near).replace(near[0], (parent / near[0]).as_posix())}"
    elif names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        said += f"; {parent.as_posix()}/ holds {', '.join(names[:SHOWN])}{more}"
    if _REPOSITORY.fullmatch(name) and "/" in name:
        said += f"; for the Hub's repository of that name, fetch it first: hf download {name}"
        said += " --repo-type dataset" if kind == "dataset" else ""
    return said


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(each for each in os.listdir(folder) if not each.startswith("."))
    except OSError:
        return []


def _was_fetched(name: str) -> bool:
    """Whether the Hub's cache on this machine holds a repository of that name."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    return any((cache / f"{kind}s--{name.replace('/', '--')}").is_dir() for kind in ("model", "dataset"))
