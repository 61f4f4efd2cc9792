"""From creation to removal: every way to start processes, with no files or warnings left."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from support import dict_jobs as jobs
from support.children import kill, stays
from support.stepping import segment_path
from support.workers import FORKSERVER, SPAWN, Crew, run_together

import shmrhash
from shmrhash import Cache, SharedCounter, SharedDict

START_METHODS = ["fork", SPAWN, FORKSERVER]
TIMEOUT_S = 60

every_method = pytest.mark.parametrize("method", START_METHODS)


@pytest.fixture
def run_program(tmp_path):
    """A function that runs a program as a user does, warnings being errors; returns its output."""

    def run(text, *arguments, folder=tmp_path):
        program = folder / "program.py"
        program.write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program), *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=folder,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        return done.stdout

    return run


# One process.


def test_a_named_dict_lives_until_it_is_unlinked(map_name):
    with SharedDict(map_name, key=str, value=int) as d:
        d["a"] = 1
        path = segment_path(d.name)
    assert d.closed
    with pytest.raises(shmrhash.MapClosed):
        d["a"]
    d.close()

    with SharedDict(map_name, key=str, value=int) as again:
        assert again["a"] == 1
        again.unlink()
        again["b"] = 2
        assert again == {"a": 1, "b": 2}
    assert not path.exists()
    with pytest.raises(shmrhash.SegmentMissing):
        SharedDict.open(map_name)


def test_an_anonymous_dict_is_removed_with_its_last_reference(anonymous_left):
    for make in (SharedDict, SharedCounter):
        d = make()
        path = segment_path(d.name)
        assert path.exists()
        del d
        gc.collect()
        assert not path.exists()
    with SharedDict() as d:
        path = segment_path(d.name)
    assert not path.exists()
    d = SharedDict()
    again = pickle.loads(pickle.dumps(d))
    d["a"] = 1
    d.close()
    assert again["a"] == 1
    again.close()
    assert anonymous_left() == []


def test_an_ephemeral_dict_is_removed_by_its_last_user(map_name):
    one = SharedDict(map_name, key=str, value=int, ephemeral=True)
    other = SharedDict(map_name, key=str, value=int)
    path = segment_path(one.name)

    one.close()
    assert path.exists()
    other["a"] = 1
    del other
    gc.collect()

    assert not path.exists()


def test_anonymous_dicts_are_distinct(anonymous_left):
    with SharedDict() as one, SharedDict() as other:
        one["a"] = 1
        assert len(other) == 0
        assert one.name != other.name


def test_a_handle_pickles_with_its_types(make_dict):
    d = make_dict(key="<I", value=object, ttl=60)
    d[5] = [1]

    with pickle.loads(pickle.dumps(d)) as again:
        assert type(again) is SharedDict
        assert (again.key_type, again.value_type) == ("<I", object)
        assert again._default_ttl_ns == d._default_ttl_ns
        assert again == {5: [1]}


def test_a_pickled_handle_does_not_open_a_different_dict(make_dict, map_name):
    """A pickled handle does not open a dict that was created later with the same name and other
    types."""
    d = make_dict(key=str, value=int)
    data = pickle.dumps(d)
    d.unlink()
    d.close()
    make_dict(name=map_name, key=str, value=float)

    with pytest.raises(shmrhash.LayoutMismatch):
        pickle.loads(data)


@pytest.mark.parametrize("base", [SharedDict, Cache])
def test_a_class_that_forgets_to_call_init_has_a_closed_dict(base):
    class Own(base):
        def __init__(self):
            self.mine = 7

    own = Own()

    for use in (
        lambda: own.get(1),
        lambda: own.get_or_compute(1, int) if base is Cache else own[1],
        lambda: own.set(1, 2) if base is Cache else own.update({1: 2}),
        lambda: own.pop(1),
        lambda: own.clear(),
        lambda: 1 in own,
    ):
        with pytest.raises(shmrhash.MapClosed):
            use()


def test_racing_threads_create_one_dict_and_all_open_it(map_name):
    with ThreadPoolExecutor(8) as pool:
        dicts = list(
            pool.map(lambda _: SharedDict(map_name, key=str, value=int), range(32), timeout=60)
        )
    try:
        for number, d in enumerate(dicts):
            d.add("count", 1, 0)
            assert dicts[0]["count"] == number + 1
    finally:
        dicts[0].unlink()
        for d in dicts:
            d.close()


def test_read_only_handles_read_and_refuse_to_write(make_dict, map_name):
    d = make_dict(key=str, value=object)
    d["a"] = [1]

    with SharedDict.open(map_name, trust=True, read_only=True) as reader:
        assert reader == {"a": [1]}
        for write in (
            lambda: reader.__setitem__("a", 2),
            lambda: reader.pop("a"),
            reader.clear,
            lambda: reader.update_with("a", lambda value: value),
        ):
            with pytest.raises(shmrhash.ReadOnlyMap):
                write()
    assert d == {"a": [1]}


def test_a_frozen_dict_is_read_only_for_every_process(make_dict):
    d = make_dict(key=str, value=str)
    d["a"] = "x" * 100

    d.freeze()

    with pytest.raises(shmrhash.FrozenMap):
        d["a"] = "y"
    with pytest.raises(shmrhash.FrozenMap):
        d.clear()
    assert d == {"a": "x" * 100}


def test_info_has_types_limits_and_counts(make_dict):
    d = make_dict(key=str, value="<q", ttl=5, max_entries=100, max_bytes=1 << 20)
    d["k" * 100] = 1

    info = d.info()

    assert (info["key_type"], info["value_type"], info["ttl"]) == ("str", {"struct": "<q"}, 5)
    assert (info["entries"], info["max_entries"]) == (1, 100)
    assert info["objects"]["count"] == 1
    assert info["objects"]["max_bytes"] == 1 << 20
    assert d.check()["exact"]


# Several processes.


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_use_a_named_dict(make_dict, method):
    d = make_dict(key=str, value=int)

    results = run_together(method, *((jobs.store_mark, d, f"k{i}", i) for i in range(3)))

    assert {result[:3] for result in results} == {(d.name, str, int)}
    assert d == {"k0": 0, "k1": 1, "k2": 2}


@every_method
def test_children_use_an_anonymous_dict(anonymous_left, method):
    with SharedDict(value=object) as d:
        run_together(method, *((jobs.store_mark, d, (i, "k" * 20), [i]) for i in range(3)))

        assert d == {(i, "k" * 20): [i] for i in range(3)}
        d.check()
    assert anonymous_left() == []


@every_method
def test_a_handle_may_be_pickled_again_in_a_child(make_dict, method):
    d = make_dict(key=str, value=int)

    (data,) = run_together(method, (jobs.pickled_again, pickle.dumps(d), "child"))

    with pickle.loads(data) as again:
        assert again["child"] == d["child"] != os.getpid()


@every_method
def test_a_child_may_make_its_own_dicts(anonymous_left, method):
    assert run_together(method, (jobs.child_makes_its_own,)) == [({"a": 1}, {"b": 1})]
    assert anonymous_left() == []


@every_method
@pytest.mark.parametrize("name", ["anonymous", "named"])
def test_a_pool_shares_through_its_initializer(make_dict, anonymous_left, method, name):
    context = multiprocessing.get_context(method)
    with contextlib.ExitStack() as stack:
        if name == "named":
            d = make_dict(key=int, value=int)
        else:
            d = stack.enter_context(SharedDict(key=int, value=int))
        counter = stack.enter_context(SharedCounter())
        with context.Pool(3, jobs.start_pool_worker, (d, counter)) as pool:
            found = pool.map(jobs.square_in_pool, [number % 50 for number in range(500)])
            pool.close()
            pool.join()

        assert found == [(number % 50) ** 2 for number in range(500)]
        assert d == {number: number**2 for number in range(50)}
        assert counter.as_dict() == {"tasks": 500}
    assert anonymous_left() == []


@every_method
def test_an_executor_shares_through_its_initializer(anonymous_left, method):
    context = multiprocessing.get_context(method)
    with (
        SharedDict(key=int, value=int) as d,
        ProcessPoolExecutor(3, context, jobs.start_pool_worker, (d,)) as pool,
    ):
        assert sum(pool.map(jobs.square_in_pool, range(100))) == sum(i * i for i in range(100))
        assert len(d) == 100
    assert anonymous_left() == []


def test_a_dict_can_be_an_argument_of_a_task(anonymous_left):
    """A dict can be passed to a task although the queue of tasks pickles it several times."""
    with SharedDict(key=int, value=int) as d, ProcessPoolExecutor(2) as pool:
        futures = [pool.submit(SharedDict.update, d, {number: number}) for number in range(20)]
        for future in futures:
            assert future.result(TIMEOUT_S) is None
        assert d == {number: number for number in range(20)}
    assert anonymous_left() == []


def test_threads_share_a_handle(make_dict):
    d = make_dict(key=str, value=object)
    with ThreadPoolExecutor(8) as pool:
        tasks = [
            pool.submit(d.update_with, "sum", lambda value, item=number: [*value, item], [])
            for number in range(400)
        ]
        for task in tasks:
            task.result(TIMEOUT_S)

    assert sorted(d["sum"]) == list(range(400))


def test_children_forked_while_threads_write_use_the_dict(make_dict):
    """The fork happens while another thread operates on the dict."""
    d = make_dict(key=str, value=object)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            d["thread"] = "x" * 5000

    thread = threading.Thread(target=write)
    thread.start()
    try:
        crew = Crew("fork", parties=3)
        for number in range(3):
            crew.start(jobs.store_mark, d, f"child {number}", "y" * 5000)
        crew.join()
    finally:
        stop.set()
        thread.join()

    assert all(d[f"child {number}"] == "y" * 5000 for number in range(3))


# Whole programs.

PREFORK = """
    import os, signal, sys
    from shmrhash import SharedCounter, SharedDict

    sessions = SharedDict(key=str, value=object)     # before forking, as a preloaded app does
    hits = SharedCounter()

    def serve(number):
        for request in range(100):
            hits.inc("requests")
            sessions[f"{number}/{request}"] = {"pid": os.getpid()}
        sys.exit(0)                                  # gunicorn's workers leave by SystemExit

    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            serve(number)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    pid = os.fork()                                  # a worker that is replaced
    if not pid:
        serve(4)
    os.waitpid(pid, 0)
    print(hits["requests"], len(sessions), len({value["pid"] for value in sessions.values()}))
    sessions.check()
