"""Tests of the driver itself, with known stores in a shared page and without a map."""

import contextlib
import ctypes
import mmap
import os
import struct

import pytest
from support import stepping

pytestmark = pytest.mark.usefixtures("stepper")

WORDS = 40
STEP_BYTES = 64 * 1024


@pytest.fixture
def page():
    """An anonymous page shared with the children."""
    with contextlib.closing(mmap.mmap(-1, mmap.PAGESIZE)) as memory:
        yield memory


@pytest.fixture
def sparse(map_name):
    """The path of a sparse file of 1 GiB with data in its first page only."""
    path = stepping.segment_path(map_name)
    with open(path, "wb") as file:
        file.write(b"head")
        file.truncate(1 << 30)
    yield path
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def words_of(memory, count=WORDS):
    return list(struct.unpack_from(f"{count}Q", memory))


def example(memory, name, count=WORDS):
    """prepare and operate for one of the example functions of stepper.c."""
    call = getattr(stepping.library(), f"stepper_example_{name}")

    def prepare():
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def operate(address):
        return call(address, count)

    return prepare, operate


def counting(n):
    """The words of the page after n stores of stepper_example_count."""
    return [*range(1, n + 1), *[0] * (WORDS - n)]


def test_trace_finds_each_store(page):
    """WORDS stores are WORDS changes, in order, each at the offset that it wrote."""
    trace = stepping.trace(*example(page, "count"), stepping.Segment.of_memory(page))

    assert [change.offset for change in trace.changes] == [8 * i for i in range(WORDS)]
    assert len(trace.pcs) == 1
    assert trace.steps_changed == sorted(set(trace.steps_changed))
    assert 0 < trace.steps_changed[0] <= trace.steps_changed[-1] <= trace.steps
    assert words_of(page) == counting(WORDS)


def test_kill_after_n_changes_leaves_exactly_n_words(page):
    """In state n, n stores are done and the next one is not begun; n goes from 0 to all of them."""
    segment = stepping.Segment.of_memory(page)
    seen = []

    for crash in stepping.crash_states(*example(page, "count"), segment):
        assert words_of(page) == counting(crash.n)
        assert crash.total == WORDS
        seen.append((crash.n, crash.digest))

    assert [n for n, _ in seen] == list(range(WORDS + 1))
    assert len({digest for _, digest in seen}) == WORDS + 1


def test_single_stepping_and_breakpoints_reach_the_same_states(page):
    """Both ways to reach change n leave the same bytes and name the same instruction."""
    segment = stepping.Segment.of_memory(page)
    start = segment.image()
    act = example(page, "lock")
    pcs = stepping.trace(*act, segment).pcs

    for n in (0, 1, 2, 3, 7, 50, 3 * WORDS):
        found = []
        for known in ((), pcs):
            segment.restore(start)
            with stepping.stop_at_change(*act, segment, n, pcs=known) as child:
                found.append((words_of(page), child.run.pc if n else None))
        assert found[0] == found[1]


def test_taking_and_releasing_a_lock_are_two_changes(page):
    """A state that equals an earlier one (the lock is released again) still counts as a change."""
    memory = stepping.Segment.of_memory(page)
    count = WORDS - 1

    trace = stepping.trace(*example(page, "lock", count), memory)

    assert len(trace.changes) == 3 * count
    assert [change.offset for change in trace.changes[:3]] == [0, 8, 0]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="one instruction, many stores: x86 only")
def test_a_repeated_string_store_can_be_killed_between_its_rounds(page):
    """rep stosq is one instruction and WORDS states."""
    for crash in stepping.crash_states(*example(page, "fill"), stepping.Segment.of_memory(page)):
        assert words_of(page) == [7] * crash.n + [0] * (WORDS - crash.n)
        assert crash.total == WORDS


