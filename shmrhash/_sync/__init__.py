"""Lock primitives in shared memory that survive their holder, one file for each subject.

space.py    Sync, the spaces in which the primitives have their cells
primitive.py    what all primitives of one cell have in common
locks.py    Lock, RLock
counts.py   Semaphore, BoundedSemaphore
events.py   Event
rwlocks.py  RWLock
conditions.py, barriers.py    Condition, Barrier
once.py, leader.py, parts.py  Once, Leader, which are made of the others
listing.py  locks()
tasks.py    how tasks of asyncio wait
"""

from shmrhash._sync.barriers import Barrier
from shmrhash._sync.conditions import Condition
from shmrhash._sync.counts import BoundedSemaphore, Semaphore
from shmrhash._sync.events import Event
from shmrhash._sync.leader import Leader
from shmrhash._sync.listing import LockInfo, locks
from shmrhash._sync.locks import Lock, Orphan, Owner, RLock
from shmrhash._sync.once import Once
from shmrhash._sync.rwlocks import RWLock
from shmrhash._sync.space import Sync

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "Condition",
    "Event",
    "Leader",
    "Lock",
    "LockInfo",
    "Once",
    "Orphan",
    "Owner",
    "RLock",
    "RWLock",
    "Semaphore",
    "Sync",
    "locks",
]
