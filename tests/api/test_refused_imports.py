"""Where the library cannot be used: an ImportError that says what to do instead.

In a subinterpreter; and in a Python that was told to run without the GIL.
"""

import importlib
import subprocess
import sys
import sysconfig

import pytest

import shmrhash

CODE = """
try:
    import shmrhash
except ImportError as error:
    assert "use threads or processes" in str(error), error
else:
    raise AssertionError("imported")
"""


def interpreters():
    """The private module of subinterpreters, which each version of Python names otherwise."""
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip("this Python has no module of subinterpreters")


def test_importing_in_a_subinterpreter_is_refused_and_the_main_one_goes_on(shm_map):
    made = interpreters()
    number = made.create()
    try:
        failure = made.run_string(number, CODE)
    finally:
        made.destroy(number)

    assert failure is None
    shm_map[b"k" * shm_map.key_size] = b"v" * shm_map.value_size
    assert len(shm_map) == 1
    assert shmrhash.RHashMap is type(shm_map)


FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
TELL = "import sys; sys._is_gil_enabled = lambda: False; "


def imported(options, code):
    """Import the library in a new process; return its exit status, output and errors."""
    command = [sys.executable, *options, "-c", code]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.strip(), done.stderr


def test_importing_without_the_gil_is_refused():
    """A Python with the GIL is told to say that it has none."""
    options, before = (["-X", "gil=0"], "") if FREE_THREADED else ([], TELL)

    status, _, errors = imported(options, before + "import shmrhash")

    assert status == 1
    assert "ImportError: shmrhash needs the GIL" in errors
    assert "without PYTHON_GIL=0 and -X gil=0" in errors


@pytest.mark.skipif(not FREE_THREADED, reason="this Python always has the GIL")
def test_importing_in_a_free_threaded_python_turns_the_gil_on():
    code = "import sys; one = sys._is_gil_enabled(); import shmrhash; "

    status, said, errors = imported([], code + "print(one, sys._is_gil_enabled())")

    assert (status, said) == (0, "False True")
    assert "RuntimeWarning: The global interpreter lock" in errors
