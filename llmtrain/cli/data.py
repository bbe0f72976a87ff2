"""`llmtrain data …`: text becomes a dataset folder; check it, look at it, bring and give it."""

from __future__ import annotations

import argparse
import os
import sys

from llmtrain.cli.options import Actions, add_verb, at_least

TOKEN_FORMATS = ("megatron", "datatrove", "olmo", "nanogpt", "parquet")


def data_verb(verbs: Actions[argparse.ArgumentParser]) -> None:
    """Adds the verb with its actions."""
    data = verbs.add_parser("data", help="text becomes a dataset folder; check it; look at it")
    actions = data.add_subparsers(metavar="ACTION", required=True, dest="action")
    build = add_verb(actions, "build", _build, "text to a dataset folder")
    build.add_argument("corpus", help="the corpus's YAML file")
    build.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")
    build.add_argument(
        "--overwrite", action="store_true", help="replace another dataset in the output folder"
    )
    build.add_argument("--join", action="store_true", help="help the build that runs there already")
    build.add_argument("--on", choices=("processes", "ray"), default="processes", help="what does the work")
    verify = add_verb(actions, "verify", _verify, "read everything and compare it with the manifest")
    verify.add_argument("folder")
    show = add_verb(actions, "show", _show, "rows as training sees them, as text")
    show.add_argument("folder")
    show.add_argument("--rows", type=int, default=3, metavar="N")
    show.add_argument("--split", default="train")
    show.add_argument("--seq-len", type=int, default=256, metavar="N")
    show.add_argument("--seed", type=int, default=0)
    show.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colour for what is trained on (auto: on a terminal); without it ⟦ and ⟧",
    )
    diff = add_verb(actions, "diff", _diff, "how two datasets differ; status 0: the same tokens, 1: not")
    diff.add_argument("folders", nargs=2, metavar="DIR")
    diff.add_argument("--json", action="store_true", help="for programs")
    _token_verbs(actions)


def _token_verbs(actions: Actions[argparse.ArgumentParser]) -> None:
    bring = add_verb(actions, "import", _convert, "token files of another tool to a dataset folder")
    bring.add_argument("format", choices=TOKEN_FORMATS)
    bring.add_argument("files", nargs="+", help="files, prefixes of .bin and .idx, or folders of them")
    bring.add_argument(
        "--tokenizer", required=True, metavar="DIR", help="what they were made with; a Hub id too"
    )
    bring.add_argument("--eos", metavar="TOKEN", help="what ends a document (default: the tokenizer's own)")
    bring.add_argument("--output", required=True, metavar="DIR", help="the dataset folder to make")
    bring.add_argument("--split", default="train")
    give = add_verb(actions, "export", _convert, "a split of a dataset to a token file of another tool")
    give.add_argument("folder")
    give.add_argument("format", choices=TOKEN_FORMATS)
    give.add_argument("out", help="file or prefix to write")
    give.add_argument("--split", default="train")


def _build(arguments: argparse.Namespace) -> int:
    from data_prep.build import build
    from data_prep.join import join
    from llmtrain.report.progress import open_byte_progress

    if arguments.join:
        print(join(arguments.corpus, arguments.overrides).render())
        return 0
    progress = open_byte_progress(sys.stderr)
    try:
        report = build(
            arguments.corpus, arguments.overrides, progress.tell, arguments.overwrite, arguments.on
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is done is kept, the same command goes on") from None
    finally:
        progress.close()
    print(report.render())
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from llmtrain.data.verify import verify

    print(verify(arguments.folder).render())
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from data_prep.show import show

    at_least(1, {"--rows": arguments.rows, "--seq-len": arguments.seq_len})
    colour = arguments.color == "always" or (arguments.color == "auto" and _shows_colour())
    print(show(arguments.folder, arguments.rows, arguments.split, arguments.seq_len, arguments.seed, colour))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from data_prep.difference import difference

    found = difference(*arguments.folders)
    print(found.as_json() if arguments.json else found.as_text())
    return 0 if found.same else 1


def _convert(arguments: argparse.Namespace) -> int:
    from data_prep.convert import export_tokens, import_tokens
    from llmtrain.report.progress import open_byte_progress

    given = arguments
    progress = open_byte_progress(sys.stderr)
    tell = progress.tell
    try:
        if given.action == "export":
            made = export_tokens(given.folder, given.format, given.out, given.split, tell)
        else:
            files, tokenizer = given.files, given.tokenizer
            made = import_tokens(given.format, files, tokenizer, given.output, given.split, given.eos, tell)
    finally:
        progress.close()
    print(made.render())
    return 0


def _shows_colour() -> bool:
    """A terminal that wants colour (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
