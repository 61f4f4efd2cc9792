"""`python -m shmrhash`: the command line, as the installed command `shmrhash`."""

import sys

from shmrhash.cli import main

if __name__ == "__main__":
    sys.exit(main())
