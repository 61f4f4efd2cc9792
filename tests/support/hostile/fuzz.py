"""Attaches to damaged images and uses them, in child processes under a watchdog.

A worker is a child that takes one image after another. When it dies or hangs, or an operation
raises an undocumented exception, the parent notes the image's number, minimises the damage with a
child for each attempt, and starts another worker at the next image. Beside each worker there may be
a vandal: a process that keeps writing into the image while it is used.

To run it alone, for hours, in tests/:

    cd tests; python -m support.hostile.fuzz --images 100000 [--seed N]

and so that out-of-bounds accesses are noticed, after building with CFLAGS=-fsanitize=address:

    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 \\
        LD_PRELOAD=$(gcc -print-file-name=libasan.so) python -m support.hostile.fuzz --seconds 600
"""

import argparse
import contextlib
import dataclasses
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import shmrhash
from support.children import Partner
from support.hostile import bases
from support.hostile.damage import Damage, write
from support.hostile.object_images import ObjectImage
from support.hostile.object_use import use_object
from support.hostile.use import use

HANG_SECONDS = 10  # for one image; loaded machines are slow
VANDAL_SHARE = 0.2
BATCH = 2000  # images of one worker's life, which bounds its leaks


@dataclasses.dataclass
class Case:
    """One damaged image, and how it is used."""

    image: str
    mutations: list
    use: int
    vandal: bool = False
    found: str = ""

    def as_line(self):
        return json.dumps(dataclasses.asdict(self))


def segment_bytes(*sizes):
    return shmrhash._core.segment_bytes(*sizes)


def case_of(number, seed, images):
    """The case with this number of a seed."""
    rng = random.Random(f"{seed}:{number}")
    image = rng.choice(images)
    mutations = Damage(image, images, rng, segment_bytes).draw()
    return Case(image.name, mutations, rng.getrandbits(32), rng.random() < VANDAL_SHARE)


class Vandal:
    """A process that writes into the image that a worker uses, until it is told to stop."""

    def __init__(self, path):
        self.child = Partner(self.main, path)

    def main(self, parent, path):
        while True:
            seed, places = parent.wait()
            with contextlib.suppress(OSError, ValueError):
                self.spoil(parent, path, random.Random(seed), places)
            parent.wait()
            parent.say()

    def spoil(self, parent, path, rng, places):
        """Write bad and good words by turns, until the parent calls."""
        fd = os.open(path, os.O_RDWR)
        try:
            with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
                good = {at: memory[at : at + 8] for at in places if at + 8 <= len(memory)}
                while not parent.has_called():
                    for at in rng.choices(list(good), k=200) if good else ():
                        bad = rng.choice(
                            (rng.getrandbits(64), rng.choice(BAD_WORDS), rng.choice(BAD_WORDS))
                        )
                        memory[at : at + 8] = bad.to_bytes(8, "little")
                        if rng.random() < 0.7:
                            memory[at : at + 8] = good[at]
        finally:
            os.close(fd)

    def begin(self, seed, places):
        self.child.tell((seed, places))

    def end(self):
        self.child.tell()
        self.child.hear()

    def kill(self):
        self.child.kill()


BAD_WORDS = [1, (1 << 64) - 1, 1 << 40, 0xF000000000000000, 0x7FFFFFFF, 0xFFFFFFFF, 3 << 16 | 1]
BAD_WORDS += [0xF0000001F0000001, 1 << 58, 1 << 32, 4096, 0]


