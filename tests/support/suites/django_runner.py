"""Runs Django's runtests.py on our tests, and writes a report as pytest does."""

import runpy
import sys
import unittest
import xml.etree.ElementTree as ElementTree

results = []


class Result(unittest.TextTestResult):
    """A result that also notes each test."""

    def note(self, test, tag):
        results.append((type(test).__name__, test.id().rpartition(".")[2], tag))

    def addSuccess(self, test):  # noqa: N802
        super().addSuccess(test)
        self.note(test, None)

    def addFailure(self, test, error):  # noqa: N802
        super().addFailure(test, error)
        self.note(test, "failure")

    def addError(self, test, error):  # noqa: N802
        super().addError(test, error)
        self.note(test, "error")

    def addSubTest(self, test, subtest, error):  # noqa: N802
        super().addSubTest(test, subtest, error)
        if error is not None:
            self.note(test, "failure")

    def addSkip(self, test, reason):  # noqa: N802
        super().addSkip(test, reason)
        self.note(test, "skipped")


def main():
    """Run the tests in the current folder, that of runtests.py."""
    from django.test.runner import DiscoverRunner

    report = sys.argv[1]
    DiscoverRunner.get_resultclass = lambda self: Result
    sys.path.insert(0, "")
    sys.argv = ["runtests.py", "cache.tests_shm", "--parallel", "1"]
    try:
        runpy.run_path("runtests.py", run_name="__main__")
    finally:
        suite = ElementTree.Element("testsuite")
        for class_name, name, tag in results:
            case = ElementTree.SubElement(suite, "testcase", classname=class_name, name=name)
            if tag:
                ElementTree.SubElement(case, tag)
        ElementTree.ElementTree(suite).write(report)


if __name__ == "__main__":
    main()
