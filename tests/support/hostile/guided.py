"""Coverage-guided fuzzing: damage that reaches new edges of the core is kept, and damaged further.

    cd tests; python -m support.hostile.guided --images 100000 [--seed N] [--blind] [--keep FILE]

The core is compiled once more, with gcc's -fsanitize-coverage=trace-pc and edges.c, and this
script starts again with that package. As in fuzz.py, a worker takes one case after another; here it
also records which edges of the core's control flow the case took, and how often (1, 2, 3, 4 to 7,
and so on). Half of the cases are drawn blindly, and half from a case that took a new edge, with
damage added or removed, or with another use. --blind draws all cases blindly, for comparison.
--keep writes the fewest cases found that together take every edge seen, for guided.jsonl, which
test_guided.py tries.
"""

import argparse
import ctypes
import dataclasses
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from support.children import Partner, in_child

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
ROOT = TESTS.parent
STARTED = "SHMRHASH_GUIDED"  # an environment variable: the folder of the instrumented package
FLAGS = ["-O1", "-g1", "-fPIC", "-w", "-std=gnu11", "-fno-strict-aliasing"]
EDGES = 65536  # as in edges.c
CASE_BYTES = 1 << 20
MUTATIONS_MAX = 40
# A count's class: 0, 1, 2, 3, 4-7, 8-15, 16-31, 32-127, 128 and more, as one bit each.
CLASSES = np.zeros(256, np.uint8)
for bit, first in enumerate([1, 2, 3, 4, 8, 16, 32, 128]):
    CLASSES[first:] = 1 << bit


def build(folder):
    """Build the package, with an instrumented core, in folder."""
    shutil.copytree(ROOT / "shmrhash", folder / "shmrhash", ignore=shutil.ignore_patterns("*.so"))
    compiler = os.environ.get("CC", "gcc")
    cython = [sys.executable, "-m", "cython", "-3", "-I", ROOT / "cython", "--module-name"]
    cython += ["shmrhash._core", "-o", folder / "_core.c", ROOT / "cython" / "_core.pyx"]
    include = ["-I", ROOT / "cython", "-I", sysconfig.get_path("include")]
    core = [compiler, *FLAGS, "-fsanitize-coverage=trace-pc", *include]
    target = folder / "shmrhash" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    for command in (
        cython,
        [*core, "-c", folder / "_core.c", "-o", folder / "_core.o"],
        [compiler, *FLAGS, "-c", HERE / "edges.c", "-o", folder / "edges.o"],
        [compiler, "-shared", folder / "_core.o", folder / "edges.o", "-o", target],
    ):
        subprocess.run([str(part) for part in command], check=True)


class Counter:
    """The edges taken since reset(), and the edges ever taken; shared with children."""

    def __init__(self):
        import shmrhash

        self.memory = mmap.mmap(-1, 2 * EDGES)
        whole = np.frombuffer(self.memory, np.uint8)
        self.now, self.ever = whole[:EDGES], whole[EDGES:]
        self.library = ctypes.CDLL(shmrhash._core.__file__)
        self.library.edges_count_into(ctypes.c_void_p(self.now.ctypes.data))

    def reset(self):
        self.now[:] = 0

    def classes(self):
        return CLASSES[self.now]

    def is_new(self):
        """Whether an edge was taken for the first time, or for the first time in that class."""
        taken = self.classes()
        new = bool((taken & ~self.ever).any())
        self.ever |= taken
        return new

    def __len__(self):
        return int(np.count_nonzero(self.ever))

    def close(self):
        """Stop counting: at its end the interpreter unmaps this memory before the last call."""
        self.library.edges_count_into(None)


class Queue:
    """Cases that took new edges, from which other cases are drawn."""

    def __init__(self, site, rng, blind):
        self.site, self.rng, self.blind = site, rng, blind
        self.kept = []

    def fresh(self):
        from support.hostile.fuzz import Case

        image = self.rng.choice(self.site.list)
        return Case(image.name, self.damage(image).draw(), self.rng.getrandbits(32))

    def damage(self, image):
        from support.hostile.damage import Damage
        from support.hostile.fuzz import segment_bytes

        return Damage(image, self.site.list, self.rng, segment_bytes)

    def draw(self):
        if self.blind or not self.kept or self.rng.random() < 0.5:
            return self.fresh()
        # Later cases are more promising; any may be drawn.
        at = max(self.rng.randrange(len(self.kept)), self.rng.randrange(len(self.kept)))
        parent = self.kept[at]
        mutations = list(parent.mutations)
        if mutations and self.rng.random() < 0.3:
            del mutations[self.rng.randrange(len(mutations))]
        if self.rng.random() < 0.8:
            damage = self.damage(self.site.images[parent.image])
            for _ in range(self.rng.choice((1, 1, 2, 4))):
                mutations += self.rng.choice((damage.word, damage.half, damage.lock, damage.flip))()
            mutations = mutations[-MUTATIONS_MAX:]
        use = parent.use if self.rng.random() < 0.5 else self.rng.getrandbits(32)
        return dataclasses.replace(parent, mutations=mutations, use=use)


