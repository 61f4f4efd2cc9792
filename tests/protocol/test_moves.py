"""Entries that stand in their buckets, and splits that move them: an experiment."""

import re
from pathlib import Path

import pytest
from support.protocol import moving
from support.protocol.moving_scenes import MUTANTS, SCENES, Explorer
from support.protocol.oracle import Violation

# Scenes of half a second or more.
THOROUGH = {
    "two writers update an entry",
    "a section's entry is deleted, and its slot is used again",
    "a split meets the reuse of a slot",
    "a splitter and its recoverer die beside an update",
    "a splitter dies beside a reader",
    "a closer of a gap dies",
    "a split moves an entry that is updated early in the child",
    "a split moves an entry that a section wants",
    "a split moves an entry that is updated",
    "an inserter dies beside a split",
    "a splitter dies beside a deletion",
    "a gap is closed beside an update",
}
LONG = {
    "a splitter dies beside an update and a reader",
    "a splitter dies beside an update and a reader of the child",
    "an updater dies beside a split and a reader",
    "a closer of a gap dies beside an update and a reader",
}
MARKS = dict.fromkeys(THOROUGH, pytest.mark.thorough) | dict.fromkeys(LONG, pytest.mark.long)
assert set(MARKS) <= set(SCENES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name, marks=MARKS.get(name, ())) for name in SCENES]
)
def test_scene_of_a_move_has_no_counterexample(name):
    """Every state represents one map, which only commits change; each answer was right at some
    moment of its operation; a move that a death interrupted is finished or undone."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
def test_explorer_finds_mutant_of_a_move(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_a_move_that_can_be_left_out_has_a_mutant():
    text = Path(moving.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
