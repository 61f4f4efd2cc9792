"""Cache: values that several processes keep, instead of computing or fetching them again."""

from __future__ import annotations

import math
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

from shmrhash import _core
from shmrhash._arguments import (
    checked_ttl,
    checked_value_bytes,
    expect_staleness,
    expect_when_late,
    tag_names,
)
from shmrhash._cachegroups import births_of, delete_prefix, expect_tags
from shmrhash._cachelimits import limits_if_made
from shmrhash._cachestats import CacheStats, cache_stats
from shmrhash._claims import CacheClaim, CacheMutex
from shmrhash._computing import Question, refreshed
from shmrhash._constants import DEFAULT_TIMEOUT
from shmrhash._handle import HandleMethods, TypedMethods
from shmrhash._lifetime import ClosingMethods
from shmrhash._map import RHashMap
from shmrhash._mapping import expect_one_default, store_updated
from shmrhash._memoize import Memoized, memoized_function
from shmrhash._memoize import Options as MemoizeOptions
from shmrhash._namespace import Namespace, key_maker
from shmrhash._typed_maps import create_anonymous, expect_if_different, open_or_create
from shmrhash._types.schema import (
    Schema,
    expect_geometry,
    make_schema,
    restored,
)
from shmrhash._typing import CacheOptions, K, P, V
from shmrhash._waiting import WaitMethods

if TYPE_CHECKING:
    from typing_extensions import Unpack

_VALUE_SHARE = 8  # one value takes at most an eighth of max_bytes

_C = TypeVar("_C", bound="Cache[Any, Any]")
_T = TypeVar("_T")
_ABSENT: Any = object()


