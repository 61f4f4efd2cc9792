"""Contexts with damaged fields: neither their next user nor their recovery crashes."""

import contextlib
import signal

import pytest
from support.children import Child
from support.core.picture import held_by

import shmrhash


def end_of_child(function):
    """The exit code of a forked child that calls function: 0 if it returns, or raises an Error of
    the package, within ten seconds."""

    def act():
        signal.alarm(10)
        with contextlib.suppress(shmrhash.Error):
            function()

    return Child(act).join()


@pytest.mark.parametrize("field", ["element", "line", "line_stash"])
def test_claim_of_a_damaged_context_does_not_crash(victim, field):
    """H1: the process that claims a context does not trust the fields that it finds there.

    The child's handle registers itself and claims the first free context.
    """
    for index in range(1, 8):
        victim.set(victim.picture.context(index), field, 1 << 40)

    assert end_of_child(lambda: victim.map.update(bytes(8), bytes(8))) == 0


HUGE = 1 << 40
LIST_GIVEN = 1 << 32
GIVEN_RUN = {"depot": 1, "block": 1, "list_count": LIST_GIVEN | 1000000}
INSERT, DELETE, SPLIT, MERGE = range(1, 5)
DEATHS = {
    "element": {"element": HUGE},
    "element, a little too large": {"element": 0xF0000000},
    "line": {"line": HUGE},
    "line_stash": {"line_stash": HUGE},
    "target": {"target": HUGE},
    "bucket": {"operation": INSERT, "bucket": HUGE},
    "bucket, the largest": {"operation": INSERT, "bucket": 2**64 - 1},
    "inserted element": {"operation": INSERT, "bucket": 0, "element": HUGE},
    "deleted element": {"operation": DELETE, "bucket": 0, "element": HUGE},
    "split parent": {"operation": SPLIT, "bucket": HUGE, "child": 5},
    "split child": {"operation": SPLIT, "bucket": 1, "child": HUGE},
    "merge parent": {"operation": MERGE, "bucket": HUGE, "child": 5},
    "element from a depot": {"depot": 1, "element": HUGE},
    "chain for a depot": {"depot": 1, "list_count": 3, "list_head": HUGE, "list_tail": HUGE},
    "run for a block": GIVEN_RUN | {"list_head": HUGE, "list_tail": HUGE},
    "run for a block, its tail": GIVEN_RUN | {"list_head": 2, "list_tail": HUGE},
    "run for a block, its count": GIVEN_RUN | {"list_head": 2, "list_tail": 3},
    "depot": {"depot": HUGE},
    "block": {"block": HUGE},
    "region": {"region": HUGE},
}


@pytest.mark.parametrize("what", DEATHS)
def test_recovery_of_a_damaged_context_does_not_crash(victim, what):
    """H1: a dead process's context has a damaged field, and holds the locks of its operation.

    A used process slot whose byte no process locks belongs to a dead process.
    """
    victim.set(victim.picture.processes[7], "used", 1)
    context = victim.foreign_context()
    victim.set(context, "owner", 8)
    victim.set(context, "activity", 1)
    for field, value in DEATHS[what].items():
        victim.set(context, field, value)
    if "operation" in DEATHS[what]:
        victim.set(victim.buckets[0], "header", victim.buckets[0].header | held_by(3))
        if "child" in DEATHS[what]:
            victim.set(victim.header, "table", victim.header.table | held_by(3))
    if "depot" in DEATHS[what]:
        victim.set(victim.picture.depots[0], "word", victim.picture.depots[0].word | held_by(3))
    if "block" in DEATHS[what] and DEATHS[what]["block"] == 1:
        words = victim.picture.element_words
        victim.set(words, 0, words[0] | held_by(3))
    before = bytes(victim.picture.memory)
    name = victim.map.name

    try:
        assert end_of_child(lambda: shmrhash.RHashMap.open(name, timeout=0).close()) == 0
    finally:
        victim.picture.memory[:] = before
