"""The command stat counts every bucket, and draws histograms as text and into files."""

import os
import re
import sys

import pytest
from support.commandline import run


def test_stat_counts_every_bucket(make):
    """The bucket counts in stat's histogram add up to the map's, and the expected counts are close
    to them."""
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


def test_stat_of_an_empty_map_and_in_ascii(make):
    make(entries=0).close()
    assert "0 of 1,000 entries" in run("stat", "hits").out
    make("more", entries=50).close()
    plain = run("stat", "more", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "###" in plain.out
    assert plain.out.isascii()


@pytest.mark.parametrize("ending", ["svg", "png"])
@pytest.mark.thorough
def test_stat_plots_into_a_file(make, tmp_path, ending):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    make(entries=500).close()
    path = tmp_path / f"hits.{ending}"

    run("stat", "hits", "--plot", path)

    data = path.read_bytes()
    assert b"<svg" in data if ending == "svg" else data.startswith(b"\x89PNG")


def test_stat_refuses_a_file_format_it_cannot_plot(hits, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert "not supported" in run("stat", hits, "--plot", tmp_path / "hits.xyz", status=2).err


def test_plot_without_matplotlib_says_how_to_install_it(hits, tmp_path):
    script = (
        "import sys; sys.modules['matplotlib'] = None; from shmrhash.cli import main; "
        "sys.exit(main())"
    )
    words = ["stat", hits, "--plot", tmp_path / "hits.svg"]

    result = run(*words, status=8, command=[sys.executable, "-c", script])

    assert "pip install 'shmrhash[plot]'" in result.err
