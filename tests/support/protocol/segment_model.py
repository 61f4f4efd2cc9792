"""The modelled segment: its words, how they are packed, and their names.

The real layout (cython/segment/layout.pxd) made small: a bucket or line has two or three slots
instead of seven, a context has the fields that recovery reads, and each 64-bit word is a small
number. Memory is a tuple of such numbers; an address is a place in it. As in the segment, the low
bits of bucket, line, element, table, depot, credit and block words name the context that holds the
word (0: none), so one step takes a lock and says who holds it.
"""

from dataclasses import dataclass, field

# ---- lock words of every kind: the low four bits name the holder ----

OWNER_MASK = 15
PAYLOAD_SHIFT = 4


def owner_of(word):
    """The context that holds a lock word, or 0."""
    return word & OWNER_MASK


def released(word):
    """The word without its holder."""
    return word & ~OWNER_MASK


def taken(word, me):
    """The word, held by context me."""
    return released(word) | me


# ---- bucket headers: level + 1 (0: no such bucket), and a version ----

LEVEL_MASK = 7 << PAYLOAD_SHIFT
VERSION_ONE = 1 << 7


def level_plus1(header):
    return (header & LEVEL_MASK) >> PAYLOAD_SHIFT


def with_level(header, level):
    return header & ~LEVEL_MASK | level << PAYLOAD_SHIFT


def covers(level, bucket, key_hash):
    """Whether a bucket at this level (plus one) holds a hash; at level 0 there is no bucket."""
    return level > 0 and (key_hash ^ bucket) & ((1 << (level - 1)) - 1) == 0


# ---- element and line headers: a state, and a version raised by every change of state ----

STATE_NAMES = ("FREE", "ALLOC", "LIVE", "UPD", "ULOCK", "LOCKED", "DEAD", "RETIRED")
FREE, ALLOC, LIVE, UPD, ULOCK, LOCKED, DEAD, RETIRED = range(8)
READABLE = (LIVE, UPD, ULOCK, LOCKED)


def state_of(header):
    return header >> PAYLOAD_SHIFT & 7


def version_of(header):
    """The version in the header of a bucket, element or line."""
    return header // VERSION_ONE


# ---- depots, blocks ----

HOLE, READY, RELEASING = range(3)
LINK_BASE = 64  # an index at or above it links to line index - LINK_BASE


def depot_word(head, count, credit):
    return head << 12 | credit << 8 | count << 4


def depot_parts(word):
    """(head, count, credit) of a depot word."""
    return word >> 12, word >> 4 & 15, word >> 8 & 15


def block_word(state, fresh, free, head):
    return head << 14 | free << 10 | fresh << 6 | state << 4


def block_parts(word):
    """(state, fresh, free, head) of a block word."""
    return word >> 4 & 3, word >> 6 & 15, word >> 10 & 15, word >> 14


# ---- a context's word target: the element; and, in a journal, the lead and what is to happen ----

JOURNAL_REMOVES = 1 << 8
JOURNAL_COMMITTED = 1 << 9


def journal_note(index, lead, removes):
    return index | lead << 4 | (JOURNAL_REMOVES if removes else 0)


CONTEXT_FIELDS = (
    "owner",
    "activity",
    "operation",
    "bucket",
    "element",
    "target",
    "line",
    "line_stash",
    "child",
    "depot",
    "block",
    "list_head",
    "list_tail",
    "list_count",
    "credit_moving",
    "credit_after",
)
INSERT, DELETE, SPLIT, MERGE = range(1, 5)
GIVEN = 8  # in list_count: the list goes from the depot to the block


