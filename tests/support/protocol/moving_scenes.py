"""Scenes of moving.py, what must be so in every state and at the end, and the mutants."""

import functools
from dataclasses import dataclass

from support.protocol import meeting_scenes
from support.protocol.meeting_scenes import GONE
from support.protocol.moving import (
    CHILD,
    FREE,
    LIVE,
    NONE,
    OK,
    PARENT,
    READABLE,
    SLOTS,
    THERE,
    UNKNOWN,
    Table,
    close_gap,
    covers,
    delete,
    insert,
    look_up,
    recover,
    replace,
    section,
    split,
    state_of,
    update,
)
from support.protocol.oracle import Violation

KEYS = (1, 2, 3)


@dataclass(frozen=True)
class Scene:
    """Programs (function, further arguments), by their numbers; the entries of the parent's slots;
    the number of buckets that the table word says, which is a hint; which programs may die, and how
    many do."""

    programs: tuple
    entries: tuple
    count: int
    mortal: frozenset
    deaths: int
    cell: type = Table


def changes_of(function, *arguments):
    """The changes of the map that a program may make, in this order: (key, before, after). Before
    may be anything that is there (THERE)."""
    if function in (update, section):
        key, value = arguments
        return ((key, THERE, value),)
    if function is insert:
        key, value = arguments
        return ((key, NONE, value),)
    if function is delete:
        return ((arguments[0], THERE, NONE),)
    if function is replace:
        old, key, value = arguments
        return ((old, THERE, NONE), (key, NONE, value))
    return ()


class Explorer(meeting_scenes.Explorer):
    """The tuple of the memory continues with two numbers for each program: which values its key has
    had since the program began, and how many changes the program has made."""

    def __init__(self, scene, without=()):
        super().__init__(scene, without)
        self.words = len(self.cell.names)
        self.keys = [
            arguments[0] if function in (look_up, update, section, insert, delete) else None
            for function, *arguments in scene.programs
        ]
        self.changes = [changes_of(*program) for program in scene.programs]
        self.view = functools.cache(self.view)

    def first_memory(self):
        memory = [0] * self.words
        for word in self.cell.result:
            memory[word] = None
        memory[self.cell.count] = self.scene.count
        memory[self.cell.header[PARENT]], memory[self.cell.header[CHILD]] = (1, 0), (0, 0)
        for at in (PARENT, CHILD):
            for slot in range(SLOTS):
                memory[self.cell.word[at][slot]] = (FREE, 0, 0)
        for slot, entry in enumerate(self.scene.entries):
            if entry is not None:
                memory[self.cell.word[PARENT][slot]] = (LIVE, 0, 1)
                memory[self.cell.key[PARENT][slot]], memory[self.cell.value[PARENT][slot]] = entry
        now = self.view(tuple(memory))
        return (*memory, *((self.seen_of(me, now), 0) for me in range(len(self.keys))))

    def seen_of(self, me, now):
        return frozenset() if self.keys[me] is None else frozenset((now[self.keys[me]],))

    def view(self, memory):
        """The map that the memory represents at this instant: the value of each key, or NONE."""
        return {key: self.value_of(memory, key) for key in KEYS}

    def value_of(self, memory, key):
        """A hit counts in any bucket; a miss counts only in the bucket that covers the key."""
        answers = set()
        for at in (PARENT, CHILD):
            found = {
                memory[self.cell.value[at][slot]]
                for slot in range(SLOTS)
                if state_of(memory[self.cell.word[at][slot]]) in READABLE
                and memory[self.cell.key[at][slot]] == key
            }
            if not found and covers(memory[self.cell.header[at]][0], at, key):
                found = {NONE}
            answers |= found
        if len(answers) != 1:
            raise Violation(f"two places differ about key {key}: {sorted(map(str, answers))}")
        return answers.pop()

    def followers(self, memory, places):
        before = self.view(memory[: self.words])
        for after, on in super().followers(memory, places):
            moved = [me for me, place in enumerate(places) if on[me] != place]
            yield self.judge(before, memory, after, moved, on), on

    def judge(self, before, memory, after, moved, on):
        """The memory with what is known of each program; a Violation if the step was wrong."""
        now = self.view(after[: self.words])
        ghosts = list(after[self.words :])
        for me, (seen, made) in enumerate(ghosts):
            begun = on[me] != self.automata[me].start
            ghosts[me] = (seen | self.seen_of(me, now) if begun else self.seen_of(me, now), made)
        if now != before:
            (me,) = moved
            seen, made = ghosts[me]
            if not self.may_change(me, made, before, now):
                raise Violation("a step changed the map that must not")
            ghosts[me] = (seen, made + 1)
        for me in moved:
            outcome = after[self.cell.result[me]]
            if outcome != memory[self.cell.result[me]]:
                self.judge_outcome(me, outcome, *ghosts[me])
        return (*after[: self.words], *ghosts)

    def may_change(self, me, made, before, now):
        if made == len(self.changes[me]):
            return False
        key, old, new = self.changes[me][made]
        fits = before[key] != NONE if old == THERE else before[key] == old
        return fits and now == before | {key: new}

    def judge_outcome(self, me, outcome, seen, made):
        """An answer was right at some instant between the operation's beginning and its end."""
        if outcome == OK:
            right = made == len(self.changes[me])
        elif self.scene.programs[me][0] is replace:
            right = made < len(self.changes[me])
        elif outcome == THERE and self.keys[me] is not None:
            right = bool(seen - {NONE}) and not made
        elif self.scene.programs[me][0] is look_up and outcome != UNKNOWN:
            right = outcome in seen
        elif outcome == NONE:
            right = NONE in seen and not made
        else:
            right = not made
        if not right:
            raise Violation(f"{outcome} was never right")

    def judge_end(self, memory, places):
        """Only contexts that are dead and not recovered hold anything; no entry stands twice."""
        cell = self.cell
        lost = {
            me + 1
            for me, place in enumerate(places)
            if place == GONE and not memory[cell.recovered[me]]
        }
        for me, (function, *arguments) in enumerate(self.scene.programs):
            if function is recover and arguments[0] + 1 in lost and places[me] != GONE:
                raise Violation("a dead context is not recovered")
        owners = [memory[word] for word in cell.lock]
        owners += [memory[word][1] for words in cell.word for word in words]
        if not {owner for owner in owners if owner} <= lost:
            raise Violation("something is held by no living context")
        keys = [
            memory[cell.key[at][slot]]
            for at in (PARENT, CHILD)
            for slot in range(SLOTS)
            if state_of(memory[cell.word[at][slot]]) != FREE
        ]
        if len(set(keys)) < len(keys) and not lost:
            raise Violation("an entry stands in two places")


