"""A process that has given up its privileges, or changed its root, may not be able to read a module
any more: what the library needs is loaded when it is imported.

All of this is done in a new interpreter that refuses every import after that of the library.
"""

import os
import subprocess
import sys

import pytest

BEGINNING = """
import asyncio, os, pickle, signal, sys
from importlib.machinery import BuiltinImporter, FrozenImporter
asyncio.run(asyncio.sleep(0))  # what asyncio loads late is not the library's
import shmrhash
from shmrhash import *

class Refused:
    def find_spec(self, name, path=None, target=None):
        asked.append(name)

asked = []
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Refused()]  # those need no file
NAME, KEY = sys.argv[1], b"k" * 8

def child(work):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda: os.write(tell, b"x"))
        except BaseException as error:
            asked.append(f"{type(error).__name__}: {error}")
        os.write(tell, " ".join(asked).encode())
        os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as said:
        first = said.read(1)
        if work is holds:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rest = first + said.read() if work is not holds else b""
    assert not rest, rest
"""

DICTS = """
def holds(ready):
    with d.locked("a"), m.locked(KEY):
        ready()
        signal.pause()

def works(ready):
    d["child"] = m.add(KEY, 1, default=0)

m = RHashMap.create(NAME, key_size=8, value_size=8, max_entries=100, timeout=60)
d = SharedDict(NAME + "-d", key=str, value=object, ttl=60, timeout=60)
m[KEY], d["a"] = bytes(8), {"x": (1, 2.5)}
assert RHashMap.open(NAME)[KEY] == RHashMap.open(NAME, read_only=True)[KEY] == m[KEY]
assert SharedDict(NAME + "-d", key=str, value=object, ttl=60)["a"] == d["a"]
try:
    RHashMap.open(NAME + "-none")
except SegmentMissing:
    pass
else:
    raise AssertionError("there is no such map")
for each in m, d:
    assert list(pickle.loads(pickle.dumps(each)).items()) == list(each.items())
with d.locked_many(["a", "b"], default=0) as (first, second):
    first.value, second.value = 3, 4
try:
    with d.locked("a"):
        d["a"] = 5
except DeadlockError:
    pass
child(works)
assert d["child"] == 1
child(holds)
m[KEY], d["a"] = KEY, 6  # recover the process that was killed
d.update_with("a", lambda number: number + 1)
d.expire(), m.check(), d.check(), m.info(), d.info(), repr(d)
assert d["a"] == 7 and dict(d)["b"] == 4
m.unlink(), d.unlink(), d.clear(), d.close(), m.close()
"""

OTHERS = """
d, c = SharedDict(NAME, key=str, value=int), Cache(max_entries=10)
space = Sync(NAME + "-s")
lock = Lock("lock", space=space)

def holds(ready):
    with lock, c.claim("k"):
        ready()
        signal.pause()

async def coroutine():
    d["a"] = 1
    async with d.locked("a") as section, lock:
        section.value = 2
    try:
        async for change in d.watch("a", timeout=0.001):
            break
    except WaitTimeout:
        pass
    return await c.aget_or_compute("later", lambda: asyncio.sleep(0, 7))

assert asyncio.run(coroutine()) == 7 and d["a"] == 2
child(holds)
assert c.get_or_compute("k", lambda: 3) == c.memoize()(lambda x: x)(3) == 3
with lock, Semaphore(2, "places", space=space), RLock("again", space=space):
    Event("event", space=space).set()
assert SharedCounter().inc("x") == 1
shmrhash.gc(), shmrhash.locks(space)
d.unlink(), space.unlink()
"""

END = """
assert not asked, asked
print("done")
"""


def run(program, *words, **environment):
    """Return what a new interpreter that runs the program writes."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd="/",
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("beginning", ["", "import sys; sys.modules['posix_ipc'] = None\n"])
def test_no_operation_of_a_map_or_dict_imports_a_module(map_name, beginning):
    """C2, C3: no operation imports a module, also opening, pickling, recovery and operations of a
    child. posix_ipc, when present, opens what is in the machine's directory."""
    said = run(beginning + BEGINNING + DICTS + END, map_name, SHMRHASH_DIR="/dev/shm")

    assert said == "done\n"


def test_no_operation_of_a_cache_lock_or_coroutine_imports_a_module(map_name):
    """C2, C3: no operation imports a module, also taking over what a killed process held."""
    assert run(BEGINNING + OTHERS + END, map_name) == "done\n"
