"""Kept values: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import keeping
from support.protocol.keeping_scenes import MUTANTS, SCENES
from support.protocol.oracle import Violation
from support.protocol.outdating_scenes import Explorer


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_kept_values_has_no_counterexample(name):
    """W1: no value is found that is older than one whose store had ended."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_kept_values(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_kept_values_that_can_be_left_out_has_a_mutant():
    text = Path(keeping.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\s*\"([^\"]+)\"", text))
