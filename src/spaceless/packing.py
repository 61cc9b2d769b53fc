"""A nested state as named tensors and plain JSON values, and back: keys that are numbers stay numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def pack(state: Mapping[Any, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a nested mapping by their paths, and all else as it is written in JSON.

    A path joins its keys by `/`, in a key written `~1` (and `~` is `~0`, as in RFC 6901). A key that is a number is
    written `#NUMBER`, a text that begins with `#` begins with two. Sequences come back as lists.

    Raises:
        TypeError: A value is neither a tensor nor a mapping, a sequence or what JSON knows.

    """
    tensors: dict[str, Tensor] = {}
    return tensors, _plain(state, "", tensors)


def unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[Any, Any]:
    """Return the state that `pack` took apart.

    Raises:
        LookupError, TypeError, ValueError: The two do not belong together.

    """
    state: dict[Any, Any] = _restored(plain)
    for path, tensor in tensors.items():
        *place, last = (_key(part.replace("~1", "/").replace("~0", "~")) for part in path.split("/"))
        inside = state
        for key in place:
            inside = inside[key]
        if last in inside:
            raise ValueError(f"{path} is there twice")
        inside[last] = tensor
    return state


def _plain(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Mapping):
        kept = {}
        for key, each in value.items():
            word = _word(key)
            place = f"{path}/{_escaped(word)}" if path else _escaped(word)
            if isinstance(each, Tensor):
                tensors[place] = each
            else:
                kept[word] = _plain(each, place, tensors)
        return kept
    if isinstance(value, list | tuple):
        return [_plain(each, path, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: found {type(value).__name__}, which JSON does not know")


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(word): _restored(each) for word, each in value.items()}
    return [_restored(each) for each in value] if isinstance(value, list) else value


def _word(key: Any) -> str:
    if isinstance(key, str):
        return f"#{key}" if key.startswith("#") else key
    if type(key) is int:
        return f"#{key}"
    raise TypeError(f"found a key that is {type(key).__name__}, expected a text or a number")


def _key(word: str) -> str | int:
    if not word.startswith("#"):
        return word
    return word[1:] if word.startswith("##") else int(word[1:])


def _escaped(word: str) -> str:
    return word.replace("~", "~0").replace("/", "~1")
