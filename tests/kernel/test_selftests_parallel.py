"""The cases of the kernel's test_maps.c in many processes: test_map_parallel, test_map_stress."""

import pytest
from support.kernel import kernel_jobs
from support.kernel.kernel_jobs import KEY_SIZES, VALUE_SIZES, int_word
from support.kernel.sides import NOEXIST, OurMap, walk
from support.workers import run_together

import shmrhash
from shmrhash import RHashMap


@pytest.mark.parametrize(
    ("tasks", "entries", "walk_entries", "rounds"),
    [(12, 4_096, 100, 2), pytest.param(100, 32_768, 10_000, 6, marks=pytest.mark.long)],
)
@pytest.mark.thorough
def test_map_parallel(make_map, tasks, entries, walk_entries, rounds):
    """W1, W2, G1 (test_map_parallel): processes fill one map to its limit, and empty it."""
    m = make_map(key_size=4, value_size=4, max_entries=entries)
    ours = OurMap(m)

    for _ in range(rounds):
        jobs = [(m, task, tasks, entries) for task in range(tasks)]
        run_together(
            "fork",
            *((kernel_jobs.parallel_insert, *job, walk_entries) for job in jobs),
            timeout_s=280,
        )

        assert entries == len(m)
        assert ours.update(int_word(0), int_word(5), NOEXIST) == ("EEXIST", None)
        assert ours.update(int_word(entries), int_word(5), NOEXIST) == ("E2BIG", None)
        for number in reversed(range(entries)):
            assert int_word(number) == m[int_word(number)]
        assert sorted(walk(ours, entries)) == sorted(map(int_word, range(entries)))
        m.check()

        run_together("fork", *((kernel_jobs.parallel_delete, *job) for job in jobs), timeout_s=280)

        assert len(m) == 0
        assert not any(int_word(number) in m for number in range(entries))
        m.check()


@pytest.mark.parametrize("tasks", [8, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("job", "few", "all_of_them"),
    [
        pytest.param(kernel_jobs.stress_walk, (100,), (10_000,), id="walk"),
        pytest.param(kernel_jobs.stress_hashmap, (5,), (20,), id="hashmap"),
        pytest.param(
            kernel_jobs.stress_sizes,
            (KEY_SIZES[::4], VALUE_SIZES[::6]),
            (KEY_SIZES, VALUE_SIZES),
            id="sizes",
        ),
    ],
)
def test_map_stress(map_name, tasks, job, few, all_of_them):
    """W1, C3 (test_map_stress): many processes, each of which makes and removes its own maps."""
    arguments = all_of_them if tasks == 100 else few

    run_together(
        "fork", *((job, f"{map_name}-{task}", *arguments) for task in range(tasks)), timeout_s=280
    )

    with pytest.raises(shmrhash.SegmentMissing):
        RHashMap.open(f"{map_name}-0")
