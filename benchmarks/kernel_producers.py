"""FULL UPDATE and MEMORY of bench_kernel.py: several processes at once, on one map.

Each producer is a process, pinned to a core of its own if there are enough; all begin at a barrier
and run for the same time. A producer on the kernel's side starts its own program again and again
(BPF_PROG_TEST_RUN); one on the core's side runs a loop in C.
"""

import array
import mmap
import multiprocessing
import os
import platform
import time
from typing import NamedTuple

import programs
from building import attach, segment_path
from programs import bpf
from report import median_row, unique_name

import shmrhash

BATCH = 64
ROUNDS_A_START = 500  # some 5 ms inside the kernel
UPDATES_A_ROUND = 10_000
KEYS_APART = 16  # elements inserted this far apart share no cache line
FULL_ENTRIES = 1000
SAMPLING_SECONDS = 0.005

USE_CASES = {  # the tasks in a round of a producer, or of the two producers of a pair
    "overwrite": [["update"]],
    "batch_add_batch_del": [["update", "delete"]],
    "add_del_on_diff_cpu": [["insert"], ["delete"]],
}
PUBLISHED = {("overwrite", 32): "1.08", ("overwrite", 4096): "1.01"}


class Share(NamedTuple):
    """The work of one producer: tasks over first, first + step, ...; its pair and half of it."""

    tasks: list
    first: int
    step: int
    count: int
    pair: int | None = None
    parity: int = 0


def run_core(bench, name, share, seconds, shared):
    """(rounds a second, share of the operations that were refused)."""
    numbers = (share.first + turn * share.step for turn in range(share.count))
    order = array.array("I", numbers)
    turns = () if share.pair is None else (shared, share.pair, share.parity)
    handle = attach(bench, name)
    nanoseconds, rounds, done = bench.rounds_of_map(
        handle, share.tasks, order, int(seconds * 1e9), *turns
    )
    expected = rounds * share.count * len(share.tasks)
    return rounds / nanoseconds * 1e9, 1 - done / expected if expected else 0.0


def run_kernel(bench, kernel_map, share, seconds, shared):
    passes = ROUNDS_A_START if share.pair is None and share.count == BATCH else 1
    turns = () if share.pair is None else (shared, share.pair, share.parity)
    with programs.LoopProgram(kernel_map, share.tasks) as program:
        attributes = program.prepare(
            turns=share.count, passes=passes, first=share.first + 1, step=share.step
        )
        nanoseconds, starts = bench.rounds_of_kernel(
            bpf.address(attributes),
            len(attributes),
            bpf.SYSCALL_NUMBERS[platform.machine()],
            int(seconds * 1e9),
            *turns,
        )
        done = program.result().done
    rounds = starts * passes
    expected = rounds * share.count * len(share.tasks)
    return rounds / nanoseconds * 1e9, 1 - done / expected if expected else 0.0


def producer(run, bench, target, share, seconds, shared, number, barrier, answer):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    barrier.wait(60)
    answer.send(run(bench, target, share, seconds, shared))


