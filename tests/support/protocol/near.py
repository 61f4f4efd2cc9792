"""A near cache: a host, its server, and the connection between them (shmrhash/_near, near.pxi).

There is one key. Each write of it makes its next version; a flush makes a version without a value.
The memory of the host has the node's line, a word that is read and changed as a whole, and for each
epoch the entry at the key's place. Time is a word that a program increases.

The server executes one command at a time. It tells its clients of changes at the end of a cycle of
its event loop, and of a flush at once. The answer to a command overtakes the changes that are told
in the same cycle. The server may execute a question in the cycle in which the question was sent; no
known server does, and with `strict` it executes the question in a later cycle. A connection
delivers its messages in order and with any delay, until it is cut.

Here a fetch stores its answer even if there is no lease; the library does not, and with `leased`
neither does the model. Readers need the lease; no promise to them needs it when an answer is
stored. A claim is one step here: computing.py models how a claim is made, waited for and recovered.
"""

from support.protocol.automaton import awaits, cas, load, store
from support.protocol.oracle import Violation
from support.protocol.words import Words

ACT = 19  # a step of the server, or of a locked section: a method of Host changes the memory
MAX_STALE = 1
PONG, KEY, ALL, END = "pong", "key", "all", "end"
EMPTY = 0
OLD = "a value was read that was replaced longer ago than max_stale"
ERA = "a value was read that was fetched before the connection was made"
BEHIND = "a value was read that a write of this host had replaced"


def act(name, *arguments):
    """One step, which calls the method NAME of Host; if Host has a method may_NAME, the program
    waits until that holds. The answer: what the method returns."""
    return ACT, -1, name, arguments


