"""A small weak memory: which outcomes a few instructions of a few threads can have.

Each thread is a list of instructions. Any instruction may be performed before an earlier one of its
thread unless something forbids it: an acquire, a release, a fence, a dependency, or that both
access the same word. A store is performed for all threads at once (as on ARMv8 and x86; POWER is
weaker). A compare-and-swap is a load and a store with no other thread's store of the word between
them, and later instructions may be performed before its store, as on ARMv8 without LSE. All orders
are tried.

    litmus = Litmus(
        threads=[[store("data", 1), store("flag", 1, RELEASE)],
                 [load("flag", "f", ACQUIRE), load("data", "d")]],
        forbidden=lambda r: r["f"] == 1 and r["d"] == 0,
    )
    litmus.reachable()   # None; with the RELEASE left out: the order that leads there
"""

from dataclasses import dataclass

RELAXED, ACQUIRE, RELEASE, FULL = "relaxed", "acquire", "release", "full"


@dataclass(frozen=True)
class Instruction:
    """kind: load, store, fence or membarrier. needs: the registers that give its address."""

    kind: str
    word: str = ""
    target: str = ""  # for a load: its register
    value: object = 0  # for a store: a number, or a register's name
    order: str = RELAXED
    needs: tuple = ()
    swaps: str = ""  # for the store of a CAS: the register of its load
    expects: object = None  # for the load of a CAS: the only value with which it is performed

    def __str__(self):
        what = {"load": f"{self.target} = {self.word}", "store": f"{self.word} = {self.value}"}
        return f"{what.get(self.kind, self.kind)} ({self.order})"


def load(word, target, order=RELAXED, needs=()):
    return [Instruction("load", word, target, order=order, needs=needs)]


def store(word, value, order=RELAXED, needs=()):
    return [Instruction("store", word, value=value, order=order, needs=needs)]


def fence(order):
    """Return a C11 fence; for RELAXED there is no fence."""
    return [Instruction("fence", order=order)] if order != RELAXED else []


def membarrier():
    """Return the system call: a full fence here, and one somewhere in every running thread."""
    return [Instruction("membarrier", order=FULL)]


def cas(word, expected, desired, acquire=RELAXED, release=RELAXED):
    """Return a compare-and-swap that succeeds; executions in which it fails are not explored."""
    register = f"old {word} {desired}"
    return [
        Instruction("load", word, register, order=acquire, expects=expected),
        Instruction("store", word, value=desired, order=release, swaps=register),
    ]


def lock(word, order=ACQUIRE):
    return cas(word, 0, 1, acquire=order)


def unlock(word, order=RELEASE):
    return store(word, 0, order)


def ordered(earlier, later, rcsc):
    """Return whether an instruction must be performed before a later one of its thread."""
    if "membarrier" in (earlier.kind, later.kind) or FULL in (earlier.order, later.order):
        return True
    if earlier.word and earlier.word == later.word:
        return True
    if earlier.target and earlier.target in (*later.needs, later.swaps, later.value):
        return True
    if earlier.kind == "fence":
        return earlier.order == ACQUIRE or later.kind in ("store", "fence")
    if later.kind == "fence":
        return later.order == RELEASE or earlier.kind == "load"
    if earlier.order == ACQUIRE or later.order == RELEASE:
        return True
    return rcsc and earlier.order == RELEASE and later.order == ACQUIRE


@dataclass
class Litmus:
    """Threads, the words that are not 0 at first, and the forbidden outcome."""

    threads: list
    forbidden: object
    first: tuple = ()  # pairs of (word, value)
    rcsc: bool = True  # an acquire stays behind an earlier release: ARMv8's ldar, not ldapr or C11

    def reachable(self):
        """Return an order of the instructions that leads to the forbidden outcome, or None."""
        before = [
            [
                frozenset(i for i in range(at) if ordered(thread[i], thread[at], self.rcsc))
                for at in range(len(thread))
            ]
            for thread in self.threads
        ]
        done = tuple(frozenset() for _ in self.threads)
        stack = [(dict(self.first), {}, done, ())]
        visited = set()
        while stack:
            memory, registers, done, path = stack.pop()
            state = (frozenset(memory.items()), frozenset(registers.items()), done)
            if state in visited:
                continue
            visited.add(state)
            if all(len(d) == len(t) for d, t in zip(done, self.threads, strict=True)):
                if self.forbidden(registers):
                    return path
                continue
            for number, thread in enumerate(self.threads):
                for at, instruction in enumerate(thread):
                    if at in done[number] or not before[number][at] <= done[number]:
                        continue
                    after = self.perform(instruction, number, memory, registers, done)
                    if after is not None:
                        step = (*done[:number], done[number] | {at}, *done[number + 1 :])
                        stack.append((*after, step, (*path, f"thread {number}: {instruction}")))
        return None

    def perform(self, instruction, number, memory, registers, done):
        """Return (memory, registers) after an instruction, or None if it cannot be performed
        now."""
        word = instruction.word
        if instruction.kind == "load":
            value = memory.get(word, 0)
            if instruction.expects not in (None, value):
                return None
            return memory, registers | {instruction.target: value}
        if instruction.kind == "store":
            swaps = instruction.swaps
            if swaps and memory.get(word, 0) != registers[swaps]:
                return None
            value = registers.get(instruction.value, instruction.value)
            return memory | {word: value}, registers
        if instruction.kind == "membarrier":
            others = (d for i, d in enumerate(done) if i != number)
            if any(d != frozenset(range(len(d))) for d in others):
                return None
        return memory, registers
