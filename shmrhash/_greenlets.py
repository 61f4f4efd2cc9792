"""gevent: while one greenlet waits for another process, or for another greenlet, the others run.

cython/python/greenlets.pxi says how. The core calls look() in a program that has imported gevent,
once.
"""

from __future__ import annotations

from typing import Any

from shmrhash import _core


def look() -> None:
    """Tell the core of gevent, which the program uses."""
    import gevent

    try:
        from gevent._hub_local import get_hub_if_exists as hub_of_thread
    except ImportError:  # a gevent that keeps it elsewhere; this one makes a hub if there is none
        hub_of_thread = gevent.get_hub

    def may_switch() -> bool:
        hub: Any = hub_of_thread()
        return hub is not None and gevent.getcurrent() is not hub

    _core.set_greenlets(gevent.getcurrent, may_switch, gevent.sleep)
