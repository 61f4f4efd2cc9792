"""ls, info, stat, metrics, doctor, bench, help, completion: plain, JSON, and on a terminal."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from commandline import Terminal, run

from shmrhash import RHashMap
from shmrhash.cli import app
from shmrhash.cli.screen import fitting

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


def test_ls_shows_every_map_and_who_uses_it(make, users):
    make("empty", entries=0).close()
    make("full", entries=2, max_entries=2).close()
    make("hits").close()
    pids = [users.start(RHashMap.open, "hits") for _ in range(2)]

    shown = {found["name"]: found for found in run("-j", "ls").json}
    lines = {line.split()[0]: line for line in run("ls").lines}

    assert list(shown) == ["empty", "full", "hits"]
    assert [found["health"] for found in shown.values()] == ["ok", "full", "ok"]
    assert [found["entries"] for found in shown.values()] == [0, 2, 3]
    assert shown["full"]["fill"] == 1
    assert {user["pid"] for user in shown["hits"]["processes"]} == set(pids)
    assert list(lines) == ["NAME", "empty", "full", "hits"]
    assert "100.0%" in lines["full"]
    assert all(f"({pid})" in lines["hits"] for pid in pids)
    assert lines["empty"].split()[-2:] == ["ok", "-"]


def test_ls_says_when_a_map_was_used_last(make):
    """By whoever came, went, or did a thousand operations; looking at it is no use."""
    shared_map = make("hits")
    (before,) = run("-j", "ls").json
    began = time.time_ns()
    for _ in range(1024):
        shared_map.update(bytes(shared_map.key_size), bytes(shared_map.value_size))

    (found,) = run("-j", "ls").json
    text = run("ls").lines[1]

    assert before["last_activity_ns"] <= began <= found["last_activity_ns"] <= time.time_ns()
    assert found["last_activity"] == "used"
    assert "used" in text
    assert "ago" in text
    assert run("-j", "info", "hits").json["last_activity_ns"] == found["last_activity_ns"]


def test_ls_of_nothing(own_directory):
    assert run("ls").out.startswith("NAME")
    assert run("-j", "ls").json == []


def test_looking_changes_nothing(make):
    """No process slot, no recovery, not a byte of the file."""
    make(entries=100).close()
    path = Path(os.environ["SHMRHASH_DIR"], "hits")
    before = path.read_bytes()

    for words in (["ls"], ["info", "hits"], ["check", "hits"], ["stat", "hits"], ["dump", "hits"]):
        run(*words)

    assert before == path.read_bytes()


def test_info_tells_everything(make, users):
    """Figures, writers, and readers, who hold no slot."""
    make(entries=500).close()
    writer = users.start(RHashMap.open, "hits")
    reader = users.start(lambda: RHashMap.open("hits", read_only=True))

    found = run("-j", "info", "hits").json
    text = run("info", "hits").out

    with RHashMap.open("hits") as shared_map:
        truth = shared_map.info()
    for fact in ("entries", "buckets", "bytes_committed", "grows", "key_size", "max_entries"):
        assert truth[fact] == found[fact]
    assert [user["pid"] for user in found["processes"]] == [writer]
    assert [user["pid"] for user in found["readers"]] == [reader]
    assert "entries    500 of 1,000 (50.0%)" in text
    assert f"({writer})  attached" in text
    assert f"({reader})  reads" in text


def test_stat_counts_every_bucket(make):
    """The sums of the histogram are those of the map; the expected ones are near."""
    make(entries=5000, max_entries=5000, key_size=16).close()

    found = run("-j", "stat", "hits").json
    rows = found["histogram"]

    assert found["entries"] == 5000 == sum(row["entries"] * row["buckets"] for row in rows)
    assert found["buckets"] == sum(row["buckets"] for row in rows)
    assert abs(found["buckets"] - sum(row["expected"] for row in rows)) < found["buckets"] / 50
    for row in rows:
        assert abs(row["buckets"] - row["expected"]) < 6 * row["expected"] ** 0.5 + 6
    assert 1 <= found["lines_per_lookup"] < 1.2

    lines = run("stat", "hits").lines
    assert lines[0].startswith("hits: 5,000 of 5,000 entries in ")
    drawn = [line for line in lines if re.match(r" +\d+ +[\d,]+ +[\d,]+", line)]
    assert len(rows) == len(drawn)
    assert max(len(line) for line in lines) <= 80


def test_stat_of_an_empty_map_and_without_block_letters(make):
    make(entries=0).close()
    assert "0 of 1,000 entries" in run("stat", "hits").out
    make("more", entries=50).close()
    plain = run("stat", "more", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "###" in plain.out
    assert plain.out.isascii()


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.thorough
def test_stat_draws_a_file(make, tmp_path, ending):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    make(entries=500).close()
    path = tmp_path / f"hits.{ending}"

    run("stat", "hits", "--plot", path)

    data = path.read_bytes()
    assert b"<svg" in data if ending == "svg" else data.startswith(b"\x89PNG")


def test_stat_refuses_a_file_it_cannot_draw(hits, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert "not supported" in run("stat", hits, "--plot", tmp_path / "hits.xyz", status=2).err


def test_metrics_are_prometheus_text(make, users, tmp_path):
    """Read back by prometheus_client's own parser; a textfile has the same."""
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    make().close()
    make("other", entries=7).close()
    alive = users.start(RHashMap.open, "hits")
    dead = users.start(RHashMap.open, "hits")
    users.kill(dead)

    text = run("metrics").out
    run("metrics", "-o", tmp_path / "shmrhash.prom")

    samples = {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["shmrhash_entries", "hits"] == 3
    assert samples["shmrhash_entries", "other"] == 7
    assert samples["shmrhash_max_entries", "hits"] == 1000
    assert samples["shmrhash_processes", "hits", "alive"] == 1
    assert samples["shmrhash_processes", "hits", "dead"] == 1
    assert samples["shmrhash_map_usable", "dead owners", "hits"] == 1
    assert samples["shmrhash_recoveries_total", "hits"] == 0
    assert samples["shmrhash_directory_size_bytes",] > 0
    operations = {key[-1] for key in samples if key[0] == "shmrhash_process_operations_total"}
    assert operations == {str(alive), str(dead)}
    as_json = {
        (one["name"], *(one["labels"][label] for label in sorted(one["labels"]))): one["value"]
        for one in run("-j", "metrics").json
    }
    assert as_json.keys() == samples.keys()
    assert as_json["shmrhash_entries", "hits"] == 3
    written = (tmp_path / "shmrhash.prom").read_text()
    assert re.findall(r"^\w+", text, re.MULTILINE) == re.findall(r"^\w+", written, re.MULTILINE)


def test_doctor_finds_this_machine_fit(own_directory):
    """The tests run here, so nothing is bad; the trial leaves nothing behind."""
    found = run("-j", "doctor").json

    marks = {finding["what"]: finding["mark"] for finding in found}
    assert "bad" not in marks.values()
    assert marks["trial"] == marks["kernel"] == marks["directory"] == "ok"
    assert all(finding["change"] for finding in found if finding["mark"] != "ok")
    assert os.listdir(own_directory) == []


@pytest.mark.parametrize(
    ("limit", "what", "change"),
    [("-v 4000000", "address space", "ulimit -v"), ("-f 100", "file size", "ulimit -f")],
)
def test_doctor_finds_what_is_not_fit(own_directory, limit, what, change):
    """Exit status 1, and the command that changes it."""
    words = ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", sys.executable, "-m", "shmrhash"]

    result = run("doctor", status=1, command=words)

    line = next(line for line in result.lines if what in line)
    assert line.startswith("bad ")
    assert change in result.out


def test_doctor_of_a_directory_that_is_no_tmpfs(tmp_path):
    if "tmpfs" in subprocess.check_output(["df", "--output=fstype", tmp_path], text=True):
        pytest.skip("the tests' own files are on a tmpfs")
    found = run("-j", "--dir", tmp_path, "doctor", status=1)
    where = next(finding for finding in found.json if finding["what"] == "directory")
    assert where["mark"] == "bad"
    assert "SHMRHASH_DIR" in where["change"]
    assert "mount -t tmpfs" in run("--dir", tmp_path / "none", "doctor", status=1).out


def test_bench_measures_and_leaves_nothing(own_directory):
    words = ["bench", "--entries", 500, "--seconds", 0.01, "--processes", 2]

    found = run("-j", *words).json
    text = run(*words).out

    assert found["lookup"]["one"] > 1000
    assert found["update"]["all"] > 1000
    assert found["lookup"]["dict"] > found["lookup"]["one"] / 100
    assert "lookup" in text
    assert re.search(r"A lookup takes [\d.]+ (times as long|of the time)", text)
    assert "2 processes do so many times the work of one" in text
    assert "500 entries of 8 + 8 bytes" in text
    assert os.listdir(own_directory) == []


def test_help_teaches_by_example():
    """Every verb has examples that begin with the command; help and --help say the same."""
    text = run("--help").out
    assert "Exit status:" in text
    assert text == run("help").out
    for verb in app.MODULE_OF:
        assert re.search(rf"^  {verb} ", text, re.MULTILINE), verb
    for verb in ("dump", "top"):
        assert run("help", verb).out == run(verb, "--help").out
    assert run("-j", "help").json is None
    assert "Usage" in run(status=2).err
    assert "no command 'nothing'" in run("help", "nothing", status=2).err


@pytest.mark.parametrize("verb", sorted(set(app.MODULE_OF) - {"help"}))
def test_verb_has_help_with_examples(verb, capsys):
    assert app.run([verb, "--help"]) == 0
    text = capsys.readouterr().out

    assert "Examples:" in text
    assert re.search(rf"shmrhash (-\w+ )?{verb}\b", text)
    assert max(map(len, text.splitlines())) <= 100


def completions(*words):
    """What a shell would offer for the last word."""
    asked = ShellComplete(app.group, {}, "shmrhash", "_SHMRHASH_COMPLETE")
    return [item.value for item in asked.get_completions(list(words[:-1]), words[-1])]


def test_words_are_completed(make):
    """Verbs, names of maps, keywords."""
    make("jobs").close()
    make("hits").close()
    Path(os.environ["SHMRHASH_DIR"], "notes").write_text("no map")

    assert "dump" in completions("du")
    assert {"hits", "jobs", "name", "pinned", "id"} == set(completions("dump", ""))
    assert completions("dump", "j") == ["jobs"]
    assert completions("info", "name", "h") == ["hits"]
    assert completions("update", "hits", "n") == ["noexist"]
    assert "--value-u64" in completions("dump", "--value")
    asked = {"_SHMRHASH_COMPLETE": "bash_complete", "COMP_WORDS": "shmrhash dump j"}
    assert "jobs" in run(env=os.environ | asked | {"COMP_CWORD": "2"}).out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_for_a_shell(shell):
    text = run("completion", shell).out
    assert "_SHMRHASH_COMPLETE" in text
    assert run("-j", "completion", shell).json == text.removesuffix("\n")


def test_terminal_has_colours_and_a_pipe_has_none(make, monkeypatch):
    """NO_COLOR turns them off."""
    make("full", entries=2, max_entries=2).close()
    assert "\x1b" not in run("ls").out

    with Terminal("ls") as terminal:
        assert terminal.finish() == 0
        assert COLOUR.search(terminal.text)
    monkeypatch.setenv("NO_COLOR", "1")
    with Terminal("ls") as terminal:
        assert terminal.finish() == 0
        assert not COLOUR.search(terminal.text)
        assert "full" in terminal.text


def test_narrow_terminal_goes_without_columns(make):
    make().close()

    with Terminal("ls", columns=50) as terminal:
        terminal.finish()
        lines = re.sub(r"\x1b\[[0-9;?]*\w", "", terminal.text).splitlines()

    assert lines[0].split()[:2] == ["NAME", "ENTRIES"]
    assert "ACTIVITY" not in lines[0]
    assert max(map(len, lines)) <= 50
    assert fitting(["A", "B", "C"], [["aaaa", "-", "cc"]], 80, []) == [0, 2]


@pytest.mark.thorough
def test_unprintable_names_do_no_harm(make, own_directory, users):
    """Names of maps and of processes may hold what moves a terminal's cursor."""
    make("straße").close()
    make("bad\x1b[2J\n").close()

    def use():
        Path("/proc/self/comm").write_text("\x1b[31m")
        return RHashMap.open("bad\x1b[2J\n")

    users.start(use)

    for environment in ({}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}):
        for words in (["ls"], ["show"], ["top", "-n", "1"]):
            text = run(*words, env=os.environ | environment).out
            assert "bad\\x1b[2J\\n" in text
            assert "\x1b" not in text
    refused = run("lookup", "bad\x1b[2J\n", "key", "1", status=2)
    assert "\x1b" not in refused.err + run("info", "none\x1b[2J", status=3).err


def test_names_need_not_be_utf8(make, own_directory):
    make("good").close()
    os.rename(Path(own_directory, "good"), os.fsencode(own_directory) + b"/bad\xff")

    assert "bad\\udcff" in run("ls").out
    (found,) = run("-j", "ls").json
    assert found["name"] == "bad\udcff"


def test_columns_that_say_nothing_are_left_out():
    columns = ["NAME", ">A", ">B", "LAST"]
    rows = [["x", "-", "1", "end"], ["y", "-", "2", "end"]]

    assert fitting(columns, rows, 80, ["B"]) == [0, 2, 3]
    assert fitting(columns, rows, 10, ["B"]) == [0, 3]
