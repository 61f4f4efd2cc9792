"""Outdated values: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import outdating
from support.protocol.oracle import Violation
from support.protocol.outdating_scenes import MUTANTS, SCENES, Explorer

# Scenes of half a second or more.
THOROUGH = {
    "two processes ask, and everything is invalidated",
    "a process asks after two invalidations",
    "the process that invalidates dies",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name in THOROUGH else ()) for name in SCENES],
)
def test_scene_of_births_has_no_counterexample(name):
    """C1: no reader finds an outdated value, misses one that counts, or waits for ever."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
@pytest.mark.thorough
def test_explorer_finds_mutant_of_births(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_births_that_can_be_left_out_has_a_mutant():
    text = Path(outdating.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\s*\"([^\"]+)\"", text))