def scene(*programs, entries=((1, 5), None), count=1, mortal=(), deaths=0):
    return Scene(programs, entries, count, frozenset(mortal), deaths)


READ = (look_up, 1)
UPDATE = (update, 1, 7)
SECTION = (section, 1, 7)
SPLIT = (split,)
TWO = ((1, 5), (2, 6))
SCENES = {
    "an entry is read and updated": scene(READ, UPDATE),
    "two writers update an entry": scene(READ, UPDATE, (update, 1, 8)),
    "a slot is used again by another key": scene(READ, (replace, 1, 3, 9)),
    "a slot is used again by the same key": scene(READ, (replace, 1, 1, 9)),
    "a section's entry is deleted, and its slot is used again": scene(
        READ, SECTION, (replace, 1, 3, 9)
    ),
    "an update meets the reuse of its slot": scene(UPDATE, (replace, 1, 3, 9), (look_up, 3)),
    "an update meets the deletion of its key": scene(UPDATE, (delete, 1), READ),
    "a split moves an entry that is read": scene(READ, SPLIT, entries=TWO),
    "a split meets an update": scene(UPDATE, SPLIT),
    "a split moves an entry that is updated": scene(READ, UPDATE, SPLIT, entries=TWO),
    "a split moves an entry that a section wants": scene(READ, SECTION, SPLIT),
    "a split moves an entry that is deleted": scene(READ, (delete, 1), SPLIT),
    "a split moves an entry that is read early in the child": scene(READ, SPLIT, count=2),
    "a split moves an entry that is updated early in the child": scene(
        READ, UPDATE, SPLIT, count=2
    ),
    "a split meets an insertion": scene((look_up, 3), (insert, 3, 9), SPLIT),
    "a split meets the reuse of a slot": scene(READ, (replace, 1, 3, 9), SPLIT),
    "a splitter dies beside a reader": scene(
        READ, SPLIT, (recover, 1), (recover, 1, 2), entries=TWO, mortal=[1, 2], deaths=2
    ),
    "a splitter dies beside an update": scene(SPLIT, (recover, 0), UPDATE, mortal=[0], deaths=1),
    "a splitter dies beside an update in the child": scene(
        SPLIT, (recover, 0), UPDATE, count=2, mortal=[0], deaths=1
    ),
    "a splitter and its recoverer die beside an update": scene(
        SPLIT, (recover, 0), (recover, 0, 1), UPDATE, mortal=[0, 1], deaths=2
    ),
    "a splitter dies beside an update and a reader": scene(
        SPLIT, (recover, 0), UPDATE, READ, mortal=[0], deaths=1
    ),
    "a splitter dies beside an update and a reader of the child": scene(
        SPLIT, (recover, 0), UPDATE, READ, count=2, mortal=[0], deaths=1
    ),
    "a splitter dies beside a section": scene(SECTION, SPLIT, (recover, 1), mortal=[1], deaths=1),
    "a splitter dies beside a deletion": scene(
        READ, SPLIT, (recover, 1), (delete, 1), mortal=[1], deaths=1
    ),
    "an updater dies beside a split": scene(UPDATE, (recover, 0), SPLIT, mortal=[0], deaths=1),
    "an updater dies beside a split and a reader": scene(
        UPDATE, (recover, 0), SPLIT, READ, mortal=[0], deaths=1
    ),
    "a section dies beside a split": scene(SECTION, (recover, 0), SPLIT, mortal=[0], deaths=1),
    "an inserter dies beside a split": scene(
        (look_up, 3), (insert, 3, 9), (recover, 1), SPLIT, mortal=[1], deaths=1
    ),
    "a gap is closed beside a reader": scene(READ, (close_gap,), entries=(None, (1, 5))),
    "a gap is closed beside an update": scene(READ, UPDATE, (close_gap,), entries=(None, (1, 5))),
    "a closer of a gap dies": scene(
        READ,
        (close_gap,),
        (recover, 1),
        (recover, 1, 2),
        entries=(None, (1, 5)),
        mortal=[1, 2],
        deaths=2,
    ),
    "a closer of a gap dies beside an update": scene(
        UPDATE, (close_gap,), (recover, 1), entries=(None, (1, 5)), mortal=[1], deaths=1
    ),
    "a closer of a gap dies beside an update and a reader": scene(
        UPDATE, (close_gap,), (recover, 1), READ, entries=(None, (1, 5)), mortal=[1], deaths=1
    ),
}

