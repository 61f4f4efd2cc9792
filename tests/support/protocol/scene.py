"""A scene: a small map, a few programs that use it, and which of them may die.

    Scene([reads(("lookup", 1)), writes(1, ("delete", 1))], hashes={1: 0}, entries={1: 5})

is a map in which key 1, whose hash is 0, has the value 5, with one reader that looks key 1 up and
one writer, running as context 1, that deletes it.
"""

from dataclasses import dataclass, field

from support.protocol.claiming import (
    CLAIM_OF_FALLEN,
    RECOVERED_ONE,
    claim_of,
    inherit,
    join,
    rescue,
)
from support.protocol.forking import PIN_OF_PARENT, REF, fork, grow_up, let_go, look, take_away
from support.protocol.holding import (
    PERMIT,
    depose,
    give_permit,
    hold,
    let_lock_go,
    read,
    ring_alarm,
    set_flag,
    take_permit,
    wait_for_flag,
    write,
)
from support.protocol.journaling import several, several_seen
from support.protocol.listening import await_for, listen
from support.protocol.reading import contains, lookup, parent_of
from support.protocol.recovering import recover
from support.protocol.releasing import announce, block_release
from support.protocol.resizing import catch_up, clear, grow, shrink
from support.protocol.sections import section, section_abandoned, section_removed
from support.protocol.segment_model import (
    LINK_BASE,
    LIVE,
    PAYLOAD_SHIFT,
    READY,
    VERSION_ONE,
    Segment,
    block_word,
    covers,
    depot_word,
    with_level,
)
from support.protocol.supply import depot_trim
from support.protocol.sweeping import expire, room, tick
from support.protocol.waiting import change, wait_for
from support.protocol.walking import walk
from support.protocol.writing import add, delete, update


def insert(m, me, key, value):
    return update(m, me, key, value, "insert")


def replace(m, me, key, value):
    return update(m, me, key, value, "replace")


OF_WAITERS = {"await": await_for, "wait for": wait_for}
OF_READERS = {
    "contains": contains,
    "listen": listen,
    "lookup": lookup,
    "recover": recover,
    "walk": walk,
}
OF_PROCESSES = {"inherit": inherit, "join": join, "rescue": rescue}
OF_WRITERS = {
    "abandon": section_abandoned,
    "add": add,
    "catch up": catch_up,
    "change": change,
    "clear": clear,
    "delete": delete,
    "expire": expire,
    "fork": fork,
    "give permit": give_permit,
    "grow": grow,
    "grow up": grow_up,
    "hold": hold,
    "insert": insert,
    "let go": let_go,
    "depose": depose,
    "let lock go": let_lock_go,
    "look": look,
    "read": read,
    "release": block_release,
    "remove": section_removed,
    "replace": replace,
    "ring alarm": ring_alarm,
    "room": room,
    "section": section,
    "seen together": several_seen,
    "set flag": set_flag,
    "several": several,
    "shrink": shrink,
    "take away": take_away,
    "take permit": take_permit,
    "tick": tick,
    "trim": depot_trim,
    "update": update,
    "wait for flag": wait_for_flag,
    "write": write,
}


@dataclass(frozen=True)
class Program:
    """A program: its context (0: none), its operations, and whether it may die."""

    name: str
    runs_as: int
    operations: tuple
    mortal: bool = False
    reader: bool = False
    announces: bool = False  # raises its activity, which a releaser of memory loads
    process: int = 0  # the process slot that it has, or will have (claiming.py)
    comes: bool = False  # it has no slot at first
    waiter: int = 0  # which of the waiting processes it is (waiting.py)
    contexts: int = 1  # it has: runs_as, and those that follow (journaling.py)

    def make(self, m):
        """The operations one after the other, as one generator."""
        for at in range(len(self.operations)):
            operation = self.operations[at]
            announced = self.announces and m.keeps("an operation announces that it is under way")
            if announced:
                yield from announce(m, self.runs_as)
            if operation[0] in OF_PROCESSES:
                yield from OF_PROCESSES[operation[0]](m, self, *operation[1:])
            elif operation[0] in OF_WAITERS:
                yield from OF_WAITERS[operation[0]](m, self.waiter, *operation[1:])
            elif operation[0] in OF_READERS:
                yield from OF_READERS[operation[0]](m, *operation[1:])
            else:
                yield from OF_WRITERS[operation[0]](m, self.runs_as, *operation[1:])
            if announced:
                yield from announce(m, self.runs_as)


