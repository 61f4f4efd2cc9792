"""Names, maps and seeds for the tests, and a look for leftovers after each of them."""

import contextlib
import gc
import itertools
import os
import random
import shutil
import signal
import sysconfig
import tempfile
from pathlib import Path

import hypothesis
import pytest

import shmrhash
from shmrhash import _core

pytest.register_assert_rewrite("support")
from support.sanitizers import forking  # noqa: E402 (after it is to be rewritten)

NAME_PREFIX = "shmrhash-test-"
RUN_VARIABLE = "SHMRHASH_TEST_RUN"  # one value for the whole run, handed down to xdist's workers
FAILED = pytest.StashKey[bool]()
FOLDER = pytest.StashKey[str]()  # of this process's segments
PARENT = pytest.StashKey[str]()  # what it is in
DIRECTORY = "shmrhash_parent_directory"

# Tests that are started in the background of a shell script ignore SIGINT, and so would
# every process they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("shmrhash", deadline=None, print_blob=True, derandomize=False)


def pytest_addoption(parser):
    group = parser.getgroup("shmrhash")
    group.addoption("--seed", type=int, help="repeat a run that failed with this seed")
    group.addoption(
        "--duration",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="how long each stress test goes on (default: 2)",
    )
    group.addoption(
        "--record-bpftool", action="store_true", help="write tests/cli/bpftool.json anew"
    )


def pytest_configure(config):
    require_installed_package()
    forking.install()
    os.environ.setdefault(RUN_VARIABLE, str(os.getpid()))
    use_own_directory(config)
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().getrandbits(32)
    hypothesis.settings.load_profile("shmrhash")
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(config.option.seed)


def use_own_directory(config):
    """Keep this process's segments apart from those of other programs, and of other workers.

    Tests count what is in the directory. With SHMRHASH_DIR in the environment the directory of a
    process is made in that one; else in /dev/shm.
    """
    parent = config.workerinput[DIRECTORY] if hasattr(config, "workerinput") else None
    parent = parent or os.environ.get("SHMRHASH_DIR", "/dev/shm")
    config.stash[PARENT] = parent
    folder = tempfile.mkdtemp(prefix=f"{NAME_PREFIX}{os.environ[RUN_VARIABLE]}-", dir=parent)
    os.chmod(folder, 0o1777)  # as /dev/shm: some tests are about several users
    config.stash[FOLDER] = folder
    os.environ["SHMRHASH_DIR"] = folder


def pytest_collection_finish():
    """The tests themselves stay until the end: no later collection of garbage looks at them."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """For `-n auto`: three workers for two processors. A worker waits a quarter of its time, for
    children that it stopped, deadlines, starts of programs."""
    return max(1, len(os.sched_getaffinity(0)) * 3 // 2)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """xdist: tell a worker where directories are made; it inherits the environment of this one."""
    node.workerinput[DIRECTORY] = node.config.stash[PARENT]


def pytest_unconfigure(config):
    """Remove the directory; at the end of the run those of killed workers too."""
    if FOLDER in config.stash:
        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)
        if not hasattr(config, "workerinput"):
            run = f"{NAME_PREFIX}{os.environ[RUN_VARIABLE]}-"
            for folder in Path(config.stash[PARENT]).glob(f"{run}*"):
                shutil.rmtree(folder, ignore_errors=True)


def require_installed_package():
    """Refuse to test the working tree where the installed package was asked for (see tox.ini)."""
    if "SHMRHASH_TEST_INSTALLED" not in os.environ:
        return
    found = Path(shmrhash.__file__).resolve()
    wanted = Path(sysconfig.get_path("platlib")).resolve()
    if wanted not in found.parents:
        raise pytest.UsageError(f"tests would import {found}, not the package in {wanted}")


def pytest_report_header(config):
    package = Path(shmrhash.__file__).parent
    return [f"shmrhash: {package}", f"seed: {config.option.seed} (--seed repeats a run)"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        report.sections.append(("seed", f"repeat with --seed {item.config.option.seed}"))
    return report


def pytest_collection_modifyitems(items):
    """Begin with the folder that forks most.

    A child is a copy of this process, which is small at the beginning: a fork later in the run
    takes twice the time. It also has the longest tests, and workers that have run out of tests
    take over the short ones of the others.
    """
    items.sort(key=lambda item: "/crash/" not in item.nodeid)


def segments_of(prefix):
    """The segment files whose names start with prefix."""
    folder = Path(os.environ["SHMRHASH_DIR"])
    return sorted(path for path in folder.iterdir() if path.name.startswith(prefix))


test_numbers = itertools.count()


@pytest.fixture
def map_name():
    """A name no other test uses, in this run or in another; names derived from it start with it."""
    run = os.environ[RUN_VARIABLE]
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{NAME_PREFIX}{run}-{worker}-{next(test_numbers):06}"


@pytest.fixture(autouse=True)
def nothing_left_behind(request, map_name):
    """Fail a test that leaves a segment behind; if it failed anyway, only clean up after it."""
    yield
    left = segments_of(map_name)
    for path in left:
        path.unlink(missing_ok=True)
    if left and not request.node.stash.get(FAILED, False):
        pytest.fail(f"left in shared memory: {', '.join(path.name for path in left)}")


@pytest.fixture
def make_map(map_name):
    """A function that creates maps; the test ends with check(), close() and unlink() on each."""
    maps = {}

    def make(name=None, **overrides):
        if name is None:
            name = f"{map_name}-{len(maps)}" if maps else map_name
        geometry = {"key_size": 8, "value_size": 8, "max_entries": 4096}
        maps[name] = shmrhash.RHashMap.create(name, **(geometry | overrides))
        return maps[name]

    yield make
    try:
        for shared_map in maps.values():
            if not shared_map.closed:
                shared_map.check()
    finally:
        for name, shared_map in maps.items():
            shared_map.close()
            with contextlib.suppress(shmrhash.SegmentMissing):
                shmrhash.unlink(name)


@pytest.fixture
def shm_map(make_map):
    """One map of 8-byte keys and values."""
    return make_map()


@pytest.fixture
def slices_off():
    """Waiters do not look by themselves: a wake-up that is lost ends a test by its timeout."""
    before = _core.set_wait_slice(10 * 3600 * 10**9)
    yield
    _core.set_wait_slice(before)


@pytest.fixture
def seed(request):
    """The seed of this run, for random.Random; a failure's report repeats it."""
    return request.config.option.seed


@pytest.fixture
def duration(request):
    """How many seconds a stress test goes on."""
    return request.config.option.duration