class Host(Words):
    """The words of the host, its server and their connections. without: the steps that a mutant
    leaves out. connections: how many trackers have a connection, at once or one after another."""

    def __init__(
        self,
        programs,
        without=(),
        *,
        epochs=3,
        writes=1,
        connections=1,
        strict=False,
        leased=False,
    ):
        super().__init__(without)
        self.strict = strict
        self.leased = leased
        self.asleep = [self._word(f"sleep of {me}") for me in range(programs)]
        self.now = self._word("clock")
        # The line: (epoch, valid until, term, number of the connection that it began with).
        self.line = self._word("line")
        self.turn = self._word("term of the office")
        self.epochs = self._word("epochs so far")
        self.entry = [self._word(f"entry under epoch {at}") for at in range(epochs)]
        self.returned = self._word("version of the last write through the cache that returned")
        self.version = self._word("version at the server")
        self.executed = [self._word(f"execution of version {at}") for at in range(writes + 2)]
        self.untold = self._word("whether a change of this cycle is to be told")
        self.moved = self._word("whether the line is that of a node that nobody watches")
        self.made = self._word("connections made so far")
        self.open = [self._word(f"connection {at}") for at in range(connections)]
        self.asked = [self._word(f"questions on {at}") for at in range(connections)]
        self.answers = [
            self._word(f"what {at} gets at the cycle's end") for at in range(connections)
        ]
        self.stream = [self._word(f"what {at} has got") for at in range(connections)]

    # The clock, and the reader's law.

    def tick(self, memory):
        memory[self.now] += 1

    def may_begin_read(self, memory):
        return memory[self.now] >= MAX_STALE  # before that moment nothing can be too old

    def begin_read(self, memory):
        """Return when the read began, and what the host's own writes had replaced by then."""
        return memory[self.now], memory[self.returned]

    def look(self, memory, line, began):
        """Load the entry under a line's epoch; return the value, if there is one."""
        entry = memory[self.entry[line[0]]]
        if entry == EMPTY or entry[0] != "value":
            return None
        if began is not None:
            self.judge(memory, entry, line, began)
        return entry

    def judge(self, memory, value, line, began):
        """Check that a read that began then may return this value, and the line may have it."""
        moment, returned = began
        _, version, made = value
        replaced = memory[self.executed[version + 1]]  # the tick after, or 0: it is the latest
        if replaced and replaced - 1 <= moment - MAX_STALE:
            raise Violation(OLD)
        if version < returned:
            raise Violation(BEHIND)
        if made < line[3]:
            raise Violation(ERA)

    # ---- the server ----

    def get(self, memory):
        """Return the value, with the number of connections that had been made when it was read."""
        return "value", memory[self.version], memory[self.made]

    def set(self, memory):
        """Execute a write of the key."""
        memory[self.version] += 1
        memory[self.executed[memory[self.version]]] = memory[self.now] + 1
        memory[self.untold] = 1 - memory[self.moved]
        return memory[self.version]

    def flush(self, memory):
        memory[self.version] += 1
        memory[self.executed[memory[self.version]]] = memory[self.now] + 1
        for at, is_open in enumerate(self.open):
            if memory[is_open] == 1:
                memory[self.answers[at]] = (*(memory[self.answers[at]] or ()), ALL)

    def may_answer(self, memory, at):
        return memory[self.open[at]] == 1 and memory[self.asked[at]] > self.strict

    def answer(self, memory, at):
        """Execute a question."""
        memory[self.asked[at]] -= 1 + self.strict
        memory[self.answers[at]] = (*(memory[self.answers[at]] or ()), PONG)

    def may_end_cycle(self, memory):
        waits = any(memory[asked] == 1 for asked in self.asked) and self.strict
        return waits or memory[self.untold] or any(memory[word] for word in self.answers)

    def end_cycle(self, memory):
        """Send the answers of this cycle, and then the changes of this cycle."""
        told = (KEY,) if memory[self.untold] else ()
        memory[self.untold] = 0
        for at, is_open in enumerate(self.open):
            if memory[is_open] == 1:
                sent = (*(memory[self.answers[at]] or ()), *told)
                memory[self.stream[at]] = (*(memory[self.stream[at]] or ()), *sent) or 0
            memory[self.answers[at]] = 0
            if self.strict and memory[self.asked[at]] == 1:
                memory[self.asked[at]] = 2  # executed in a later cycle than it was sent in

    # ---- the connection of a tracker ----

    def subscribe(self, memory, at):
        """Connect, and ask the server to tell of changes; return the number of this connection."""
        memory[self.open[at]] = 1
        memory[self.asked[at]] = memory[self.answers[at]] = memory[self.stream[at]] = 0
        memory[self.made] += 1
        return memory[self.made]

    def may_cut(self, memory, at):
        return memory[self.open[at]] == 1

    def cut(self, memory, at):
        """Cut the connection: what was sent before still arrives, and nothing else."""
        memory[self.open[at]] = memory[self.asked[at]] = memory[self.answers[at]] = 0
        memory[self.stream[at]] = (*(memory[self.stream[at]] or ()), END)

    def ask(self, memory, at):
        if memory[self.open[at]] == 1:
            memory[self.asked[at]] += 1

    def may_receive(self, memory, at):
        return memory[self.stream[at]] != 0

    def receive(self, memory, at):
        first, *others = memory[self.stream[at]]
        memory[self.stream[at]] = tuple(others) or 0
        return first

    # ---- locked sections on the line, and on that of the office ----

    def take_office(self, memory):
        memory[self.turn] += 1
        return memory[self.turn]

    def begin(self, memory, made):
        """Begin a new term and a new epoch, without a lease yet; return the term, or None if the
        line belongs to another node by now."""
        if memory[self.moved] and self.does("a watch begins only if its node has the number"):
            return None
        epoch, valid, term, _ = line_of(memory[self.line])
        if self.does("a watch begins with a new epoch"):
            memory[self.epochs] += 1
            epoch = memory[self.epochs]
        if self.does("a watch begins without a lease"):
            valid = 0
        memory[self.line] = epoch, valid, term + 1, made
        return term + 1

    def extend(self, memory, term, until):
        """Extend the lease in this term; return whether it was extended."""
        epoch, valid, current, made = line_of(memory[self.line])
        if current != term and self.does("a lease is extended in its own term only"):
            return False
        memory[self.line] = epoch, max(valid, until), current, made
        return True

    def discard(self, memory):
        """Begin a new epoch; the lease stays as it is."""
        _, valid, term, made = line_of(memory[self.line])
        memory[self.epochs] += 1
        memory[self.line] = memory[self.epochs], valid, term, made

    def pass_on(self, memory):
        """Give the line's number to another node, which has the key from now on in its epoch."""
        _, _, term, made = line_of(memory[self.line])
        memory[self.epochs] += 1
        memory[self.line] = memory[self.epochs], 0, term + 1, made
        memory[self.moved] = 1


def line_of(word):
    return word or (0, 0, 0, 0)


# ---- processes of the host ----


def fetcher(m, me, reads=1):
    """A process whose reads are misses: fetch the key this many times."""
    for number in range(reads):
        yield from fetch(m, me, number)


def reader(m, me, fetches=False):
    """Play get(): a hit, or a miss, which ends the program. fetches: it fetches the key once
    before."""
    if fetches:
        yield from fetch(m, me, 0)
    began = yield act("begin_read")
    word = yield load(m.line)
    line = line_of(word)
    if m.does("a reader looks at the lease before the entry"):
        if began[0] < line[1] or not m.does("a reader needs a lease"):
            yield act("look", line, began)
    else:
        found = yield act("look", line, None)
        word = yield load(m.line)
        if found and began[0] < line_of(word)[1]:
            yield act("judge", found, line, began)


