"""Lock primitives in shared memory that survive their holder, one file for each subject.

space.py    Sync, the spaces in which the primitives have their cells
locks.py    Lock, RLock
counts.py   Semaphore, BoundedSemaphore
events.py   Event
"""

from shmrhash._sync.counts import BoundedSemaphore, Semaphore
from shmrhash._sync.events import Event
from shmrhash._sync.locks import Lock, Orphan, Owner, RLock
from shmrhash._sync.space import Sync

__all__ = ["BoundedSemaphore", "Event", "Lock", "Orphan", "Owner", "RLock", "Semaphore", "Sync"]