# Each step that can be left out, the scene that shows the mistake, and what then goes wrong.
DIFFER = "two places differ about key 1"
WRONG = "was never right"
HELD = "something is held by no living context"
MUTANTS = {
    "the version of a slot survives its reuse": ("a slot is used again by another key", WRONG),
    "the key is compared under the word": ("a slot is used again by another key", WRONG),
    "the word is loaded again after the value": ("a slot is used again by another key", WRONG),
    "a miss is validated by the bucket's version": ("a gap is closed beside a reader", WRONG),
    "a context notes the entry before it takes it": ("an updater dies beside a split", HELD),
    "an entry that is held stays where it is": ("a split meets an update", DIFFER),
    "a move begins with a CAS on the entry's word": ("a split meets an update", DIFFER),
    "a place is filled before its word says so": (
        "a split moves an entry that is read early in the child",
        DIFFER,
    ),
    "the new place is held until the old one is cleared": (
        "a split moves an entry that is updated early in the child",
        DIFFER,
    ),
    "the levels change before an old place is cleared": (
        "a split moves an entry that is read",
        DIFFER,
    ),
    "the version rises before an old place is cleared": ("a gap is closed beside a reader", WRONG),
    "a split that counts is finished": ("a splitter dies beside a reader", DIFFER),
    "an undone split clears the child first": (
        "a splitter dies beside an update in the child",
        DIFFER,
    ),
    "recovery leaves an entry in one place": ("a closer of a gap dies", "in two places"),
}
