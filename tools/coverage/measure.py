"""Which lines and branches of the core the tests reach: python measure.py [pytest's arguments].

The generated C is compiled once more with --coverage and #line directives, so that gcov counts
lines of cython/; it is not optimised, because gcov would count inlined copies separately. A child
that ends by os._exit() first writes its counts (dump.c). Not counted are the lines that a killed
process executed, and those that the tests of single layers execute, which compile the layers for
themselves. Branches are those of the C code: our own conditions as well as Cython's checks for
exceptions; gcov sees none in the macros of atomics.h.

A line that no test reaches must stand in unreached.txt with its reason, and no other line may,
except lines that only some runs reach: their reason begins with "by chance".
"""

import argparse
import collections
import functools
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REASONS = Path(__file__).with_name("unreached.txt")
C_FLAGS = ["-O0", "-g", "--coverage", "-fPIC", "-w", "-std=gnu11", "-fno-strict-aliasing"]
OURS = re.compile(r'"[^"]*\.(pyx|pxi|pxd)"')
FUNCTION = re.compile(r"(cdef|def)\b[^=]*\(")
COMMENT = re.compile(r"\s{2,}# .*$")
DUMP_AT_EXIT = """

import ctypes as _ctypes
import os as _os


def _exit_with_counts(status, _exit=_os._exit, _dump=_ctypes.CDLL(_core.__file__).coverage_dump):
    _dump()
    _exit(status)


_os._exit = _exit_with_counts
"""


