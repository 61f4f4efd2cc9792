"""Near caches: every interleaving and death of small scenes, and their mutants."""

import re
from pathlib import Path

import pytest
from support.protocol import near
from support.protocol.near_scenes import (
    LONG,
    MUTANTS,
    MUTANTS_THOROUGH,
    SCENES,
    SPARE,
    THOROUGH,
    Explorer,
)
from support.protocol.oracle import Violation


def marked(name, scene):
    """The parameters, marked as long as the scene takes."""
    mark = pytest.mark.long if scene in LONG else pytest.mark.thorough
    parameters = (name,) if name == scene else (name, scene)
    return pytest.param(*parameters, marks=mark if scene in LONG | THOROUGH else ())


@pytest.mark.parametrize("name", [marked(name, name) for name in SCENES])
def test_scene_of_a_near_cache_has_no_counterexample(name):
    """N1, N2, N3: whatever is cut, flushed or killed, no read returns a value that was replaced
    longer ago than max_stale, that an earlier connection fetched, or that is older than a write of
    this host that has returned."""
    explorer = Explorer(SCENES[name])

    explorer.run()

    assert explorer.hits


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.thorough if step in MUTANTS_THOROUGH else ())
        for step in MUTANTS
    ],
)
def test_explorer_finds_mutant_of_a_near_cache(step):
    scene, broken = MUTANTS[step]

    with pytest.raises(Violation, match=re.escape(broken)):
        Explorer(SCENES[scene], [step]).run()


@pytest.mark.parametrize(("step", "scene"), [marked(step, scene) for step, scene in SPARE.items()])
def test_step_of_a_near_cache_is_spare_in_scene(step, scene):
    """The promises hold without these steps: so no reader takes them for necessary."""
    explorer = Explorer(SCENES[scene], [step])

    explorer.run()

    assert explorer.hits


def test_every_step_of_a_near_cache_that_can_be_left_out_has_a_mutant():
    text = Path(near.__file__).read_text()

    assert set(MUTANTS) | set(SPARE) == set(re.findall(r"does\(\"([^\"]+)\"", text))
