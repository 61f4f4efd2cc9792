"""Health and repair: check, repair, gc, unlink."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

import shmrhash
from shmrhash import RHashMap, _inspect
from shmrhash._inspect import NEVER_NS
from shmrhash.cli.entries.contents import contents_of
from shmrhash.cli.entries.options import DataOptions
from shmrhash.cli.errors import STATUS_DAMAGED, STATUS_NO, Failure
from shmrhash.cli.files.store import create_map, geometry_of
from shmrhash.cli.maps import NOT_A_MAP, OK, ORPHAN, all_states, examine, state_of
from shmrhash.cli.screen import objects_text, on_terminal, print_facts
from shmrhash.cli.session import Command, Session, map_argument, pass_session
from shmrhash.cli.strangers import read_map
from shmrhash.cli.words import MapName

FIGURES = {
    "entries": "entries",
    "buckets": "buckets",
    "lines": "overflow lines",
    "chain_longest": "longest chain",
    "elements_parked": "free, in depots",
    "elements_free": "free, in blocks",
    "elements_in_flight": "in operations",
}


@click.command("check", cls=Command, short_help="Is the map sound? Reads all of it.")
@map_argument
@pass_session
def check_command(session: Session, name: MapName) -> int:
    """Check every invariant of the map; print the result and what is safe to do.

    It changes nothing: it reports dead owners, and 'repair' recovers them. Exit status 0: sound;
    1: there are dead owners, or other processes kept changing the map, so that the result is not
    exact; 5: damaged.

    \b
    Examples:
      shmrhash check hits
      shmrhash check hits || shmrhash repair hits
    """
    state = state_of(name, session)
    found = {"name": name.name, **read_map(name, session, _checked)}
    found["dead"] = len(state.dead)
    found["objects"] = state.objects or None
    if found["problem"]:
        status = STATUS_DAMAGED
        found["advice"] = (
            "reading and exporting are safe, writing is not: shmrhash repair "
            f"{name.name} --into NEW copies the readable entries into a new map"
        )
    elif state.dead:
        status = STATUS_NO
        found["advice"] = (
            f"other processes can go on: an operation that meets a dead owner recovers it; to "
            f"recover all of them now: shmrhash repair {name.name}"
        )
    elif not found["exact"]:
        status = STATUS_NO
        found["advice"] = (
            "other processes changed the map during the check: try again when it is idle"
        )
    else:
        status = 0
        found["advice"] = ""
    _report(session, found)
    return status


def _checked(shared_map: RHashMap) -> dict[str, Any]:
    """The result of check(): whether the map is sound, the problem, figures."""
    try:
        return {"sound": True, "problem": None, **shared_map.check()}
    except shmrhash.SegmentCorrupt as error:
        return {"sound": False, "problem": str(error)}


def _report(session: Session, found: dict[str, Any]) -> None:
    if session.json:
        session.emit(found)
        return
    state = "damaged" if found["problem"] else "sound" if found.get("exact") else "not certain"
    if found["dead"]:
        state += f", {found['dead']} dead owners"
    facts = [("state", state)]
    if found["problem"]:
        facts.append(("problem", found["problem"]))
    facts += [(text, f"{found[name]:,}") for name, text in FIGURES.items() if name in found]
    if found.get("objects"):
        facts.append(("objects", objects_text(found["objects"])))
    if found["advice"]:
        facts.append(("advice", found["advice"]))
    print_facts(facts)


@click.command("repair", cls=Command, short_help="Recover dead owners, then check.")
@map_argument
@click.option("--into", "target", metavar="NEW", help="Copy the readable entries into a new map.")
@pass_session
def repair_command(session: Session, name: MapName, target: str | None) -> int:
    """Finish or undo the operations that killed processes left unfinished, then check the map.

    A damaged map is not repaired in place: --into copies its readable entries into a new map of the
    same sizes. Exit status 0: sound; 1: other processes kept changing the map, so that the result
    is not exact; 5: damaged.

    \b
    Examples:
      shmrhash repair hits
      shmrhash repair hits --into hits-2
    """
    before = state_of(name, session)
    with session.open(name, write=True) as shared_map:
        found = {"name": name.name, **_checked(shared_map)}
        after = shared_map.info()
        found["recovered"] = after["recoveries"] - before.info["recoveries"]
        for counter in ("operations_finished", "operations_undone"):
            found[counter] = after[counter] - before.info[counter]
        found["copied"] = _copy(shared_map, target, session) if target else None
    found["dead"] = 0
    found["advice"] = ""
    if found["problem"] and not target:
        found["advice"] = f"shmrhash repair {name.name} --into NEW copies the readable entries"
    if not session.json:
        print(
            f"recovered {found['recovered']} dead owners: {found['operations_finished']} "
            f"operations finished, {found['operations_undone']} undone"
        )
        if target:
            print(f"copied {found['copied']:,} entries into {target}")
    _report(session, found)
    if found["problem"]:
        return STATUS_DAMAGED
    return 0 if found["exact"] else STATUS_NO


def _copy(source: RHashMap, target: str, session: Session) -> int:
    """Copy every entry that can be read into a new map; return how many were copied."""
    contents = contents_of(source, DataOptions())
    copied = 0
    with (
        create_map(geometry_of(contents), target, session.timeout) as copy,
        contextlib.suppress(shmrhash.SegmentCorrupt),  # the entries before the damage are good
    ):
        copies = contents_of(copy, DataOptions())
        for key, value, extra in contents.items():
            if extra is None:
                copy.update(key, value)
            else:
                never = extra.deadline_ns or NEVER_NS
                copies.restore(key, value, extra._replace(deadline_ns=never), shmrhash.BPF_ANY)
            copied += 1
    return copied


def _abandoned(session: Session) -> list[str]:
    """The maps that no process holds, which gc --names removes."""
    return [
        state.name
        for state in all_states(session)
        if (state.usable or state.health == ORPHAN) and _inspect.is_unheld(state.path)
    ]


@click.command("gc", cls=Command, short_help="Recover dead owners in all maps; remove unused ones.")
@click.option("--names", is_flag=True, help="Also remove named maps that no process has open.")
@click.option("-n", "--dry-run", is_flag=True, help="Only list the maps that --names would remove.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@pass_session
def gc_command(session: Session, names: bool, dry_run: bool, yes: bool) -> None:
    """Recover killed processes in all maps, and remove ephemeral maps that no process has open.

    With --names it also removes other maps that no process has open. Their entries are lost, and a
    map is meant to outlive its processes, so the command asks first. Root reads other users' maps
    without attaching to them; to recover processes that died there, trust their owner: --owner.

    \b
    Examples:
      shmrhash gc
      shmrhash gc --dry-run
      shmrhash gc --names --yes
    """
    if dry_run or (names and not yes):
        abandoned = _abandoned(session)
        if dry_run:
            if session.json:
                session.emit({"abandoned": abandoned})
            else:
                print("\n".join(abandoned) if abandoned else "each map is open in some process")
            return
        _confirm(f"remove {len(abandoned)} maps and their entries ({', '.join(abandoned)})?")
    report = shmrhash.gc(names=names, owner=session.owner)
    if session.json:
        session.emit(report)
        return
    print(f"{report['maps']} maps, {report['recovered']} dead owners recovered")
    for name in report["removed"]:
        print(f"removed {name}")
    for name, reason in report["skipped"].items():
        print(f"skipped {name}: {reason}", file=sys.stderr)


def _confirm(question: str) -> None:
    if not (on_terminal() and sys.stdin.isatty()):
        raise Failure(f"{question} Give --yes to remove them, or --dry-run to list them")
    if not click.confirm(question, err=True):
        raise Failure("nothing was removed", STATUS_NO)


@click.command("unlink", cls=Command, short_help="Remove a map's name; its users go on.")
@map_argument
@click.option("-f", "--force", is_flag=True, help="Remove the file even if it is not a map.")
@pass_session
def unlink_command(session: Session, name: MapName, force: bool) -> None:
    """Remove the name of a map. Attached processes go on; the last of them frees the memory.

    \b
    Examples:
      shmrhash unlink hits
    """
    health, detail = examine(name.path)
    if health == NOT_A_MAP and not force:
        raise Failure(f"{name.path} is not a map ({detail}); --force removes it", STATUS_DAMAGED)
    users = []
    if health == OK:
        with contextlib.suppress(shmrhash.Error, OSError):  # a damaged map can be unlinked, too
            users = state_of(name, session).alive
    shmrhash.unlink(name.name)
    session.done()
    if users and on_terminal():
        print(f"still in use by {', '.join(map(str, users))}", file=sys.stderr)
