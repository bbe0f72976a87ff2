from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import build_dataset


@pytest.fixture(scope="session")
def own_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_dataset(tmp_path_factory.mktemp("own"))
