"""JSON, TOML and the JSON in front of weights, with values, names and numbers that nobody expects."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from spaceless.bench.faults.corruption import NUMBERS, WORDS

_DEEP = 5000  # nested lists
_LONG = 200_000  # characters of a text that is too long
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "C64", "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "U64",
           "O", "")


def _value(random: Random) -> Any:
    """Return a value that JSON can hold and nobody expects."""
    return random.choice((
        None, True, "", 0, -1, 1.5, 1e308, -1e308, 1e-320, random.choice(NUMBERS), 10 ** 400, [], {}, [[]], {"a": 1},
        random.choice(WORDS).decode("utf-8", "replace"), "9" * 5000, "a" * _LONG, [0] * 10_000, [1e308, 1e308],
        float("nan"), float("inf"), "0-3", "0-99999999999", "\ud800",
    ))


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return every (container, key) below `value`."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        found.append((value, key))
        _places(inner, found)
    return found


def crafted_json(random: Random, content: bytes) -> bytes:
    """Return JSON with a value exchanged, a field renamed, left out, added or told twice, or lists without end."""
    value = json.loads(content)
    places = _places(value, [])
    for _ in range(random.choice((1, 1, 2, 5))):
        container, key = random.choice(places)
        if key not in (range(len(container)) if isinstance(container, list) else container):
            continue  # what held it was changed already
        match random.randrange(6):
            case 0 if isinstance(container, dict):
                del container[key]
            case 1 if isinstance(container, dict):
                container[random.choice(WORDS).decode("utf-8", "replace")] = container.pop(key)
            case 2:
                container[key] = _copy(random.choice(places), container[key])
            case _:
                container[key] = _value(random)
    text = json.dumps(value)
    match random.randrange(12):
        case 0:
            text = text.replace("1", random.choice(("[" * _DEEP, '{"a":' * _DEEP, "[" * _DEEP + "]" * _DEEP)), 1)
        case 1:
            text = text[:-1] + "," + text[1:]  # every field twice
    return text.encode()


def _copy(place: tuple[Any, Any], default: Any) -> Any:
    """Return a copy of the value at `place`, or `default` where it is gone."""
    container, key = place
    try:
        return json.loads(json.dumps(container[key]))
    except (KeyError, IndexError):
        return default


def crafted_safetensors(random: Random, content: bytes) -> bytes:
    """Return a file of weights whose header announces other tensors, or is announced with another length."""
    size = int.from_bytes(content[:8], "little")
    header, values = content[8:8 + size], content[8 + size:]
    match random.randrange(5):
        case 0:
            header = crafted_json(random, header)
        case 1:
            return struct.pack("<Q", random.choice(NUMBERS) & ((1 << 64) - 1)) + content[8:]
        case _:
            entries = json.loads(header)
            name = random.choice([key for key in entries if key != "__metadata__"])
            entry = entries[name]
            match random.randrange(5):
                case 0:
                    entry["dtype"] = random.choice(_DTYPES)
                case 1:
                    entry["shape"] = random.choice((
                        [], [0], [1], [-1], [1 << 62, 4], [1 << 32, 1 << 32], entry["shape"][::-1],
                        [*entry["shape"], 1], [1] * 70,
                    ))
                case 2:
                    first, last = entry["data_offsets"]
                    entry["data_offsets"] = random.choice((
                        [last, first], [0, last], [first, first], [first, last + 4], [first, 1 << 60], [-1, last]))
                case 3:
                    entries[random.choice(WORDS).decode("utf-8", "replace")] = entries.pop(name)
                case _:  # as many bytes as before, of another type; or a tensor of none
                    halves = {name: entry | {"dtype": "F16", "shape": [*entry["shape"], 2]}}
                    none = {"empty": {"dtype": random.choice(_DTYPES), "shape": [0], "data_offsets": [0, 0]}}
                    entries |= random.choice((halves, none))
            header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + values


def crafted_toml(random: Random, content: bytes) -> bytes:
    """Return a study with one of its lines written differently."""
    lines = content.decode().splitlines()
    i = random.randrange(len(lines))
    name = lines[i].partition(" = ")[0]
    value = random.choice((
        "0", "-1", "1e308", "nan", "inf", '""', "[]", "{}", "true", "1979-05-27T07:32:00Z", '"0-99999999999"', '"0-3,"',
        '"5-1"', '"0-9999"', str(random.choice(NUMBERS)), "9" * 5000, "[" * _DEEP, "[" * _DEEP + "]" * _DEEP,
        '"' + "a" * _LONG + '"', json.dumps(random.choice(WORDS).decode("utf-8", "replace")), '["shuffle", "shuffle"]',
        "[" + "0, " * 3000 + "0]", "{ epochs = 0 }", "{ unknown = 1 }", "1999-99-99", "'''", '"\\ud800"', '"\\u0000"',
    ))
    match random.randrange(5):
        case 0:
            lines.insert(i, lines[random.randrange(len(lines))])
        case 1:
            del lines[i]
        case 2:
            lines.insert(i, f"{random.choice(_KEYS)} = {value}")
        case _:
            lines[i] = f"{name} = {value}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


_KEYS = ("seeds", "ks", "only", "strips", "image_sizes", "shuffle_last", "x_ticks", "also", "printed", "scale",
         "overrides", "width", "a.b.c", '"<b>"', "x", "title", "series", "smoke", "recipe", "k_step", "downsamples")