def test_system_calls_work_under_stepping_and_their_stores_are_seen(page):
    """read(2) into the shared page: one change for each call."""
    states = stepping.crash_states(
        *example(page, "read"), stepping.Segment.of_memory(page), traced=lambda t: traces.append(t)
    )
    traces = []

    for crash in states:
        assert words_of(page) == counting(crash.n)

    assert traces[0].result == 0
    assert len(traces[0].changes) == WORDS


def test_a_stopped_child_resumes_and_finishes(page):
    """A child that is stopped in the middle changes nothing; when it is resumed, it does the rest
    and returns."""

    def operate(address):
        stepping.library().stepper_example_count(address, WORDS)
        return "done"

    prepare, _ = example(page, "count")
    with stepping.stop_at_change(
        prepare, operate, stepping.Segment.of_memory(page), WORDS // 2
    ) as child:
        assert words_of(page) == counting(WORDS // 2)
        child.resume()
        assert child.wait() == "done"

    assert words_of(page) == counting(WORDS)


def test_stop_after_breakpoints_resumes_and_finishes(page):
    """The breakpoints are removed before the child runs on."""
    segment = stepping.Segment.of_memory(page)
    act = example(page, "count")
    pcs = stepping.trace(*act, segment).pcs
    segment.memory[:] = bytes(mmap.PAGESIZE)

    with stepping.stop_at_change(*act, segment, 3, pcs=pcs) as child:
        assert words_of(page) == counting(3)
        child.wait()

    assert words_of(page) == counting(WORDS)


def test_stop_at_step_counts_instructions(page):
    """The number of steps varies a little between runs, so the test leaves a margin."""
    act = example(page, "count")
    changed = stepping.trace(*act, stepping.Segment.of_memory(page)).steps_changed
    margin = 200

    for k, expected in ((changed[0] - margin, 0), (changed[-1] + margin, WORDS)):
        page[:] = bytes(mmap.PAGESIZE)
        with stepping.stop_at_step(*act, k) as child:
            assert child.run.steps == k
            assert words_of(page) == counting(expected)


def test_every_step_meets_the_same_states(page):
    """A sample of raw steps: the words only ever grow with k."""
    written = [
        sum(word != 0 for word in words_of(page))
        for crash in stepping.crash_states(
            *example(page, "count"), stepping.Segment.of_memory(page), every=True, sample=12
        )
    ]

    assert written == sorted(written)
    assert (written[0], written[-1]) == (0, WORDS)


def test_change_by_an_instruction_without_a_breakpoint_is_noticed(page):
    """With wrong breakpoints the driver starts again, single-steps, and reaches the same change."""
    segment = stepping.Segment.of_memory(page)
    image = segment.image()
    wrong = stepping.trace(*example(page, "count", 2), segment).pcs
    restored = []

    def again():
        restored.append(True)
        segment.restore(image)

    again()
    with stepping.stop_at_change(
        *example(page, "lock", 5), segment, 4, pcs=wrong, again=again
    ) as child:
        assert child.run.changes == 4

    assert len(restored) == 2
    assert words_of(page, 3) == [1, 1, 0]


def test_hooked_signals_reach_the_child(page):
    """A signal with a handler is passed on; a stop signal does not stop the stepping."""
    import signal

    def prepare():
        signal.signal(signal.SIGUSR1, lambda *_: page.write(b"x"))

    def operate(_):
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTSTP)
        return "done"

    trace = stepping.trace(prepare, operate, stepping.Segment.of_memory(page))

    assert trace.result == "done"
    assert len(trace.changes) == 1


