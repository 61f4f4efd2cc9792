"""How fast a waiting process is woken, and what waiting costs those who do not wait.

    python benchmarks/bench_waiting.py [--quick] [--rounds 2000] [--json FILE]

Woken: one process stores the time under a key, or tells its partner in another way; the partner
takes the time when it is awake. A round begins when the partner is about to sleep; the ways take
turns, a batch of rounds each. "wait" is SharedDict.wait(); "event" multiprocessing.Event, "pipe" a
pipe, "poll" a loop that looks each millisecond. In asyncio: "await" is wait_for(), "executor" a
wait() in a thread of the loop's pool, "await pipe" a pipe that the loop reads. The ratio is to
"event" of the same turn.

Writers: m[key] = value in a loop while nobody waits, and while 8 processes wait for other keys; the
ratio is to nobody.

Idle: the processor time of 100 threads, and of 100 coroutines, that wait for a key that does not
come, for each second.
"""

import argparse
import asyncio
import multiprocessing
import os
import threading
import time

from report import finish, machine, percentiles, print_facts, print_table, spread

import shmrhash

ENTRIES = 1000
PASSES = 50
PAUSE_S = 0.0005  # so that the partner sleeps before it is woken


def word(number):
    return number.to_bytes(8, "little")


class WaitWay:
    """SharedDict.wait(): the number of the round, and the time, are stored."""

    def __init__(self, _context):
        self.shared = shmrhash.SharedDict(key=str, value=int)
        self.shared["time"] = 0

    def tell(self, now):
        self.shared["time"] = now

    def sleep(self, before):
        return self.shared.wait("time", lambda stored: stored != before)


class EventWay:
    """multiprocessing.Event; the time is in shared memory beside it."""

    def __init__(self, context):
        self.event = context.Event()
        self.time = context.Value("q", 0, lock=False)

    def tell(self, now):
        self.time.value = now
        self.event.set()

    def sleep(self, _before):
        self.event.wait()
        self.event.clear()
        return self.time.value


class PipeWay:
    def __init__(self, _context):
        self.read, self.write = os.pipe()

    def tell(self, now):
        os.write(self.write, word(now))

    def sleep(self, _before):
        return int.from_bytes(os.read(self.read, 8), "little")


class PollWay(WaitWay):
    """A loop that looks at the key each millisecond."""

    def sleep(self, before):
        while (stored := self.shared["time"]) == before:
            time.sleep(0.001)
        return stored


class AwaitWay(WaitWay):
    """SharedDict.wait_for()."""

    async def sleep_in_loop(self, before):
        return await self.shared.wait_for("time", lambda stored: stored != before)


class ExecutorWay(WaitWay):
    """wait() in a thread of the loop's pool."""

    async def sleep_in_loop(self, before):
        return await asyncio.get_running_loop().run_in_executor(None, self.sleep, before)


class AwaitPipeWay(PipeWay):
    """A pipe that the loop reads when it is readable."""

    async def sleep_in_loop(self, _before):
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self.read, readable.set_result, None)
        await readable
        loop.remove_reader(self.read)
        return self.sleep(0)


WAYS = {
    "wait": WaitWay,
    "event": EventWay,
    "pipe": PipeWay,
    "poll": PollWay,
    "await": AwaitWay,
    "executor": ExecutorWay,
    "await pipe": AwaitPipeWay,
}


async def partner_in_loop(way, rounds, answers):
    before = 0
    clock = time.perf_counter_ns
    times = []
    for _ in range(rounds):
        answers.send_bytes(b"r")
        before = await way.sleep_in_loop(before)
        times.append(clock() - before)
    answers.send(times)


def partner(way, rounds, answers):
    if hasattr(way, "sleep_in_loop"):
        asyncio.run(partner_in_loop(way, rounds, answers))
        return
    before = 0
    clock = time.perf_counter_ns
    times = []
    for _ in range(rounds):
        answers.send_bytes(b"r")
        before = way.sleep(before)
        times.append(clock() - before)
    answers.send(times)


def wake_times(way_class, rounds):
    """Nanoseconds from telling to being awake, of each round."""
    context = multiprocessing.get_context("fork")
    way = way_class(context)
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=partner, args=(way, rounds, theirs))
    process.start()
    for _ in range(rounds):
        mine.recv_bytes()
        time.sleep(PAUSE_S)
        way.tell(time.perf_counter_ns())
    times = mine.recv()
    process.join()
    return times


