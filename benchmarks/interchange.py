"""Foreign checkpoints: hostile pickles that run, flipped bits that are lost, speed and memory in and out.

    python benchmarks/interchange.py
    python benchmarks/interchange.py --grafts 1000 --flips 1000 --gigabytes 2

A graft is a call of something harmful put into an honest pickle between two random opcodes, with the zip
file around it whole. A flip is one bit of a file as torch.save wrote it; it is lost when the file is read all
the same and a value differs. Exits with 1 when a graft ran, a flip was lost, or an answer was no sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pickletools
import random
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from record import machine, publish
from transformers import AutoConfig

from llmtrain.checkpoint.facts import CheckpointFacts
from llmtrain.errors import CheckpointError
from llmtrain.interchange.bring import Source, canon_of, write
from llmtrain.interchange.deepspeed_folder import read_folder
from llmtrain.interchange.give import export_checkpoint
from llmtrain.interchange.torchfile import Stored, read_torch_file

CALLS = (
    b"cposix\nsystem\n(X%s%stR0",
    b"csubprocess\ngetoutput\n(X%s%stR0",
    b"(cos\nsystem\nX%s%so0",
    b"(X%s%sios\nsystem\n0",
    b"\x8c\x02os\x8c\x06system\x93X%s%s\x85R0",
)


def honest() -> dict[str, Any]:
    """Something of each kind that a checkpoint holds."""
    values = torch.rand(4000)
    return {
        "param_shapes": [OrderedDict(a=torch.Size([30, 100]), b=torch.Size([1000]))],
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(4.0), "exp_avg": values[:3000]}}},
        "fp32_flat_groups": [values[3000:]],
        "global_steps": 4,
    }


def repacked(path: Path, content: bytes, into: Path) -> None:
    """The zip file of `path` with another pickle in it."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(into, "w") as target:
        for entry in source.infolist():
            new = content if entry.filename.endswith("data.pkl") else source.read(entry)
            target.writestr(entry.filename, new)


