"""Mending: check, repair, gc, unlink."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

import shmrhash
from shmrhash import RHashMap, _core, _segment
from shmrhash.cli.commands.ls import objects_text
from shmrhash.cli.entries.contents import contents_of
from shmrhash.cli.entries.formats import Spec
from shmrhash.cli.entries.layouts import NEVER_NS
from shmrhash.cli.files.store import create_map, geometry_of
from shmrhash.cli.maps import OK, ORPHAN, STRANGER, examine, look, look_around
from shmrhash.cli.screen import print_facts
from shmrhash.cli.session import DataOptions, Session, Verb, map_argument, on_terminal, pass_session
from shmrhash.cli.strangers import looked_at
from shmrhash.cli.words import STATUS_DAMAGED, STATUS_NO, Failure, MapName, Tokens, take_map

BYTES = DataOptions(Spec(), Spec())
FIGURES = {
    "entries": "entries",
    "buckets": "buckets",
    "lines": "overflow lines",
    "chain_longest": "longest chain",
    "elements_parked": "free, at hand",
    "elements_free": "free, in blocks",
    "elements_in_flight": "in operations",
}


def one_map(words: tuple[str, ...]) -> MapName:
    """The map that the words name, and nothing else."""
    tokens = Tokens(words)
    name = take_map(tokens)
    tokens.end()
    return name


@click.command("check", cls=Verb, short_help="Is the map sound? Looks at everything in it.")
@map_argument
@pass_session
def check_verb(session: Session, words: tuple[str, ...]) -> int:
    """Walk every invariant of the map, and say what was found and what is safe to do.

    Changes nothing: dead owners are reported; 'repair' recovers them. Exit status 0: sound;
    1: dead owners, or always busy, so that nothing can be said for sure; 5: damaged.

    \b
    Examples:
      shmrhash check hits
      shmrhash check hits || shmrhash repair hits
    """
    name = one_map(words)
    sight = look(name, session)
    found = {"name": name.name, **looked_at(name, session, _checked)}
    found["dead"] = len(sight.dead)
    found["objects"] = sight.objects or None
    if found["problem"]:
        status = STATUS_DAMAGED
        found["advice"] = (
            "reading and exporting is safe, writing is not: shmrhash repair "
            f"{name.name} --into NEW copies what can be read into a new map"
        )
    elif sight.dead:
        status = STATUS_NO
        found["advice"] = (
            f"everything may go on: whoever meets the dead recovers them, or now: shmrhash repair "
            f"{name.name}"
        )
    elif not found["exact"]:
        status = STATUS_NO
        found["advice"] = "others were changing the map all the time: try again when they rest"
    else:
        status = 0
        found["advice"] = ""
    _report(session, found)
    return status


def _checked(shared_map: RHashMap) -> dict[str, Any]:
    """What a check found, soundness among it."""
    try:
        return {"sound": True, "problem": None, **shared_map.check()}
    except shmrhash.SegmentCorrupt as error:
        return {"sound": False, "problem": str(error)}


def _report(session: Session, found: dict[str, Any]) -> None:
    if session.json:
        session.emit(found)
        return
    state = "damaged" if found["problem"] else "sound" if found.get("exact") else "not sure"
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


@click.command("repair", cls=Verb, short_help="Recover dead owners, then check.")
@map_argument
@click.option("--into", "target", metavar="NEW", help="Copy what can be read into a new map.")
@pass_session
def repair_verb(session: Session, words: tuple[str, ...], target: str | None) -> int:
    """Finish or undo what killed processes had begun, then check the map.

    A map that is damaged is not mended in place: with --into its readable entries go into a new map
    of the same sizes. Exit status 0: sound now; 1: busy; 5: still damaged.

    \b
    Examples:
      shmrhash repair hits
      shmrhash repair hits --into hits-2
    """
    name = one_map(words)
    before = look(name, session)
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
        found["advice"] = f"shmrhash repair {name.name} --into NEW copies what can be read"
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
    """Copy every entry that can be read into a new map; how many there were."""
    contents = contents_of(source, BYTES)
    copied = 0
    with (
        create_map(geometry_of(contents), target, session.timeout) as copy,
        contextlib.suppress(shmrhash.SegmentCorrupt),  # what came before is good
    ):
        copies = contents_of(copy, BYTES)
        for key, value, extra in contents.items():
            if extra is None:
                copy.update(key, value)
            else:
                never = extra.deadline_ns or NEVER_NS
                copies.restore(key, value, extra._replace(deadline_ns=never), shmrhash.BPF_ANY)
            copied += 1
    return copied


def _abandoned(session: Session) -> list[str]:
    """The maps that nobody holds, and that gc --names would remove."""
    names = []
    for sight in look_around(session):
        if not sight.usable and sight.health != ORPHAN:
            continue
        try:
            fd = _segment.look_at_file(sight.path)
        except OSError:
            continue
        try:
            holders = _core.segment_holders(fd)
        except shmrhash.Error:
            continue
        finally:
            os.close(fd)
        if holders is not None and not holders[0] and not holders[2]:
            names.append(sight.name)
    return names


@click.command("gc", cls=Verb, short_help="Recover dead owners in all maps; remove unused ones.")
@click.option("--names", is_flag=True, help="Also remove maps that nobody holds, with all entries.")
@click.option("-n", "--dry-run", is_flag=True, help="Only say which --names would remove.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_session
def gc_verb(session: Session, names: bool, dry_run: bool, yes: bool) -> None:
    """Recover killed processes in all maps, and remove ephemeral maps that nobody holds.

    With --names other maps that nobody holds at this moment are removed too, and their entries are
    lost: a map is meant to outlive its processes, so it asks first. Root looks at other users' maps
    without attaching to them; to recover who died there, trust their owner with --owner.

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
                print("\n".join(abandoned) if abandoned else "every map is held by somebody")
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
        raise Failure(f"{question} --yes says so; --dry-run only looks")
    if not click.confirm(question, err=True):
        raise Failure("nothing was removed", STATUS_NO)


@click.command("unlink", cls=Verb, short_help="Remove a map's name; its users go on.")
@map_argument
@click.option("-f", "--force", is_flag=True, help="Remove the file even if it is no map.")
@pass_session
def unlink_verb(session: Session, words: tuple[str, ...], force: bool) -> None:
    """Remove the name of a map. Attached processes go on; the memory goes with the last of them.

    \b
    Examples:
      shmrhash unlink hits
    """
    name = one_map(words)
    health, detail = examine(name.path)
    if health == STRANGER and not force:
        raise Failure(f"{name.path} is no map ({detail}); --force removes it", STATUS_DAMAGED)
    users = []
    if health == OK:
        with contextlib.suppress(shmrhash.Error, OSError):  # sick maps are what unlink is for
            users = look(name, session).alive
    shmrhash.unlink(name.name)
    session.done()
    if users and on_terminal():
        print(f"still in use, until they close it: {', '.join(map(str, users))}", file=sys.stderr)
