"""A configuration as it was read: its values, and the places of its keys."""

from dataclasses import dataclass
from typing import Any

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class ConfigProblem:
    """One problem: its dotted key, its place ("build.yaml:12"), and what was expected."""

    key: str
    where: str
    message: str


@dataclass
class Document:
    """A configuration as read: plain values, and the place of each key."""

    data: dict[str, Any]
    places: dict[Key, str]
    source: str

    def place(self, key: Key) -> str:
        """Return the place of a key; for an absent key, that of the nearest enclosing one."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.source)


def dotted(key: Key) -> str:
    """Return a key as people write it: masks.points_per_side; parts with dots in double quotes; items as [0]."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (f'"{part}"' if "." in part else part)
    return text or "the configuration"
