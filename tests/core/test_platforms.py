"""Machines on which a build is refused, and why; compiled for them as far as the refusal."""

import os
import subprocess
from pathlib import Path

import pytest

HEADER = Path(__file__).resolve().parents[2] / "cython" / "machine" / "atomics.h"


@pytest.mark.parametrize(
    ("macros", "reason"),
    [
        (["-D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__"], "this machine is big-endian"),
        (["-D__SIZEOF_POINTER__=4"], "needs a 64-bit machine"),
        (["-U__linux__"], "needs Linux"),
        ([], None),
    ],
)
def test_build_is_refused_with_the_reason(macros, reason):
    """The header comes before all others of the core, so its reason is the first error."""
    undefined = [f"-U{macro[2:].partition('=')[0]}" for macro in macros]
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-std=gnu11", *undefined, *macros, "-E", "-o", os.devnull, HEADER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    if reason is None:
        assert errors == []
    else:
        assert reason in errors[0]
