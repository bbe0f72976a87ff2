"""`deterministic: true`: the same run gives the same bits on a GPU, resumed or not, for some of its speed.

Without it the CUDA kernels of attention's backward pass, and cuBLAS with several workspaces, add in an
order that changes from run to run. torch then takes deterministic kernels only: flash or memory-efficient
attention in place of cuDNN's, sorted sums in place of atomic ones. NVLS, which adds inside the switch, is
taken from NCCL. An operation that has no deterministic kernel ends the run with its name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, MutableMapping
from typing import Any

import torch

from llmtrain.errors import ConfigError, Problem

# Must stand in the environment before cuBLAS and NCCL begin; each with the values that are deterministic.
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),
}
_NO_KERNEL = "does not have a deterministic implementation"


def make_deterministic(environ: MutableMapping[str, str] = os.environ) -> None:
    """For this process, for good; call before anything is computed on the device.

    Raises ConfigError when the environment says something that is not deterministic.
    """
    for name, values in VARIABLES.items():
        if environ.setdefault(name, values[0]) not in values:
            fix = f"deterministic: true needs one of {', '.join(values)}; unset it, or train without"
            raise ConfigError(Problem(name, environ[name], "environment", fix))
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it has not written
    torch.backends.cudnn.benchmark = False


def explaining(work: Callable[..., Any], origin: str) -> Callable[..., Any]:
    """`work`, in which an operation without a deterministic kernel is a ConfigError that names it."""

    @functools.wraps(work)
    def explained(*args: Any, **kwargs: Any) -> Any:
        try:
            return work(*args, **kwargs)
        except RuntimeError as error:
            if _NO_KERNEL not in str(error):
                raise
            name = str(error).partition(_NO_KERNEL)[0].strip()
            fix = f"{name} has no deterministic kernel here; take a model or kernels without it, or say false"
            raise ConfigError(Problem("deterministic", True, origin, fix)) from error

    return explained
