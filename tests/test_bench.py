"""The benchmarks still run, so that the figures they gave can be measured again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench"


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ["bench_dict.py", "--quick", "--keys", "copies"],
        ["bench_batch.py", "--quick"],
        ["core.py", "--quick", "--sizes", "32/256"],
        ["memory.py", "--sizes", "8/8", "32/256", "--entries", "1", "5000"],
        ["processes.py", "--processes", "1", "2", "--rounds", "1"],
        ["recovery.py", "--deaths", "2", "--reads", "500"],
    ],
    ids=lambda command: command[0],
)
def test_benchmark_runs(command, tmp_path):
    """Each prints its facts and a table, and writes both as JSON."""
    if command[0] == "processes.py" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    program, *options = command
    result = subprocess.run(
        [sys.executable, BENCH / program, *options, "--json", tmp_path / "result.json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "# cpu:" in result.stdout
    assert '"rows"' in (tmp_path / "result.json").read_text()
