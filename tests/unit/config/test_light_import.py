"""Reading a run, and planning it, must not cost the seconds that importing torch costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llmtrain

PACKAGE = Path(llmtrain.__file__).parent


def test_config_and_plan_import_neither_torch_nor_deepspeed() -> None:
    names = [
        f"llmtrain.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}"
        for folder in ("config", "plan")
        for path in (PACKAGE / folder).glob("*.py")
    ]
    assert len(names) > 15
    program = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
