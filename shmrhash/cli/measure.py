"""bench: what one operation costs on this machine, in one process and in several at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import click

from shmrhash import RHashMap
from shmrhash.cli.base import Session, Verb, pass_session
from shmrhash.cli.screen import count_text, print_table
from shmrhash.cli.tokens import STATUS_SYSTEM, Failure

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

START_SECONDS_MAX = 60.0

Operate = Callable[[RHashMap, list[bytes], bytes], None]


def _lookup(shared_map: RHashMap, keys: list[bytes], value: bytes) -> None:
    lookup = shared_map.lookup
    for key in keys:
        lookup(key)


def _update(shared_map: RHashMap, keys: list[bytes], value: bytes) -> None:
    update = shared_map.update
    for key in keys:
        update(key, value)


def _add(shared_map: RHashMap, keys: list[bytes], value: bytes) -> None:
    add = shared_map.add
    for key in keys:
        add(key, 1)


def _replace(shared_map: RHashMap, keys: list[bytes], value: bytes) -> None:
    delete, update = shared_map.delete, shared_map.update
    for key in keys:
        delete(key)
        update(key, value)


OPERATIONS: dict[str, Operate] = {
    "lookup": _lookup,
    "update": _update,
    "add": _add,
    "delete + insert": _replace,
}


def _work(name: str, keys: list[bytes], seconds: float, start: Barrier, answer: Connection) -> None:
    """One process: each operation on its own keys for so long; the rates go to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; the parent speaks for them
    with RHashMap.open(name) as shared_map:
        value = bytes(shared_map.value_size)
        rates = []
        for operate in OPERATIONS.values():
            start.wait(START_SECONDS_MAX)
            done, begun = 0, time.perf_counter()
            while (passed := time.perf_counter() - begun) < seconds:
                operate(shared_map, keys, value)
                done += len(keys)
            rates.append(done / passed)
    answer.send(rates)


def measure(name: str, keys: list[bytes], processes: int, seconds: float) -> list[float]:
    """The operations per second of so many processes together, for each of OPERATIONS."""
    context = get_context("fork")
    start = context.Barrier(processes)
    workers, answers = [], []
    share = max(1, len(keys) // processes)
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        own = keys[number * share : (number + 1) * share]
        arguments = (name, own, seconds, start, theirs)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
        answers.append(ours)
        workers[-1].start()
        theirs.close()
    try:
        rates = [answer.recv() for answer in answers]
    except EOFError:
        raise Failure("a process of the benchmark ended early", STATUS_SYSTEM) from None
    for worker in workers:
        worker.join()
    return [sum(each) for each in zip(*rates, strict=True)]


@click.command("bench", cls=Verb, short_help="What operations cost on this machine.")
@click.option("--entries", type=click.IntRange(1, 1 << 24), default=100_000, show_default=True)
@click.option("--key-size", type=click.IntRange(4, 65535), default=8, show_default=True)
@click.option("--value-size", type=click.IntRange(8, 1 << 20), default=8, show_default=True)
@click.option("--processes", type=click.IntRange(1, 256), default=os.cpu_count(), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.5, show_default=True)
@pass_session
def bench_verb(
    session: Session,
    entries: int,
    key_size: int,
    value_size: int,
    processes: int,
    seconds: float,
) -> None:
    """Fill a map of its own, then read and write it from one process and from several.

    The figures include Python's loop. Each process has its own keys, one share of the entries; for
    the time of the hot path and for comparisons see tests/bench.

    \b
    Examples:
      shmrhash bench
      shmrhash bench --entries 1000000 --value-size 64 --processes 4
    """
    name = f"shmrhash-bench-{os.getpid()}"
    keys = [number.to_bytes(key_size, "little") for number in range(entries)]
    with RHashMap.create(
        name, key_size=key_size, value_size=value_size, max_entries=entries
    ) as shared_map:
        try:
            begun = time.perf_counter()
            _update(shared_map, keys, bytes(value_size))
            filled = entries / (time.perf_counter() - begun)
            each = shared_map.info()["bytes_per_entry"]
            one = measure(name, keys, 1, seconds)
            many = measure(name, keys, processes, seconds) if processes > 1 else one
        finally:
            with contextlib.suppress(FileNotFoundError):
                shared_map.unlink()
    if session.json:
        session.emit(
            {
                "entries": entries,
                "key_size": key_size,
                "value_size": value_size,
                "processes": processes,
                "bytes_per_entry": each,
                "insert": {"one": filled},
                **{
                    operation: {"one": single, "all": together}
                    for operation, single, together in zip(OPERATIONS, one, many, strict=True)
                },
            }
        )
        return
    columns = ["OPERATION", ">ONE PROCESS", ">NS EACH", f">{processes} PROCESSES", ">TIMES"]
    rows = [["insert", f"{count_text(filled)}/s", f"{1e9 / filled:.0f}", "-", "-"]]
    for operation, single, together in zip(OPERATIONS, one, many, strict=True):
        rates = [f"{count_text(single)}/s", f"{1e9 / single:.0f}", f"{count_text(together)}/s"]
        rows.append([operation, *rates, f"{together / single:.2f}"])
    print_table(columns, rows)
    print(f"{entries:,} entries of {key_size} + {value_size} bytes, {each:.0f} bytes each")
