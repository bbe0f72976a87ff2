"""What every test runs under: a small quiet CPU, no network, and a ledger of the skips that are allowed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from skip_ledger import SkipLedger
from worlds import Worlds

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


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipLedger(Path(__file__).with_name("skips.txt")), "skip-ledger")


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Forked ranks that share one set of imports."""
    server = Worlds()
    yield server
    server.close()
