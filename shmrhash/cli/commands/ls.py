"""Maps for people: ls, all of them in a table; info, everything about one."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import time
from typing import Any

import click

from shmrhash._dictfile import ANONYMOUS_PREFIX
from shmrhash.cli.maps import (
    DENIED,
    FROZEN,
    FULL,
    OK,
    STRANGER,
    Process,
    Sight,
    look,
    look_around,
    others_mapping,
)
from shmrhash.cli.screen import (
    Cell,
    count_text,
    percent_text,
    print_facts,
    print_table,
    printable,
    size_text,
    time_text,
)
from shmrhash.cli.session import (
    Session,
    Verb,
    map_argument,
    on_terminal,
    pass_session,
)
from shmrhash.cli.words import Tokens, take_map

COLUMNS = [
    "NAME",
    "OWNER",
    ">ENTRIES",
    ">FILL",
    ">SIZE",
    ">OBJECTS",
    "ACTIVITY",
    "HEALTH",
    "PROCESSES",
]


def health_cell(sight: Sight) -> Cell:
    """The health of a map, in its colour."""
    style = "ok" if sight.health == OK else "note" if sight.health in (FULL, FROZEN) else "bad"
    dead = f"{len(sight.dead)} dead" if sight.dead else sight.health
    return Cell(dead, "dim" if sight.health in (STRANGER, DENIED) else style)


def last_activity(sight: Sight) -> tuple[str, int]:
    """What is known to have happened last, and when (nanoseconds since the epoch)."""
    created = int(sight.info.get("created_ns", 0))
    attached = max((process.attached_ns for process in sight.processes), default=0)
    used = int(sight.info.get("last_activity_ns", 0))
    if created >= max(used, attached):
        return "created", created
    return ("used", used) if used >= attached else ("attached", attached)


def activity_text(sight: Sight) -> str:
    """When something happened last: "attached 3 min ago"."""
    what, when = last_activity(sight)
    return f"{what} {time_text(time.time() - when / 1e9)} ago" if when else "-"


def process_object(process: Process) -> dict[str, Any]:
    """A process as JSON shows it."""
    return {
        "pid": process.pid,
        "command": process.command,
        "attached_ns": process.attached_ns,
        "alive": process.alive,
        **process.counters,
    }


def sight_object(sight: Sight) -> dict[str, Any]:
    """A map as the JSON of ls shows it."""
    found: dict[str, Any] = {
        "name": sight.name,
        "id": sight.inode,
        "path": sight.path,
        "owner": sight.owner,
        "health": sight.health,
        "detail": sight.detail,
        "advice": sight.advice,
    }
    if sight.info:
        found |= {
            "entries": sight.info["entries"],
            "expired": sight.info["expired"],
            "max_entries": sight.info["max_entries"],
            "fill": sight.fill,
            "bytes": sight.info["bytes_committed"],
            "types": sight.types or None,
            "objects": sight.objects or None,
            "last_activity": last_activity(sight)[0],
            "last_activity_ns": last_activity(sight)[1],
            "processes": [process_object(process) for process in sight.processes],
        }
    return found


def _by_process(sights: list[Sight]) -> tuple[list[list[Sight]], list[Sight]]:
    """Healthy anonymous dicts, by the process that made them if it has several; and the others."""
    made: dict[str, list[Sight]] = {}
    for sight in sights:
        if sight.health == OK and sight.name.startswith(ANONYMOUS_PREFIX):
            made.setdefault(sight.name.rpartition("-")[0], []).append(sight)
    groups = [group for group in made.values() if len(group) > 1]
    gone = {sight.name for group in groups for sight in group}
    return groups, [sight for sight in sights if sight.name not in gone]


def _row(sight: Sight) -> list[str]:
    figures = ["-"] * 5
    if sight.info:
        figures = [
            count_text(sight.info["entries"]),
            percent_text(sight.fill),
            size_text(sight.info["bytes_committed"]),
            size_text(sight.objects["bytes_in_use"]) if sight.objects else "-",
            activity_text(sight),
        ]
    users = ", ".join(map(str, sight.alive)) if sight.info else sight.detail
    return [
        Cell(sight.name, "head"),
        "-" if sight.user == os.geteuid() else sight.owner,
        *figures,
        health_cell(sight),
        users or "-",
    ]


def _group_row(group: list[Sight]) -> list[str]:
    """Anonymous dicts of one process in one line: sums, the latest activity, all users."""
    latest = max(group, key=lambda sight: last_activity(sight)[1])
    objects = sum(sight.objects.get("bytes_in_use", 0) for sight in group)
    users = sorted({(user.pid, str(user)) for sight in group for user in sight.alive})
    return [
        Cell(f"{group[0].name.rpartition('-')[0]}-*  ({len(group)} dicts)", "head"),
        "-" if latest.user == os.geteuid() else latest.owner,
        count_text(sum(sight.info["entries"] for sight in group)),
        "-",
        size_text(sum(sight.info["bytes_committed"] for sight in group)),
        size_text(objects) if objects else "-",
        activity_text(latest),
        health_cell(latest),
        ", ".join(text for _, text in users) or "-",
    ]


def _owners_if_others(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns of ls; without the owners if all maps are this user's."""
    if any(row[1] != "-" for row in rows):
        return COLUMNS, rows
    return [COLUMNS[0], *COLUMNS[2:]], [[row[0], *row[2:]] for row in rows]


