"""The views of a map: keys(), values() and items() of RHashMap and of SharedDict.

Like the views of a dict they show the entries that there are now, and keys and items can be
combined as sets; the result is a plain set.
"""

from __future__ import annotations

import reprlib
from collections.abc import ItemsView, Iterator, KeysView, MappingView, ValuesView
from typing import Any, Literal, Protocol

from shmrhash._errors import InvalidArgument, TooLarge
from shmrhash._typing import K, V

KEYS, VALUES, ITEMS = 0, 1, 2  # what _entries() delivers
SHOWN_MAX = 6  # entries in a repr

Errors = Literal["raise", "skip"]
NOT_HELD = (TypeError, OverflowError, UnicodeError, TooLarge)  # for keys that a type cannot hold

_short = reprlib.Repr()
_short.maxother = _short.maxstring = 60


class Viewed(Protocol):
    """What a view needs of a map."""

    def _entries(self, what: int, skipping: bool = False) -> Iterator[Any]:
        """The keys, values or items; skipping: without those that cannot be decoded."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __len__(self) -> int: ...


def shown(entries: Iterator[Any], pairs: bool) -> str:
    """The first few entries, for a repr."""
    parts: list[str] = []
    for entry in entries:
        if len(parts) == SHOWN_MAX:
            parts.append("...")
            break
        parts.append(": ".join(map(_short.repr, entry)) if pairs else _short.repr(entry))
    return ", ".join(parts)


class _View(MappingView):
    """What the three views have in common. errors: as for SharedDict.items()."""

    __slots__ = ("_skipping",)
    _mapping: Viewed
    _what = KEYS

    def __init__(self, mapping: Any, errors: Errors = "raise") -> None:
        if errors not in ("raise", "skip"):
            raise InvalidArgument(f"errors must be 'raise' or 'skip', not {errors!r}")
        super().__init__(mapping)
        self._skipping = errors == "skip"

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._entries(self._what, self._skipping)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{shown(iter(self), False)}])"


class SharedKeys(_View, KeysView[K]):
    """The keys, as a set."""

    __slots__ = ()


class SharedItems(_View, ItemsView[K, V]):
    """The pairs of key and value, each read in one step, as a set."""

    __slots__ = ()
    _what = ITEMS

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        key, wanted = item
        try:
            found = self._mapping[key]
        except KeyError:
            return False
        except NOT_HELD:
            return key in self._mapping  # False; or TypeError if the key is unhashable
        return bool(found is wanted or found == wanted)


class SharedValues(_View, ValuesView[V]):
    """The values, each a separate copy."""

    __slots__ = ()
    _what = VALUES

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)
