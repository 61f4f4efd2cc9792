"""The command top in a pipe, as JSON, and on a terminal whose user presses keys."""

import json
import re
import signal
import termios
import time

from support.commandline import TIMEOUT_SECONDS, Terminal, run, start

from shmrhash import LockTimeout, RHashMap, _segment


def counting(name):
    """Return a function that adds 1000 keys to a map and deletes them each time it is called."""

    def count():
        if not count.maps:
            count.maps.append(RHashMap.open(name))
        (own,) = count.maps
        for number in range(1000):
            own[b"n%07d" % number] = bytes(8)
        for number in range(1000):
            del own[b"n%07d" % number]

    count.maps = []
    return count


def test_top_shows_rates_and_dead_owners(make, users):
    """From the second frame on, top shows the rates of a map that grows, and of one at rest with a
    dead owner."""
    make("rest").close()
    growing = make("growing", max_entries=1_000_000, entries=0)
    dead = users.start(RHashMap.open, "rest")
    users.kill(dead)

    def grow():
        for _ in range(100):
            grow.number += 1
            growing[grow.number.to_bytes(8, "little")] = bytes(8)
        time.sleep(0.001)

    grow.number = 0
    pid = users.start_working(grow)

    first, second = map(json.loads, run("-j", "top", "-n", 2, "-d", 0.3).lines)

    assert [found["name"] for found in second["maps"]] == ["growing", "rest"]
    assert all(found["change_per_s"] is None for found in first["maps"])
    now, rest = second["maps"]
    assert now["change_per_s"] > 0
    assert now["splits_per_s"] > 0
    assert pid in [user["pid"] for user in now["processes"] if user["alive"]]
    assert now["operations_per_s"] > 0
    assert rest["change_per_s"] == 0
    assert rest["health"] == "dead owners"
    assert [user["pid"] for user in rest["processes"] if not user["alive"]] == [dead]


def test_top_shows_which_processes_wait(make, users):
    """One process holds a key and another tries to write it: top shows the rate of waits for the
    map and for the second process."""
    make("quiet").close()
    make("busy").close()
    key = b"k1".ljust(8, b"\0")

    def hold():
        held = RHashMap.open("busy")
        section = held.locked(key)
        section.__enter__()
        return held, section

    def want():
        if not want.maps:
            want.maps.append(RHashMap.open("busy", timeout=0.002))
        try:
            want.maps[0].update(key, bytes(8))
        except LockTimeout:
            want.maps[0].lookup(key)

    want.maps = []
    holder = users.start(hold)
    waiter = users.start_working(want)

    busy, quiet = json.loads(run("-j", "top", "-n", 2, "-d", 0.3).lines[-1])["maps"]

    assert busy["waits_per_s"] > 0
    assert not quiet["waits_per_s"]
    rates = {user["pid"]: user for user in busy["processes"]}
    assert rates[waiter]["waits_per_s"] > 0
    assert rates[waiter]["operations_per_s"] > 0
    assert rates[holder]["waits_per_s"] == rates[holder]["operations_per_s"] == 0
    frame = run("top", "-n", 2, "-d", 0.3, "--sort", "waits").out.split("\n\n\n")[-1]
    assert frame.index("\nbusy ") < frame.index("\nquiet ")
    assert "WAITS/s" in frame


def test_top_prints_text_into_a_pipe(make, users):
    """In a pipe top prints only the given maps as text, sorted by the given column."""
    make("few", entries=1).close()
    make("many", entries=500).close()
    pid = users.start(RHashMap.open, "many")

    text = run("top", "-n", 1, "--sort", "entries").out
    only = run("top", "-n", 1, "few").out

    assert "2 maps   1 processes" in text
    assert text.index("\nmany ") < text.index("\nfew ")
    assert f"({pid})" in text
    assert "\x1b" not in text
    assert "many" not in only


def test_top_of_no_maps_and_of_a_damaged_map(make, own_directory):
    assert "0 maps" in run("top", "-n", 1).out
    make().close()
    with open(f"{own_directory}/hits", "r+b") as file:
        file.seek(16)
        file.write(b"\xff" * 8)
    assert re.search(r"^hits .* damaged$", run("top", "-n", 1).out, re.MULTILINE)


def test_top_on_a_terminal_obeys_keys(make, users):
    """On a terminal top sorts by the column of the key pressed; q restores screen and keyboard."""
    make("few", entries=1).close()
    make("many", entries=500, max_entries=2000).close()
    users.start_working(counting("many"))

    with Terminal("top", "-d", 0.1) as terminal:
        terminal.wait_for("sorted by name")
        terminal.press("e")
        shown = terminal.wait_for("sorted by entries")
        frame = shown[shown.rindex("ENTRIES") :]
        assert frame.index("many") < frame.index("few")
        terminal.press("?x")
        terminal.wait_for("sorted by entries")
        terminal.press("q")
        assert terminal.finish() == 0
        assert "\x1b[?1049h" in terminal.text
        assert "\x1b[?1049l" in terminal.text[-200:]
        assert terminal.before == termios.tcgetattr(terminal.theirs)


def test_top_ends_when_interrupted(make):
    make().close()
    with Terminal("top", "-d", 0.1) as terminal:
        terminal.wait_for("sorted by name")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.finish() == 0
        assert terminal.before == termios.tcgetattr(terminal.theirs)


def readers(shared_map):
    """Return how many processes have a read-only handle of the map open."""
    with open(shared_map.info()["path"], "rb") as file:
        return _segment.holders_of(file.fileno()).readers


def test_top_keeps_no_handle_open_between_frames(make):
    """Between two frames top keeps no handle open, because an open handle of a reader would keep
    the map from giving memory back."""
    shared_map = make()
    top = start("top", "-d", 30)
    try:
        assert top.stdout.readline()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while readers(shared_map):
            assert time.monotonic() < deadline
            time.sleep(0.001)  # the loop polls until the handle is closed
    finally:
        top.kill()
        top.communicate()
