"""The command `shmrhash`: see and mend any map.

Its verbs, their arguments and their output are those of `bpftool map`, with what an operator of
shared memory needs besides. It needs click and rich: `pip install 'shmrhash[cli]'`.

    app          the group of verbs, help, completion; base has what the verbs share
    tokens       bpftool's argument syntax: MAP, DATA, keywords and their prefixes
    formats      keys and values as bytes, text, numbers and structs
    opaque       what is shown of bytes whose type is known; kinds: the types of SharedDicts
    layouts      what a SharedDict's segment says; contents: the entries of any map, all they have
    jsontext     JSON laid out as bpftool lays it out
    observe      what maps there are, how they are, and who uses them
    screen       tables, bars, sizes and times for people
    verbs        bpftool's verbs that look; changes has those that change something
    views        ls, info
    live         top, watch
    shape        stat
    care         check, repair, gc, unlink
    machine      doctor
    transfer     export, import; store, how maps are emptied and filled; files, ndjson, snapshot
    exposition   metrics
    measure      bench
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
