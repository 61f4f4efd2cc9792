"""Children use damaged images of live maps: no crash, no hang, no undocumented exception.

fuzz.py does the work and has the command for long campaigns; here are a sample, and the corpus.
"""

import json
from pathlib import Path

import pytest
from support.hostile.bases import all_images, can_step, resting_images
from support.hostile.fuzz import Case, Site, campaign, ending_of, folder
from support.hostile.images import AT_REST, in_the_middle
from support.hostile.object_images import OBJECTS_AT_REST, objects_in_the_middle

CORPUS = [
    Case(**json.loads(line))
    for line in Path(__file__).with_name("corpus.jsonl").read_text().splitlines()
]


@pytest.fixture(scope="module")
def resting():
    """A site of damaged images, made from the images of maps at rest."""
    with folder() as made:
        yield Site(made, resting_images())


@pytest.fixture(scope="module")
def resting_objects():
    """A site of damaged images, made from the images of maps with objects at rest."""
    with folder() as made:
        yield Site(made, resting_images("objects"))


def expect_no_failures(report):
    assert not report.failures, "\n".join(case.as_line() for case in report.failures)
    assert report.answered > report.tried // 4  # in most images the damage is noticed late


def test_no_operation_on_a_damaged_map_crashes_or_hangs(resting, seed):
    """H1: some hundred damaged images are used; every fifth is damaged further while it is used."""
    expect_no_failures(campaign(resting, seed, images=200, failures_max=1))


def test_no_operation_on_damaged_objects_crashes_or_hangs(resting_objects, seed):
    """H1: some hundred damaged images of dicts and of maps with special fields are used."""
    expect_no_failures(campaign(resting_objects, seed, images=200, failures_max=1))


DEAD_OWNERS = {
    "a map": lambda seed: in_the_middle("chained, deleting", "base", 4, seed),
    "a dict, storing": lambda seed: objects_in_the_middle("str to bytes, storing", "base", 4, seed),
    "a dict, clearing": lambda seed: objects_in_the_middle(
        "int to str; chained, clearing", "base", 4, seed
    ),
}


@pytest.mark.parametrize("what", DEAD_OWNERS)
@pytest.mark.thorough
def test_no_operation_on_a_damaged_map_with_dead_owners_crashes_or_hangs(what, seed):
    """H1: damaged images are used of a map whose writer was stopped inside an operation."""
    if not can_step():
        pytest.skip("this machine does not allow single-stepping")
    with folder() as made:
        site = Site(made, list(DEAD_OWNERS[what](seed)))
        expect_no_failures(campaign(site, seed, images=100, failures_max=1))


@pytest.mark.parametrize("case", CORPUS, ids=[f"{case.found}-{case.use}" for case in CORPUS])
def test_image_of_the_corpus_neither_crashes_nor_hangs_a_process(resting, case):
    """H1: images whose use once crashed or hung a process, with minimised damage, no longer do
    so."""
    assert ending_of(resting, case) == ""


@pytest.mark.thorough
def test_undamaged_image_gives_correct_answers(resting):
    """A test of the method: every step on every image runs to its end if nothing is damaged."""
    cases = [Case(state, [], use) for use, state in enumerate([*AT_REST, *OBJECTS_AT_REST])]

    assert {ending_of(resting, case) for case in cases} == {""}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_operation_on_one_of_many_damaged_maps_crashes_or_hangs(seed, duration):
    """H1: a hundred thousand images are used, or for --duration seconds if that is longer."""
    with folder() as made:
        site = Site(made, all_images(12, seed))
        expect_no_failures(campaign(site, seed, images=100_000, failures_max=5))
        expect_no_failures(campaign(site, seed, seconds=duration, first=100_000, failures_max=5))
