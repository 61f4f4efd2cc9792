"""Each primitive in each situation in which it cannot work raises a clear error, and nothing is
lost.

A primitive's table has a call for each of its public names, so a new method without a row
fails.
"""

import asyncio
import math
import re
import threading
from threading import BrokenBarrierError

import pytest
from support.children import in_child, stays
from support.waiting import LONG_S, Waiting, until

from shmrhash import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Deposed,
    Event,
    InvalidArgument,
    Leader,
    Lock,
    MapClosed,
    MapFull,
    Once,
    ReadOnlyMap,
    RHashMap,
    RLock,
    RWLock,
    Semaphore,
    Sync,
    TooManyProcesses,
)

CONTEXTS = 4096
FACTS = {"key", "space", "on_orphan", "undo", "lease", "term"}  # of the object: no cell needed


def reading(*names):
    return {name: lambda it, name=name: getattr(it, name) for name in names}


def calling(*names):
    return {name: lambda it, name=name: getattr(it, name)() for name in names}


def awaiting(name, *arguments, then=None):
    """Await this method in a task, and then call another one in the same task."""

    async def call(it):
        await getattr(it, name)(*arguments)
        if then is not None:
            getattr(it, then)()

    return {name: lambda it: asyncio.run(call(it))}


def entering(*names):
    def call(it, name):
        with getattr(it, name)():
            pass

    return {name: lambda it, name=name: call(it, name) for name in names}


def in_condition(name, *arguments):
    async def wait(it):
        async with it:
            await getattr(it, name)(*arguments)

    return {name: lambda it: asyncio.run(wait(it))}


def true():
    return True


LOCK = {
    **calling("acquire", "locked"),
    **reading("owner", "orphan", "token"),
    **calling("release"),
    **awaiting("acquire_async", then="release"),
}
SEMAPHORE = {
    **calling("acquire", "locked", "get_value", "release"),
    **awaiting("acquire_async", then="release"),
}
RWLOCK = {
    **calling("acquire_read", "release_read", "acquire_write", "release_write"),
    **awaiting("acquire_read_async", then="release_read"),
    **awaiting("acquire_write_async", then="release_write"),
    **entering("read_lock", "write_lock"),
    **reading("readers", "has_writer", "orphan"),
}
CONDITION = {
    **calling("acquire", "notify", "notify_all"),
    "wait": lambda it: it.wait(0),
    "wait_for": lambda it: it.wait_for(lambda: False, 0.001),
    **calling("release"),
    **awaiting("acquire_async", then="release"),
    **in_condition("wait_async", 0),
    **in_condition("wait_for_async", lambda: False, 0.001),
}
LEADER = {
    **calling("acquire", "check"),
    **reading("leader", "orphan"),
    **calling("release"),
    **awaiting("acquire_async", then="release"),
}

# How each primitive is made, and calls of all its methods, in an order in which they succeed.
PRIMITIVES = {
    "Lock": (lambda space, key="it": Lock(key, space=space), LOCK),
    "RLock": (lambda space, key="it": RLock(key, space=space), LOCK),
    "RWLock": (lambda space, key="it": RWLock(key, space=space), RWLOCK),
    "Semaphore": (lambda space, key="it": Semaphore(1, key, space=space), SEMAPHORE),
    "counter": (lambda space, key="it": Semaphore(1, key, space=space, undo=False), SEMAPHORE),
    "BoundedSemaphore": (lambda space, key="it": BoundedSemaphore(1, key, space=space), SEMAPHORE),
    "Event": (
        lambda space, key="it": Event(key, space=space),
        calling("set", "is_set", "wait") | awaiting("wait_async") | calling("clear"),
    ),
    "Condition": (lambda space, key="it": Condition(key=key, space=space), CONDITION),
    "Barrier": (
        lambda space, key="it": Barrier(1, key=key, space=space),
        calling("wait")
        | awaiting("wait_async")
        | reading("parties", "n_waiting", "broken")
        | calling("abort", "reset"),
    ),
    "Once": (
        lambda space, key="it": Once(key, space=space),
        reading("done") | {"run": lambda it: it.run(true)} | awaiting("run_async", true),
    ),
    "Leader": (lambda space, key="it": Leader(key, space=space), LEADER),
    "Leader with a lease": (lambda space, key="it": Leader(key, space=space, lease=60), LEADER),
}
each_primitive = pytest.mark.parametrize("name", PRIMITIVES)


