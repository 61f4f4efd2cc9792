"""The protocol as a model: every interleaving and every death of small scenes (README.md)."""

import ast
import re
from pathlib import Path

import pytest
from support.protocol import story
from support.protocol.explorer import Explorer
from support.protocol.mutants import MUTANTS
from support.protocol.oracle import Violation
from support.protocol.scenes import LONG, SHORT

FOLDER = Path(story.__file__).parent
PROGRAM_FILES = [
    *sorted(FOLDER.glob("*ing.py")),
    *(FOLDER / f"{name}.py" for name in ("chains", "scene", "sections", "supply")),
]
# Scenes of a second or more; a scene of the same kind is in the quick run.
THOROUGH = {
    "an insert meets one of the same key that is undone after a death",
    "a walk meets a merge and a split",
    "a writer dies in a removal that moves the last entry",
    "a writer dies while it unlinks a line, and the survivor inserts",
    "a writer dies in a merge of chains with lines",
    "two contexts split, and the second passes the first one's bucket",
    "a split is passed, and the number of buckets falls again",
    "two contexts merge at the same time",
    "buckets beyond a merge are split",
    "a key whose bucket is a gap is read and written",
    "two processes wait, and the first one stops waiting",
    "a loop waits for the last value of two writers",
    "a loop waits, and the writer dies",
    "two deadlines become earlier during a rest",
    "a deadline becomes earlier during a turn that finds an expired entry",
    "a parent that has a view forks a child",
    "a writer dies in a split of a chain with lines",
    "a writer dies in a split, and others split beyond it",
    "a writer dies in a split while another clears the map",
    "a map is cleared while two contexts split",
    "two contexts make up for a gap",
    "two contexts split, and the second leaves it to the next insert",
    "a writer that lowers the number of buckets below a gap dies",
    "a bucket whose parent is missing is passed",
    "a writer dies while two values of two words change in one step",
    "a writer dies while two keys change, and a process looks at both",
    "a writer dies while two keys change, and one is deleted",
    "a writer dies while two keys change, and another changes both",
    "a writer dies while it changes one key and deletes another, and a split moves one",
    "two processes wait for two keys of one bell",
    "a loop waits for the last of two changes",
    "a waiter for a lock dies, and two others wait",
    "a waiter for a lock gives up, and another one waits",
    "an entry with an early deadline is inserted during a turn that removes nothing",
    "a gap is made up for while the number of buckets falls",
    "two contexts sweep at the same time",
    "a bucket is merged and split while a writer waits for its lock",
    "a sweeper dies while a writer renews the entry",
    "two insertions need the room of one expired entry",
}
assert set(SHORT) >= THOROUGH
SCENES = [
    pytest.param(name, id=name, marks=pytest.mark.thorough if name in THOROUGH else ())
    for name in SHORT
] + [pytest.param(name, id=name, marks=pytest.mark.long) for name in LONG]

# Small enough to be explored without the reductions, too.
UNREDUCED = (
    "a key is deleted, and inserted into the same element",
    "the last entry of a chain fills a gap",
    "a split moves all entries of a chain",
    "a writer dies while it adds to one word",
    "a writer dies in a delete or in the insert after it",
)


@pytest.mark.parametrize("name", SCENES)
def test_scene_has_no_counterexample(name):
    """R1, R2, W1, W2, C1, M1: no interleaving or death in the scene violates oracle.py."""
    explorer = Explorer((SHORT | LONG)[name])

    try:
        explorer.run()
    except Violation as violation:
        pytest.fail(story.tell(violation))

    assert explorer.ends


@pytest.mark.parametrize("name", UNREDUCED)
def test_reduced_exploration_reaches_the_same_endings(name):
    """Explored step by step, without merging steps, the scene ends in the same memories."""
    reduced = Explorer(SHORT[name])
    whole = Explorer(SHORT[name], reduced=False)

    assert reduced.run() < whole.run()
    assert reduced.ends == whole.ends


def test_every_step_that_can_be_left_out_has_a_mutant():
    asked = set()
    for path in [*PROGRAM_FILES, FOLDER / "segment_model.py"]:
        asked |= set(re.findall(r"keeps\(\s*\"([^\"]+)\"", path.read_text()))

    assert set(MUTANTS) == asked - {"..."}


@pytest.mark.parametrize("path", PROGRAM_FILES, ids=lambda path: path.name)
def test_programs_keep_all_their_state_in_locals(path):
    """The explorer tells places of a program apart by instruction and locals (automaton.py): so a
    yield stands alone, and a loop around a yield runs over a range."""
    wrong = []
    tree = ast.parse(path.read_text())
    alone = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Assign, ast.Expr, ast.Return))
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Yield, ast.YieldFrom)) and id(node) not in alone:
            wrong.append(node.lineno)
        if isinstance(node, ast.For) and yields(node):
            call = node.iter
            if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "range"):
                wrong.append(node.lineno)

    assert not wrong


def yields(node):
    """Whether there is a yield anywhere below the node."""
    return any(isinstance(below, (ast.Yield, ast.YieldFrom)) for below in ast.walk(node))