def measure_waking(rounds, turns):
    samples = {name: [] for name in WAYS}
    medians = {name: [] for name in WAYS}
    for _ in range(turns):
        for name, way in WAYS.items():
            times = wake_times(way, rounds // turns)
            samples[name] += times
            medians[name].append(percentiles(times)["p50"])
    return [
        {"way": name}
        | {mark: round(value / 1000, 1) for mark, value in percentiles(times).items()}
        | {"ratio_event": ratio_text(medians[name], medians["event"])}
        for name, times in samples.items()
    ]


def ratio_text(ones, others):
    found = spread([one / other for one, other in zip(ones, others, strict=True)])
    return f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})"


def pass_ns(m, keys):
    value = bytes(8)
    start = time.perf_counter()
    for _ in range(PASSES):
        for key in keys:
            m[key] = value
    return (time.perf_counter() - start) / PASSES / len(keys) * 1e9


def wait_for(m, keys, ready):
    ready.release()
    m.wait_any(keys)


def waiting_processes(m, names):
    """Processes that each wait for keys that do not come."""
    context = multiprocessing.get_context("fork")
    ready = context.Semaphore(0)
    crew = [
        context.Process(target=wait_for, args=(m, [name], ready), daemon=True) for name in names
    ]
    for process in crew:
        process.start()
    for _ in crew:
        ready.acquire()
    time.sleep(0.1)
    return crew


def measure_writers(rounds):
    """m[key] = value of 1,000 keys, while others wait."""
    keys = [word(number) for number in range(ENTRIES)]
    samples = {"nobody waits": [], "8 wait for absent keys": []}
    m = shmrhash.RHashMap.create(
        f"bench-waiting-{os.getpid()}", key_size=8, value_size=8, max_entries=ENTRIES
    )
    try:
        for key in keys:
            m[key] = bytes(8)
        for _ in range(rounds):
            samples["nobody waits"].append(pass_ns(m, keys))
            crew = waiting_processes(m, [word(ENTRIES + number) for number in range(8)])
            samples["8 wait for absent keys"].append(pass_ns(m, keys))
            for process in crew:
                process.kill()
                process.join()
            with shmrhash.RHashMap.open(m.name):
                pass  # recovers them
        m.check()
    finally:
        m.unlink()
        m.close()
    base = samples["nobody waits"]
    return [
        {"writer": name, "ns": round(spread(times)["median"], 1), "ratio": ratio_text(times, base)}
        for name, times in samples.items()
    ]


def idle_share(seconds, count):
    """The share of a core that each of count waiters takes, while this thread sleeps."""
    before, start = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return (time.process_time() - before) / (time.perf_counter() - start) / count


async def idle_in_loop(seconds, count):
    with shmrhash.SharedDict(key=int, value=int) as shared:
        waits = [asyncio.ensure_future(shared.wait_for(number)) for number in range(count)]
        await asyncio.sleep(0.2)
        before, start = time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        spent, lasted = time.process_time() - before, time.perf_counter() - start
        for number in range(count):
            shared[number] = 0
        await asyncio.gather(*waits)
        shared.check()
    return spent / lasted / count


def measure_idle(seconds, threads_count):
    """Processor time of idle waiters."""
    shared = shmrhash.SharedDict(key=int, value=int)
    threads = [
        threading.Thread(target=shared.wait, args=(number,), daemon=True)
        for number in range(threads_count)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    each = idle_share(seconds, threads_count)
    for number in range(threads_count):
        shared[number] = 0
    for thread in threads:
        thread.join()
    shared.check()
    in_loop = asyncio.run(idle_in_loop(seconds, threads_count))
    return [
        {"idle": f"{threads_count} threads", "of a core, each": f"{each:.5%}"},
        {"idle": f"{threads_count} coroutines", "of a core, each": f"{in_loop:.5%}"},
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds = max(40, options.rounds // 10) if options.quick else options.rounds
    facts = machine()
    print_facts(facts)
    waking = measure_waking(rounds, turns=5)
    print_table(waking)
    writers = measure_writers(3 if options.quick else 15)
    print_table(writers)
    idle = measure_idle(0.5 if options.quick else 20, 20 if options.quick else 100)
    print_table(idle)
    finish(options.json, facts, waking + writers + idle)


if __name__ == "__main__":
    main()
