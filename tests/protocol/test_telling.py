"""A task that waits for a lock in an event loop: every interleaving, and the mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import telling
from support.protocol.oracle import Violation
from support.protocol.telling import MUTANTS, SCENES, Telling


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_a_task_has_no_counterexample(name):
    """No task waits for a lock that is free."""
    explorer = Telling(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_a_task(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Telling(SCENES[scene], [step]).run()


def test_every_step_of_a_task_that_can_be_left_out_has_a_mutant():
    text = Path(telling.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
