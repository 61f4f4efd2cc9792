"""Namespaces of a cache: keys of their own, which one store makes absent together."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from shmrhash._arguments import tag_names
from shmrhash._claims import CacheClaim, CacheMutex
from shmrhash._constants import RACES_MAX
from shmrhash._errors import InvalidArgument, KeyNotFound
from shmrhash._mapping import expect_one_default, updated
from shmrhash._memoize import Memoized
from shmrhash._refusals import restless_key
from shmrhash._types.schema import BIRTHS_AND_TAGS, Schema
from shmrhash._typing import K, P, V

_T = TypeVar("_T")
_SEPARATOR = ":"
_TAG = "\0namespace "  # hardly a program's own tag


def key_maker(schema: Schema, cache_name: str, name: str) -> Callable[[Any], Any]:
    """What makes a cache's key of a key of its namespace. Raises TypeError, InvalidArgument."""
    declared = schema.key.declared
    if not isinstance(name, str):
        raise TypeError(f"the name of a namespace is a str, not {type(name).__name__}")
    if not name or _SEPARATOR in name:
        raise InvalidArgument(f"the name of a namespace is not empty and has no {_SEPARATOR!r}")
    if schema.births != BIRTHS_AND_TAGS:
        raise InvalidArgument(
            f"cache {cache_name!r} was made without tags, which namespaces need: create it with "
            f"tags=True"
        )
    if declared is object:
        return lambda key: (name, key)
    prefix: Any = name + _SEPARATOR
    if declared is bytes:
        prefix = prefix.encode()
    elif declared is not str:
        raise InvalidArgument("namespaces are for caches whose keys are str, bytes or objects")

    def cache_key(key: Any) -> Any:
        if not isinstance(key, type(prefix)):
            raise TypeError(f"a key is {type(prefix).__name__}, not {type(key).__name__}")
        return prefix + key

    return cache_key


