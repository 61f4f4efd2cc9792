"""Process slots: their owners, which processes are dead, and which ones recover them (C1, C2, C3).

Models liveness.pxd, attach.pxd and process_recover of recover.pxd. A process owns a slot: its claim
stands in the word used, and was stored while the process held the lock on the slot's byte of the
file, which the kernel releases when the process dies. The word recoverer of a dead process's slot
names the process slot of its recoverer, and has a count. No two processes share a claim.
"""

from support.protocol.automaton import awaits, begin, byte, cas, end, load, store
from support.protocol.holding import permits_are_free
from support.protocol.oracle import Violation
from support.protocol.recovering import context_recover
from support.protocol.segment_model import FREE, state_of

RECOVERER_MASK = 15
RECOVERED_ONE = 16
CLAIM_OF_FALLEN = 99  # the claim of a process that is dead from the beginning


def claim_of(program):
    """Return the claim that a program's process stores, different for a newcomer to the same
    slot."""
    return 1 + program.process + 20 * program.comes


# ---- the conditions that programs wait for ----


def is_dead(m, memory, process):
    """Return whether a process is dead: its slot is in use, and no open file holds the slot's
    byte."""
    return memory[m.used[process]] and not memory[m.byte[process]]


def process_is_to_be_recovered(m, memory, subjects):
    """Return whether one of the processes is dead and no living process is named as its
    recoverer."""
    for subject in subjects:
        name = memory[m.recoverer[subject]] & RECOVERER_MASK
        if is_dead(m, memory, subject) and (not name or is_dead(m, memory, name)):
            return True
    return False


def slot_is_free(m, memory, subjects):
    return not memory[m.used[subjects[0]]] and not memory[m.byte[subjects[0]]]


def owner_of_slot_is_dead(m, memory, subjects):
    return is_dead(m, memory, subjects[0])


def child_is_forked(m, memory, subjects):
    process, program = subjects
    return memory[m.byte[process]] >> program & 1


def it_is_awake(m, memory, subjects):
    return not memory[m.asleep[subjects[0]]]


def thread_is_awake(m, memory, _subjects):
    return not memory[m.thread_asleep]


def loop_is_told(m, memory, _subjects):
    return memory[m.loop_told]


CONDITIONS = {
    "it is awake": it_is_awake,
    "the thread is awake": thread_is_awake,
    "the loop is told": loop_is_told,
    "the permits are not locked": permits_are_free,
    "the child is forked": child_is_forked,
    "a process is to be recovered": process_is_to_be_recovered,
    "the slot is free": slot_is_free,
    "the owner of the slot is dead": owner_of_slot_is_dead,
}


# ---- the law ----


def check_processes(m, memory, living):
    """Check, when no program can move, that all dead are recovered that can be, and that no word
    names a free slot."""
    for program in living:
        for operation in program.operations:
            if operation[0] == "rescue" and any(is_dead(m, memory, s) for s in operation[1:]):
                raise Violation("a dead process is never recovered (C2)")
    for process in range(1, m.processes + 1):
        name = memory[m.recoverer[process]] & RECOVERER_MASK
        if name and not memory[m.used[name]]:
            raise Violation(f"a free slot is named as the recoverer of process {process} (C2)")
    if m.pins:
        check_object(m, memory)


def check_object(m, memory):
    """Check, when no program can move, that every pin has a process, and that the object is in use
    or FREE."""
    owners = [memory[address] for address in m.pin_owner]
    if any(owner and not memory[m.used[owner]] for owner in owners):
        raise Violation("the owner of a pin has no process slot (C1)")
    pinned = any(memory[address] for address in m.pin_ref)
    if not (memory[m.refers] or pinned or state_of(memory[m.thing]) == FREE):
        raise Violation("an object is lost (C1)")


# ---- programs ----


def process_is_dead(m, process):
    """Load the claim, ask the kernel about the byte, and load the claim again."""
    claim = yield load(m.used[process])
    if claim == 0:
        return False
    held = yield load(m.byte[process])
    if held:
        return False
    again = yield load(m.used[process])
    return again == claim


