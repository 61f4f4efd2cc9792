"""Programs of the model: generators that yield one access of shared memory at a time.

A program reads as the code it stands for: ``header = yield load(address)``. The explorer must be
able to stop such a program anywhere, go on in two ways, and see that two ways led to the same
place. Generators cannot be copied; but a program is deterministic, so the answers it got so far
say where it stands, and its frames (which line, which locals) say whether two such places are the
same. An Automaton runs each program once for each new (place, answer) and then knows the step by
heart.

For this to be right, nothing may be hidden in a frame but its locals: every ``yield`` stands alone
on the right of an assignment, in a return, or as a statement, and a ``for`` runs over a range.
test_protocol.py checks that.
"""

# What a program may yield. OWN and PUT are accesses of words that nobody else can be accessing at
# the same time (fields of one's context, slots of a bucket one holds): the explorer takes them at
# once, and checks that the claim is true.
LOAD, OWN, STORE, PUT, CAS, LOCK, TRY, WAIT, SEIZE, BEGIN, END, BYTE, AWAIT, OR, AND = range(15)
SLEEP, RING, WAKE = range(15, 18)
KIND_NAMES = (
    "loads",
    "loads",
    "stores",
    "stores",
    "compares and swaps",
    "locks",
    "tries to lock",
    "waits for",
    "seizes",
    "begins",
    "ends",
    "asks the kernel for",
    "waits until",
    "sets bits of",
    "clears bits of",
    "goes to sleep on",
    "rings",
    "wakes the sleepers of",
)
WRITING = frozenset((STORE, PUT, CAS, LOCK, TRY, BYTE, OR, AND, SLEEP, RING, WAKE))
NO_ANSWER = object()


def load(address):
    """The value of a shared word."""
    return LOAD, address, 0, 0


def own(address):
    """The value of a word that only this context can be writing."""
    return OWN, address, 0, 0


def store(address, value):
    return STORE, address, value, 0


def put(address, value):
    """Store to a word that only this context, or whoever recovers it, looks at."""
    return PUT, address, value, 0


def cas(address, expected, desired):
    """Whether the word was as expected, and is as desired now."""
    return CAS, address, expected, desired


def lock(address, me):
    """Take a lock word as soon as it is free: the word, as it was taken."""
    return LOCK, address, me, 0


def lock_try(address, me):
    """Take a lock word if it is free now: the word as it was taken, or None."""
    return TRY, address, me, 0


def wait(address, seen):
    """Go on when the word is not as seen."""
    return WAIT, address, seen, 0


def seize(subject, alone=True):
    """Go on when context subject's process is dead, unrecovered, and nobody is at it: the kernel's
    lock on its byte, which is let go when its holder dies."""
    return SEIZE, subject, alone, 0


def byte(address, change, other=0):
    """A system call about a byte of the file: "lock" it if nobody has it, "close" the own open file
    of it, "fork" a child, program number other, that has the same open file. Whether it was done.
    """
    return BYTE, address, change, other


def fetch_or(address, bits):
    """The word before these bits were set in it, in one step."""
    return OR, address, bits, 0


def fetch_and(address, bits):
    """The word before its other bits were cleared, in one step."""
    return AND, address, bits, 0


def futex_sleep(address, seen, asleep):
    """FUTEX_WAIT: compare and queue in one step; whether it sleeps now. Then the word asleep is 1
    until a wake."""
    return SLEEP, address, seen, asleep


def futex_ring(address):
    """FUTEX_WAKE_OP with one word as both: add 1 to it and wake its sleepers, in one step."""
    return RING, address, 0, 0


def futex_wake(address):
    """FUTEX_WAKE of all."""
    return WAKE, address, 0, 0


def awaits(condition, *subjects):
    """Go on when the segment says so of these processes (claiming.py); it need not come to that."""
    return AWAIT, -1, condition, subjects


def begin(kind, key=0, value=0):
    """An operation begins: no access, the oracle hears of it."""
    return BEGIN, kind, key, value


def end(outcome=None):
    """The operation has ended, with this outcome."""
    return END, outcome, 0, 0


class Automaton:
    """One program as a graph: places, and where each answer leads."""

    def __init__(self, make):
        self.make = make
        self.actions = []  # of each place, what it yields; None: finished
        self.operations = []  # of each place, the operation under way, or None
        self.begins = []  # of each place, whether that operation has not yet done anything
        self._histories = []
        self._places = {}
        self._steps = {}
        self.start, _ = self._arrive(())

    def step(self, place, answer):
        """The place that this answer leads to, and the BEGINs and ENDs on the way."""
        key = (place, answer)
        if key not in self._steps:
            self._steps[key] = self._arrive((*self._histories[place], answer))
        return self._steps[key]

    def _arrive(self, history):
        """Run the program through a history of answers to its next access."""
        program = self.make()
        answers = iter(history)
        operation = None
        events = []
        action = next(program, None)
        while action is not None:
            answer = None
            if action[0] in (BEGIN, END):
                events.append(action)
                operation = action[1:] if action[0] == BEGIN else None
            else:
                answer = next(answers, NO_ANSWER)
                if answer is NO_ANSWER:
                    break
                events = []  # those before this answer belong to earlier steps
            action = answered(program, answer)
        begins = bool(events) and events[-1][0] == BEGIN
        return self._place(program, (action, operation, begins), history), tuple(events)

    def _place(self, program, facts, history):
        place = self._places.setdefault((facts, frames_of(program)), len(self.actions))
        if place == len(self.actions):
            self.actions.append(facts[0])
            self.operations.append(facts[1])
            self.begins.append(facts[2])
            self._histories.append(history)
        return place


def answered(program, answer):
    """What a program yields next, or None at its end."""
    try:
        return program.send(answer)
    except StopIteration:
        return None


def frames_of(program):
    """Where a program stands: the instruction and the locals of each of its generators."""
    frames = []
    while program is not None and program.gi_frame is not None:
        frame = program.gi_frame
        frames.append((frame.f_code, frame.f_lasti, tuple(frame.f_locals.items())))
        program = program.gi_yieldfrom
    return tuple(frames)
