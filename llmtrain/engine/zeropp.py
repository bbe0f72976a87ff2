"""ZeRO++'s quantised traffic: DeepSpeed's quantizer, CUDA code that is built once and on purpose.

python -m llmtrain.engine.zeropp     builds the op; needs nvcc of torch's CUDA version, a C++ compiler, ninja
"""

from __future__ import annotations

from llmtrain.engine.built_ops import BuiltOp
from llmtrain.engine.seam import Comm
from llmtrain.errors import ConfigError, Problem
from llmtrain.plan.plan import Plan

QUANTIZER = BuiltOp(
    ("quantizer",),
    "QuantizerBuilder",
    "python -m llmtrain.engine.zeropp",
    "it needs a CUDA device, and the CUDA toolkit (nvcc) of torch's CUDA version with CUDA_HOME set to it, "
    "a C++ compiler and ninja (pip install ninja)",
)
QUANTISED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")


def require_quantizer(plan: Plan, comm: Comm) -> None:
    """Loads the op where the plan quantises. Raises the same ConfigError on every rank when one lacks it."""
    zero = plan.deepspeed["zero_optimization"]
    asked = [name for name in QUANTISED if zero.get(name)]
    if not asked:
        return
    told = [str(why) for why in comm.gather(QUANTIZER.load()) if why]
    if told:
        field = f"zero_optimization.{asked[0]}"
        raise ConfigError(Problem(field, True, plan.origins[f"ds.{field}"], told[0]))


if __name__ == "__main__":
    QUANTIZER.main()
