"""What a run ran on and with: versions, device, kernels. For environment.json, the log and `doctor`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from llmtrain import __version__

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "numpy",
    "pydantic",
    "triton",
    "liger_kernel",
)


def versions() -> dict[str, str]:
    """Installed versions of llmtrain, Python and what the run depends on; what is missing is left out."""
    found = {"llmtrain": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """The name of this process's GPU, or of the CPU."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
