"""Which rank of how many this process is, whoever launched it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmtrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class World:
    """This process among all ranks; `local_*` among those on the same machine."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str  # "none", "torchrun", "deepspeed", "accelerate", "slurm", "mpi", "llmtrain"


# Launcher, and the names under which it tells rank, size, local rank, local size (first that is there).
_FAMILIES = (
    ("", ("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    (
        "slurm",
        ("SLURM_PROCID",),
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        ("SLURM_LOCALID",),
        ("SLURM_NTASKS_PER_NODE",),
    ),
    (
        "mpi",
        ("OMPI_COMM_WORLD_RANK", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    ),
)


_INTERACTIVE_STEP = "4294967290"  # SLURM_STEP_ID of the shell that salloc gives: no rank was started there


def _launcher(environ: Mapping[str, str]) -> str:
    """Who set RANK and WORLD_SIZE. accelerate launches through torchrun or deepspeed, so it comes first."""
    if "LLMTRAIN_LAUNCHER" in environ:
        return environ["LLMTRAIN_LAUNCHER"]
    if "ACCELERATE_MIXED_PRECISION" in environ or "ACCELERATE_USE_DEEPSPEED" in environ:
        return "accelerate"
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun"
    if "CROSS_RANK" in environ or "CROSS_SIZE" in environ:
        return "deepspeed"
    return "environment"


def _number(environ: Mapping[str, str], names: tuple[str, ...], problems: list[Problem]) -> int | None:
    for name in names:
        if name in environ:
            text = environ[name].partition("(")[0]  # slurm writes "8(x2)" for per-node counts
            if text.strip().isdigit():
                return int(text)
            problems.append(Problem(name, environ[name], "environment", "must be a whole number"))
    return None


def may_restart(environ: Mapping[str, str]) -> bool:
    """Whether torchrun starts the ranks again when one or a machine is lost: in another world, it may be."""
    return environ.get("TORCHELASTIC_MAX_RESTARTS", "0") not in ("", "0")


def world_from_environment(environ: Mapping[str, str]) -> World:
    """The world as torchrun, deepspeed, accelerate, slurm or mpi tell it; one rank when nobody does.

    A batch script's own shell has SLURM_NTASKS but no rank, so a rank must be there to count as launched.
    Raises ConfigError when the variables contradict each other.
    """
    for family, rank_names, size_names, local_rank_names, local_size_names in _FAMILIES:
        if family == "slurm" and environ.get("SLURM_STEP_ID", _INTERACTIVE_STEP) == _INTERACTIVE_STEP:
            continue
        problems: list[Problem] = []
        rank = _number(environ, rank_names, problems)
        size = _number(environ, size_names, problems)
        local_rank = _number(environ, local_rank_names, problems)
        local_size = _number(environ, local_size_names, problems)
        if problems:
            raise ConfigError(problems)
        if rank is None and size is None:
            continue
        if rank is None or size is None or not 0 <= rank < size:
            fix = "a launcher must set both, with 0 <= rank < size; start with torchrun or --ranks"
            shown = f"{rank_names[0]}={rank}, {size_names[0]}={size}"
            raise ConfigError(Problem("world", shown, "environment", fix))
        if local_rank is None:
            local_rank = rank if local_size is None else rank % local_size
        if local_size is None:
            local_size = size if local_rank == rank else local_rank + 1
        return World(rank, size, local_rank, local_size, family or _launcher(environ))
    return World(0, 1, 0, 1, "none")
