"""The memory orders of the core's accesses, one by one, on a machine that orders nothing by itself.

Each litmus test (orders.py, orders_of_*.py) has an outcome that must not happen. With the orders of
the code it is not reachable; without an order that the test needs, it is.
"""

import re
from pathlib import Path

import pytest
from support.protocol import (  # with tests
    orders_of_buckets,
    orders_of_claims,
    orders_of_handles,
    orders_of_hazards,
)
from support.protocol.litmus import (
    ACQUIRE,
    RELAXED,
    RELEASE,
    Litmus,
    cas,
    fence,
    load,
    lock,
    membarrier,
    store,
)
from support.protocol.orders import TESTS, Orders, a_key_is_overwritten_after_dead

TABLE = (Path(__file__).parent / "README.md").read_text().partition("\n## The orders\n")[2]
CORE = Path(__file__).resolve().parents[2] / "cython"

# The tests whose outcome the memory model of C allows and ARMv8 does not.
RESTS_ON_THE_MACHINE = {
    "a_key_is_overwritten_after_dead",
    "a_waiter_sees_the_word_taken_or_its_writer_sees_that_it_waits",
}

assert orders_of_buckets.usable_memory_is_there in TESTS.values()
assert orders_of_claims.one_of_a_circle_sees_it in TESTS.values()
assert orders_of_handles.an_operation_or_the_end_of_its_handle_sees_the_other in TESTS.values()
assert orders_of_hazards.an_object_under_a_hazard_stays in TESTS.values()


def every_order():
    """(test, order, whether the test needs it) for all tests."""
    for name, build in TESTS.items():
        orders = Orders()
        build(orders)
        for order, needed in orders.needed.items():
            yield pytest.param(name, order, needed, id=f"{name}-{order}")


@pytest.mark.parametrize("name", TESTS)
def test_orders_of_the_code_forbid_the_outcome(name):
    """R2, W1, C1, M1: with the orders of the code the outcome is not reachable."""
    assert TESTS[name](Orders()).reachable() is None


@pytest.mark.parametrize(("name", "order", "needed"), list(every_order()))
def test_relaxed_order_permits_the_outcome_if_it_is_needed(name, order, needed):
    """R2, W1, C1, M1: if an order is relaxed, the outcome is reachable exactly if a table in
    support/protocol/orders*.py calls the order needed."""
    relaxed = TESTS[name](Orders(relaxed=order))

    assert (relaxed.reachable() is not None) == needed


def test_the_table_names_the_orders_of_the_litmus_tests_and_the_spare_ones():
    needed = {}
    for build in TESTS.values():
        orders = Orders()
        build(orders)
        for order, needs in orders.needed.items():
            needed[order] = needed.get(order, False) or needs
    spare = {order for order, needs in needed.items() if not needs}

    assert set(needed) == set(re.findall(r"^\| `([^`]+)` ", TABLE, re.MULTILINE))
    assert spare == set(re.findall(r"^\| `([^`]+)` [^\n]*\| spare[^\n]*$", TABLE, re.MULTILINE))


@pytest.mark.parametrize("name", TESTS)
def test_orders_forbid_the_outcome_in_the_memory_model_of_c(name):
    """W1: if an acquire may pass an earlier release, as in C, only one outcome is reachable."""
    litmus = TESTS[name](Orders())
    litmus.rcsc = False

    assert (litmus.reachable() is not None) == (name in RESTS_ON_THE_MACHINE)


def test_a_fence_after_dead_would_hold_by_the_memory_model_of_c():
    litmus = a_key_is_overwritten_after_dead(Orders(), after_dead=RELEASE)
    litmus.rcsc = False

    assert litmus.reachable() is None


# ---- the table ----


def ordered_functions():
    """The file and function of each ordered access in the core and in the extension's classes."""
    access = re.compile(r"\b((load|cas)_acq\w+|store_release_u\d+|fence_\w+|add_acq\w*)\(")
    for path in sorted(CORE.rglob("*.p[xy][dix]")):
        function = None
        for line in path.read_text().splitlines():
            code = line.split("#")[0]
            found = re.match(r"\s*(?:cdef|def)\b[^=(]*?(\w+)\(", code)
            function = found[1] if found else function
            if access.search(code) and path.stem != "atomics":
                yield f"{path.name} {function}"


@pytest.mark.skipif(not CORE.is_dir(), reason="the core's sources are not here")
def test_every_ordered_access_is_in_the_table():
    missing = {place for place in ordered_functions() if f"`{place}`" not in TABLE}

    assert not missing


# ---- the machine itself ----

MESSAGE = [store("data", 1) + store("flag", 1), load("flag", "f") + load("data", "d")]


def late(registers):
    return registers["f"] == 1 and registers["d"] == 0


@pytest.mark.parametrize(
    ("release", "acquire"), [(RELEASE, RELAXED), (RELAXED, ACQUIRE), (RELAXED, RELAXED)]
)
def test_message_without_both_orders_can_be_late(release, acquire):
    writer = store("data", 1) + store("flag", 1, release)
    reader = load("flag", "f", acquire) + load("data", "d")

    assert Litmus([writer, reader], late).reachable()


def test_message_with_both_orders_is_never_late():
    ordered = [
        store("data", 1) + store("flag", 1, RELEASE),
        load("flag", "f", ACQUIRE) + load("data", "d"),
    ]
    fenced = [
        store("data", 1) + fence(RELEASE) + store("flag", 1),
        load("flag", "f") + fence(ACQUIRE) + load("data", "d"),
    ]

    assert Litmus(ordered, late).reachable() is None
    assert Litmus(fenced, late).reachable() is None


def test_two_threads_can_miss_each_others_stores():
    """Only a full fence orders a store before a later load; membarrier makes one in both."""
    first = store("x", 1) + load("y", "y")
    second = store("y", 1, RELEASE) + load("x", "x", ACQUIRE)

    def missed(registers):
        return registers["x"] == registers["y"] == 0

    assert Litmus([first, second], missed).reachable()
    one_sided = [first, store("y", 1) + membarrier() + load("x", "x")]
    assert Litmus(one_sided, missed).reachable() is None


def test_store_can_pass_an_earlier_cas():
    """As on ARMv8: a store after a CAS may be seen before the CAS's own store."""
    writer = cas("flag", 0, 1, acquire=ACQUIRE, release=RELEASE) + store("data", 1)
    reader = load("data", "d", ACQUIRE) + load("flag", "f")

    assert Litmus([writer, reader], lambda r: r["d"] == 1 and r["f"] == 0).reachable()


def test_lock_is_held_by_one_thread():
    both = [lock("lock"), lock("lock")]

    assert Litmus(both, lambda r: True).reachable() is None
