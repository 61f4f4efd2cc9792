#!/bin/sh
# The compiler, with -O1 after the -O3 of pyproject.toml: with sanitizers gcc needs five minutes for
# -O3, and the checks are the same.
exec cc "$@" -O1
