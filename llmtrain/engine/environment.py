"""What must be so before DeepSpeed starts: device, ranks, timeouts, and nothing built or leaked on the way.

Two defaults of DeepSpeed 0.19.8 are turned off here. It compiles a shared-memory op inside
`init_distributed`, which needs a C++ compiler, takes minutes and leaves 69 MB in /dev/shm for each rank
and run; training never uses it. And it creates its sub-groups without a timeout, so that a hung rank holds
the others for 30 minutes whatever was asked for.
"""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import socket
import struct
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

from llmtrain.config.world import World
from llmtrain.engine.comm import TorchComm
from llmtrain.engine.watchdog import Watchdog
from llmtrain.errors import EngineError

GROUP_TIMEOUT_S = 1800.0
LEAST_MEET_S = 60.0  # machines don't start in the same second
_SIOCGIFADDR = 0x8915  # Linux: an interface's address


def detect_device() -> str:
    """`cuda` when PyTorch sees a GPU, else `cpu`."""
    _choose_allocator(os.environ)
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _choose_allocator(environ: MutableMapping[str, str]) -> None:
    """Lets segments of device memory grow, so that sizes which change don't tear it to pieces.

    torch reads this when it is loaded. What the user has set under either name stands.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(environ):
        environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def start(
    world: World,
    device: str,
    timeout_s: float = GROUP_TIMEOUT_S,
    watch: Watchdog | None = None,
    met: Callable[[], None] = lambda: None,
) -> TorchComm:
    """Joins this process to its world and returns its line to the other ranks. `met`: all have come.

    With `watch`, ranks are waited for as long as a step may take, at least `LEAST_MEET_S`; it watches from
    the moment when all have come. Without it, or if it has no limit, as long as `timeout_s`.
    Raises EngineError when the rendezvous fails: a port in use, ranks that have not come, which it names.
    """
    _set_place(world, device)
    quiet()
    import deepspeed
    import deepspeed.ops
    import torch

    from llmtrain.engine.rendezvous import meet

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = datetime.timedelta(seconds=timeout_s)
    _give_every_group(timeout)
    if device == "cuda":
        torch.cuda.set_device(
            world.local_rank % torch.cuda.device_count()
        )  # slurm may show each task its own
        _free_memory_by_torch()
    if not torch.distributed.is_initialized():
        backend = "nccl" if device == "cuda" else "gloo"
        meet_s = max(watch.limit_s, LEAST_MEET_S) if watch is not None and watch.limit_s > 0 else timeout_s
        try:
            name, store = meet(world, meet_s)
            if watch is not None:
                watch.begin(name)
            met()
            torch.distributed.init_process_group(
                backend,
                store=store,
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
            )
            deepspeed.init_distributed(
                dist_backend=backend,
                auto_mpi_discovery=False,
                verbose=False,
                timeout=timeout,
                rank=world.rank,
                world_size=world.size,
            )
        except (RuntimeError, ValueError, OSError) as error:
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
                raise EngineError(
                    f"MASTER_PORT {where} is in use by another program: set MASTER_PORT to a free port"
                ) from error
            raise EngineError(f"rank {world.rank} could not meet the others at {where}: {error}") from error
    return TorchComm(device)


def _set_place(world: World, device: str) -> None:
    """Which rank this is and where the ranks meet, in the variables that torch and DeepSpeed read."""
    os.environ["DS_ACCELERATOR"] = device
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        LOCAL_SIZE=str(world.local_size),
    )
    if world.size == 1:  # whatever another launcher has left in this shell, there is nobody to meet
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        raise EngineError(
            "MASTER_PORT is not set, so the ranks can't meet: start with torchrun, deepspeed, "
            "accelerate, launch/slurm.sbatch or `llmtrain train RUN.yaml --ranks N`"
        )
    if world.local_size < world.size and "GLOO_SOCKET_IFNAME" not in os.environ:
        found = interface_to(os.environ["MASTER_ADDR"]) if _is_loopback(socket.gethostname()) else ""
        if found:
            os.environ["GLOO_SOCKET_IFNAME"] = found


def _is_loopback(host: str) -> bool:
    """Whether gloo, which listens where the machine's name leads, would listen where no other machine is."""
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return True


def interface_to(address: str) -> str:
    """The network interface from which packets to `address` leave (none are sent), or an empty string."""
    for target in (address, "192.0.2.1"):  # the second is nobody's: the way out of this machine
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            try:
                way.connect((target, 9))
            except OSError:
                continue
            own = way.getsockname()[0]
            for _, name in socket.if_nameindex():
                try:
                    asked = fcntl.ioctl(way, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(asked[20:24]) == own and not own.startswith("127."):
                    return name
    return ""


def _free_memory_by_torch() -> None:
    """DeepSpeed asks NVML, by numbers in CUDA_VISIBLE_DEVICES, which may hold names as well (UUIDs, MIG)."""
    import torch
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    def available_memory(self: Any, device_index: int | None = None) -> int:
        return int(torch.cuda.mem_get_info(device_index)[0])

    CUDA_Accelerator.available_memory = available_memory


def quiet() -> None:
    """Leaves DeepSpeed's and torch's warnings to problems; llmtrain logs what was chosen itself."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"deepspeed|torch\.distributed")


def free_port() -> int:
    """A TCP port that was free a moment ago on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _give_every_group(timeout: datetime.timedelta) -> None:
    """Makes `torch.distributed.new_group` pass `timeout` where its caller (DeepSpeed) passes none."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    original = getattr(distributed_c10d.new_group, "__wrapped__", distributed_c10d.new_group)

    def new_group(*args: Any, **kwargs: Any) -> Any:
        if len(args) < 2 and kwargs.get("timeout") is None:
            kwargs["timeout"] = timeout
        return original(*args, **kwargs)

    new_group.__wrapped__ = original  # type: ignore[attr-defined]
    distributed_c10d.new_group = new_group
    dist.new_group = new_group