def outcome(call, *arguments):
    """Return what the call raises, or None if it returns."""
    try:
        call(*arguments)
    except Exception as error:
        return error
    return None


@each_primitive
def test_each_public_name_has_a_row(space, name):
    make, uses = PRIMITIVES[name]

    assert {each for each in dir(make(space)) if not each.startswith("_")} - FACTS == set(uses)


@each_primitive
def test_closed_space_is_named_by_whatever_is_done(space, name):
    make, uses = PRIMITIVES[name]
    mine = Sync(space.name)
    it = make(mine)
    mine.close()

    for method, use in uses.items():
        error = outcome(use, it)
        assert isinstance(error, MapClosed), method
        assert str(error) == f"space {space.name!r} is closed", method
    assert "it" in repr(it) or "closed" in repr(it)
    with pytest.raises(MapClosed, match="space"):
        make(mine)


@each_primitive
def test_all_works_in_an_unlinked_space(map_name, name):
    make, uses = PRIMITIVES[name]
    with Sync(map_name) as space:
        it = make(space)
        space.unlink()
        for use in uses.values():
            use(it)
        assert make(space).key == "it"
        space.check()


# ---- deleting a lock in use, and other changes of a cell that no primitive makes ----

KEY, VALUE = bytes(56), bytes(128)
WRITES = {
    "update": lambda m, key: m.update(key, VALUE),
    "delete": lambda m, key: m.delete(key),
    "lookup_and_delete": lambda m, key: m.lookup_and_delete(key),
    "pop": lambda m, key: m.pop(key),
    "setdefault": lambda m, _key: m.setdefault(KEY, VALUE),
    "compare_and_swap": lambda m, key: m.compare_and_swap(key, m[key], VALUE),
    "exchange": lambda m, key: m.exchange(key, VALUE),
    **{
        name: lambda m, key, name=name: getattr(m, name)(key, 1)
        for name in ("add", "min", "max", "or_", "and_")
    },
    "clear": lambda m, _key: m.clear(),
    "freeze": lambda m, _key: m.freeze(),
    "update_batch": lambda m, key: m.update_batch([key], [VALUE]),
    "delete_batch": lambda m, key: m.delete_batch([key]),
    "lookup_and_delete_batch": lambda m, _key: m.lookup_and_delete_batch(None, 1),
    "update_many": lambda m, key: m.update_many([key], [VALUE]),
    "delete_many": lambda m, key: m.delete_many([key]),
    "add_many": lambda m, key: m.add_many([key], [bytes(8)]),
    "locked": lambda m, key: m.locked(key).__enter__(),
    "locked_many": lambda m, key: m.locked_many([key]).__enter__(),
    "update_with": lambda m, key: m.update_with(key, lambda value: value),
    "del []": lambda m, key: m.__delitem__(key),
    "[] =": lambda m, key: m.__setitem__(key, VALUE),
}
OF_FIELDS = {"expire", "kptr_get", "kptr_xchg", "timer_set"}  # no cell has such a field
READS = """
    check close closed contains_many dtypes ephemeral for_each frozen get get_next_key info items
    key_size keys lookup lookup_batch lookup_many map_extra map_flags max_bytes max_entries
    mem_usage name read_only recovered_at_open schema timeout to_arrays unlink value_size values
    wait wait_any wait_for wait_for_any walk watch write_only
"""
MAKES = {"create", "from_arrays", "open", "open_or_create"}


def test_each_method_that_writes_a_map_has_a_row():
    names = {name for name in dir(RHashMap) if not name.startswith("_")}

    assert names - set(READS.split()) - MAKES - OF_FIELDS == {
        name for name in WRITES if name.isidentifier()
    }


@pytest.mark.parametrize("write", WRITES)
def test_cell_of_a_lock_in_use_cannot_be_deleted_or_changed(space, write):
    lock = Lock("it", space=space)
    with lock:
        with pytest.raises(ReadOnlyMap, match=f"space '{space.name}'.*unlink"):
            WRITES[write](space.handle, lock._raw)
        assert Lock("it", space=space).locked()
        assert not space.handle.frozen
    assert space.cells() == [("it", "Lock")]


