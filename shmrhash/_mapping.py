"""MappingMethods: the methods of dict that SharedDict offers, made of DictCore's operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmrhash import _core
from shmrhash._constants import BPF_NOEXIST
from shmrhash._errors import InvalidArgument, KeyNotFound
from shmrhash._locks import LockedKeys
from shmrhash._typing import K, V
from shmrhash._views import ITEMS, KEYS, NOT_HELD, Errors, SharedItems, SharedKeys, SharedValues
from shmrhash._waiting import GONE

_L = TypeVar("_L")
_W = TypeVar("_W")

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Self

    class _Dict(_core.DictCore[K, V], MutableMapping[K, V]): ...
else:
    _Dict = Generic  # the methods are mixed into SharedDict, which has the core as its other base

_ABSENT: Any = object()
_COMPLETIONS_MAX = 1000  # keys that a shell offers; more would not help, and cost time


class MappingMethods(_Dict[K, V]):
    """A collections.abc.MutableMapping. The core implements d[key], get, in, pop and the like."""

    __reversed__ = None  # there is no order to reverse

    def __iter__(self) -> Iterator[K]:
        return self._entries(KEYS)

    def _ipython_key_completions_(self) -> list[K]:
        """What IPython and Jupyter offer after d[: the first keys, in no order."""
        return list(itertools.islice(self._entries(KEYS, True), _COMPLETIONS_MAX))

    def keys(self, *, errors: Errors = "raise") -> SharedKeys[K]:
        """A view of the keys, with the operations of a set. errors: as for items().

        Raises InvalidArgument, as items(). Iterating raises what reading raises.
        """
        return SharedKeys(self, errors)

    def values(self, *, errors: Errors = "raise") -> SharedValues[V]:
        """A view of the values; each is a separate copy. errors: as for items().

        Raises InvalidArgument, as items(). Iterating raises what reading raises.
        """
        return SharedValues(self, errors)

    def items(self, *, errors: Errors = "raise") -> SharedItems[K, V]:
        """A view of the pairs (key, value), with the operations of a set; each is read in one step.

        errors: how iterating treats an entry that cannot be decoded, for example because its class
        cannot be imported here. "raise": iterating raises at this entry, and next() of the same
        iterator continues after it. "skip": iterating leaves it out.

        Raises InvalidArgument (another word for errors). Iterating raises what reading raises.
        """
        return SharedItems(self, errors)

    def update(
        self,
        other: SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]] = (),
        /,
        **more: V,
    ) -> None:
        """Store the pairs of a mapping or an iterable, and the keywords, as dict.update() does.

        Each pair is stored in one step, but not all of them together. The default ttl applies.
        Costs a store for each pair.

        Raises what storing raises; the pairs before the failing one are stored.
        """
        if isinstance(other, (dict, MappingMethods)):
            pairs: Iterable[Any] = other.items()
        elif hasattr(other, "keys"):
            table: Any = other
            pairs = ((key, table[key]) for key in table.keys())  # noqa: SIM118 (dict asks it)
        else:
            pairs = other
        for key, value in itertools.chain(pairs, more.items()):
            self[key] = value

    def copy(self, *, errors: Errors = "raise") -> dict[K, V]:
        """A plain dict of the entries. Not a snapshot: see the class. O(entries).

        errors: as for items(). Array values are copies too. copy.copy() and copy.deepcopy() of a
        SharedDict, or of an object that refers to one, give the same SharedDict.

        Raises what reading raises.
        """
        return dict(iter(self.items(errors=errors)))

    def __or__(self, other: Mapping[_L, _W]) -> dict[K | _L, V | _W]:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged: dict[Any, Any] = self.copy()
        merged.update(other)
        return merged

    def __ror__(self, other: Mapping[_L, _W]) -> dict[K | _L, V | _W]:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged: dict[Any, Any] = dict(other)
        merged.update(self._entries(ITEMS))
        return merged

    def __ior__(  # type: ignore[misc]  # other takes less than that of __or__, as in a dict
        self, other: SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]]
    ) -> Self:
        self.update(other)
        return self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Mapping):
            return NotImplemented
        count = 0
        for key, value in self._entries(ITEMS):
            try:
                found = other[key]
            except (KeyError, *NOT_HELD):  # absent, or a key that its type cannot hold
                return False
            if not (found is value or found == value):
                return False
            count += 1
        # len() counts expired entries; this count does not.
        return count == (sum(1 for _ in other) if isinstance(other, MappingMethods) else len(other))

    __hash__ = None  # type: ignore[assignment]

    def locked(
        self, key: K, *, timeout: float | None = None, default: V = _ABSENT
    ) -> _core.LockedEntry[V]:
        """A locked section: ``with d.locked(key) as entry: entry.value = f(entry.value)``.

        entry.value is a private copy of the value: assign to it, or change it if it is mutable, and
        when the block ends it is stored in one step. entry.delete() deletes the key instead,
        entry.roll_back() stores nothing. If the block raises, or the process dies, the value stays
        as it was. Inside the block no other thread or process writes the key (L1); readers see the
        old value.

        timeout: seconds to wait for the lock; None is the dict's own timeout. default: a value to
        insert first if the key is absent; it stays, however the section ends. A lock belongs to the
        thread that took it. In a coroutine use ``async with``: the tasks of a loop take turns in
        the order in which they came, the lock belongs to the task, and no wait blocks the loop.

        Raises KeyNotFound (absent, and no default), LockTimeout, DeadlockError (this thread has the
        key locked already), what storing raises; at the end KeyGone (the key was deleted, or its
        entry expired, during the section).
        """
        if default is _ABSENT:
            return self._section(key, timeout)
        return self._section(key, timeout, default)

    def locked_many(
        self, keys: Iterable[K], *, timeout: float | None = None, default: V = _ABSENT
    ) -> LockedKeys[_core.LockedEntry[V]]:
        """Locked sections on several keys: ``with d.locked_many([a, b]) as (ea, eb):``.

        Each is an entry as locked() gives it. The keys are locked in one order, whatever order is
        given, so that two callers that lock the same keys cannot deadlock. The end of the block is
        one step: all changes of the entries, those of delete() too, are stored, or nothing is, even
        if the process is killed at any instruction (C1, L2). If the block raises, nothing is
        stored. A later locked_many() of the keys sees all of the change or none of it. A lookup
        takes no lock: one key after the other, it may find a new value and then an old one; to read
        several keys that belong together, lock them, too. timeout and default are for each key; a
        default that was inserted stays, however the block ends. In a coroutine, use ``async with``,
        as for locked(); a deletion at its end may block the loop while another process holds the
        key's bucket.

        Raises what locked() raises, InvalidArgument (a key given twice), TooManyProcesses (no
        context left: all processes together have 4,096); at the end KeyGone (a key was deleted, or
        an entry expired: nothing is stored), LockTimeout (the bucket of a key to be deleted was
        held by another process for the dict's timeout: nothing is stored).
        """
        given = list(keys)
        more = () if default is _ABSENT else (default,)
        return LockedKeys(
            map(self._raw_key, given), lambda number: self._section(given[number], timeout, *more)
        )

    def update_with(
        self,
        key: K,
        function: Callable[[V], V],
        *default: V,
        timeout: float | None = None,
        allow_none: bool = False,
    ) -> V:
        """Store function(value) while the key is locked; return it.

        default: the value that function gets if the key is absent; it is inserted first, and stays
        if function raises. function runs once, and must not write this key by other means. A
        function that changes its argument and returns nothing would store None: that is refused
        unless the value was None or allow_none is true. The entry keeps its deadline.

        Raises what locked() raises, what function raises, and InvalidArgument (function returned
        None); then nothing is stored. KeyGone: the entry was deleted or expired while function ran.
        """
        expect_one_default(default)
        return store_updated(self._section(key, timeout, *default), key, function, allow_none)

    def compare_and_swap(
        self, key: K, expected: V, new: V, *, timeout: float | None = None
    ) -> bool:
        """Store new under key if its value equals expected (==); return whether new was stored.

        expected may be shmrhash.GONE: then new is stored only if key is absent. Else an absent key
        gives False. Atomic (W1). The entry keeps its deadline; a new one gets the default ttl.
        Costs a locked section.

        Raises LockTimeout, DeadlockError, what storing raises, and what == raises.
        """
        if expected is GONE:
            return self._put(key, new, BPF_NOEXIST)
        try:
            with self._section(key, timeout) as entry:
                equal = bool(entry.value == expected)
                if equal:
                    entry.value = new
                else:
                    entry.roll_back()
        except KeyNotFound:  # also KeyGone
            return False
        return equal


def expect_one_default(default: tuple[V, ...]) -> None:
    """Raise TypeError if update_with() was given more than one."""
    if len(default) > 1:
        raise TypeError("update_with takes a key, a function and a default")


def updated(key: object, before: V, function: Callable[[V], V], allow_none: bool) -> V:
    """What update_with() stores in the place of a value. Raises InvalidArgument."""
    fresh = function(before)
    if fresh is None and before is not None and not allow_none:
        raise InvalidArgument(
            f"update_with: the function returned None for {key!r}; return the new value, "
            f"or store None with allow_none=True"
        )
    return fresh


def store_updated(
    section: _core.LockedEntry[V], key: object, function: Callable[[V], V], allow_none: bool
) -> V:
    """The work of update_with(), in a section that is not open yet."""
    with section as entry:
        fresh = entry.value = updated(key, entry.value, function, allow_none)
    return fresh


MutableMapping.register(MappingMethods)
