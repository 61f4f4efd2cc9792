"""Views of objects, and the slot that a process claims for a child before it forks (R2, C1, C3).

Models pins.pxd, forking.pxd and what they use of object.pxd. There is one object, and at first an
entry refers to it. A pin protects a view of the object: a slot that names its process and what it
pins. A context that takes the object from its entry searches the pins; so does one that ends a pin.
(Fences ensure that of two contexts at least one sees the other's store; in this model all stores
are seen at once.)

A child has its parent's views from its first instruction on, and the parent may be killed, or end
its own views, at any time.
"""

from support.protocol.automaton import awaits, begin, byte, cas, end, load, own, put, store
from support.protocol.segment_model import ALLOC, FREE, RETIRED, owner_of, state_of

REF = 1  # the name of the object
PINS = 2
CLAIM_OF_UNBORN = 50  # the claim for a child that has no pid yet
PIN_OF_PARENT, PIN_OF_CHILD = range(PINS)


# ---- objects and pins ----


def pins_find(m):
    """Return whether any pin names the object."""
    for at in range(PINS):
        ref = yield load(m.pin_ref[at])
        if ref == REF:
            return True
        del ref
    return False


def retired_take(m, me):
    """RETIRED -> ALLOC of this context, unless a pin names it or another context was first."""
    header = yield load(m.thing)
    if state_of(header) != RETIRED:
        return False
    if m.keeps("a retired object is taken only if no pin names it"):
        pinned = yield from pins_find(m)
        if pinned:
            return False
    done = yield cas(m.thing, header, m.header_after(header, ALLOC, me))
    return done


def owned_refs_free(m, me):
    """Give back the object that the context names, if this context owns it and no pin names it."""
    name = yield own(m.of_name[me])
    if name == 0:
        return
    mine = yield from retired_take(m, me)
    header = yield load(m.thing)
    if not mine and (owner_of(header) != me or state_of(header) != ALLOC):
        yield put(m.of_name[me], 0)
        return
    pinned = False
    if m.keeps("a context that owns an object searches the pins"):
        pinned = yield from pins_find(m)
    if pinned:
        yield store(m.thing, m.header_after(header, RETIRED))
        again = False
        if m.keeps("a context that retires an object searches the pins again"):
            again = yield from retired_take(m, me)
        if not again:
            yield put(m.of_name[me], 0)
            return
    yield store(m.bytes_there, 0)
    header = yield own(m.thing)
    yield store(m.thing, m.header_after(header, FREE))
    yield put(m.of_name[me], 0)


def pin_clear(m, me, pin):
    """End a pin; the context names the pinned object before that."""
    ref = yield load(m.pin_ref[pin])
    if m.keeps("a context names the pinned object before the pin ends"):
        yield put(m.of_name[me], ref)
    yield store(m.pin_ref[pin], 0)
    yield put(m.of_name[me], ref)
    yield store(m.pin_owner[pin], 0)


def recover_pins(m, me, process):
    """End every pin of a dead process, as its context."""
    yield from owned_refs_free(m, me)
    for pin in range(PINS):
        owner = yield load(m.pin_owner[pin])
        if owner == process:
            yield from pin_clear(m, me, pin)
            yield from owned_refs_free(m, me)
        del owner


def take_away(m, me):
    """An update that replaces the object by another."""
    yield begin("settle")
    yield put(m.of_name[me], REF)
    yield store(m.refers, 0)
    header = yield load(m.thing)
    yield store(m.thing, m.header_after(header, ALLOC, me))
    yield from owned_refs_free(m, me)
    yield end()


def look(m, me):
    """Use a view: load its bytes, which must have memory."""
    yield begin("view")
    yield load(m.bytes_of_thing)
    yield load(m.bytes_of_thing)
    yield end()


def let_go(m, me, pin):
    """End the view of a pin."""
    yield begin("settle")
    yield from pin_clear(m, me, pin)
    yield from owned_refs_free(m, me)
    yield end()


# ---- a child ----


def fork(m, me, child, program, fails=False):
    """Claim a slot and a context for a child, pin for it what the parent's view refers to, fork,
    and close the open file. child: the number of the child's process and context; program: the
    number of the program that plays it."""
    yield begin("settle")
    early = m.keeps("a child's slot is claimed after its byte is locked")
    if not early:
        yield cas(m.used[child], 0, CLAIM_OF_UNBORN)
    yield byte(m.byte[child], "lock")
    if early:
        yield cas(m.used[child], 0, CLAIM_OF_UNBORN)
    yield cas(m.of(child, "owner"), 0, child)
    if m.keeps("a child's view is pinned before the fork"):
        yield from pin_for_child(m, child)
    late = m.keeps("a parent closes the open file after the fork")
    if not late:
        yield byte(m.byte[child], "close")
    if not fails:
        yield byte(m.byte[child], "fork", program)
    if not m.keeps("a child's view is pinned before the fork"):
        yield from pin_for_child(m, child)
    if late:
        yield byte(m.byte[child], "close")
    yield end()


def pin_for_child(m, child):
    name = child if m.keeps("a child's pin is in the child's name") else 1
    yield store(m.pin_owner[PIN_OF_CHILD], name)
    yield store(m.pin_ref[PIN_OF_CHILD], REF)


def grow_up(m, me, program):
    """unborn_adopt, in the child: it has views at once; then it puts its own claim in its slot."""
    yield awaits("the child is forked", me, program)
    yield from look(m, me)
    yield begin("settle")
    if not m.keeps("a child keeps the open file that has the lock"):
        yield byte(m.byte[me], "close")
    yield cas(m.used[me], CLAIM_OF_UNBORN, me)
    yield end()
    yield from look(m, me)