class Site:
    """A folder in shared memory, with a segment for each worker and one healthy bystander."""

    def __init__(self, folder, images):
        self.folder, self.images = Path(folder), {image.name: image for image in images}
        self.list = list(images)
        self.vandal = None
        self.hang_seconds = HANG_SECONDS

    def run(self, case, name="image"):
        """Make the image and use it. An undocumented exception of an operation is raised."""
        path = self.folder / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        image = self.images[case.image]
        try:
            write(fd, image, case.mutations, self.images)
        finally:
            os.close(fd)
        try:
            using = use_object if isinstance(image, ObjectImage) else use
            if not case.vandal:
                return using(name, image, random.Random(case.use))
            if self.vandal is None:
                self.vandal = Vandal(path)
            rng = random.Random(case.use)
            damage = Damage(image, self.list, rng, segment_bytes)
            places = [damage.place() // 8 * 8 for _ in range(rng.choice((1, 4, 16, 64)))]
            self.vandal.begin(case.use, places)
            try:
                return using(name, image, rng)
            finally:
                self.vandal.end()
        finally:
            path.unlink()


def life(site, cases, progress, failures):
    """The life of a worker: its cases, and a check of a healthy map at the end."""
    os.environ["SHMRHASH_DIR"] = str(site.folder)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    name = f"bystander-{os.getpid()}"
    with shmrhash.RHashMap.create(name, key_size=8, value_size=8, max_entries=1000) as bystander:
        for number in range(100):
            bystander[number.to_bytes(8, "little")] = bytes(8)
        for number, case in cases:
            struct.pack_into("<Q", progress, 0, number)
            signal.alarm(site.hang_seconds)
            try:
                answered = site.run(case, f"image-{os.getppid()}-{os.getpid()}")
            except BaseException:
                failures(number, traceback.format_exc())
                answered = 0
            signal.alarm(0)
            struct.pack_into(
                "<QQ",
                progress,
                8,
                *(
                    a + b
                    for a, b in zip(
                        struct.unpack_from("<QQ", progress, 8), (1, answered > 0), strict=True
                    )
                ),
            )
        bystander.check()
        if len(bystander) != 100:
            failures(number, "a map beside it was changed")
        bystander.unlink()


def try_cases(site, cases):
    """Try the cases in a child: (its exit code, last number, tried, answered, failures)."""
    progress = mmap.mmap(-1, 4096)

    def live(parent):
        def failures(number, text):
            parent.say((number, text[-3000:]))

        try:
            life(site, cases, progress, failures)
        except BaseException:
            failures(-1, traceback.format_exc())
            raise
        finally:
            if site.vandal is not None:
                site.vandal.kill()

    child = Partner(live)
    said = child.rest()
    number, tried, answered = struct.unpack_from("<QQQ", progress)
    for path in site.folder.glob(f"*-{child.pid}"):
        path.unlink()
    return child.exitcode, number, tried, answered, said


def ending_of(site, case):
    """The result of a case alone in a child: "" if it is right, else a word for the failure."""
    ending, _, _, _, said = try_cases(site, [(0, case)])
    if ending < 0:
        return signal.Signals(-ending).name
    if said:
        return said[0][1].strip().splitlines()[-1]
    return "" if ending == 0 else f"exit {ending}"


def minimised(site, case, wanted, seconds=20):
    """The case with the fewest mutations that still ends in `wanted`."""
    deadline = time.monotonic() + seconds
    tries = 5 if case.vandal else 1
    mutations = list(case.mutations)

    def fails(mutations):
        attempt = dataclasses.replace(case, mutations=mutations)
        return any(ending_of(site, attempt) == wanted for _ in range(tries))

    at = 0
    while at < len(mutations) and time.monotonic() < deadline:
        fewer = mutations[:at] + mutations[at + 1 :]
        if fails(fewer):
            mutations = fewer
        else:
            at += 1
    return dataclasses.replace(case, mutations=mutations, found=wanted)


@dataclasses.dataclass
class Report:
    """The results of a campaign."""

    tried: int = 0
    answered: int = 0
    seconds: float = 0
    failures: list = dataclasses.field(default_factory=list)

    def __str__(self):
        return (
            f"{self.tried} images in {self.seconds:.0f} s ({self.tried / self.seconds:.0f} a "
            f"second), {self.answered} of them used with an answer, {len(self.failures)} failures"
        )


def campaign(site, seed, *, images=None, seconds=None, first=0, say=None, failures_max=20):
    """Try this many damaged images, or images for this many seconds; return the Report."""
    report = Report()
    began = time.monotonic()
    number = first
    while len(report.failures) < failures_max:
        left = BATCH if images is None else min(BATCH, first + images - number)
        if left <= 0 or (seconds is not None and time.monotonic() - began > seconds):
            break
        end = None if seconds is None else began + seconds
        cases = until(end, ((n, case_of(n, seed, site.list)) for n in range(number, number + left)))
        ending, last, tried, answered, said = try_cases(site, cases)
        report.tried += tried + (ending < 0)
        report.answered += answered
        if ending < 0:
            said.append([last, ""])
        for bad, text in said:
            if bad < 0:
                report.failures.append(Case("", [], 0, found=text))
                continue
            case = case_of(bad, seed, site.list)
            wanted = ending_of(site, case)
            if wanted:
                case = minimised(site, case, wanted)
            else:
                case.found = text or f"signal {-ending}, not seen again alone"
            report.failures.append(case)
            if say is not None:
                say(f"{seed}:{bad}: {case.as_line()}\n{text}")
        number = last + 1
        report.seconds = time.monotonic() - began
        if say is not None:
            say(str(report))
    report.seconds = time.monotonic() - began
    return report


def until(end, cases):
    for case in cases:
        if end is not None and time.monotonic() > end:
            return
        yield case


@contextlib.contextmanager
def folder():
    """A folder in shared memory for the segments of a campaign, so that gc() sees no others."""
    made = tempfile.mkdtemp(prefix="shmrhash-test-hostile-", dir="/dev/shm")
    before = os.environ.get("SHMRHASH_DIR")
    os.environ["SHMRHASH_DIR"] = made
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if before is None:
            del os.environ["SHMRHASH_DIR"]
        else:
            os.environ["SHMRHASH_DIR"] = before


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--first", type=int, default=0, help="number of the first image")
    parser.add_argument("--hang", type=int, default=HANG_SECONDS, help="seconds for one image")
    parser.add_argument("--stepped", type=int, default=12, help="states of each operation")
    parser.add_argument("--bases", choices=("plain", "objects", "all"), default="all")
    options = parser.parse_args()
    with folder() as made:
        site = Site(made, bases.all_images(options.stepped, options.seed, options.bases))
        site.hang_seconds = options.hang
        print(f"seed {options.seed}, {len(site.list)} images", flush=True)
        report = campaign(
            site,
            options.seed,
            images=options.images,
            seconds=options.seconds,
            first=options.first,
            say=lambda text: print(text, flush=True),
        )
    print(report)
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
