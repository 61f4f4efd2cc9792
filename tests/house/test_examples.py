"""The examples do what they say, run from the command line as users run them."""

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path

import pytest
from support.workers import FORKSERVER, SPAWN

import shmrhash

ROOT = Path(__file__).resolve().parents[2]
WORD_COUNT = ROOT / "examples" / "word_count.py"
SEGMENTS = Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"))
TIMEOUT_SECONDS = 120  # for one run; the corpora below need a few seconds on one slow core


class Run:
    """One program, in a session of its own, so that a signal can reach all its processes."""

    def __init__(self, *command, **environment):
        self.process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=os.environ | environment,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.segment_name = f"word-count-{self.process.pid}"

    def finish(self):
        """Wait for the end; if it does not come, kill the whole session."""
        try:
            self.out, self.err = self.process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.out, self.err = self.process.communicate()
            pytest.fail(f"still running after {TIMEOUT_SECONDS} s:\n{self.out}\n{self.err}")
        self.status = self.process.returncode
        return self

    def wait_until_counting(self, workers):
        """Return when this many workers, besides the parent, are attached and have counted."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with shmrhash.RHashMap.open(self.segment_name, read_only=True) as counts:
                    if counts.info()["processes"] > workers and len(counts) > 0:
                        return
            except shmrhash.SegmentMissing:
                pass
            time.sleep(0.001)  # a poll, not an assumption
        self.finish()
        pytest.fail(f"ended before it counted anything:\n{self.out}\n{self.err}")

    def segment_exists(self):
        return (SEGMENTS / self.segment_name).exists()


def run(*command, **environment):
    return Run(*command, **environment).finish()


@pytest.fixture
def corpus(tmp_path):
    """Eight files with every difficulty that the program promises to handle."""
    directory = tmp_path / "corpus"
    (directory / "below").mkdir(parents=True)
    long_word = "w" * 32
    texts = {
        "usual.py": b"a rose is a rose is a rose\n" * 300,
        "empty.py": b"",
        "no_words.py": b"+-*/ \n\n",
        "undecodable.py": b"b\xff\xfe rose \xc3\n",
        "not_ascii.py": "Straße straße naïve 東京 rose\n".encode() * 20,
        # 32 bytes fit the key, 33 do not; the last two agree in their first 60 bytes
        "long.py": " ".join([long_word, long_word + "x", "v" * 60, "v" * 60 + "1"]).encode() * 5,
        "below/other.py": b"a rose by any other name " * 200,
        "below/same.py": b"is a rose " * 400,
    }
    for name, data in texts.items():
        (directory / name).write_bytes(data)
    return directory


@pytest.fixture
def word_count(monkeypatch):
    """The program as a module, importable by the worker processes of a fork."""
    spec = importlib.util.spec_from_file_location("word_count", WORD_COUNT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "word_count", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def counts(word_count, make_map):
    """An empty map, made as the program makes it."""
    return make_map(key_size=word_count.KEY_SIZE, value_size=word_count.VALUE_SIZE)


def assert_counted(result):
    __tracebackhide__ = True
    assert result.status == 0, result.out + result.err
    assert "equal to a Counter of the same files" in result.out
    assert not result.segment_exists()


@pytest.mark.parametrize("start_method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
@pytest.mark.thorough
def test_word_count_loses_no_word(corpus, workers, start_method):
    """W1: many processes add; a Counter is the oracle."""
    result = run(WORD_COUNT, corpus, "--workers", workers, "--start-method", start_method)

    assert_counted(result)
    assert re.search(r"^ +1,521  rose$", result.out, re.MULTILINE)
    assert "8 of 8 files" in result.err


def test_word_count_of_a_part_of_the_standard_library():
    """W1: real text, two workers."""
    result = run(WORD_COUNT, Path(sysconfig.get_path("stdlib")) / "email", "--workers", 2)

    assert_counted(result)


def test_word_count_prints_details_with_the_info_option(corpus):
    """Without it there are the words, their number and the comparison."""
    plain = run(WORD_COUNT, corpus, "--workers", 2)
    asked = run(WORD_COUNT, corpus, "--workers", 2, "--info")

    assert_counted(plain)
    assert_counted(asked)
    assert "bytes_committed" not in plain.out
    assert re.search(r"^ +bytes_committed: \d+$", asked.out, re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_word_count_loses_no_word_in_twenty_runs(corpus, start_method):
    """W1: repeated, because losing an update is a matter of chance."""
    for _ in range(20):
        result = run(WORD_COUNT, corpus, "--workers", 8, "--start-method", start_method)

        assert_counted(result)


@pytest.mark.long
def test_word_count_of_the_whole_standard_library():
    """W1: the first command of the README."""
    assert_counted(run(WORD_COUNT))


def test_words_never_share_a_key(word_count):
    """Words of any length have different keys, all of the map's key size."""
    words = ["a", "a" * 31, "a" * 32, "a" * 33, "a" * 34, "é" * 16, "é" * 17, "b" * 5000]

    keys = [word_count.word_key(word) for word in words]

    assert {len(key) for key in keys} == {word_count.KEY_SIZE}
    assert len(set(keys)) == len(words)