# ---- more holders than a space has room for ----

HOLDERS = {
    "Lock": (Lock, "acquire", "release"),
    "RLock": (RLock, "acquire", "release"),
    "reader": (RWLock, "acquire_read", "release_read"),
    "permit": (lambda key, *, space: Semaphore(1, key, space=space), "acquire", "release"),
}
NEEDS_NO_CONTEXT = {"counter", "Event"}


@pytest.mark.parametrize("kind", HOLDERS)
def test_more_holders_than_contexts_are_refused_and_nothing_is_lost(map_name, kind):
    make_holder, take, give = HOLDERS[kind]
    with Sync(map_name, 2 * CONTEXTS) as space:
        space.unlink()
        made = {name: make(space, name) for name, (make, _) in PRIMITIVES.items()}
        holders = [make_holder(number, space=space) for number in range(CONTEXTS)]
        assert all(getattr(it, take)(False) for it in holders)
        for name, it in made.items():
            error = outcome(next(iter(PRIMITIVES[name][1].values())), it)
            assert (error is None) == (name in NEEDS_NO_CONTEXT or name == "Once"), name
            if error is not None:
                assert isinstance(error, TooManyProcesses), name
                assert f"space {map_name!r}" in str(error), name
                assert "release some" in str(error), name
        with pytest.raises(TooManyProcesses):
            made["Once"].run(true)
        made["counter"].release()
        for it in holders:
            getattr(it, give)()
        for name, it in made.items():
            for use in PRIMITIVES[name][1].values():
                use(it)
        space.check()


def test_space_without_room_names_what_helps(map_name):
    with Sync(map_name, 1) as space:
        space.unlink()
        Lock("it", space=space)
        with pytest.raises(MapFull, match=f"space '{map_name}'.*larger max_entries"):
            Lock("another", space=space)


# ---- release by a thread or process that has not taken the primitive ----

