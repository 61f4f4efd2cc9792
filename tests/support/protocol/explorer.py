"""All interleavings of a few programs over one modelled segment, with deaths.

A state is (memory, the place of each program, what each running operation could have seen). From
each state every program takes its next step; a program that may die also dies instead, before each
store and while it waits. Each state is visited once, breadth first, so the first counterexample is
a shortest one.

Two reductions keep the number of states small. Accesses marked OWN or PUT are of words that no
other program can be accessing: they commute with all steps of the others, so when a program stands
before one, only that program moves (or dies before a PUT, if it may die). The claim behind the mark
is checked each time. And what an operation may return is kept as the set of values that the
abstract map (oracle.py) has had since the operation began, not as a history.
"""

import functools

from support.protocol.automaton import (
    AND,
    AWAIT,
    BYTE,
    CAS,
    END,
    FUTEX_MASK,
    LOAD,
    LOCK,
    OR,
    OWN,
    PUT,
    RING,
    SEIZE,
    SLEEP,
    STORE,
    TRY,
    WAIT,
    WAKE,
    WAKE_ONE,
    WRITING,
    Automaton,
)
from support.protocol.claiming import CONDITIONS, check_processes
from support.protocol.holding import check_cell
from support.protocol.oracle import Oracle, Violation, check_change, check_end, seen_at_begin
from support.protocol.segment_model import owner_of, taken

# A death before a load leaves the same memory as a death before the next access of these kinds.
DEADLY = WRITING | {WAIT, AWAIT}
GONE = -1  # the place that stands for death
SOLO_STEPS_MAX = 400  # far more than a lookup takes that runs alone