def reads(*operations):
    """A reader without a context, like a handle opened for reading."""
    return Program("reader", 0, operations, reader=True)


def reads_as(context, *operations):
    """A reader with a context, that announces its operations."""
    return Program(f"reader {context}", context, operations, reader=True, announces=True)


def writes(context, *operations, mortal=False):
    return Program(f"writer {context}", context, operations, mortal)


def writes_several(first, *operations, contexts=2, mortal=False):
    """A writer that has several contexts, for sections that end in one step."""
    return Program(f"writer {first}", first, operations, mortal, contexts=contexts)


def waits(number, key, value, mortal=False):
    """A process that waits until key has this value."""
    return Program(f"waiter {number}", 0, (("wait for", key, value),), mortal, waiter=number)


def awaits_in_loop(number, key, value):
    """An event loop that waits until key has this value, and the thread that listens for it."""
    loop = Program(f"loop {number}", 0, (("await", key, value),), waiter=number)
    return loop, Program("thread", 0, (("listen",),))


def recovers(subject, mortal=False, contexts=1):
    return Program(f"recoverer of {subject}", 0, (("recover", subject, contexts),), mortal)


def is_process(number, *operations, context=0, mortal=False):
    """A process with a slot, and with a context if it writes."""
    return Program(f"process {number}", context, operations, mortal, process=number)


def comes_as(number, *operations, context=0, mortal=False):
    """A process that has no slot yet, nor a context."""
    return Program(f"newcomer {number}", context, operations, mortal, process=number, comes=True)


def survives(context, subject, *operations):
    """A writer that waits for a death and recovers the dead; without a death it does nothing."""
    return Program(f"survivor {context}", context, (("recover", subject), *operations))


