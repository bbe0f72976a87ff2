"""A process that ends right before a chosen file operation, as if the power had gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

FILE_OPERATIONS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "write")


def die_before(at: int, operations: Sequence[str] = FILE_OPERATIONS) -> None:
    """From now on this process counts those functions of `os`, and exits with 9 before the `at`-th call."""
    left = [at]

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **names: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return operation(*values, **names)

        return run

    for name in operations:
        setattr(os, name, counted(getattr(os, name)))
