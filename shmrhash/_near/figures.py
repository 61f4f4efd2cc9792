"""What the lines of a near cache say to other programs, without a server."""

from __future__ import annotations

import os
from typing import Any

from shmrhash import _core
from shmrhash._errors import Error
from shmrhash._map import RHashMap
from shmrhash._near.state import NODES_MAX, TTL_NODE, TURN, Line, line_in, lines_name
from shmrhash._segment import path_of

_RECENT_NS = 60_000_000_000  # a node that was not heard for longer is one of the past


def figures_of(entries: RHashMap, owner: int, timeout: float | None) -> dict[str, Any]:
    """The figures of a near cache whose entries these are; empty if they are nobody's, or if its
    lines cannot be read. owner: of the file of the entries, and so of that of the lines.

    tracker_pid: the tracker's. takeovers: how often another process began to hear the server
    than the one that heard it before. max_stale: seconds. epochs: how often everything was
    discarded. ages: by the number of each node, how long ago the moment is before which all is
    known of it; None: it has no lease. Only nodes that were heard within a minute, or last; where
    there is one server at a time, only the last. age: the largest of these. tracking: by what the
    server tells of changes, as in NearCache.info().
    """
    try:
        name = lines_name(entries.name, entries._identity())
        if not os.path.exists(path_of(name)):
            return {}
        lines = RHashMap._look(name, timeout, owner)
    except Error:
        return {}
    with lines:
        if (lines.key_size, lines.value_size) != (8, _core.NEAR_LINE_BYTES):
            return {}
        turn = line_in(lines, TURN)
        by_ttl = line_in(lines, TTL_NODE) is not None
        nodes = {
            number: line
            for number in range(NODES_MAX)
            if (line := line_in(lines, number)) is not None
        }
    max_stale_ns = 0 if turn is None else turn.max_stale_ns
    tracking, one_server = _words(turn)
    ages = _ages(nodes, max_stale_ns, _core.clock_monotonic_ns(), one_server)
    known = [age for age in ages.values() if age is not None]
    return {
        "tracking": "ttl" if by_ttl and not ages else tracking,
        "tracker_pid": 0 if turn is None else turn.pid,
        "takeovers": 0 if turn is None else turn.epochs,
        "max_stale": max_stale_ns / 1e9,
        "age": max(known) if known and len(known) == len(ages) else None,
        "ages": ages,
        "epochs": sum(line.epochs for line in nodes.values()),
    }


def _words(turn: Line | None) -> tuple[str, bool]:
    """By what the server tells of changes, by TURN's line; "?": no process has said it yet. And
    whether there is one server at a time."""
    said = b"" if turn is None else turn.identity.rstrip(b"\0")
    tracking, _, servers = said.decode("ascii", "replace").partition(" ")
    return tracking or "?", servers == "one"


def _ages(
    nodes: dict[int, Line], max_stale_ns: int, now: int, one_server: bool
) -> dict[str, float | None]:
    """The ages of the nodes of now."""
    heard = {number: max(line.valid_until, line.began_ns) for number, line in nodes.items()}
    last = max(heard.values(), default=0)
    oldest = last if one_server else min(last, now - _RECENT_NS)
    return {
        str(number): (now - line.valid_until + max_stale_ns) / 1e9 if line.valid_until else None
        for number, line in nodes.items()
        if heard[number] >= oldest
    }