def rescue(m, me, *subjects):
    """Recover these processes whenever one of them is dead; never ends."""
    while True:
        yield awaits("a process is to be recovered", *subjects)
        for turn in range(len(subjects)):
            dead = yield from process_is_dead(m, subjects[turn])
            if dead:
                yield from process_recover(m, me, subjects[turn])


def process_recover(m, me, subject):
    """Recover a dead process, unless another process is recovering it."""
    entered = yield from recoverer_enter(m, me, subject)
    if not entered:
        return
    dead = True
    if m.keeps("a recoverer checks the death again after it is named"):
        dead = yield from process_is_dead(m, subject)
    if dead:
        yield begin("recover")
        early = m.keeps("words that name a process are cleared before its slot is free")
        if early:
            yield from contexts_recover(m, subject)
        else:
            yield from contexts_recover(m, subject, False)
        yield store(m.used[subject], 0)
        if not early:
            yield from recoverers_forget(m, subject)
        yield end()
    word = yield load(m.recoverer[subject])
    yield store(m.recoverer[subject], word & ~RECOVERER_MASK)


def recoverer_lives(m, word):
    """Return whether a word recoverer names a living process."""
    name = word & RECOVERER_MASK
    if name == 0:
        return False
    dead = yield from process_is_dead(m, name)
    return not dead


def recoverer_enter(m, me, subject):
    """Become the recoverer of subject, unless a living process is."""
    seen = yield load(m.recoverer[subject])
    lives = False
    if m.keeps("a living recoverer is not replaced"):
        lives = yield from recoverer_lives(m, seen)
    if lives:
        return False
    counted = RECOVERED_ONE if m.keeps("the word recoverer counts recoveries") else 0
    word = (seen & ~RECOVERER_MASK) + counted + me.process
    if m.keeps("a recoverer is named by a compare-and-swap"):
        done = yield cas(m.recoverer[subject], seen, word)
        return done
    yield store(m.recoverer[subject], word)
    return True


def contexts_recover(m, subject, forget=True):
    """Recover all contexts of a dead process, and clear the words that name the process."""
    for context in range(1, m.contexts + 1):
        owner = yield load(m.of(context, "owner"))
        if owner == subject:
            yield from context_recover(m, context)
        del owner
    if forget and m.keeps("the recovery of a process clears the words that name it"):
        yield from recoverers_forget(m, subject)


def recoverers_forget(m, dead):
    for process in range(1, m.processes + 1):
        seen = yield load(m.recoverer[process])
        if seen & RECOVERER_MASK == dead:
            yield cas(m.recoverer[process], seen, seen & ~RECOVERER_MASK)
        del seen


def join(m, me):
    """Play process_register: wait until the slot is free, and take it."""
    done = False
    while not done:
        yield awaits("the slot is free", me.process)
        locked = yield byte(m.byte[me.process], "lock")
        if locked:
            done = yield cas(m.used[me.process], 0, claim_of(me))
        if locked and not done:
            yield byte(m.byte[me.process], "close")


def inherit(m, me):
    """Play slot_inherit, tried once: recover the dead owner of the slot, and take the slot over."""
    slot = me.process
    yield awaits("the owner of the slot is dead", slot)
    claim = yield load(m.used[slot])
    locked = yield byte(m.byte[slot], "lock")
    if not locked:
        return
    again = yield load(m.used[slot])
    lives = False
    if m.keeps("an heir looks for a recoverer after it has locked the byte"):
        word = yield load(m.recoverer[slot])
        lives = yield from recoverer_lives(m, word)
    done = False
    if again == claim and claim and not lives:
        yield begin("recover")
        yield from contexts_recover(m, slot)
        yield end()
        done = yield cas(m.used[slot], claim, claim_of(me))
    if not done:
        yield byte(m.byte[slot], "close")
