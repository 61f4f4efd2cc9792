"""What Cache.memoize() makes of a function: its keys, what it keeps of a result, its methods."""

from __future__ import annotations

import functools
import inspect
import pickle
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from shmrhash import _core
from shmrhash._arguments import expect_staleness, expect_when_late
from shmrhash._errors import InvalidArgument
from shmrhash._types.keys import encode_key
from shmrhash._typing import P, R

_ABSENT: Any = object()


class Memoized(Protocol[P, R]):
    """A function that Cache.memoize() has decorated."""

    __wrapped__: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    def cache_key(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """The key of this call."""

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Delete the result of this call; return whether it was there."""

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function, whatever the cache has, and store the result."""

    def cache_info(self) -> Any:
        """stats() of the cache, which may have other functions' results, too."""


class KeptError:
    """An exception that is kept as the result of a call."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


@dataclass(frozen=True)
class Options:
    """The arguments of memoize()."""

    ttl: float | None
    key: Callable[..., Any] | None
    name: str | None
    version: object
    typed: bool
    ignore: Collection[str]
    cache_if: Callable[[Any], object] | None
    errors: tuple[type[Exception], ...]
    error_ttl: float | None
    limits: dict[str, Any]  # stale, early, wait, when_late
    tags: tuple[str, ...] | Callable[..., Iterable[str]]
    copy: bool

    @property
    def refreshes(self) -> bool:
        """Whether a result that is there may have to be computed again."""
        return bool(self.limits["stale"] or self.limits["early"])

    def title_of(self, function: Callable[..., Any]) -> str:
        """What stands in the keys for the function."""
        title = self.name or f"{function.__module__}.{function.__qualname__}"
        return title if self.version is None else f"{title} {self.version}"

    def expect_fit(self, name: str, key: object, value: object) -> None:
        """Raise InvalidArgument unless these are options for a cache of this name, with these types
        of keys and values."""
        if self.key is None and key is not object:
            raise InvalidArgument(
                f"cache {name!r} has keys of another type than object: give memoize a key= "
                f"function that makes one of the arguments"
            )
        if self.errors and value is not object:
            raise InvalidArgument(
                f"cache {name!r} has values of another type than object, so errors= cannot be "
                f"kept in it"
            )
        expect_when_late(self.limits["when_late"])
        expect_staleness(self.limits["stale"], self.limits["early"])

    def tags_of(self, args: Any, kwargs: Any) -> Iterable[str]:
        """The tags of the result of a call."""
        return self.tags(*args, **kwargs) if callable(self.tags) else self.tags

    def ttl_of(self, result: Any) -> Any:
        """How long a result is kept; False: it is not."""
        if type(result) is KeptError:
            return self.ttl if self.error_ttl is None else self.error_ttl
        return self.ttl if self.cache_if is None or self.cache_if(result) else False

    def kept(self, error: Exception) -> KeptError:
        """The result of a call that raised this; raises it if it cannot be kept."""
        kept = KeptError(error)
        try:
            pickle.dumps(kept)
        except Exception:
            raise error from None
        return kept


class MemoizedFunction(_core.MemoCore):
    """What a function becomes: a callable that is a method in a class, and pickled by its name."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str:
        return vars(self)["__qualname__"]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<memoized {vars(self)['__wrapped__']!r}>"


def _head(function: Callable[..., Any], options: Options) -> bytes:
    """The bytes of a key, up to the arguments, if they follow as they are; empty: they do not, or a
    hit is not all that a call has to look for."""
    if options.key is not None or options.ignore or options.typed or options.refreshes:
        return b""
    return encode_key((options.title_of(function),))


def _result(found: Any) -> Any:
    """What a call returns, or raises, of what the cache has."""
    if type(found) is KeptError:
        raise found.error
    return found


def _key_maker(function: Callable[..., Any], options: Options) -> Callable[..., Any]:
    """The function that makes the key of a call: options.key, or one of a tuple of the function's
    title and the arguments. Raises InvalidArgument."""
    if options.key is not None:
        return options.key
    title = options.title_of(function)
    signature = inspect.signature(function) if options.ignore else None
    for name in options.ignore:
        if signature is not None and name not in signature.parameters:
            raise InvalidArgument(f"memoize: ignore= names {name!r}, which {title} does not have")

    def cache_key(*args: Any, **kwargs: Any) -> Any:
        if signature is not None:
            bound = signature.bind(*args, **kwargs)
            for name in options.ignore:
                bound.arguments.pop(name, None)
            args, kwargs = (), dict(bound.arguments)
        named = tuple(sorted(kwargs.items()))
        if not options.typed:
            return title, args, named
        kinds = [type(each).__qualname__ for each in args]
        return title, args, named, (*kinds, *(type(each).__qualname__ for _, each in named))

    return cache_key


def _calls_once(
    cache: Any,
    function: Callable[..., Any],
    cache_key: Callable[..., Any],
    options: Options,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The memoized function, and refresh(), for a function."""
    keeps = not options.copy and not options.refreshes

    def computed(args: Any, kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except options.errors as error:
            return options.kept(error)

    def slowly(*args: Any, **kwargs: Any) -> Any:
        key = cache_key(*args, **kwargs)
        found = memoized.hit_of(key, _ABSENT) if keeps else _ABSENT
        if found is not _ABSENT:
            return _result(found)
        tags = options.tags_of(args, kwargs)
        found = cache.get_or_compute(
            key, lambda: computed(args, kwargs), options.ttl_of, tags=tags, **options.limits
        )
        return _result(found)

    def refresh(*args: Any, **kwargs: Any) -> Any:
        tags = options.tags_of(args, kwargs)
        return _stored(cache, cache_key(*args, **kwargs), computed(args, kwargs), options, tags)

    memoized = MemoizedFunction(cache, slowly, KeptError, _head(function, options), keeps)
    return memoized, refresh


def _awaits_once(
    cache: Any,
    function: Callable[..., Any],
    cache_key: Callable[..., Any],
    options: Options,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """_calls_once() for a coroutine function."""
    keeps = not options.copy and not options.refreshes

    async def computed(args: Any, kwargs: Any) -> Any:
        try:
            return await function(*args, **kwargs)
        except options.errors as error:
            return options.kept(error)

    async def memoized(*args: Any, **kwargs: Any) -> Any:
        if not kwargs:
            found = hits.hit(args, _ABSENT)
            if found is not _ABSENT:
                return _result(found)
        key = cache_key(*args, **kwargs)
        found = hits.hit_of(key, _ABSENT) if keeps else _ABSENT
        if found is not _ABSENT:
            return _result(found)
        tags = options.tags_of(args, kwargs)
        return _result(
            await cache.aget_or_compute(
                key, lambda: computed(args, kwargs), options.ttl_of, tags=tags, **options.limits
            )
        )

    async def refresh(*args: Any, **kwargs: Any) -> Any:
        key, tags = cache_key(*args, **kwargs), options.tags_of(args, kwargs)
        return _stored(cache, key, await computed(args, kwargs), options, tags)

    hits = MemoizedFunction(cache, memoized, KeptError, _head(function, options), keeps)
    return memoized, refresh


def _stored(cache: Any, key: Any, result: Any, options: Options, tags: Iterable[str]) -> Any:
    """Store a result that was computed anew; a result that is not kept replaces none, but the old
    one would be wrong."""
    ttl = options.ttl_of(result)
    if ttl is False:
        cache.delete(key)
    else:
        stale = options.limits["stale"] if ttl is not None else 0
        cache.set(key, result, ttl + stale if stale else ttl, tags=tags)
    return _result(result)


def memoized_function(cache: Any, function: Callable[P, R], options: Options) -> Memoized[P, R]:
    """The memoized function. Raises InvalidArgument."""
    cache_key = _key_maker(function, options)
    make = _awaits_once if inspect.iscoroutinefunction(function) else _calls_once
    memoized, refresh = make(cache, function, cache_key, options)

    def forget(*args: Any, **kwargs: Any) -> bool:
        return bool(cache.delete(cache_key(*args, **kwargs)))

    made: Any = functools.wraps(function)(memoized)
    made.cache_key = cache_key
    made.forget = forget
    made.refresh = refresh
    made.cache_info = cache.stats
    return cast("Memoized[P, R]", made)
