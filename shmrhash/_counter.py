"""SharedCounter: a collections.Counter that all processes count in."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, overload

from shmrhash import _core
from shmrhash._dict import SharedDict
from shmrhash._errors import InvalidArgument
from shmrhash._types.schema import Schema
from shmrhash._typing import CreateOptions, K, N, Options
from shmrhash._views import ITEMS, VALUES, Errors

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class SharedCounter(_core.CounterCore[K, N], SharedDict[K, N]):
    """A SharedDict of numbers, in which an absent key has the count 0 and additions are atomic.

    SharedCounter(name, key=str, value=int): int counts in 64 bits and wraps around (2**63 - 1 plus
    1 is -2**63: a sum never raises OverflowError), float counts in doubles. inc(key) adds 1 and
    returns the sum: no addition is lost, and no two callers get the same sum. c[key] += 1 would be
    a read and a write; use inc(). update() and subtract() add the counted number to each key, in
    one step per key; c += and c -= do the same. c + other, c - other and c & other are new
    collections.Counters.

    A key stays when its count becomes 0, until it is deleted. == compares as dicts do. As a type,
    SharedCounter[K] counts in int, and SharedCounter[K, float] in float.

    Attributes: handle, as a SharedDict's.
    """

    if not TYPE_CHECKING:  # a checker knows the default of the second parameter

        def __class_getitem__(cls, types: Any) -> Any:
            return super().__class_getitem__(types if isinstance(types, tuple) else (types, int))

    @overload
    def __init__(
        self: SharedCounter[str, int], name: str | None = None, **options: Unpack[Options]
    ) -> None: ...
    @overload
    def __init__(
        self: SharedCounter[str, N],
        name: str | None = None,
        *,
        value: type[N],
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self: SharedCounter[K, int],
        name: str | None = None,
        *,
        key: type[K],
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: type[K],
        value: type[N],
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any,
        value: type[N] = ...,
        **options: Unpack[Options],
    ) -> None: ...
    def __init__(
        self, name: str | None = None, *, key: Any = str, value: Any = int, **options: Any
    ) -> None:
        """Create a counter, or open the one of this name. options: as for SharedDict().

        Raises InvalidArgument (a value type other than int and float), and what SharedDict()
        raises.
        """
        _expect_number(value)
        super().__init__(name, key=key, value=value, **options)

    @overload
    @classmethod
    def create(
        cls,
        name: str,
        *,
        key: type[K] = ...,
        value: type[N] = ...,
        **options: Unpack[CreateOptions],
    ) -> Self: ...
    @overload
    @classmethod
    def create(
        cls, name: str, *, key: Any = ..., value: Any = ..., **options: Unpack[CreateOptions]
    ) -> Self: ...
    @classmethod
    def create(cls, name: str, *, key: Any = str, value: Any = int, **options: Any) -> Self:
        """Create a counter of this name, which must not exist.

        Raises what SharedCounter() and SharedDict.create() raise.
        """
        _expect_number(value)
        return super().create(name, key=key, value=value, **options)

    def _start(self, handle: Any, schema: Schema) -> None:
        _expect_number(schema.value.declared)
        super()._start(handle, schema)

    def __missing__(self, key: K) -> N:
        return 0

    def update(  # type: ignore[override]
        self, other: Mapping[K, N] | Iterable[K] = (), /, **more: N
    ) -> None:
        """Count the items of an iterable, or add the counts of a mapping; add the keywords' counts.

        Each key's count changes in one step, but not all of them together. Costs an add() for each
        different key.

        Raises what inc() raises; the keys before the failing one are counted.
        """
        self._add_all(other, more, 1)

    def subtract(self, other: Mapping[K, N] | Iterable[K] = (), /, **more: N) -> None:
        """Like update(), but subtract. Counts may become negative.

        Raises what inc() raises.
        """
        self._add_all(other, more, -1)

    def _add_all(self, other: Any, more: Any, sign: int) -> None:
        # Count the items of an iterable first, to add to each key only once.
        counts = other if isinstance(other, Mapping) else Counter(other)
        for group in (counts, more):
            for key, count in group.items():
                self.add(key, sign * count, 0)

    def __iadd__(self, other: Mapping[K, N] | Iterable[K]) -> Self:
        self.update(other)
        return self

    def __isub__(self, other: Mapping[K, N] | Iterable[K]) -> Self:
        self.subtract(other)
        return self

    def __add__(self, other: Mapping[K, N]) -> Counter[K]:
        return self.copy() + Counter(other) if isinstance(other, Mapping) else NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Mapping[K, N]) -> Counter[K]:
        return self.copy() - Counter(other) if isinstance(other, Mapping) else NotImplemented

    def __rsub__(self, other: Mapping[K, N]) -> Counter[K]:
        return Counter(other) - self.copy() if isinstance(other, Mapping) else NotImplemented

    def __and__(self, other: Mapping[K, N]) -> Counter[K]:
        return self.copy() & Counter(other) if isinstance(other, Mapping) else NotImplemented

    __rand__ = __and__

    # A Counter's | is a maximum, a dict's is a merge: neither is offered, to prevent mistakes.
    __or__ = __ror__ = __ior__ = None  # type: ignore[assignment]

    def most_common(self, n: int | None = None) -> list[tuple[K, N]]:
        """The n keys with the highest counts, or all, as (key, count), highest first. Reads all.

        Raises what reading raises.
        """
        if n is None:
            return sorted(self._entries(ITEMS), key=itemgetter(1), reverse=True)
        return heapq.nlargest(n, self._entries(ITEMS), key=itemgetter(1))

    def elements(self) -> Iterator[K]:
        """Each key as often as its count says, as collections.Counter.elements(); counts below 1
        give none. Not a snapshot.

        Raises TypeError (the counts are floats), and what reading raises.
        """
        return self.copy().elements()

    def total(self) -> N:
        """The sum of all counts. Exact if no count changes during the call. O(entries).

        Raises what reading raises.
        """
        return sum(self._entries(VALUES))  # type: ignore[no-any-return]

    def as_dict(self) -> dict[K, N]:
        """A plain dict of the counts. Not a snapshot. O(entries).

        Raises what reading raises.
        """
        return dict(self._entries(ITEMS))

    def copy(self, *, errors: Errors = "raise") -> Counter[K]:  # type: ignore[override]
        """A collections.Counter of the counts. Not a snapshot. O(entries). errors: as for items().

        Raises what reading raises.
        """
        return Counter(dict(iter(self.items(errors=errors))))

    @classmethod
    def fromkeys(cls, *_args: Any, **_options: Any) -> Any:
        """Not available, as in a Counter: raises NotImplementedError."""
        raise NotImplementedError("a counter from keys: use update()")


def _expect_number(value: Any) -> None:
    if value not in (int, float):
        raise InvalidArgument(f"a counter's value type is int or float, not {value!r}")