HELD = {
    "Lock": ("acquire", ["release"]),
    "RLock": ("acquire", ["release"]),
    "RWLock": ("acquire_write", ["release_read", "release_write"]),
    "Condition": ("acquire", ["release", "notify", "notify_all", "wait"]),
    "Leader": ("acquire", ["release", "check"]),
}
ANY_THREAD_MAY = {"Lock", "RWLock", "Leader"}  # release what another thread took
SITUATIONS = ["nobody has it", "another thread has it", "another process has it", "a parent has it"]
RELEASES = {
    "nobody has it": "nobody holds it",
    "another thread has it": "another thread or task of this process holds it",
    "another process has it": "another process holds it",
    "a parent has it": "another process holds it.*nothing of its parent's",
}
OWN_WORDS = {
    ("RWLock", "release_read"): "this process does not read",
    ("RWLock", "release_write"): "this process does not write",
    **{("Condition", name): "un-acquired lock" for name in ("notify", "notify_all", "wait")},
    **{("Leader", name): "has not been the leader" for name in ("release", "check")},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("name", HELD)
def test_release_by_somebody_who_has_nothing_is_refused(space, name, situation):
    take, methods = HELD[name]
    it = PRIMITIVES[name][0](space)
    told = refusals(it, take, methods, situation)

    for method in methods:
        error = told[method]
        if situation == "another thread has it" and name in ANY_THREAD_MAY:
            assert error is None or "read" in error or "term" in error
            continue
        wanted = OWN_WORDS.get((name, method), RELEASES[situation])
        if name == "Leader" and situation == "a parent has it":
            wanted = "does not lead in term 1 any more"
        assert re.search(wanted, str(error)), (method, error)


def refusals(it, take, methods, situation):
    """Return by method the text of the error that a caller gets who has not taken the primitive."""

    def look():
        errors = {method: outcome(getattr(it, method)) for method in methods}
        for error in errors.values():
            assert error is None or isinstance(error, (RuntimeError, Deposed)), error
        return {method: error and str(error) for method, error in errors.items()}

    if situation == "nobody has it":
        return look()
    if situation == "another process has it":
        with stays(getattr(it, take)):
            told = look()
            assert not it_is_free(it, take)
        return told
    thread = threading.Thread(target=getattr(it, take))
    thread.start()
    thread.join(LONG_S)
    if situation == "a parent has it":
        told = in_child(look)
        assert not it_is_free(it, take)
        return told
    return look()


def it_is_free(it, take):
    return getattr(it, take)(False)


def test_permits_are_given_by_whoever_calls_release(space):
    """As with threading's, any thread may give a permit to a semaphore, which counts permits and
    not holders; a bounded one refuses permits beyond its limit."""
    it = BoundedSemaphore(1, "it", space=space)
    error = outcome(it.release)
    assert isinstance(error, ValueError)
    assert "'it'" in str(error)
    with pytest.raises(ValueError, match="too many"), it:
        it.release()
    assert it.get_value() == 1


# ---- timeouts ----

WAITS_AS_ACQUIRE = {
    "Lock": (Lock, "acquire", "acquire"),
    "RLock": (RLock, "acquire", "acquire"),
    "reader": (RWLock, "acquire_write", "acquire_read"),
    "writer": (RWLock, "acquire_read", "acquire_write"),
    "Semaphore": (Semaphore, "acquire", "acquire"),
    "counter": (Semaphore, "acquire", "acquire"),
    "Leader": (Leader, "acquire", "acquire"),
    "Leader with a lease": (Leader, "acquire", "acquire"),
}


def made_for(kind, space):
    names = {"reader": "RWLock", "writer": "RWLock"}
    return PRIMITIVES[names.get(kind, kind)][0](space)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("kind", WAITS_AS_ACQUIRE)
def test_timeouts_of_acquire_are_refused_as_by_threading(space, kind, taken):
    _, take, wait = WAITS_AS_ACQUIRE[kind]
    it = made_for(kind, space)
    if taken:
        thread = threading.Thread(target=getattr(it, take))
        thread.start()
        thread.join(LONG_S)
    for timeout, kind_of_error in {
        -2: ValueError,
        -0.5: ValueError,
        -math.inf: ValueError,
        math.nan: ValueError,
        math.inf: OverflowError,
        threading.TIMEOUT_MAX * 2: OverflowError,
    }.items():
        with pytest.raises(kind_of_error):
            getattr(it, wait)(True, timeout)
        if not timeout > 0:
            with pytest.raises(InvalidArgument, match="from 0 on"):
                asyncio.run(getattr(it, f"{wait}_async")(timeout))


WAITS = {
    "Event.wait": lambda space: Event("it", space=space).wait,
    "Condition.wait": lambda space: in_with(Condition(key="it", space=space), "wait"),
    "Condition.wait_for": lambda space: in_with(
        Condition(key="it", space=space), "wait_for", lambda: False
    ),
    "Barrier.wait": lambda space: Barrier(2, key="it", space=space).wait,
}


def in_with(condition, name, *arguments):
    def wait(timeout):
        with condition:
            return getattr(condition, name)(*arguments, timeout)

    return wait


@pytest.mark.parametrize("name", WAITS)
def test_negative_timeouts_of_wait_are_over_and_nan_is_refused(space, name):
    wait = WAITS[name](space)
    for timeout in (-1, -0.5, -math.inf, -(10**300)):
        result = outcome(lambda timeout=timeout: wait(timeout) or 1)
        assert result is None or isinstance(result, BrokenBarrierError)
    if name == "Barrier.wait":
        Barrier(2, key="it", space=space).reset()
    with pytest.raises(ValueError, match="a number of seconds, not nan"):
        wait(math.nan)


@pytest.mark.parametrize("timeout", [1e10, 1e300, math.inf])
def test_huge_timeouts_of_waits_are_without_limit(space, timeout):
    event, barrier = Event("e", space=space), Barrier(2, key="b", space=space)
    condition = Condition(key="c", space=space)
    waits = [
        Waiting(event.wait, timeout),
        Waiting(in_with(condition, "wait"), timeout),
        Waiting(barrier.wait, timeout),
    ]
    until(lambda: condition._waiting() == 1 and barrier.n_waiting == 1)
    waits[0].until_asleep()
    event.set()
    with condition:
        condition.notify()
    barrier.wait()

    assert [wait.result() for wait in waits[:2]] == [True, True]
    assert waits[2].result() == 0