"""


def test_dict_created_before_fork_is_shared_by_gunicorn_workers(run_program, anonymous_left):
    assert run_program(PREFORK) == "500 500 5\n"
    assert anonymous_left() == []


START_METHOD_PROGRAM = """
    import multiprocessing, sys
    from dataclasses import dataclass
    from shmrhash import SharedCounter, SharedDict

    def work(d, counter, number):
        d[number] = "x" * number
        counter.inc("done")

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        d = SharedDict(key=int, value=str)
        counter = SharedCounter()
        children = [
            multiprocessing.Process(target=work, args=(d, counter, number)) for number in range(3)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join()
        print(sorted(d), counter["done"], [child.exitcode for child in children])
"""


@every_method
def test_a_program_leaves_no_files_and_no_warnings(run_program, anonymous_left, method):
    """A program whose dicts stay open until its exit leaves no file, and no warning of a
    resource_tracker or anything else."""
    assert run_program(START_METHOD_PROGRAM, method) == "[0, 1, 2] 3 [0, 0, 0]\n"
    assert anonymous_left() == []


DAEMON_PROGRAM = """
    import multiprocessing, sys
    from shmrhash import SharedDict

    def work(d, ready):
        d["child"] = 1
        ready.set()
        while True:
            d["child"] += 1

    if __name__ == "__main__":
        multiprocessing.set_start_method(sys.argv[1])
        d = SharedDict(key=str, value=int)
        ready = multiprocessing.Event()
        multiprocessing.Process(target=work, args=(d, ready), daemon=True).start()
        ready.wait()
        print("child" in d)
"""


@every_method
def test_a_program_that_ends_before_its_daemons_leaves_nothing(run_program, anonymous_left, method):
    """The daemon processes are terminated when the program exits, and only then is the dict
    closed."""
    assert run_program(DAEMON_PROGRAM, method) == "True\n"
    assert anonymous_left() == []


THREADS_PROGRAM = """
    import sys, threading, time
    from shmrhash import SharedDict

    def work():
        while True:
            d.add("n", 1)
            list(d)
            turns.append(1)

    turns = []
    d = SharedDict(*sys.argv[1:], key=str, value=int)
    d["n"] = 0
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    while len(turns) < 50:
        time.sleep(0.001)
    print("running")
"""


def test_daemon_threads_use_a_dict_until_the_program_exits(run_program, anonymous_left):
    """The dict is not closed before the daemon threads stop, so none of them prints a MapClosed."""
    for _ in range(3):
        assert run_program(THREADS_PROGRAM) == "running\n"
    assert anonymous_left() == []


def test_a_process_that_exits_normally_is_not_reported_dead(run_program, make_dict):
    """C3: a process that exits normally is not reported dead, whether its threads used the dict
    until then or multiprocessing started it."""
    d = make_dict(key=str, value=int)
    ended = [os.getpid()]
    run_program(THREADS_PROGRAM, d.name)
    for method in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=d.add, args=(method, 1, 1))
        process.start()
        process.join()
        assert process.exitcode == 0
    assert [one["pid"] for one in d.info()["attached"]] == ended

    child = stays(d.__setitem__, "n", 1)
    kill(child)

    assert [one["pid"] for one in d.info()["attached"] if not one["alive"]] == [child.pid]
    d.check()
    assert d["spawn"] == 2


def test_a_child_that_exits_does_not_unlink_the_dict(run_program, make_dict, anonymous_left):
    """No resource_tracker removes the dict's shared memory, which another program owns, when a
    child exits."""
    d = make_dict(key=str, value=str)
    d["a"] = "parent"
    program = """
        import sys
        from shmrhash import SharedDict
        d = SharedDict.open(sys.argv[1])
        d["b"] = "child"
    """

    run_program(program, d.name)

    assert segment_path(d.name).exists()
    assert d == {"a": "parent", "b": "child"}


def test_an_anonymous_dict_of_a_killed_program_is_removed_by_the_next(tmp_path, anonymous_left):
    """C1: if all processes of an anonymous dict are killed, the next program that creates one
    removes it."""
    program = "import shmrhash, time\nd = shmrhash.SharedDict()\nprint(d.name, flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program + "time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGKILL)
    assert anonymous_left() == [name]

    with SharedDict():
        assert name not in anonymous_left()


def test_the_package_starts_no_threads_and_no_processes(run_program):
    assert (
        run_program(
            """
            import threading, multiprocessing
            from shmrhash import SharedDict
            d = SharedDict()
            print(threading.active_count(), len(multiprocessing.active_children()))
            """
        )
        == "1 0\n"
    )
