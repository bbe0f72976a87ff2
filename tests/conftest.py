"""What every test runs under: a small quiet CPU, no network, and a ledger of the skips that are allowed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from worlds import Worlds  # noqa: E402

# Set before anything imports torch or tokenizers. `setdefault`: `make test-gpu` says DS_ACCELERATOR=cuda.
for name, value in {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
}.items():
    os.environ.setdefault(name, value)

LEDGER = Path(__file__).with_name("skips.txt")


def allowed_skips(text: str) -> list[str]:
    """The patterns of a ledger: one per line, blank lines and `#` comments aside."""
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


class SkipLedger:
    """Fails the session when a test skips for a reason that nobody wrote down."""

    def __init__(self, patterns: list[str]):
        self.patterns = patterns
        self.unlisted: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Looks at one report; an expected failure counts as no skip."""
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(fnmatchcase(reason, pattern) for pattern in self.patterns):
            self.unlisted.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skipped for a reason that is not in tests/skips.txt", red=True)
            terminalreporter.write_line("\n".join(self.unlisted))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipLedger(allowed_skips(LEDGER.read_text())), "skip-ledger")


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Forked ranks that share one set of imports."""
    server = Worlds()
    yield server
    server.close()
