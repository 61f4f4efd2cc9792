"""The cases that guided.py kept: together they reach every edge of the core that it reached."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.hostile import bases
from support.hostile.fuzz import Case, Site, folder, try_cases

HERE = Path(__file__).parent
KEPT = [Case(**json.loads(line)) for line in (HERE / "guided.jsonl").read_text().splitlines()]


def test_kept_damage_that_reaches_most_of_the_core_crashes_nothing():
    """H1: a worker that tries the kept cases one after another does not crash."""
    with folder() as made:
        site = Site(made, bases.resting_images())
        ending, _, tried, answered, said = try_cases(site, list(enumerate(KEPT)))

    assert not said, said[0][1]
    assert ending == 0
    assert tried == len(KEPT)
    assert answered > tried // 4


@pytest.mark.long
def test_damage_guided_by_coverage_crashes_nothing(seed):
    """H1: ten thousand new images crash no process; the core is compiled to count its edges."""
    command = [sys.executable, "-m", "support.hostile.guided", "--images", "10000"]
    command += ["--seed", str(seed)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "10000 images" in done.stdout