def test_errors_of_the_child_are_raised_in_the_parent(page):
    """An exception in prepare or operate is raised here with the child's traceback."""
    segment = stepping.Segment.of_memory(page)

    with pytest.raises(stepping.ChildFailed, match="ZeroDivisionError"):
        stepping.trace(lambda: 1 // 0, lambda state: state, segment)
    with pytest.raises(stepping.ChildFailed, match="ZeroDivisionError"):
        stepping.trace(lambda: 0, lambda state: 1 // state, segment)
    with pytest.raises(stepping.SteppingError, match="signal 11"):
        stepping.trace(lambda: 0, lambda _: ctypes.string_at(0), segment)


def test_operation_without_end_ends_by_its_processor_time():
    def operate(_):
        while True:
            pass

    with pytest.raises(stepping.ChildFailed, match="took too long"):
        stepping.stop_at_step(lambda: None, operate, 1 << 40, seconds=1)


def test_commits_of_a_sparse_file_are_changes_and_holes_stay_holes(sparse):
    """fallocate is a change, and so is each first touch of a page; an image fills no hole."""
    segment = stepping.Segment(sparse)
    before = segment.image()

    def prepare():
        return os.open(sparse, os.O_RDWR)

    def operate(fd):
        return stepping.library().stepper_example_commit(fd, 1 << 20, 4)

    trace = stepping.trace(prepare, operate, segment)

    assert trace.result == 0
    assert len(trace.changes) == 5
    assert os.stat(sparse).st_blocks == 5 * mmap.PAGESIZE // 512
    segment.restore(before)
    assert os.stat(sparse).st_blocks == mmap.PAGESIZE // 512
    assert segment.image() == before


def test_creation_and_removal_of_a_file_are_changes(sparse):
    """A file that appears, and one that is unlinked, are states of their own."""
    os.unlink(sparse)
    segment = stepping.Segment(sparse)

    def create(_):
        fd = os.open(sparse, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(fd, mmap.PAGESIZE)
        os.pwrite(fd, b"one", 0)
        os.close(fd)

    states = list(stepping.crash_states(lambda: None, create, segment))
    stepping.run_to_change(lambda: None, create, segment, 2)
    removal = stepping.trace(lambda: None, lambda _: os.unlink(sparse), segment)

    assert [crash.n for crash in states] == [0, 1, 2]
    assert [len(crash.image.parts) for crash in states] == [0, 0, 1]
    assert len(removal.changes) == 1


def test_chain_kills_the_second_child_in_every_state_of_the_first(page):
    """Stage two starts from the state in which stage one died: every pair of states is met."""
    segment = stepping.Segment.of_memory(page)
    prepare, _ = example(page, "count", 3)

    def first(address):
        stepping.library().stepper_example_count(address, 3)

    def second(address):
        stepping.library().stepper_example_count(address + 64, 2)

    pairs = []
    for crash in stepping.crash_chain([(prepare, first), (prepare, second)], segment):
        pairs.append((crash.previous.n, crash.n))
        assert words_of(page)[:3] == counting(crash.previous.n)[:3]
        assert words_of(page)[8:10] == counting(crash.n)[:2]

    assert pairs == [(i, j) for i in range(4) for j in range(3)]


def test_where_names_the_function_of_a_crash(page):
    """The place of a crash is the name of a function, from the symbols of the library."""
    crash = stepping.run_to_change(*example(page, "count"), stepping.Segment.of_memory(page), 1)

    assert "stepper" in crash.where()[0]


def test_restore_refuses_a_segment_without_a_name(sparse):
    """A segment that cannot be restored is an error, not a silent difference."""
    segment = stepping.Segment(sparse)
    image = segment.image()
    os.unlink(sparse)

    with pytest.raises(stepping.SteppingError, match="setup"):
        segment.restore(image)


def test_allocated_memory_that_was_never_touched_is_restored(sparse):
    """Memory that fallocate gave before the image stays; pages touched after the image go."""
    fd = os.open(sparse, os.O_RDWR)
    os.posix_fallocate(fd, 1 << 20, 4 * mmap.PAGESIZE)
    segment = stepping.Segment(sparse)
    image = segment.image()
    blocks = os.fstat(fd).st_blocks

    os.pwrite(fd, b"x", (1 << 20) + mmap.PAGESIZE)
    os.pwrite(fd, b"y", 1 << 21)
    segment.restore(image)

    assert os.fstat(fd).st_blocks == blocks
    assert segment.image() == image
    os.close(fd)
