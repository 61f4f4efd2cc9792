"""Use the installed package once, in two processes; run in an environment that has nothing else."""

import os
from pathlib import Path

import shmrhash

name = f"shmrhash-test-{os.getpid()}-package"
with shmrhash.RHashMap.create(name, key_size=4, value_size=8, max_entries=100) as jobs:
    jobs.update(b"job1", b"\x01" * 8)
    assert jobs.lookup(b"job1") == b"\x01" * 8
    child = os.fork()
    if child == 0:
        jobs.update(b"job2", b"\x02" * 8)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert jobs[b"job2"] == b"\x02" * 8
    assert len(jobs) == 2
    jobs.check()
    jobs.unlink()
assert Path(shmrhash.__file__).with_name("py.typed").exists()
assert Path(shmrhash.__file__).with_name("_core.pyi").exists()
print("works:", shmrhash.__file__)
