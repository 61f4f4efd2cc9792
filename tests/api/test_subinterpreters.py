"""What a subinterpreter gets: an ImportError that says what to do instead."""

import importlib

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
