"""ZeRO-2 and ZeRO-3 without stops of the host inside a micro-batch: the device's streams wait for each other.

Once in every micro-batch DeepSpeed 0.19.8 halts the host until its reductions are done: ZeRO-2 until the
whole device is (with overlap_comm), ZeRO-3 until its reduction stream is. On one rank ZeRO-3 halts it for
every module, where nothing is gathered. What follows on the device needs the order of streams and nothing
more; so the host runs ahead. With offload the CPU reads what was copied to it: there DeepSpeed's own
waits stay. So do ZeRO-3's waits for old gathers and reductions, which bound its memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def order_streams(optimizer: Any) -> None:
    """Changes a ZeRO-2 or ZeRO-3 optimizer on a device that has streams; leaves every other one alone."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.resolves_data_dependency():
        return
    if hasattr(optimizer, "reduce_and_partition_stream"):
        if not optimizer.offload_optimizer:
            _order_reductions(optimizer, accelerator)
        _order_lone_gathers(accelerator)
    elif getattr(optimizer, "overlap_comm", False) and not optimizer.cpu_offload:
        optimizer.reduce_ipg_grads = _ordered(
            optimizer.reduce_ipg_grads, accelerator, optimizer.reduction_stream
        )
        optimizer.independent_gradient_partition_epilogue = _ordered(
            optimizer.independent_gradient_partition_epilogue, accelerator, optimizer.reduction_stream
        )


def _ordered(work: Callable[..., Any], accelerator: Any, stream: Any) -> Callable[..., Any]:
    """`work`, in which `accelerator.synchronize()` orders the reductions and the computation, both ways."""

    def in_order(*_: Any) -> None:
        current = accelerator.current_stream()
        current.wait_stream(stream)
        stream.wait_stream(current)

    @functools.wraps(work)
    def ordered(*args: Any, **kwargs: Any) -> Any:
        halt = accelerator.synchronize
        accelerator.synchronize = in_order
        try:
            return work(*args, **kwargs)
        finally:
            accelerator.synchronize = halt

    return ordered


def _order_reductions(optimizer: Any, accelerator: Any) -> None:
    """ZeRO-3's end of a backward pass: what comes next waits for the reductions on the device."""
    epilogue = optimizer.independent_gradient_partition_epilogue
    stream = optimizer.reduce_and_partition_stream

    @functools.wraps(epilogue)
    def ordered() -> Any:
        stream.synchronize = lambda: accelerator.current_stream().wait_stream(stream)
        try:
            return epilogue()
        finally:
            del stream.synchronize

    optimizer.independent_gradient_partition_epilogue = ordered


def _order_lone_gathers(accelerator: Any) -> None:
    """One rank's "gathers" copy in the stream that is then waited for: no host needs to wait."""
    from deepspeed.runtime.zero.partition_parameters import NoGatherCoalescedHandle, NoGatherHandle

    for handle in (NoGatherHandle, NoGatherCoalescedHandle):
        wait = getattr(handle.wait, "__wrapped__", handle.wait)

        def ordered(self: Any, wait: Any = wait, **kwargs: Any) -> None:
            needs = accelerator.resolves_data_dependency
            accelerator.resolves_data_dependency = lambda: True
            try:
                wait(self, **kwargs)
            finally:
                accelerator.resolves_data_dependency = needs

        ordered.__wrapped__ = wait  # type: ignore[attr-defined]
        handle.wait = ordered
