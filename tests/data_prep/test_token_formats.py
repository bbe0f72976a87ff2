"""Token files of other tools in and out, read and written here again from their formats' descriptions."""

from __future__ import annotations

import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpora import files_of, some_text
from tokenizers import Tokenizer, models

from data_prep.convert import export_tokens, import_tokens
from data_prep.engines import open_engine
from data_prep.formats.registry import FORMATS
from data_prep.tokenizer import Encoder, train_bpe, write_trained
from llmtrain.cli import main
from llmtrain.cli.data import TOKEN_FORMATS
from llmtrain.data.dataset import open_dataset
from llmtrain.data.shards import index_bytes
from llmtrain.data.verify import verify
from llmtrain.errors import DataError

EOS = "<|end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    write_trained(train_bpe([some_text(rng, 2000)], 300, EOS), folder, EOS)
    return folder


def wide_tokenizer(folder: Path, size: int) -> Path:
    """A tokenizer of exactly so many ids, the end mark the last."""
    words = {f"w{number}": number for number in range(size - 1)} | {EOS: size - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.add_special_tokens([EOS])
    write_trained(made, folder, EOS)
    return folder


def documents_like(seed: int, size: int, eos: int, count: int = 200) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    ids = [number for number in (*range(1, 50), size - 2, size // 2) if number != eos]
    return [[*rng.choice(ids, rng.integers(1, 60)).tolist(), eos] for _ in range(count)]


def flat(documents: list[list[int]]) -> list[int]:
    return [token for document in documents for token in document]


# Writers and readers that share no line with data_prep.


def write_megatron(prefix: Path, documents: list[list[list[int]]], code: int) -> None:
    """`documents` hold sequences of ids; `code` 4 is int32, 8 is uint16, whatever the vocabulary."""
    letter, size = {4: ("i", 4), 8: ("H", 2)}[code]
    sequences = [sequence for document in documents for sequence in document]
    starts = [0]
    for document in documents:
        starts.append(starts[-1] + len(document))
    pointers, at = [], 0
    for sequence in sequences:
        pointers.append(at)
        at += size * len(sequence)
    ids = flat(sequences)
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{len(ids)}{letter}", *ids))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(starts))
    index += struct.pack(f"<{len(sequences)}i", *map(len, sequences))
    index += struct.pack(f"<{len(sequences)}q", *pointers) + struct.pack(f"<{len(starts)}q", *starts)
    prefix.with_suffix(".idx").write_bytes(index)


def read_megatron(prefix: Path) -> list[list[int]]:
    index = prefix.with_suffix(".idx").read_bytes()
    _, code, sequences, starts = struct.unpack_from("<QBQQ", index, 9)
    raw = prefix.with_suffix(".bin").read_bytes()
    letter, size = {4: ("i", 4), 8: ("H", 2)}[code]
    lengths = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    assert struct.unpack_from(f"<{starts}q", index, 34 + 12 * sequences) == tuple(range(sequences + 1))
    return [
        list(struct.unpack_from(f"<{n}{letter}", raw, at)) for n, at in zip(lengths, pointers, strict=True)
    ]


def write_datatrove(path: Path, documents: list[list[int]], width: int) -> None:
    ids = flat(documents)
    path.write_bytes(struct.pack(f"<{len(ids)}{'H' if width == 2 else 'I'}", *ids))
    ends = np.cumsum([len(document) for document in documents]).tolist()
    path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    path.with_name(path.name + ".metadata").write_text(f"some/tokenizer|{width}\n{len(ids)}\n1.2 KT")


def read_datatrove(path: Path) -> list[list[int]]:
    name, count, _ = path.with_name(path.name + ".metadata").read_text().split("\n")
    width = int(name.split("|")[1])
    raw, index = path.read_bytes(), path.with_name(path.name + ".index").read_bytes()
    ends = struct.unpack(f"<{len(index) // 8}Q", index)
    assert int(count) == ends[-1] == len(raw) // width
    letter = {2: "H", 4: "I"}[width]
    starts = (0, *ends[:-1])
    return [
        list(struct.unpack_from(f"<{end - at}{letter}", raw, at * width))
        for at, end in zip(starts, ends, strict=True)
    ]


def read_marked(path: Path, letter: str, eos: int) -> list[list[int]]:
    raw = path.read_bytes()
    documents: list[list[int]] = [[]]
    for token in struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw):
        documents[-1].append(token)
        if token == eos:
            documents.append([])
    return documents[:-1] if not documents[-1] else documents


def read_parquet(path: Path) -> list[list[int]]:
    return pyarrow.parquet.read_table(path).column("input_ids").to_pylist()


def documents_of(folder: Path, split: str = "train") -> list[list[int]]:
    return [
        shard.document(number).tolist()
        for shard in open_dataset(folder, split).shards
        for number in range(shard.documents)
    ]


def brought(folder: Path, form: str, files: list[Path], tokenizer: Path, **options) -> list[list[int]]:
    """Imports, verifies everything, and gives the documents."""
    import_tokens(form, [str(file) for file in files], str(tokenizer), folder, **options)
    report = verify(folder)
    assert report.manifest.pipeline["import"] == form
    assert report.manifest.sources[0].source.startswith(f"{form}: {files[0].name.split('.')[0]}")
    return documents_of(folder, options.get("split", "train"))


@pytest.mark.parametrize(
    ("size", "code"), [(500, 8), (500, 4), (65499, 8), (65500, 4), (65536, 8), (70000, 4)]
)
def test_megatron_files_of_any_width_come_in_and_go_out_by_its_rule(tmp_path, size, code):
    tokenizer = wide_tokenizer(tmp_path / "tokenizer", size)
    documents = documents_like(1, size, size - 1)
    write_megatron(tmp_path / "made_text_document", [[document] for document in documents], code)
    assert brought(tmp_path / "data", "megatron", [tmp_path / "made_text_document"], tokenizer) == documents
    export_tokens(tmp_path / "data", "megatron", tmp_path / "again_text_document")
    assert read_megatron(tmp_path / "again_text_document") == documents
    if code == (8 if size < 65500 else 4):  # as Megatron-LM would have it
        for suffix in (".bin", ".idx"):
            made, again = (tmp_path / f"{name}_text_document{suffix}" for name in ("made", "again"))
            assert made.read_bytes() == again.read_bytes()


def test_a_document_of_several_sequences_is_one_document(tmp_path, tokenizer):
    documents = [[[1, 2], [3], [0]], [[4, 0]], [[5], [], [6, 0]]]
    write_megatron(tmp_path / "m", documents, 8)
    assert brought(tmp_path / "data", "megatron", [tmp_path / "m.bin"], tokenizer) == [
        flat(document) for document in documents
    ]


def test_a_folder_of_megatron_files_comes_in_by_name(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    write_megatron(tmp_path / "in/b_text_document", [[[3, 0]]], 8)
    write_megatron(tmp_path / "in/a_text_document", [[[1, 0]], [[2, 0]]], 4)
    import_tokens("megatron", [str(tmp_path / "in")], str(tokenizer), tmp_path / "data")
    assert documents_of(tmp_path / "data") == [[1, 0], [2, 0], [3, 0]]
    manifest = verify(tmp_path / "data").manifest
    assert manifest.sources[0].source == "megatron: a_text_document, b_text_document"
    assert manifest.append_eos and manifest.counts.documents_in == 3


@pytest.mark.parametrize(("size", "width"), [(500, 2), (500, 4), (65536, 2), (65537, 4)])
def test_datatrove_files_come_in_and_go_out(tmp_path, size, width):
    tokenizer = wide_tokenizer(tmp_path / "tokenizer", size)
    documents = documents_like(2, size, size - 1)
    write_datatrove(tmp_path / "00000_made.ds", documents, width)
    assert brought(tmp_path / "data", "datatrove", [tmp_path / "00000_made.ds"], tokenizer) == documents
    export_tokens(tmp_path / "data", "datatrove", tmp_path / "again")
    assert read_datatrove(tmp_path / "again.ds") == documents
    for name in ("index", "metadata"):
        (tmp_path / f"00000_made.ds.{name}").unlink()
    if width == (2 if size <= 65536 else 4):  # datatrove's rule; the end mark cuts it
        assert brought(tmp_path / "plain", "datatrove", [tmp_path / "00000_made.ds"], tokenizer) == documents


@pytest.mark.parametrize(
    ("size", "letter"), [(500, "H"), (500, "I"), (65536, "H"), (70000, "I"), (70000, "H")]
)
def test_olmo_files_come_in_by_their_bytes_and_go_out_by_its_rule(tmp_path, size, letter):
    tokenizer = wide_tokenizer(tmp_path / "tokenizer", size)
    eos = size - 1 if letter == "I" or size <= 65536 else 0
    documents = documents_like(3, min(size, 65536) if letter == "H" else size, eos)
    ids = flat(documents)
    (tmp_path / "part-0.npy").write_bytes(struct.pack(f"<{len(ids)}{letter}", *ids))
    mark = EOS if eos else "w0"
    got = brought(tmp_path / "data", "olmo", [tmp_path / "part-0.npy"], tokenizer, eos=mark)
    assert got == documents
    export_tokens(tmp_path / "data", "olmo", tmp_path / "again.npy")
    assert read_marked(tmp_path / "again.npy", "H" if size <= 65536 else "I", eos) == documents


def test_nanogpt_files_come_in_and_go_out(tmp_path, tokenizer):
    documents = documents_like(4, 300, 0)
    ids = flat(documents)
    (tmp_path / "train.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    assert brought(tmp_path / "data", "nanogpt", [tmp_path / "train.bin"], tokenizer) == documents
    export_tokens(tmp_path / "data", "nanogpt", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "train.bin").read_bytes()
    (tmp_path / "char.bin").write_bytes(struct.pack("<5H", 5, 6, 7, 8, 9))
    made = import_tokens("nanogpt", [str(tmp_path / "char.bin")], str(tokenizer), tmp_path / "char")
    assert "1 documents, 5 tokens; not all end with <|end|>, so none is expected to" in made.render()
    assert not verify(tmp_path / "char").manifest.append_eos


def test_parquet_of_input_ids_comes_in_and_goes_out(tmp_path, tokenizer):
    documents = documents_like(5, 300, 0, count=3000)
    for kind in (pyarrow.list_(pyarrow.int64()), pyarrow.large_list(pyarrow.uint16())):
        rows = pyarrow.array(documents, kind)
        pyarrow.parquet.write_table(
            pyarrow.table({"input_ids": rows, "x": documents}), tmp_path / "p.parquet"
        )
        assert brought(tmp_path / "data", "parquet", [tmp_path / "p.parquet"], tokenizer) == documents
        export_tokens(tmp_path / "data", "parquet", tmp_path / "again")
        assert read_parquet(tmp_path / "again.parquet") == documents
        shutil.rmtree(tmp_path / "data")
        (tmp_path / "again.parquet").unlink()


def test_every_format_carries_a_dataset_to_the_next_and_the_text_is_counted(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("data_prep.formats.token_files.BLOCK_TOKENS", 1000)
    monkeypatch.setattr("llmtrain.data.shards.BLOCK_TOKENS", 700)
    monkeypatch.setattr("data_prep.convert.SHARD_TOKENS", 3000)
    rng = random.Random(6)
    texts = [some_text(rng, rng.randint(1, 400)) for _ in range(100)]
    tokens, lengths = Encoder(open_engine(tokenizer, "tokenizers"), 0).encode(texts)
    cuts = np.cumsum(lengths)[:-1]
    write_megatron(tmp_path / "first", [[part.tolist()] for part in np.split(tokens, cuts)], 8)
    documents = brought(tmp_path / "0", "megatron", [tmp_path / "first"], tokenizer)
    for number, form in enumerate(["datatrove", "olmo", "nanogpt", "parquet", "megatron"], start=1):
        made = export_tokens(tmp_path / str(number - 1), form, tmp_path / f"file{number}")
        file = Path(made.written[0])
        assert brought(tmp_path / str(number), form, [file], tokenizer) == documents
        manifest = verify(tmp_path / str(number)).manifest
        assert manifest.splits["train"].text_bytes == sum(len(text.encode()) for text in texts)
        assert len(manifest.splits["train"].shards) > 1
        assert manifest.fingerprint == verify(tmp_path / "0").manifest.fingerprint


@pytest.mark.parametrize("form", ["megatron", "datatrove", "olmo", "nanogpt", "parquet"])
def test_an_id_that_the_tokenizer_lacks_is_refused_before_it_is_narrowed(tmp_path, tokenizer, form):
    bad = 70001 if form in ("megatron", "datatrove", "parquet") else 501
    documents = [[1, 2, 0], [3, bad, 0]]
    if form == "megatron":
        write_megatron(tmp_path / "f", [[document] for document in documents], 4)
    elif form == "datatrove":
        write_datatrove(tmp_path / "f", documents, 4)
    elif form == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": documents}), tmp_path / "f")
    else:
        (tmp_path / "f").write_bytes(struct.pack("<6H", *flat(documents)))
    before = files_of(tmp_path)
    with pytest.raises(
        DataError, match=rf"f holds token id {bad}, tokenizer .* has ids 0 to 299: give the tok"
    ):
        import_tokens(form, [str(tmp_path / "f")], str(tokenizer), tmp_path / "data")
    assert files_of(tmp_path) == before and not (tmp_path / "data").exists()


DAMAGED = {
    "odd.npy": ("olmo", b"\1\0\2\0\3", "is no whole number of uint16 tokens: it is cut .fetch it again"),
    "real.npy": ("olmo", b"\x93NUMPY\1\0" + bytes(100), "is a NumPy file with a header, not dolma's"),
    "llmc.bin": ("nanogpt", (20240520).to_bytes(4, "little") + bytes(2000), "has the header of llm.c"),
    "no.parquet": ("parquet", b"PAR1", "is no readable Parquet file"),
    "cut.idx": ("megatron", b"MMIDIDX\0\0", r"cut.bin is missing"),
    "empty.bin": ("nanogpt", b"", "there is no document in it"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_named_and_nothing_is_left(tmp_path, tokenizer, name):
    form, content, message = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        import_tokens(form, [str(tmp_path / name)], str(tokenizer), tmp_path / "data")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_datatrove_file_that_is_cut_or_has_a_loss_mask_is_named(tmp_path, tokenizer):
    write_datatrove(tmp_path / "d.ds", [[1, 2, 0], [3, 0]], 2)
    whole = (tmp_path / "d.ds").read_bytes()
    (tmp_path / "d.ds").write_bytes(whole[:-2])
    with pytest.raises(DataError, match="has 8 bytes, its index says 5 tokens: one of them is cut"):
        import_tokens("datatrove", [str(tmp_path / "d.ds")], str(tokenizer), tmp_path / "data")
    (tmp_path / "d.ds.index").write_bytes(struct.pack("<3Q", 3, 2, 5))
    (tmp_path / "d.ds").write_bytes(whole)
    with pytest.raises(DataError, match="contradicts itself"):
        import_tokens("datatrove", [str(tmp_path / "d.ds")], str(tokenizer), tmp_path / "data")
    (tmp_path / "d.ds.loss").write_bytes(bytes(5))
    with pytest.raises(DataError, match=r"has a loss mask \(d\.ds\.loss\), which is not read"):
        import_tokens("datatrove", [str(tmp_path / "d.ds")], str(tokenizer), tmp_path / "data")


def test_parquet_without_ids_or_with_nulls_is_refused(tmp_path, tokenizer):
    path = tmp_path / "p.parquet"
    for table, message in [
        ({"text": ["x"]}, r"no column input_ids of lists of integers \(it has text\)"),
        ({"input_ids": ["x"]}, "no column input_ids of lists of integers"),
        ({"input_ids": [[1], None]}, "null"),
        ({"input_ids": [[1], [None]]}, "null"),
    ]:
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        with pytest.raises(DataError, match=message):
            import_tokens("parquet", [str(path)], str(tokenizer), tmp_path / "data")


def test_an_export_that_would_lose_something_is_refused(tmp_path, tokenizer):
    write_megatron(tmp_path / "m", [[[1, 2]], [[3, 0, 4, 0]]], 8)
    assert brought(tmp_path / "data", "megatron", [tmp_path / "m"], tokenizer) == [[1, 2], [3, 0, 4, 0]]
    for form in ("olmo", "nanogpt"):
        with pytest.raises(DataError, match="token 0 does not end each document and nothing else"):
            export_tokens(tmp_path / "data", form, tmp_path / "out")
    wide = wide_tokenizer(tmp_path / "wide", 70000)
    brought(tmp_path / "wide_data", "megatron", [tmp_path / "m"], wide)
    with pytest.raises(DataError, match="nanoGPT's tokens are uint16, this vocabulary has 70000 ids"):
        export_tokens(tmp_path / "wide_data", "nanogpt", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_nothing_that_exists_is_written_over(tmp_path, tokenizer):
    write_megatron(tmp_path / "m", [[[1, 0]]], 8)
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"output = '.*data' exists already: choose another"):
        import_tokens("megatron", [str(tmp_path / "m")], str(tokenizer), tmp_path / "data")
    import_tokens("megatron", [str(tmp_path / "m")], str(tokenizer), tmp_path / "new")
    before = files_of(tmp_path)
    for form, name in [("megatron", "m"), ("megatron", "m.bin"), ("nanogpt", "m"), ("olmo", "new")]:
        (tmp_path / "new.npy").touch()
        with pytest.raises(DataError, match="exists already: give the name of a new file"):
            export_tokens(tmp_path / "new", form, tmp_path / name)
    assert files_of(tmp_path) == before | {"new.npy": b""}
    with pytest.raises(DataError, match=r"nope: no olmo file there \(formats: megatron, datatrove, olmo"):
        import_tokens("olmo", [str(tmp_path / "nope")], str(tokenizer), tmp_path / "x")


def test_the_command_line_takes_files_in_and_out(tmp_path, tokenizer, capsys):
    (tmp_path / "train.bin").write_bytes(struct.pack("<6H", 1, 2, 0, 3, 4, 0))
    assert tuple(FORMATS) == TOKEN_FORMATS
    line = ["data", "import", "nanogpt", str(tmp_path / "train.bin"), "--tokenizer", str(tokenizer)]
    assert main([*line, "--output", str(tmp_path / "data"), "--split", "valid"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/data: 2 documents, 6 tokens\n"
    out = tmp_path / "out/x"
    assert main(["data", "export", str(tmp_path / "data"), "megatron", str(out), "--split", "valid"]) == 0
    assert read_megatron(out) == [[1, 2, 0], [3, 4, 0]]
    assert out.with_suffix(".idx").read_bytes() == index_bytes(np.array([3, 3]), np.dtype("<u2"))
    assert main([*line, "--output", str(tmp_path / "data")]) == 2
    assert "exists already" in capsys.readouterr().err
