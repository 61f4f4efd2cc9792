"""Fixtures for maps of the kernel and ours. Where bpf(2) is refused, tests that need it are
skipped.

With SHMRHASH_NEED_BPF=1 in the environment they fail instead.
"""

import os

import pytest
from support.kernel import bpf
from support.kernel.sides import OurMap

NEED_VARIABLE = "SHMRHASH_NEED_BPF"


def give_up(refused):
    """Skip with the reason, or fail if SHMRHASH_NEED_BPF is 1."""
    if os.environ.get(NEED_VARIABLE) == "1":
        pytest.fail(f"{refused}, and {NEED_VARIABLE} is set")
    pytest.skip(str(refused))


@pytest.fixture(scope="session")
def kernel_permits():
    """Require that the kernel lets this process create and use a hash map, or give up."""
    try:
        with bpf.KernelMap.create(key_size=4, value_size=4, max_entries=1) as kernel:
            said = kernel.update(b"key.", b"val.")
    except bpf.Refused as refused:
        give_up(refused)
    assert not said.error


@pytest.fixture(scope="session")
def kernel_permits_all(kernel_permits):
    """Require also that this process may reopen a map one-way and lock values, or give up."""
    try:
        with bpf.KernelMap.create(key_size=4, value_size=8, max_entries=1, lock=True) as kernel:
            for flags in (bpf.F_RDONLY, bpf.F_WRONLY):
                kernel.reopen(flags).close()
    except bpf.Refused as refused:
        give_up(refused)


@pytest.fixture
def make_kernel_map(kernel_permits):
    """Return a function that creates maps of the kernel."""
    maps = []

    def make(**geometry):
        maps.append(bpf.KernelMap.create(**geometry))
        return maps[-1]

    yield make
    for kernel in maps:
        kernel.close()


@pytest.fixture(params=["ours", "kernel"])
def make_side(request):
    """A function that creates maps; each test runs on ours and on the kernel's.

    A result that the kernel's own map gives, too, is not a mistake of the test.
    """
    if request.param == "kernel":
        return request.getfixturevalue("make_kernel_map")
    make_map = request.getfixturevalue("make_map")
    return lambda **geometry: OurMap(make_map(**geometry))
