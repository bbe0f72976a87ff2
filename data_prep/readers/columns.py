"""Which columns of a table are read."""

from __future__ import annotations

from collections.abc import Sequence

from llmtrain.errors import DataError


class IfThere(str):
    """A column that is read when a table has it, and not missed when it has not."""

    __slots__ = ()


def chosen_columns(names: Sequence[str], wanted: Sequence[str], place: str) -> list[str]:
    """The columns that hold `wanted`, each a column or `column.key`. Raises DataError when one is missing."""
    columns: dict[str, None] = {}
    for path in wanted:
        name = path if path in names else path.split(".")[0]
        if name not in names and isinstance(path, IfThere):
            continue
        if name not in names:
            raise DataError(
                f"{place} has no column '{name}' (it has {', '.join(names)}): "
                "correct field or meta of this source"
            )
        columns[name] = None
    return list(columns)
