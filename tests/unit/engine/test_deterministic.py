"""`deterministic: true` sets what it says, takes no contradiction, and names what it can't have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend

from llmtrain.engine.deterministic import explaining, make_deterministic
from llmtrain.errors import ConfigError
from llmtrain.model import attention


@pytest.fixture
def put_back() -> Iterator[None]:
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("put_back")
def test_torch_cublas_and_nccl_are_told() -> None:
    environ: dict[str, str] = {}
    make_deterministic(environ)
    assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    kept = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "NCCL_ALGO": "Ring"}
    make_deterministic(kept)
    assert kept == {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "NCCL_ALGO": "Ring"}


def test_an_environment_that_contradicts_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        make_deterministic({"CUBLAS_WORKSPACE_CONFIG": ":0:0"})
    assert str(caught.value) == (
        "CUBLAS_WORKSPACE_CONFIG = ':0:0' (environment): deterministic: true needs one of :4096:8, :16:8; "
        "unset it, or train without"
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    def step(error: str) -> None:
        raise RuntimeError(error)

    told = "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_determin…"
    with pytest.raises(
        ConfigError, match=r"^deterministic = True \(run.yaml\): cumsum_cuda_kernel has no deter"
    ):
        explaining(step, "run.yaml")(told)
    with pytest.raises(RuntimeError, match="out of memory"):
        explaining(step, "run.yaml")("CUDA out of memory")


@pytest.mark.usefixtures("put_back")
def test_attention_has_a_deterministic_kernel_to_fall_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch passes over cuDNN's then; flash of torch obeys the same switch; the package is told."""
    after_cudnn = attention.CUDNN_FIRST[attention.CUDNN_FIRST.index(SDPBackend.CUDNN_ATTENTION) + 1 :]
    assert SDPBackend.FLASH_ATTENTION in after_cudnn
    asked: list[bool] = []
    package = SimpleNamespace(
        flash_attn_varlen_func=lambda *_, **options: asked.append(options["deterministic"])
    )
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    token = torch.zeros(4, 2, 8)
    for enabled in (False, True):
        if enabled:
            make_deterministic({})
        attention.flash_varlen(token, token, token, torch.tensor([0, 4]), 4, None, None)
    assert asked == [False, True]