@dataclass(eq=False)
class Scene:
    """The first state of the map, and the programs. sizes are those of Segment."""

    programs: list
    hashes: dict
    entries: dict = field(default_factory=dict)
    count: int = 1  # buckets at first
    gaps: tuple = ()  # buckets below count that are not there, nor any split off them
    deaths: int = 0  # at most this many
    parked: tuple = ()  # free elements in each depot; by default all are in the first
    credited: tuple = ()  # credits in each depot; by default as many
    sizes: dict = field(default_factory=dict)
    clock: int = 0  # the time at first
    fallen: dict = field(default_factory=dict)  # {dead process: whom it was recovering}

    def segment(self, without=()):
        """A modelled segment of this scene's size, less the steps that a mutant leaves out."""
        contexts = max([1, *(one.runs_as + one.contexts - 1 for one in self.programs)])
        return Segment(
            hashes=self.hashes, without=frozenset(without), contexts=contexts, **self.sizes
        )

    def furnish(self, m):
        """The first memory: entries in chains, free elements in depots and blocks."""
        memory = [0] * len(m.names)
        keys = list(self.entries)
        for index, key in enumerate(keys, 1):
            memory[m.element[index]] = m.header_after(2 * VERSION_ONE, LIVE)  # as if taken once
            memory[m.key(index)] = key
            for word in range(m.value_words):
                memory[m.value(index, word)] = self.entries[key]
        lines_used = 0
        for number in range(self.count):
            level = 0 if number in self.gaps else self.level_plus1(number)
            memory[m.bucket[number]] = with_level(0, level)
            chain = [i for i, key in enumerate(keys, 1) if covers(level, number, m.hashes[key])]
            tags = {i: m.hashes[keys[i - 1]] for i in chain}
            lines_used = furnish_chain(m, memory, m.bucket[number], chain, tags, lines_used)
        memory[m.table] = self.count << PAYLOAD_SHIFT
        memory[m.line_block] = block_word(READY, lines_used + 1, 0, 0)
        self.furnish_supply(m, memory, len(keys))
        for context in range(1, m.contexts + 1):
            memory[m.of(context, "owner")] = 1
        self.furnish_processes(m, memory)
        if m.timed:
            memory[m.clock] = self.clock
        if m.cell:
            memory[m.permits] = m.permits_at_first * PERMIT
            memory[m.mutex] = memory[m.names_cell[1]] = int(m.held_at_first)
        return tuple(memory)

    def furnish_processes(self, m, memory):
        """Mark process slots as used, lock the bytes of living processes, and set the pins."""
        for number, program in enumerate(self.programs):
            if program.process and not program.comes:
                memory[m.used[program.process]] = claim_of(program)
                memory[m.byte[program.process]] = 1 << number
            if program.process and program.runs_as:
                memory[m.of(program.runs_as, "owner")] = 0 if program.comes else program.process
        for process, subject in self.fallen.items():
            memory[m.used[process]] = CLAIM_OF_FALLEN
            if subject:
                memory[m.recoverer[subject]] = RECOVERED_ONE + process
        if m.pins:
            memory[m.refers] = memory[m.bytes_there] = 1
            memory[m.thing] = m.header_after(0, LIVE)
            memory[m.pin_owner[PIN_OF_PARENT]] = 1
            memory[m.pin_ref[PIN_OF_PARENT]] = REF

    def level_plus1(self, number):
        """The level, plus one, of a bucket that is there: as deep as its splits go before a gap."""
        level = level_of(self.count, number)
        missing = [gap for gap in self.gaps if number == parent_of(gap)]
        return min([level, *(gap.bit_length() - 1 for gap in missing)]) + 1

    def furnish_supply(self, m, memory, used):
        """Put free elements and credits in the depots; the rest is in blocks and the header."""
        parked = self.parked or (m.elements - used,) + (0,) * (m.depots - 1)
        credited = self.credited or parked
        following = used + 1
        for depot in range(m.depots):
            mine = range(following, following + parked[depot])
            for index in mine:
                memory[m.next_free(index)] = index + 1 if index + 1 in mine else 0
            head = mine[0] if mine else 0
            memory[m.depot[depot]] = depot_word(head, len(mine), credited[depot])
            following += parked[depot]
        memory[m.credits] = (m.elements - used - sum(credited)) << PAYLOAD_SHIFT
        for block in range(m.block_count):
            first = block * m.block_capacity
            fresh = min(max(following - first, block == 0), m.block_capacity)
            memory[m.block[block]] = block_word(READY, max(0, fresh), 0, 0)
            memory[m.present[block]] = 1


def level_of(count, number):
    """The level that linear hashing gives to a bucket when there are count buckets."""
    level = 0
    while number + (1 << level) < count or 1 << level <= number:
        level += 1
    return level


def furnish_chain(m, memory, line, chain, tags, lines_used):
    """Fill a bucket and, if need be, lines behind it; return the number of lines in use."""
    while len(chain) > m.slots:
        lines_used += 1
        for slot in range(m.link_slot):
            memory[m.index(line, slot)] = chain[slot]
            memory[m.tag(line, slot)] = tags[chain[slot]]
        memory[m.index(line, m.link_slot)] = LINK_BASE + lines_used
        memory[m.tag(line, m.link_slot)] = tags[chain[m.link_slot]]
        chain, line = chain[m.link_slot :], m.line[lines_used]
        memory[line] = m.header_after(0, LIVE)
    for slot, index in enumerate(chain):
        memory[m.index(line, slot)] = index
        memory[m.tag(line, slot)] = tags[index]
    return lines_used
