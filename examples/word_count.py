#!/usr/bin/env python3
"""Count the words of many files with several processes that share one map.

    python examples/word_count.py                          # the standard library's .py files
    python examples/word_count.py --workers 8 --glob '*.txt' ~/texts README.md
    python examples/word_count.py --counter                # the same with a SharedCounter
    python examples/word_count.py --info                   # and print the map's info()

Every worker adds every word to the same RHashMap as it meets it, and the result is compared with
a collections.Counter made by one process. With --counter the map is a SharedCounter: its keys are
the words themselves, of any length, and each file's words are counted before they are added.
Exit status: 0 if they are equal, 1 if they differ, 2 if the counting could not be done, 130 if
interrupted, 143 if terminated.

To count words as fast as possible, give each worker a Counter and sum them at the end. This program
shows the harder thing: many processes that change the same few hot counters, with no count lost.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import signal
import sys
import sysconfig
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import shmrhash

KEY_SIZE = 32  # bytes; 96 % of the different words of the standard library fit in
VALUE_SIZE = 8  # add() counts in 64 bits

signals = []  # received by the parent, which looks at them between two files


class Stopped(Exception):
    """Ctrl-C or kill ended the counting."""


def word_key(word):
    """The word in UTF-8, padded with NUL; for a longer word, a NUL and the digest of the word.

    No word contains NUL, so a short word never has the key of a long one. Two texts with the same
    BLAKE2 digest have never been found; if two words had, the check at the end would miss one.
    """
    data = word.encode()
    if len(data) > KEY_SIZE:
        data = b"\0" + hashlib.blake2b(data, digest_size=KEY_SIZE - 1).digest()
    return data.ljust(KEY_SIZE, b"\0")


def words_of(path):
    return re.findall(r"\w+", path.read_text(encoding="utf-8", errors="replace"))


# Run by the workers.


def start_worker(shared_counts, all_submitted):
    """Keep the map, which a worker gets by fork or by pickle; leave Ctrl-C to the parent."""
    global counts
    counts = shared_counts
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    all_submitted.wait()


def count_file(path):
    """Add each word of one file to the shared map; return how many there were."""
    words = words_of(path)
    if isinstance(counts, shmrhash.SharedCounter):
        counts.update(words)
    else:
        for word in words:
            counts.add(word_key(word), 1, default=0)
    return len(words)


# Run by the parent.


def count_with_workers(shared_counts, paths, workers, start_method):
    """Count all files in parallel; return the number of words."""
    words = 0
    # The workers begin when every file is submitted. If one died before, the pool's thread could
    # end with an error, because submit() changes the dict that it walks, and the other workers
    # would never stop.
    all_submitted = shmrhash.Event()
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context(start_method),
        start_worker,
        (shared_counts, all_submitted),
    )
    try:
        counts = [pool.submit(count_file, path) for path in paths]
        all_submitted.set()
        for done, count in enumerate(counts, start=1):
            words += count.result()
            show_progress("counting", done, len(paths))
    except BrokenProcessPool:
        # A worker was killed, and the pool is giving up its tasks. Cancelling them now would end
        # the pool's thread, and then nothing waits for the other workers (Python 3.11 and before).
        pool.shutdown()
        raise
    except BaseException:
        all_submitted.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()
    return words


def count_alone(paths):
    """The same count by one process, without the map."""
    expected = Counter()
    for done, path in enumerate(paths, start=1):
        expected.update(words_of(path))
        show_progress("checking", done, len(paths))
    return expected


def count_of(shared_counts, word):
    if isinstance(shared_counts, shmrhash.SharedCounter):
        return shared_counts[word]
    return int.from_bytes(shared_counts.get(word_key(word), b""), sys.byteorder)


def differences(shared_counts, expected):
    """Every difference between the map and the Counter, a line each; an empty list if none.

    If both have the same number of different words, and the map has each word of the Counter with
    its count, then the map has no word that the Counter lacks.
    """
    found = []
    if len(shared_counts) != len(expected):
        found.append(f"{len(shared_counts):,} different words instead of {len(expected):,}")
    for word, wanted in expected.items():
        if (count := count_of(shared_counts, word)) != wanted:
            found.append(f"{word!r} counted {count:,} times instead of {wanted:,}")
    return found


def show_progress(what, done, total):
    # Raised here and not in the signal's handler: an exception at an arbitrary instruction, as
    # Python's own handler of Ctrl-C raises it, can leave a lock of the pool taken, and then the
    # pool waits for that lock without end.
    if signals:
        raise Stopped
    if sys.stderr.isatty() or done == total:
        end = "\n" if done == total else "\r"
        print(f"{what}: {done:,} of {total:,} files", end=end, file=sys.stderr, flush=True)


def find_files(places, pattern):
    """The files named, and those that match the pattern below the directories named."""
    paths = []
    for place in places or [sysconfig.get_path("stdlib")]:
        place = Path(place)
        if place.is_dir():
            below = sorted(path for path in place.rglob(pattern) if path.is_file())
            # Installed packages lie in the standard library's directory, but do not belong to it.
            paths.extend(p for p in below if p.relative_to(place).parts[0] != "site-packages")
        else:
            place.open("rb").close()  # fail now, not half-way, if the file is missing
            paths.append(place)
    if not paths:
        raise FileNotFoundError(f"no file matches {pattern!r}; see --glob")
    return paths


def report(shared_counts, expected, words, seconds, options):
    # For long words the map has only digests, so the words to print come from the Counter.
    ranking = sorted(expected, key=lambda word: (-count_of(shared_counts, word), word))
    for word in ranking[: options.top]:
        print(f"{count_of(shared_counts, word):>12,}  {word}")
    if options.info:
        for name, value in shared_counts.info().items():
            print(f"{name:>24}: {value}")
    rate = words / seconds
    print(f"{words:,} words, {len(shared_counts):,} different, {rate:,.0f} words per second")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("places", nargs="*", help="files, directories; the standard library")
    parser.add_argument("--glob", default="*.py", help="which files of a directory (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the workers"
    )
    parser.add_argument("--max-words", type=int, default=4_000_000, help="limit of different words")
    parser.add_argument("--counter", action="store_true", help="count in a SharedCounter")
    parser.add_argument("--top", type=int, default=20, help="words to print (%(default)s)")
    parser.add_argument("--info", action="store_true", help="print what the map says of itself")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    return options


def create_counts(name, options):
    """The empty map. max_entries is a limit, not a size: memory is taken only as it fills."""
    if options.counter:
        return shmrhash.SharedCounter.create(name, key=str, max_entries=options.max_words)
    return shmrhash.RHashMap.create(
        name, key_size=KEY_SIZE, value_size=VALUE_SIZE, max_entries=options.max_words
    )


def run(options):
    paths = find_files(options.places, options.glob)
    with create_counts(f"word-count-{os.getpid()}", options) as shared_counts:
        try:
            start = time.perf_counter()
            words = count_with_workers(shared_counts, paths, options.workers, options.start_method)
            seconds = time.perf_counter() - start
            expected = count_alone(paths)
            report(shared_counts, expected, words, seconds, options)
            wrong = differences(shared_counts, expected)
        finally:
            shared_counts.unlink()
    for line in wrong[:10]:
        print("WRONG:", line)
    print("differs from" if wrong else "equal to", "a Counter of the same files")
    return 1 if wrong else 0


def main(arguments=None):
    try:
        return run(parse_arguments(arguments))
    except (Stopped, OSError, BrokenProcessPool, shmrhash.Error) as error:
        print("\nword_count:", "interrupted" if signals else error, file=sys.stderr)
        return 128 + signals[0] if signals else 2


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    sys.exit(main())
