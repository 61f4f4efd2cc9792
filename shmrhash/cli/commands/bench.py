"""bench: the cost of operations on this machine, compared with a dict; with several processes."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from shmrhash import RHashMap
from shmrhash.cli.errors import STATUS_SYSTEM, Failure
from shmrhash.cli.screen import count_text, print_table, progress
from shmrhash.cli.session import Command, Session, pass_session

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

START_SECONDS_MAX = 60.0

TURNS = 5  # map and dict are measured in alternation: a slow phase of the machine slows both
GAIN_MIN = 1.2  # several processes should do more than this many times the work of one

Operate = Callable[[Any, list[bytes], bytes], None]


# Map and dict have separate functions: CPython specialises a loop for the first type it meets.


def _get(shared_map: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        shared_map[key]


def _get_dict(entries: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        entries[key]


def _update(shared_map: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        shared_map[key] = value


def _update_dict(entries: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        entries[key] = value


def _add(shared_map: Any, keys: list[bytes], value: bytes) -> None:
    add = shared_map.add
    for key in keys:
        add(key, 1)


def _add_dict(entries: Any, keys: list[bytes], value: bytes) -> None:
    """Values are bytes, as in the map: a program that adds converts them."""
    for key in keys:
        number = int.from_bytes(entries[key][:8], "little", signed=True)
        entries[key] = (number + 1).to_bytes(8, "little", signed=True) + value[8:]


def _replace(shared_map: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        del shared_map[key]
        shared_map[key] = value


def _replace_dict(entries: Any, keys: list[bytes], value: bytes) -> None:
    for key in keys:
        del entries[key]
        entries[key] = value


def _get_many(shared_map: Any, keys: list[bytes], value: bytes) -> None:
    shared_map.lookup_many(b"".join(keys))


def _get_many_dict(entries: Any, keys: list[bytes], value: bytes) -> None:
    [entries[key] for key in keys]


class Operation(NamedTuple):
    on_map: Operate
    on_dict: Operate


OPERATIONS = {
    "lookup": Operation(_get, _get_dict),
    "update": Operation(_update, _update_dict),
    "add": Operation(_add, _add_dict),
    "delete + insert": Operation(_replace, _replace_dict),
    "lookup_many": Operation(_get_many, _get_many_dict),
}


class Rates(NamedTuple):
    """Operations per second, of the map and of a dict; 0 if no dict was measured."""

    shared: float
    in_dict: float


def _rate(operate: Operate, subject: Any, keys: list[bytes], value: bytes, seconds: float) -> float:
    """Operations per second of a loop over the keys, repeated for this many seconds."""
    done, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds or not done:
        operate(subject, keys, value)
        done += len(keys)
    return done / passed


def _turns(operation: Operation, shared_map: RHashMap, keys: list[bytes], seconds: float) -> Rates:
    """The median rate of the map's turns, and that of the dict's."""
    value = bytes(shared_map.value_size)
    entries = dict.fromkeys(keys, value)
    maps, dicts = [], []
    for _ in range(TURNS):
        maps.append(_rate(operation.on_map, shared_map, keys, value, seconds / TURNS))
        dicts.append(_rate(operation.on_dict, entries, keys, value, seconds / TURNS))
    return Rates(statistics.median(maps), statistics.median(dicts))


def _work(
    name: str, keys: list[bytes], seconds: float, beside: bool, start: Barrier, answer: Connection
) -> None:
    """One process: each operation on its own keys; the rates go to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all; only the parent reports
    with RHashMap.open(name) as shared_map:
        value = bytes(shared_map.value_size)
        for operation in OPERATIONS.values():
            operation.on_map(shared_map, keys[:1], value)  # imports, registration
            start.wait(START_SECONDS_MAX)
            if beside:
                answer.send(_turns(operation, shared_map, keys, seconds))
            else:
                answer.send(Rates(_rate(operation.on_map, shared_map, keys, value, seconds), 0))


