"""A ledger of the skips that are allowed: any other fails the session and is named at its end."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest


class SkipLedger:
    """A pytest plugin; `ledger` holds one pattern per line, blank lines and `#` comments aside."""

    def __init__(self, ledger: Path):
        lines = map(str.strip, ledger.read_text().splitlines())
        self.patterns = [line for line in lines if line and not line.startswith("#")]
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

    def pytest_testnodedown(self, node: object) -> None:
        """A process of pytest-xdist has ended; what it skipped while collecting nobody else has heard."""
        for line in getattr(node, "workeroutput", {}).get("unlisted skips", []):
            if line not in self.unlisted:
                self.unlisted.append(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["unlisted skips"] = self.unlisted
        if self.unlisted:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("skipped for a reason that is not in tests/skips.txt", red=True)
            terminalreporter.write_line("\n".join(self.unlisted))
