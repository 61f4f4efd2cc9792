"""The checker, tested with histories written by hand, and against a search of every order.

test_histories.py tests the map; here the checker itself, which judges W1, is tested.
"""

import itertools
import random

import pytest
from support.history.checker import (
    ABSENT,
    ALL_SEMANTICS,
    EXISTS,
    FULL,
    MISSING,
    OK,
    SEMANTICS,
    Operation,
    essence,
    is_linearizable,
    linearization,
    rendered,
)


def did(process, start, end, name, *arguments, gives=OK):
    return Operation(process, name, arguments, gives, start, end)


def never_returned(process, start, name, *arguments):
    return Operation(process, name, arguments, None, start, None)


# ---- what each operation does ----


@pytest.mark.parametrize(
    ("before", "name", "arguments", "after", "result"),
    [
        (ABSENT, "lookup", (), ABSENT, ABSENT),
        (7, "lookup", (), 7, 7),
        (ABSENT, "contains", (), ABSENT, False),
        (7, "contains", (), 7, True),
        (ABSENT, "update", (8,), 8, OK),
        (7, "update", (8,), 8, OK),
        (ABSENT, "insert", (8,), 8, OK),
        (7, "insert", (8,), 7, EXISTS),
        (ABSENT, "replace", (8,), ABSENT, MISSING),
        (7, "replace", (8,), 8, OK),
        (ABSENT, "delete", (), ABSENT, MISSING),
        (7, "delete", (), ABSENT, OK),
        (ABSENT, "lookup_and_delete", (), ABSENT, MISSING),
        (7, "lookup_and_delete", (), ABSENT, 7),
        (ABSENT, "add", (5,), ABSENT, MISSING),
        (ABSENT, "add", (5, 100), 105, 105),
        (7, "add", (5,), 12, 12),
        (7, "add", (5, 100), 12, 12),
        ((1 << 63) - 1, "add", (1,), -(1 << 63), -(1 << 63)),
        (7, "compare_and_swap", (7, 8), 8, True),
        (7, "compare_and_swap", (6, 8), 7, False),
        (ABSENT, "compare_and_swap", (7, 8), ABSENT, False),
        (7, "exchange", (8,), 8, 7),
        (ABSENT, "exchange", (8,), ABSENT, MISSING),
        (7, "setdefault", (8,), 7, 7),
        (ABSENT, "setdefault", (8,), 8, 8),
        (7, "pop", (), ABSENT, 7),
        (7, "pop", (9,), ABSENT, 7),
        (ABSENT, "pop", (), ABSENT, MISSING),
        (ABSENT, "pop", (9,), ABSENT, 9),
        (7, "locked", (8,), 8, 7),
        (ABSENT, "locked", (8,), ABSENT, MISSING),
    ],
)
def test_one_operation_has_one_outcome(before, name, arguments, after, result):
    """W1: an operation has this result only, and a later lookup finds this value only."""
    told = did(0, 0, 1, name, *arguments, gives=result)
    told_otherwise = told._replace(result="something else")
    found = did(0, 2, 3, "lookup", gives=after)

    assert is_linearizable([told, found], before)
    assert not is_linearizable([told_otherwise], before)
    assert not is_linearizable([told, found._replace(result="something else")], before)


@pytest.mark.parametrize(
    ("before", "name", "arguments", "after", "result"),
    [
        (ABSENT, "get", (), ABSENT, ABSENT),
        ((7, 1), "get", (), 7, 7),
        ((7, 1), "store", (8,), 8, OK),
        (ABSENT, "store_new", (8,), 8, OK),
        ((7, 1), "store_new", (8,), 7, EXISTS),
        (ABSENT, "touch", (8,), ABSENT, MISSING),
        ((7, 1), "touch", (8,), 7, OK),
        (ABSENT, "remove", (), ABSENT, MISSING),
        ((7, 1), "remove", (), ABSENT, OK),
        (ABSENT, "refused", (), ABSENT, FULL),
        ((7, 1), "refused", (), 7, OK),
        (ABSENT, "expire", (1,), ABSENT, OK),
        ((7, 1), "expire", (1,), ABSENT, OK),
        ((7, 2), "expire", (1,), 7, OK),
    ],
)
def test_one_operation_on_what_expires_has_one_outcome(before, name, arguments, after, result):
    """X1: an operation on an entry with a value and a deadline has one result and one effect."""
    told = did(0, 0, 1, name, *arguments, gives=result)
    found = did(0, 2, 3, "get", gives=after)

    assert is_linearizable([told, found], before)
    assert not is_linearizable([told._replace(result="something else")], before)
    assert not is_linearizable([told, found._replace(result="something else")], before)


