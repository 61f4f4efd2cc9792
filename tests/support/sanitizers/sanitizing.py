"""The compiler's sanitizers: compile a test extension with one, and run Python with it.

The interpreter itself is not instrumented. The sanitizer's library is loaded before it
(LD_PRELOAD), and the extensions, with the core inlined, are compiled with -fsanitize.
"""

import ctypes
import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TESTS = Path(__file__).resolve().parents[2]
HERE = TESTS / "sanitizers"
ROOT = TESTS.parent

FLAGS = {
    "thread": ["-fsanitize=thread"],
    "address": ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
}
LIBRARIES = {"thread": ["libtsan.so"], "address": ["libasan.so", "libubsan.so"]}
EXIT_CODES = {"thread": 66, "address": 1}

ADDR_NO_RANDOMIZE = 0x0040000


def compiler():
    return os.environ.get("CC", "gcc")


@functools.cache
def libraries(kind):
    """Return the sanitizer's libraries, or an empty list if this compiler has none."""
    found = []
    for name in LIBRARIES[kind]:
        command = [compiler(), f"-print-file-name={name}"]
        path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            return []
        found.append(path)
    return found


def environment(kind):
    """Return the environment in which Python can load an extension compiled for this sanitizer."""
    options = {
        # A report of a race takes long to write; the first few are enough.
        "TSAN_OPTIONS": f"suppressions={HERE / 'suppressions.txt'}:history_size=7"
        f":exitcode={EXIT_CODES['thread']}:halt_on_error=0:report_signal_unsafe=0",
        # The interpreter keeps memory until its end, which is no leak of ours. Stacks of threads
        # and of forked children are told apart without "use after return".
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"
        ":allocator_may_return_null=1:handle_sigbus=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    return {
        **os.environ,
        **options,
        "LD_PRELOAD": " ".join(libraries(kind)),
        "PYTHONPATH": str(TESTS),
        "PYTHONMALLOC": "malloc",  # lets an access beyond a bytes object be noticed
    }


def fix_addresses():
    """Ask for fixed addresses, for this process and its children, if the system permits.

    Older runtimes do not start if the kernel randomizes more bits of the addresses than they know.
    """
    libc = ctypes.CDLL(None)
    current = libc.personality(ctypes.c_ulong(0xFFFFFFFF))
    if current >= 0:
        libc.personality(ctypes.c_ulong(current | ADDR_NO_RANDOMIZE))


def build(kind, name, folder):
    """Compile name.pyx as the core is compiled, but with a sanitizer; return its path."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}.pyx"
    source.write_bytes((HERE / f"{name}.pyx").read_bytes())
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (core,) = settings["tool"]["setuptools"]["ext-modules"]
    include_dirs = [str(ROOT / path) for path in core["include-dirs"]]
    extension = Extension(
        name,
        [str(source)],
        include_dirs=[*include_dirs, str(HERE)],
        extra_compile_args=[
            *core["extra-compile-args"],
            *("-O1", "-g1", "-Wno-sign-compare", "-Wno-tsan"),
            *("-include", str(HERE / "kernel_locks.h")),
            *FLAGS[kind],
        ],
        extra_link_args=FLAGS[kind],
        define_macros=[("SHMRHASH_DEBUG", "1")],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = cythonize([extension], include_path=include_dirs, quiet=True, force=True)
        distribution = Distribution({"name": name, "ext_modules": modules})
        command = distribution.get_command_obj("build_ext")
        command.build_lib = str(folder)
        command.build_temp = str(folder / "objects")
        command.ensure_finalized()
        command.run()
    (built,) = folder.glob(f"{name}.*.so")
    return built
