"""Run classes of CPython's tests in a process of their own.

As a script: `python -m support.conformance.running MODULE START_METHOD CLASS...` writes a line of
JSON, an Outcome.
"""

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
import unittest
from pathlib import Path
from typing import NamedTuple

from support.conformance.tested import VARIABLE

TESTS = Path(__file__).resolve().parents[2]
PACKAGE = "support.conformance"
SECONDS_MAX = 300


class Outcome(NamedTuple):
    """What became of the tests, by their names "Class.test": each is in one of the four."""

    passed: list[str]
    failed: dict[str, str]  # by name: the traceback
    skipped: dict[str, str]  # by name: the reason
    excepted: list[str]  # None here, and a test of CPython's


class Recorder(unittest.TestResult):
    """A result of unittest that notes each test under its outcome."""

    def __init__(self):
        super().__init__()
        self.passed = []
        self.failed = {}
        self.skipped_why = {}

    def addSuccess(self, test):  # noqa: N802 (unittest's name)
        self.passed.append(name_of(test))

    def addError(self, test, error):  # noqa: N802
        self.failed[name_of(test)] = "".join(traceback.format_exception(*error))

    addFailure = addError  # noqa: N815

    def addSkip(self, test, reason):  # noqa: N802
        self.skipped_why[name_of(test)] = reason


def name_of(test):
    """Return "Class.test" of a test, or what stands for a failure outside of the tests."""
    return ".".join(test.id().split(".")[-2:])


def exceptions_of(test_class):
    """Return the tests that a class does not take over from its bases."""
    inherited = {name for base in test_class.__mro__[1:] for name in vars(base)}
    return sorted(name for name in inherited if getattr(test_class, name) is None and is_test(name))


def is_test(name):
    return name.startswith("test")


def main(module, start_method, *class_names):
    """Run the tests of some classes of a module, and print the Outcome."""
    if start_method:
        multiprocessing.set_forkserver_preload(["__main__", f"{PACKAGE}.{module}"])
        multiprocessing.set_start_method(start_method)
    classes = [
        getattr(importlib.import_module(f"{PACKAGE}.{module}"), name) for name in class_names
    ]
    recorder = Recorder()
    for test_class in classes:
        unittest.defaultTestLoader.loadTestsFromTestCase(test_class).run(recorder)
    excepted = [
        f"{test_class.__name__}.{name}"
        for test_class in classes
        for name in exceptions_of(test_class)
    ]
    outcome = Outcome(recorder.passed, recorder.failed, recorder.skipped_why, excepted)
    print(json.dumps(outcome))


def run_tests(module, class_names, *, types, start_method=""):
    """Run the tests of some classes in a new process, and return the Outcome."""
    command = [sys.executable, "-m", f"{PACKAGE}.running", module, start_method, *class_names]
    environment = os.environ | {VARIABLE: types, "PYTHONPATH": str(TESTS)}
    # In the root of the sources, shmrhash/ would be found before the installed package.
    done = subprocess.run(
        command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX
    )
    assert done.returncode == 0, done.stderr
    return Outcome(*json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
