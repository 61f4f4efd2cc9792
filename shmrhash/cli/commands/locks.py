"""locks and unlock: the holders of the lock primitives of a space, and taking a lock away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

import shmrhash
from shmrhash import LockInfo, Owner, Sync, _inspect
from shmrhash.cli.errors import STATUS_MISSING, STATUS_NO, Failure
from shmrhash.cli.screen import Cell, on_terminal, print_table, printable, time_text
from shmrhash.cli.session import Command, Session, pass_session
from shmrhash.cli.words import MapName

COLUMNS = ["SPACE", "KEY", "KIND", ">VALUE", "HELD BY", "WAITING"]
PEOPLE_MAX = 4  # shown in a cell of the table; -j has all


@click.command("locks", cls=Command, short_help="Which processes hold locks, and which wait.")
@click.argument("space", required=False)
@click.argument("key", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Also primitives not in use.")
@pass_session
def locks_command(
    session: Session, space: str | None, key: str | None, everything: bool
) -> int | None:
    """Each lock primitive that is held or waited for: by which process, and since when.

    SPACE is the name of a Sync; without it, all spaces are looked at. Lock("gpu0") is in the space
    shmrhash-sync-UID of its user. KEY is the key as text. VALUE is the number of free permits of a
    Semaphore, 1 or 0 for an Event that is set or not, or how many parties a Barrier needs. Nothing
    is changed. Exit status 1: there is no such KEY.

    \b
    Examples:
      shmrhash locks
      shmrhash locks cluster gpu0
      shmrhash -j locks | jq '.[] | select(.waiters != [])'
    """
    found = []
    for name in _spaces(session, space):
        with session.open(MapName(name, _inspect.path_of(name))) as shared_map:
            found += [(name, info) for info in _inspect.locks_in(shared_map)]
    if key is not None:
        found = [(name, info) for name, info in found if str(info.key) == key]
    elif not everything:
        found = [(name, info) for name, info in found if info.owners or info.waiters]
    found.sort(key=lambda pair: (pair[0], str(pair[1].key)))
    if session.json:
        session.emit([_object(name, info) for name, info in found])
    elif found or not on_terminal():
        print_table(COLUMNS, [_row(name, info) for name, info in found], ["VALUE", "WAITING"])
    else:
        print("nobody holds a lock or waits for one")
    return STATUS_NO if key is not None and not found else None


def _spaces(session: Session, wanted: str | None) -> Iterator[str]:
    """The names of the spaces to look at."""
    if wanted is not None:
        name = wanted.removeprefix("/")
        with session.open(MapName(name, _inspect.path_of(name))) as shared_map:
            if not _inspect.is_space(shared_map):
                raise Failure(f"{wanted!r} is a map, not a space of locks")
        yield name
        return
    for entry in sorted(_inspect.entries(), key=lambda entry: entry.name):
        try:
            if not _inspect.begins_as_map(entry.path):
                continue
            with session.open(MapName(entry.name, entry.path)) as shared_map:
                is_space = _inspect.is_space(shared_map)
        except (shmrhash.Error, OSError):
            continue  # ls tells of those that cannot be read
        if is_space:
            yield entry.name


def _person(owner: Owner) -> dict[str, Any]:
    return {
        "pid": owner.pid,
        "command": owner.command,
        "thread": owner.thread,
        "seconds": _seconds(owner),
    }


def _seconds(owner: Owner) -> float | None:
    """For how long; None: that is not noted (permits)."""
    return max(0.0, time.monotonic() - owner.since) if owner.since else None


def _object(name: str, info: LockInfo) -> dict[str, Any]:
    key = info.key
    return {
        "space": name,
        "key": key.hex() if isinstance(key, bytes) else key,
        "kind": info.kind,
        "value": info.value,
        "token": info.token,
        "owners": [_person(owner) for owner in info.owners],
        "waiters": [_person(waiter) for waiter in info.waiters],
    }


def _people(owners: list[Owner]) -> str:
    texts = []
    for owner in owners[:PEOPLE_MAX]:
        seconds = _seconds(owner)
        since = "" if seconds is None else f" {time_text(seconds)}"
        texts.append(f"{owner.command}({owner.pid}){since}")
    more = len(owners) - len(texts)
    return ", ".join([*texts, f"{more} more"] if more else texts) or "-"


def _row(name: str, info: LockInfo) -> list[str]:
    return [
        Cell(name, "head"),
        "-" if info.key is None else printable(str(info.key)),
        info.kind,
        "-" if info.value is None else str(info.value),
        _people(info.owners),
        _people(info.waiters),
    ]


@click.command("unlock", cls=Command, short_help="Take a lock away from a process that lives.")
@click.argument("space")
@click.argument("key")
@click.option("--force", is_flag=True, help="Even if the process that holds the lock is alive.")
@pass_session
def unlock_command(session: Session, space: str, key: str, force: bool) -> int:
    """Free a Lock or RLock, so that the next process can take it.

    A lock whose owner is dead becomes free by itself, and needs no unlock. --force takes it away
    from a process that lives, but hangs: the data that the lock protects may be half changed, so
    the next owner is told, as after a death (Lock.orphan). If the process goes on, it works without
    the lock until its release() raises RuntimeError. Exit status 0: the lock is free; 1: it is not.

    \b
    Examples:
      shmrhash unlock cluster gpu0 --force
    """
    with Sync.open(space) as opened:
        lock = _lock_of(opened, key)
        owner = lock.owner
        if not lock.locked():
            text, status = "nobody holds it", 0
        elif not force:
            by = f"{owner.command}({owner.pid})" if owner else "a process"
            raise Failure(f"{by} holds {key!r} and lives; --force takes it away", STATUS_NO)
        elif _inspect.take_away(lock):
            text = f"taken away from {owner.command}({owner.pid})" if owner else "taken away"
            status = 0
        else:
            text, status = "it changed hands just now; look again", STATUS_NO
    if session.json:
        session.emit({"space": space, "key": key, "free": status == 0, "result": text})
    else:
        print(printable(text))
    return status


def _lock_of(space: Sync, key: str) -> Any:
    """The lock whose key is this text, as a str if there are several."""
    known = [found for found, _ in space.cells() if found is not None and str(found) == key]
    if not known:
        raise Failure(f"the space {space.name!r} has no key {key!r}", STATUS_MISSING)
    lock = _inspect.lock_of(space, key if key in known else known[0])
    if lock is None:
        raise Failure(f"{key!r} is no Lock or RLock: only those have an owner")
    return lock