class Cache(WaitMethods, TypedMethods, HandleMethods, ClosingMethods, _core.CacheCore[K, V]):
    """A cache in shared memory, for any number of processes.

    Cache(name, max_entries=10_000, ttl=60) creates the cache, or opens it if it exists. It holds at
    most max_entries entries, and its whole segment takes at most max_bytes of memory; both limits
    are exact. When it is full, storing evicts the entries that are worth least. It needs no
    cleaning: expired entries are absent at once, and their room is used first.

    Eviction. An entry that is read again soon after it was stored is kept; one that nothing reads
    again is the first to go (S3-FIFO). So keys that are asked for once, as in a scan, do not push
    out those that are asked for often. A lookup that finds an entry stores at most one byte.

    Types. key and value are declared as for SharedDict. A process that reads object keys or values
    unpickles what other processes stored: trust every writer, or declare str, bytes, numbers or
    msgspec types.

    Concurrency. Each operation on one key is atomic (W1), and get() never waits (R1). A process may
    be killed at any moment (C1): only its last operation is lost, and no process waits for it.
    Threads may share a handle.

    Computing. get_or_compute(key, function) computes an absent value once for all processes, and
    memoize() decorates a function with it.

    Values are copies, as in SharedDict: changing a list that get() returned changes nothing in the
    cache. With copy=False the handle keeps values that it has decoded, and returns the same object
    again as long as the entry is the same: do not change such an object. A change by any process,
    or an expiry, is noticed at the next get(), as always.

    Attributes: handle, the RHashMap in which the cache stores its entries as bytes.
    """

    _schema: Schema
    _largest: int | None
    _copy: bool

    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: type[K] = ...,
        value: type[V] = ...,
        **options: Unpack[CacheOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: type[K] = ...,
        value: Any,
        **options: Unpack[CacheOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any,
        value: type[V] = ...,
        **options: Unpack[CacheOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any,
        value: Any,
        **options: Unpack[CacheOptions],
    ) -> None: ...
    def __init__(
        self,
        name: str | None = None,
        *,
        key: Any = object,
        value: Any = object,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        max_value_bytes: int | None = None,
        ttl: float | None = None,
        tags: bool | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        mode: int = 0o600,
        ephemeral: bool = False,
        owner: int | None = None,
        if_different: str = "replace",
        copy: bool = True,
    ) -> None:
        """Create a cache, or open the one of this name if its types fit and its limits are equal.

        name: None makes an anonymous cache, for the children of this process. key, value: the
        declared types. max_entries: a hard limit; None is that of the existing cache, or, for a new
        one, an entry for every 128 bytes of max_bytes. Each entry takes 5 bytes from the beginning,
        and the rest when it is used. max_bytes: the limit for the memory of the whole segment,
        rounded down to pages; None is that of the existing cache, or, for a new one, 64 MiB, and if
        max_entries is given, so much beside what these need. max_value_bytes: the most bytes of a
        value that this handle stores outside its entry; None is an eighth of max_bytes. ttl:
        seconds to live of the values that this handle stores, if set() names no other; None is the
        ttl with which the cache was created, or no limit. tags: whether entries can have tags
        (invalidate), which takes 8 bytes for each entry and 512 KiB; None is the choice of the
        existing cache, or False. timeout, mode, ephemeral, owner: as for SharedDict().
        if_different: a cache of this name with other types or limits is replaced by a new one
        ("replace"), or raises LayoutMismatch ("raise"); processes that have the old one open go on
        using it. copy: False lets get(), get_many(), get_or_compute() and memoized functions of
        this handle return objects that it keeps, which must not be changed: at most 4,096, whose
        encodings take at most 16 MiB; a hit then costs the same for every value. Numbers are not
        kept, nor are arrays, which are not copied anyway.

        Raises LayoutMismatch (also if a dict or map has this name), TypeError, InvalidArgument
        (max_bytes is too small: the least is 0.8 to 1.5 MB, and 5 bytes for each of max_entries),
        ImportError (a type's library is not installed), TooLarge, SegmentFull, LimitReached,
        PermissionDenied, Unsupported.
        """
        largest = checked_value_bytes(max_value_bytes)
        births = births_of(tags)
        schema = make_schema(key, value, ttl, births)
        fresh = schema if ttl is not None else make_schema(key, value, math.inf, births)
        made = fresh, limits_if_made(max_entries, max_bytes)
        if name is None:
            expect_if_different(if_different)
            handle = create_anonymous(*made, timeout=timeout, mode=mode, _is_cache=True)
            self._start(handle, fresh, largest, copy)
            return
        open_or_create(
            partial(self._start, largest=largest, copy=copy, tags=tags),
            name,
            schema,
            (max_entries, max_bytes),
            if_different,
            owner=owner,
            timeout=timeout,
            made=made,
            mode=mode,
            ephemeral=ephemeral,
            _is_cache=True,
        )

    def _start(
        self,
        handle: RHashMap,
        schema: Schema,
        largest: int | None,
        copy: bool,
        tags: bool | None = None,
    ) -> None:
        """Initialize this object as the cache of this handle. Raises LayoutMismatch."""
        expect_tags(schema.births, tags, handle.name)
        expect_geometry(schema, handle)
        most = 0
        if schema.has_objects:
            most = handle.max_bytes // _VALUE_SHARE if largest is None else largest
        super().__init__(
            handle, schema.key.triple, schema.value.triple, schema.default_ttl_ns, most, copy
        )
        self._schema = schema
        self._largest = largest
        self._copy = copy
        if handle.ephemeral:  # a cache that is collected is closed; at exit _lifetime.py acts
            weakref.finalize(self, handle.close).atexit = False

    def update_with(
        self,
        key: K,
        function: Callable[[V], V],
        *default: V,
        timeout: float | None = None,
        allow_none: bool = False,
    ) -> V:
        """Store function(value) while the key is locked; return it.

        As SharedDict.update_with(): function runs once, and must not write this key by other means;
        default is the value that it gets if the key is absent; the entry keeps its deadline. If the
        value is being computed (get_or_compute), this waits for it. timeout: seconds; None is that
        of the cache.

        Raises KeyNotFound (ENOENT: absent, and no default), LockTimeout, DeadlockError, KeyGone
        (the entry was deleted or expired while function ran), what function raises, InvalidArgument
        (function returned None), and what set() raises; then nothing is stored.
        """
        expect_one_default(default)
        return store_updated(self._section(key, timeout, *default), key, function, allow_none)

    def delete_prefix(self, prefix: K) -> int:
        """Delete every key that begins with prefix; return how many were present.

        For caches whose keys are str or bytes. A value that is being computed under such a key
        (get_or_compute, memoize, claim) is returned and not stored: after the call no value is
        found that was stored, or whose computation began, before it. Keys that are stored during
        the call may stay. Each deletion is atomic, but not all of them together: if the process
        dies, a part of the keys is deleted. Costs a walk over the cache, about a lookup for each
        entry; no other operation waits for it.

        Raises InvalidArgument (keys of another type), TypeError (prefix), LockTimeout, ReadOnlyMap,
        MapClosed.
        """
        return delete_prefix(self, self._schema.key.declared, prefix)

    def namespace(self, name: str) -> Namespace[K, V]:
        """A part of the cache with keys of its own, which Namespace.clear() empties by one store.

        Costs nothing: it is a view. For caches with tags=True whose keys are str, bytes or objects.

        Raises InvalidArgument (another cache; a name that is empty or has ":"), TypeError.
        """
        return Namespace(self, key_maker(self._schema, self.name, name), name)

    def claim(self, key: K, *, tags: Iterable[str] = (), wait: float = 10.0) -> CacheClaim[K, V]:
        """get_or_compute() without a function, for a with statement.

            with cache.claim("page") as claim:
                if not claim.found:
                    claim.set(render("page"), ttl=60)
            show(claim.value)

        Inside the block the key has a value, claim.value, or this thread computes it for all
        processes and stores it by claim.set(). If the block ends without set(), or raises, the next
        waiter computes the value. tags, wait: as for get_or_compute().

        The block raises what get() and set() raise.
        """
        return CacheClaim(self, key, wait, tags)

    def mutex(self, key: K) -> CacheMutex[K]:
        """A mutex of this key, for a with statement: only one thread, of all processes, holds it at
        a time.

        It is independent of the key's value. If the process that holds it dies, another one gets it
        within 50 ms. It is kept as an entry of the cache that is not evicted; clear() takes it away
        from its holder. Taking a free one costs about three stores.

        The block raises what acquire() and release() of the CacheMutex raise.
        """
        return CacheMutex(self, key)

    async def aget_or_compute(
        self,
        key: K,
        function: Callable[[], Awaitable[_T]],
        ttl: float | Callable[[_T], float | bool | None] | None = None,
        *,
        stale: float = 0.0,
        early: float = 0.0,
        tags: Iterable[str] = (),
        wait: float = 10.0,
        when_late: str = "compute",
    ) -> _T:
        """get_or_compute() for coroutines of asyncio: function() is awaited, and the loop goes on.

        The coroutines of one loop that ask for a key have one computation, and the process has one
        claim. If the one that computes is cancelled, or function() raises, another of them
        computes. A circle of computations ends, as among threads: one of them computes without
        waiting. While another process computes, the loop looks at the claim every 1 to 16
        milliseconds. ttl, stale, early, tags, wait, when_late: as for get_or_compute().

        Costs a get() if the value is there.

        Raises what get_or_compute() raises.
        """
        found: Any = self.get(key, _ABSENT)
        if found is not _ABSENT and not stale and not early:
            return found  # type: ignore[no-any-return]
        expect_staleness(stale, early)
        if found is not _ABSENT:
            return await refreshed(  # type: ignore[no-any-return]
                self, key, function, ttl, stale, early, found, tags
            )
        if ttl is not None and not callable(ttl):
            checked_ttl(ttl)
        expect_when_late(when_late)
        question = Question(self, key, function, ttl, stale, wait, when_late, tags)
        return await question.answer()  # type: ignore[no-any-return]

    def memoize(
        self,
        ttl: float | None = None,
        *,
        key: Callable[..., Any] | None = None,
        name: str | None = None,
        version: object = None,
        typed: bool = False,
        ignore: Collection[str] = (),
        cache_if: Callable[[Any], object] | None = None,
        errors: type[Exception] | tuple[type[Exception], ...] = (),
        error_ttl: float | None = None,
        stale: float = 0.0,
        early: float = 0.0,
        tags: Iterable[str] | Callable[..., Iterable[str]] = (),
        wait: float = 10.0,
        when_late: str = "compute",
        copy: bool | None = None,
    ) -> Callable[[Callable[P, _T]], Memoized[P, _T]]:
        """A decorator: calls with the same arguments are computed once for all processes.

            @cache.memoize(ttl=60)
            def user(number): ...

        A call is get_or_compute() of a key made of the arguments or, for a coroutine function,
        aget_or_compute(). None is a result like any other. ttl, stale, early, wait, when_late: as
        for these. tags: likewise, or a function that returns them, tags(*args, **kwargs).

        key: a function that makes the key, key(*args, **kwargs); unless given, the key is a tuple
        of the function's name, its positional and its named arguments, for a cache whose keys are
        objects. name: unless given, the function's module and qualified name. version: any object
        whose str() becomes part of the name, for results that older code must not find. f(2) and
        f(number=2) are two keys, unless ignore is given. ignore: names of parameters that are left
        out of the key, such as "self"; the arguments are then compared by their parameters. typed:
        f(1) and f(1.0) are two keys.

        cache_if: a function of the result; if it is false, the result is returned and not stored.
        errors: exceptions that are kept as results, for error_ttl seconds (None: for ttl), and
        raised again, for a cache whose values are objects; one that cannot be pickled is not kept.
        copy: False lets calls that find their result return an object that this handle keeps, as
        with Cache(copy=False), and which must not be changed; None is the handle's own choice. Each
        caller gets a new exception object.

        The function has cache_key(...), the key of a call; forget(...), which deletes a call's
        result and returns whether there was one; refresh(...), which calls the function in any
        case, and stores the result; cache_info(), which is stats(); and __wrapped__.

        Raises InvalidArgument (keys are not objects, and key is not given; values are not objects,
        and errors is given; ignore names no parameter; stale, early, when_late); in a call, what
        get_or_compute() raises, and TypeError for arguments that cannot be keys.
        """
        kept = errors if isinstance(errors, tuple) else (errors,)
        limits = {"stale": stale, "early": early, "wait": wait, "when_late": when_late}
        made = tags if callable(tags) else tag_names(tags)
        options = MemoizeOptions(
            ttl,
            key,
            name,
            version,
            typed,
            ignore,
            cache_if,
            kept,
            error_ttl,
            limits,
            made,
            self._copy if copy is None else copy,
        )
        options.expect_fit(self.name, self._schema.key.declared, self._schema.value.declared)
        return lambda function: memoized_function(self, function, options)

    def _seen(self, key: Any, default: Any) -> Any:
        return _core.value_at(self, key, default)

    def stats(self) -> CacheStats:
        """What all processes counted: hits, misses, evictions, computations.

        Each process counts for itself, so counting costs a store to memory of its own. Costs about
        10 microseconds.

        Raises MapClosed.
        """
        return cache_stats(self._counts(), len(self))

    def __repr__(self) -> str:
        return self._shown("" if self.closed else f"{len(self)} of {self.max_entries} entries")

    def __reduce__(self) -> tuple[Any, ...]:
        types = self._schema.key.declared, self._schema.value.declared
        own = self._schema.ttl, self._largest, self._copy
        return _attach, (type(self), self.handle, *types, *own)


def _attach(
    cls: type[_C],
    handle: RHashMap,
    key: Any,
    value: Any,
    ttl: float,
    largest: int | None,
    copy: bool,
) -> _C:
    """Unpickle a cache: open the one of that name, if it still has those types."""
    fresh = cls.__new__(cls)
    try:
        schema = restored(handle, key, value, ttl)
        fresh._start(handle, schema, largest, copy)
    except BaseException:
        handle.close()
        raise
    return fresh
