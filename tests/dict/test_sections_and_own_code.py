"""A program's own code uses a section while the section begins or ends (L1, L2).

The code runs when the section encodes or decodes a value, or in another thread at that time.
"""

import threading

import pytest
from support.children import in_child

import shmrhash

ACT = None  # what Acts and ActsLater call when they are pickled or unpickled


class Acts:
    """A value that calls ACT when it is pickled. What is unpickled is 7."""

    def __reduce__(self):
        ACT()
        return int, (7,)


class ActsLater:
    """A value that calls ACT when it is unpickled."""

    def __reduce__(self):
        return _act_later, ()


def _act_later():
    if ACT is not None:
        ACT()
    return ActsLater()


@pytest.fixture
def act(monkeypatch):
    """A function that sets ACT to a function; the types of the errors that the latter raises are
    appended to act.refused."""
    refused = []

    def arm(function):
        def call():
            try:
                function()
            except shmrhash.Error as error:
                refused.append(type(error))

        monkeypatch.setattr(f"{__name__}.ACT", call)

    arm.refused = refused
    return arm


@pytest.fixture
def d(make_dict):
    return make_dict(key=int, value=object, timeout=5)


def expect_free(d, key):
    """Assert that no section holds the key, in this process and in others, and that all contexts
    are at rest (L1)."""
    with d.locked(key, timeout=0, default=0) as entry:
        entry.value = 100
    in_child(lambda: d.update_with(key, lambda value: value + 1))
    assert d[key] == 101
    assert d.check()["exact"]