def test_check_accepts_the_right_map(word_count, counts):
    """The check raises no false alarm."""
    for word in ["a", "b", "a"]:
        counts.add(word_count.word_key(word), 1, default=0)

    assert word_count.differences(counts, Counter("aab")) == []


@pytest.mark.parametrize(
    ("expected", "complaint"),
    [
        ("aaab", "'a' counted 2 times instead of 3"),
        ("ab", "'a' counted 2 times instead of 1"),
        ("aabc", "'c' counted 0 times instead of 1"),
        ("aa", "2 different words instead of 1"),
    ],
)
def test_check_finds_a_wrong_map(word_count, counts, expected, complaint):
    """A count that is too low or too high, a missing word, an additional word."""
    for word in ["a", "b", "a"]:
        counts.add(word_count.word_key(word), 1, default=0)

    assert complaint in word_count.differences(counts, Counter(expected))


def test_word_count_exits_with_1_if_counts_differ(word_count, corpus, monkeypatch, capfd):
    """Here words with the same beginning share a key, as 'name' and 'naïve' do."""
    right_key = word_count.word_key
    monkeypatch.setattr(word_count, "word_key", lambda word: right_key(word[:2]))

    status = word_count.main([str(corpus), "--workers", "2", "--start-method", "fork"])

    assert status == 1
    out = capfd.readouterr().out
    assert "WRONG: 'name' counted 220 times instead of 200" in out
    assert "differs from a Counter of the same files" in out


def test_word_count_exits_with_2_if_a_file_is_missing(corpus):
    """The message names the file."""
    result = run(WORD_COUNT, corpus, corpus / "missing.py")

    assert result.status == 2
    assert "missing.py" in result.err
    assert "Traceback" not in result.err
    assert not result.segment_exists()


def test_word_count_exits_with_2_if_nothing_matches(corpus):
    """The message names the option that helps."""
    result = run(WORD_COUNT, corpus, "--glob", "*.nothing")

    assert result.status == 2
    assert "--glob" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_word_count_exits_with_2_if_the_map_is_full(corpus, start_method):
    """W2: the worker's MapFull arrives in the parent; the segment is removed."""
    result = run(WORD_COUNT, corpus, "--max-words", 3, "--start-method", start_method)

    assert result.status == 2
    assert "word_count: " in result.err
    assert "Traceback" not in result.err
    assert not result.segment_exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_word_count_removes_its_map(number, status):
    """Ctrl-C reaches every process of the terminal; kill usually only the parent."""
    program = Run(WORD_COUNT, "--workers", 2)
    program.wait_until_counting(workers=2)

    if number == signal.SIGINT:
        os.killpg(program.process.pid, number)
    else:
        os.kill(program.process.pid, number)
    program.finish()

    assert program.status == status, program.out + program.err
    assert "Traceback" not in program.err
    assert not program.segment_exists()


def test_word_count_exits_with_2_if_a_worker_is_killed():
    """C1: the parent does not hang, and the map is removed."""
    program = Run(WORD_COUNT, "--workers", 2, "--start-method", "fork")
    program.wait_until_counting(workers=2)
    pid = program.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    os.kill(int(children[0]), signal.SIGKILL)
    program.finish()

    assert program.status == 2, program.out + program.err
    assert "Traceback" not in program.err
    assert not program.segment_exists()


