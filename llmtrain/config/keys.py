"""Every key DeepSpeed 0.19.8 reads from its configuration, at every level, and what llmtrain does with it.

DeepSpeed silently ignores unknown keys at the top level and in several sections, so a typing error trains
something else. A test compares this table with the installed DeepSpeed. Source: deepspeed/runtime/config.py,
runtime/zero/config.py, runtime/precision_config.py and the sections' own config modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["flag", "whole", "number", "text", "list", "any", "section"]


@dataclass(frozen=True)
class Key:
    """One key: the kind of its value, the value it gets when nobody says one, and whether it can be had."""

    kind: Kind
    default: Any = None
    choices: tuple[Any, ...] = ()
    keys: Mapping[str, Key] | None = None  # of a section
    refused: str = ""  # why llmtrain can't honour it, and the way out
    least: float = 0  # of a number
    harmless: tuple[Any, ...] = ()  # values that ask for nothing: such a key is dropped
    stages: tuple[int, ...] = (0, 1, 2, 3)  # ZeRO stages in which it matters: there it is made explicit

    @property
    def known(self) -> Mapping[str, Key]:
        """The keys of a section."""
        assert self.keys is not None, "only a section has keys"
        return self.keys


def _flag(default: bool, stages: tuple[int, ...] = (0, 1, 2, 3)) -> Key:
    return Key("flag", default, stages=stages)


def _whole(default: int | None = None, stages: tuple[int, ...] = (0, 1, 2, 3)) -> Key:
    return Key("whole", default, stages=stages)


def _number(default: float | None = None) -> Key:
    return Key("number", default)


def _text(default: str | None = None) -> Key:
    return Key("text", default)


def _choice(*choices: str, default: str | None = None) -> Key:
    return Key("text", default, choices)


def _section(**keys: Key) -> Key:
    return Key("section", keys=keys)


def _refused(reason: str, *harmless: Any) -> Key:
    return Key("any", refused=reason, harmless=harmless)


_OFF: tuple[Any, ...] = ({}, False, {"enabled": False})
_Z12, _Z123, _Z3 = (1, 2), (1, 2, 3), (3,)
_RECOMPUTE = "llmtrain recomputes with the model's own gradient checkpointing; set recompute: full in the run"
_OWN_CHECKPOINT = "llmtrain writes its own checkpoints, which load in any topology; remove it"
_OWN_OPTIMIZER = "llmtrain brings its own AdamW (torch, fused); remove it"
_CPU_ADAM = "it needs DeepSpeed's own CPU Adam, which a compiler must build; llmtrain uses torch's; remove it"
_COMPILE = "llmtrain compiles through `kernels` in the run; remove it"
_PRECISION = "the run's `precision` decides the data types of parameters and buffers; remove it"
_FP32_MASTER = "llmtrain keeps fp32 master weights and moments, which its checkpoints hold; remove it"
_CONSTANT_WORLD = "llmtrain parallelises by ZeRO and by pipeline (parallel.pipeline in the run); remove it"
_WARMUP = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "total_num_steps")

OFFLOAD_OPTIMIZER = _section(
    device=_choice("none", "cpu", "nvme", default="none"),
    nvme_path=_text(),
    buffer_count=_whole(4),
    pin_memory=_flag(True),
    pipeline_read=_flag(False),
    pipeline_write=_flag(False),
    fast_init=_flag(False),
    ratio=_number(1.0),
    super_offload=_refused(_CPU_ADAM, False),
    cpuadam_cores_perc=_number(0.8),
)
OFFLOAD_PARAM = _section(
    device=_choice("none", "cpu", "nvme", default="none"),
    nvme_path=_text(),
    buffer_count=_whole(5),
    buffer_size=_whole(100_000_000),
    max_in_cpu=_whole(1_000_000_000),
    pin_memory=_flag(True),
)
LEAF_MODULE = _section(classes=Key("list"), names=Key("list"), name_suffixes=Key("list"))

# Bucket sizes count elements. 50 M elements are 100 MB in 16 bit: enough to saturate a link, where
# DeepSpeed's own 500 M would hold 1-2 GB in two buffers on every rank.
ZERO_OPTIMIZATION = _section(
    stage=Key("whole", choices=(0, 1, 2, 3)),
    contiguous_gradients=_flag(True, _Z123),
    reduce_scatter=_flag(True, _Z123),
    reduce_bucket_size=_whole(50_000_000, _Z123),
    use_multi_rank_bucket_allreduce=_flag(True, _Z12),
    allgather_partitions=_flag(True, _Z12),
    allgather_bucket_size=_whole(200_000_000, _Z12),
    overlap_comm=Key("flag", stages=_Z123),  # decided by resolve(): device, stage and pipeline
    compute_grad_norm=_refused("the gradient norm is checked before every step; remove it", True),
    load_from_fp32_weights=_flag(True, ()),
    elastic_checkpoint=_refused(_OWN_CHECKPOINT, False),
    offload_param=OFFLOAD_PARAM,
    offload_optimizer=OFFLOAD_OPTIMIZER,
    zenflow=_refused(_CPU_ADAM, None),
    sub_group_size=_whole(1_000_000_000, _Z3),
    cpu_offload=Key("flag", stages=()),  # old spelling of offload_optimizer, translated by resolve()
    cpu_offload_param=Key("flag", stages=()),  # old spelling of offload_param
    cpu_offload_use_pin_memory=Key("flag", stages=()),
    prefetch_bucket_size=_whole(None, ()),
    stage3_prefetch_bucket_size=_whole(50_000_000, _Z3),
    param_persistence_threshold=_whole(None, ()),
    stage3_param_persistence_threshold=_whole(100_000, _Z3),
    model_persistence_threshold=_whole(None, ()),
    stage3_model_persistence_threshold=_whole(None, ()),
    max_live_parameters=_whole(None, ()),
    stage3_max_live_parameters=_whole(1_000_000_000, _Z3),
    max_reuse_distance=_whole(None, ()),
    stage3_max_reuse_distance=_whole(1_000_000_000, _Z3),
    gather_16bit_weights_on_model_save=_flag(False, ()),
    stage3_gather_16bit_weights_on_model_save=_flag(False, _Z3),
    stage3_gather_fp16_weights_on_model_save=_flag(False, ()),
    module_granularity_threshold=_whole(None, ()),
    stage3_module_granularity_threshold=_whole(0, _Z3),
    use_all_reduce_for_fetch_params=_flag(False, ()),
    stage3_use_all_reduce_for_fetch_params=_flag(False, _Z3),
    allgather_sequential=_flag(False, ()),
    stage3_allgather_sequential=_flag(False, _Z3),
    ignore_unused_parameters=_flag(True, _Z12),
    legacy_stage1=_refused("DeepSpeed has no second ZeRO-1 any more; remove it", False),
    round_robin_gradients=_flag(False, _Z12),
    parameter_alignment=_flag(False, _Z12),
    zero_hpz_partition_size=_whole(1, _Z3),
    zero_quantized_weights=_flag(False, _Z3),
    zero_quantized_nontrainable_weights=_flag(False, _Z3),
    zero_quantized_gradients=_flag(False, _Z3),
    memory_efficient_linear=_flag(True, _Z3),
    pipeline_loading_checkpoint=_refused(_OWN_CHECKPOINT, False),
    override_module_apply=_flag(True, _Z3),
    log_trace_cache_warnings=_flag(False, ()),
    enable_sanity_checks=_flag(False, ()),
    save_muon_momentum_buffer_in_memory=_refused(_OWN_OPTIMIZER, False),
    leaf_module=LEAF_MODULE,
)
# Spellings that mean the same key; the left one is translated by resolve().
ZERO_ALIASES = {
    "prefetch_bucket_size": "stage3_prefetch_bucket_size",
    "param_persistence_threshold": "stage3_param_persistence_threshold",
    "model_persistence_threshold": "stage3_model_persistence_threshold",
    "max_live_parameters": "stage3_max_live_parameters",
    "max_reuse_distance": "stage3_max_reuse_distance",
    "gather_16bit_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "stage3_gather_fp16_weights_on_model_save": "stage3_gather_16bit_weights_on_model_save",
    "module_granularity_threshold": "stage3_module_granularity_threshold",
    "use_all_reduce_for_fetch_params": "stage3_use_all_reduce_for_fetch_params",
    "allgather_sequential": "stage3_allgather_sequential",
}

BF16 = _section(
    enabled=_flag(False),
    # False (DeepSpeed's default) counts gradients twice in a bf16 pipeline: tests/parity found it
    immediate_grad_update=_flag(True),
    check_grad_overflow=_flag(True),
    bf16_master_weights_and_grads=_refused(_FP32_MASTER, False),
    bf16_optimizer_states=_refused(_FP32_MASTER, False),
)
FP16 = _section(
    enabled=_flag(False),
    auto_cast=_flag(False),
    loss_scale=_number(0),
    initial_scale_power=_whole(16),
    loss_scale_window=Key("whole", 1000, least=1),
    hysteresis=_whole(2),
    consecutive_hysteresis=_flag(False),
    min_loss_scale=Key("whole", 1, least=1),
    fp16_master_weights_and_grads=_refused(_FP32_MASTER, False),
)
OPTIMIZER = _section(
    type=_text(),
    params=_section(
        lr=_number(),
        betas=Key("list"),
        eps=_number(),
        weight_decay=_number(),
        torch_adam=_flag(True),
        adam_w_mode=_refused("llmtrain's Adam decouples weight decay (AdamW); remove it", True),
        bias_correction=_refused("AdamW corrects its bias; remove it", True),
        amsgrad=_refused("AMSGrad is not offered; remove it", False),
        fp32_optimizer_states=_refused(_FP32_MASTER, True),
        foreach=Key("flag"),
        fused=Key("flag"),
        max_grad_norm=_refused("DeepSpeed ignores it here; write gradient_clipping instead", 0, 0.0),
    ),
    legacy_fusion=_refused(_OWN_OPTIMIZER, False),
)
SCHEDULER = _section(
    type=_text(),
    params=_section(
        **{name: Key("any") for name in _WARMUP},
        warmup_min_ratio=Key("any"),
        cos_min_ratio=Key("any"),
        last_batch_iteration=_refused("a resumed run knows its step; remove it", -1),
    ),
)
ACTIVATION_CHECKPOINTING = _section(
    partition_activations=_refused(_RECOMPUTE, False),
    number_checkpoints=_refused(_RECOMPUTE, False),
    contiguous_memory_optimization=_refused(_RECOMPUTE, False),
    cpu_checkpointing=_refused(_RECOMPUTE, False),
    profile=_refused(_RECOMPUTE, False),
    synchronize_checkpoint_boundary=_refused(_RECOMPUTE, False),
)
PIPELINE = _section(
    stages=_whole(1),
    partition=_refused('llmtrain balances the stages itself; write "auto" or remove it', "best", "uniform"),
    seed_layers=_refused("weights are drawn by parameter name in every topology; remove it", False),
    activation_checkpoint_interval=_refused(_RECOMPUTE, 0),
    pipe_partitioned=_flag(True),
    grad_partitioned=_flag(True),
    use_reentrant=_refused("recomputation is non-reentrant; remove it", False),
)
DATA_TYPES = _section(
    grad_accum_dtype=_choice("fp32", "fp16", "bf16"),
    param_dtype=_refused(_PRECISION, None),
    buffer_dtype=_refused(_PRECISION, None),
    keep_in_fp32_modules=_refused(_PRECISION, "auto"),
)
AIO = _section(
    block_size=_whole(1_048_576),
    queue_depth=_whole(8),
    intra_op_parallelism=_whole(1),
    single_submit=_flag(False),
    overlap_events=_flag(True),
    use_gds=_refused("GPUDirect Storage needs an op that a run would have to compile; remove it", False),
)
TORCH_AUTOCAST = _section(
    enabled=_refused("the run's `precision` decides; remove torch_autocast", False),
    dtype=Key("any"),
    lower_precision_safe_modules=Key("any"),
)
COMMS_LOGGER = _section(
    enabled=_flag(False),
    prof_all=_flag(True),
    prof_ops=Key("list", []),
    verbose=_flag(False),
    debug=_flag(False),
)
FLOPS_PROFILER = _section(
    enabled=_flag(False),
    recompute_fwd_factor=_number(0.0),
    profile_step=_whole(1),
    module_depth=Key("whole", -1, least=-1),
    top_modules=_whole(1),
    detailed=_flag(True),
    output_file=_text(),
)
TIMERS = _section(throughput=_section(enabled=_flag(True), synchronized=_flag(True)))
_JOB = "DeepSpeedJobName"
TENSORBOARD = _section(enabled=_flag(False), output_path=_text(""), job_name=_text(_JOB))
CSV_MONITOR = _section(enabled=_flag(False), output_path=_text(""), job_name=_text(_JOB))
WANDB = _section(enabled=_flag(False), group=_text(), team=_text(), project=_text("deepspeed"))
COMET = _section(
    enabled=_flag(False),
    samples_log_interval=_whole(100),
    project=_text(),
    workspace=_text(),
    api_key=_text(),
    experiment_name=_text(),
    experiment_key=_text(),
    online=Key("flag"),
    mode=_text(),
)

TOP = _section(
    train_batch_size=Key("whole", least=1),
    train_micro_batch_size_per_gpu=Key("whole", least=1),
    gradient_accumulation_steps=Key("whole", least=1),
    gradient_clipping=_number(),
    managed_gradient_accumulation=_refused("llmtrain leaves accumulation to DeepSpeed; remove it", True),
    steps_per_print=Key("number", harmless=("inf", float("inf"))),
    dump_state=_flag(False),
    disable_python_gc=_flag(False),
    disable_allgather=_refused("DeepSpeed reads it and does nothing with it; remove it", False),
    communication_data_type=_choice("fp32", "fp16", "bf16"),
    seq_parallel_communication_data_type=_choice("fp32", "fp16", "bf16"),
    prescale_gradients=_flag(False),
    gradient_predivide_factor=_number(1.0),
    gradient_allreduce_op=_refused('the loss is a mean over the tokens of a step; write "mean"', "mean"),
    zero_optimization=ZERO_OPTIMIZATION,
    zero_allow_untested_optimizer=_flag(False),
    zero_force_ds_cpu_optimizer=_refused(_CPU_ADAM, False),
    bf16=BF16,
    bfloat16=BF16,  # old spelling of bf16
    fp16=FP16,
    torch_autocast=TORCH_AUTOCAST,
    data_types=DATA_TYPES,
    optimizer=OPTIMIZER,
    scheduler=SCHEDULER,
    activation_checkpointing=ACTIVATION_CHECKPOINTING,
    pipeline=PIPELINE,
    aio=AIO,
    comms_logger=COMMS_LOGGER,
    flops_profiler=FLOPS_PROFILER,
    tensorboard=TENSORBOARD,
    wandb=WANDB,
    csv_monitor=CSV_MONITOR,
    comet=COMET,
    timers=TIMERS,
    wall_clock_breakdown=_flag(False),
    memory_breakdown=_flag(False),
    log_level=_text(),
    vocabulary_size=_whole(),
    dataloader_drop_last=_refused("rows are read by step, without DeepSpeed's loader; remove it", False),
    checkpoint=_refused(_OWN_CHECKPOINT, {}),
    datastates_ckpt=_refused(_OWN_CHECKPOINT, *_OFF),
    compile=_refused(_COMPILE, {}, {"deepcompile": False}),
    autotuning=_refused("`llmtrain plan` sizes a run before it starts; remove it", *_OFF),
    hybrid_engine=_refused("it serves RLHF generation only; remove it", *_OFF),
    weight_quantization=_refused("training weights are not quantised; remove it", {}),
    data_efficiency=_refused("data order is arithmetic (data.train in the run); remove it", *_OFF),
    tensor_parallel=_refused(_CONSTANT_WORLD, {}, {"autotp_size": 0}, {"autotp_size": 1}),
    sequence_parallel_size=_refused(_CONSTANT_WORLD, 1),
    expert_parallel=_refused(_CONSTANT_WORLD, *_OFF),
    use_data_before_expert_parallelism=_refused(_CONSTANT_WORLD, False),
    allgather_size=_refused("it belongs to an old format; write zero_optimization.allgather_bucket_size"),
)

# Keys that older DeepSpeed versions read and 0.19.8 rejects, even when they are switched off.
REMOVED = {
    "amp": "Apex AMP is gone from DeepSpeed; say precision: bf16 or fp16 in the run and remove it",
    "nebula": "Nebula is gone from DeepSpeed; llmtrain writes its own checkpoints; remove it",
    "compression_training": "the compression library is gone from DeepSpeed; remove it",
    "quantize_training": "quantised training (MoQ) is gone from DeepSpeed; remove it",
    "sparse_gradients": "it is gone from DeepSpeed; embeddings built with sparse=True need no key; remove it",
    "eigenvalue": "it belonged to MoQ, which is gone from DeepSpeed; remove it",
    "sparse_attention": "it is gone from DeepSpeed; attention is chosen by `kernels` in the run; remove it",
    "elasticity": "elastic training is gone from DeepSpeed; checkpoints load on any number of ranks, "
    "so restart with another one; remove it",
    "graph_harvesting": "it is gone from DeepSpeed; remove it",
    "curriculum_learning": "it is gone from DeepSpeed; order the data with data.train in the run; remove it",
    "progressive_layer_drop": "it is gone from DeepSpeed; remove it",
}
REMOVED_ZERO = {
    "mics_shard_size": "MiCS is gone from DeepSpeed; zero_hpz_partition_size shards within a node; remove it",
    "mics_hierarchical_params_gather": "MiCS is gone from DeepSpeed; remove it",
    "zeropp_loco_param": "LoCo is gone from DeepSpeed; zero_quantized_gradients works without it; remove it",
}

# Keys that DeepSpeed once had under another name: no spelling is near enough to guess.
RENAMED = {
    "aio.thread_count": "intra_op_parallelism",
    "zero_optimization.cpu_offload_params": "offload_param",
    "zero_optimization.allgather_size": "allgather_bucket_size",
    "gradient_clip": "gradient_clipping",
    "max_grad_norm": "gradient_clipping",
    "micro_batch_size": "train_micro_batch_size_per_gpu",
}
