"""Maps for people: ls prints all of them in a table, info everything about one."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import time
from typing import Any

import click

from shmrhash._inspect import ANONYMOUS_PREFIX
from shmrhash.cli.maps import (
    DENIED,
    NOT_A_MAP,
    OK,
    MapState,
    Process,
    all_states,
    health_cell,
    nameless_states,
    others_mapping,
    state_of,
)
from shmrhash.cli.screen import (
    Cell,
    cache_text,
    count_text,
    near_text,
    objects_text,
    on_terminal,
    percent_text,
    print_facts,
    print_table,
    printable,
    ratio_text,
    size_text,
    time_text,
)
from shmrhash.cli.session import Command, Session, map_argument, pass_session
from shmrhash.cli.words import MapName

COLUMNS = [
    "NAME",
    "OWNER",
    ">ENTRIES",
    ">FILL",
    ">SIZE",
    ">OBJECTS",
    "CACHE",
    "ACTIVITY",
    "HEALTH",
    "PROCESSES",
]


SOMETIMES = ("OWNER", "CACHE")  # columns that are shown if any map has something in them


def last_activity(state: MapState) -> tuple[str, int]:
    """The last event that the map has recorded, and its time (nanoseconds since the epoch)."""
    created = int(state.info.get("created_ns", 0))
    attached = max((process.attached_ns for process in state.processes), default=0)
    used = int(state.info.get("last_activity_ns", 0))
    if created >= max(used, attached):
        return "created", created
    return ("used", used) if used >= attached else ("attached", attached)


def activity_text(state: MapState) -> str:
    """The last event: "attached 3 min ago"."""
    what, when = last_activity(state)
    return f"{what} {time_text(time.time() - when / 1e9)} ago" if when else "-"


def process_object(process: Process) -> dict[str, Any]:
    """A process in JSON."""
    return {
        "pid": process.pid,
        "command": process.command,
        "attached_ns": process.attached_ns,
        "alive": process.alive,
        **process.counters,
    }


def state_object(state: MapState) -> dict[str, Any]:
    """A map in the JSON of ls."""
    found: dict[str, Any] = {
        "name": state.name,
        "id": state.inode,
        "path": state.path,
        "owner": state.owner,
        "health": state.health,
        "detail": state.detail,
        "advice": state.advice,
    }
    if state.info:
        found |= {
            "entries": state.info["entries"],
            "expired": state.info["expired"],
            "max_entries": state.info["max_entries"],
            "fill": state.fill,
            "bytes": state.info["bytes_committed"],
            "types": state.types or None,
            "objects": state.objects or None,
            "cache": state.cache or None,
            "near": state.near or None,
            "last_activity": last_activity(state)[0],
            "last_activity_ns": last_activity(state)[1],
            "processes": [process_object(process) for process in state.processes],
        }
    return found


def _by_process(states: list[MapState]) -> tuple[list[list[MapState]], list[MapState]]:
    """Healthy anonymous dicts in groups, one for each process that made several; other maps."""
    made: dict[str, list[MapState]] = {}
    for state in states:
        if state.health == OK and state.name.startswith(ANONYMOUS_PREFIX):
            made.setdefault(state.name.rpartition("-")[0], []).append(state)
    groups = [group for group in made.values() if len(group) > 1]
    gone = {state.name for group in groups for state in group}
    return groups, [state for state in states if state.name not in gone]


def _row(state: MapState) -> list[str]:
    figures = ["-"] * 6
    if state.info:
        figures = [
            state.entries_text,
            percent_text(state.fill),
            size_text(state.info["bytes_committed"]),
            size_text(state.objects["bytes_in_use"]) if state.objects else "-",
            f"{ratio_text(state.cache)} hits" if state.cache else "-",
            activity_text(state),
        ]
    users = ", ".join(map(str, state.alive)) if state.info else state.detail
    return [
        Cell(state.name, "head"),
        "-" if state.user == os.geteuid() else state.owner,
        *figures,
        health_cell(state),
        users or "-",
    ]


def _group_row(group: list[MapState]) -> list[str]:
    """A group of anonymous dicts in one row: sums, the last activity, all processes."""
    latest = max(group, key=lambda state: last_activity(state)[1])
    objects = sum(state.objects.get("bytes_in_use", 0) for state in group)
    users = sorted({(user.pid, str(user)) for state in group for user in state.alive})
    return [
        Cell(f"{group[0].name.rpartition('-')[0]}-*  ({len(group)} dicts)", "head"),
        "-" if latest.user == os.geteuid() else latest.owner,
        count_text(sum(state.info["entries"] for state in group)),
        "-",
        size_text(sum(state.info["bytes_committed"] for state in group)),
        size_text(objects) if objects else "-",
        "-",
        activity_text(latest),
        health_cell(latest),
        ", ".join(text for _, text in users) or "-",
    ]


def _needed_columns(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns of ls and its rows; without those of SOMETIMES that would have "-" alone."""
    needed = [
        at
        for at, name in enumerate(COLUMNS)
        if name not in SOMETIMES or any(row[at] != "-" for row in rows)
    ]
    return [COLUMNS[at] for at in needed], [[row[at] for at in needed] for row in rows]


