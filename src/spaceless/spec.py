"""`Spec`: a frozen record that refuses what it does not know, made of JSON or of fields; errors name the bad one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from spaceless.errors import InputError, unknown_name


class Spec(BaseModel):
    """A frozen record that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_S = TypeVar("_S", bound=Spec)


def parse(kind: type[_S], text: str, what: str) -> _S:
    """Return the record of `kind` in the JSON `text`, or raise InputError naming `what` and the first bad field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _first_problem(error, kind, what) from None


def make(kind: type[_S], what: str, **fields: Any) -> _S:
    """Return `kind(**fields)`, or raise InputError naming `what` and the first bad field."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _first_problem(error, kind, what) from None


def _first_problem(error: ValidationError, kind: type[Spec], what: str) -> InputError:
    # A name that is misspelt is one too many and one too few: the first of the two says more.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    where = f"{what}{': ' if place else ''}{place}"
    if first["type"] == "extra_forbidden":
        return unknown_name(where, str(first["loc"][-1]), _fields_around(kind, first["loc"]))
    if first["type"] == "json_invalid":
        return InputError(where, found=first["msg"], expected="JSON", cure="restore the file or write it again")
    if first["type"] == "missing":
        return InputError(where, found="nothing", expected="a value", cure="add it")
    return InputError(
        where, found=repr(first.get("input"))[:80], cure="correct this field",
        expected=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
    )


def _fields_around(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Return the fields of the record within `kind` that lacks the last one of `place`."""
    for part in place[:-1]:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(_records(kind.model_fields[part].annotation), kind)
    return list(kind.model_fields)


def _records(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the kinds of records that a type speaks of, such as those of an optional one or of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _records(each)