@pytest.mark.parametrize(
    ("before", "name", "arguments", "after", "result"),
    [
        ((7, 8), "exchange_all", ((1, 2),), (1, 2), (7, 8)),
        ((7, 8), "look_at_all", (), (7, 8), (7, 8)),
        ((7, 8), "exchange_one", (1, 3), (7, 3), 8),
    ],
)
def test_one_operation_on_several_keys_has_one_outcome(before, name, arguments, after, result):
    """L2: an operation that reads and writes several keys in one step has one result."""
    told = did(0, 0, 1, name, *arguments, gives=result)
    found = did(0, 2, 3, "look_at_all", gives=after)

    assert is_linearizable([told, found], before)
    assert not is_linearizable([told._replace(result="something else")], before)
    assert not is_linearizable([told, found._replace(result="something else")], before)


def test_every_operation_has_a_test_of_its_outcome():
    tests = (
        test_one_operation_has_one_outcome,
        test_one_operation_on_what_expires_has_one_outcome,
        test_one_operation_on_several_keys_has_one_outcome,
    )
    cases = [case for test in tests for mark in test.pytestmark for case in mark.args[1]]

    assert set(ALL_SEMANTICS) == {name for _, name, *_ in cases}


# ---- orders that time allows ----

LINEARIZABLE = {
    "nothing at all": (ABSENT, []),
    "a write, then a read of it": (
        ABSENT,
        [did(0, 0, 1, "update", 1), did(1, 2, 3, "lookup", gives=1)],
    ),
    "a read during a write finds the old value": (
        7,
        [did(0, 0, 9, "update", 1), did(1, 2, 3, "lookup", gives=7)],
    ),
    "a read during a write finds the new value": (
        7,
        [did(0, 0, 9, "update", 1), did(1, 2, 3, "lookup", gives=1)],
    ),
    "a read that began first sees a write that returned first": (
        7,
        [did(0, 0, 9, "lookup", gives=1), did(1, 2, 3, "update", 1)],
    ),
    "reads during two writes see them in the other order than they began": (
        ABSENT,
        [
            did(0, 0, 9, "update", 1),
            did(1, 1, 9, "update", 2),
            did(2, 2, 3, "lookup", gives=2),
            did(2, 4, 5, "lookup", gives=1),
        ],
    ),
    "of two inserts at the same time, the later to begin wins": (
        ABSENT,
        [
            did(0, 0, 9, "insert", 1, gives=EXISTS),
            did(1, 1, 8, "insert", 2),
            did(2, 10, 11, "lookup", gives=2),
        ],
    ),
    "equal times leave the order open": (
        7,
        [did(0, 0, 5, "update", 1), did(1, 5, 6, "lookup", gives=7)],
    ),
    "a chain of swaps that began in the opposite order": (
        1,
        [
            did(0, 0, 9, "compare_and_swap", 3, 4, gives=True),
            did(1, 1, 9, "compare_and_swap", 2, 3, gives=True),
            did(2, 2, 9, "compare_and_swap", 1, 2, gives=True),
        ],
    ),
    "additions that each saw the others": (
        0,
        [
            did(0, 0, 9, "add", 1, gives=7),
            did(1, 0, 9, "add", 2, gives=2),
            did(2, 0, 9, "add", 4, gives=6),
        ],
    ),
    "a value comes back by its own insertion": (
        1,
        [
            did(0, 0, 9, "lookup_and_delete", gives=1),
            did(1, 1, 8, "insert", 1),
            did(2, 10, 11, "lookup", gives=1),
        ],
    ),
}

