"""Compile _bench.pyx, which runs the core's operations in C loops, or _inline.pyx; attach to maps.

The compiled module is kept in build/ of the root, under a digest of what it was made from, so that
several benchmarks compile it once. This needs Cython, setuptools and a C compiler.
"""

import fcntl
import hashlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cython", "benchmarks")
SUFFIXES = (".pyx", ".pxi", ".pxd", ".h")
KEY_WORD_1 = 2654435761  # as in _bench.pyx


def digest():
    """A digest of what the module is made from: sources, flags, interpreter."""
    environment = [os.environ.get(name, "") for name in ("CC", "CFLAGS", "LDFLAGS")]
    found = hashlib.sha256(f"{sys.version} {sysconfig.get_platform()} {environment}".encode())
    found.update((ROOT / "pyproject.toml").read_bytes())
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SUFFIXES:
                found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def compile_bench(folder, name="_bench"):
    """Compile a .pyx file in folder, with the flags of the extension; return the module's path."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    source = Path(folder) / f"{name}.pyx"
    source.write_bytes((ROOT / "benchmarks" / f"{name}.pyx").read_bytes())
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (core,) = settings["tool"]["setuptools"]["ext-modules"]
    include_dirs = [str(ROOT / path) for path in FOLDERS]
    extension = Extension(
        name,
        [str(source)],
        include_dirs=include_dirs,
        extra_compile_args=[*core["extra-compile-args"], "-w"],
    )
    modules = cythonize([extension], include_path=include_dirs, quiet=True)
    command = Distribution({"name": name, "ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    (built,) = Path(folder).glob(f"{name}.*.so")
    return built


def built_bench(name="_bench"):
    """The path of the compiled module; compiles it if there is none."""
    kept = ROOT / "build" / f"bench-{digest()}" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several tests at once compile it once
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                os.replace(compile_bench(folder, name), kept)
    return kept


def build_bench(name="_bench"):
    """The module, imported."""
    spec = importlib.util.spec_from_file_location(name, built_bench(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def key_of(index, key_size):
    """Key number index of the module's loops: index + 1, then words that never change."""
    words = [KEY_WORD_1 * word & 0xFFFFFFFF for word in range(key_size // 4)]
    return b"".join(word.to_bytes(4, "little") for word in [index + 1, *words[1:]])


def segment_path(name):
    """The path of a map's file."""
    return Path(os.environ.get("SHMRHASH_DIR", "/dev/shm")) / name


def attach(bench, name):
    """A handle of the compiled benchmark on a map made by the installed package."""
    path = segment_path(name)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return bench.BenchHandle(fd, name, os.fsencode(path), False, 5.0)
