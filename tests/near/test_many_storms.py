"""Many short storms, each around a near cache of its own."""

import shutil
import time

import pytest
from support.near_storms import FORK, Storm, Weather

SHORT = Weather(max_stale=0.1, pause=0.004, keys=16, flushes=10)
SECONDS = 0.5  # of writing; a whole storm takes twice as long
LANES = 4  # storms at the same time, which mostly wait
RUNS = 1000  # storms in each lane


def lane(folder, name, seed, outcomes):
    """Run storms, one after the other, until one finds a wrong read."""
    for number in range(seed, seed + RUNS):
        place = folder / str(number)
        place.mkdir()
        outcome = Storm(place, f"{name}-{number}", SECONDS, number, SHORT).run()
        outcomes.put((number, outcome))
        if not outcome.is_right:
            return
        shutil.rmtree(place)


@pytest.mark.long
def test_no_read_of_many_short_lives_is_older_than_max_stale(tmp_path, map_name, seed):
    """N1, N2, N4, N5: the rare moments of a near cache (its creation, its first watch, each
    takeover, its end) follow each other closely in a short storm."""
    outcomes, began, reads, takeovers = FORK.Queue(), time.monotonic(), 0, 0
    lanes = [
        FORK.Process(target=lane, args=(tmp_path, map_name, seed + 10_000 * at, outcomes))
        for at in range(LANES)
    ]
    for each in lanes:
        each.start()
    for done in range(1, LANES * RUNS + 1):
        number, outcome = outcomes.get(timeout=300)  # ends with an error if a lane has failed
        assert outcome.is_right, f"seed {number}: {outcome}"
        reads, takeovers = reads + outcome.reads, takeovers + outcome.info["takeovers"]
        if done % 200 == 0:
            rate = done / (time.monotonic() - began)
            print(f"{done} storms, {rate:.2f} a second, {reads} reads, {takeovers} takeovers")
    for each in lanes:
        each.join()
    assert reads > 100 * LANES * RUNS
    assert takeovers > LANES * RUNS
