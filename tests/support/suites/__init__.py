"""The tests of other caching libraries, run with the adapters of shmrhash.

archives.txt    the source archives that have the tests, pinned by version and hash
exclusions.txt  the tests that cannot pass, by name, each with the reason
running.py      fetches an archive, adds a file to it, runs its tests, and judges them by name
*_suite.py      what is added to each archive: fixtures, and classes with its test cases
"""
