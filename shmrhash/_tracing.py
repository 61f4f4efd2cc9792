"""Traces: what one asks of a Cache, as digests in a file, to choose its size with.

A trace replaces methods of one Cache object by others that also note the key, and makes memoized
functions ask by these, also for their hits. So a cache that is not traced pays nothing but a look
at a flag for such a hit, and a trace ends without a trace. The command `shmrhash trace` sets
variables of the environment; by these each process that opens the cache begins a trace.

The file is a line of JSON, filled up with spaces to HEAD_BYTES, and records of two words: the
digest of a key, and the time with a kind. Processes append whole records. Only the keys with low
digests are noted if a sample is asked for (SHARDS: "Efficient MRC construction with SHARDS", FAST
2015); how many lookups there were at all is noted each time that records are written.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import os
import secrets
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from shmrhash._cache import Cache
from shmrhash._errors import Error, InvalidArgument
from shmrhash._lifetime import living

VERSION = 1
HEAD_BYTES = 512
RECORD = struct.Struct("<QQ")  # digest or number, nanoseconds * KINDS + kind
KINDS = 8
HIT, MISS, SET, DELETE, CLEAR, ASKED, FOUND = range(7)
DIGEST_MAX = 1 << 64

_PENDING_MAX = 1024  # records
_PENDING_NS = 1_000_000_000  # a process that is killed loses what it noted in such a time
_FILE_BYTES = 1 << 30
_VARIABLE = "SHMRHASH_TRACE"
_ABSENT: Any = object()

log = logging.getLogger("shmrhash")

_traces: weakref.WeakKeyDictionary[CacheTrace, None] = weakref.WeakKeyDictionary()


class CacheTrace:
    """Records which keys this process asks a cache for, to be replayed by `shmrhash simulate`.

        with CacheTrace(cache, "requests.trace", sample=0.1):
            serve()

    Every process that is to be traced makes a CacheTrace of its own; all may write to one file. A
    lookup costs about 2 microseconds more while it is traced, and nothing before and afterwards.
    The trace contains a digest of the key, a time, and whether the key was found, stored or
    deleted.

    Attributes: running.
    """

    def __init__(
        self,
        cache: Cache[Any, Any],
        path: str | os.PathLike[str],
        *,
        sample: float = 1.0,
        seconds: float | None = None,
        max_bytes: int = _FILE_BYTES,
    ) -> None:
        """Begin to trace this Cache object.

        path: the file; an existing file must be a trace of this cache with this sample, and is
        continued. sample: the part of the keys that are recorded, above 0 and up to 1. seconds: for
        how long to trace. max_bytes: the trace ends when the file has about this many bytes.

        Raises InvalidArgument (sample; the file is another one; the object is traced already),
        OSError.
        """
        if not 0 < sample <= 1:
            raise InvalidArgument(f"sample is a part of the keys, above 0 and up to 1: {sample!r}")
        if "get" in vars(cache):
            raise InvalidArgument(f"cache {cache.name!r} is being traced by this process already")
        head = {"shmrhash trace": VERSION, "cache": cache.name, "sample": sample}
        head |= {"max_entries": cache.max_entries}
        self._fd = _open(os.fspath(path), head)
        self._lock = threading.Lock()  # of the descriptor
        self._close = weakref.finalize(self, os.close, self._fd)
        self._close.atexit = False  # _stop_all() writes before
        self._cache = cache
        self._key = cache.name.encode()[:64]
        self._below = int(sample * DIGEST_MAX)
        self._until_ns = None if seconds is None else time.monotonic_ns() + int(seconds * 1e9)
        self._max_bytes = max_bytes
        self._pending: deque[bytes] = deque()
        self._asked = self._found = self._bytes = 0
        self._written_ns = time.monotonic_ns()
        self.running = True
        self._install()
        _traces[self] = None

    def stop(self) -> None:
        """Write what is pending, and end the trace. Idempotent.

        Raises OSError (the file could not be written; the trace has ended all the same).
        """
        if self.running:  # the cache may have another trace by now
            for name in self._plain:
                vars(self._cache).pop(name, None)
            self._cache._trace(False)
        try:
            self._write()
        finally:
            with self._lock:
                self.running = False
                self._close()

    def __enter__(self) -> CacheTrace:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _forget_pending(self) -> None:
        """In a child of fork: what is pending is the parent's, and so was the lock."""
        self._lock = threading.Lock()
        self._pending.clear()
        self._asked = self._found = 0

    # ---- notes ----

    def _note(self, key: Any, kind: int, now_ns: int) -> None:
        """Record an operation on a key. Tracing does no harm: errors end it, with a warning."""
        try:
            if kind <= MISS:
                self._asked += 1
                self._found += kind == HIT
            raw = b"" if kind == CLEAR else self._cache._raw_key(key)
            digest = hashlib.blake2b(raw, digest_size=8, key=self._key).digest()
            if kind == CLEAR or int.from_bytes(digest, "little") < self._below:
                self._pending.append(digest + (now_ns * KINDS + kind).to_bytes(8, "little"))
            if len(self._pending) > _PENDING_MAX or now_ns - self._written_ns > _PENDING_NS:
                self._write()
                if self._bytes >= self._max_bytes or (
                    self._until_ns is not None and now_ns > self._until_ns
                ):
                    self.stop()
        except (Error, OSError) as error:
            log.warning("the trace of cache %r ended: %s", self._cache.name, error)
            with contextlib.suppress(OSError):
                self.stop()

    def _write(self) -> None:
        """Append what is pending, and the numbers of lookups. Raises OSError."""
        with self._lock:
            if self.running:
                self._append()

    def _append(self) -> None:
        self._written_ns = now_ns = time.monotonic_ns()
        records = []
        for kind in (ASKED, FOUND):
            count = self._asked if kind == ASKED else self._found
            records.append(RECORD.pack(count, now_ns * KINDS + kind))
        self._asked = self._found = 0
        while self._pending:  # other threads may take some
            with contextlib.suppress(IndexError):
                records.append(self._pending.popleft())
        chunk = b"".join(records)
        if os.write(self._fd, chunk) < len(chunk):
            raise OSError("the file system is full")  # what follows half a record is not read
        self._bytes = os.fstat(self._fd).st_size

    # ---- methods in the place of the cache's ----

    def _install(self) -> None:
        made: dict[str, Callable[..., Any]] = {
            "get": self._get,
            "get_many": self._get_many,
            "get_or_compute": self._get_or_compute,
            "aget_or_compute": self._aget_or_compute,
            "claim": self._claim,
            "set_many": self._set_many,
            "clear": self._clear,
        }
        for name, kind in {
            **dict.fromkeys(("set", "add", "replace", "incr", "update_with"), SET),
            **dict.fromkeys(("delete", "pop"), DELETE),
        }.items():
            made[name] = functools.partial(self._change, getattr(self._cache, name), kind)
        self._plain = {name: getattr(self._cache, name) for name in made}
        vars(self._cache).update(made)
        self._cache._trace(True)

    def _get(self, key: Any, default: Any = None) -> Any:
        now_ns = time.monotonic_ns()
        found = self._plain["get"](key, _ABSENT)
        self._note(key, MISS if found is _ABSENT else HIT, now_ns)
        return default if found is _ABSENT else found

    def _get_many(self, keys: Any) -> Any:
        keys = list(keys)
        now_ns = time.monotonic_ns()
        present = self._plain["get_many"](keys)
        for key in keys:
            self._note(key, HIT if key in present else MISS, now_ns)
        return present

    def _get_or_compute(
        self, key: Any, function: Callable[[], Any], *more: Any, **named: Any
    ) -> Any:
        now_ns = time.monotonic_ns()
        kind = HIT

        def compute() -> Any:
            nonlocal kind
            kind = MISS
            value = function()
            self._note(key, SET, time.monotonic_ns())
            return value

        try:
            return self._plain["get_or_compute"](key, compute, *more, **named)
        finally:
            self._note(key, kind, now_ns)

    async def _aget_or_compute(
        self, key: Any, function: Callable[[], Any], *more: Any, **named: Any
    ) -> Any:
        async def compute() -> Any:
            value = await function()
            self._note(key, SET, time.monotonic_ns())
            return value

        return await self._plain["aget_or_compute"](key, compute, *more, **named)  # asks by get()

    def _claim(self, key: Any, **named: Any) -> Any:
        claim = self._plain["claim"](key, **named)  # it asks by the cache's get()
        vars(claim)["set"] = functools.partial(self._keep, claim.set, key)
        return claim

    def _keep(self, plain: Callable[..., Any], key: Any, *more: Any, **named: Any) -> Any:
        return self._change(plain, SET, key, *more, **named)

    def _change(
        self, plain: Callable[..., Any], kind: int, key: Any, *more: Any, **named: Any
    ) -> Any:
        try:
            return plain(key, *more, **named)
        finally:
            self._note(key, kind, time.monotonic_ns())

    def _set_many(self, mapping: Any, *more: Any, **named: Any) -> Any:
        items = list(mapping.items() if hasattr(mapping, "items") else mapping)
        refused = self._plain["set_many"](items, *more, **named)
        now_ns = time.monotonic_ns()
        for key, _ in items:
            self._note(key, SET, now_ns)
        return refused

    def _clear(self) -> None:
        self._plain["clear"]()
        self._note(None, CLEAR, time.monotonic_ns())


