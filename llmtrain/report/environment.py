"""What a run ran on and with: versions, device, kernels. For environment.json, the log and `doctor`."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def source_digest(folder: Path = Path(__file__).parents[1]) -> str:
    """sha256 of llmtrain's own code, which an editable install can change without changing its version."""
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")):
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


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
