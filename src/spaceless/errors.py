"""Errors: one message form for everything that a user can get wrong or that can break under them."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 500  # characters of what a user or a file said; its beginning and its end tell enough


class SpacelessError(Exception):
    """WHAT: found ..., expected ...; how to mend it.

    Args:
        what: The thing that is wrong, as the user knows it (an option, a file, a module's path).
        found: What was there.
        expected: What would have been right.
        cure: One imperative sentence that mends it.

    """

    exit_status = 1

    def __init__(self, what: str, *, found: object, expected: object, cure: str) -> None:
        """Build the one-line message out of its four parts."""
        self.what, self.found, self.expected, self.cure = what, found, expected, cure
        super().__init__(f"{_shortened(what)}: found {_shortened(found)}, expected {expected}; {cure}")

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes as what the message and its parts are."""
        return _restore, (type(self), self.args, self.__dict__)


class InputError(SpacelessError):
    """The user's input cannot be meant as it stands: nothing was started, nothing was written."""

    exit_status = 2


class SurgeryError(InputError):
    """This change cannot be made on this network; the network was left as it was."""


class DataError(InputError):
    """A data set is missing, broken or not what its name says."""


class DamagedError(InputError):
    """A stored record is not what was written: cut short, or changed."""


class CheckpointError(SpacelessError):
    """A training state or another file cannot be stored, or is not what was stored."""


class Interrupted(SpacelessError):  # noqa: N818 (it is an outcome, not a mistake)
    """A signal ended the work after the current step; the state is saved.

    Args:
        signum: The signal's number; the exit status is 128 + signum, as a shell would say.
        saved: Whether there is a state to go on from.

    """

    def __init__(self, signum: int, *, saved: bool = True) -> None:
        """Remember the signal, since the exit status follows from it."""
        self.signum = signum
        self.exit_status = 128 + signum
        super().__init__(
            "interrupted", found=signal.Signals(signum).name, expected="the work to end by itself",
            cure="the state is saved, and the same command goes on from here" if saved else "nothing was written",
        )


def _shortened(part: object) -> str:
    text = str(part)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST // 2]} ... {text[-_LONGEST // 2:]}"


def _restore(kind: type[SpacelessError], args: tuple[object, ...], parts: dict[str, object]) -> SpacelessError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(parts)
    return error


def unknown_name(what: str, found: str, valid: Iterable[str], cure: str = "") -> InputError:
    """Return the error for a name that is not one of `valid`, with the nearest valid name as the cure."""
    names = list(valid)
    near = get_close_matches(found, names, n=1)
    return InputError(
        what,
        found=repr(found),
        expected="one of " + ", ".join(names),
        cure=f"did you mean {near[0]!r}?" if near else cure or "choose one of these",
    )
