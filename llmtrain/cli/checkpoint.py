"""`llmtrain checkpoint …`: looks at checkpoints, tidies them, brings and gives them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llmtrain.cli.options import Actions, add_verb, at_least


def checkpoint_verb(verbs: Actions[argparse.ArgumentParser]) -> None:
    """Adds the verb with its actions."""
    checkpoint = verbs.add_parser(
        "checkpoint", help="a run's checkpoints: list, look at, check, remove, import, export"
    )
    actions = checkpoint.add_subparsers(metavar="ACTION", required=True, dest="action")
    ls = add_verb(actions, "ls", _look, "the checkpoints of a run, newest first")
    ls.add_argument("--verify", action="store_true", help="check every hash")
    show = add_verb(actions, "show", _look, "step, origin, identity, files and probe of a checkpoint")
    verify = add_verb(actions, "verify", _look, "compare each file with its hash; status 1 if one is damaged")
    prune = add_verb(actions, "prune", _look, "remove all but the newest good checkpoints")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="good checkpoints that stay")
    for action in (ls, prune):
        action.add_argument("what", metavar="run", help="a run folder")
    for action in (show, verify):
        action.add_argument("what", help="a run folder or a checkpoint folder")
    _interchange(actions)


def _interchange(actions: Actions[argparse.ArgumentParser]) -> None:
    bring = add_verb(actions, "import", _import, "a checkpoint of DeepSpeed's own into the folder of a run")
    bring.add_argument("folder", help="what DeepSpeed saved: ZeRO 1 to 3, pipeline or universal")
    bring.add_argument("run", help="the run's YAML file: model, data, optimizer")
    bring.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it")
    bring.add_argument("--names", metavar="FILE", help="JSON: DeepSpeed's parameter names and the model's")
    give = add_verb(actions, "export", _export, "a checkpoint in the format of another tool")
    give.add_argument("what", help="a run folder or a checkpoint folder")
    give.add_argument("out", help="folder to write")
    give.add_argument("--format", choices=("universal", "dcp"), required=True, help="DeepSpeed's or torch's")


def _look(arguments: argparse.Namespace) -> int:
    if arguments.action == "prune":
        at_least(1, {"--keep": arguments.keep})
    from llmtrain.report.checkpoints import listed, pruned, shown, verified

    what, good = Path(arguments.what), True
    if arguments.action == "ls":
        text = listed(what, arguments.verify)
    elif arguments.action == "prune":
        text = pruned(what, arguments.keep)
    elif arguments.action == "show":
        text = shown(what)
    else:
        text, good = verified(what)
    print(text)
    return 0 if good else 1


def _import(arguments: argparse.Namespace) -> int:
    from llmtrain.interchange.bring import import_run

    names = Path(arguments.names) if arguments.names else None
    print(import_run(Path(arguments.folder), arguments.run, arguments.overrides, names))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from llmtrain.interchange.give import export_checkpoint

    print(
        export_checkpoint(
            Path(arguments.what),
            Path(arguments.out),
            arguments.format,
            lambda path, why: print(f"passed over {path}: {why}", file=sys.stderr),
        )
    )
    return 0
