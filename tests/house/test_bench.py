"""The benchmarks run, so that their published figures can be measured again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCH))

import instructions  # noqa: E402

TWO_CORES = {"processes.py", "bench_scaling.py"}
NAMED = {
    "processes.py": "numpy",
    "bench_batch.py": "numpy",
    "bench_locks.py": "numpy",
    "bench_metrics.py": "prometheus_client",
    "bench_near.py": "redis",
    "bench_near_rivals.py": "redis",
    "bench_shared_dict.py": "numpy",
}


def run(program, *options, result):
    if program in TWO_CORES and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    if program in NAMED:
        pytest.importorskip(NAMED[program])
    if program.startswith("bench_near") and shutil.which("redis-server") is None:
        pytest.skip("no redis-server is installed")
    done = subprocess.run(
        [sys.executable, BENCH / program, *options, "--json", result],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "# cpu:" in done.stdout
    return done.stdout, json.loads(result.read_text())


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ["bench_dict.py", "--quick", "--keys", "copies"],
        ["bench_batch.py", "--quick"],
        ["bench_cache.py", "--quick"],
        ["bench_cache_hits.py", "--quick"],
        ["bench_inline.py", "--quick"],
        ["bench_large.py", "--quick"],
        ["bench_metrics.py", "--quick"],
        ["bench_near.py", "--quick"],
        ["bench_near_rivals.py", "--quick"],
        ["bench_waiting.py", "--quick", "--rounds", "400"],
        ["core.py", "--quick", "--sizes", "32/256"],
        ["memory.py", "--sizes", "8/8", "32/256", "--entries", "1", "5000"],
        ["memory.py", "--values", "--value-bytes", "40000"],
        ["processes.py", "--processes", "1", "2", "--rounds", "1"],
        ["recovery.py", "--deaths", "2", "--reads", "500"],
        ["stopped.py", "--inserts", "5000", "--states", "1"],
    ],
    ids=lambda command: command[0],
)
def test_benchmark_runs(command, tmp_path):
    """Each prints facts and a table, and writes both as JSON."""
    _, found = run(*command, result=tmp_path / "result.json")

    assert found["rows"]


@pytest.mark.parametrize(
    "command",
    [
        ["bench_latency.py", "--entries", "4000", "--processes", "3", "--attaches", "3"],
        ["bench_locks.py", "--quick", "--processes", "2", "--seconds", "0.05"],
        ["bench_shared_dict.py", "--quick"],
        ["bench_scaling.py", "--processes", "1", "2", "--entries", "1000", "--rounds", "1",
         "--seconds", "0.01"],
        ["memory.py", "--rivals", "--entries", "1000", "--fill-seconds", "2"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
@pytest.mark.long
def test_short_benchmark_runs(command, tmp_path):
    _, found = run(*command, result=tmp_path / "result.json")

    assert found["rows"]
    assert found["facts"]["load_before"] >= 0


@pytest.mark.thorough
def test_kernel_benchmark_has_all_three(tmp_path):
    """Where bpf(2) is not allowed the kernel is left out, and the facts give the reason."""
    text, found = run(
        "bench_kernel.py", "--quick", "--key-sizes", "8", result=tmp_path / "result.json"
    )

    kinds = [row["benchmark"] for row in found["rows"]]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "LOOKUP": 2,
        "FULL UPDATE": 3,
        "MEMORY": 6,
    }
    measured = found["facts"]["kernel_side"].startswith("BPF_MAP_TYPE_HASH")
    assert all(("core_ratio" in row) == measured for row in found["rows"])
    assert all(row["core_per_second"]["median"] > 0 for row in found["rows"])
    assert "series RHASH/HASH" in text


@pytest.mark.long
def test_rivals_are_measured_or_left_out_with_a_reason(tmp_path):
    text, found = run(
        "bench_rivals.py", "--quick", "--rounds", "1", "--sizes", "8/8",
        result=tmp_path / "result.json",
    )  # fmt: skip

    (left_out,) = found["facts"]["left_out"]
    measured = {row["rival"] for row in found["rows"]}
    assert {"shmrhash", "dict", "sqlite3", "multiprocessing.Manager"} <= measured
    assert all(f"left out: {name}: " in text for name in left_out["left_out"])
    assert len(measured | set(left_out["left_out"])) == 17


@pytest.mark.long
def test_plots_are_drawn_from_results(tmp_path):
    pytest.importorskip("matplotlib")
    run("bench_latency.py", "--entries", "4000", "--processes", "2", "--attaches", "2",
        result=tmp_path / "latency.json")  # fmt: skip
    subprocess.run(
        [sys.executable, BENCH / "plots.py", tmp_path / "latency.json", "--out", tmp_path],
        check=True,
    )

    drawn = (tmp_path / "latency.svg").read_text()
    assert drawn.rstrip().endswith("</svg>")
    assert "p99.9" in drawn


@pytest.mark.long
def test_tables_are_made_from_results(tmp_path):
    result = tmp_path / "result.json"
    run("bench_rivals.py", "--quick", "--rounds", "1", "--sizes", "8/8", "--processes", "1",
        "--only", "sqlite3", "dict", result=result)  # fmt: skip

    text = subprocess.check_output([sys.executable, BENCH / "tables.py", result], text=True)

    assert "| sqlite3 | " in text
    assert "1,000 entries of 8/8 bytes: rate of shmrhash over that of the rival" in text


def test_committed_plots_are_small():
    plots = list((BENCH / "plots").glob("*.svg"))

    assert len(plots) >= 3
    assert max(path.stat().st_size for path in plots) < 60_000


@pytest.mark.thorough
def test_operations_take_no_more_instructions_than_the_baseline():
    """Callgrind counts them, so a busy machine does not matter; --renew writes the baseline."""
    try:
        rows = instructions.compare(instructions.count())
    except instructions.CannotCount as reason:
        pytest.skip(str(reason))

    worse = {row["operation"]: row for row in rows if row["ratio"] > 1 + instructions.TOLERANCE}
    assert not worse
    assert len(rows) == 14


def test_the_table_of_instructions_is_the_baseline():
    """docs/performance has the counts of the committed baseline; --renew writes both."""
    baseline = json.loads(instructions.BASELINE.read_text())[instructions.DOCUMENTED]

    (table,) = instructions.TABLE.findall(instructions.PAGE.read_text())

    assert instructions.table_of(baseline) == table


def test_instruction_guard_notices_a_slower_operation(monkeypatch, tmp_path):
    baseline = tmp_path / "instructions.json"
    monkeypatch.setattr(instructions, "BASELINE", baseline)
    baseline.write_text(json.dumps({instructions.compiled_by(): {"lookup 8/8": 100.0}}))

    (row,) = instructions.compare({"lookup 8/8": 110.0})

    assert row["ratio"] == 1.1
    baseline.write_text("{}")
    with pytest.raises(instructions.CannotCount, match="no baseline"):
        instructions.compare({"lookup 8/8": 110.0})
