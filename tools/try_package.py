"""Build the sdist, and the wheel from it; install that in an empty environment and use it there.

The wheel is built as pip builds one when it installs the sdist: from the unpacked sdist, in an
environment with nothing but what pyproject.toml requires. Run by tox's package environment, which
has `build`.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL_SUFFIXES = {".py", ".pyi", ".so"}


def check_wheel_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    strangers = [
        name
        for name in names
        if not name.startswith("shmrhash/")
        or (Path(name).suffix not in WHEEL_SUFFIXES and Path(name).name != "py.typed")
    ]
    assert not strangers, f"the wheel should not hold {strangers}"


def install_and_use(package, folder):
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True, cwd=folder)
    subprocess.run([python, "-I", ROOT / "tools" / "use_installed.py"], check=True, cwd=folder)
    expect_command_to_say_what_it_needs(folder)


def expect_command_to_say_what_it_needs(folder):
    """Without its extra the command exits with 8, and says in one line how to install it."""
    for command in ([folder / "bin" / "shmrhash"], [folder / "bin" / "python", "-m", "shmrhash"]):
        done = subprocess.run(
            [*command, "ls"], capture_output=True, text=True, cwd=folder, check=False
        )
        assert done.returncode == 8, done
        assert done.stdout == "", done
        assert done.stderr.count("\n") == 1, done
        assert "pip install 'shmrhash[cli]'" in done.stderr, done
    print("without its extra:", done.stderr.strip())


def main(folder):
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    check_wheel_content(wheel)
    install_and_use(wheel, folder / "environment")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder).resolve())
