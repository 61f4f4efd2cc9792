#!/usr/bin/env python3
"""A table of NumPy rows that a pool of readers reads while a writer updates them under F_LOCK.

    python examples/shared_table.py
    python examples/shared_table.py --readers 4 --rows 1000 --cells 256 --seconds 5

Each row is a ring of cells with some heat in them. The writer lets the heat flow: it locks a row,
computes a step of the heat equation, and stores the row, all cells at once. The sum of the heat in
a row never changes, so every reader can tell whether a row is whole: a torn row, half old and half
new, has another sum. Exit status: 0 if every row was whole and the heat has flowed, else 1.
"""

import argparse
import multiprocessing
import os
import sys
import time

import numpy as np

from shmrhash import BPF_F_LOCK, SharedDict

FLOW = 0.25  # the part of the difference between neighbours that flows in one step
TOLERANCE = 1e-9


def first_row(number, cells):
    """A row with all of its heat in one cell."""
    row = np.zeros(cells)
    row[number % cells] = 1.0 + number
    return row


def whole(number, row):
    return abs(row.sum() - (1.0 + number)) < TOLERANCE * (1.0 + number)


# The writer.


def step(row):
    return row + FLOW * (np.roll(row, 1) + np.roll(row, -1) - 2 * row)


def write(table, rows, stop):
    """Let the heat flow in one row after the other; return the number of steps."""
    steps = 0
    while not stop.is_set():
        number = steps % rows
        with table.locked(number) as entry:
            entry.value = step(entry.value)
        steps += 1
    return steps


# The readers.


def start_reader(shared_table):
    global table
    table = shared_table


def read(task):
    """Read rows for some time: how many, how many torn, the hottest cell's share of the last."""
    rows, seconds, seed = task
    rng = np.random.default_rng(seed)
    reads = torn = 0
    hottest = 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        number = int(rng.integers(rows))
        if reads % 2:
            row = table[number]  # never waits, never torn
        else:  # waits for the writer's lock, like bpf_map_lookup_elem with BPF_F_LOCK
            key = number.to_bytes(8, "little")
            row = np.frombuffer(table.handle.lookup(key, BPF_F_LOCK))
        torn += not whole(number, row)
        hottest = float(row.max() / row.sum())
        reads += 1
    return reads, torn, hottest


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", type=int, default=os.cpu_count(), help="(%(default)s)")
    parser.add_argument("--rows", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--cells", type=int, default=64, help="of a row (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument(
        "--start-method", choices=multiprocessing.get_all_start_methods(), help="of the readers"
    )
    options = parser.parse_args(arguments)
    context = multiprocessing.get_context(options.start_method)

    row_type = np.dtype((np.float64, (options.cells,)))
    with SharedDict(key=int, value=row_type, max_entries=options.rows) as table:
        for number in range(options.rows):
            table[number] = first_row(number, options.cells)
        tasks = [(options.rows, options.seconds, seed) for seed in range(options.readers)]
        with context.Pool(options.readers, start_reader, (table,)) as pool:
            found = pool.map_async(read, tasks, chunksize=1)
            steps = write(table, options.rows, Ended(found))
            results = found.get()
        left = [number for number, row in table.items() if not whole(number, row)]

    reads, torn = (sum(result[place] for result in results) for place in (0, 1))
    print(f"{steps:,} steps of the writer, {reads:,} rows read by {options.readers} readers")
    print(f"{torn} torn, {len(left)} not whole at the end")
    flown = steps < options.rows or all(result[2] < 1.0 for result in results)
    return 0 if reads and steps and flown and not torn and not left else 1


class Ended:
    """Whether the readers are done, with the is_set() of an Event."""

    def __init__(self, result):
        self.is_set = result.ready


if __name__ == "__main__":
    sys.exit(main())