@pytest.mark.parametrize("start_method", ["fork", SPAWN, FORKSERVER])
def test_word_count_with_a_shared_counter_loses_no_word(corpus, start_method):
    """W1: a Counter is the oracle."""
    result = run(WORD_COUNT, corpus, "--counter", "--workers", 3, "--start-method", start_method)

    assert_counted(result)
    assert re.search(r"^ +1,521  rose$", result.out, re.MULTILINE)


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
@pytest.mark.thorough
def test_pool_cache_finds_what_one_process_finds(start_method):
    """W1: and the workers find most values in the cache."""
    result = run(
        ROOT / "examples" / "pool_cache.py",
        *("--modules", 25, "--workers", 3, "--start-method", start_method),
    )

    assert result.status == 0, result.out + result.err
    assert "equal to what one process finds" in result.out
    (percent,) = re.findall(r"([\d.]+)% of", result.out)
    assert float(percent) > 50


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_rate_limiter_is_exact(start_method):
    """W1: at the limit exactly one of two requests is allowed."""
    result = run(
        ROOT / "examples" / "rate_limiter.py", "--workers", 4, "--start-method", start_method
    )

    assert result.status == 0, result.out + result.err
    assert "40,000 requests of 20 users" in result.out
    assert "2,000 allowed, at most 100 of one user" in result.out
    assert "exact - a new window is open" in result.out


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_live_config_reaches_all_workers_beside_kills(start_method):
    """R2, C1: workers and publishers are killed and replaced."""
    result = run(
        ROOT / "examples" / "live_config.py",
        *("--changes", 30, "--kills", 4, "--start-method", start_method),
    )

    assert result.status == 0, result.out + result.err
    assert "all workers have the last one" in result.out


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_shared_table_has_no_torn_row(start_method):
    """R2, L1: rows are read while they are written."""
    result = run(
        ROOT / "examples" / "shared_table.py",
        *("--readers", 3, "--seconds", 0.5, "--start-method", start_method),
    )

    assert result.status == 0, result.out + result.err
    assert "\n0 torn, 0 not whole at the end\n" in result.out


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_bank_loses_no_money_to_kills(start_method):
    """L2, C1: a payment changes two keys or none, whenever its process is killed."""
    program = ROOT / "examples" / "bank.py"
    finished = run(program, "--kills", 40, "--accounts", 5, "--start-method", start_method)

    assert finished.status == 0, finished.out + finished.err
    assert "the sum was 5,000 of 5,000 at the end, and wrong 0 times" in finished.out


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_leader_example_never_has_two_leaders(start_method):
    """C2: a killed leader is followed, a stopped one deposed; each has a term of its own."""
    program = ROOT / "examples" / "leader.py"
    finished = run(program, "--kills", 12, "--start-method", start_method)

    assert finished.status == 0, finished.out + finished.err
    assert "two leaders in one term: 0" in finished.out


@pytest.mark.parametrize("start_method", ["fork", SPAWN])
def test_work_queue_example_does_every_job(start_method):
    """C2: the jobs of killed workers are claimed again, and their permits come back."""
    program = ROOT / "examples" / "work_queue.py"
    finished = run(program, "--jobs", 60, "--kills", 12, "--start-method", start_method)

    assert finished.status == 0, finished.out + finished.err
    assert "60 of 60 jobs done, 2 of 2 devices free" in finished.out


def kill_children(program, rng, kills):
    """Kill children of a program, but not the one by which multiprocessing tidies up."""
    file = Path(f"/proc/{program.process.pid}/task/{program.process.pid}/children")
    while kills and program.process.poll() is None:
        time.sleep(rng.random() * 0.05)
        children = file.read_text().split() if file.exists() else []
        if not children:
            continue
        pid = rng.choice(children)
        line = Path(f"/proc/{pid}/cmdline").read_bytes()  # of a dead one it is empty
        if line and b"tracker" not in line and b"forkserver" not in line:
            os.kill(int(pid), signal.SIGKILL)
            kills -= 1


@pytest.mark.thorough
@pytest.mark.parametrize("start_method", ["fork", SPAWN])
@pytest.mark.parametrize(
    ("name", "options", "result"),
    [
        ("leader.py", ["--kills", 8], "two leaders in one term: 0"),
        ("live_config.py", ["--changes", 50, "--kills", 5], "all workers have the last one"),
        ("work_queue.py", ["--jobs", 150, "--kills", 5], "150 of 150 jobs done, 2 of 2 devices"),
    ],
)
def test_examples_replace_workers_that_others_kill(seed, name, options, result, start_method):
    """C1, C2: as if the system killed them, the program's own kills beside."""
    program = Run(ROOT / "examples" / name, *options, "--start-method", start_method)
    kill_children(program, random.Random(seed), 10)
    program.finish()

    assert program.status == 0, program.out + program.err
    assert result in program.out
