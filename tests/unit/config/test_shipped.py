"""What is shipped is found by name from any folder, in a checkout and in an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.config import shipped
from llmtrain.config.load import load_run
from llmtrain.config.template import read_template
from llmtrain.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["125m", "125m.yaml", "recipes/125m.yaml", "recipes/125m"])
def test_a_recipe_is_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_run(name)
    assert loaded.config.name == "125m"
    assert loaded.origin("optimizer.lr").startswith("recipes/125m.yaml:")


def test_files_here_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "125m.yaml").write_text("mine")
    assert shipped.recipe("125m") == Path("recipes/125m.yaml")
    (tmp_path / "125m").write_text("also mine")
    assert shipped.recipe("125m") == Path("125m")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("152m", r"no recipe of this name; did you mean '125m'\?"),
        ("recipes/zzz.yaml", "no recipe of this name; recipes: 125m, 1b, "),
        ("runs/125m.yaml", "there is no such file; check the path$"),
        ("../recipes/125m", "there is no such file; check the path$"),
    ],
)
def test_a_name_that_is_none_gets_the_nearest(
    name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=fix):
        load_run(name)


def test_what_accelerates_files_point_at_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_template("ds_configs/zero3.json").content["zero_optimization"]["stage"] == 3
    with pytest.raises(ConfigError, match="no such file"):
        read_template("other/zero3.json")


def test_an_environment_is_searched_from_the_code_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a virtual environment, of `pip install --user`, of `--target`, of Debian's /usr/local."""
    for code in ("lib/python3.12/site-packages", "lib64/python3/dist-packages", ""):
        prefix = tmp_path / code.replace("/", "-") / "env"
        for kind in shipped.KINDS:
            (prefix / "share/llmtrain" / kind).mkdir(parents=True)
        monkeypatch.setattr("llmtrain.__file__", str(prefix / code / "llmtrain" / "__init__.py"))
        assert shipped.shipped_folder() == prefix / "share/llmtrain"
