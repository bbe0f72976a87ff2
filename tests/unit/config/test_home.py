from __future__ import annotations

import getpass
import os
import pwd
from pathlib import Path
from typing import NoReturn

import pytest

from llmtrain.config.home import settle_home
from llmtrain.engine.build_locks import build_locks, extension_folder


def test_a_user_without_name_and_home_has_caches_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that was started with a number for a user."""

    def nobody(_: object) -> NoReturn:
        raise KeyError("no such entry")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert build_locks() == []  # before anybody has settled anything, too
    settle_home()
    assert Path.home() == tmp_path
    assert getpass.getuser() == f"uid-{os.getuid()}"
    assert extension_folder() == tmp_path / ".cache" / "torch_extensions"


def test_who_has_both_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    settle_home()
    assert dict(os.environ) == before