class Explorer:
    """Visits every state that the scene's programs can reach; ``run`` returns their number."""

    def __init__(self, scene, without=(), reduced=True):
        self.scene = scene
        self.reduced = reduced
        self.segment = segment = scene.segment(without)
        self.oracle = Oracle(segment)
        self.programs = scene.programs
        self.automata = [
            Automaton(functools.partial(program.make, segment)) for program in scene.programs
        ]
        self.memories = []
        self.numbers = {}
        self.views = []
        self.stored = {}
        self.readers_that_end = set()
        self.came_from = {}
        self.ends = set()  # memories in which no program could move

    # ---- memory ----

    def remember(self, memory):
        """Return the number of a memory; its abstract map is computed once."""
        if memory not in self.numbers:
            self.views.append(self.oracle.view(memory))  # the view, or a Violation
            self.numbers[memory] = len(self.memories)
            self.memories.append(memory)
        return self.numbers[memory]

    def write(self, number, address, value):
        key = (number, address, value)
        if key not in self.stored:
            memory = self.memories[number]
            changed = (*memory[:address], value, *memory[address + 1 :])
            self.stored[key] = self.remember(changed)
        return self.stored[key]

    # ---- one step ----

    def may_die(self, program, places):
        return self.programs[program].mortal and places.count(GONE) < self.scene.deaths

    def allowed(self, program, number, places):
        """Return whether a program can take its next step."""
        kind, address, value, subjects = self.automata[program].actions[places[program]]
        memory = self.memories[number]
        if kind == LOCK:
            return owner_of(memory[address]) == 0
        if kind == WAIT:
            return memory[address] != value
        if kind == AWAIT:
            return CONDITIONS[value](self.segment, memory, subjects)
        if kind == SEIZE:
            dead = any(
                place == GONE and program.runs_as == address and self.owns(memory, program)
                for program, place in zip(self.programs, places, strict=True)
            )
            return dead and not (value and memory[self.segment.kernel_lock[address]])
        return True

    def owns(self, memory, program):
        """Return whether a context is in the name of the program's process."""
        contexts = range(program.runs_as, program.runs_as + program.contexts)
        return any(memory[self.segment.of(context, "owner")] for context in contexts)

    def access(self, program, number, action):
        """Perform one access; return the number of the memory after it, and the answer."""
        kind, address, value, desired = action
        memory = self.memories[number]
        if kind == SEIZE:
            return self.write(number, self.segment.kernel_lock[address], program + 1), None
        if kind == AWAIT:
            return number, None
        if kind == BYTE:
            return self.ask_byte(program, number, action)
        if not memory[self.segment.memory_of.get(address, self.segment.table)]:
            raise Violation("touches memory that was given back (M1)")
        if kind in (STORE, PUT):
            return self.write(number, address, value), None
        if kind in (LOAD, OWN):
            return number, memory[address]
        if kind == CAS:
            done = memory[address] == value
            return (self.write(number, address, desired) if done else number), done
        if kind in (OR, AND):
            changed = memory[address] | value if kind == OR else memory[address] & value
            return self.write(number, address, changed), memory[address]
        if kind == SLEEP:
            compared = FUTEX_MASK if address in self.segment.sleepers else -1
            sleeps = memory[address] & compared == value
            return (self.write(number, desired, 1) if sleeps else number), sleeps
        if kind in (RING, WAKE):
            if kind == RING:
                number = self.write(number, address, memory[address] + 1)
            for asleep in self.segment.sleepers.get(address, self.segment.asleep):
                number = self.write(number, asleep, 0)
            return number, None
        if kind == WAKE_ONE:
            for asleep in self.segment.asleep:
                if self.memories[number][asleep]:
                    return self.write(number, asleep, 0), None
            return number, None
        if kind in (LOCK, TRY):
            if owner_of(memory[address]):
                return number, None
            held = taken(memory[address], value)
            return self.write(number, address, held), held
        return number, None

    def ask_byte(self, program, number, action):
        """A call about a byte, in whose word each program's open file that holds it is one bit."""
        _, address, change, child = action
        holders = self.memories[number][address]
        if change == "lock":
            return (number if holders else self.write(number, address, 1 << program)), not holders
        if change == "fork":
            return self.write(number, address, holders | 1 << child), None
        return self.write(number, address, holders & ~(1 << program)), None

    def move(self, state, program, log=None):
        """Return the state after one step of a program and the OWN and PUT accesses that follow
        it."""
        number, places, seen = state
        automaton = self.automata[program]
        place = places[program]
        while True:
            action = automaton.actions[place]
            before = self.views[number]
            if automaton.begins[place]:
                mine = seen_at_begin(automaton.operations[place], before)
                seen = (*seen[:program], mine, *seen[program + 1 :])
            if log is not None:
                log.append((program, action, None))
            number, answer = self.access(program, number, action)
            if log is not None:
                log[-1] = (program, action, answer)
            if self.views[number] != before:
                operation = automaton.operations[place]
                seen = check_change(before, self.views[number], operation, program, seen)
            place, events = automaton.step(place, answer)
            places = (*places[:program], place, *places[program + 1 :])
            if events:
                seen = self.hear(events, program, seen, log)
            following = automaton.actions[place]
            if following is None or following[0] not in (OWN, PUT) or not self.reduced:
                return number, places, seen
            self.check_alone(program, following, number, places)
            if following[0] == PUT and self.may_die(program, places):
                return number, places, seen

    def hear(self, events, program, seen, log):
        """Check operations that ended; one that began has seen nothing before its first step."""
        for event in events:
            if log is not None:
                log.append((program, event, None))
            if event[0] == END:
                check_end(event[1], seen[program])
            seen = (*seen[:program], None, *seen[program + 1 :])
        return seen

    def check_alone(self, program, action, number, places):
        """Check that no other program stands before an access of a word that one marks as own."""
        word = self.memories[number][action[1]]
        for other, place in enumerate(places):
            if other == program or place == GONE:
                continue
            theirs = self.automata[other].actions[place]
            if theirs is None or theirs[1] != action[1] or theirs[0] == SEIZE:
                continue
            if action[0] == PUT or writes_over(theirs, word):
                name = self.segment.names[action[1]]
                raise Violation(f"two at once: another program uses {name}, too (C1)")

    def die(self, state, program):
        """Return the state after the death of a program: the kernel releases its locks, no more."""
        number, places, seen = state
        for address in self.segment.kernel_lock:
            if self.memories[number][address] == program + 1:
                number = self.write(number, address, 0)
        for address in self.segment.byte[1:]:
            holders = self.memories[number][address]
            number = self.write(number, address, holders & ~(1 << program))
        if self.segment.cell and self.programs[program].runs_as:  # the kernel forgets a sleeper
            asleep = self.segment.asleep[self.programs[program].runs_as - 1]
            number = self.write(number, asleep, 0)
        places = (*places[:program], GONE, *places[program + 1 :])
        return number, places, (*seen[:program], None, *seen[program + 1 :])

    # ---- all steps ----

    def movers(self, state):
        """Yield (program, dies) for each step to explore from a state."""
        number, places, _ = state
        standing = [
            (program, self.automata[program].actions[place])
            for program, place in enumerate(places)
            if place != GONE and self.automata[program].actions[place] is not None
        ]
        for program, action in standing:
            if action[0] == PUT and self.reduced and self.may_die(program, places):
                return [(program, False), (program, True)]
        found = []
        for program, action in standing:
            if self.allowed(program, number, places):
                found.append((program, False))
            if action[0] in DEADLY and self.may_die(program, places):
                found.append((program, True))
        return found

    def follow(self, state, program, dies, log=None):
        if dies:
            if log is not None:
                log.append((program, None, None))
            return self.die(state, program)
        return self.move(state, program, log)

    def run(self, states_max=10_000_000):
        """Visit every state; raise a Violation, with its trace, if one breaks a promise."""
        state = self.first_state()
        self.came_from[state] = None
        frontier = [state]
        while frontier:
            following = []
            for state in frontier:
                self.visit(state, following)
            frontier = following
            if len(self.came_from) > states_max:
                raise RuntimeError(f"more than {states_max} states")
        return len(self.came_from)

    def first_state(self):
        number = self.remember(self.scene.furnish(self.segment))
        places = tuple(automaton.start for automaton in self.automata)
        return number, places, (None,) * len(places)

    def visit(self, state, following):
        movers = self.movers(state)
        try:
            for program, dies in movers:
                mover = (program, dies)
                after = self.follow(state, program, dies)
                if after not in self.came_from:
                    self.came_from[after] = (state, mover)
                    following.append(after)
            mover = None
            self.check_readers(state)
            if not movers:
                self.check_final(state)
        except Violation as violation:
            violation.path = self.path(state, mover)
            violation.explorer = self
            raise

    def check_readers(self, state):
        """R1: from here every lookup ends by its own steps, while no other program moves."""
        number, places, _ = state
        for program, place in enumerate(places):
            if place == GONE or not self.programs[program].reader:
                continue
            automaton = self.automata[program]
            passed = []
            while (number, place) not in self.readers_that_end:
                action = automaton.actions[place]
                if automaton.operations[place] is None:
                    break
                if len(passed) > SOLO_STEPS_MAX or action[0] not in (LOAD, OWN):
                    raise Violation("a lookup does not end by itself (R1)")
                passed.append((number, place))
                place, events = automaton.step(place, self.memories[number][action[1]])
                if events:
                    break
            self.readers_that_end.update(passed)

    def check_final(self, state):
        """No program can move: each has ended, is dead, or waits for what need not happen.
        If every dead program is recovered, the map is at rest and sound."""
        number, places, _ = state
        waiting = [
            program
            for program, place in enumerate(places)
            if place != GONE and self.automata[program].actions[place] is not None
        ]
        for program in waiting:
            if self.automata[program].actions[places[program]][0] not in (SEIZE, AWAIT):
                raise Violation("a program can never go on (C1)")
        memory = self.memories[number]
        self.ends.add(memory)
        living = [p for p, place in zip(self.programs, places, strict=True) if place != GONE]
        check_processes(self.segment, memory, living)
        if self.segment.waiters:
            self.check_sleepers(number, waiting)
        unrecovered = [
            program
            for program, place in zip(self.programs, places, strict=True)
            if place == GONE and program.runs_as and self.owns(memory, program)
        ]
        if self.segment.cell:
            conditions = [self.automata[p].actions[places[p]][2] for p in waiting]
            asleep = "it is awake" in conditions
            check_cell(self.segment, memory, asleep, bool(unrecovered))
        if not unrecovered:
            self.oracle.check_at_rest(memory)

    def check_sleepers(self, number, waiting):
        """When no program can move, no waiter sleeps although what it waits for has come."""
        for program in waiting:
            waiter = self.programs[program]
            if waiter.operations[0][0] in ("wait for", "await"):
                _, key, value = waiter.operations[0]
                if self.views[number][key] == value:
                    raise Violation(f"{waiter.name} sleeps although its condition holds")

    def path(self, state, last):
        """Return the steps from the first state to this one, and the last step."""
        steps = [] if last is None else [(state, last)]
        while self.came_from[state] is not None:
            state, mover = self.came_from[state]
            steps.append((state, mover))
        return steps[::-1]


def writes_over(action, word):
    """Return whether an access would change the word, if this is its value."""
    kind, _, expected, _ = action
    if kind in (LOCK, TRY):
        return owner_of(word) == 0
    return kind in (STORE, PUT) or (kind == CAS and word == expected)
