"""What is set before torch is loaded, and what of the user's stands."""

from __future__ import annotations

import pytest

from llmtrain.engine.environment import _choose_allocator


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_device_memory_grows_in_segments_unless_the_user_has_said_otherwise(name: str) -> None:
    environ: dict[str, str] = {}
    _choose_allocator(environ)
    assert environ == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    said = {name: "max_split_size_mb:128"}
    _choose_allocator(said)
    assert said == {name: "max_split_size_mb:128"}
