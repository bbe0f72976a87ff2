"""Rows D1 to D6 of the fault table: what bad, cut, damaged and odd data comes to, by whole builds.

A row is a function `row(folder, number, draw)`: trial `number` in an empty folder, with what it draws from
`draw`; which promise broke, or an empty string. `benchmarks/untrusted.py` runs them all, the tests a sample.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet
import zstandard
from bad_input import LINES, NAMED
from corpora import corpus_file, files_of, texts_of
from text_files import FORMATS, PACKERS, jsonl, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.build import build
from data_prep.convert import import_tokens
from data_prep.tokenizer import write_trained
from llmtrain.data.dataset import open_dataset
from llmtrain.data.manifest import read_manifest
from llmtrain.data.shards import ShardWriter, token_dtype
from llmtrain.data.verify import verify
from llmtrain.errors import DataError

EOS = "<|end|>"
LONGEST = 5_000  # bytes of a document where a line too large need not be a giant
GIANT = 50 << 20

# Kind of line → its bytes, why it is rejected ("" when it is not), the text it is when it is not.
KINDS = {
    "good": (b'{"text": "good %d"}', "", "good %d"),
    **{why: (line, why, "") for why, line in LINES.items() if why},
    "NUL": (b'{"text": "a\0%d"}', "broken JSON", ""),
    "NUL, escaped": (b'{"text": "a\\u0000%d"}', "", "a\0%d"),
    "byte order mark": (b'\xef\xbb\xbf{"text": "\xef\xbb\xbfmarked %d"}', "", "marked %d"),
    "CRLF": (b'{"text": "ended %d\\r\\n"}\r', "", "ended %d\r\n"),
    "nested deep": (b'{"text": "%d", "a": ' + b"[" * 20_000 + b"1]}", "broken JSON", ""),
    "too large": (b'{"text": "%d' + b"z" * LONGEST + b'"}', "too large", ""),
}
DEEP = "nested deep"  # takes 20 kB, which must be let through to be broken


def mixed_lines(folder: Path, number: int, draw: random.Random) -> str:
    """D1: files of good and bad lines; each bad one is counted once, by its reason, and nothing else is lost.

    The first trials have one kind of bad line each, the others any mixture, of which every tenth has a line
    of 50 MB. The same corpus in strict mode ends at the first bad line, by file and number.
    """
    bad = [kind for kind in KINDS if kind != "good"]
    chosen = [bad[number]] if number < len(bad) else draw.sample(bad, draw.randint(1, len(bad)))
    giant = number >= len(bad) and number % 10 == 0
    longest = 1 << 20 if giant or DEEP in chosen else LONGEST
    chosen = [kind for kind in chosen if kind != "too large"] if longest > LONGEST else chosen
    places: Counter[tuple[str, str]] = Counter()
    texts: list[str] = []
    (folder / "in").mkdir()
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        kinds = ["good", *draw.choices(["good", *chosen], k=draw.randint(2, 120))]
        lines = []
        for line, kind in enumerate(kinds, start=1):
            raw, why, text = KINDS[kind]
            lines.append(raw % line)
            texts += [] if why else [text % line]
            places.update([(why, f"{name}:{line}")] if why else [])
        if giant and name == "b.jsonl":
            lines.append(b'{"text": "' + b"y" * GIANT + b'"}')
            places.update([("too large", f"{name}:{len(lines)}")])
        suffix = draw.choice(["", "", *PACKERS]) if not giant else ""
        raw = b"\n".join(lines) + draw.choice([b"", b"\n"])
        (folder / "in" / (name + suffix)).write_bytes(PACKERS[suffix](raw) if suffix else raw)
        if suffix:
            moved = {(why, where) for why, where in places if where.startswith(name)}
            for why, where in moved:
                places[(why, where.replace(name, name + suffix))] = places.pop((why, where))
    path = corpus_file(
        folder,
        sources=[{"path": str(folder / "in")}],
        max_document_bytes=longest,
        keep_rejected=True,
        tokenizer={"train": "bpe", "vocab_size": 300, "eos": EOS},
    )
    with small_chunks(draw.choice([500, 3_000, 1 << 20])):
        counts = build(path).manifest.counts
        broken = _wrongly_counted(folder, counts, places, texts)
        return broken or _not_strict(path, places)


def _wrongly_counted(folder: Path, counts, places: Counter, texts: list[str]) -> str:
    reasons = Counter(why for why, _ in places.elements())
    if counts.documents_in != len(texts) + reasons.total() or counts.documents_out != len(texts):
        return f"{counts.documents_in} in, {counts.documents_out} out; {len(texts)} are good"
    if counts.rejected != dict(reasons):
        return f"rejected {counts.rejected}, there were {dict(reasons)}"
    if rejected(folder / "out.rejected") != places:
        return "what was put aside is not what was bad, each once"
    return "" if texts_of(folder / "out", "train") == texts else "the texts differ"


def rejected(folder: Path) -> Counter[tuple[str, str]]:
    """(reason, place) of what a build put aside."""
    raw = (folder / "rejected.jsonl.zst").read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    rows = [json.loads(line) for line in reader.read().splitlines()]
    return Counter((row["reason"], row["where"]) for row in rows)


def _not_strict(path: Path, places: Counter) -> str:
    """The first bad line ends a strict build, which leaves nothing."""
    if not places:
        return ""
    rank = {(where.partition(":")[0], int(where.partition(":")[2])): (why, where) for why, where in places}
    why, where = rank[min(rank)]
    before = sorted(os.listdir(path.parent))
    try:
        build(path, ["strict=true", f"output={path.parent}/strict"])
        return "strict let it pass"
    except DataError as error:
        if not str(error).startswith(f"{where}: {why} (strict is on"):
            return f"strict said {str(error)[:200]}, the first is {where}: {why}"
    return "" if sorted(os.listdir(path.parent)) == before else "a strict build left something"


def small_chunks(size: int) -> ExitStack:
    """Files are read, and cut for workers, in pieces of about `size` bytes."""
    stack = ExitStack()
    for name in ("data_prep.sources.LEAST_CHUNK_BYTES", "data_prep.files.CHUNK_BYTES"):
        stack.enter_context(patch(name, size))
    return stack


def some_texts(draw: random.Random, count: int = 200) -> list[str]:
    """Texts of which no two are alike."""
    return [f"{number} " + "".join(draw.choices("abc de\n", k=200)) for number in range(count)]


PACKED = (*PACKERS, "parquet")


def cut_or_flipped(folder: Path, number: int, draw: random.Random) -> str:
    """D2: a packed or columnar file between two good ones is cut, or has bits flipped, at a random place.

    A cut is named and counted once, with the good documents before it. A flipped bit, in odd trials, is
    named, or changes no text. (Where the checksum comes last, what was read before it may be other text.)
    """
    kind, texts = PACKED[number // 2 % len(PACKED)], some_texts(draw)
    (folder / "in").mkdir()
    raw = bytearray(_checked_parquet(texts) if kind == "parquet" else PACKERS[kind](jsonl(texts)))
    named = {NAMED[kind.lstrip(".")], NAMED[kind.lstrip(".")].replace("truncated", "damaged")}
    if number % 2:
        for _ in range(draw.choice([1, 1, 8])):
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    else:
        del raw[draw.randrange(1, len(raw)) :]
    name = "b.parquet" if kind == "parquet" else f"b.jsonl{kind}"
    (folder / "in" / name).write_bytes(raw)
    for other in ("a", "c"):
        (folder / "in" / f"{other}.jsonl").write_bytes(jsonl([f"of {other}"]))
    tokenizer = {"train": "bpe", "vocab_size": 300}
    path = corpus_file(folder, sources=[{"path": str(folder / "in")}], tokenizer=tokenizer)
    try:
        counts = build(path).manifest.counts
    except DataError as error:  # a header that names other columns
        left = sorted(os.listdir(folder)) != ["corpus.yaml", "in"]
        return "" if name in str(error) and not left else f"refused: {error}"
    got = texts_of(folder / "out", "train")
    if (
        got[0] != "of a"
        or got[-1] != "of c"
        or counts.documents_in != len(got) + sum(counts.rejected.values())
    ):
        return f"{counts.documents_in} in, {len(got)} out, {counts.rejected}"
    if not counts.rejected and number % 2:  # a bit that says nothing, such as the time in a gzip header
        return "" if got[1:-1] == texts else "a flipped bit passed as other text"
    found = set(counts.rejected) & named
    if len(found) != 1 or counts.rejected[min(found)] != 1 or name not in counts.examples[min(found)][0]:
        return f"rejected {counts.rejected}"
    if number % 2:
        return ""
    return "" if got[1:-1] == texts[: len(got) - 2] else "what came before the cut is other text"


def _checked_parquet(texts: list[str]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(table(texts), out, row_group_size=7, write_page_checksum=True)
    return out.getvalue()


def damaged_dataset(folder: Path, number: int, draw: random.Random) -> str:
    """D4: a bit of a shard is flipped, a file of it is cut, swapped, longer or gone: verify names the shard.

    Opening the dataset finds it too, but for flipped bits and swaps of equal size in `.bin` files.
    """
    data = dataset_to_damage(folder)
    kind, path, names = damage(data, number, draw)
    found = {}
    for how, check in (("open", lambda: open_dataset(data, "train")), ("verify", lambda: verify(data))):
        try:
            check()
        except DataError as error:
            found[how] = str(error)
    if not any(name in found.get("verify", "") for name in names):
        return f"verify says {found.get('verify', 'that it is good')!r} of {kind} in {names}"
    late = path.suffix == ".bin" and kind in ("flip", "swap")
    if not late and "open" not in found:
        return f"{kind} in {path.name} was not found when the dataset was opened"
    return "" if "open" not in found or any(name in found["open"] for name in names) else found["open"]


def dataset_to_damage(folder: Path) -> Path:
    """Some shards of one split, many of them as large as another; built once."""
    if not (folder / "out").exists():
        draw = random.Random(3)
        texts = [f"{number:04d} " + "x " * draw.randint(1, 9) for number in range(400)]
        (folder / "d.jsonl").write_bytes(jsonl(texts))
        tokenizer = {"train": "bpe", "vocab_size": 300}
        path = corpus_file(
            folder, sources=[{"path": str(folder / "d.jsonl")}], shard_tokens=600, tokenizer=tokenizer
        )
        build(path)
        shutil.copytree(folder / "out", folder / "whole")
    shutil.rmtree(folder / "out")
    shutil.copytree(folder / "whole", folder / "out")
    return folder / "out"


def damage(data: Path, number: int, draw: random.Random) -> tuple[str, Path, list[str]]:
    """Does it; the kind, a file, and the names of which a message must have one."""
    kind = ("flip", "flip", "flip", "cut", "swap", "gone", "grown")[number % 7]
    paths = sorted(path for path in (data / "train").iterdir())
    path = draw.choice(paths)
    raw = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "swap":
        like = [each for each in paths if each.suffix == path.suffix and each.read_bytes() != raw]
        other = draw.choice(like)
        path.write_bytes(other.read_bytes())
        other.write_bytes(raw)
        late = len(raw) == path.stat().st_size
        return "swap" if late else "swap of another size", path, [f"train/{path.name}", f"train/{other.name}"]
    elif kind == "flip":
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        path.write_bytes(raw)
    else:
        path.write_bytes(raw[: draw.randrange(len(raw))] if kind == "cut" else raw + b"\0")
    return kind, path, [f"train/{path.name}"]


SIZES = (65_499, 65_500, 65_501, 65_535, 65_536, 65_537, 128_000)


def words_tokenizer(folder: Path, size: int) -> Path:
    """Exactly `size` ids, one word each; the end mark is the last."""
    words = {f"w{number}": number for number in range(size - 1)} | {EOS: size - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    made.add_special_tokens([EOS])
    write_trained(made, folder, EOS)
    return folder


def vocabulary(folder: Path, number: int, draw: random.Random) -> str:
    """D5: at every size of vocabulary no id wraps, Megatron's rule holds, and an id beyond it is refused."""
    size = SIZES[number % len(SIZES)]
    tokenizer = words_tokenizer(folder / "tokenizer", size)
    ids = sorted({1, 32_767, 32_768, 65_498, 65_499, 65_534, 65_535, 65_536, size - 3, size - 2})
    ids = [each for each in ids if each < size - 1] + draw.choices(range(1, size - 1), k=50)
    (folder / "d.txt").write_text(" ".join(f"w{each}" for each in ids))
    sources = [{"path": str(folder / "d.txt")}]
    manifest = build(corpus_file(folder, sources=sources, tokenizer={"source": str(tokenizer)})).manifest
    if manifest.vocab_size != size or manifest.dtype != ("uint16" if size < 65_500 else "int32"):
        return f"{manifest.vocab_size} ids as {manifest.dtype}"
    (shard,) = open_dataset(folder / "out", "train").shards
    if shard.tokens.tolist() != [*ids, size - 1] or shard.dtype != token_dtype(size):
        return "an id wrapped"
    verify(folder / "out")
    for wrong in (size, size + 65_536, -1):
        writer = ShardWriter(folder / "s", size)
        try:
            writer.add(np.array([1, wrong]))
            return f"id {wrong} was written"
        except DataError as error:
            if f"token id {wrong} does not fit a vocabulary of {size}" not in str(error):
                return str(error)
        finally:
            writer.abandon()
    return _foreign_refused(folder, tokenizer, size)


