"""Names that other trainers have for what a run file says, and what to write here instead.

From the arguments of transformers' Trainer, TRL, axolotl, LLaMA-Factory, torchtitan, litgpt, nanoGPT and
Megatron-LM: who comes from there types them from habit. They are answered, never taken.
"""

from __future__ import annotations

# our key: the names that mean the same value
_SAME = {
    "name": "run_name project_name experiment_name",
    "seed": "data_seed random_seed",
    "output_dir": "out_dir save output_path save_dir run_dir log_dir logging_dir",
    "model.source": "model_name_or_path base_model pretrained_model pretrained_model_name_or_path "
    "checkpoint_dir",
    "model.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer_model",
    "data.train": "dataset datasets train_data data_path train_data_path dataset_path train_dataset",
    "data.eval": "eval_data valid_data_path val_data_path eval_dataset test_datasets",
    "data.seq_len": "max_seq_length max_seq_len max_length block_size seq_length sequence_len "
    "sequence_length cutoff_len context_length model_max_length",
    "batch.rows": "global_batch_size train_batch_size total_batch_size",
    "batch.micro": "per_device_train_batch_size micro_batch_size per_gpu_train_batch_size "
    "train_micro_batch_size_per_gpu device_batch_size",
    "schedule.steps": "max_steps max_iters train_iters num_steps total_steps training_steps max_train_steps",
    "schedule.tokens": "max_tokens train_tokens max_train_tokens",
    "schedule.epochs": "num_train_epochs num_epochs max_epochs epoch epochs",
    "schedule.warmup": "warmup_steps warmup_ratio num_warmup_steps lr_warmup_steps lr_warmup_iters "
    "warmup_iters lr_warmup_fraction",
    "schedule.decay": "lr_scheduler_type lr_scheduler lr_decay_style decay_lr lr_decay_type",
    "schedule.min_lr_ratio": "cosine_min_lr_ratio min_lr_rate lr_min_ratio min_lr_factor",
    "optimizer.type": "optim",
    "optimizer.lr": "learning_rate max_lr peak_lr base_lr",
    "optimizer.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optimizer.eps": "adam_epsilon adam_eps",
    "optimizer.weight_decay": "wd",
    "optimizer.clip": "max_grad_norm grad_clip clip_grad gradient_clipping max_norm gradient_clip_val",
    "parallel.pipeline": "pipeline_parallel_size pipeline_model_parallel_size pipeline_parallel_degree",
    "deepspeed": "deepspeed_config ds_config zero_stage zero_optimization",
    "checkpoint.every": "save_steps save_interval checkpoint_interval ckpt_interval",
    "checkpoint.keep": "save_total_limit keep_latest_k checkpoints_total_limit save_total",
    "eval.every": "eval_steps eval_interval evaluation_steps val_check_interval",
    "eval.rows": "eval_iters max_eval_samples max_eval_batches",
    "log.every": "logging_steps log_interval log_every_n_steps log_freq",
}
# name: what to do, where it is no key of ours or another kind of value
_OTHERWISE = {
    "gradient_accumulation_steps": "it follows from batch.rows and batch.micro: rows ÷ ranks ÷ micro",
    "accumulate_grad_batches": "it follows from batch.rows and batch.micro: rows ÷ ranks ÷ micro",
    "batch_size": "write batch.rows, the rows of a step over all ranks, and batch.micro if need be",
    "local_batch_size": "write batch.rows, the rows of a step over all ranks, and batch.micro if need be",
    "num_gpus": "give the number of ranks on the command line: --ranks N",
    "nproc_per_node": "give the number of ranks on the command line: --ranks N",
    "bf16": "write precision: bf16",
    "fp16": "write precision: fp16",
    "fp32": "write precision: fp32",
    "mixed_precision": "write precision: bf16, fp16 or fp32",
    "torch_dtype": "write precision: bf16, fp16 or fp32",
    "dtype": "write precision: bf16, fp16 or fp32",
    "gradient_checkpointing": "write recompute: full (or selective)",
    "activation_checkpointing": "write recompute: full (or selective)",
    "recompute_granularity": "write recompute: full (or selective)",
    "min_lr": "write schedule.min_lr_ratio, its share of optimizer.lr",
    "sample_packing": "rows are always packed; how: data.packing",
    "sequence_parallel": "rows are not cut; spread memory with deepspeed: zero3 or parallel.pipeline",
    "save_strategy": "write checkpoint.every, a number of steps (0: only at the end)",
    "eval_strategy": "write eval.every, a number of steps (0: only at the end)",
    "evaluation_strategy": "write eval.every, a number of steps (0: only at the end)",
    "report_to": "write log.tensorboard: true; metrics.jsonl is always written",
    "tensorboard": "write log.tensorboard: true",
    "tensorboard_dir": "write log.tensorboard: true; the events are in the run folder",
    "resume_from_checkpoint": "a run goes on by itself; --resume must or never says otherwise",
    "auto_resume_from_checkpoints": "a run goes on by itself; --resume must or never says otherwise",
    "overwrite_output_dir": "a run goes on where it stands; for another one write another name",
    "flash_attention": "attention is chosen by kernels: auto",
    "attn_implementation": "attention is chosen by kernels: auto",
    "use_liger_kernel": "kernels: auto takes Liger's where they are installed",
    "torch_compile": "write kernels: fused",
    "compile": "write kernels: fused",
    "eval_batch_size": "evaluation takes batch.micro rows at a time",
    "per_device_eval_batch_size": "evaluation takes batch.micro rows at a time",
}
_POINTERS = {
    **{name: f"write {key}" for key, names in _SAME.items() for name in names.split()},
    **_OTHERWISE,
}


def pointer(name: str) -> str:
    """What to write in a run file instead of another trainer's `name`; empty for one that nobody knows."""
    return _POINTERS.get(name.lower().replace("-", "_"), "")
