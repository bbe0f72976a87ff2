"""Tool calls and tool schemas in the one shape that chat templates read, however a data set keeps them.

call    {type: function, id, function: {name, arguments: {…}}}     arguments an object, never JSON text
schema  {type: function, function: {name, description, parameters}}, or as it stands
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from data_prep.documents import RejectedError

NO_CALLS = "tool calls are not a list of calls"
NO_SCHEMAS = "tools are not a list of schemas"
NO_ARGUMENTS = "arguments of a tool call are not a JSON object"
MEANT = ("default", "const")  # where a JSON schema means what it says with a null


def without_nulls(value: Any, but: Collection[str] = ()) -> Any:
    """The value without the keys that hold null, at any depth, except where they stand under one of `but`.

    A table's struct has every field of every row, so what a row does not have is null there.
    """
    if isinstance(value, Mapping):
        kept = {key: inner for key, inner in value.items() if inner is not None or key in but}
        return {key: without_nulls(inner, but) for key, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [without_nulls(inner, but) for inner in value]
    return value


def schemas_of(value: Any, bare: bool) -> tuple[Any, ...]:
    """The schemas of a `tools` field: a list, or JSON text, as tables keep what has no fixed shape.

    `bare`: a schema without its envelope gets one, as the formats have it that leave it out. Raises
    RejectedError.
    """
    value = from_json(value, NO_SCHEMAS)
    if not value:
        return ()
    if not isinstance(value, list):
        raise RejectedError(NO_SCHEMAS)
    schemas = [without_nulls(from_json(entry, NO_SCHEMAS), but=MEANT) for entry in value]
    if not all(isinstance(schema, dict) for schema in schemas):
        raise RejectedError(NO_SCHEMAS)
    if bare:
        schemas = [
            {"type": "function", "function": schema}
            if "name" in schema and "function" not in schema
            else schema
            for schema in schemas
        ]
    return tuple(schemas)


def calls_of(value: Any) -> list[dict[str, Any]]:
    """The calls of a message: a list, one call alone, or either as JSON text. Raises RejectedError."""
    value = from_json(value, NO_CALLS)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise RejectedError(NO_CALLS)
    return [_call(from_json(entry, NO_CALLS)) for entry in value]


def _call(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise RejectedError(NO_CALLS)
    call = {key: value for key, value in entry.items() if value is not None}
    function = call.get("function")
    if function is None:  # without its envelope
        function = {key: call.pop(key) for key in ("name", "arguments", "parameters") if key in call}
        call = {"type": "function", **call}
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RejectedError(NO_CALLS, "a call names no function")
    function = {key: value for key, value in function.items() if value is not None}
    given = function.pop("parameters", None) if "arguments" not in function else function["arguments"]
    return {**call, "function": {**function, "arguments": _arguments(given)}}


def _arguments(value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    value = from_json(value, NO_ARGUMENTS)
    if not isinstance(value, dict):
        raise RejectedError(NO_ARGUMENTS, repr(value)[:40])
    return value


def from_json(value: Any, reason: str) -> Any:
    """What JSON text says; any other value, and blank text, as it is. Raises RejectedError with `reason`."""
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RejectedError(reason, value[:40]) from None
