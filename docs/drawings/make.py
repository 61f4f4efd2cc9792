"""Write the drawings of the documents as SVG files, or see whether they are as they should be.

python docs/drawings/make.py             # writes what has changed
python docs/drawings/make.py --check     # status 1, and the names of those that differ
"""

import argparse
import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HELPERS = {"drawing", "make"}


def drawings():
    """The name and text of each SVG file."""
    for source in sorted(HERE.glob("*.py")):
        if source.stem not in HELPERS:
            module = importlib.import_module(source.stem)
            yield f"{source.stem}.svg", module.draw().svg()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = set(HERE.glob("*.svg"))
    different = []
    for name, text in drawings():
        path = HERE / name
        stale.discard(path)
        if not path.exists() or path.read_text() != text:
            different.append(name)
            if not options.check:
                path.write_text(text)
    different += [f"{path.name}, which nothing writes" for path in sorted(stale)]
    print("\n".join(different) or "all drawings are as their sources say")
    return 1 if options.check and different else 0


if __name__ == "__main__":
    sys.exit(main())
