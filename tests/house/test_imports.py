"""Which Python modules may import which: no circles; modules of the command line point down."""

import ast
import graphlib
import itertools
from pathlib import Path

import pytest

# The layers of the command line, lowest first; modules of one layer do not import each other.
COMMAND_LINE = [
    ["errors", "screen", "simulation", "system"],
    ["drawing", "words"],
    ["session"],
    ["entries.formats"],
    ["entries.typed"],
    ["entries.rows"],
    ["entries.options"],
    ["entries.contents"],
    ["strangers", "nameless", "waiting", "files.newfile", "files.tables", "files.traces"],
    ["following", "maps", "files.ndjson", "files.snapshot", "files.store"],
    [
        *("commands.bench", "commands.change", "commands.check", "commands.doctor", "commands.ls"),
        *(
            "commands.locks",
            "commands.metrics",
            "commands.near",
            "commands.show",
            "commands.stat",
            "commands.top",
        ),
        *("commands.trace", "commands.transfer", "commands.wait", "commands.watch"),
    ],
    ["app"],
    ["__init__"],
]
DOOR = "shmrhash._inspect"  # the only private module that the command line may import
PUBLIC_ANYWAY = ("_replace", "_exit", "__version__", "__name__", "__mro__")

ROOT = Path(__file__).resolve().parents[2]
CLI = "shmrhash.cli"


def module_of(path):
    """Return the dotted name of a module of the package; a folder's is that of its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in (ROOT / "shmrhash").rglob("*.py")}
NAMES = list(itertools.chain(*COMMAND_LINE))
each_name = pytest.mark.parametrize("name", NAMES)


def path_of(name):
    """Return the file of a module of the command line."""
    return MODULES[CLI if name == "__init__" else f"{CLI}.{name}"]


def is_module(name):
    """Whether a name is a module of the package, or private: the extension, for example."""
    return name in MODULES or (name.startswith("shmrhash._") and name.count(".") == 1)


def imports(source):
    """Return the modules of the package a source imports, also in functions and for types."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            inside = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name if is_module(name) else node.module for name in inside}
    return {name for name in found if is_module(name)}


def private_names(source):
    """Return the private attributes that a source uses, except those of self, cls and super()."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            whose = ast.unparse(node.value)
            if whose not in ("self", "cls", "super()") and node.attr not in PUBLIC_ANYWAY:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_every_module_of_the_command_line_has_a_layer():
    packages = {module_of(path) for path in (ROOT / "shmrhash").rglob("__init__.py")}
    found = {name for name in MODULES if name.startswith(f"{CLI}.")} - packages

    assert sorted(NAMES) == sorted(["__init__", *(name.removeprefix(f"{CLI}.") for name in found)])


@each_name
def test_imports_of_the_command_line_point_down(name):
    """Also inside functions: a module imports lower layers, the public names, and DOOR."""
    (layer,) = (number for number, names in enumerate(COMMAND_LINE) if name in names)
    below = {f"{CLI}.{lower}" for lower in itertools.chain(*COMMAND_LINE[:layer])}

    assert imports(path_of(name).read_text()) <= below | {"shmrhash", DOOR}


@each_name
def test_command_line_uses_no_private_name_of_the_library(name):
    assert not list(private_names(path_of(name).read_text()))


def test_modules_do_not_import_in_a_circle():
    """Imports that a function makes when it is called, or that are for types only, count too."""
    graph = {name: imports(path.read_text()) - {name, "shmrhash"} for name, path in MODULES.items()}

    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from shmrhash.cli.app import run", {"shmrhash.cli.app"}),
        ("from shmrhash.cli import app", {"shmrhash.cli.app"}),
        ("def late():\n    import shmrhash.cli.app", {"shmrhash.cli.app"}),
        ("if TYPE_CHECKING:\n    from shmrhash._map import RHashMap", {"shmrhash._map"}),
        ("from shmrhash import RHashMap, _core", {"shmrhash", "shmrhash._core"}),
        ("import os", set()),
    ],
)
def test_imports_are_noticed(source, found):
    assert found == imports(source)


def test_private_names_are_noticed():
    source = "import shmrhash\nshared_map._fields()\nshmrhash._core.x\nself._own\nextra._replace()"

    assert list(private_names(source)) == ["line 2: shared_map._fields", "line 3: shmrhash._core"]


# What a function may import when it is called: packages that may be absent, and the sources of near
# caches, whose modules would make the import an eighth slower.
LATE = {
    "shmrhash._greenlets": {"gevent", "gevent._hub_local"},
    "shmrhash._near.cache": {"shmrhash._near.cluster", "shmrhash._near.redis"},
    "shmrhash._near.redis": {"redis"},
    "shmrhash._progress": {"rich.console", "rich.progress"},
    "shmrhash._tables": {"pyarrow"},
    "shmrhash._types.messages": {"msgspec", "msgspec.inspect"},
}


def late_imports(source):
    """Return the modules that the functions of a source import."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found = set()
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, functions)):
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{name.name}" for name in node.names} & set(MODULES)
                found.add(node.module)
    return found - {"shmrhash"}


def test_library_is_loaded_when_it_is_imported():
    """C2, C3: later, a process that gave up its privileges may be unable to read its modules."""
    library = {name: path for name, path in MODULES.items() if not name.startswith(CLI)}

    late = {name: late_imports(path.read_text()) for name, path in library.items()}

    assert {name: found for name, found in late.items() if found} == LATE


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n    import posix_ipc", {"posix_ipc"}),
        (
            "class C:\n    async def f(self):\n        from shmrhash import _turns",
            {"shmrhash._turns"},
        ),
        ("import os\nif os:\n    import sys", set()),
    ],
)
def test_late_imports_are_noticed(source, found):
    assert found == late_imports(source)


HELPERS = ROOT / "tests" / "support"
HELPER_FILES = sorted(HELPERS.rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if HELPERS not in path.parents)
BARE_NAMES = {path.stem for path in TESTS + HELPER_FILES} - {"__init__", "conftest"}


def test_files_outside_support_are_tests_or_conftest():
    """Helpers are in support/; all other Python files are called test_*.py or conftest.py."""
    names = {path.name for path in TESTS}

    assert {name for name in names if not name.startswith("test_")} == {"conftest.py"}
    assert not [path for path in HELPER_FILES if path.name.startswith("test_")]


@pytest.mark.parametrize(
    "path",
    [*TESTS, *HELPER_FILES],
    ids=lambda path: str(path.relative_to(ROOT / "tests")),
)
def test_no_test_imports_a_test(path):
    """So renaming a test breaks no other; and helpers are imported from the package support."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])

    assert not found & BARE_NAMES
