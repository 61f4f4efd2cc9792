"""The command `shmrhash`: see and mend any map.

Its verbs, their arguments and their output are those of `bpftool map`, with what an operator of
shared memory needs besides. It needs click and rich: `pip install 'shmrhash[cli]'`.

    app          the group of commands, help, exit statuses
    commands/    one module for each command, or for a few that belong together
    files/       what export writes and import reads
    maps         the maps of this machine, their health and their users; strangers: those of others
    entries/     keys and values: formats, the types of SharedDicts, the entries of a map
    session      options that all commands share, and opening maps
    words        bpftool's argument syntax; completion, of the same in a shell
    screen       tables, bars, sizes and times for people; jsontext, keyboard
"""

import importlib.util
import sys

MISSING_STATUS = 8
EXTRAS = {
    "click": "cli",
    "rich": "cli",
    "prometheus_client": "metrics",
    "matplotlib": "plot",
    "numpy": "numpy",
}


def missing_message(module: str) -> str:
    """What to tell somebody whose Python lacks a module, with the command that helps."""
    return (
        f"this needs the Python package {module}, which is not installed; "
        f"to install it: pip install 'shmrhash[{EXTRAS[module]}]'"
    )


def main() -> int:
    """Run the command with the arguments of this process; its exit status."""
    for module in ("click", "rich"):
        if importlib.util.find_spec(module) is None:
            print(f"Error: {missing_message(module)}", file=sys.stderr)
            return MISSING_STATUS

    from shmrhash.cli import app

    return app.run(sys.argv[1:])
