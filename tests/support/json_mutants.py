"""JSON files changed as no writer of segmint changes them: other types, missing and odd values, other documents."""

import json
import random
from collections.abc import Iterator
from typing import Any

_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**30, 2**53 + 1, 0.5, 1e308, float("inf"), float("nan")),
    *("", " ", "x", "\x00", "\ud800", "a/../../b", "../x", "=1+1", "9" * 5000, "2026-13-45", "é" * 300),
    *([], {}, [None], [[]], {"": None}, {"x": {"y": [1, {"z": "\x00"}]}}),
)
_DOCUMENTS = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'"text"',
    b"1e999",
    b"-Infinity",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"schema_version":1}',
    b'{"schema_version":1,"schema_version":2}',
    b"\x00" * 64,
    b"PAR1",
)

Path = tuple[Any, ...]
"""The keys and positions that lead to a value."""


def mutants(data: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` changed forms of a JSON document, each with what was changed; the same for a seed."""
    source = random.Random(seed)
    paths = list(_paths(json.loads(data)))
    for number in range(count):
        if number % 5 == 4:
            yield _bytes(data, source)
            continue
        value = json.loads(data)
        path = source.choice(paths)
        yield f"{'.'.join(map(str, path)) or 'all of it'}: {_change(value, path, source)}", _dumped(value)


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from _paths(each, (*path, key))


def _change(value: Any, path: Path, source: random.Random) -> str:
    """Change the value at a path, in place; return how."""
    *before, last = path
    for key in before:
        value = value[key]
    how = source.choice(("odd", "odd", "odd", "delete", "twice", "text", "list", "more", "deep"))
    if how == "delete":
        del value[last]
    elif how == "twice" and isinstance(value, list):
        value.append(value[last])
    elif how == "text":
        value[last] = json.dumps(value[last])
    elif how == "list":
        value[last] = [value[last]]
    elif how == "more" and isinstance(value, dict):
        value["more"] = value[last]
    elif how == "deep":
        for _ in range(source.choice((50, 900))):
            value[last] = [value[last]]
    else:
        value[last] = source.choice(_ODD)
        how = repr(value[last])[:40]
    return how


def _dumped(value: Any) -> bytes:
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _bytes(data: bytes, source: random.Random) -> tuple[str, bytes]:
    how = source.choice(("flip", "cut", "document"))
    place = source.randrange(len(data))
    if how == "cut":
        return f"cut at {place}", data[:place]
    if how == "document":
        document = source.choice(_DOCUMENTS)
        return f"{document[:20]!r}", document
    bit = source.randrange(8)
    return f"bit {bit} of byte {place}", data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
