#!/usr/bin/env python3
"""A pool of workers that share a memo cache: a result of one worker serves all others.

    python examples/pool_cache.py                       # modules of the standard library
    python examples/pool_cache.py --workers 8 --modules 200

The work is real: find for each module all modules that it imports, directly or through others. This
parses every source file on the way, which takes milliseconds for each; a SharedDict keeps the
imports of a file, from its name to a list of names. The result is compared with that of one process
without the cache. Exit status: 0 if they are equal, 1 if they differ.
"""

import argparse
import ast
import functools
import multiprocessing
import os
import sys
import sysconfig
import time
from pathlib import Path

from shmrhash import SharedCounter, SharedDict

STDLIB = Path(sysconfig.get_path("stdlib"))


def parse_imports(module):
    """The standard library's modules that a module's source imports, by name: the slow part."""
    path = source_of(module)
    if path is None:
        return []
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return sorted(name for name in found if source_of(name))


def source_of(module):
    path = STDLIB.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_by(module, imports_of):
    """All modules that a module imports, directly or through others."""
    seen = set()
    waiting = [module]
    while waiting:
        for name in imports_of(waiting.pop()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return sorted(seen)


# Run by the workers.


def start_worker(shared_cache, shared_counts):
    """Keep the dict and the counter, which a worker gets by fork or by pickle."""
    global cache, counts
    cache, counts = shared_cache, shared_counts


def cached_imports(module):
    """parse_imports(module), computed once for all processes, or by each that begins at once."""
    found = cache.get(module)
    if found is None:
        counts.inc("misses")
        found = cache.setdefault(module, parse_imports(module))
    else:
        counts.inc("hits")
    return found


def task(module):
    return module, imported_by(module, cached_imports)


# Run by the parent.


def standard_modules(limit):
    names = sorted(path.stem for path in STDLIB.glob("*.py") if not path.stem.startswith("_"))
    return names[:limit]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--modules", type=int, default=60, help="how many (%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    options = parser.parse_args(arguments)
    modules = standard_modules(options.modules)
    context = multiprocessing.get_context(options.start_method)

    with SharedDict(key=str, value=object) as cache, SharedCounter() as counts:
        begun = time.perf_counter()
        with context.Pool(options.workers, start_worker, (cache, counts)) as pool:
            found = dict(pool.imap_unordered(task, modules))
        seconds = time.perf_counter() - begun
        hits, misses = counts["hits"], counts["misses"]
        print(f"{len(modules)} modules in {seconds:.2f} s by {options.workers} workers")
        print(f"{len(cache)} files parsed and kept, {cache.info()['objects']['count']} objects")
        asked = hits + misses
        print(f"{hits:,} hits, {misses:,} misses: {hits / asked:.1%} of {asked:,}")

    alone = functools.cache(parse_imports)
    expected = {module: imported_by(module, alone) for module in modules}
    equal = found == expected and misses >= alone.cache_info().misses
    print("equal to" if equal else "differs from", "what one process finds")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