@click.command("ls", cls=Command, short_help="All maps: entries, size, processes, health.")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list files that are not maps.")
@pass_session
def ls_command(session: Session, patterns: tuple[str, ...], everything: bool) -> None:
    """Every map of this machine, its health, and the processes that are attached to it.

    PATTERN is a name, which may have *, ? and [...]; quote it. Without a PATTERN, the anonymous
    dicts of a process share one line; --all and -j show each.

    OBJECTS is the memory of values (and long keys) that a SharedDict stores beside its entries; it
    is part of SIZE. HEALTH is ok, full (no new key fits), frozen, 'N dead' (N processes ended
    without closing the map: 'repair' recovers them), left behind (no process is left: 'gc' removes
    it), damaged, other version, or no name (the name was removed while processes used the map: a
    program that opens the name gets another map). PROCESSES are those that may write; 'info' shows
    readers too. CACHE is shown if a map is a Cache: the share of its lookups that were hits. A full
    cache evicts, so its HEALTH is ok. OWNER is shown if another user has maps. Root reads those in
    a child process, because the owner of a map can truncate it, which kills every process that has
    it mapped.

    \b
    Examples:
      shmrhash ls
      shmrhash ls 'cache-*' --all
      shmrhash -j ls | jq -r '.[] | select(.health != "ok") | .advice'
    """
    wanted = re.compile(
        "|".join(fnmatch.translate(pattern.removeprefix("/")) for pattern in patterns)
    )

    def is_wanted(name: str) -> bool:
        return wanted.match(name) is not None

    states = [*all_states(session, is_wanted), *nameless_states(is_wanted)]
    shown = [state for state in states if everything or state.health not in (NOT_A_MAP, DENIED)]
    if session.json:
        session.emit([state_object(state) for state in shown])
        return
    grouped, alone = ([], shown) if everything or patterns else _by_process(shown)
    rows = [_row(state) for state in alone] + [_group_row(group) for group in grouped]
    if rows or not on_terminal():
        columns, rows = _needed_columns(rows)
        drop = ["ACTIVITY", "FILL", "OBJECTS", "SIZE", "OWNER", "CACHE"]
        print_table(columns, rows, drop)
    denied = sum(state.health == DENIED for state in states)
    if denied and not everything:
        print(f"{denied} file(s) cannot be read by this user; --all shows them", file=sys.stderr)
    elif not rows and on_terminal():
        print("no maps", file=sys.stderr)


