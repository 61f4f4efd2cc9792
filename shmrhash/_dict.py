"""SharedDict: a dict that all processes see."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from shmrhash import _core
from shmrhash._constants import DEFAULT_TIMEOUT
from shmrhash._errors import InvalidArgument
from shmrhash._handle import HandleMethods, TypedMethods
from shmrhash._lifetime import ClosingMethods
from shmrhash._map import RHashMap
from shmrhash._tables import TableMethods
from shmrhash._typed_maps import create_anonymous, create_map, open_or_create
from shmrhash._types.schema import (
    Schema,
    expect_geometry,
    make_schema,
    read_schema,
    restore_schema,
    restored,
)
from shmrhash._typing import CreateOptions, K, OpenOptions, Options, V
from shmrhash._views import ITEMS, shown
from shmrhash._waiting import WaitMethods

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

_NOT_OWN = ("_schema", "__orig_class__")  # attributes that no pickle of a dict has
_D = TypeVar("_D", bound="SharedDict[Any, Any]")


class SharedDict(
    TableMethods[K, V],
    WaitMethods,
    TypedMethods,
    HandleMethods,
    ClosingMethods,
    _core.DictCore[K, V],
):
    """A dict in shared memory, for any number of processes.

    SharedDict(name, key=str, value=int) creates the dict, or opens it if it exists with the same
    types. SharedDict() is anonymous: children get it by inheritance (fork) or by pickling (spawn,
    forkserver, Pool initializers), and it is gone when the last process has closed it or ended.

    Types. key and value are declared once and kept in the segment. int (64 bits, signed), float,
    bool, a struct format, a NumPy dtype and a ctypes.Structure are stored in the entry. bytes, str,
    Array(dtype) (NumPy arrays, read without copying), dataclasses and msgspec.Struct (by msgspec),
    and object (any object, by pickle) are stored beside it, in any size up to 256 MiB; keys up to
    65,535 bytes. Keys of type object are compared as in a dict if they are None, numbers, str,
    bytes, or tuples and frozensets of these (1, 1.0 and True are one key and come back as 1), and
    so are the standard library's value types and classes compared by their fields; a type with an
    equality of its own is refused as a key (TypeError). A NaN key is found by its bytes. A process
    that reads object keys or values unpickles what other processes stored: trust every writer.

    Concurrency. Each operation on one key is atomic (W1): d[k], d[k] = v, del, in, get, set,
    setdefault, pop, popitem, exchange, add, touch, update_with. A reader never waits. Several
    operations together are not atomic: d[k] += 1 is a read and a write, and what another process
    adds between the two is lost; use add(), update_with() or locked(). update(), clear(), copy()
    and == work key by key, not on a snapshot. An iterator over keys, values or items delivers each
    entry that stays in the dict from the iterator's beginning to its end exactly once, through
    every resize (I1); it delivers an entry that is added or removed in that time once or not at
    all. Writing while iterating is allowed. Numbers under short keys are read up to 128 entries
    ahead of the one that is delivered, but read again after a write by this handle. There is no
    order. len() counts all entries, including expired ones that no operation has removed yet.

    Values are copies: d[k].append(x) changes a list that only the caller has, and nothing in the
    dict. Store the new value in one step: d.update_with(k, lambda v: v + [x]), or

        with d.locked(k) as entry:
            entry.value.append(x)

    Expiry. With ttl=seconds each new value lives that long; with ttl=math.inf values live without
    limit unless set(ttl=...) gives one. An expired entry behaves as absent from that millisecond
    on.

    A process may be killed at any moment (C1). Threads may share a handle.

    Attributes: handle, the RHashMap in which the dict stores its entries as bytes.
    """

    _schema: Schema

    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: type[K] = ...,
        value: type[V] = ...,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: type[K] = ...,
        value: Any,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any,
        value: type[V] = ...,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any,
        value: Any,
        **options: Unpack[Options],
    ) -> None: ...
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any = object,
        value: Any = object,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        ttl: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        mode: int = 0o600,
        ephemeral: bool = False,
        owner: int | None = None,
        if_different: str = "raise",
    ) -> None:
        """Create a dict, or open the one of this name if its types fit and its limits are equal.

        name: None makes an anonymous dict. key, value: the declared types. max_entries: a hard
        limit; if given, it must equal that of an existing dict; a new one gets 2**20 by default.
        max_bytes: the limit for keys and values that are not in the entries, compared likewise;
        None is as much as the file system has, and 640 MiB at most. ttl: seconds to live of the
        values that this handle stores. None uses the ttl that the dict was created with; if the
        dict is created now, its values live without limit and its entries have no room for a
        deadline. timeout: seconds an operation waits for a lock whose owner is alive; None waits
        without limit. mode: permissions of the segment's file. ephemeral: the last process to close
        the dict removes its name. owner: a user id to trust besides one's own and root's.
        if_different: "replace" takes the name from a dict of other types or limits and makes a new
        one; processes that have the old dict open go on using it. If several processes do this at
        once, one of them makes the new dict and the others open it.

        Types fit if each side can read what the other stores: docs/deploys.md has the rules.

        Raises LayoutMismatch (the dict exists with other types: both are named), TypeError and
        InvalidArgument (a type that cannot be declared), ImportError (its library is not
        installed), TooLarge, SegmentFull, LimitReached, PermissionDenied, Unsupported.
        """
        schema = make_schema(key, value, ttl)
        limits = max_entries, max_bytes
        if name is None:
            handle = create_anonymous(schema, limits, timeout=timeout, mode=mode)
            self._start(handle, schema)
            return
        open_or_create(
            self._start,
            name,
            schema,
            limits,
            if_different,
            owner=owner,
            timeout=timeout,
            mode=mode,
            ephemeral=ephemeral,
        )

    def _start(self, handle: RHashMap, schema: Schema) -> None:
        """Initialize this object as the dict of this handle. Raises LayoutMismatch."""
        expect_geometry(schema, handle)
        super().__init__(handle, schema.key.triple, schema.value.triple, schema.default_ttl_ns)
        self._schema = schema
        if handle.ephemeral:  # a dict that is collected is closed; at exit _lifetime.py acts
            weakref.finalize(self, handle.close).atexit = False

    @classmethod
    def _of(cls, handle: RHashMap, schema: Schema) -> Self:
        self = cls.__new__(cls)
        try:
            self._start(handle, schema)
        except BaseException:
            handle.close()
            raise
        return self

    @overload
    @classmethod
    def create(
        cls,
        name: str,
        *,
        key: type[K] = ...,
        value: type[V] = ...,
        **options: Unpack[CreateOptions],
    ) -> Self: ...
    @overload
    @classmethod
    def create(
        cls, name: str, *, key: Any = ..., value: Any = ..., **options: Unpack[CreateOptions]
    ) -> Self: ...
    @classmethod
    def create(
        cls,
        name: str,
        *,
        key: Any = object,
        value: Any = object,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        ttl: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        mode: int = 0o600,
        ephemeral: bool = False,
    ) -> Self:
        """Create a dict of this name, which must not exist. Arguments as for SharedDict().

        Raises SegmentExists, and what SharedDict() raises.
        """
        schema = make_schema(key, value, ttl)
        limits = max_entries, max_bytes
        options = {"timeout": timeout, "mode": mode, "ephemeral": ephemeral}
        return cls._of(create_map(name, schema, limits, **options), schema)

    @overload
    @classmethod
    def open(
        cls,
        name: str,
        *,
        key: type[K] | None = ...,
        value: type[V] | None = ...,
        **options: Unpack[OpenOptions],
    ) -> Self: ...
    @overload
    @classmethod
    def open(
        cls, name: str, *, key: Any = ..., value: Any = ..., **options: Unpack[OpenOptions]
    ) -> Self: ...
    @classmethod
    def open(
        cls,
        name: str,
        *,
        key: Any = None,
        value: Any = None,
        trust: bool = False,
        read_only: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT,
        owner: int | None = None,
    ) -> Self:
        """Open the dict of this name, which must exist.

        key, value: the types it must have; None takes the types that the segment names. A class
        must be given. So must object, unless trust is True: reading its keys or values unpickles
        what any writer stored, and a pickle can run any code. read_only: map the memory for reading
        only; then all values are copied, arrays too. timeout, owner: as for SharedDict().

        Raises SegmentMissing, LayoutMismatch (other types: both are named; not a dict; a class that
        was not given), InvalidArgument (object, neither given nor trusted), PermissionDenied.
        """
        handle = RHashMap.open(name, read_only=read_only, timeout=timeout, owner=owner)
        try:
            record = read_schema(handle.schema, handle.name)
            for role, declared in (("key", key), ("value", value)):
                if record[role] == "object" and declared is None and not trust:
                    raise InvalidArgument(
                        f"the {role}s of {name!r} are pickles: processes that may write them can "
                        f"run code here; if you trust all of them, open it with {role}=object or "
                        f"trust=True"
                    )
            schema = restore_schema(record, handle.name, key, value)
        except BaseException:
            handle.close()
            raise
        return cls._of(handle, schema)

    @classmethod
    def fromkeys(cls, iterable: Iterable[Any], value: Any = None, /, **options: Any) -> Self:
        """A new dict with these keys and one value. options, name among them: as for SharedDict().

        Costs a store for each key. Raises what SharedDict() and storing raise.
        """
        fresh = cls(**options)
        for key in iterable:
            fresh[key] = value
        return fresh

    # The handle.

    @property
    def key_type(self) -> Any:
        """The declared type of the keys."""
        return self._schema.key.declared

    @property
    def value_type(self) -> Any:
        """The declared type of the values."""
        return self._schema.value.declared

    def freeze(self) -> None:
        """Forbid writing to every process, permanently.

        Raises what RHashMap.freeze() raises.
        """
        self.handle.freeze()

    def __repr__(self) -> str:
        entries = "" if self.closed else shown(self._entries(ITEMS), True)
        return self._shown(f"{{{entries}}}")

    def __reduce__(self) -> tuple[Any, ...]:
        types = self._schema.key.declared, self._schema.value.declared
        own = {name: value for name, value in vars(self).items() if name not in _NOT_OWN}
        return _attach, (type(self), self.handle, *types, self._schema.ttl), own or None


def _attach(cls: type[_D], handle: RHashMap, key: Any, value: Any, ttl: float | None = None) -> _D:
    """Unpickle a dict: open the one of that name, if it still has those types."""
    try:
        schema = restored(handle, key, value, ttl)
    except BaseException:
        handle.close()
        raise
    return cls._of(handle, schema)