def _forget_pending() -> None:
    for trace in living(_traces.keyrefs()):
        trace._forget_pending()


def _stop_all() -> None:
    for trace in living(_traces.keyrefs()):
        with contextlib.suppress(OSError):
            trace.stop()


os.register_at_fork(after_in_child=_forget_pending)
atexit.register(_stop_all)


# ---- the file ----


def _open(path: str, head: dict[str, Any]) -> int:
    """A descriptor that appends to the trace of this head, which is made unless it is there.

    Raises InvalidArgument (the file is another one), OSError.
    """
    line = json.dumps(head).encode()
    if len(line) >= HEAD_BYTES:
        raise InvalidArgument("the name of the cache is too long for the head of a trace")
    part = f"{path}.{secrets.token_hex(8)}"
    with open(part, "xb") as file:  # it appears under its name with its head
        file.write(line.ljust(HEAD_BYTES - 1) + b"\n")
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(part)
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        if read_head(os.pread(fd, HEAD_BYTES, 0)) != head:
            raise InvalidArgument(
                f"{path!r} is not a trace of cache {head['cache']!r} with the sample "
                f"{head['sample']} and max_entries {head['max_entries']}: give another file"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_head(line: bytes) -> dict[str, Any] | None:
    """The head of a trace; None if it is none, or of another version."""
    try:
        head = json.loads(line)
        good = len(line) == HEAD_BYTES and head["shmrhash trace"] == VERSION
        good = good and 0 < head["sample"] <= 1 and head["max_entries"] > 0
        return head if good and isinstance(head["cache"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


# ---- traces that the environment asks for ----


def variables(cache: str, path: str, sample: float, seconds: float | None) -> dict[str, str]:
    """The environment in which processes trace the cache of this name. Times are the machine's."""
    until_ns = None if seconds is None else time.monotonic_ns() + int(seconds * 1e9)
    asked = {"cache": cache, "path": os.path.abspath(path), "sample": sample, "until_ns": until_ns}
    return {_VARIABLE: json.dumps(asked)}


def trace_as_asked() -> None:
    """If the environment asks for it, trace the cache of that name when this process opens it."""
    text = os.environ.get(_VARIABLE)
    if text is None:
        return
    try:
        asked = json.loads(text)
        name, path, sample, until_ns = (
            asked[each] for each in ("cache", "path", "sample", "until_ns")
        )
    except (ValueError, KeyError, TypeError):
        log.warning("%s is not what `shmrhash trace` sets: no cache is traced", _VARIABLE)
        return
    plain = Cache._start

    @functools.wraps(plain)
    def start(self: Any, *arguments: Any, **named: Any) -> None:
        plain(self, *arguments, **named)
        if self.name != name:
            return
        left = None if until_ns is None else (until_ns - time.monotonic_ns()) / 1e9
        if left is None or left > 0:
            try:
                CacheTrace(self, path, sample=sample, seconds=left)  # the cache's methods keep it
            except (Error, OSError) as error:
                log.warning("cache %r is not traced: %s", name, error)

    Cache._start = start  # type: ignore[method-assign]