NOT_LINEARIZABLE = {
    "a read that is stale": (
        7,
        [did(0, 0, 1, "update", 1), did(1, 2, 3, "lookup", gives=7)],
    ),
    "a read that goes back": (
        7,
        [
            did(0, 0, 9, "update", 1),
            did(1, 1, 2, "lookup", gives=1),
            did(2, 3, 4, "lookup", gives=7),
        ],
    ),
    "a process does not read its own write": (
        7,
        [did(0, 0, 1, "update", 1), did(0, 1, 2, "lookup", gives=7)],
    ),
    "a value that no operation wrote": (
        7,
        [did(0, 0, 9, "update", 1), did(1, 0, 9, "lookup", gives=2)],
    ),
    "a value of an insertion that failed": (
        7,
        [did(0, 0, 9, "insert", 1, gives=EXISTS), did(1, 0, 9, "lookup", gives=1)],
    ),
    "a value before any operation wrote it": (
        7,
        [did(1, 0, 1, "lookup", gives=1), did(0, 2, 3, "update", 1)],
    ),
    "a lost addition": (
        0,
        [did(0, 0, 9, "add", 1, gives=1), did(1, 0, 9, "add", 2, gives=2)],
    ),
    "a lost update": (
        ABSENT,
        [
            did(0, 0, 9, "update", 1),
            did(1, 0, 9, "update", 2),
            did(2, 10, 11, "lookup", gives=ABSENT),
        ],
    ),
    "a lost exchange": (
        7,
        [did(0, 0, 9, "exchange", 1, gives=7), did(1, 0, 9, "exchange", 2, gives=7)],
    ),
    "two swaps of one value": (
        7,
        [
            did(0, 0, 9, "compare_and_swap", 7, 1, gives=True),
            did(1, 0, 9, "compare_and_swap", 7, 2, gives=True),
        ],
    ),
    "a swap that failed though only its value was ever there": (
        7,
        [did(0, 0, 9, "compare_and_swap", 7, 1, gives=False)],
    ),
    "a value popped twice": (
        7,
        [
            did(0, 0, 9, "lookup_and_delete", gives=7),
            did(1, 0, 9, "lookup_and_delete", gives=7),
        ],
    ),
    "a value popped twice by different operations": (
        7,
        [did(0, 0, 9, "pop", gives=7), did(1, 0, 9, "lookup_and_delete", gives=7)],
    ),
    "deleted twice": (7, [did(0, 0, 9, "delete"), did(1, 0, 9, "delete")]),
    "inserted twice": (
        ABSENT,
        [did(0, 0, 9, "insert", 1), did(1, 0, 9, "insert", 2)],
    ),
    "two defaults set": (
        ABSENT,
        [did(0, 0, 9, "setdefault", 1, gives=1), did(1, 0, 9, "setdefault", 2, gives=2)],
    ),
    "two locked sections that read the same value": (
        7,
        [did(0, 0, 9, "locked", 1, gives=7), did(1, 0, 9, "locked", 2, gives=7)],
    ),
    "a write inside a locked section is lost": (
        7,
        [
            did(0, 0, 9, "locked", 1, gives=7),
            did(1, 1, 2, "replace", 2),
            did(1, 3, 4, "lookup", gives=2),
            did(1, 5, 6, "lookup", gives=7),
        ],
    ),
    "a key that is found after its deletion": (
        7,
        [did(0, 0, 1, "delete"), did(1, 2, 3, "contains", gives=True)],
    ),
    "a key replaced after its deletion": (
        7,
        [did(0, 0, 1, "delete"), did(1, 2, 3, "replace", 1)],
    ),
    "two readers disagree about the order of two writes": (
        ABSENT,
        [
            did(0, 0, 9, "update", 1),
            did(1, 0, 9, "update", 2),
            did(2, 1, 2, "lookup", gives=1),
            did(2, 3, 4, "lookup", gives=2),
            did(3, 1, 2, "lookup", gives=2),
            did(3, 3, 4, "lookup", gives=1),
        ],
    ),
    "writes in the other order than time": (
        ABSENT,
        [
            did(0, 0, 1, "update", 1),
            did(1, 2, 3, "update", 2),
            did(2, 4, 5, "lookup", gives=1),
        ],
    ),
    "a mixture of two values": (
        7,
        [did(0, 0, 9, "update", 1), did(1, 0, 9, "lookup", gives="a mixture")],
    ),
}


