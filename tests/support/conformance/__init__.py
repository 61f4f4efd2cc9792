"""CPython's own tests of locks, run with the types of shmrhash in the place of threading's.

The tests are not in this repository. They come with the interpreter, in its package `test`:

- `test.lock_tests` (threads.py): what threading's types must do, and other types with their names.
  A test class makes what it tests by a class attribute: locktype, semtype, eventtype, condtype,
  barriertype.
- `test._test_multiprocessing` (processes.py): what multiprocessing's types must do when they are
  passed on to other processes. A test class finds the types as attributes of a mixin.

- `test.test_asyncio.test_locks` (tasks.py): what asyncio's types must do. A test finds the types in
  the module's global `asyncio`.

A class here is one of CPython's with the attribute set. A test that our types cannot pass is named
in it as `test_x = None`, and a comment says why. Everything else must pass.

The tests run in processes of their own (running.py): they count the threads of the process, send
it signals, and set the start method of multiprocessing. In the environment, CONFORMANCE_TYPES says
whose types are tested: by the standard library's the harness itself is tested.
"""
