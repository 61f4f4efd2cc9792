"""Many short lives of near caches around one server, and the mutants that such fleets find."""

import dataclasses

import pytest

pytest.importorskip("redis", reason="the client redis is not installed")

from support import near_mutants, near_servers
from support.near_fleet import Plan, fleets, sail_all
from support.near_rough import RoughSource

from shmrhash._near.cache import NearCache
from shmrhash._near.state import State

PROGRAMS = near_servers.programs()
FLEETS_MAX = 5  # a mutant survives few fleets by chance
LANES = 2
LONG_S = 60.0  # shortest time of a long test; one fleet takes seconds

pytestmark = pytest.mark.skipif(not PROGRAMS, reason="no server of Redis or Valkey is installed")


@pytest.fixture(params=PROGRAMS or ["none"])
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def first_program():
    return next(iter(PROGRAMS.values()))


@pytest.mark.thorough
def test_no_read_of_a_fleet_is_older_than_max_stale(first_program, tmp_path, map_name, seed):
    """N1, N2, N4, N5: no read of a fleet's near caches is older than max_stale."""
    (outcome,) = fleets(first_program, tmp_path, map_name, seed, Plan(), 0, 1)

    assert outcome.wrong == []
    assert outcome.served > outcome.runs // 2
    assert outcome.takeovers > outcome.runs


@pytest.mark.thorough
@pytest.mark.parametrize("mutant", near_mutants.FOUND_BY_FLEETS, ids=lambda each: each.__name__)
def test_a_fleet_finds(first_program, tmp_path, map_name, seed, mutant, monkeypatch):
    """The first fleets find each mutant, under conditions under which the near cache itself has no
    wrong read."""
    plan = Plan()
    if issubclass(mutant, State):
        monkeypatch.setattr("shmrhash._near.cache.State", mutant)
    elif issubclass(mutant, NearCache):
        plan = dataclasses.replace(plan, near=mutant)
    else:
        plan = dataclasses.replace(plan, source=type("Mutant", (mutant, RoughSource), {}))

    found = [
        outcome.wrong
        for outcome in fleets(first_program, tmp_path, map_name, seed, plan, 1e9, FLEETS_MAX)
    ]

    assert found[-1]


@pytest.mark.long
def test_no_read_of_many_fleets_is_older_than_max_stale(
    program, tmp_path, map_name, seed, duration
):
    """N1, N2, N4, N5: no read of many fleets is older than max_stale. `python -m
    support.near_fleet` runs fleets for hours."""
    total = sail_all(program, tmp_path, map_name, seed, Plan(), max(duration, LONG_S), LANES, print)

    assert total.wrong == []
    assert total.served > total.runs // 2