def test_section_that_its_pickling_rolls_back_stores_nothing(d, act):
    """L1: if pickling the new value rolls the section back, the end of the block raises, the old
    value stays, and the context is given back once."""
    d[1] = "before"
    with pytest.raises(shmrhash.InvalidArgument, match="ended its section"), d.locked(1) as entry:  # noqa: PT012
        act(entry.roll_back)
        entry.value = Acts()

    assert d[1] == "before"
    with d.locked(1), d.locked(2, default=2), d.locked(3, default=3):
        pass
    expect_free(d, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_pickling_cannot_end_its_section_or_assign_its_value(d, act, number):
    """L1, L2: code that runs while a value is pickled cannot end the section or assign to it; the
    value that is being pickled is stored."""
    d[1], d[2] = "one", "two"
    block = d.locked_many([1, 2][:number])
    entry = block.__enter__()[0]

    def meddle():
        for use in (
            lambda: entry.__exit__(None, None, None),
            lambda: setattr(entry, "value", 8),
            entry.__enter__,
        ):
            with pytest.raises(shmrhash.InvalidArgument):
                use()
        assert isinstance(entry.value, Acts)

    act(meddle)
    entry.value = Acts()
    if number == 2:
        block._sections[1].value = "new"
    block.__exit__(None, None, None)

    assert dict(d) == {1: 7, 2: "new" if number == 2 else "two"}
    expect_free(d, 1)


def test_pickling_that_deletes_its_key_deletes_it(d, act):
    """L1: if pickling a value deletes the section's key, the key is deleted, also in a block of
    several keys."""
    d[1] = "before"
    with d.locked(1) as entry:
        act(entry.delete)
        entry.value = Acts()

    assert 1 not in d
    expect_free(d, 1)


def test_pickling_that_closes_the_dict_does_not_stop_its_section(d, act):
    """L1: a section stores its value although the value's pickling closes the dict."""
    d[1] = "before"
    with shmrhash.SharedDict.open(d.name, value=object) as own:
        act(own.close)
        with own.locked(1) as entry:
            entry.value = Acts()

    assert d[1] == 7
    expect_free(d, 1)


@pytest.mark.parametrize("use", ["value", "delete", "roll_back"])
def test_key_that_a_block_leaves_unchanged_cannot_be_changed_by_pickling(d, act, use):
    """L2: while a block's values are pickled, a key that the block has not changed refuses a
    change, which would be too late to be stored."""
    d.update({1: "one", 2: "two", 3: "three"})
    with d.locked_many([1, 2, 3]) as (one, two, three):
        if use == "value":
            act(lambda: setattr(two, "value", 8))
        else:
            act(getattr(two, use))
        one.value, three.value = Acts(), "new"

    assert act.refused == [shmrhash.InvalidArgument]
    assert dict(d) == {1: 7, 2: "two", 3: "new"}
    expect_free(d, 2)


def test_value_assigned_by_pickling_to_a_key_that_is_to_be_deleted_is_refused(d, act):
    """L2: a value that pickling assigns to a key about to be deleted is refused, because it would
    be stored without having been encoded."""
    d.update({1: "one", 2: "two"})
    with d.locked_many([1, 2]) as (one, two):
        act(lambda: setattr(one, "value", "again"))
        one.delete()
        two.value = Acts()

    assert act.refused == [shmrhash.InvalidArgument]
    assert dict(d) == {2: 7}


@pytest.mark.parametrize("use", ["exit", "roll_back"])
def test_thread_that_uses_a_section_while_it_is_pickled_does_no_harm(d, act, use):
    """L1: another thread that ends the section while a value is pickled is refused; one that rolls
    it back makes the first thread's end raise, and nothing is stored."""
    d[1] = "before"
    entry = d.locked(1)
    entry.__enter__()
    refused = []

    def other():
        try:
            entry.roll_back() if use == "roll_back" else entry.__exit__(None, None, None)
        except shmrhash.InvalidArgument as error:
            refused.append(error)

    def run_other():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    act(run_other)
    entry.value = Acts()
    if use == "roll_back":
        with pytest.raises(shmrhash.InvalidArgument):
            entry.__exit__(None, None, None)
    else:
        entry.__exit__(None, None, None)

    assert (len(refused), d[1]) == ((0, "before") if use == "roll_back" else (1, 7))
    expect_free(d, 1)


def test_decoding_cannot_enter_the_section_that_decodes(d, act):
    """L1: while a section is entered and decodes its value, entering it again is refused."""
    d[1] = ActsLater()
    entry = d.locked(1)
    act(entry.__enter__)
    with entry:
        pass

    assert act.refused == [shmrhash.InvalidArgument]
    act(lambda: None)
    expect_free(d, 1)


def test_timeout_that_enters_the_section_leaves_nothing_locked(d):
    """L1: the timeout's __float__() enters the section that is being entered; the outer of the two
    is refused, and leaving the section releases the key."""

    class Timeout(float):
        def __float__(self):
            if not entered:
                entered.append(section)
                section.__enter__()
            return 1.0

    entered = []
    d[1] = 5
    section = d.locked(1, timeout=Timeout(1))
    with pytest.raises(shmrhash.InvalidArgument, match="only once"):
        section.__enter__()
    section.__exit__(None, None, None)

    expect_free(d, 1)


def test_section_that_was_not_entered_in_time_can_be_entered_later(d):
    """L1: a section that could not be entered before its timeout can be entered later."""
    d[1] = 5
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with d.locked(1):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    section = d.locked(1, timeout=0)
    with pytest.raises(shmrhash.LockTimeout):
        section.__enter__()
    leave.set()
    thread.join()

    with section:
        section.value = 6
    assert d[1] == 6


def test_buffer_of_a_locked_value_cannot_be_resized(make_map):
    """L1: the section stores all bytes of its buffer, which therefore keeps its size."""
    m = make_map(value_size=64)
    m[b"12345678"] = bytes(64)
    with m.locked(b"12345678") as value:
        with memoryview(value) as view:
            whole = view.obj
        with pytest.raises(BufferError):
            whole.clear()
        whole[:] = b"x" * 64

    assert m[b"12345678"] == b"x" * 64


def test_watch_that_decoding_closes_ends_its_loop(d, act):
    """If decoding a value closes the watch, the loop still delivers the changes that the watch had
    found before."""
    d[1], d[2] = "one", "two"
    with d.watch([1, 2]) as watch:
        d[1] = ActsLater()
        d[2] = "new"
        act(watch.close)
        found = [change.key for change in watch]

    assert found == [1, 2]


def test_watch_that_decoding_closes_has_polled_what_it_saw(d, act):
    d[1], d[2] = "one", "two"
    with d.watch([1, 2]) as watch:
        d[1] = ActsLater()
        act(watch.close)

        assert [change.key for change in watch.poll()] == [1]
        assert watch.poll() == []
