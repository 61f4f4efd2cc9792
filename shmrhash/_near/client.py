"""What the sources over Redis and Valkey have in common: prefixes, words of commands, errors.

redis.py and cluster.py use it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from shmrhash import _core
from shmrhash._errors import InvalidArgument
from shmrhash._near.connection import Connection
from shmrhash._near.resp import Push, ServerError
from shmrhash._near.source import Probe, Sink

_PINGS = 3  # of which the quickest tells how long a round trip takes


def checked_prefixes(prefixes: Sequence[str | bytes]) -> tuple[bytes, ...]:
    """The prefixes as bytes. Raises InvalidArgument."""
    if isinstance(prefixes, (str, bytes)) or not prefixes:
        raise InvalidArgument("prefixes is a list of prefixes of keys; [''] is all keys")
    raw = [each.encode() if isinstance(each, str) else bytes(each) for each in prefixes]
    for one in raw:
        if sum(other.startswith(one) for other in raw) > 1:
            raise InvalidArgument(f"prefix {one!r} is the beginning of another one")
    return tuple(raw)


def in_words(prefixes: Sequence[bytes]) -> str:
    """The prefixes as a part of a source's name."""
    return b",".join(sorted(prefixes)).decode("utf-8", "backslashreplace")


def as_clients(client: Any, error: Exception, name: str, place: str) -> Exception:
    """An error as the client's library would raise it: its class of this name, if it has one."""
    library = type(client).__module__.partition(".")[0]
    made = getattr(getattr(sys.modules.get(library), "exceptions", None), name, None)
    return made(f"{place}: {error}") if made is not None else error


def set_words(key: bytes, value: bytes, ttl: float | None, nx: bool, xx: bool) -> list[Any]:
    """The command SET. Raises InvalidArgument."""
    if nx and xx:
        raise InvalidArgument("nx and xx exclude each other")
    words: list[Any] = ["SET", key, value]
    if ttl is not None:
        words += ["PX", max(1, round(ttl * 1000))]
    return words + ["NX"] * nx + ["XX"] * xx


def begin_tracking(connection: Connection, prefixes: Sequence[bytes]) -> str:
    """Ask a server to tell of changes; "" or why it will not. Raises OSError."""
    if not connection.run_id:
        return (
            "the user may not ask INFO, by which servers are told apart: "
            "ACL SETUSER ... +info, or tracking='ttl'"
        )
    words: list[Any] = ["CLIENT", "TRACKING", "ON", "BCAST"]
    for prefix in prefixes:
        words += ["PREFIX", prefix] if prefix else []
    answer = connection.call(*words)
    if isinstance(answer, ServerError):
        return (
            f"the server refuses CLIENT TRACKING ({answer}): allow it (ACL SETUSER ... "
            f"+client|tracking), connect to the server itself instead of a proxy, or use "
            f"tracking='ttl'"
        )
    return ""


def probed(connection: Connection, prefixes: Sequence[bytes]) -> Probe:
    """Ask a server how soon it answers, and to tell of changes. Raises OSError."""
    took = []
    for _ in range(_PINGS):
        began = _core.clock_monotonic_ns()
        connection.call("PING")
        took.append(_core.clock_monotonic_ns() - began)
    reason = begin_tracking(connection, prefixes)
    return Probe(connection.server, not reason, reason, min(took) / 1e9)


def tell(pushed: Sequence[Push], sink: Sink, node: int) -> None:
    """Tell the sink what the server has told."""
    for push in pushed:
        if len(push) == 2 and push[0] == b"invalidate":
            if push[1] is None:
                sink.everything(node)
            else:
                sink.changed(node, push[1])