def measure(
    name: str, keys: list[bytes], processes: int, seconds: float, beside: bool = False
) -> Iterator[Rates]:
    """The operations per second of all processes together, for each of OPERATIONS in turn.

    beside: each process also measures a dict of its own, in turns.
    """
    context = get_context("fork")
    start = context.Barrier(processes)
    workers, answers = [], []
    share = max(1, len(keys) // processes)
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        own = keys[number * share : (number + 1) * share]
        arguments = (name, own, seconds, beside, start, theirs)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
        answers.append(ours)
        workers[-1].start()
        theirs.close()
    for _ in OPERATIONS:
        try:
            found = [answer.recv() for answer in answers]
        except EOFError:
            raise Failure("a process of the benchmark ended early", STATUS_SYSTEM) from None
        yield Rates(*(sum(each) for each in zip(*found, strict=True)))
    for worker in workers:
        worker.join()


def conclusions(one: list[Rates], many: list[Rates], processes: int, each: float) -> list[str]:
    """The figures in sentences."""
    found = dict(zip(OPERATIONS, zip(one, many, strict=True), strict=True))
    alone, _ = found["lookup"]
    slower = alone.in_dict / alone.shared
    if slower >= 1:
        lines = [f"A lookup takes {slower:.1f} times as long as in a dict of one process."]
    else:
        lines = [f"A lookup takes {slower:.2f} times as long as in a dict of one process."]
    batch, _ = found["lookup_many"]
    lines.append(
        f"One call for many keys is {batch.shared / alone.shared:.1f} times as fast for each key."
    )
    if processes > 1:
        gains = [f"{name} {all_.shared / own.shared:.1f}" for name, (own, all_) in found.items()]
        lines.append(
            f"{processes} processes together, compared with one: {', '.join(gains)} times as fast."
        )
        if found["lookup"][1].shared < GAIN_MIN * alone.shared:
            lines.append(
                "Lookups write nothing that is shared, so they should gain more: the processors "
                "are busy with something else, or there are fewer of them than it seems."
            )
    lines.append(f"An entry takes {each:.0f} bytes of memory, everything included.")
    return lines


@click.command("bench", cls=Command, short_help="The cost of operations on this machine.")
@click.option("--entries", type=click.IntRange(1, 1 << 24), default=100_000, show_default=True)
@click.option("--key-size", type=click.IntRange(4, 65535), default=8, show_default=True)
@click.option("--value-size", type=click.IntRange(8, 1 << 20), default=8, show_default=True)
@click.option("--processes", type=click.IntRange(1, 256), default=os.cpu_count(), show_default=True)
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=2.0, show_default=True)
@pass_session
def bench_command(
    session: Session,
    entries: int,
    key_size: int,
    value_size: int,
    processes: int,
    seconds: float,
) -> None:
    """Fill a new map, then read and write it from one process and from several.

    It takes half a minute; --seconds is the time for each operation. Figures include the loop in
    Python. DICT is the same work on a builtin dict, measured in alternation with the map:
    processes cannot share a dict, but it is a measure for the map. Each process has its own share
    of the keys. The folder benchmarks of the sources has more: other libraries, instructions.

    \b
    Examples:
      shmrhash bench
      shmrhash bench --entries 1000000 --value-size 64 --processes 4
    """
    name = f"shmrhash-bench-{os.getpid()}"
    keys = [number.to_bytes(key_size, "little") for number in range(entries)]
    steps = len(OPERATIONS) * (2 if processes > 1 else 1) + 1
    with (
        RHashMap.create(
            name, key_size=key_size, value_size=value_size, max_entries=entries
        ) as shared_map,
        progress("bench", steps) as advance,
    ):
        try:
            begun = time.perf_counter()
            _update(shared_map, keys, bytes(value_size))
            filled = entries / (time.perf_counter() - begun)
            each = shared_map.info()["bytes_per_entry"]
            advance(1)
            one, many = [], []
            for rates in measure(name, keys, 1, seconds, beside=True):
                one.append(rates)
                advance(1)
            for rates in measure(name, keys, processes, seconds) if processes > 1 else one:
                many.append(rates)
                advance(1 if processes > 1 else 0)
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
                    operation: {"one": own.shared, "dict": own.in_dict, "all": all_.shared}
                    for operation, own, all_ in zip(OPERATIONS, one, many, strict=True)
                },
            }
        )
        return
    columns = ["OPERATION", ">DICT", ">ONE PROCESS", ">NS EACH", ">VS DICT"]
    columns += [f">{processes} PROCESSES", ">SPEEDUP"] if processes > 1 else []
    rows = [["insert", "-", f"{count_text(filled)}/s", f"{1e9 / filled:.0f}", "-", "-", "-"]]
    for operation, own, all_ in zip(OPERATIONS, one, many, strict=True):
        row = [operation, f"{count_text(own.in_dict)}/s", f"{count_text(own.shared)}/s"]
        row += [f"{1e9 / own.shared:.0f}", f"{own.shared / own.in_dict:.2f}"]
        rows.append([*row, f"{count_text(all_.shared)}/s", f"{all_.shared / own.shared:.2f}"])
    print_table(columns, [row[: len(columns)] for row in rows])
    print(f"\n{entries:,} entries of {key_size} + {value_size} bytes.")
    for line in conclusions(one, many, processes, each):
        print(line)
