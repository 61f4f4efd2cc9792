"""Run one race in a process of its own: python -m support.sanitizers.racing MODULE.so SCENARIO....

Prints the results as JSON; the reports of a sanitizer go to standard error.
"""

import importlib.util
import json
import sys

ALL_COLLIDE = (1, 0, 0, 0)

# Threads, and the map that they use. With fewer entries than keys the map is sometimes full.
SCENARIOS = {
    "points": (["points"] * 4, {"max_entries": 3000, "keys": 4000}),
    "long values": (["points"] * 3 + ["walker"], {"value_size": 32, "keys": 48}),
    "chains": (
        ["points"] * 3 + ["walker"],
        {"max_entries": 50, "keys": 64, "seeds": ALL_COLLIDE},
    ),
    "batches": (
        ["batches", "batches", "points", "walker"],
        {"max_entries": 9000, "keys": 9000, "value_size": 32},
    ),
    "deaths": (
        ["points", "points", "victim", "victim", "walker"],
        {"max_entries": 500, "keys": 600, "value_size": 32},
    ),
    "deaths in chains": (
        ["points", "batches", "victim", "victim"],
        {"max_entries": 50, "keys": 60, "seeds": ALL_COLLIDE},
    ),
    "seeded": (["seeded", "points"], {"keys": 64}),
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.rpartition("/")[2].partition(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path, scenario, seconds, seed):
    roles, geometry = SCENARIOS[scenario]
    race = load(path).Race(**geometry)
    threads = race.run(roles, float(seconds), int(seed))
    print(json.dumps({"threads": threads, "check": race.check()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
