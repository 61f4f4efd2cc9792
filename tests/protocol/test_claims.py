"""One process computes for all: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import computing
from support.protocol.computing_scenes import MUTANTS, SCENES, Explorer
from support.protocol.oracle import Violation

# Scenes of a second or more.
THOROUGH = {
    "three processes ask for a key",
    "two processes ask, and the key is deleted",
    "two processes wait, and their timeouts end",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.thorough if name in THOROUGH else ()) for name in SCENES],
)
def test_scene_of_claims_has_no_counterexample(name):
    """C1: no process waits for ever, finds an old result, or computes a result without need."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.ends


@pytest.mark.parametrize("step", MUTANTS)
@pytest.mark.thorough
def test_explorer_finds_mutant_of_a_claim(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


def test_every_step_of_a_claim_that_can_be_left_out_has_a_mutant():
    text = Path(computing.__file__).read_text()

    assert set(MUTANTS) == set(re.findall(r"does\(\"([^\"]+)\"", text))
