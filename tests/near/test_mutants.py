"""Near caches that lack one of their steps: for each mutant, a short schedule finds the wrong
read."""

import pytest
from support import near_mutants, near_schedules
from support.near_schedules import Conversation, Scene

CACHES = {
    near_mutants.WithoutToken: near_schedules.an_answer_is_overtaken,
    near_mutants.WithLateToken: near_schedules.an_answer_is_overtaken,
    near_mutants.WithSharedToken: near_schedules.another_fetch_begins_when_an_answer_is_overtaken,
    near_mutants.WithLateLease: near_schedules.a_tracker_wakes_while_a_value_is_read,
    near_mutants.WithWriteThrough: near_schedules.another_host_writes_what_this_one_has_written,
    near_mutants.WithoutForgetting: near_schedules.a_key_that_is_here_is_written,
}
STATES = {
    near_mutants.WithoutEpoch: near_schedules.a_watch_is_made_anew,
    near_mutants.WithoutLease: near_schedules.nobody_is_heard_for_max_stale,
    near_mutants.WithoutFlush: near_schedules.everything_changes,
    near_mutants.WithoutTerm: near_schedules.another_one_tracks,
    near_mutants.WithoutIdentity: near_schedules.a_number_passes_to_another_node,
    near_mutants.DeletingValuesOnly: near_schedules.an_answer_is_overtaken,
}
SOURCES = {
    near_mutants.ProvingByOneQuestion: near_schedules.an_answer_overtakes_a_change,
    near_mutants.ProvingWhenItHears: near_schedules.an_answer_overtakes_a_change,
    near_mutants.DeafToFlushes: near_schedules.the_server_is_flushed,
}


def named(mutants):
    return [pytest.param(*pair, id=pair[0].__name__) for pair in mutants.items()]


@pytest.fixture
def scene(map_name):
    made = []

    def make(kind):
        made.append(Scene(map_name, kind))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(("mutant", "schedule"), named(CACHES))
def test_a_schedule_finds_the_near_cache(scene, mutant, schedule):
    with pytest.raises(AssertionError):
        schedule(scene(mutant))


@pytest.mark.parametrize(("mutant", "schedule"), named(STATES))
def test_a_schedule_finds_the_state(scene, mutant, schedule, monkeypatch):
    monkeypatch.setattr("shmrhash._near.cache.State", mutant)

    with pytest.raises(AssertionError):
        schedule(scene(near_schedules.NearCache))


@pytest.mark.parametrize(("mutant", "schedule"), named(SOURCES))
def test_a_conversation_finds_the_source(mutant, schedule):
    with pytest.raises(AssertionError):
        schedule(Conversation(mutant))


def test_a_takeover_without_an_epoch_is_found(scene, monkeypatch):
    monkeypatch.setattr("shmrhash._near.cache.State", near_mutants.WithoutEpoch)

    with pytest.raises(AssertionError):
        near_schedules.another_process_takes_over(scene(near_schedules.NearCache))
