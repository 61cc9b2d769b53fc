"""The command line: one function per verb that hands its words on and shows what comes back."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import CycloptsError, MissingArgumentError, UnknownCommandError

from spaceless.cli import networks, pages, training  # noqa: F401 (they add their verbs)
from spaceless.cli.options import app
from spaceless.errors import InputError, Interrupted, SpacelessError, unknown_name

_ONE_LINE = 110  # characters; a longer error message is broken where its parts meet
_LONGEST = 4000  # characters of an error message


def main() -> None:
    """Run the command line; the exit status is 0 done, 1 failed, 2 bad input, 128 + signal when interrupted."""
    words = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(words) < len(sys.argv) - 1
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        if debug:
            raise
        _fail(_misread(error, words), 2)
    except Interrupted as error:
        _fail(f"interrupted by {error.found}: {error.cure}", error.exit_status)
    except SpacelessError as error:
        if debug:
            raise
        _fail(" ".join(str(error).split()), error.exit_status)  # a name may hold line breaks of its own
    except PermissionError as error:
        if debug:
            raise
        _fail(f"error: {error.filename}: found {error.strerror}, expected a place that may be read; choose another", 2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:  # a full disk, a network that runs out of memory, or a defect of ours
        if debug:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _fail(f"{' '.join(words[:1])}: found {reason}, expected no such failure; --debug shows where it happened", 1)


def _misread(error: CycloptsError, words: Sequence[str]) -> str:
    """Return what is wrong with words that make no command, in our form where the parser tells what is missing."""
    verbs = [name for name in app if not name.startswith("-")]
    if isinstance(error, UnknownCommandError):
        return str(unknown_name("command", words[0], verbs, "see `spaceless --help`"))
    verb = f"{words[0]} " if words and words[0] in verbs else ""
    told = error.argument
    if isinstance(error, MissingArgumentError) and error.keyword is None and told is not None and verb:
        name, said = told.name.lstrip("-"), getattr(error.target, "__doc__", None) or ""
        what = name.upper() if told.index is not None else told.name
        wanted = re.search(rf"^    {name}\n((?:        .*\n)+)", said, re.MULTILINE)
        example = re.search(r"^    Example: (`.*)$", said, re.MULTILINE)
        if wanted and example:
            expected = re.sub(r"(, \.\.)?\.$", "", " ".join(wanted[1].split()))
            return str(InputError(verb.strip(), found=f"no {what}", expected=expected[0].lower() + expected[1:],
                                  cure=f"write for example {example[1]}"))
    return f"error: {' '.join(str(error).split())}\nsee `spaceless {verb}--help`"


def _fail(message: str, status: int) -> NoReturn:
    """Print an error in at most three lines and leave with `status`."""
    text = message if message.startswith(("error: ", "interrupted")) else f"error: {message}"
    # Names out of a file may hold anything, and a terminal would obey some of it.
    text = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[:_LONGEST])
    if len(text) > _ONE_LINE:  # one line for each of: what was found, what was expected, how to mend it
        text = text.replace(", expected ", ",\n  expected ", 1).replace("; ", ";\n  ", 1)
    if status == 1 or os.environ.get("RANK", "0") == "0":  # what is wrong with the input all processes find alike
        print(text, file=sys.stderr)
    raise SystemExit(status)