def grafted(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """What became of each graft."""
    good, bad, alarm = folder / "good.pt", folder / "bad.pt", folder / "alarm"
    torch.save(honest(), good)
    with zipfile.ZipFile(good) as archive:
        raw = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    places = [place for _, _, place in pickletools.genops(raw)][1:]
    command = f"touch {alarm}".encode()
    outcomes: Counter[str] = Counter(ran=0, told=0, read=0, other=0)
    for _ in range(count):
        graft = rng.choice(CALLS) % (len(command).to_bytes(4, "little"), command)
        place = rng.choice(places)
        repacked(good, raw[:place] + graft + raw[place:], bad)
        try:
            read_torch_file(bad)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes["told" if "asks for" in str(error) or "pickle" in str(error) else "other"] += 1
        outcomes["ran"] += alarm.exists()
        alarm.unlink(missing_ok=True)
    return outcomes


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in what was read, in order."""
    if isinstance(value, Stored):
        yield value.part(0, value.count)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from tensors(item)


def flipped(folder: Path, count: int, rng: random.Random) -> Counter[str]:
    """What became of each flip."""
    good, bad = folder / "good.pt", folder / "bad.pt"
    torch.save(honest(), good)
    whole, wanted = good.read_bytes(), list(tensors(read_torch_file(good)))
    outcomes: Counter[str] = Counter(found=0, harmless=0, lost=0)
    for _ in range(count):
        raw = bytearray(whole)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        bad.write_bytes(raw)
        try:
            got = list(tensors(read_torch_file(bad)))
            same = len(got) == len(wanted) and all(map(torch.equal, got, wanted))
            outcomes["harmless" if same else "lost"] += 1
        except CheckpointError:
            outcomes["found"] += 1
    return outcomes


class Anonymous:
    """The most memory that this process held meanwhile, above the start, in MB; without files it maps."""

    def __enter__(self) -> Anonymous:
        self._start = self._most = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self._most = max(self._most, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self.peak = (self._most - self._start) / 1024


def write_zero3(folder: Path, shapes: dict[str, tuple[int, ...]], dp: int = 2) -> None:
    """A folder as ZeRO-3 saves it, of one parameter group."""
    folder.mkdir()
    sizes = {name: torch.Size(shape) for name, shape in shapes.items()}
    share = sum(-(-size.numel() // dp) for size in sizes.values())
    for rank in range(dp):
        model = {"module": {}, "param_shapes": [sizes], "global_steps": 4, "dp_world_size": dp}
        model["checkpoint_parallel_dimensions"] = {"pp_degree": 1, "tp_degree": 1}
        state = {"step": torch.tensor(4.0), "exp_avg": torch.rand(share), "exp_avg_sq": torch.rand(share)}
        optimizer = {"zero_stage": 3, "fp32_flat_groups": [torch.rand(share)]}
        optimizer["optimizer_state_dict"] = {"state": {0: state}, "param_groups": []}
        torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save(
            {"optimizer_state_dict": optimizer}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        )


def timed(folder: Path, gigabytes: float) -> Iterator[tuple[str, float, float, float]]:
    """(what, megabytes of state, seconds, megabytes of memory) of the way in and out."""
    layers = max(1, round(gigabytes * 1e9 / 12 / 16e6))
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "vocab_size": 8192}
    config = {"model_type": "llama", "num_hidden_layers": layers, "num_key_value_heads": 16, **shape}
    if gigabytes < 0.1:
        config |= {"hidden_size": 64, "intermediate_size": 256}
    canon = canon_of(AutoConfig.for_model(**config))
    write_zero3(folder / "zero3", dict(canon.shapes))
    size = sum(12 * torch.Size(one).numel() for one in canon.shapes.values()) / 1e6
    facts = CheckpointFacts(4, 0, {}, "none", config, 8192, 8, 1, 1, "name: x\n")
    run = folder / "run"

    def bring() -> None:
        write(Source(read_folder(folder / "zero3"), canon), run, facts)

    def give(form: str) -> Callable[[], None]:
        def work() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                export_checkpoint(run, folder / form, form)

        return work

    for what, work in {
        "import": bring,
        "export universal": give("universal"),
        "export dcp": give("dcp"),
    }.items():
        began = time.perf_counter()
        with Anonymous() as memory:
            work()
        yield what, size, time.perf_counter() - began, memory.peak


def main() -> int:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grafts", type=int, default=300)
    parser.add_argument("--flips", type=int, default=300)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of fp32 weights and moments")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graft, flip = grafted(folder, options.grafts, rng), flipped(folder, options.flips, rng)
        rows = [
            f"| {what} | {size:.0f} | {seconds:.1f} | {size / seconds:.0f} | {peak:.0f} |"
            for what, size, seconds, peak in timed(folder, options.gigabytes)
        ]
    bound = f"{300 / max(options.grafts, 1):.1f} %"
    body = [
        machine(),
        "",
        f"| grafts | ran (95 %: below {bound}) | refused by a sentence | read | otherwise |",
        "|---|---|---|---|---|",
        f"| {options.grafts} | {graft['ran']} | {graft['told']} | {graft['read']} | {graft['other']} |",
        "",
        "| flipped bits | found | in bytes that nothing depends on | lost |",
        "|---|---|---|---|",
        f"| {options.flips} | {flip['found']} | {flip['harmless']} | {flip['lost']} |",
        "",
        "| | MB of state | s | MB/s | memory above the start, MB |",
        "|---|---|---|---|---|",
        *rows,
    ]
    command = " ".join(["python benchmarks/interchange.py", *sys.argv[1:]])
    publish("Foreign checkpoints", command, "\n".join(body), options.record)
    return 1 if graft["ran"] or graft["read"] or graft["other"] or flip["lost"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
