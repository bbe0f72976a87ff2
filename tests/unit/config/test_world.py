"""Who am I among how many, under every launcher."""

from __future__ import annotations

import pytest

from llmtrain.config.world import World, world_from_environment
from llmtrain.errors import ConfigError

RANKS = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, World(0, 1, 0, 1, "none")),
        ({**RANKS, "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, World(3, 4, 1, 2, "torchrun")),
        ({**RANKS, "LOCAL_SIZE": "2", "CROSS_SIZE": "2", "CROSS_RANK": "1"}, World(3, 4, 1, 2, "deepspeed")),
        (
            {
                **RANKS,
                "LOCAL_WORLD_SIZE": "2",
                "TORCHELASTIC_RUN_ID": "x",
                "ACCELERATE_MIXED_PRECISION": "no",
            },
            World(3, 4, 1, 2, "accelerate"),
        ),
        ({**RANKS, "LOCAL_WORLD_SIZE": "2", "LLMTRAIN_LAUNCHER": "llmtrain"}, World(3, 4, 1, 2, "llmtrain")),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "5",
                "SLURM_NTASKS": "8",
                "SLURM_LOCALID": "1",
                "SLURM_NTASKS_PER_NODE": "4(x2)",
            },
            World(5, 8, 1, 4, "slurm"),
        ),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}, World(0, 1, 0, 1, "none")),
        (  # the shell of salloc
            {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
            World(0, 1, 0, 1, "none"),
        ),
        (
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            World(1, 2, 1, 2, "mpi"),
        ),
        ({"RANK": "1", "WORLD_SIZE": "2"}, World(1, 2, 1, 2, "environment")),
    ],
)
def test_world(environ: dict[str, str], world: World) -> None:
    assert world_from_environment(environ) == world


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "0 <= rank < size"),
        ({"RANK": "0"}, "a launcher must set both"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK = 'x' .environment.: must be a whole number"),
    ],
)
def test_contradicting_launcher_variables(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world_from_environment(environ)
