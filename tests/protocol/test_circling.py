"""Circles of waiting threads: every interleaving of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import circling
from support.protocol.circling_scenes import MUTANTS, SCENES
from support.protocol.meeting_scenes import Explorer
from support.protocol.oracle import Violation


@pytest.mark.parametrize("name", SCENES)
def test_scene_of_a_circle_has_no_counterexample(name):
    """One thread of each circle is told, and no thread is told of a circle that did not exist."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_a_circle(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_a_circle_that_can_be_left_out_has_a_mutant():
    text = Path(circling.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
