"""What messages tell people to install exists: packages that pyproject.toml names, extras that it has."""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OWN = "llmtrain" + "["  # no package of this name is published: whoever registers it would be installed


def normal(name: str) -> str:
    return re.split(r"[<>=!~;\[ ]", name)[0].lower().replace("_", "-")


def shipped() -> dict[str, str]:
    folders = ("llmtrain", "data_prep", "recipes", "docs", "launch", "ds_configs", "benchmarks", "tests")
    files = [*ROOT.glob("*.*"), *(path for name in folders for path in (ROOT / name).rglob("*.*"))]
    wanted = {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ".sbatch"}
    texts = [path for path in files if path.suffix in wanted and path.name != "log.md"]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in texts}


def test_packages_that_are_to_be_installed_are_ours() -> None:
    known = {normal(name) for names in (PROJECT["dependencies"], *EXTRAS.values()) for name in names}
    wrong = []
    for path, text in shipped().items():
        if path.startswith(("tests/", "CHANGELOG")):
            continue
        for said in re.findall(r"pip install ((?:-e )?[^,;:)\"`(#|]+)", text):
            words = [word for word in said.replace("'", "").split() if not word.startswith("-")]
            wrong += [f"{path}: {word}" for word in words if not is_known(word, known)]
    assert wrong == []


def is_known(word: str, known: set[str]) -> bool:
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", word)
    if extras:
        return all(name in EXTRAS for name in (extras[1] or "").split(",") if name)
    return normal(word) in known or word.startswith(("{", "./", "/"))


def test_no_message_sends_people_to_an_unpublished_package() -> None:
    assert [path for path, text in shipped().items() if OWN in text] == []


def test_dev_brings_every_extra_that_the_tests_use() -> None:
    dev = {normal(name) for name in EXTRAS["dev"]}
    for extra, names in EXTRAS.items():
        if extra not in ("dev", "tensorboard", "presidio", "datatrove-words", "zeropp"):
            assert {normal(name) for name in names} <= dev, extra
