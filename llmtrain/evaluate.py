"""`llmtrain eval`: what a model scores on held-out rows, on one device, without DeepSpeed.

The rows, the model's code, its dtype and the loss are those of training, so a checkpoint scores here what
its run recorded; or, rolling, every token of every document is scored as other tools do it
(`docs/evaluation.md`). Baselines say what the number is worth: the same model untrained, and a unigram model.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmtrain.config.schema import DataSource
from llmtrain.data.batches import held_out
from llmtrain.data.dataset import Dataset, open_dataset
from llmtrain.data.packed import PackedRows
from llmtrain.data.rolling import RollingRows
from llmtrain.data.rows import IGNORED
from llmtrain.errors import ConfigError, DataError, InputError, Problem
from llmtrain.plan.batch import TOKENS_PER_MICRO
from llmtrain.report.scores import CHUNK_ROWS, Scores, scores, text_bytes
from llmtrain.trained import Subject, fill, find_subject, model_config, precision_of

if TYPE_CHECKING:
    import torch

    from llmtrain.model.stages import StageModel

DEFAULT_SEQ_LEN = 1024  # for a model that comes without its run; shorter when the model is


@dataclass(frozen=True)
class Reading:
    """What of a split is read: `rows` as training reads them, or, `rolling`, the first `documents` whole.

    What is None is that of the run's own evaluation; for a model without a run, all there is, in rows of
    min(1024, what the model reads) tokens.
    """

    rows: int | None = None
    seq_len: int | None = None
    rolling: bool = False
    documents: int | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.rolling and self.rows is not None:
            fix = "--rolling reads whole documents; say --documents N to read fewer"
            problems.append(Problem("--rows", self.rows, "command line", fix))
        if self.documents is not None and not self.rolling:
            fix = "without --rolling rows are read, not documents; say --rows N, or add --rolling"
            problems.append(Problem("--documents", self.documents, "command line", fix))
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation and, when asked for, what two baselines score on the same rows."""

    what: str
    data: str
    split: str
    rows: int
    seq_len: int
    documents: int | None  # of a rolling evaluation
    scores: Scores
    baselines: Mapping[str, Scores] = field(default_factory=dict)

    def as_json(self) -> str:
        """One JSON object: the scores, what was scored, and `baselines` by name."""
        named = {"what": self.what, "data": self.data, "split": self.split}
        content = {**named, "rows": self.rows, "seq_len": self.seq_len, **self.scores.record()}
        if self.documents is not None:
            content["documents"] = self.documents
        if self.baselines:
            content["baselines"] = {name: found.record() for name, found in self.baselines.items()}
        return json.dumps(content)

    def as_text(self) -> str:
        """Lines for a person."""
        read = f"{self.rows:,} rows × {self.seq_len} tokens"
        if self.documents is not None:
            read = f"{self.documents:,} whole documents, rolling in {read},"
        lines = [f"{self.what} on {read} of {self.data} ({self.split})"]
        named = {"model": self.scores, **self.baselines}
        width = max(len(name) for name in named)
        return "\n".join([*lines, *(f"{name:<{width}}  {found}" for name, found in named.items())])