def together(run, bench, target, shares, seconds, measure_bytes):
    """Mean rounds a second of a producer, share of refused operations, largest memory seen."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(shares))
    shared = memoryview(mmap.mmap(-1, 4096))  # the turn words of pairs
    answers, processes = [], []
    for number, share in enumerate(shares):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (run, bench, target, share, seconds, shared, number, barrier, theirs)
        processes.append(context.Process(target=producer, args=arguments))
        processes[-1].start()
        theirs.close()
        answers.append(ours)
    largest = measure_bytes()
    while any(process.is_alive() for process in processes):
        largest = max(largest, measure_bytes())
        time.sleep(SAMPLING_SECONDS)
    found = [answer.recv() for answer in answers]
    rates, refused = zip(*found, strict=True)
    return sum(rates) / len(rates), sum(refused) / len(refused), largest


def kernel_bytes(kernel_map):
    with open(f"/proc/self/fdinfo/{kernel_map.fd}") as fdinfo:
        return next(int(line.split()[1]) for line in fdinfo if line.startswith("memlock"))


def compare(bench, options, geometry, shares, fill, preallocated, scale):
    """The figures of a row: in each round both sides run the same shares, one after the other."""
    name = unique_name("producers")
    samples = {"htab": [], "core": []} if options.kernel else {"core": []}
    flags = 0 if preallocated else bpf.F_NO_PREALLOC
    kernel = bpf.KernelMap.create(map_flags=flags, **geometry) if options.kernel else None
    try:
        with shmrhash.RHashMap.create(name, **geometry) as shared_map:
            try:
                for side in [kernel, shared_map] if kernel else [shared_map]:
                    for number in range(fill):
                        side.update((number + 1).to_bytes(4, "little"), bytes(8))
                for _ in range(options.rounds):
                    for who in samples:
                        run, target = (run_kernel, kernel) if who == "htab" else (run_core, name)
                        used = (
                            (lambda: kernel_bytes(kernel))
                            if who == "htab"
                            else (lambda: segment_path(name).stat().st_blocks * 512)
                        )
                        arguments = (run, bench, target, shares, options.seconds, used)
                        samples[who].append(together(*arguments))
                shared_map.check()
            finally:
                shared_map.unlink()
    finally:
        if kernel:
            kernel.close()
    row = {"producers": len(shares)}
    for who, triples in samples.items():
        row |= median_row(f"{who}_per_second", [rate * scale for rate, _, _ in triples])
        row |= median_row(f"{who}_refused", [refused for _, refused, _ in triples])
        row |= median_row(f"{who}_bytes", [used for _, _, used in triples])
    if kernel:
        pairs = zip(samples["htab"], samples["core"], strict=True)
        row |= median_row("core_ratio", [ours[0] / theirs[0] for theirs, ours in pairs])
    return row


def measure_update(bench, options):
    """FULL UPDATE: each producer has one key, absent (all refused) or present (all succeed)."""
    count = options.producers or len(os.sched_getaffinity(0))
    geometry = {"key_size": 4, "value_size": 8, "max_entries": FULL_ENTRIES}
    rows = []
    for reading, base, apart, wanted, published in (
        ("absent key", FULL_ENTRIES, 1, 1.0, "5.25"),
        ("present key, neighbours", 0, 1, 0.0, None),
        ("present key, apart", 0, KEYS_APART, 0.0, None),
    ):
        shares = [Share(["update"], base + n * apart, 0, UPDATES_A_ROUND) for n in range(count)]
        row = compare(bench, options, geometry, shares, FULL_ENTRIES, True, UPDATES_A_ROUND)
        if row["core_refused"]["median"] != wanted:
            raise RuntimeError(f"{reading}: {row['core_refused']['median']} were refused")
        what = f"{reading}, {count} producers"
        rows.append({"benchmark": "FULL UPDATE", "what": what, "published_ratio": published} | row)
    return rows


def measure_memory(bench, options):
    count = options.producers or len(os.sched_getaffinity(0))
    rows = []
    for value_size in (32, 4096):
        geometry = {"key_size": 4, "value_size": value_size, "max_entries": 8192}
        for use_case, halves in USE_CASES.items():
            if len(halves) == 2:
                pairs = max(1, count // 2)
                shares = [
                    Share(tasks, pair, pairs, BATCH, pair, parity)
                    for pair in range(pairs)
                    for parity, tasks in enumerate(halves)
                ]
            else:
                shares = [Share(halves[0], number, count, BATCH) for number in range(count)]
            row = compare(bench, options, geometry, shares, 0, False, len(halves[0]))
            if row["core_refused"]["median"] != 0:
                raise RuntimeError(f"{use_case}: the map refused some operations")
            rows.append(
                {
                    "benchmark": "MEMORY",
                    "what": f"{use_case}, {value_size} B, {len(shares)} producers",
                    "published_ratio": PUBLISHED.get((use_case, value_size)),
                }
                | row
            )
    return rows
