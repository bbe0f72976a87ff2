"""The program that counts hostile pickles and flipped bits, run small."""

from __future__ import annotations

import re

import interchange
import pytest


def test_no_graft_runs_and_no_flip_is_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--grafts", "15", "--flips", "15", "--gigabytes", "0.001"]
    monkeypatch.setattr("sys.argv", ["interchange.py", *options])
    assert interchange.main() == 0
    text = capsys.readouterr().out
    assert "| 15 | 0 | 15 | 0 | 0 |" in text
    assert re.search(r"^\| 15 \| \d+ \| \d+ \| 0 \|$", text, re.MULTILINE)
    assert re.findall(r"^\| (import|export \w+) \| \d+ \|", text, re.MULTILINE) == [
        "import",
        "export universal",
        "export dcp",
    ]
