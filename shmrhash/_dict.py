"""SharedDict: a dict that all processes see."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

from shmrhash._dictfile import (
    create_anonymous,
    create_segment,
    expect_types,
    remove_replaced,
)
from shmrhash._errors import (
    InvalidArgument,
    LayoutMismatch,
    LockTimeout,
    SegmentExists,
    SegmentMissing,
)
from shmrhash._map import RHashMap
from shmrhash._mapping import MappingMethods
from shmrhash._schema import (
    Schema,
    expect_geometry,
    make_schema,
    read_schema,
    restore_schema,
    with_ttl,
)
from shmrhash._types import record_name
from shmrhash._views import ITEMS, shown

_DEFAULT_TIMEOUT = 5.0
_RACES_MAX = 100

_D = TypeVar("_D", bound="SharedDict")


class SharedDict(MappingMethods):
    """A dict in shared memory, for any number of processes.

    SharedDict(name, key=str, value=int) makes it, or opens it if it is there with the same types.
    SharedDict() is anonymous: shared with children by inheritance (fork) or by pickling (spawn,
    forkserver, Pool initializers), gone when the last process has closed it or ended.

    Types. key and value are declared once and kept in the segment. int (64 bits, signed), float,
    bool, a struct format, a NumPy dtype, a ctypes.Structure: stored in the entry. bytes, str,
    Array(dtype) (NumPy arrays, read without copying), dataclasses and msgspec.Struct (by msgspec),
    object (any object, by pickle): stored beside it, in any size up to 256 MiB; keys up to 65,535
    bytes. Keys of type object are compared as in a dict if they are None, numbers, str, bytes,
    or tuples and frozensets of these (1, 1.0 and True are one key and come back as 1), and so
    are the standard library's value types and classes compared by their fields; a type with an
    equality of its own is refused as a key (TypeError). A NaN is found again, by its bytes. A
    process that reads object keys or values unpickles what others stored: trust every writer.

    Concurrency. Each operation on one key is atomic (W1): d[k], d[k] = v, del, in, get, set,
    setdefault, pop, popitem, exchange, add, touch, update_with. Reading waits for nobody. Several
    together are not atomic: d[k] += 1 is a read and a write, and what others add in between is
    lost; use add(), update_with() or locked(). update(), clear(), copy() and == go from key to key
    and are no snapshots. An iterator, of keys, values or items, delivers each entry that is there
    from its beginning to its end exactly once, through every resize (I1); one that comes or goes
    meanwhile once or not at all; writing while iterating is allowed. len() counts what is there,
    also expired entries that nobody has met yet. There is no order.

    Values are copies: d[k].append(x) changes a list that only the caller has, and nothing in the
    dict. Store it back, as one step: d.update_with(k, lambda v: v + [x]), or

        with d.locked(k) as entry:
            entry.value.append(x)

    Expiry. ttl=seconds gives each new value that long to live; ttl=math.inf none, but set(ttl=...)
    can. An expired entry behaves as absent from that millisecond on.

    A process may be killed at any moment (C1). Threads may share a handle.

    Attributes: handle, the RHashMap below, with the entries as the bytes they are stored as.
    """

    _schema: Schema

    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any = object,
        value: Any = object,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        ttl: float | None = None,
        timeout: float | None = _DEFAULT_TIMEOUT,
        mode: int = 0o600,
        ephemeral: bool = False,
        owner: int | None = None,
        if_different: str = "raise",
    ) -> None:
        """Create a dict; or open the one of this name, if its types fit and its limits are equal.

        name: None makes an anonymous one. key, value: the declared types. max_entries: a hard
        limit, and compared if it is given; else 2**20. max_bytes: of keys and values that are not
        in the entries, compared likewise; None: as much as the file system has, and 1 GiB at most.
        ttl: seconds that values live which this handle stores. None: as the dict was made; and if
        it is made now, for ever, and entries have no room for a deadline. timeout: seconds an
        operation waits for a lock whose owner is alive; None is for ever. mode: permissions of the
        segment's file. ephemeral: the last process to close it removes the name. owner: a user id
        to trust besides one's own and root's. if_different: "replace" takes the name from a dict of
        other types or limits and makes a new one; who has the old one goes on with it. Of several
        that start at once, one makes it and the others open it.

        Types fit if each side can read what the other stores: docs/deploys.md has the rules.

        Raises LayoutMismatch (it is there, with other types: both are named), TypeError and
        InvalidArgument (a type that cannot be declared), ImportError (its library is not
        installed), TooLarge, SegmentFull, LimitReached, PermissionDenied, Unsupported.
        """
        schema = make_schema(key, value, ttl)
        limits = max_entries, max_bytes
        if name is None:
            self._start(create_anonymous(schema, limits, timeout=timeout, mode=mode), schema)
            return
        if if_different not in ("raise", "replace"):
            raise InvalidArgument(f"if_different is 'raise' or 'replace', not {if_different!r}")
        for _ in range(_RACES_MAX):  # somebody else creates and unlinks in between; not for ever
            try:
                handle = RHashMap.open(name, timeout=timeout, owner=owner)
            except SegmentMissing:
                try:
                    handle = create_segment(
                        name, schema, limits, timeout=timeout, mode=mode, ephemeral=ephemeral
                    )
                except SegmentExists:
                    continue
                self._start(handle, schema)
                return
            try:
                self._start(handle, expect_types(handle, schema, limits))
                return
            except LayoutMismatch:
                replaced = if_different == "replace" and remove_replaced(handle)
                handle.close()
                if not replaced:
                    raise
            except BaseException:
                handle.close()
                raise
        raise LockTimeout(f"segment {name!r} is created and removed all the time")

    def _start(self, handle: RHashMap, schema: Schema) -> None:
        """Become the dict of this handle. Raises LayoutMismatch."""
        expect_geometry(schema, handle)
        super().__init__(handle, schema.key.triple, schema.value.triple, schema.default_ttl_ns)
        self._schema = schema
        if handle.ephemeral:  # whoever drops it leaves; at its end a process does (_map.py)
            weakref.finalize(self, handle.close).atexit = False

    @classmethod
    def _of(cls: type[_D], handle: RHashMap, schema: Schema) -> _D:
        self = cls.__new__(cls)
        try:
            self._start(handle, schema)
        except BaseException:
            handle.close()
            raise
        return self

    @classmethod
    def create(
        cls: type[_D],
        name: str,
        *,
        key: Any = object,
        value: Any = object,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        ttl: float | None = None,
        timeout: float | None = _DEFAULT_TIMEOUT,
        mode: int = 0o600,
        ephemeral: bool = False,
    ) -> _D:
        """Create a dict of this name, which must not be there. Arguments as for SharedDict().

        Raises SegmentExists, and what SharedDict() raises.
        """
        schema = make_schema(key, value, ttl)
        limits = max_entries, max_bytes
        options = {"timeout": timeout, "mode": mode, "ephemeral": ephemeral}
        return cls._of(create_segment(name, schema, limits, **options), schema)

    @classmethod
    def open(
        cls: type[_D],
        name: str,
        *,
        key: Any = None,
        value: Any = None,
        trust: bool = False,
        read_only: bool = False,
        timeout: float | None = _DEFAULT_TIMEOUT,
        owner: int | None = None,
    ) -> _D:
        """Open the dict of this name, which must be there.

        key, value: the types it must have; None takes those that it says it has. A class must be
        given. So must object, unless trust is True: reading its keys or values unpickles what any
        writer stored, and a pickle can run any code. read_only: map the memory for reading only;
        then values are copied, also arrays. timeout, owner: as for SharedDict().

        Raises SegmentMissing, LayoutMismatch (other types: both are named; not a dict; a class that
        was not given), InvalidArgument (object, neither given nor trusted), PermissionDenied.
        """
        handle = RHashMap.open(name, read_only=read_only, timeout=timeout, owner=owner)
        try:
            record = read_schema(handle.schema, handle.name)
            for role, declared in (("key", key), ("value", value)):
                if record[role] == "object" and declared is None and not trust:
                    raise InvalidArgument(
                        f"the {role}s of {name!r} are pickles, and whoever may write them can run "
                        f"code here; if you trust all of them, open it with {role}=object or "
                        f"trust=True"
                    )
            schema = restore_schema(record, handle.name, key, value)
        except BaseException:
            handle.close()
            raise
        return cls._of(handle, schema)

    @classmethod
    def fromkeys(
        cls: type[_D], iterable: Iterable[Any], value: Any = None, /, **options: Any
    ) -> _D:
        """A new dict with these keys and one value. options, name among them: as for SharedDict().

        Raises what SharedDict() and storing raise.
        """
        fresh = cls(**options)
        for key in iterable:
            fresh[key] = value
        return fresh

    # The handle.

    @property
    def name(self) -> str:
        """The segment's name, also of an anonymous dict."""
        return self.handle.name

    @property
    def key_type(self) -> Any:
        """The declared type of the keys."""
        return self._schema.key.declared

    @property
    def value_type(self) -> Any:
        """The declared type of the values."""
        return self._schema.value.declared

    @property
    def max_entries(self) -> int:
        """As many entries fit."""
        return self.handle.max_entries

    @property
    def closed(self) -> bool:
        """Whether this handle was closed."""
        return self.handle.closed

    def close(self) -> None:
        """Detach. The dict and its name stay, unless it is ephemeral and nobody else has it."""
        self.handle.close()

    def unlink(self) -> None:
        """Remove the name. Attached processes go on; the memory goes with the last of them.

        Raises SegmentMissing if the name is gone already.
        """
        self.handle.unlink()

    def freeze(self) -> None:
        """Forbid writing, to every process and for ever.

        Raises what RHashMap.freeze() raises.
        """
        self.handle.freeze()

    def info(self) -> dict[str, Any]:
        """RHashMap.info(), and the types and ttl, readable. "objects" counts what is by reference.

        Raises MapClosed.
        """
        types = {"key_type": self._schema.key.record, "value_type": self._schema.value.record}
        return self.handle.info() | types | {"ttl": self._schema.ttl}

    def check(self) -> dict[str, Any]:
        """Walk every structural invariant; raise SegmentCorrupt with what is wrong.

        As RHashMap.check(), the objects included.
        """
        return self.handle.check()

    def __enter__(self: _D) -> _D:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        key, value = record_name(self._schema.key.record), record_name(self._schema.value.record)
        what = "closed" if self.closed else f"{{{shown(self._entries(ITEMS), True)}}}"
        return f"<{type(self).__name__} {self.name!r} of {key} to {value}: {what}>"

    def __copy__(self: _D) -> _D:
        return self

    def __deepcopy__(self: _D, memo: object) -> _D:
        return self  # the same dict: what other processes see is not copied; copy() does that

    def __reduce__(self) -> tuple[Any, ...]:
        types = self._schema.key.declared, self._schema.value.declared
        own = {name: value for name, value in vars(self).items() if name != "_schema"}
        return _attach, (type(self), self.handle, *types, self._schema.ttl), own or None


def _attach(cls: type[_D], handle: RHashMap, key: Any, value: Any, ttl: float | None = None) -> _D:
    """What a pickled dict becomes: the one of that name, if it still has those types."""
    try:
        record = read_schema(handle.schema, handle.name)
        schema = with_ttl(restore_schema(record, handle.name, key, value), handle.name, ttl)
    except BaseException:
        handle.close()
        raise
    return cls._of(handle, schema)