@dataclass(eq=False)
class Segment:
    """The sizes of a modelled segment, the addresses that follow, and the steps left out of it.

    ``without`` names the steps that a mutant leaves out or takes in the wrong order; the programs
    ask ``keeps("...")`` before each step that some mutant lacks.
    """

    slots: int = 2
    buckets: int = 1
    lines: int = 0
    elements: int = 3
    block_capacity: int = 16
    depots: int = 1
    contexts: int = 3
    value_words: int = 2
    processes: int = 0  # processes that have slots (claiming.py)
    pins: int = 0  # pins of the one object (forking.py)
    timed: bool = False  # values are deadlines (sweeping.py)
    waiters: int = 0  # processes that may wait for a change (waiting.py)
    listens: bool = False  # an event loop waits, and a thread listens for it (listening.py)
    cell: str = ""  # "lock", "permits", "rwlock" or "event": the one cell (holding.py)
    permits_at_first: int = 1
    held_at_first: bool = False  # context 1 holds the lock
    looks_early: bool = False  # writers look for waiters before their commit is seen
    journal: bool = False  # several keys may change in one step (journaling.py)
    keeps_memory: bool = False  # the kernel takes no memory back: locked, and no descriptor
    hashes: dict = field(default_factory=dict)
    without: frozenset = frozenset()

    def __post_init__(self):
        self.names = []  # the name of each address
        self.sorts = []  # the kind of each word, for story.py
        self.memory_of = {}  # address -> the word that says whether its block has memory
        self.table = self._word("table", "table")
        self.splits = self._word("splits")
        self.credits = self._word("header credits", "credits")
        self.depot = [self._word(f"depot {i}", "depot") for i in range(self.depots)]
        self.block_count = self.elements // self.block_capacity + 1
        self.block = [self._word(f"block {i}", "block") for i in range(self.block_count)]
        self.present = [self._word(f"memory of block {i}") for i in range(self.block_count)]
        self.line_block = self._word("line block", "block")
        self.bucket = [self._line(f"bucket {i}", "bucket") for i in range(self.buckets)]
        self.line = [0, *(self._line(f"line {i}", "line") for i in range(1, self.lines + 1))]
        self.element = [0, *(self._element(i) for i in range(1, self.elements + 1))]
        self.context = [0, *(self._context(i) for i in range(1, self.contexts + 1))]
        self.kernel_lock = [self._word(f"kernel's lock {i}") for i in range(self.contexts + 1)]
        self.used, self.byte, self.recoverer = (
            [0, *(self._word(f"{name} of process {i}") for i in range(1, self.processes + 1))]
            for name in ("used", "byte", "recoverer")
        )
        if self.timed:
            self.clock, self.rest = self._word("clock"), self._word("rest", "table")
        if self.pins:
            self._object()
        self._bells()
        if self.cell:
            self._cell()
        self.link_slot = self.slots - 1

    def _word(self, name, sort="number"):
        self.names.append(name)
        self.sorts.append(sort)
        return len(self.names) - 1

    def _line(self, name, sort):
        header = self._word(f"{name} header", sort)
        for part in ("tag", "index"):
            for slot in range(self.slots):
                self._word(f"{name} {part} {slot}", part)
        return header

    def _element(self, index):
        header = self._word(f"element {index} header", "element")
        self._word(f"element {index} key")
        for word in range(self.value_words):
            self._word(f"element {index} value {word}")
        for address in range(header, len(self.names)):
            self.memory_of[address] = self.present[index // self.block_capacity]
        return header

    def _object(self):
        """An object that one entry refers to, its pins, and each context's name for it."""
        self.refers = self._word("the entry's reference")
        self.thing = self._word("object header", "element")
        self.bytes_there = self._word("memory of the object")
        self.bytes_of_thing = self._word("object bytes")
        self.memory_of[self.bytes_of_thing] = self.bytes_there
        self.pin_owner = [self._word(f"pin {i} owner") for i in range(self.pins)]
        self.pin_ref = [self._word(f"pin {i} reference") for i in range(self.pins)]
        self.of_name = [0, *(self._word(f"context {i} name") for i in range(1, self.contexts + 1))]

    def _bells(self):
        """The bell of the only class of keys, the waiters' words, and the kernel's queue of
        sleepers."""
        self.waits, self.asleep, self.sleepers = [], [], {}
        if self.waiters:
            self.waited, self.bell = self._word("waited"), self._word("bell")
            self.waits = [self._word(f"waits of process {i}") for i in range(self.waiters)]
            self.asleep = [self._word(f"sleep of process {i}") for i in range(self.waiters)]
            self.saw = [0, *(self._word(f"context {i} saw") for i in range(1, self.contexts + 1))]
            self.sleepers[self.bell] = self.asleep
        if self.listens:
            self.any, self.thread_asleep = self._word("the any bell"), self._word("its sleep")
            self.seen, self.loop_told = (
                self._word("the bell as the loop saw it"),
                self._word("told"),
            )
            self.loop_mutex = self._word("the mutex", "table")
            self.sleepers[self.any] = [self.thread_asleep]

    def _cell(self):
        """A cell, what contexts say of it, and what its lock protects."""
        self.mutex, self.permits, self.flag = map(self._word, ("mutex", "permits", "flag"))
        self.protected, self.told, self.orphaned, self.alarm = map(
            self._word, ("protected", "told", "orphaned", "alarm")
        )
        self.names_cell, self.shares, self.shares_next = (
            [0, *(self._word(f"context {i} {name}") for i in range(1, self.contexts + 1))]
            for name in ("cell", "shares", "shares next")
        )

    def _context(self, index):
        first = len(self.names)
        for name in CONTEXT_FIELDS:
            self._word(f"context {index} {name}")
        for word in range(self.value_words):
            self._word(f"context {index} redo {word}")
        return first

    def header_after(self, before, state, me=0):
        """The header that follows before: next version, this state, held by me (0: not held)."""
        raised = 1 if self.keeps("every change of state raises the version") else 0
        return (version_of(before) + raised) * VERSION_ONE | state << PAYLOAD_SHIFT | me

    def keeps(self, step):
        """Whether to take this step as designed; a mutant leaves it out."""
        return step not in self.without

    # Addresses. A line stands for a bucket or an overflow line: the address of its header.

    def tag(self, line, slot):
        return line + 1 + slot

    def index(self, line, slot):
        return line + 1 + self.slots + slot

    def line_next(self, line):
        """The address of the word behind the header, which links the free list of lines."""
        return self.line[line] + 1

    def key(self, index):
        return self.element[index] + 1

    next_free = key  # the key's word links free elements

    def value(self, index, word):
        return self.element[index] + 2 + word

    def of(self, context, name):
        """The address of a context's field."""
        return self.context[context] + CONTEXT_FIELDS.index(name)

    def redo(self, context, word):
        return self.context[context] + len(CONTEXT_FIELDS) + word
