"""The `llmtrain` command. Each verb imports what it needs when it runs, so that help costs no torch.

Exit status: 0 done; 2 the input is wrong; 75 stopped on request and resumable; 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from llmtrain import __version__
from llmtrain.cli.checkpoint import checkpoint_verb
from llmtrain.cli.data import data_verb
from llmtrain.cli.init import init_verb
from llmtrain.cli.options import Actions, Parser, Verb, add_verb, at_least
from llmtrain.config.foreign_names import pointer
from llmtrain.config.home import settle_home
from llmtrain.config.secrets import redact
from llmtrain.config.streams import speak_utf_8, steady_streams
from llmtrain.errors import ConfigError, InputError, LlmtrainError, Problem, StopRequested

NEXT = """\
llmtrain: a folder of text becomes a model on the Hub, on any number of GPUs, from one file.

  llmtrain doctor                     can this machine train?
  llmtrain demo                       a first model from Python's own library, in minutes on a CPU
  llmtrain data build CORPUS.yaml     text to a dataset folder
  llmtrain plan RUN.yaml              what a run will be, before it is started
  llmtrain train RUN.yaml             train it; --ranks N for N GPUs
  llmtrain generate RUN "a prompt"    what it has learnt; then: eval, export

Every verb and its options: llmtrain --help, llmtrain VERB --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit status."""
    if argv is None:
        speak_utf_8()
    steady_streams()
    settle_home()
    sys.excepthook = _without_secrets
    words = sys.argv[1:] if argv is None else argv
    if not words:
        print(NEXT)
        return 0
    arguments = _arguments(words)
    verb: Verb = arguments.verb
    try:
        return verb(arguments)
    except LlmtrainError as error:
        if arguments.debug:
            raise
        word = "" if isinstance(error, StopRequested) else "error: "
        for line in str(error).splitlines():
            print(f"{word}{redact(line)}", file=sys.stderr)
            word = word if isinstance(error, ConfigError) else "  "
        return error.exit_status
    except KeyboardInterrupt as stop:
        print(": ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _without_secrets(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The traceback of what nobody foresaw."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parses; `key=value` may stand anywhere after the file, between options too."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if not word.startswith("-") and "=" in word]
    strange = [word for word in rest if word not in overrides]
    takes = hasattr(arguments, "overrides")
    if strange or (overrides and not takes):
        names = [pointer(word.lstrip("-").partition("=")[0]) if takes else "" for word in strange]
        told = [f"{word} ({hint})" if hint else word for word, hint in zip(strange, names, strict=True)]
        parser.error(f"unknown: {' '.join(told or overrides)} (see llmtrain --help)")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="llmtrain",
        description="A folder of text becomes a model on the Hub, on any number of GPUs, from one file.",
        epilog="Exit status: 0 done; 2 wrong input; 75 stopped on request, resumable; 1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"llmtrain {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    init_verb(verbs)
    data_verb(verbs)
    checkpoint_verb(verbs)
    train = add_verb(verbs, "train", _train, "train a run, or go on with it")
    _add_run(train)
    train.add_argument("--ranks", type=int, metavar="N", help="start N ranks on this machine (default: 1)")
    train.add_argument(
        "--resume", choices=("auto", "must", "never"), default="auto", help="from its newest checkpoint"
    )
    _eval_verb(verbs)
    export = add_verb(verbs, "export", _export, "write a Hugging Face folder, proven equal to the checkpoint")
    _add_what(export)
    export.add_argument("out", help="folder to write")
    export.add_argument(
        "--push", metavar="REPO", help="upload it to the Hub as REPO (private unless --public)"
    )
    export.add_argument("--public", action="store_true", help="make a new Hub repository public")
    export.add_argument("--dtype", default="auto", help="auto (the run's), bf16, fp16 or fp32")
    generate = add_verb(verbs, "generate", _generate, "complete a prompt")
    _add_what(generate)
    generate.add_argument("prompt")
    generate.add_argument("--chat", action="store_true", help="answer it, by the model's chat template")
    generate.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 200, or what fits")
    generate.add_argument("--temperature", type=float, default=0.8)
    generate.add_argument("--top-p", type=float, default=0.95)
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--greedy", action="store_true", help="always the likeliest token")
    plan = add_verb(
        verbs, "plan", _plan, "batch, memory, compute and the origin of each value, before any hardware"
    )
    _add_run(plan)
    plan.add_argument("--ranks", type=int, default=1, metavar="N")
    plan.add_argument("--device", metavar="NAME", help="cpu, or a GPU such as h200 (default: this machine's)")
    plan.add_argument("--origins", action="store_true", help="also every value and where it came from")
    plan.add_argument("--json", action="store_true", help="print JSON")
    report = add_verb(
        verbs, "report", _report, "what a run's time went into: goodput, restarts, rollbacks, skips"
    )
    report.add_argument("folder", help="a run folder")
    report.add_argument("--json", action="store_true", help="print JSON")
    doctor = add_verb(verbs, "doctor", _doctor, "can this machine train, and what stands in the way")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    demo = add_verb(
        verbs, "demo", _demo, "the whole way on this machine: text, training, evaluation, export, text"
    )
    demo.add_argument("--ranks", type=int, default=2, metavar="N")
    demo.add_argument("overrides", nargs="*", metavar="key=value", help="changes to recipes/demo.yaml")
    return parser


def _eval_verb(verbs: Actions[argparse.ArgumentParser]) -> None:
    evaluate = add_verb(verbs, "eval", _eval, "loss, perplexity and bits per byte on held-out text")
    _add_what(evaluate)
    evaluate.add_argument("--data", required=True, metavar="DIR", help="dataset folder")
    evaluate.add_argument("--split", default="valid")
    evaluate.add_argument("--rows", type=int, metavar="N", help="rows to read (default: the run's, or all)")
    evaluate.add_argument("--seq-len", type=int, metavar="N", help="tokens per row (default: the run's)")
    evaluate.add_argument(
        "--rolling",
        action="store_true",
        help="score every token of every document, each by itself, as lm-evaluation-harness does "
        "(default: rows as in training, see docs/evaluation.md)",
    )
    evaluate.add_argument(
        "--documents", type=int, metavar="N", help="with --rolling: only the first N (default: all)"
    )
    evaluate.add_argument(
        "--baselines",
        action="store_true",
        help="also score the untrained model, and unigrams of the train split",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it: optimizer.lr=3e-4")


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help="a run folder, a checkpoint folder or a Hugging Face folder")


def _train(arguments: argparse.Namespace) -> int:
    from llmtrain.config.world import world_from_environment
    from llmtrain.launch import launch, likely_device

    steady_streams(stdout=True)
    world = world_from_environment(os.environ)
    if arguments.ranks is not None and world.size > 1:
        fix = f"this is one of {world.size} ranks that {world.launcher} has started; leave --ranks out"
        if world.launcher == "slurm":
            fix += ", or take a shell that is one task: srun --ntasks 1 --pty bash"
        raise ConfigError(Problem("--ranks", arguments.ranks, "command line", fix))
    ranks = 1 if arguments.ranks is None else arguments.ranks
    at_least(1, {"--ranks": ranks})
    command = [arguments.run, *arguments.overrides, "--resume", arguments.resume]
    command += ["--debug"] if arguments.debug else []
    if ranks == 1:  # the rank of a launcher, too; the one task of a shell or a pod may have ranks of its own
        from llmtrain.train import main as train_rank

        return train_rank(command)
    from llmtrain.job import check_input
    from llmtrain.report.run_folder import RunFolder

    run, device, resume = arguments.run, likely_device(), arguments.resume
    prepared = check_input(run, arguments.overrides, ranks, device, resume)
    folder = RunFolder(prepared.plan.run.folder)
    was_there = folder.path.exists()
    status = launch(command, ranks, folder.logs)
    if status == InputError.exit_status and folder.is_new:  # found late, by a rank
        folder.discard()
        with suppress(OSError):  # another start waits there, or something else stands in it
            if not was_there:
                folder.path.rmdir()
    return status


def _eval(arguments: argparse.Namespace) -> int:
    from llmtrain.evaluate import Reading, evaluate_folder

    given = arguments
    at_least(1, {"--rows": given.rows, "--seq-len": given.seq_len, "--documents": given.documents})
    reading = Reading(given.rows, given.seq_len, given.rolling, given.documents)
    found = evaluate_folder(given.what, given.data, given.split, reading, given.baselines)
    print(found.as_json() if arguments.json else found.as_text())
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from llmtrain.export import export

    done = export(
        Path(arguments.what),
        Path(arguments.out),
        arguments.push,
        arguments.dtype,
        private=not arguments.public,
        on_reject=lambda path, why: print(f"passed over {path}: {why}", file=sys.stderr),
    )
    print(
        f"{done.path}: step {done.step} in {done.dtype}; reloaded by transformers its loss is "
        f"{done.reloaded_loss:.4f}, training recorded {done.recorded_loss:.4f}"
    )
    if done.url:
        print(done.url)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from llmtrain.generate import Sampling, generate

    at_least(1, {"--max-new-tokens": arguments.max_new_tokens})
    sampling = Sampling(
        max_new_tokens=arguments.max_new_tokens,
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    for piece in generate(arguments.what, arguments.prompt, sampling, arguments.chat):
        print(piece, end="", flush=True)
    print()
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from llmtrain.launch import likely_device
    from llmtrain.report.planned import planned

    at_least(1, {"--ranks": arguments.ranks})
    report = planned(arguments.run, arguments.overrides, arguments.ranks, arguments.device or likely_device())
    print(report.as_json() if arguments.json else report.as_text(arguments.origins))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from llmtrain.report.account import account

    found = account(Path(arguments.folder))
    print(found.as_json() if arguments.json else found.as_text())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from llmtrain.doctor import examine

    report = examine()
    print(report.as_json() if arguments.json else report.as_text())
    return 0 if report.trainable else 1


def _demo(arguments: argparse.Namespace) -> int:
    from llmtrain.demo import demo

    steady_streams(stdout=True)
    at_least(1, {"--ranks": arguments.ranks})
    return demo(arguments.ranks, arguments.overrides)