@pytest.mark.parametrize(("initial", "history"), LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_history_with_an_order_is_accepted(initial, history):
    """W1: the returned order has the history's operations, keeps time, and explains their
    results."""
    order = linearization(history, initial)

    assert order is not None
    assert sorted(order) == sorted(history)
    assert is_in_time(order)
    assert explains(order, initial)


@pytest.mark.parametrize(("initial", "history"), NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_history_without_an_order_is_refused(initial, history):
    """W1: a history without an order is refused, however its operations are listed."""
    for listed in itertools.permutations(history) if len(history) < 5 else [history]:
        assert linearization(listed, initial) is None


# ---- operations that never returned ----

PENDING = {
    "had no effect": (7, [never_returned(0, 0, "update", 1), did(1, 5, 6, "lookup", gives=7)]),
    "had its effect": (7, [never_returned(0, 0, "update", 1), did(1, 5, 6, "lookup", gives=1)]),
    "had its effect after all other operations but one": (
        7,
        [
            never_returned(0, 0, "update", 1),
            did(1, 5, 6, "lookup", gives=7),
            did(1, 7, 8, "replace", 2),
            did(1, 90, 91, "lookup", gives=1),
        ],
    ),
    "deleted a value that was inserted much later": (
        ABSENT,
        [
            never_returned(0, 0, "lookup_and_delete"),
            did(1, 50, 51, "insert", 1),
            did(1, 52, 53, "lookup", gives=ABSENT),
        ],
    ),
    "two took effect in the other order": (
        ABSENT,
        [
            never_returned(0, 0, "insert", 1),
            never_returned(1, 1, "update", 2),
            did(2, 5, 6, "lookup", gives=2),
            did(2, 7, 8, "lookup", gives=2),
        ],
    ),
    "an addition that one result needs": (
        10,
        [never_returned(0, 0, "add", 5), did(1, 5, 6, "add", 1, gives=16)],
    ),
    "nothing returned": (7, [never_returned(0, 0, "update", 1), never_returned(1, 0, "delete")]),
}

PENDING_WRONG = {
    "had its effect and lost it": (
        7,
        [
            never_returned(0, 0, "update", 1),
            did(1, 5, 6, "lookup", gives=1),
            did(1, 7, 8, "lookup", gives=7),
        ],
    ),
    "had its effect before it began": (
        7,
        [did(1, 0, 1, "lookup", gives=1), never_returned(0, 2, "update", 1)],
    ),
    "had its effect twice": (
        10,
        [
            never_returned(0, 0, "add", 5),
            did(1, 5, 6, "lookup", gives=15),
            did(1, 7, 8, "lookup", gives=20),
        ],
    ),
    "deleted twice": (
        7,
        [
            never_returned(0, 0, "delete"),
            did(1, 5, 6, "lookup", gives=ABSENT),
            did(1, 7, 8, "insert", 1),
            did(1, 9, 10, "lookup", gives=ABSENT),
        ],
    ),
    "replaced an absent key": (
        ABSENT,
        [never_returned(0, 0, "replace", 1), did(1, 5, 6, "lookup", gives=1)],
    ),
    "had half of its effect": (
        7,
        [never_returned(0, 0, "update", 1), did(1, 5, 6, "lookup", gives="a mixture")],
    ),
    "undid other operations": (
        7,
        [
            never_returned(0, 0, "update", 1),
            did(1, 5, 6, "update", 2),
            did(1, 7, 8, "lookup", gives=7),
        ],
    ),
}


@pytest.mark.parametrize(("initial", "history"), PENDING.values(), ids=PENDING)
def test_pending_operation_may_have_happened_or_not(initial, history):
    """C1: a pending operation may take effect once, at any time after it began, or never."""
    assert is_linearizable(history, initial)


@pytest.mark.parametrize(("initial", "history"), PENDING_WRONG.values(), ids=PENDING_WRONG)
def test_pending_operation_happened_at_most_once_and_whole(initial, history):
    """C1: a pending operation has no effect twice, in part or before its start, and undoes
    nothing."""
    assert not is_linearizable(history, initial)


# ---- against every order ----


def is_in_time(order):
    return not any(
        later.end is not None and later.end < earlier.start
        for earlier, later in itertools.combinations(order, 2)
    )


def explains(order, value):
    for operation in order:
        value, result = SEMANTICS[operation.name](value, *operation.arguments)
        if not operation.pending and result != operation.result:
            return False
    return True


def has_an_order(history, initial):
    """Apply the definition: try every order of all that returned, with any of the pending
    operations."""
    returned = [operation for operation in history if not operation.pending]
    pending = [operation for operation in history if operation.pending]
    return any(
        is_in_time(order) and explains(order, initial)
        for count in range(len(pending) + 1)
        for some in itertools.combinations(pending, count)
        for order in itertools.permutations([*returned, *some])
    )


ARGUMENTS = {
    "update": (1, 2, 3),
    "insert": (1, 2, 3),
    "replace": (1, 2, 3),
    "exchange": (1, 2, 3),
    "setdefault": (1, 2, 3),
    "locked": (1, 2, 3),
    "add": (1, -1),
}


def random_operation(rng, process, start, end):
    name = rng.choice(list(SEMANTICS))
    if name == "compare_and_swap":
        arguments = (rng.randrange(4), rng.randrange(4))
    elif name == "add" and rng.random() < 0.5:
        arguments = (1, rng.randrange(3))
    else:
        arguments = (rng.choice(ARGUMENTS[name]),) if name in ARGUMENTS else ()
    return Operation(process, name, arguments, None, start, end)


def random_history(rng, operations):
    """Operations of three processes, executed one by one, each at a random time of its interval.

    So the history is linearizable; some operations never return, whether done or not.
    """
    initial = rng.choice((ABSENT, 0, 1))
    clocks = [0, 0, 0]
    timed = []
    for _ in range(operations):
        process = rng.randrange(3)
        start = clocks[process] + rng.randrange(1, 4)
        end = clocks[process] = start + rng.randrange(6)
        timed.append((rng.uniform(start, end), random_operation(rng, process, start, end)))
    value, history = initial, []
    for _, operation in sorted(timed, key=lambda pair: pair[0]):
        value, result = SEMANTICS[operation.name](value, *operation.arguments)
        history.append(operation._replace(result=result))
    for process in range(3):
        own = [operation for operation in history if operation.process == process]
        if own and rng.random() < 0.3:
            last = max(own, key=lambda operation: operation.start)
            history[history.index(last)] = last._replace(end=None, result=None)
    return initial, history


def falsified(rng, history):
    """Return the history with one result changed, possibly to a result that is right, too."""
    number = rng.randrange(len(history))
    result = rng.choice((ABSENT, 0, 1, 2, 3, True, False, OK, EXISTS, MISSING))
    changed = list(history)
    if not changed[number].pending:
        changed[number] = changed[number]._replace(result=result)
    return changed


def test_history_of_sequential_execution_is_accepted(seed):
    """W1, C1: long random histories of a register with one operation at a time are accepted."""
    rng = random.Random(seed)

    for _ in range(300):
        initial, history = random_history(rng, 40)
        assert is_linearizable(history, initial), rendered(history, initial)


def test_verdict_agrees_with_a_search_of_every_order(seed):
    """W1, C1: the checker and a search of every order agree on short histories, true and
    falsified."""
    rng = random.Random(seed)
    verdicts = []

    for _ in range(1500):
        initial, history = random_history(rng, rng.randrange(1, 6))
        if rng.random() < 0.8:
            history = falsified(rng, history)
        verdicts.append(is_linearizable(history, initial))
        assert has_an_order(history, initial) == verdicts[-1], rendered(history, initial)

    assert min(verdicts.count(True), verdicts.count(False)) > 100


# ---- the report of a failure ----


def test_essence_is_wrong_and_has_no_lookup_to_spare(seed):
    """W1: a falsified history's essence has no order, but gets one if any of its lookups is
    removed."""
    rng = random.Random(seed)
    cut = 0

    for _ in range(300):
        initial, history = random_history(rng, 12)
        history = falsified(rng, history)
        if is_linearizable(history, initial):
            continue
        left = essence(history, initial)
        assert not is_linearizable(left, initial)
        assert not any(
            operation.name == "lookup"
            and not is_linearizable([other for other in left if other is not operation], initial)
            for operation in left
        )
        cut += len(left) < len(history)

    assert cut


def test_essence_of_a_linearizable_history_is_an_error():
    with pytest.raises(ValueError):
        essence([did(0, 0, 1, "update", 1)])


def test_table_marks_the_operation_that_no_order_explains():
    history = [
        did(0, 1000, 2000, "update", 0x1234),
        did(1, 2500, 3750, "lookup", gives=7),
        never_returned(2, 3000, "compare_and_swap", 7, 8),
    ]

    table = rendered(history, 7).splitlines()

    assert table[0] == "at first: 7"
    assert [line.split(":")[0].split()[-1] for line in table[1:]] == ["0", "1", "2"]
    assert "update(0x1234) -> ok" in table[1]
    assert table[2].endswith("lookup() -> 7   <- no order explains this")
    assert "1.50 to     2.75" in table[2]
    assert table[3].endswith("compare_and_swap(7, 8) -> had not returned")
    assert rendered([]) == "no operations"
