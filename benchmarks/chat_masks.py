"""Loss masks of conversations: how many of many are learnt exactly, and how fast they are made.

    python benchmarks/chat_masks.py [--conversations 20000] [--record]

Random conversations of hostile contents (marks of templates in pieces, white space of all kinds, combining
and joined characters) in the shapes of five families of chat templates, with a byte-level and a
SentencePiece-like tokenizer. Accepted means: the tokens are those of the rendering as it was written by
hand, and the trained ones decode to just what the assistant wrote and the ends of its turns. Refused means:
a token lies on both sides of a turn's edge, and it was looked whether that is so. Wrong is anything else.

Speed is of rendering, proof, tokens and mask together, on one core, with plain contents of about 1000
characters in 4 turns; beside it the same renderings through the tokenizer alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "data_prep")]

from chat_proof import conversation, prove  # noqa: E402
from chat_templates import FAMILIES, TRAINING_TEXT, chat_folder  # noqa: E402
from record import machine, publish  # noqa: E402

from data_prep.chat.encode import SampleEncoder  # noqa: E402
from data_prep.chat.records import Exchange  # noqa: E402
from data_prep.chat.settings import SamplesSection  # noqa: E402
from data_prep.tokenizer import load_tokenizer  # noqa: E402


def proven(folder: Path, name: str, kind: str, count: int) -> str:
    """A line of the first table."""
    family = FAMILIES[name]
    encoder, tokenizer = SampleEncoder(folder, SamplesSection(), None), load_tokenizer(folder)
    rng = random.Random(f"{name} {kind}")
    tally = {True: 0, False: 0, "wrong": 0}
    for _ in range(count):
        try:
            tally[prove(family, encoder, tokenizer, conversation(rng, family.system))] += 1
        except AssertionError:
            tally["wrong"] += 1
    return f"| {name} | {kind} | {count:,} | {tally[True]:,} | {tally[False]:,} | {tally['wrong']:,} |"


def speed(folder: Path, name: str, count: int) -> str:
    """A line of the second table."""
    encoder = SampleEncoder(folder, SamplesSection(), None)
    encoder.check_template()
    words = " ".join(TRAINING_TEXT[:2]).split()
    rng = random.Random(name)
    exchanges = []
    for _ in range(count):
        contents = [" ".join(rng.choice(words) for _ in range(45)) for _ in range(4)]
        roles = ("user", "assistant") * 2
        messages = tuple(
            {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
        )
        exchanges.append(Exchange(messages))
    began = time.process_time()
    size = sum(encoder.encode(exchange).text_bytes for exchange in exchanges)
    whole = time.process_time() - began
    texts = [encoder.template.render(exchange.messages).text for exchange in exchanges]
    began = time.process_time()
    for text in texts:
        encoder.rendering.encode(text, add_special_tokens=False)
    alone = time.process_time() - began
    return f"| {name} | {size / whole / 1e6:.2f} | {size / alone / 1e6:.2f} | {alone / whole:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    counts, speeds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name, family in FAMILIES.items():
            for kind in ("bytes", "sentencepiece"):
                folder = chat_folder(Path(scratch) / f"{name}-{kind}", family.template, family.special, kind)
                counts.append(proven(folder, name, kind, arguments.conversations // (2 * len(FAMILIES))))
            speeds.append(
                speed(Path(scratch) / f"{name}-bytes", name, max(20, arguments.conversations // 20))
            )
    body = "\n".join(
        [
            machine(),
            "",
            "| template | tokenizer | conversations | learnt exactly | refused, rightly | wrong |",
            "|---|---|---|---|---|---|",
            *counts,
            "",
            "| template | MB/s with mask | MB/s of the tokenizer alone | ratio |",
            "|---|---|---|---|",
            *speeds,
        ]
    )
    command = f"python benchmarks/chat_masks.py --conversations {arguments.conversations}"
    publish("Loss masks of conversations", command, body, arguments.record)


if __name__ == "__main__":
    main()
