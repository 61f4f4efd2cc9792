"""A key that another thread has locked, for tests of operations that wait; and a faulty lock."""

import contextlib
import threading

import shmrhash
from shmrhash import Lock

PATIENCE_SECONDS = 20


@contextlib.contextmanager
def locked_elsewhere(shared_map, key):
    """Let another thread hold key until the block ends or the event that this yields is set."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with contextlib.suppress(shmrhash.KeyGone), shared_map.locked(key):
            inside.set()
            leave.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(PATIENCE_SECONDS)
    yield leave
    leave.set()
    thread.join()


class TellsAgain(Lock):
    """A faulty lock: an owner that was told of a death is told of it again in its next turn."""

    last = None

    @property
    def orphan(self):
        found = super().orphan
        found, self.last = found or self.last, found
        return found
