"""The GPU session: every part has a limit, all of them fit into ten minutes, and none stops the others."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_session.sh"
# Stands in for Python: says what it was asked for; one program fails, and one hangs in spite of SIGTERM.
PYTHON = """#!/bin/bash
echo "ran $*"
case "$*" in
  *gpu_profile*) exit 3 ;;
  *gpu_kernels*) trap "" TERM; sleep 30 & wait ;;
  *gpu_zero*) echo "| a table |" >"$BENCHMARK_RESULTS/card-date.md" ;;
esac
"""


def test_all_parts_run_within_ten_minutes_whatever_becomes_of_one(tmp_path: Path) -> None:
    limits = dict(re.findall(r"\bpart ([\w-]+) (\d+) ", text := SCRIPT.read_text()))
    assert sum(map(int, limits.values())) <= 600
    assert set(re.findall(r"benchmarks/(\w+\.py)", text)) <= {
        path.name for path in SCRIPT.parent.glob("*.py")
    }
    quick = tmp_path / "benchmarks" / "gpu_session.sh"
    quick.parent.mkdir()
    quick.write_text(text.replace("part kernels 35", "part kernels 1").replace("-k 10", "-k 1"))
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", str(quick)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(out)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = dict(re.findall(r"^(\S+) +exit (.+), \d+ s$", (out / "parts.txt").read_text(), re.MULTILINE))
    assert set(limits) - set(ends) <= {"device"}
    assert ends["profile"] == "3" and ends["zero"] == "0" and ends["kernels"].startswith(("137", "124"))
    log = (out / "log.txt").read_text()
    assert "--model 1.3b --kernels auto fused" in log and "-m pytest tests/gpu -q -n 4" in log
    assert done.stdout.rstrip().endswith((out / "parts.txt").read_text().rstrip()), "the ends come last"
    assert "| a table |" in done.stdout.partition("imports ")[2]
