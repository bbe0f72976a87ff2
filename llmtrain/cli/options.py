"""What every verb's parser has, and the answer to an option that can't be."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from llmtrain.errors import ConfigError, Problem, nearest

Verb = Callable[[argparse.Namespace], int]
Actions = argparse._SubParsersAction  # argparse has no public name for what add_subparsers gives


class Parser(argparse.ArgumentParser):
    """A parser that answers a word it does not know with the nearest one it does."""

    def error(self, message: str) -> NoReturn:
        """Ends with status 2 and the usage; where an action is missing, with all that there are."""
        if message.endswith("required: ACTION"):
            self.print_help(sys.stderr)
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = nearest(found[1], [word.strip("' ") for word in found[2].split(",")]) if found else ""
        super().error(f"unknown: '{found[1]}'; {hint}" if found and hint else message)


def add_verb(
    verbs: Actions[argparse.ArgumentParser], name: str, verb: Verb, text: str
) -> argparse.ArgumentParser:
    """The parser of a verb, or of one of its actions, that `verb` carries out."""
    parser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.set_defaults(verb=verb)
    return parser


def at_least(least: int, options: dict[str, int | None]) -> None:
    """Raises ConfigError that names every option given with a smaller number."""
    wrong = {name: value for name, value in options.items() if value is not None and value < least}
    problems = [Problem(*item, "command line", f"must be {least} or more") for item in wrong.items()]
    if problems:
        raise ConfigError(problems)
