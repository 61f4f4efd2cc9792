"""The types with which CPython's tests are run, by their names in threading."""

import functools
import multiprocessing
import os
from types import SimpleNamespace

VARIABLE = "CONFORMANCE_TYPES"
NAMES = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Event", "Condition", "Barrier"]


def types_under_test():
    """Return the types, as attributes that no class makes methods of."""
    if os.environ.get(VARIABLE) == "multiprocessing":
        return SimpleNamespace(
            **{name: staticmethod(getattr(multiprocessing, name)) for name in NAMES},
            WaitingLock=staticmethod(multiprocessing.Lock),
        )
    import shmrhash

    return SimpleNamespace(
        **{name: staticmethod(getattr(shmrhash, name)) for name in NAMES},
        # A Lock that waits for ever for its own thread, as threading's does.
        WaitingLock=staticmethod(functools.partial(shmrhash.Lock, check=False)),
    )
