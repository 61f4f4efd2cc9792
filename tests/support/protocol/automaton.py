"""Programs of the model: generators that yield one access of shared memory at a time.

A program reads like the code that it models: ``header = yield load(address)``. The explorer must be
able to stop a program anywhere, continue it in two ways, and see that both ways led to the same
place. Generators cannot be copied, but a program is deterministic: the answers that it has received
determine its place, and its frames (instruction and locals of each) tell whether two places are the
same. An Automaton runs the program once for each new (place, answer) and remembers the step.

This is right only if a frame hides no state except its locals: every ``yield`` stands alone on the
right of an assignment, in a return, or as a statement, and a ``for`` runs over a range.
test_protocol.py checks that.
"""

# What a program may yield. OWN and PUT are accesses of words that no other program can be accessing
# at the same time (fields of the program's own context, slots of a bucket that it holds): the
# explorer performs them at once, and checks that the claim is true.
LOAD, OWN, STORE, PUT, CAS, LOCK, TRY, WAIT, SEIZE, BEGIN, END, BYTE, AWAIT, OR, AND = range(15)
SLEEP, RING, WAKE, WAKE_ONE = range(15, 19)
FUTEX_MASK = 0xFFFF
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
    "wakes a sleeper of",
)
WRITING = frozenset((STORE, PUT, CAS, LOCK, TRY, BYTE, OR, AND, SLEEP, RING, WAKE, WAKE_ONE))
NO_ANSWER = object()


def load(address):
    """Load a shared word; the answer is its value."""
    return LOAD, address, 0, 0


def own(address):
    """Load a word that only this context can be writing; the answer is its value."""
    return OWN, address, 0, 0


def store(address, value):
    return STORE, address, value, 0


def put(address, value):
    """Store to a word that only this context, or its recovery, accesses."""
    return PUT, address, value, 0


def cas(address, expected, desired):
    """Compare and swap. The answer: whether the word was as expected, and so is as desired now."""
    return CAS, address, expected, desired


def lock(address, me):
    """Wait until a lock word is free, and take it. The answer: the word with its new holder."""
    return LOCK, address, me, 0


def lock_try(address, me):
    """Take a lock word if it is free. The answer: the word with its new holder, or None."""
    return TRY, address, me, 0


def wait(address, seen):
    """Wait until the word differs from seen."""
    return WAIT, address, seen, 0


def seize(subject, alone=True):
    """Wait until the process of context subject is dead and not recovered and, if alone is true, no
    other program is recovering it. The recoverer's lock is one of the kernel, on the slot's byte,
    which is released when the recoverer dies.
    """
    return SEIZE, subject, alone, 0


def byte(address, change, other=0):
    """A system call about a byte of the file: "lock" it if no open file has it locked, "close" the
    caller's open file, or "fork" a child, program number other, that shares the open file. The
    answer: whether the call succeeded.
    """
    return BYTE, address, change, other


def fetch_or(address, bits):
    """Set these bits of the word in one step. The answer: the word before."""
    return OR, address, bits, 0


def fetch_and(address, bits):
    """Clear the other bits of the word in one step. The answer: the word before."""
    return AND, address, bits, 0


def futex_sleep(address, seen, asleep):
    """FUTEX_WAIT: compare and queue in one step. The answer: whether the program sleeps now; then
    the word asleep is 1 until a wake. Of a bell, the kernel compares the half in FUTEX_MASK."""
    return SLEEP, address, seen, asleep


def futex_ring(address):
    """FUTEX_WAKE_OP with one word as both: add 1 to it and wake its sleepers, in one step."""
    return RING, address, 0, 0


def futex_wake(address):
    """FUTEX_WAKE: wake all sleepers of the word."""
    return WAKE, address, 0, 0


def futex_wake_one(address):
    """FUTEX_WAKE: wake one sleeper of the word."""
    return WAKE_ONE, address, 0, 0


def awaits(condition, *subjects):
    """Wait until a condition of claiming.py holds for these processes; it may never hold."""
    return AWAIT, -1, condition, subjects


def begin(kind, key=0, value=0):
    """Tell the oracle that an operation begins; not an access."""
    return BEGIN, kind, key, value


def end(outcome=None):
    """Tell the oracle that the operation has ended with this outcome."""
    return END, outcome, 0, 0


class Automaton:
    """One program as a graph: its places, and the place to which each answer leads."""

    def __init__(self, make):
        self.make = make
        self.actions = []  # for each place, what it yields; None if it has ended
        self.operations = []  # for each place, the operation under way, or None
        self.begins = []  # for each place, whether that operation has not yet performed an access
        self._histories = []
        self._places = {}
        self._steps = {}
        self.start, _ = self._arrive(())

    def step(self, place, answer):
        """Return the place that this answer leads to, and the BEGINs and ENDs on the way."""
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
                events = []  # events before this answer belong to earlier steps
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
    """Send the answer to a program; return what it yields next, or None at its end."""
    try:
        return program.send(answer)
    except StopIteration:
        return None


def frames_of(program):
    """Return the place of a program: the instruction and the locals of each of its generators."""
    frames = []
    while program is not None and program.gi_frame is not None:
        frame = program.gi_frame
        frames.append((frame.f_code, frame.f_lasti, tuple(frame.f_locals.items())))
        program = program.gi_yieldfrom
    return tuple(frames)
