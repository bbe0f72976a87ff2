"""A few fixed rows and the loss an engine computed on them: the proof that a later load is the same model.

`python -m llmtrain.checkpoint.probe FOLDER` reads a probe as JSON from stdin, loads FOLDER with
transformers alone, and prints the loss it gets: what a user of the exported model would get.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from llmtrain.config.schema import Section
from llmtrain.data.rows import IGNORED, RowArrays, Rows
from llmtrain.engine.seam import Engine

_Row = tuple[int, ...]


class Probe(Section):
    """Rows [n][s] as in `RowArrays`, and `loss`: the mean cross-entropy over their valid labels, in nats."""

    tokens: tuple[_Row, ...]
    positions: tuple[_Row, ...]
    labels: tuple[_Row, ...]
    loss: float


class _Few:
    """Rows that are already read."""

    def __init__(self, arrays: RowArrays):
        self._arrays = arrays
        self.count, self.seq_len = arrays.tokens.shape
        self.valid_tokens = int((arrays.labels != IGNORED).sum())

    def read(self, start: int, stop: int) -> RowArrays:
        few = self._arrays
        return RowArrays(few.tokens[start:stop], few.labels[start:stop], few.positions[start:stop])


def take_probe(engine: Engine, rows: Rows, count: int = 2) -> Probe:
    """What the engine makes of the first `count` of `rows` now; every rank calls it and gets the same."""
    few = _Few(rows.read(0, min(count, rows.count)))
    arrays = few.read(0, few.count)
    return Probe(
        tokens=arrays.tokens.tolist(),
        positions=arrays.positions.tolist(),
        labels=arrays.labels.tolist(),
        loss=engine.evaluate(few).loss,
    )


def loss_of(model: Any, probe: Probe) -> float:
    """The loss of a transformers causal LM on the probe's rows, summed in fp32: by rows, or by documents.

    By documents where lengths change the rotary frequencies: transformers would take a whole row's length,
    training takes each document's. The shortest comes first: what a longer one has left is kept.
    """
    import torch

    from llmtrain.model.rotary import reach

    total, valid = 0.0, 0
    pieces = list(zip(probe.tokens, probe.positions, probe.labels, strict=True))
    if reach(model.config) is not None:
        pieces = sorted((one for row in pieces for one in _documents(*row)), key=lambda one: len(one[0]))
    with torch.inference_mode():
        for tokens, positions, labels in pieces:
            logits = model(
                input_ids=torch.tensor([tokens]), position_ids=torch.tensor([positions]), use_cache=False
            ).logits
            wanted = torch.tensor(labels)
            total += float(
                torch.nn.functional.cross_entropy(
                    logits[0].float(), wanted, ignore_index=IGNORED, reduction="sum"
                )
            )
            valid += int((wanted != IGNORED).sum())
    return total / max(valid, 1)


def taken_otherwise(folder: Path, model: Any) -> dict[str, Any]:
    """What a loaded model has of its folder's settings in another way than the folder says, or must not have.

    A CPU takes weights that are said to be quantized as they are, where a GPU would look for scales.
    """
    wrong: dict[str, Any] = {}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    if any("quantization_config" in part for part in parts):
        wrong["quantization_config"] = "said of weights that are not quantized"
    if (folder / "generation_config.json").is_file():
        said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
        if model.generation_config.eos_token_id != said:
            wrong["eos_token_id"] = {"written": said, "taken": model.generation_config.eos_token_id}
    return wrong


def _documents(tokens: _Row, positions: _Row, labels: _Row) -> list[tuple[_Row, _Row, _Row]]:
    """A row's documents, each by itself."""
    starts = [at for at, position in enumerate(positions) if at == 0 or position != positions[at - 1] + 1]
    cuts = [slice(*ends) for ends in zip(starts, [*starts[1:], len(positions)], strict=True)]
    return [(tokens[cut], positions[cut], labels[cut]) for cut in cuts]


def _main() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    folder = Path(sys.argv[1])
    probe = Probe.model_validate_json(sys.stdin.read())
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    wrong |= taken_otherwise(folder, model)
    print(json.dumps({"loss": loss_of(model.eval(), probe), "wrong": wrong}))


if __name__ == "__main__":
    _main()
