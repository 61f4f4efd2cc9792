"""Imports in unusual interpreters: a subinterpreter, where an ImportError says what to do instead,
and a free-threaded Python, which stays without the GIL.
"""

import importlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import shmrhash

# A new interpreter looks in the working directory first, where sources may lie.
CODE = f"""
import sys
sys.path.insert(0, {str(Path(shmrhash.__file__).parent.parent)!r})
try:
    import shmrhash
except ImportError as error:
    assert "use threads or processes" in str(error), error
else:
    raise AssertionError("imported")
"""


def interpreters():
    """Return the private module of subinterpreters, whose name differs between versions of
    Python."""
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


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the GIL"
)
def test_importing_leaves_the_gil_off():
    """The extension declares that it needs no GIL, and neither the import nor a use of a map, a
    cache or a lock loads a module that needs it. No option keeps the GIL off here."""
    code = (
        "import sys, shmrhash; d = shmrhash.SharedDict(key=int, value=int); d[1] = 2; "
        "shmrhash.RHashMap.open(d.name).close(); shmrhash.Cache().set(1, 2); "
        "shmrhash.Lock().locked(); "
        "print(sys._is_gil_enabled())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "False", "")
