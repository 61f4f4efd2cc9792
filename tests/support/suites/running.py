"""Run the tests of another library with an adapter of shmrhash, and judge them by name."""

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parents[1]
TIMEOUT_S = 900
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-o", "addopts="),
    *("-o", "asyncio_default_fixture_loop_scope=function"),
)


@dataclass(frozen=True)
class Suite:
    """Where the tests of a library are, and what is added to them.

    archive: the beginning of the archive's name; None: the tests come with the package. added: our
    files, and for each the place in the archive to which it is added, at the end of a file if there
    is one. folder: where the tests are started. arguments: those of pytest.
    """

    name: str
    archive: str | None
    added: dict[str, str]
    folder: str
    arguments: tuple[str, ...]


SUITES = [
    Suite("django", "django-", {"django_suite.py": "tests/cache/tests_shm.py"}, "tests", ()),
    Suite("dogpile", None, {"dogpile_suite.py": "test_shm.py"}, ".", ("test_shm.py",)),
    Suite(
        "cachelib",
        "cachelib-",
        {"cachelib_suite.py": "tests/test_shm.py"},
        "tests",
        ("test_shm.py",),
    ),
    Suite(
        "flask-caching",
        "flask_caching-",
        {
            "flask_caching_fixtures.py": "tests/conftest.py",
            "flask_caching_suite.py": "tests/test_shm.py",
        },
        ".",
        ("tests", "--ignore=tests/typing", "--ignore=tests/test_backend_cache.py"),
    ),
    Suite(
        "aiocache",
        "aiocache-",
        {"aiocache_fixtures.py": "tests/acceptance/conftest.py"},
        ".",
        ("tests/acceptance", "-o", "filterwarnings=", "-m", "not redis and not memcached"),
    ),
    Suite(
        "cashews",
        "cashews-",
        {"cashews_fixtures.py": "tests/conftest.py"},
        ".",
        (
            *("tests", "-o", "asyncio_mode=auto", "--import-mode=importlib"),
            "--reruns=5",  # this test has lifetimes of 20 ms, too short for a busy machine
            # cashews marks it xfail; whether it passes depends on how busy the machine is.
            "--deselect=tests/test_tags_feature.py::test_set_expire_clean_2",
            "--ignore=tests/test_pickle_serializer.py",  # tests of its own serializer and memory
            *("-m", "not redis and not diskcache and not integration"),
        ),
    ),
    Suite(
        "requests-cache",
        "requests_cache-",
        {"requests_cache_suite.py": "tests/integration/test_shm.py"},
        ".",
        ("tests/integration/test_shm.py",),
    ),
    Suite(
        "prometheus",
        "prometheus_client-",
        {"prometheus_fixtures.py": "tests/conftest.py"},
        ".",
        ("tests/test_multiprocess.py::TestMultiProcess",),
    ),
]


def fetch(directory):
    """Download the source archives into a directory, unless they are there."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "archives.txt").read_text().splitlines()
    if len(list(directory.glob("*.tar.gz"))) == len(wanted):
        return
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes"]
    options = ["--no-binary", ":all:", "--no-build-isolation", "-d", str(directory)]
    subprocess.run([*command, *options, "-r", str(HERE / "archives.txt")], check=True)


def prepare(suite, archives, directory):
    """Unpack a suite's archive into the directory, and add our files; return its root."""
    root = directory
    if suite.archive is not None:
        (path,) = archives.glob(f"{suite.archive}*.tar.gz")
        with tarfile.open(path) as archive:
            archive.extractall(directory, filter="data")
        root = directory / path.name.removesuffix(".tar.gz")
    for name, place in suite.added.items():
        with open(root / place, "a") as file:
            file.write("\n\n" * (file.tell() > 0) + (HERE / name).read_text())
    return root


def run(suite, archives, directory, cache_name):
    """Run a suite; return {name of a test: PASSED, FAILED or SKIPPED}, and what it printed."""
    root = prepare(suite, archives, directory)
    report = directory / "report.xml"
    if suite.name == "django":
        command = ["-m", "support.suites.django_runner", str(report)]
    else:
        command = ["-m", "pytest", *OPTIONS, f"--junitxml={report}", *suite.arguments]
    # Without the variables that this run of pytest has set for its workers.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = outer | {
        "SUITE_CACHE": cache_name,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root / suite.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    output = done.stdout + done.stderr
    if not report.exists():
        raise AssertionError(f"{suite.name} ran no test:\n{output}")
    return outcomes(report), output


def outcomes(report):
    """Return the outcome of each test in a report of pytest."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        tags = {child.tag for child in case}
        if tags & {"failure", "error"}:
            found[name] = FAILED
        else:
            found.setdefault(name, SKIPPED if "skipped" in tags else PASSED)
    return found


def exclusions(suite):
    """Return {name: reason} of the tests of a suite that are expected not to pass."""
    found, reason = {}, ""
    for line in (HERE / "exclusions.txt").read_text().splitlines():
        if line.startswith("#"):
            reason = line[1:].strip()
        elif line:
            name, test = line.split(None, 1)
            if name == suite.name:
                found[test] = reason
    return found


def judge(suite, found):
    """Return what is wrong with the outcomes of a suite, in words; nothing is wrong if it is
    empty."""
    excluded = exclusions(suite)
    wrong = [f"no test is called {name}, of exclusions.txt" for name in excluded.keys() - found]
    for name, outcome in sorted(found.items()):
        if outcome != PASSED and name not in excluded:
            wrong.append(f"{name} {outcome}")
        if outcome == PASSED and name in excluded:
            wrong.append(f"{name} passed, and is excluded in exclusions.txt")
    return wrong


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
