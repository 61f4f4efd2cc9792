"""A resizable hash map in POSIX shared memory, read and written by any number of processes.

>>> from shmrhash import RHashMap
>>> with RHashMap.create("jobs", key_size=8, value_size=8, max_entries=1000) as jobs:
...     jobs[b"job-0001"] = b"started."
...     jobs.unlink()
"""

try:
    from shmrhash import _core as _core
except ImportError as _error:
    if "nterpreter" in str(_error):
        raise ImportError(
            f"one interpreter of a process can use shmrhash, and this is another one ({_error}): "
            f"use threads or processes instead of subinterpreters"
        ) from _error
    if "cannot import name" not in str(_error):
        raise
    raise ImportError(
        f"{__path__[0]} is the source of shmrhash, without its compiled part, and Python found it "
        f"before an installed one: start in another directory, or run 'pip install -e .' in it"
    ) from _error

# The core imports these two itself, when it needs them. By then the process may have given up its
# privileges, or changed its root, and may not be able to read them: so they are loaded with it.
from shmrhash import _greenlets as _greenlets
from shmrhash import _turns as _turns
from shmrhash._batch import Batch, BucketInfo
from shmrhash._cache import Cache
from shmrhash._cachestats import CacheStats
from shmrhash._changes import Change
from shmrhash._claims import CacheClaim, CacheMutex
from shmrhash._constants import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_NO_COMMON_LRU,
    BPF_F_NO_PREALLOC,
    BPF_F_NUMA_NODE,
    BPF_F_RDONLY,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY,
    BPF_F_WRONLY_PROG,
    BPF_F_ZERO_SEED,
    BPF_NOEXIST,
)
from shmrhash._counter import SharedCounter
from shmrhash._dict import SharedDict
from shmrhash._errors import (
    DeadlockError,
    Deposed,
    Error,
    FrozenMap,
    InvalidArgument,
    KeyExists,
    KeyGone,
    KeyNotFound,
    LayoutMismatch,
    LimitReached,
    LockTimeout,
    MapBusy,
    MapClosed,
    MapFull,
    OutOfMemory,
    PermissionDenied,
    ReadOnlyMap,
    SegmentCorrupt,
    SegmentExists,
    SegmentFull,
    SegmentMissing,
    SystemFailure,
    TooLarge,
    TooManyProcesses,
    TrackingRefused,
    Unavailable,
    Unsupported,
    WaitTimeout,
    WriteOnlyMap,
)
from shmrhash._fields import Kptr, Refcount, SpinLock, Timer
from shmrhash._gc import gc, unlink
from shmrhash._map import RHashMap
from shmrhash._namespace import Namespace
from shmrhash._near.cache import NearCache
from shmrhash._sync import (
    Barrier,
    BoundedSemaphore,
    Condition,
    Event,
    Leader,
    Lock,
    LockInfo,
    Once,
    Orphan,
    Owner,
    RLock,
    RWLock,
    Semaphore,
    Sync,
    locks,
)
from shmrhash._tracing import CacheTrace, trace_as_asked
from shmrhash._types.arrays import Array
from shmrhash._waiting import CHANGED, GONE, Watch

__version__ = "0.2.0"  # the only place; pyproject.toml reads it

__all__ = [
    "BPF_ANY",
    "BPF_EXIST",
    "BPF_F_LOCK",
    "BPF_F_NO_COMMON_LRU",
    "BPF_F_NO_PREALLOC",
    "BPF_F_NUMA_NODE",
    "BPF_F_RDONLY",
    "BPF_F_RDONLY_PROG",
    "BPF_F_WRONLY",
    "BPF_F_WRONLY_PROG",
    "BPF_F_ZERO_SEED",
    "BPF_NOEXIST",
    "CHANGED",
    "GONE",
    "Array",
    "Barrier",
    "Batch",
    "BoundedSemaphore",
    "BucketInfo",
    "Cache",
    "CacheClaim",
    "CacheMutex",
    "CacheStats",
    "CacheTrace",
    "Change",
    "Condition",
    "DeadlockError",
    "Deposed",
    "Error",
    "Event",
    "FrozenMap",
    "InvalidArgument",
    "KeyExists",
    "KeyGone",
    "KeyNotFound",
    "Kptr",
    "LayoutMismatch",
    "Leader",
    "LimitReached",
    "Lock",
    "LockInfo",
    "LockTimeout",
    "MapBusy",
    "MapClosed",
    "MapFull",
    "Namespace",
    "NearCache",
    "Once",
    "Orphan",
    "OutOfMemory",
    "Owner",
    "PermissionDenied",
    "RHashMap",
    "RLock",
    "RWLock",
    "ReadOnlyMap",
    "Refcount",
    "SegmentCorrupt",
    "SegmentExists",
    "SegmentFull",
    "SegmentMissing",
    "Semaphore",
    "SharedCounter",
    "SharedDict",
    "SpinLock",
    "Sync",
    "SystemFailure",
    "Timer",
    "TooLarge",
    "TooManyProcesses",
    "TrackingRefused",
    "Unavailable",
    "Unsupported",
    "WaitTimeout",
    "Watch",
    "WriteOnlyMap",
    "gc",
    "locks",
    "unlink",
]

trace_as_asked()