class Namespace(Generic[K, V]):
    """Some of a cache's entries, under keys of their own: made by Cache.namespace().

    An operation is the cache's, with another key: "users:7" for the key "7" of the namespace
    "users", or ("users", 7) where keys are objects. Its entries share the cache's room with all
    others. One of the four tags of an entry is the namespace's, so three are left.

    Attributes: cache, name.
    """

    def __init__(self, cache: Any, cache_key: Callable[[K], Any], name: str) -> None:
        self.cache = cache
        self.name = name
        self._key = cache_key
        self._own = _TAG + name

    def _tags(self, tags: Iterable[str]) -> tuple[str, ...]:
        return (self._own, *tag_names(tags))

    def get(self, key: K, default: Any = None) -> Any:
        """Cache.get(). Raises what that raises."""
        return self.cache.get(self._key(key), default)

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Cache.get_many(). Raises what that raises."""
        made = {self._key(key): key for key in keys}
        return {made[key]: value for key, value in self.cache.get_many(made).items()}

    def set(self, key: K, value: V, ttl: float | None = None, *, tags: Iterable[str] = ()) -> None:
        """Cache.set(). Raises what that raises."""
        self.cache.set(self._key(key), value, ttl, tags=self._tags(tags))

    def set_many(
        self, mapping: Mapping[K, V], ttl: float | None = None, *, tags: Iterable[str] = ()
    ) -> list[K]:
        """Cache.set_many(), of a mapping. Raises what that raises."""
        made = {self._key(key): key for key in mapping}
        values = [(own, mapping[key]) for own, key in made.items()]
        return [made[own] for own in self.cache.set_many(values, ttl, tags=self._tags(tags))]

    def add(self, key: K, value: V, ttl: float | None = None, *, tags: Iterable[str] = ()) -> bool:
        """Cache.add(). Raises what that raises."""
        added: bool = self.cache.add(self._key(key), value, ttl, tags=self._tags(tags))
        return added

    def replace(
        self, key: K, value: V, ttl: float | None = None, *, tags: Iterable[str] = ()
    ) -> bool:
        """Cache.replace(). Raises what that raises."""
        replaced: bool = self.cache.replace(self._key(key), value, ttl, tags=self._tags(tags))
        return replaced

    def delete(self, key: K) -> bool:
        """Cache.delete(). Raises what that raises."""
        deleted: bool = self.cache.delete(self._key(key))
        return deleted

    def pop(self, key: K, default: Any = None) -> Any:
        """Cache.pop(). Raises what that raises."""
        return self.cache.pop(self._key(key), default)

    def __contains__(self, key: K) -> bool:
        return self._key(key) in self.cache

    def incr(self, key: K, delta: Any = 1, default: Any = None) -> V:
        """Cache.incr(). Raises what that raises, and LockTimeout if other threads store and delete
        the key at each attempt."""
        own = self._key(key)
        for _ in range(RACES_MAX):
            try:
                number: V = self.cache.incr(own, delta)
                return number
            except KeyNotFound:
                if default is None:
                    raise KeyNotFound(key) from None
            if self.cache.add(own, default + delta, tags=(self._own,)):
                return default + delta  # type: ignore[no-any-return]
        raise restless_key(own, self.cache.name)

    def update_with(
        self,
        key: K,
        function: Callable[[V], V],
        *default: V,
        timeout: float | None = None,
        allow_none: bool = False,
    ) -> V:
        """Cache.update_with(). An absent key is claimed while function(default) runs, as by
        get_or_compute(), so function runs once here, too. Raises what that raises."""
        expect_one_default(default)
        own = self._key(key)
        for _ in range(RACES_MAX):
            with contextlib.ExitStack() as block:
                try:
                    entry = block.enter_context(self.cache._section(own, timeout))
                except KeyNotFound:
                    if not default:
                        raise KeyNotFound(key) from None
                else:
                    fresh: V = updated(key, entry.value, function, allow_none)
                    entry.value = fresh
                    return fresh
            with self.claim(key) as claim:
                if not claim.found:
                    fresh = updated(key, default[0], function, allow_none)
                    # Not by the claim: another one stored or deleted the key meanwhile, or it does
                    # not fit, or a circle of computations gave none.
                    if not claim.set(fresh):
                        self.add(key, fresh)
                    return fresh
        raise restless_key(own, self.cache.name)

    def ttl(self, key: K) -> float | None:
        """Cache.ttl(). Raises what that raises."""
        left: float | None = self.cache.ttl(self._key(key))
        return left

    def touch(self, key: K, ttl: float | None = None) -> bool:
        """Cache.touch(). Raises what that raises."""
        touched: bool = self.cache.touch(self._key(key), ttl)
        return touched

    def get_or_compute(
        self,
        key: K,
        function: Callable[[], _T],
        ttl: float | Callable[[_T], float | bool | None] | None = None,
        *,
        tags: Iterable[str] = (),
        **options: Any,
    ) -> _T:
        """Cache.get_or_compute(). options: its others. Raises what that raises."""
        value: _T = self.cache.get_or_compute(
            self._key(key), function, ttl, tags=self._tags(tags), **options
        )
        return value

    async def aget_or_compute(
        self,
        key: K,
        function: Callable[[], Awaitable[_T]],
        ttl: float | Callable[[_T], float | bool | None] | None = None,
        *,
        tags: Iterable[str] = (),
        **options: Any,
    ) -> _T:
        """Cache.aget_or_compute(). options: its others. Raises what that raises."""
        value: _T = await self.cache.aget_or_compute(
            self._key(key), function, ttl, tags=self._tags(tags), **options
        )
        return value

    def claim(self, key: K, *, tags: Iterable[str] = (), wait: float = 10.0) -> CacheClaim[K, V]:
        """Cache.claim(). Raises what that raises."""
        claim: CacheClaim[K, V] = self.cache.claim(self._key(key), tags=self._tags(tags), wait=wait)
        return claim

    def mutex(self, key: K) -> CacheMutex[Any]:
        """Cache.mutex(). clear() of the namespace leaves it to the thread that has it.

        Raises what that raises.
        """
        mutex: CacheMutex[Any] = self.cache.mutex(self._key(key))
        return mutex

    def memoize(
        self,
        ttl: float | None = None,
        *,
        key: Callable[..., Any] | None = None,
        name: str | None = None,
        tags: Iterable[str] | Callable[..., Iterable[str]] = (),
        **options: Any,
    ) -> Callable[[Callable[P, _T]], Memoized[P, _T]]:
        """Cache.memoize(): clear() of the namespace forgets all results. options: its others.

        If a function is memoized in two namespaces, their results are separate. The cache_key() of
        the function makes keys of the cache. Raises what Cache.memoize() raises, where the function
        is decorated.
        """
        if key is not None:
            own_key = key
            options["key"] = lambda *args, **kwargs: self._key(own_key(*args, **kwargs))
        if callable(tags):
            of_call = tags
            options["tags"] = lambda *args, **kwargs: self._tags(of_call(*args, **kwargs))
        else:
            options["tags"] = self._tags(tags)

        def decorated(function: Callable[P, _T]) -> Memoized[P, _T]:
            title = name or f"{function.__module__}.{function.__qualname__}"
            own = self.name + _SEPARATOR + title
            memoized: Memoized[P, _T] = self.cache.memoize(ttl, name=own, **options)(function)
            return memoized

        return decorated

    def delete_prefix(self, prefix: K) -> int:
        """Cache.delete_prefix(), of the namespace's keys. Raises what that raises."""
        deleted: int = self.cache.delete_prefix(self._key(prefix))
        return deleted

    def clear(self) -> None:
        """Invalidate every entry of the namespace, as Cache.clear() does all: one store, O(1).

        Raises ReadOnlyMap, FrozenMap, MapClosed.
        """
        self.cache.invalidate(self._own)

    def __repr__(self) -> str:
        return f"<Namespace {self.name!r} of {self.cache!r}>"
