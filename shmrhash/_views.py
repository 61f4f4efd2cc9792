"""Views of a SharedDict: like those of a dict, they show its current entries."""

from __future__ import annotations

import reprlib
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from shmrhash._errors import InvalidArgument, TooLarge

if TYPE_CHECKING:
    from shmrhash._dict import SharedDict

KEYS, VALUES, ITEMS = 0, 1, 2  # what DictCore._entries() delivers
SHOWN_MAX = 6  # entries in a repr

Errors = Literal["raise", "skip"]
NOT_HELD = (TypeError, OverflowError, UnicodeError, TooLarge)  # for keys that a type cannot hold

_T = TypeVar("_T")
_short = reprlib.Repr()
_short.maxother = _short.maxstring = 60


def shown(entries: Iterator[Any], pairs: bool) -> str:
    """The first few entries, for a repr."""
    parts: list[str] = []
    for entry in entries:
        if len(parts) == SHOWN_MAX:
            parts.append("...")
            break
        parts.append(": ".join(map(_short.repr, entry)) if pairs else _short.repr(entry))
    return ", ".join(parts)


def _skipping(errors: Errors) -> bool:
    """Whether errors is "skip". Raises InvalidArgument."""
    if errors not in ("raise", "skip"):
        raise InvalidArgument(f"errors must be 'raise' or 'skip', not {errors!r}")
    return errors == "skip"


class SharedKeys(KeysView[Any]):
    """The keys: a set, as dict.keys() is. Set operations make a plain set."""

    __slots__ = ("_skipping",)
    _mapping: SharedDict

    def __init__(self, mapping: Any, errors: Errors = "raise") -> None:
        super().__init__(mapping)
        self._skipping = _skipping(errors)

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._entries(KEYS, self._skipping)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{shown(iter(self), False)}])"

    @classmethod
    def _from_iterable(cls, iterable: Iterable[_T]) -> set[_T]:
        return set(iterable)


class SharedItems(ItemsView[Any, Any]):
    """The pairs of key and value, each read in one step. Set operations make a plain set."""

    __slots__ = ("_skipping",)
    _mapping: SharedDict

    def __init__(self, mapping: Any, errors: Errors = "raise") -> None:
        super().__init__(mapping)
        self._skipping = _skipping(errors)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._entries(ITEMS, self._skipping)

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

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{shown(iter(self), False)}])"

    @classmethod
    def _from_iterable(cls, iterable: Iterable[_T]) -> set[_T]:
        return set(iterable)


class SharedValues(ValuesView[Any]):
    """The values, each a separate copy."""

    __slots__ = ("_skipping",)
    _mapping: SharedDict

    def __init__(self, mapping: Any, errors: Errors = "raise") -> None:
        super().__init__(mapping)
        self._skipping = _skipping(errors)

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._entries(VALUES, self._skipping)

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{shown(iter(self), False)}])"
