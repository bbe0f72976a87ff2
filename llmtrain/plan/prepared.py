"""A run with its data and its plan, checked together before anything is started or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.config.load import LoadedRun, load_run
from llmtrain.data.batches import Batches, held_out, rows_per_epoch
from llmtrain.data.packed import PackedRows
from llmtrain.data.vocabulary import TOKENIZER_JSON, token_numbers
from llmtrain.errors import ConfigError, DataError
from llmtrain.plan.begun import has_begun
from llmtrain.plan.model_place import check_places
from llmtrain.plan.model_rules import id_problems
from llmtrain.plan.plan import Plan, make_plan


@dataclass(frozen=True)
class PreparedRun:
    """A run whose input is right, as far as that can be told without torch."""

    loaded: LoadedRun
    plan: Plan
    batches: Batches
    evaluation: PackedRows | None


def prepare(path: str | Path, overrides: Sequence[str], ranks: int, device: str) -> PreparedRun:
    """Reads the run, plans it and opens its data. Raises ConfigError or DataError; writes nothing."""
    loaded = load_run(path, overrides)
    check_places(loaded)
    begun, rows = has_begun(loaded.config.folder), epoch_rows(loaded)
    plan = make_plan(loaded, ranks, device, goes_on=begun, epoch_rows=rows)
    data = plan.run.data
    batches = Batches.of_run(data, plan.batch.rows, plan.run.seed, plan.schedule.steps, plan.origins)
    wrong = id_problems(loaded, batches.vocab_size)
    if wrong:
        raise ConfigError(wrong)
    evaluation = None
    if data.eval:
        evaluation = held_out(
            data.eval,
            data.seq_len,
            plan.run.eval.rows,
            data.mask_documents,
            data.packing,
            data.too_long or "refuse",
        )
    check_tokenizers(loaded, batches, evaluation)
    return PreparedRun(loaded, plan, batches, evaluation)


def epoch_rows(loaded: LoadedRun) -> int | None:
    """Rows of all training data where schedule.epochs makes the run's length depend on them.

    Raises DataError when they can't be counted.
    """
    asked = loaded.config.schedule.epochs
    if asked is None:
        return None
    try:
        return rows_per_epoch(loaded.config.data)
    except DataError as error:
        origin = loaded.origin("schedule.epochs")
        why = f"schedule.epochs = {asked:g} ({origin}): how many steps that is follows from the data; {error}"
        raise DataError(why) from error


def check_tokenizers(loaded: LoadedRun, batches: Batches, evaluation: PackedRows | None) -> None:
    """Raises DataError when the data was made with another tokenizer than the model's or the eval data's.

    Tokenizers are the same when they give every token the same number. A Hub id's is fetched if it can be.
    """
    ours = token_numbers(batches.tokenizer_folder)
    model = loaded.config.model
    others: dict[str, Path | None] = {}
    for field, place in (("model.tokenizer", model.tokenizer), ("model.source", model.source)):
        if place is not None:
            others[f"{field} = {place!r} ({loaded.origin(field)})"] = _folder_of(place)
    for dataset in evaluation.datasets if evaluation else ():
        others[f"data.eval: {dataset.folder}"] = dataset.tokenizer_folder
    for name, folder in others.items():
        theirs = token_numbers(folder) if folder else {}
        changed = sum(theirs.get(token) != number for token, number in ours.items())
        if theirs and changed:
            raise DataError(
                f"{name}: its tokenizer is not the one that {batches.datasets[0].folder} was built with "
                f"({changed:,} of {len(ours):,} tokens differ): build the dataset with this tokenizer "
                "(tokenizer: {source: …}), or use the dataset's own"
            )


def _folder_of(place: str) -> Path | None:
    """The folder of a model's tokenizer.json, fetched when `place` is a Hub id; None when there is none."""
    here = Path(place).expanduser()
    if here.is_dir():
        return here
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, TOKENIZER_JSON)).parent
    except Exception:  # noqa: BLE001 - no network or no such file; loading the model says what is wrong
        return None