@click.command("ls", cls=Verb, short_help="All maps: entries, size, users, health.")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("-a", "--all", "everything", is_flag=True, help="Also files that are no maps.")
@pass_session
def ls_verb(session: Session, patterns: tuple[str, ...], everything: bool) -> None:
    """Every map of this machine, who is attached to it, and how it is.

    PATTERN is a name, or one with *, ? and [...]; quote it. Without one, the anonymous dicts of a
    process stand in one line; --all, and -j, have each.

    OBJECTS is what the values (and long keys) of a SharedDict take beside its entries; SIZE has
    them too. HEALTH is ok, full, frozen, 'N dead' (ended without closing: repair), left behind
    (gc), damaged, or other version. PROCESSES are those that may write; 'info' shows readers too.
    OWNER is shown if some maps are other users'. Root looks at these in a child process, since who
    owns a file can end whoever has it mapped.

    \b
    Examples:
      shmrhash ls
      shmrhash ls 'cache-*' --all
      shmrhash -j ls | jq -r '.[] | select(.health != "ok") | .advice'
    """
    wanted = re.compile(
        "|".join(fnmatch.translate(pattern.removeprefix("/")) for pattern in patterns)
    )
    sights = list(look_around(session, lambda name: wanted.match(name) is not None))
    shown = [sight for sight in sights if everything or sight.health not in (STRANGER, DENIED)]
    if session.json:
        session.emit([sight_object(sight) for sight in shown])
        return
    grouped, alone = ([], shown) if everything or patterns else _by_process(shown)
    rows = [_row(sight) for sight in alone] + [_group_row(group) for group in grouped]
    if rows or not on_terminal():
        columns, rows = _owners_if_others(rows)
        print_table(columns, rows, ["ACTIVITY", "FILL", "OBJECTS", "SIZE", "OWNER"])
    denied = sum(sight.health == DENIED for sight in sights)
    if denied and not everything:
        print(f"{denied} file(s) may not be read by you; --all shows them", file=sys.stderr)
    elif not rows and on_terminal():
        print("no maps", file=sys.stderr)


@click.command("info", cls=Verb, short_help="Everything about one map.")
@map_argument
@pass_session
def info_verb(session: Session, words: tuple[str, ...]) -> None:
    """Sizes, load, memory, growth, recoveries, and the processes, readers included.

    \b
    Examples:
      shmrhash info hits
      shmrhash -j info hits | jq .load
    """
    tokens = Tokens(words)
    name = take_map(tokens)
    tokens.end()
    sight = look(name, session)
    writers = {process.pid for process in sight.processes}
    mapping = others_mapping(sight.inode, sight.path)
    readers = [(pid, command) for pid, command in mapping if pid not in writers]
    if session.json:
        own = ("liveness", "membarrier")  # of this command's handle, not of the map
        found = {fact: value for fact, value in sight.info.items() if fact not in own}
        del found["attached"], found["pids"]
        found |= {
            "id": sight.inode,
            "owner": sight.owner,
            "health": sight.health,
            "advice": sight.advice,
            "types": sight.types or None,
            "fields": [
                {"kind": type(field).__name__, "offset": field.offset} for field in sight.fields
            ],
            "processes": [process_object(process) for process in sight.processes],
            "readers": [{"pid": pid, "command": command} for pid, command in readers],
        }
        session.emit(found)
        return
    print_facts(_facts(sight))
    for process in sight.processes:
        since = time_text(time.time() - process.attached_ns / 1e9)
        counters = "  ".join(f"{name} {value:,}" for name, value in process.counters.items())
        state = f"attached {since} ago" if process.alive else f"dead; was attached {since} ago"
        print(printable(f"  {process}  {state}  {counters}".rstrip()))
    for pid, command in readers:
        print(printable(f"  {command}({pid})  reads"))


def objects_text(objects: dict[str, int]) -> str:
    """Objects in one line."""
    return (
        f"{objects['count']:,}, {size_text(objects['bytes_in_use'])} in use, "
        f"{size_text(objects['bytes_committed'])} committed of {size_text(objects['max_bytes'])}, "
        f"{objects['pinned']:,} pinned"
    )


def _facts(sight: Sight) -> list[tuple[str, str]]:
    info = sight.info
    age = time_text(time.time() - info["created_ns"] / 1e9)
    health = health_cell(sight)
    advice = Cell(f"{health}: {sight.advice}", health.style) if sight.advice else health
    each = info["bytes_per_entry"]
    expired = f", {info['expired']:,} of them expired" if info["expired"] else ""
    entries = f"{info['entries']:,} of {info['max_entries']:,}{expired}"
    facts = [
        ("name", f"{sight.name}  ({sight.path}, id {sight.inode})"),
        ("health", advice),
        ("entries", f"{entries} ({percent_text(sight.fill)})"),
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
            f"{age} ago, owner {sight.owner}, flags {info['map_flags']:#x}, layout "
            f"{info['layout_version']}",
        ),
        (
            "recovered",
            f"{info['recoveries']:,} dead processes, {info['operations_finished']:,} operations "
            f"finished, {info['operations_undone']:,} undone, longest "
            f"{info['recovery_ns_max'] / 1e6:.2f} ms",
        ),
        ("activity", activity_text(sight)),
    ]
    if sight.types:
        facts.insert(4, ("types", sight.types))
    elif sight.fields:
        fields = (f"{type(field).__name__} at {field.offset}" for field in sight.fields)
        facts.insert(4, ("fields", ", ".join(fields)))
    if sight.objects:
        facts.insert(-3, ("objects", objects_text(sight.objects)))
    if info["growth_stopped"]:
        facts.insert(7, ("no memory", f"growth was stopped {info['growth_stopped']:,} times"))
    flags = [word for word in ("frozen", "ephemeral", "huge_pages") if info.get(word)]
    if flags:
        facts.append(("also", ", ".join(flags).replace("_", " ")))
    facts.append(("processes", f"{len(sight.alive)} attached, {len(sight.dead)} dead"))
    return facts
