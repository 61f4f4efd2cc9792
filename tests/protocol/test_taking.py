"""Objects that cannot grow: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import taking
from support.protocol.oracle import Violation
from support.protocol.taking_scenes import MUTANTS, SCENES, Explorer


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_a_run_that_cannot_grow_loses_no_object(name):
    """C1: at the end every object is free, in an entry, or named by the context that owns it."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_taking(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_taking_that_can_be_left_out_has_a_mutant():
    text = Path(taking.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\s*\"([^\"]+)\"", text))