def build(folder):
    """Build the instrumented package in folder; objects and counts go to folder/objects."""
    shutil.copytree(ROOT / "shmrhash", folder / "shmrhash", ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(ROOT / "cython", folder / "core", ignore=shutil.ignore_patterns("*.c", "*.so"))
    objects = folder / "objects"
    objects.mkdir()
    cython = [sys.executable, "-m", "cython", "--line-directives", "-3", "-I", "."]
    cython += ["--module-name", "shmrhash._core", "-o", objects / "_core.c", "_core.pyx"]
    subprocess.run(cython, cwd=folder / "core", check=True)
    generated = objects / "_core.c"
    generated.write_text(pinned(generated.read_text()))
    include = ["-I", folder / "core", "-I", sysconfig.get_path("include")]
    compiler = os.environ.get("CC", "gcc")
    subprocess.run(
        [compiler, *C_FLAGS, *include, "-c", "_core.c", "-o", "_core.o"], cwd=objects, check=True
    )
    target = folder / "shmrhash" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    spare = folder / "spare"
    (spare / objects.relative_to("/")).mkdir(parents=True)
    names = [f'-DCOUNTS="{objects}/_core.gcda"', f'-DSPARE="{spare}"']
    dump = Path(__file__).with_name("dump.c")
    subprocess.run([compiler, "-fPIC", *names, "-c", dump, "-o", "dump.o"], cwd=objects, check=True)
    command = [compiler, "-shared", "--coverage", "_core.o", "dump.o", "-o", target]
    subprocess.run(command, cwd=objects, check=True)
    with open(folder / "shmrhash" / "__init__.py", "a") as package:
        package.write(DUMP_AT_EXIT)


def pinned(code):
    """The C code, with all code between a #line directive for a file of ours and the next directive
    joined into one line. Otherwise gcc increments the line number at each line of C: a C statement
    of several lines would be counted for the lines of ours that follow, and of a line with several
    blocks gcov would count only the last."""
    lines, run = [], []
    here = None  # the last #line directive, if it names a file of ours
    continued = False
    for line in code.splitlines():
        if line.startswith("/* --- Runtime support code"):
            here = None
        if here is None or continued or line.lstrip().startswith("#"):
            lines += [" ".join(run), line] if run else [line]
            run = []
            continued = line.endswith("\\")
            if line.startswith("#line"):
                here = line if OURS.search(line) else None
            elif here is not None and not continued:
                lines.append(here)
        else:
            run.append(line)
    return "\n".join([*lines, *run]) + "\n"


def run_tests(folder, arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    environment.pop("SHMRHASH_TEST_INSTALLED", None)
    # Not `python -m pytest`, which would put the root, with its own shmrhash, first on sys.path.
    start = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def counts(folder):
    """{file: {line: [count, branches, branches taken]}} for the core's files."""
    objects = folder / "objects"
    gcov = os.environ.get("GCOV", "gcov")
    command = [gcov, "--json-format", "--branch-probabilities", "--branch-counts", "_core.o"]
    subprocess.run(command, cwd=objects, check=True, capture_output=True)
    (report,) = objects.glob("*.gcov.json.gz")
    found = collections.defaultdict(dict)
    for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
        name = os.path.normpath(file["file"])
        if not (ROOT / "cython" / name).exists():
            continue
        for line in file["lines"]:
            if not has_code(name, line["line_number"]):
                continue
            known = found[name].setdefault(line["line_number"], [0, 0, 0])
            known[0] += line["count"]
            branches = [branch for branch in line["branches"] if not branch["throw"]]
            known[1] += len(branches)
            known[2] += sum(branch["count"] > 0 for branch in branches)
    return found


@functools.cache
def lines_of(name):
    return (ROOT / "cython" / name).read_text().splitlines()


def text_of(name, number):
    """The line without its indentation and without a comment behind the code."""
    return COMMENT.sub("", lines_of(name)[number - 1]).strip()


def has_code(name, number):
    """Whether a line has code of ours. The C code of a docstring's line refuses wrong arguments,
    and that of a function's first line is its exit by an exception: both are Cython's."""
    if number > len(lines_of(name)):
        return False
    text = text_of(name, number)
    if text.startswith('"""') or FUNCTION.match(text):
        return False
    return text.strip(")")[:1] not in ("", "#")


def reasons():
    """{(file, text of the line): reason}, from unreached.txt, which separates them by tabs."""
    known = {}
    for line in REASONS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, text, reason = line.split("\t")
            known[name, COMMENT.sub("", text)] = reason
    return known


def stale():
    """The rows of unreached.txt whose file or line is gone."""
    return [
        (name, text)
        for name, text in reasons()
        if not (ROOT / "cython" / name).exists()
        or text not in (text_of(name, number + 1) for number in range(len(lines_of(name))))
    ]


def percent(part, whole):
    return f"{100 * part / whole:6.1f} %" if whole else "       -"


def print_table(found):
    print(f"\n{'file':<32}{'lines':>7}{'reached':>9}{'':>9}{'branches':>10}{'taken':>7}")
    total = [0, 0, 0, 0]
    for name in sorted(found):
        lines = found[name].values()
        row = [len(lines), sum(count > 0 for count, _, _ in lines)]
        row += [sum(line[1] for line in lines), sum(line[2] for line in lines)]
        total = [before + now for before, now in zip(total, row, strict=True)]
        print_row(name, row)
    print_row("all", total)


def print_row(name, row):
    lines, reached, branches, taken = row
    print(
        f"{name:<32}{lines:>7}{reached:>9} {percent(reached, lines)}{branches:>10}{taken:>7} "
        f"{percent(taken, branches)}"
    )


def print_unreached(found):
    """Print the lines that no test reaches; whether each has a reason, and none is left over."""
    known = reasons()
    used = set()
    missing = 0
    for name in sorted(found):
        for number, (count, _, _) in sorted(found[name].items()):
            text = text_of(name, number)
            reason = known.get((name, text))
            if count:
                continue
            used.add((name, text))
            missing += reason is None
            print(f"{name}:{number}: {text}\n    {reason or 'NO REASON'}")
    idle = {row for row in set(known) - used if not known[row].startswith("by chance")}
    for name, text in sorted(idle):
        print(f"{REASONS.name}: {name}: reached, or gone: {text}")
    print(f"\n{missing} lines are not reached and have no reason")
    return not missing and not idle


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep what is built and counted here")
    parser.add_argument("--report-only", action="store_true", help="of a folder kept before")
    parser.add_argument("--strict", action="store_true", help="fail if a line has no reason")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        failed = 0
        if not options.report_only:
            folder.mkdir(parents=True, exist_ok=True)
            build(folder)
            failed = run_tests(folder, arguments)
        found = counts(folder)
        if not any(line[0] for line in found["processes/check.pxd"].values()):
            sys.exit("the tests ran another package than the instrumented one")
        print_table(found)
        complete = print_unreached(found)
    return failed or (options.strict and not complete)


if __name__ == "__main__":
    sys.exit(main())
