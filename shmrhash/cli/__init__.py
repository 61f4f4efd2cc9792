"""The command `shmrhash`: look at any map, and repair it.

Its commands, their arguments and their output are those of `bpftool map`; further commands are for
operators of shared memory. It needs click and rich: `pip install 'shmrhash[cli]'`. These are its
modules, from the top down; each imports only from those below it:

    app          the group of commands, help, completion of a shell; the exit after an error
    commands/    one module for each command, or for a few that belong together
    files/       what export writes and import reads
    maps         the maps of this machine, their health and their processes
    strangers    reading maps of users that this one does not trust
    entries/     keys and values: formats, the types of SharedDicts, the entries of a map
    session      options that all commands share, and opening maps
    words        bpftool's argument syntax: MAP, DATA, keywords; their completion
    screen       tables, bars, JSON, keys of a keyboard; sizes and times for people
    errors       messages and exit statuses
"""

import sys


def main() -> int:
    """Run the command with the arguments of this process; return its exit status."""
    from shmrhash.cli.errors import Failure, need

    try:
        need("click")
        need("rich")
    except Failure as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.status

    from shmrhash.cli import app

    return app.run(sys.argv[1:])