def _foreign_refused(folder: Path, tokenizer: Path, size: int) -> str:
    """A file of tokens, made with more ids than this tokenizer has, does not become a dataset."""
    with ShardWriter(folder / "foreign", size + 1) as writer:
        writer.add(np.array([1, size]))
    try:
        import_tokens("megatron", [str(folder / "foreign")], str(tokenizer), folder / "imported")
        return f"id {size} was imported"
    except DataError as error:
        named = str(size) in str(error) and "foreign" in str(error)
        return "" if named and not (folder / "imported").exists() else f"the import said {error}"


RANGES = [(0x20, 0x7F), (0, 0x20), (0xA0, 0x500), (0x4E00, 0x9FFF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]


def any_text(draw: random.Random) -> str:
    """Code points of all planes and controls among them, the end mark spelled out, blanks at the ends."""
    letters = [chr(draw.randint(*draw.choice(RANGES))) for _ in range(draw.randint(1, 40))]
    letters += draw.choices(["\r\n", "\0", "\u2028", EOS, " ", "e\u0301", "é"], k=draw.randint(0, 3))
    draw.shuffle(letters)
    text = "".join(letters).removeprefix("\ufeff")
    return text if text.strip() else "x" + text


def round_trip(folder: Path, number: int, draw: random.Random, count: int = 10_000) -> str:
    """D6: any texts, in every format and packing, come back once each, with their ends where they were."""
    texts = [any_text(draw) for _ in range(count)]
    (folder / "in").mkdir()
    names = [name for name in FORMATS if name not in ("d.csv", "d.tsv")] * 2  # Python 3.10's csv takes no NUL
    for place, name in enumerate(names):
        part = texts[place :: len(names)]
        packed = name not in ("d.parquet", "d.arrow", "stream.arrow")
        suffix = draw.choice(["", *PACKERS]) if packed else ""
        raw = FORMATS[name](part)
        file = folder / "in" / f"{place:02d}.{name}{suffix}"
        file.write_bytes(PACKERS[suffix](raw) if suffix else raw)
    tokenizer = {"train": "bpe", "vocab_size": 600, "eos": EOS}
    sources, splits = [{"path": str(folder / "in")}], {"valid": 0.2}
    path = corpus_file(folder, sources=sources, splits=splits, tokenizer=tokenizer, shard_tokens=100_000)
    counts = build(path).manifest.counts
    if (counts.documents_in, counts.documents_out, counts.rejected) != (count, count, {}):
        return f"{counts.documents_in} in, {counts.documents_out} out, {counts.rejected}"
    got = Counter(texts_of(folder / "out", "train") + texts_of(folder / "out", "valid"))
    missing, more = Counter(texts) - got, got - Counter(texts)
    return f"{missing.total()} missing, {more.total()} too many" if missing or more else ""


def full_disk(folder: Path, number: int, draw: random.Random) -> str:
    """D3: a small disk fills while a dataset is built on it; with more room, the same bytes come of it.

    Raises PermissionError where small disks can't be mounted.
    """
    from small_disks import grow, small_disk

    workers = (1, 2, 4)[number % 3]
    rows = [{"text": " ".join(draw.choices(["some", "words", "12", "naïve"], k=200))} for _ in range(2_500)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"path": str(folder / "d.jsonl")}]
    path = corpus_file(folder, sources=sources, splits={"valid": 0.1}, shard_tokens=50_000)
    with small_chunks(100_000), patch("data_prep.build.ALONE_BELOW_BYTES", 0):
        build(path)
        expected = files_of(folder / "out")
        size = sum(map(len, expected.values()))
        percent = draw.randint(5, 95)  # of what the dataset alone takes: chunks and shards need twice that
        with small_disk(folder, size * percent // 100) as disk:
            words = [f"output={disk}/out", f"workers={workers}"]
            try:
                build(path, words)
                return f"a dataset was built in {percent} % of its room"
            except Exception as error:  # noqa: BLE001 - which it is, is what is tried
                if "no space left while writing" not in str(error):
                    return f"the sentence is: {type(error).__name__}: {error}"
            if (disk / "out").exists():
                return "there is a dataset"
            grow(disk, 8 * size)
            build(path, words)
            same = files_of(disk / "out") == expected
            read_manifest(disk / "out", hashes=True)
            left = sorted(os.listdir(disk)) != ["out"]
            return "" if same and not left else "with more room it gave other bytes, or left something"
