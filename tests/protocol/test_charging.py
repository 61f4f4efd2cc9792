"""The budget: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import charging
from support.protocol.charging_scenes import MUTANTS, SCENES, Explorer
from support.protocol.oracle import Violation


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_the_budget_has_no_counterexample(name):
    """M1, C1: in every state the budget counts all memory of the blocks; at the end it counts
    exactly that, and what the living owe, whoever died."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_the_budget(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_the_budget_that_can_be_left_out_has_a_mutant():
    text = Path(charging.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\s*\"([^\"]+)\"", text))
