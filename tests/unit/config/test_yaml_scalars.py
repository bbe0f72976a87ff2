"""Scalars mean what they look like."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llmtrain.config.yaml_lines import parse_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E9", 1e9),
        ("2.5e+3", 2500.0),
        (".5", 0.5),
        ("1_000_000", 1_000_000),
        ("-7", -7),
        ("007", 7.0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("v1.2.3", "v1.2.3"),
        ("'1e-3'", "1e-3"),
        ("[1e-3, b]", [1e-3, "b"]),
        ("{a: 1}", {"a": 1}),
        (".inf", math.inf),
    ],
)
def test_scalar(text: str, value: Any) -> None:
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)
