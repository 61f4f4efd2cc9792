"""Recorded histories of concurrent operations are linearizable, key by key (W1).

recorder.py has the processes and their operations, checker.py judges the histories, stand_ins.py
has maps with one mistake each, which must be noticed here.
"""

import random
import time

import pytest
from support.history.recorder import KILL, OPTIONAL, STOP, NotLinearizable, Recorder, Setting
from support.history.stand_ins import WRONG, OneAtATime, opened_as

SHORT_SHARE = 0.2  # this part of --duration for each setting
LONG_DURATION_S = 60.0  # for each setting, unless --duration says otherwise
DEFAULT_DURATION_S = 2.0
HISTORIES_MAX = 50_000  # at most, until has_happened(); some 500 are mostly enough
OFTEN = 5
MANY_FILLERS = 500  # keys of each worker, enough that buckets certainly split and merge
BATCHES_MAX = 2_000  # enough to notice a mistake, which takes 1 to 60 batches

SETTINGS = {
    "two workers": Setting(),
    "values of 33 words": Setting(value_size=264, key_size=5),
    "counters": Setting(value_size=8, counter_at=0),
    "counters across words": Setting(workers=3, value_size=24, counter_at=5),
    "six workers": Setting(workers=6, steps=6),
    "buckets split and merge": Setting(workers=3, histories=4, fillers=MANY_FILLERS),
    "one chain of buckets": Setting(workers=3, histories=4, fillers=20, colliding=True),
    "stopped": Setting(value_size=264, signals=STOP),
    "stopped in long copies": Setting(value_size=16 << 10, signals=STOP),
    "stopped in one chain of buckets": Setting(
        histories=4, fillers=20, colliding=True, signals=STOP
    ),
    "stopped while buckets split and merge": Setting(
        histories=4, fillers=MANY_FILLERS, signals=STOP
    ),
    "killed": Setting(histories=4, value_size=264, signals=KILL),
    "killed in long copies": Setting(histories=4, value_size=64 << 10, signals=KILL),
    "killed among counters": Setting(
        workers=3, histories=4, value_size=24, counter_at=5, signals=KILL
    ),
    "killed while buckets split and merge": Setting(
        histories=4, fillers=MANY_FILLERS, signals=KILL
    ),
    "killed in one chain of buckets": Setting(
        histories=4, fillers=20, colliding=True, signals=KILL
    ),
}

each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
BRIEF = {"counters across words", "one chain of buckets", "stopped", "killed"}
brief_settings = pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, marks=() if name in BRIEF else pytest.mark.thorough)
        for name, setting in SETTINGS.items()
    ],
    ids=SETTINGS,
)


def record(shared_map, setting, seed, seconds):
    """Record batches for `seconds`, and until the events of the setting have happened."""
    began = time.monotonic()
    with Recorder(shared_map, setting, seed) as recorded:
        while time.monotonic() - began < seconds or not has_happened(recorded):
            recorded.judge()
            assert recorded.histories < HISTORIES_MAX or has_happened(recorded), recorded.summary()
        spent_s = time.monotonic() - began
    info = shared_map.info()
    print(
        f"{recorded.summary()}; {recorded.histories / spent_s:.0f} histories/s; {info['grows']} "
        f"splits, {info['shrinks']} merges; recovered {info['recoveries']} processes, finished "
        f"{info['operations_finished']} operations and undid {info['operations_undone']}"
    )
    return recorded


def record_batches(shared_map, setting, seed, batches):
    with Recorder(shared_map, setting, seed) as recorded:
        try:
            for _ in range(batches):
                recorded.judge()
        finally:
            print(recorded.summary())


def has_happened(recorded):
    """Return whether operations overlapped, workers were killed inside some, and buckets moved."""
    setting = recorded.setting
    if setting.fillers >= MANY_FILLERS:
        info = recorded.shared_map.info()
        if min(info["grows"], info["shrinks"]) < 100:
            return False
    if len(recorded.processors) == 1:
        return True  # on one processor the other events happen by chance only
    if setting.signals == KILL and (recorded.kills < OFTEN or not recorded.pending):
        return False
    return recorded.overlapping >= OFTEN


@brief_settings
def test_histories_are_linearizable(make_map, seed, duration, setting):
    """W1, R2, C1: some thousand short histories; for every key an order explains all results.

    With kills, a pending operation happened once or never, and recovery changes nothing else.
    """
    m = make_map(**setting.geometry())

    record(m, setting, seed, SHORT_SHARE * duration)

    m.check()


@pytest.mark.long
@pytest.mark.timeout(7200)
@each_setting
def test_histories_of_a_long_run_are_linearizable(make_map, seed, duration, setting):
    """W1, R2, C1: histories of a minute, or --duration seconds, have an order in each setting."""
    m = make_map(**setting.geometry())

    record(m, setting, seed, LONG_DURATION_S if duration == DEFAULT_DURATION_S else duration)

    m.check()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_histories_of_random_settings_are_linearizable(make_map, seed, duration):
    """W1, R2, C1: histories of random settings have an order, a few seconds each on a map of its
    own."""
    rng = random.Random(seed)
    seconds = 5 * LONG_DURATION_S if duration == DEFAULT_DURATION_S else duration
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        setting = any_setting(rng)
        m = make_map(**setting.geometry())
        record(m, setting, rng.getrandbits(32), 2.0)
        m.check()
        m.unlink()
        m.close()


def any_setting(rng):
    counter_at = rng.choice((None, None, 0, 3))
    return Setting(
        workers=rng.randrange(2, 7),
        histories=rng.choice((1, 4, 8, 16)),
        steps=rng.randrange(3, 13),
        key_size=rng.choice((4, 5, 8, 16, 40)),
        value_size=rng.choice((8, 24, 264, 4096)) + (8 if counter_at else 0),
        counter_at=counter_at,
        colliding=rng.random() < 0.2,
        fillers=rng.choice((0, 0, 20, 300)),
        signals=rng.choice((None, None, STOP, KILL)),
    )


# ---- mistakes must be noticed ----


@pytest.mark.parametrize("counter_at", [None, 0])
def test_histories_of_a_map_under_one_lock_are_linearizable(make_map, seed, duration, counter_at):
    """W1: histories of a stand-in that performs one operation at a time have an order."""
    setting = Setting(value_size=8, counter_at=counter_at)
    m = make_map(**setting.geometry())

    with opened_as(OneAtATime, m.name) as right:
        recorded = record(right, setting, seed, SHORT_SHARE * duration)

    assert set(OPTIONAL) < set(recorded.planner.names)
    m.check()


@pytest.mark.parametrize(("kind", "setting"), WRONG, ids=[kind.__name__ for kind, _ in WRONG])
@pytest.mark.thorough
def test_wrong_map_is_noticed(make_map, seed, kind, setting):
    """W1, R2, C1: a map with one mistake gives a history without an order, which the failure
    shows."""
    m = make_map(**setting.geometry())

    with opened_as(kind, m.name) as wrong, pytest.raises(NotLinearizable) as noticed:
        record_batches(wrong, setting, seed, BATCHES_MAX)

    assert f"seed {seed}, Setting(" in str(noticed.value)
    assert "<- no order explains this" in str(noticed.value)
    m.check()
