"""The ring of changes: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import ringing
from support.protocol.meeting_scenes import Explorer
from support.protocol.oracle import Violation
from support.protocol.ringing_scenes import LONG, MUTANTS, MUTANTS_LONG, SCENES


def thorough(name):
    return pytest.param(name, marks=pytest.mark.thorough)


@pytest.mark.parametrize(
    "name",
    [thorough(name) if name in LONG else name for name in SCENES],
)
def test_scene_of_the_ring_has_no_counterexample(name):
    """The watcher is told of every change, or of a loss."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize(
    "step",
    [thorough(step) if step in MUTANTS_LONG else step for step in MUTANTS],
)
def test_explorer_finds_mutant_of_the_ring(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_the_ring_that_can_be_left_out_has_a_mutant():
    text = Path(ringing.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