def fetch(m, me, number):
    """A miss: claim the place, ask the server, and store the answer under the claim."""
    word = yield load(m.line)
    if m.leased:
        now = yield load(m.now)
        if line_of(word)[1] <= now:
            return
        del now
    place = m.entry[line_of(word)[0]]
    token = ("claim", me, number) if m.does("each claim has a token of its own") else ("claim",)
    early = m.does("the token is placed before the question is sent")
    if early:
        seen = yield load(place)
        held = seen == EMPTY or seen[0] == "claim"  # a claim that is too late is cut off
        if held:
            held = yield cas(place, seen, token)
        del seen
    answer = yield act("get")
    if not early:
        held = yield cas(place, EMPTY, token)
    del early, word
    if not held:
        return
    if m.does("an answer is stored only under its token"):
        yield cas(place, token, answer)
    else:
        yield store(place, answer)


def host_writer(m, me):
    """Play set(): write at the server, then remove the key here, then return."""
    version = yield act("set")
    word = yield load(m.line)
    place = m.entry[line_of(word)[0]]
    if not m.does("a write stores nothing here"):
        yield store(place, ("value", version, 9))
    elif m.does("a write removes the key before it returns"):
        yield store(place, EMPTY)
    yield store(m.returned, version)


# ---- the tracker ----


def tracker(m, me, at, watches=1, questions=2, after=None):
    """Take the office and watch the server over connection number at, this many times. after: an
    earlier tracker, which has to be dead; None: the office is taken from a living tracker."""
    if after is not None:
        yield awaits("dead", after)
    turn = yield act("take_office")
    for _ in range(watches):
        if m.does("a watch begins after the subscription"):
            made = yield act("subscribe", at)
            term = yield from begin(m, turn, made)
        else:
            term = yield from begin(m, turn, 0)
            made = yield act("subscribe", at)
        del made
        if term is None:
            return
        goes_on = yield from watch(m, at, term, questions)
        if not goes_on:
            return
        del term, goes_on


def begin(m, turn, made):
    """began() of the sink: the term, or None if another tracker has the office."""
    if m.does("a process that has lost the office begins no watch"):
        current = yield load(m.turn)
        if current != turn:
            return None
    return (yield act("begin", made))


def watch(m, at, term, questions):
    """Receive what the server tells, and ask it this many questions; return whether the connection
    was lost."""
    asked, previous, late = (), None, False  # asked: when the questions without an answer were sent
    while True:
        while questions and (not asked or not m.does("one question is asked at a time")):
            questions -= 1
            moment = yield from ask(m, at)
            asked = (*asked, moment)
            del moment
        message = yield act("receive", at)
        if message == END:
            return True
        if message == KEY:
            late = not m.does("a change is dealt with before the lease is extended")
            if not late:
                yield from forget(m)
        elif message == ALL:
            if m.does("a flush discards everything"):
                yield act("discard")
        else:
            moment = yield from proof(m, asked[0], previous)
            previous, asked = asked[0], asked[1:]
            if moment is not None:
                extended = yield act("extend", term, moment + MAX_STALE)
                if not extended:
                    return False
                del extended
            if late:
                yield from forget(m)
                late = False
            del moment
        del message


def ask(m, at):
    if m.does("the moment is taken before the question is sent"):
        moment = yield load(m.now)
        yield act("ask", at)
        return moment
    yield act("ask", at)
    return (yield load(m.now))


def proof(m, sent, previous):
    """After an answer: the moment before which all changes have been told, or None if unknown."""
    if not m.does("a proof is of the moment when a question was sent"):
        return (yield load(m.now))
    return previous if m.does("an answer proves what was so before the previous question") else sent


def forget(m):
    """Play changed() of the sink."""
    word = yield load(m.line)
    place = m.entry[line_of(word)[0]]
    if not m.does("a change ends claims, too"):
        seen = yield load(place)
        if seen != EMPTY and seen[0] == "claim":
            return
    yield store(place, EMPTY)


# ---- the others ----


def clock(m, me, ticks=1):
    for _ in range(ticks):
        yield act("tick")


def writer(m, me, writes=1):
    """Play a client of another host, which writes the key."""
    for _ in range(writes):
        yield act("set")


def flusher(m, me):
    yield act("flush")


def answering(m, me, at=0):
    """Let the server execute questions."""
    while True:
        yield act("answer", at)


def cycling(m, me):
    """Let the server execute all commands of a cycle."""
    while True:
        yield act("end_cycle")


def cutter(m, me, at=0):
    yield act("cut", at)


def passer(m, me):
    """A process that needs a line's number takes it from a node that no tracker has watched for
    long."""
    yield act("pass_on")