def life(site, queue, counter, count, current, tell):
    """The life of a worker: `count` cases; `current` has the case that is running."""
    os.environ["SHMRHASH_DIR"] = str(site.folder)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for _ in range(count):
        case = queue.draw()
        line = case.as_line().encode()
        struct.pack_into("<Q", current, 0, len(line))
        current[8 : 8 + len(line)] = line
        done = struct.unpack_from("<Q", current, CASE_BYTES - 8)[0]
        struct.pack_into("<Q", current, CASE_BYTES - 8, done + 1)
        signal.alarm(site.hang_seconds)
        counter.reset()
        try:
            site.run(case, f"image-{os.getpid()}")
        except BaseException:
            tell(["failed", json.loads(line), traceback.format_exc()[-3000:]])
        signal.alarm(0)
        if counter.is_new():
            queue.kept.append(case)
            tell(["kept", json.loads(line), ""])


def run_worker(site, queue, counter, count, current):
    """Run a worker: (its exit code, its messages)."""

    def live(parent):
        life(site, queue, counter, count, current, parent.say)

    child = Partner(live)
    said = child.rest()
    for path in site.folder.glob(f"*-{child.pid}"):
        path.unlink()
    return child.exitcode, said


def campaign(site, seed, images, *, blind=False, start=(), say=print):
    """Returns (the cases kept, the failed cases with their reports, the Counter)."""
    from support.hostile.fuzz import BATCH, Case

    counter = Counter()
    queue = Queue(site, random.Random(seed), blind)
    current = mmap.mmap(-1, CASE_BYTES)
    failures = []
    began = time.monotonic()
    queue.kept += start
    done = 0
    while done < images:
        queue.rng = random.Random(f"{seed}:{done}")
        ending, said = run_worker(site, queue, counter, min(BATCH, images - done), current)
        for what, case, text in said:
            if what == "kept":
                queue.kept.append(Case(**case))
            else:
                failures.append((Case(**case), text))
        if ending:
            (size,) = struct.unpack_from("<Q", current)
            failures.append((Case(**json.loads(current[8 : 8 + size])), f"ended with {ending}"))
        (done,) = struct.unpack_from("<Q", current, CASE_BYTES - 8)
        say(
            f"{done} images in {time.monotonic() - began:.0f} s, {len(counter)} edges, "
            f"{len(queue.kept)} kept, {len(failures)} failures"
        )
    return queue.kept, failures, counter


def edges_of(site, cases, counter):
    """The edges that each case takes, tried in a child: an array with a row for each case."""
    shared = mmap.mmap(-1, max(1, len(cases)) * EDGES)
    rows = np.frombuffer(shared, np.uint8).reshape(-1, EDGES)

    def note_edges():
        os.environ["SHMRHASH_DIR"] = str(site.folder)
        for row, case in zip(rows, cases, strict=True):
            counter.reset()
            site.run(case, f"image-{os.getpid()}")
            row[:] = counter.classes() > 0

    in_child(note_edges)
    return rows


def fewest(site, cases, counter):
    """Greedily chosen cases that together take every edge that any of the cases takes."""
    rows = edges_of(site, cases, counter).astype(bool)
    missing = rows.any(axis=0)
    chosen = []
    while missing.any():
        gains = (rows & missing).sum(axis=1)
        best = int(gains.argmax())
        chosen.append(cases[best])
        missing &= ~rows[best]
    return chosen


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--stepped", type=int, default=0, help="states of each operation")
    parser.add_argument("--blind", action="store_true", help="keep nothing: for comparison")
    parser.add_argument("--keep", type=Path, help="write the fewest cases that reach as much")
    return parser.parse_args()


def main():
    options = arguments()
    import shmrhash
    from support.hostile.bases import all_images
    from support.hostile.fuzz import Case, Site, folder

    if os.environ[STARTED] not in shmrhash._core.__file__:
        sys.exit("this is not the instrumented package")
    known = TESTS / "hostile" / "guided.jsonl"
    start = []
    if known.exists() and options.keep is not None:
        start = [Case(**json.loads(line)) for line in known.read_text().splitlines()]
    with folder() as made:
        site = Site(made, all_images(options.stepped, options.seed))
        print(f"seed {options.seed}, {len(site.list)} images", flush=True)
        kept, failures, counter = campaign(
            site, options.seed, options.images, blind=options.blind, start=start
        )
        for case, text in failures:
            print(f"{case.as_line()}\n{text}")
        if options.keep is not None:
            chosen = fewest(site, kept, counter)
            options.keep.write_text("".join(case.as_line() + "\n" for case in chosen))
            print(f"{len(chosen)} cases kept")
        counter.close()
    return bool(failures)


def start_again():
    """Build the package and run this script with it."""
    with tempfile.TemporaryDirectory() as temporary:
        build(Path(temporary))
        environment = {**os.environ, STARTED: temporary, "PYTHONPATH": f"{temporary}:{TESTS}"}
        environment.pop("SHMRHASH_TEST_INSTALLED", None)
        command = [sys.executable, "-m", "support.hostile.guided", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main() if STARTED in os.environ else start_again())
