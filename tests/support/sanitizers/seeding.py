"""Call one function of _seeded in its own process: python seeding.py MODULE.so NAME NUMBER..."""

import sys

from support.sanitizers import racing


def main(path, name, *numbers):
    print(getattr(racing.load(path), name)(*map(int, numbers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
