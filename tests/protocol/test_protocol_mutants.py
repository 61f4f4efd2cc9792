"""The protocol less one step, for each step: the explorer finds out what it was for."""

import re

import pytest
from explorer import Explorer
from mutants import MUTANTS
from oracle import Violation
from scenes import SHORT
from story import tell


@pytest.mark.parametrize("step", MUTANTS)
@pytest.mark.thorough
def test_explorer_finds_mutant(step):
    """R1, R2, W1, W2, C1, M1: no step of the protocol is there for nothing."""
    scene, broken = MUTANTS[step]
    explorer = Explorer(SHORT[scene], [step])

    with pytest.raises(Violation, match=re.escape(broken)) as caught:
        explorer.run()

    assert tell(caught.value).endswith(str(caught.value))
