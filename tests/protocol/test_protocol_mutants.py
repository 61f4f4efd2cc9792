"""The protocol without one of its steps, for each step: the explorer finds what then goes wrong."""

import re

import pytest
from support.protocol.explorer import Explorer
from support.protocol.mutants import MUTANTS
from support.protocol.oracle import Violation
from support.protocol.scenes import SHORT
from support.protocol.story import tell


@pytest.mark.parametrize("step", MUTANTS)
@pytest.mark.thorough
def test_explorer_finds_mutant(step):
    """R1, R2, W1, W2, C1, M1: without any one step the explorer finds a counterexample."""
    scene, broken = MUTANTS[step]
    explorer = Explorer(SHORT[scene], [step])

    with pytest.raises(Violation, match=re.escape(broken)) as caught:
        explorer.run()

    assert tell(caught.value).endswith(str(caught.value))


def test_every_mutant_says_what_goes_wrong():
    """A mutant that any violation satisfies may be noticed by the wrong check."""
    assert [step for step, (_, broken) in MUTANTS.items() if not broken] == []
