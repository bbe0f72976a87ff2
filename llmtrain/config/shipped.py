"""What comes along with the code, in a checkout or a wheel: recipes, ds_configs, launch scripts, versions."""

from __future__ import annotations

from pathlib import Path

import llmtrain
from llmtrain.errors import ConfigError, Problem, nearest

KINDS = ("recipes", "ds_configs", "launch")


def shipped_folder() -> Path:
    """The checkout, or share/llmtrain of the environment that the code was installed into.

    Searched from the code upwards, not from `sys.prefix`: an environment may see another one's packages.
    """
    package = Path(llmtrain.__file__).parent
    checkout = package.parent
    if (checkout / "ds_configs").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout
    places = [above / "share" / "llmtrain" for above in package.parents]
    return next((place for place in places if (place / "ds_configs").is_dir()), places[0])


def places(kind: str) -> tuple[Path, ...]:
    """Where names of a kind are looked up: in a folder of that name here, then in what was shipped."""
    return Path(kind), shipped_folder() / kind


def named(name: str, kind: str, suffix: str) -> Path | None:
    """The file that `NAME`, `NAME.suffix` or `KIND/NAME.suffix` means; None when there is none."""
    folder, _, last = name.rpartition("/")
    if folder not in ("", kind):
        return None
    wanted = last if last.endswith(suffix) else last + suffix
    return next((path for place in places(kind) if (path := place / wanted).is_file()), None)


def recipe(path: str | Path) -> Path:
    """The run or corpus file that was meant: a path, or the name of a recipe. Raises ConfigError."""
    given = Path(path)
    if given.exists():
        return given
    name = str(path)
    found = named(name, "recipes", ".yaml")
    if found is not None:
        return found
    known = sorted({file.stem for place in places("recipes") for file in place.glob("*.yaml")})
    wanted, fix = name.removeprefix("recipes/").removesuffix(".yaml"), "there is no such file"
    if "/" not in wanted:
        fix += f", and no recipe of this name; {nearest(wanted, known) or 'recipes: ' + ', '.join(known)}"
    raise ConfigError(Problem("file", name, name, fix if "/" not in wanted else f"{fix}; check the path"))


def shown(path: Path) -> str:
    """A shipped file as the reader knows it, `recipes/125m.yaml`; any other path as it is."""
    for base in (Path.cwd(), shipped_folder()):
        if path.is_absolute() and path.is_relative_to(base) and path.parent.name in KINDS:
            return str(path.relative_to(base))
    return str(path)
