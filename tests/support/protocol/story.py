"""Counterexamples told in words: every step of the path to a violation.

    cd tests; python -m support.protocol.story "a reader loads a link a second time"

tells how the mutant that lacks this step breaks a promise. With the name of a scene instead, it
plays the scene as designed, and tells the number of its states.
"""

import contextlib
import sys

from support.protocol.automaton import (
    AWAIT,
    BEGIN,
    BYTE,
    CAS,
    END,
    KIND_NAMES,
    LOCK,
    PUT,
    STORE,
    TRY,
)
from support.protocol.explorer import Explorer
from support.protocol.mutants import MUTANTS
from support.protocol.oracle import Violation
from support.protocol.scenes import LONG, SHORT
from support.protocol.segment_model import (
    LINK_BASE,
    PAYLOAD_SHIFT,
    STATE_NAMES,
    block_parts,
    depot_parts,
    level_plus1,
    owner_of,
    state_of,
    version_of,
)


def tell(violation):
    """The path to a violation, one line for each access, and what is broken."""
    explorer = violation.explorer
    lines = []
    for state, (program, dies) in violation.path:
        log = []
        with contextlib.suppress(Violation):  # raised by the last step, which is in the log
            explorer.follow(state, program, dies, log)
        lines += [tell_step(explorer, *entry) for entry in log]
    return "\n".join([*lines, f"=> {violation}"])


def tell_step(explorer, program, action, answer):
    name = explorer.programs[program].name
    if action is None:
        return f"{name:20} DIES"
    kind, address, value, desired = action
    if kind == BEGIN:
        told = f"{address} key {value}, value {desired}" if value else f"{address}"
        return f"{name:20} begins: {told}"
    if kind == END:
        return f"{name:20} ends: {'ABSENT' if address == 0 else address}"
    if kind == AWAIT:
        return f"{name:20} waits until {value}"
    if kind == BYTE:
        told = explorer.segment.names[address]
        return f"{name:20} {value}s the {told}{'' if answer in (None, True) else ': it is held'}"
    if not isinstance(answer, int) and kind not in (STORE, PUT, LOCK, TRY):
        return f"{name:20} {KIND_NAMES[kind]} {address}"
    segment = explorer.segment
    told = f"{name:20} {KIND_NAMES[kind]} {segment.names[address]}"
    if kind in (STORE, PUT):
        return f"{told}: {word(segment, address, value)}"
    if kind == CAS:
        return f"{told} to {word(segment, address, desired)}: {'done' if answer else 'it differs'}"
    if kind in (LOCK, TRY) and answer is None:
        return f"{told}: it is held"
    return f"{told}: {word(segment, address, answer)}"


def word(segment, address, value):
    """A value of a shared word, in words."""
    sort = segment.sorts[address]
    by = f", held by {owner_of(value)}" if owner_of(value) else ""
    if sort == "bucket":
        level = level_plus1(value)
        return f"{f'level {level - 1}' if level else 'no bucket'}, version {version_of(value)}{by}"
    if sort in ("element", "line"):
        return f"{STATE_NAMES[state_of(value)]}, version {version_of(value)}{by}"
    if sort in ("table", "credits"):
        return f"{value >> PAYLOAD_SHIFT}{by}"
    if sort == "depot":
        head, count, credit = depot_parts(value)
        return f"{count} elements from {head} on, {credit} credits{by}"
    if sort == "block":
        state, fresh, free, head = block_parts(value)
        states = ("HOLE", "READY", "RELEASING")
        return f"{states[state]}, fresh from {fresh}, {free} free from {head}{by}"
    if sort == "index":
        if value >= LINK_BASE:
            return f"link to line {value - LINK_BASE}"
        return f"element {value}" if value else "empty"
    return str(value)


def play(name):
    """Explore a mutant or a scene: the story of its violation, or the number of its states."""
    if name in MUTANTS:
        explorer = Explorer(SHORT[MUTANTS[name][0]], [name])
    else:
        explorer = Explorer((SHORT | LONG)[name])
    try:
        return f"{explorer.run()} states, no counterexample"
    except Violation as violation:
        return tell(violation)


if __name__ == "__main__":
    print(play(" ".join(sys.argv[1:])))
