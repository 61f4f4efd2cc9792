"""The tests of other caching libraries pass with the adapters of shmrhash."""

import contextlib
import os
from pathlib import Path

import pytest
from support.suites import running

from shmrhash import Cache, SegmentMissing, unlink


@pytest.fixture(scope="module")
def archives():
    """The folder with the source archives of the other libraries, which tox has fetched."""
    folder = Path(os.environ["SHMRHASH_SUITES"])
    running.fetch(folder)
    return folder


def test_judging_by_name_notices_what_is_wrong():
    """The judgement by name notices a failed test, a skipped one, an excluded one that passes, and
    an excluded one that no longer exists."""
    (suite,) = (suite for suite in running.SUITES if suite.name == "django")
    expected = dict.fromkeys(running.exclusions(suite), running.SKIPPED)
    excluded = next(iter(expected))
    fine = {**expected, "other": running.PASSED}

    assert not running.judge(suite, fine)
    assert len(running.judge(suite, {**fine, "other": running.FAILED})) == 1
    assert len(running.judge(suite, {**fine, "other": running.SKIPPED})) == 1
    assert len(running.judge(suite, {**fine, excluded: running.PASSED})) == 1
    assert len(running.judge(suite, {"other": running.PASSED})) == len(expected)


@pytest.mark.parametrize("suite", running.SUITES, ids=lambda suite: suite.name)
def test_suite_passes_but_for_the_named_tests(suite, archives, tmp_path, map_name):
    """All tests of the library pass, except those excluded by name. An excluded test that passes is
    an error, and so is a skipped test that is not excluded."""
    try:
        found, output = running.run(suite, archives, tmp_path, map_name)
        with Cache(map_name, key=str, value=object) as cache:
            cache.check()
    finally:
        for name in (map_name, f"{map_name}.mutexes", f"{map_name}.metrics"):
            with contextlib.suppress(SegmentMissing):
                unlink(name)

    assert len(found) >= 10, output
    assert not running.judge(suite, found), output
