"""Compile stepper.c once for the whole run, and find out whether this machine permits stepping."""

import fcntl
import os

import pytest
from support import stepping

from shmrhash import Sync


@pytest.fixture(scope="session")
def stepper(tmp_path_factory):
    """The module stepping. Its C part is compiled once for all of xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "stepper"
    folder.mkdir(exist_ok=True)
    built = folder / "stepper.so"
    try:
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not built.exists():
                stepping.build(folder)
    except stepping.CannotStep as error:
        pytest.skip(str(error))
    stepping.load(built)
    reason = stepping.why_not()
    if reason is not None:
        pytest.skip(reason)
    return stepping


@pytest.fixture
def space(map_name):
    """A space of lock primitives, used from the processor on which children are stepped."""
    with stepping.on_cpu(stepping.default_cpu()), Sync(map_name) as made:
        yield made
        made.unlink()
