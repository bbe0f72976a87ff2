"""The skip ledger: a listed reason passes, any other fails the session and is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CONFTEST = """
from pathlib import Path
from skip_ledger import SkipLedger

def pytest_configure(config):
    config.pluginmanager.register(SkipLedger(Path(__file__).with_name("skips.txt")))
"""


@pytest.mark.parametrize("processes", [[], ["-n", "1"]])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("def test_a():\n    pytest.skip('needs a CUDA device: none here')", 0),
        ("def test_a():\n    pytest.skip('I had no time')", 1),
        ("pytest.skip('not today', allow_module_level=True)", 1),
        ("@pytest.mark.xfail\ndef test_a():\n    assert False", 0),
    ],
)
def test_only_listed_skips_pass(tmp_path: Path, body: str, status: int, processes: list[str]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "skips.txt").write_text("# why\nneeds a CUDA device*\n")
    (tmp_path / "test_one.py").write_text(f"import pytest\n\n{body}\n\n\ndef test_b():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes, str(tmp_path)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(TESTS)}, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert ("not in tests/skips.txt" in done.stdout) == (status == 1)