@click.command("info", cls=Command, short_help="Everything about one map.")
@map_argument
@pass_session
def info_command(session: Session, name: MapName) -> None:
    """Sizes, load, memory, growth, recoveries, and the processes, readers included.

    \b
    Examples:
      shmrhash info hits
      shmrhash -j info hits | jq .load
    """
    state = state_of(name, session)
    writers = {process.pid for process in state.processes}
    mapping = others_mapping(state.inode, state.path)
    readers = [(pid, command) for pid, command in mapping if pid not in writers]
    if session.json:
        own = ("liveness", "membarrier")  # facts about this command's handle, not the map
        found = {fact: value for fact, value in state.info.items() if fact not in own}
        del found["attached"], found["pids"]
        found |= {
            "id": state.inode,
            "owner": state.owner,
            "health": state.health,
            "advice": state.advice,
            "types": state.types or None,
            "fields": [
                {"kind": type(field).__name__, "offset": field.offset} for field in state.fields
            ],
            "processes": [process_object(process) for process in state.processes],
            "readers": [{"pid": pid, "command": command} for pid, command in readers],
        }
        session.emit(found)
        return
    print_facts(_facts(state))
    for process in state.processes:
        since = time_text(time.time() - process.attached_ns / 1e9)
        counters = "  ".join(f"{name} {value:,}" for name, value in process.counters.items())
        text = f"attached {since} ago" if process.alive else f"dead; was attached {since} ago"
        print(printable(f"  {process}  {text}  {counters}".rstrip()))
    for pid, command in readers:
        print(printable(f"  {command}({pid})  reads"))


def _facts(state: MapState) -> list[tuple[str, str]]:
    info = state.info
    age = time_text(time.time() - info["created_ns"] / 1e9)
    health = health_cell(state)
    advice = Cell(f"{health}: {state.advice}", health.style) if state.advice else health
    each = info["bytes_per_entry"]
    expired = f", {info['expired']:,} of them expired" if info["expired"] else ""
    entries = f"{info['entries']:,} of {info['max_entries']:,}{expired}"
    facts = [
        ("name", f"{state.name}  ({state.path}, id {state.inode})"),
        ("health", advice),
        ("entries", f"{entries} ({percent_text(state.fill)})"),
        ("sizes", f"keys {info['key_size']} B, values {info['value_size']} B"),
        (
            "memory",
            f"{size_text(info['bytes_committed'])}, {size_text(info['bytes_used'])} of it in use"
            + (f", {each:.0f} B an entry" if each else ""),
        ),
        ("buckets", f"{info['buckets']:,}, {info['load']:.2f} entries each (7 fit)"),
        ("growth", f"{info['grows']:,} splits, {info['shrinks']:,} merges"),
        (
            "created",
            f"{age} ago, owner {state.owner}, flags {info['map_flags']:#x}, layout "
            f"{info['layout_version']}",
        ),
        (
            "recovered",
            f"{info['recoveries']:,} dead processes, {info['operations_finished']:,} operations "
            f"finished, {info['operations_undone']:,} undone, longest "
            f"{info['recovery_ns_max'] / 1e6:.2f} ms",
        ),
        ("activity", activity_text(state)),
    ]
    if state.types:
        facts.insert(4, ("types", state.types))
    elif state.fields:
        fields = (f"{type(field).__name__} at {field.offset}" for field in state.fields)
        facts.insert(4, ("fields", ", ".join(fields)))
    if state.objects:
        facts.insert(-3, ("objects", objects_text(state.objects)))
    if state.cache:
        facts[-3:-3] = [("cache", line) for line in cache_text(state.cache).splitlines()]
    if state.near:
        facts.insert(-3, ("near", near_text(state.near)))
    if info["growth_stopped"]:
        facts.insert(7, ("no memory", f"growth was stopped {info['growth_stopped']:,} times"))
    flags = [word for word in ("frozen", "ephemeral", "huge_pages") if info.get(word)]
    if flags:
        facts.append(("kind", ", ".join(flags).replace("_", " ")))
    facts.append(("processes", f"{len(state.alive)} attached, {len(state.dead)} dead"))
    return facts