def evaluate_folder(
    what: str,
    data: str,
    split: str = "valid",
    reading: Reading = Reading(),  # noqa: B008 - a value
    baselines: bool = False,
) -> Evaluation:
    """Scores WHAT on a dataset split. Raises CheckpointError, ConfigError, DataError."""
    from llmtrain.model.lengths import take_length

    subject = find_subject(what)
    config = model_config(subject)
    run = subject.run
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_SEQ_LEN
    length = reading.seq_len or (run.data.seq_len if run else min(DEFAULT_SEQ_LEN, longest))
    take_length(config, length, "--seq-len")
    held = read_rows(subject, data, split, reading, length)
    dataset = held.datasets[0]
    for each in held.datasets:
        if each.excess is not None:
            print(f"note: {each.excess}", file=sys.stderr)
    check_vocabulary(subject, config, dataset)
    size = getattr(held, "text_bytes", None) or text_bytes(held, dataset.tokenizer_folder)
    stage = load_stage(subject, config, documents=held.mask_documents)
    micro = run.batch.micro if run and isinstance(run.batch.micro, int) else 0
    micro = micro or max(1, TOKENS_PER_MICRO[device_of(stage).type] // length)
    own = scores(loss_sum(stage, held, micro), held.valid_tokens, size)
    others: dict[str, Scores] = {}
    if baselines:
        del stage
        untrained = load_stage(subject, config, trained=False, documents=held.mask_documents)
        others["untrained"] = scores(loss_sum(untrained, held, micro), held.valid_tokens, size)
        unigram = unigram_loss_sum(open_dataset(data, "train"), held)
        others["unigram"] = scores(unigram, held.valid_tokens, size)
    documents = getattr(held, "documents", None)
    return Evaluation(what, data, split, held.count, length, documents, own, others)


def read_rows(
    subject: Subject, data: str, split: str, reading: Reading, seq_len: int
) -> PackedRows | RollingRows:
    """What is scored: rows as the run's own evaluation reads them, or the documents one by one."""
    if reading.rolling:
        return RollingRows(open_dataset(data, split), seq_len, reading.documents)
    run = subject.run
    wanted = reading.rows or (run.eval.rows if run else None)
    how = (run.data.mask_documents, run.data.packing) if run else (True, "concat")
    policy = run.data.too_long if run else None
    too_long = "drop" if policy in (None, "refuse") else policy
    return held_out([DataSource(path=data, split=split)], seq_len, wanted, *how, too_long)


def check_vocabulary(subject: Subject, config: Any, dataset: Dataset) -> None:
    """Raises DataError when the dataset's tokens are not the model's."""
    from llmtrain.checkpoint.facts import tokenizer_hash

    size = config.get_text_config().vocab_size
    if dataset.vocab_size > size:
        raise DataError(
            f"{dataset.folder} has token ids up to {dataset.vocab_size - 1}, {subject.name} knows {size}: "
            "evaluate on a dataset that was built with the model's tokenizer"
        )
    saved = subject.checkpoint.manifest.identity.tokenizer if subject.checkpoint else ""
    if saved and saved != tokenizer_hash(dataset.tokenizer_folder):
        raise DataError(
            f"{dataset.folder} was built with another tokenizer than {subject.name} was trained with: "
            "build the evaluation data with `tokenizer: {source: …}` naming the training data's tokenizer/"
        )


def load_stage(subject: Subject, config: Any, trained: bool = True, documents: bool = True) -> StageModel:
    """The whole model on one device, as a run computes it; with `trained` off, as its seed makes it.

    `documents`: rows hold several, which must not see each other. Raises ConfigError when the family can't.
    """
    import torch

    from llmtrain.engine import detect_device
    from llmtrain.model.build import build_stage, plan_cuts
    from llmtrain.model.kernels import choose_kernels

    device, run = detect_device(), subject.run
    precision = run.precision if run else precision_of(config)
    if precision == "fp16" and device == "cpu":
        precision = "fp32"  # exact, and fp16 on a CPU is slow
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    kernels = choose_kernels(run.kernels if run else "auto", device, precision, documents)
    weights = None
    if trained and subject.checkpoint is None:
        from llmtrain.model.weights import WeightFiles

        weights = WeightFiles(subject.name)
    seed = run.seed if run else 0
    try:
        stage = build_stage(config, plan_cuts(config, 1)[0], dtype, device, seed, weights, kernels)
    except ConfigError as error:
        raise _without_run(error) from error
    if trained and subject.checkpoint is not None:
        names = {
            stage.canonical_name(name): value for name, value in stage.state_dict(keep_vars=True).items()
        }
        fill(names, subject.checkpoint)
    return stage.eval()


def _without_run(error: ConfigError) -> ConfigError:
    """The same problems with the way out that `eval` has, which knows no key of a run."""
    fix = (
        "it is not proven to keep the documents of a row apart; add --rolling, which gives each its own rows"
    )
    return ConfigError(
        [
            Problem("eval", None, problem.origin, fix) if problem.field == "data.mask_documents" else problem
            for problem in error.problems
        ]
    )


def device_of(stage: StageModel) -> torch.device:
    """Where the model is."""
    return next(stage.parameters()).device


def loss_sum(stage: StageModel, rows: PackedRows | RollingRows, micro: int) -> float:
    """Cross-entropy in nats, summed over the rows' valid labels, `micro` rows at a time as in training."""
    import torch

    from llmtrain.engine.microbatches import micro_batch

    device = device_of(stage)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for start in range(0, rows.count, micro):
            total += stage(*micro_batch(rows, start, micro, device)).double()
    found = float(total)
    if not math.isfinite(found):
        raise InputError(
            f"the model's loss on {rows.datasets[0].folder} is {found}: its weights are not finite"
        )
    return found


def unigram_loss_sum(train: Dataset, rows: PackedRows | RollingRows) -> float:
    """What a model scores that knows only how often each token occurs in `train` (plus one), in nats."""
    if train.vocab_size != rows.datasets[0].vocab_size:
        fix = "the unigram model is fit on its train split, which must share the tokenizer"
        raise ConfigError(Problem("--data", str(train.folder), "command line", fix))
    counts = np.ones(train.vocab_size)
    for shard in train.shards:
        counts += np.bincount(shard.tokens, minlength=train.vocab_size)
    nats = np.log(counts.sum()) - np.log(counts)
    total = 0.0
    for start in range(0, rows.count, CHUNK_ROWS):
        labels = rows.read(start, min(start + CHUNK_ROWS, rows.count)).labels
        total += float(nats[labels[labels != IGNORED]].sum())
    return total
