"""`Spec`: a frozen record that refuses what it does not know, made of JSON or of fields; errors name the bad one."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from spaceless.errors import InputError


class Spec(BaseModel):
    """A frozen record that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_S = TypeVar("_S", bound=Spec)


def parse(kind: type[_S], text: str, what: str) -> _S:
    """Return the record of `kind` in the JSON `text`, or raise InputError naming `what` and the first bad field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise _first_problem(error, what) from None


def make(kind: type[_S], what: str, **fields: Any) -> _S:
    """Return `kind(**fields)`, or raise InputError naming `what` and the first bad field."""
    try:
        return kind(**fields)
    except ValidationError as error:
        raise _first_problem(error, what) from None


def _first_problem(error: ValidationError, what: str) -> InputError:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return InputError(
        f"{what}{': ' if place else ''}{place}", found=repr(first.get("input"))[:80],
        expected=first["msg"].removeprefix("Input should be "),
        cure="correct this field",
    )
