"""The adapters where the other caching libraries are not installed. (Where they are, tests/adapters
tests them.)"""

import subprocess
import sys

LIBRARIES = ["aiocache", "asgiref", "cachelib", "cashews", "django", "dogpile", "requests_cache"]
EXTRAS = {
    "aiocache": "aiocache",
    "cachelib": "cachelib",
    "cashews": "cashews",
    "django": "django",
    "dogpile": "dogpile",
    "requests_cache": "requests-cache",
}


def run(folder, source):
    """Run a program in a folder without the sources of shmrhash; return its output."""
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_shmrhash_imports_no_other_caching_library(tmp_path):
    source = f"import sys, shmrhash\nprint(sorted(sys.modules.keys() & {set(LIBRARIES)!r}))"

    assert run(tmp_path, source) == "[]\n"


def test_an_adapter_without_its_library_names_the_extra_to_install(tmp_path):
    """None in sys.modules makes the import of the library fail; the error names the extra to
    install."""
    source = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({LIBRARIES!r}))
for name, extra in {EXTRAS!r}.items():
    try:
        importlib.import_module("shmrhash." + name)
    except ImportError as error:
        print(name, f"pip install 'shmrhash[{{extra}}]'" in str(error))
"""

    assert [f"{name} True" for name in EXTRAS] == run(tmp_path, source).splitlines()
