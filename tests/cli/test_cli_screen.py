"""Tables, figures, JSON and colours, on a terminal and in a pipe."""

import json
import re

from hypothesis import given
from hypothesis import strategies as st
from support.commandline import Terminal, run

from shmrhash.cli.screen import (
    count_text,
    fitting,
    json_text,
    percent_text,
    plain_table,
    size_text,
    time_text,
)

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9]")


def test_terminal_has_colours_and_a_pipe_has_none(make, monkeypatch):
    """The output has colours on a terminal, unless NO_COLOR is set, and none in a pipe."""
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


def test_narrow_terminal_gets_fewer_columns(make):
    make().close()

    with Terminal("ls", columns=50) as terminal:
        terminal.finish()
        lines = re.sub(r"\x1b\[[0-9;?]*\w", "", terminal.text).splitlines()

    assert lines[0].split()[:2] == ["NAME", "ENTRIES"]
    assert "ACTIVITY" not in lines[0]
    assert max(map(len, lines)) <= 50
    assert fitting(["A", "B", "C"], [["aaaa", "-", "cc"]], 80, []) == [0, 2]


def test_columns_without_information_are_left_out():
    columns = ["NAME", ">A", ">B", "LAST"]
    rows = [["x", "-", "1", "end"], ["y", "-", "2", "end"]]

    assert fitting(columns, rows, 80, ["B"]) == [0, 2, 3]
    assert fitting(columns, rows, 10, ["B"]) == [0, 3]


def test_figures_are_shown_in_short():
    assert [size_text(size) for size in (0, 999, 1024, 40960, 3 << 19, 9 << 30, 12 << 40)] == [
        "0 B",
        "999 B",
        "1.0 KiB",
        "40 KiB",
        "1.5 MiB",
        "9.0 GiB",
        "12.0 TiB",
    ]
    assert [count_text(number) for number in (0, 0.5, 7, 12_345, 100_000, 1_234_567, 1e9)] == [
        "0",
        "0.5",
        "7",
        "12,345",
        "100k",
        "1.23M",
        "1G",
    ]
    assert [percent_text(part) for part in (0, 1e-6, 0.5, 0.99999, 1)] == [
        "0.0%",
        "<0.1%",
        "50.0%",
        "99.9%",
        "100.0%",
    ]
    assert [time_text(seconds) for seconds in (-1, 119, 120, 7200, 259_200)] == [
        "0 s",
        "119 s",
        "2 min",
        "2 h",
        "3 d",
    ]


def test_plain_table_has_no_trailing_blanks():
    text = plain_table(["NAME", ">N"], [["a", "1"], ["long name", "20"]])

    assert text.splitlines() == ["NAME        N", "a           1", "long name  20"]
    assert plain_table(["A", "B"], []) == "A  B"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    )
)
def test_json_text_is_valid_json(value):
    assert value == json.loads(json_text(value, False))
    assert value == json.loads(json_text(value, True))
