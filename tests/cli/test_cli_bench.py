"""The command bench measures, and leaves no map behind."""

import os
import re

from support.commandline import run


def test_bench_measures_and_leaves_no_map(own_directory):
    words = ["bench", "--entries", 500, "--seconds", 0.01, "--processes", 2]

    found = run("-j", *words).json
    text = run(*words).out

    assert found["lookup"]["one"] > 1000
    assert found["update"]["all"] > 1000
    assert found["lookup"]["dict"] > found["lookup"]["one"] / 100
    assert "lookup" in text
    assert re.search(r"A lookup takes [\d.]+ times as long", text)
    assert "2 processes together, compared with one" in text
    assert "500 entries of 8 + 8 bytes" in text
    assert os.listdir(own_directory) == []
