"""Conditions and barriers: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import meeting
from support.protocol.meeting_scenes import MUTANTS, SCENES, Explorer
from support.protocol.oracle import Violation


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_a_meeting_has_no_counterexample(name):
    """No notification is lost or taken twice; all parties of a barrier have one outcome."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_a_meeting(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_a_meeting_that_can_be_left_out_has_a_mutant():
    text = Path(meeting.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
