"""Compile the .pyx files here, which make core functions callable, with assertions on."""

import fcntl
import importlib.util
import os
import sys
import warnings
from pathlib import Path

import pytest
from support.core.picture import Picture
from support.core.victim import victim_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def unit(tmp_path_factory):
    """The module _unit: functions that need no segment."""
    return load_built("_unit", tmp_path_factory)


@pytest.fixture(scope="session")
def image_module(tmp_path_factory):
    """The module _image: functions that work on a segment, here a memfd."""
    return load_built("_image", tmp_path_factory)


@pytest.fixture
def make_image(image_module, unit):
    """A function that makes an Image; image.picture shows the image's memory."""

    class PicturedImage(image_module.Image):
        def __init__(self, *, key_size=8, value_size=8, max_entries=4096, depot_count=2, **_):
            geometry = unit.geometry(key_size, value_size, max_entries, depot_count)
            self.picture = Picture(self.fd, geometry)

    return PicturedImage


@pytest.fixture
def image(make_image):
    """An empty map of 8-byte keys and values, with one block of elements and one of lines."""
    image = make_image()
    for kind in "element", "line":
        assert image.block_commit(0, kind) == "OK"
    return image


@pytest.fixture
def victim(make_map, unit):
    """A map of 40 keys that all hash to 0: a chain with six lines, and some lines free again."""
    m = make_map(max_entries=2000, _seeds=(1, 0, 0, 0))
    for number in range(60):
        m[number.to_bytes(8, "little")] = number.to_bytes(8, "little")
    for number in range(40, 60):
        del m[number.to_bytes(8, "little")]
    m.check()
    victim = victim_of(m, unit)
    yield victim
    victim.mend()
    assert m.check()["exact"]
    assert len(m) == 40


def load_built(name, tmp_path_factory):
    """The module called name, built once for all of xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = next(folder.glob(f"{name}.*.so"), None) or build(name, folder)
    spec = importlib.util.spec_from_file_location(name, built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name, folder):
    """Compile name.pyx into folder, as the core, but with SHMRHASH_DEBUG and faster."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    source = folder / f"{name}.pyx"
    source.write_bytes((ROOT / "tests" / "core" / f"{name}.pyx").read_bytes())
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (core,) = settings["tool"]["setuptools"]["ext-modules"]
    include_dirs = [str(ROOT / path) for path in core["include-dirs"]]
    extension = Extension(
        name,
        [str(source)],
        include_dirs=include_dirs,
        extra_compile_args=[*core["extra-compile-args"], "-O0", "-Wno-sign-compare"],
        define_macros=[("SHMRHASH_DEBUG", "1")],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = cythonize([extension], include_path=include_dirs, quiet=True, force=True)
        distribution = Distribution({"name": name, "ext_modules": modules})
        command = distribution.get_command_obj("build_ext")
        command.build_lib = str(folder / "partial")
        command.build_temp = str(folder / "objects")
        command.ensure_finalized()
        command.run()
    # Renamed last: a file in folder under its final name is complete.
    (built,) = (folder / "partial").glob(f"{name}.*.so")
    return built.rename(folder / built.name)
