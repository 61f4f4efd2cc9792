"""The rules of the house: layers, core files, packaging, documents."""

import ast
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import shmrhash

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The layers of the core, lowest first, and the files of each. A file cimports only from files
# before it in this list. The parts of python/ are included in this order.
LAYERS = {
    "machine": ["gil", "atomics", "system", "hashing", "number"],
    "segment": [
        *("status", "layout", "words", "classes", "geometry", "births", "fields", "header"),
        "file",
    ],
    "memory": [
        *("operation", "budget", "region", "hazard", "pool", "depot", "pins", "object", "peek"),
    ],
    "map": [
        *("rest", "ring", "bell", "chain", "element", "reference", "table", "resize", "read"),
        *("hold", "remove", "sweep", "evict", "evict_block"),
        *("write", "section", "journal", "walk", "batch"),
    ],
    "cells": [
        *("cell", "mutex", "takeaway", "shares", "rwlock", "flag", "condition", "barrier"),
        "circle",
    ],
    "processes": [
        *("claim", "liveness", "recover_memory", "recover_cells", "recover", "forking", "wait"),
        *("listener", "attach", "check_objects", "check"),
    ],
    "python": [
        *("segments", "handle", "greenlets", "attachment", "rejoining", "entering"),
        *("raising", "waiting", "sweeping", "evicting"),
        *("attempts", "reading", "writing", "changing", "clearing", "views", "forking"),
        *("objects", "figures", "bulk", "entries", "iterator", "sections", "mapsection", "several"),
        *("notifying", "watching", "ringing", "privates", "cells", "showing", "circles"),
        *("cellwaits", "locks", "rlocks", "semaphores", "rwlocks", "conditions", "lockusers"),
        "map",
        *("plainkeys", "codec", "storing", "dicthandle", "dictquick", "dictsection", "dictkeys"),
        *("dictwalk", "dict", "invalidating", "shadows", "claiming", "refreshing", "keeping"),
        *("cachequick", "cache", "memoizing", "near"),
    ],
}
CORE = [f"{layer}/{name}" for layer, names in LAYERS.items() for name in names] + ["_core"]

LIBRARIES = {"cpython", "cython", "libc", "posix"}  # libraries from which any file may cimport

FILE_LINES_MAX = 450  # a longer file has two subjects
# A class, with the docstrings of its methods, cannot be divided.
CLASSES = {"python/map": 550, "python/cache": 550}
MAP_LINES_MAX = 550  # of shmrhash/_map.py, for the same reason
FUNCTION_LINES_MAX = 60
DIRECTIVES = "# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True"

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cython"
CORE_FILES = sorted(
    path for path in FOLDER.rglob("*") if path.suffix in (".h", ".pxd", ".pxi", ".pyx")
)
CORE_PXDS = [path for path in CORE_FILES if path.suffix == ".pxd"]
CYTHON_FILES = [path for path in CORE_FILES if path.suffix != ".h"]


def place(path):
    """Return the place of a core file in the layers: "map/chain" for cython/map/chain.pxd."""
    return str(path.relative_to(FOLDER).with_suffix(""))


each_core_file = pytest.mark.parametrize("path", CORE_FILES, ids=place)
each_core_pxd = pytest.mark.parametrize("path", CORE_PXDS, ids=place)
each_cython_file = pytest.mark.parametrize("path", CYTHON_FILES, ids=place)


@pytest.fixture(scope="module")
def project():
    """The contents of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def project_files():
    """The files that git tracks or would track, as paths relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git working tree")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# ---- the core ----


def functions(path):
    """Yield (name, signature, number of lines) for each function of a Cython file."""
    lines = path.read_text().splitlines()
    starts = [
        i for i, line in enumerate(lines) if re.match(r" *(cdef(?! class)|cpdef|def)\b.*[(]", line)
    ]
    for start in starts:
        indent = len(lines[start]) - len(lines[start].lstrip())
        signature = ""
        for head in range(start, len(lines)):
            signature += lines[head].split(" #")[0].strip() + " "
            if signature.count("(") <= signature.count(")"):
                break
        if not signature.rstrip().endswith(":"):
            continue  # a variable, a struct field or an extern declaration
        end = head + 1
        for i in range(head + 1, len(lines)):
            if lines[i].strip() and len(lines[i]) - len(lines[i].lstrip()) <= indent:
                break
            if lines[i].strip():
                end = i + 1
        name = re.search(r"(\w+) ?[(]", signature)[1]
        yield name, signature, end - start


def test_every_core_file_has_a_layer():
    assert sorted(CORE) == sorted(map(place, CYTHON_FILES))


def test_file_names_of_the_core_are_unique():
    """So a comment can name a file by its name alone."""
    names = [path.name for path in CORE_FILES]

    assert sorted(set(names)) == sorted(names)


def test_parts_are_included_in_the_order_of_their_layer():
    extension = (FOLDER / "_core.pyx").read_text()
    included = re.findall(r'^include "(\S+)\.pxi"', extension, re.MULTILINE)

    assert included == [name for name in CORE if name.startswith("python/")]


@each_cython_file
def test_cimports_point_down(path):
    """A file cimports from the core only what is before it in the layers."""
    text = re.sub(r"#.*", "", path.read_text())
    named = re.findall(r"^ *from +(\S+) +cimport\b", text, re.MULTILINE)
    for names in re.findall(r"^ *cimport +(.+)", text, re.MULTILINE):
        named += [name.split()[0] for name in names.split(",")]
    of_the_core = {name for name in named if name.partition(".")[0] not in LIBRARIES}

    below = CORE[: CORE.index(place(path))]
    assert of_the_core <= {name.replace("/", ".") for name in below}


def names_defined(code):
    """Return the names that a part defines at its top level."""
    found = set(re.findall(r"^(?:cp?def|def)\b[^(=\n]*?(\w+)\(", code, re.MULTILINE))
    found |= set(re.findall(r"^cdef (?:class|struct|enum) (\w+)", code, re.MULTILINE))
    found |= set(re.findall(r"^ctypedef .*[(][*](\w+)[)]", code, re.MULTILINE))
    found |= set(re.findall(r"^cdef [\w ]+?[ *](\w+) = ", code, re.MULTILINE))
    for block in re.findall(r"^cp?def enum.*:\n((?:    .*\n)+)", code, re.MULTILINE):
        found |= set(re.findall(r"^    (\w+)", block, re.MULTILINE))
    return found


# Uses of a name of a later part: claim_context raises raise_status, which begins an operation of
# its own when it counts the memory that waits.
USES_UPWARDS = {("python/entering", "raise_status")}


def test_parts_use_names_of_earlier_parts():
    parts = [name for name in CORE if name.startswith("python/")]
    codes = {name: comments_and_code(FOLDER / f"{name}.pxi")[1] for name in parts}
    upwards = set()
    for position, name in enumerate(parts):
        later = set().union(*(names_defined(codes[part]) for part in parts[position + 1 :]))
        used = set(re.findall(r"(?<![.\w])\w+", re.sub(r'"[^"\n]*"', '""', codes[name])))
        upwards |= {(name, use) for use in used & later}

    assert names_defined(codes["python/map"]) >= {"MapCore", "F_LOCK", "examine"}
    assert upwards == USES_UPWARDS


@each_cython_file
def test_core_file_begins_with_the_directives(path):
    """Inline functions obey the directives of their own file, so every file has all of them."""
    assert path.read_text().splitlines()[0] == DIRECTIVES


@each_core_file
def test_core_file_is_short(path):
    limit = CLASSES.get(place(path), FILE_LINES_MAX)

    assert len(path.read_text().splitlines()) <= limit


def test_modules_are_short():
    sizes = {
        path.name: len(path.read_text().splitlines()) for path in (ROOT / "shmrhash").rglob("*.py")
    }

    assert {name for name, lines in sizes.items() if lines > FILE_LINES_MAX} <= {"_map.py"}
    assert sizes["_map.py"] <= MAP_LINES_MAX


@each_cython_file
def test_core_functions_are_short(path):
    too_long = {name: lines for name, _, lines in functions(path) if lines > FUNCTION_LINES_MAX}

    assert not too_long


@each_core_pxd
def test_core_functions_neither_raise_nor_need_the_gil(path):
    """Each is `cdef inline ... noexcept nogil`; without noexcept every call would take the GIL."""
    wrong = [
        name
        for name, signature, _ in functions(path)
        if not re.match(r"cdef inline .*\) noexcept nogil: $", signature)
    ]

    assert not wrong


# Fields that no other thread changes while one reads them: they belong to one operation or call,
# are set before threads can share the object, or are changed in a critical section of the object,
# or under the listener's mutex or the state lock.
SETTLED_FIELDS = {
    *("f_lock", "element_filled", "empty", "is_long", "strict", "swapped"),
    *("counts_all", "is_mutex", "is_space", "read_only", "use_membarrier", "words_only"),
    "writes_oddly",
    *("ahead", "changes_quickly", "finds_kept", "keeps", "plain", "quick", "undo"),
    *("with_key", "with_value"),
    *("changed", "has_come", "has_waited", "is_there", "removing", "stays"),
    *("has_thread", "is_user", "look_at_all", "naps", "stopping"),
    "free_data",  # of Cython's own memory views
}


def fields_loaded_twice(code):
    """Yield the fields that the C code of an `and` or `or` loads for the test and for the result.

    Of `a.b and c` Cython makes `if (a->b) {} else { result = a->b; }`.
    """
    pattern = (
        r"if \([^\n]*\) \{\s*\} else \{\s*"
        r"__pyx_t_\d+ = ([^\n]*);\s*goto __pyx_L\d+_bool_binop_done;"
    )
    for operand in re.findall(pattern, code):
        if field := re.search(r"(?:->|\.)(\w+)\)*$", operand):
            yield field[1]


@pytest.mark.thorough
def test_compiled_core_never_takes_the_gil(tmp_path):
    """Their C code neither takes the GIL nor raises, and Cython hints at neither.

    Without a GIL, another thread could change a field between the two loads of an `and`.
    """
    output = tmp_path / "_core.c"
    command = [sys.executable, "-m", "cython", "-I", ROOT / "cython", "-o", output]
    command += ["--module-name", "shmrhash._core", ROOT / "cython" / "_core.pyx"]
    # The working directory is not the root, because `-m` would put its folder cython on sys.path.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    hints = [line for line in done.stderr.splitlines() if "performance hint" in line]
    assert not hints

    code = output.read_text()
    assert set(fields_loaded_twice(code)) == SETTLED_FIELDS

    wrong = []
    core_functions = 0
    layers = "|".join(LAYERS)
    pattern = rf"^static \S.*?\b__pyx_f_\d+(?:{layers})_\d+(\w+)\(.*\) \{{\n"
    for match in re.finditer(pattern, code, re.MULTILINE):
        core_functions += 1
        body = code[match.end() : code.index("\n}\n", match.end())]
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        if re.search(r"GILState|WithGIL|PyErr_|__Pyx_Raise|__Pyx_WriteUnraisable", body):
            wrong.append(match[1])
    assert not wrong
    assert core_functions >= sum(1 for path in CORE_PXDS for _ in functions(path))


@each_cython_file
def test_flags_that_threads_share_are_used_by_functions(path):
    """A field named *_flag is declared, or is an argument of flag_load or flag_store (gil.h)."""
    _, code = comments_and_code(path)
    code = re.sub(r"\bflag_(?:load|store)\(&\w+\.\w+_flag\b", "", code)
    code = re.sub(r"^    cdef bint \w+_flag\b", "", code, flags=re.MULTILINE)

    assert not re.findall(r"[.]\w+_flag\b", code)


# Names of the kernel and of libraries that comments mention.
FOREIGN_NAMES = {
    *("bpf_for_each_map_elem", "bpf_kptr_xchg", "bpf_mem_alloc", "bpf_refcount", "bpf_timer"),
    *("htab_elem", "key_len", "map_create", "max_by", "map_mem_usage", "resource_tracker"),
    "rhtab_map_alloc_check",
    # Arguments of the caching libraries that have adapters.
    "expiration_time",
    "expire_after",
    "key_builder",
    # Of PostgreSQL.
    *("array_append", "convert_to", "octet_length", "search_path", "system_identifier"),
}


# The folders whose comments are looked at: the library, and the model of its protocol.
COMMENTED = ("cython/", "shmrhash/", "tests/protocol/", "tests/support/protocol/")


def comments_and_code(path):
    """Return the comments and docstrings of a source file, and the rest of it."""
    comment = r"/\*.*?\*/|//[^\n]*" if path.suffix == ".h" else r'""".*?"""|#[^\n]*'
    text = path.read_text()
    return re.findall(comment, text, re.DOTALL), re.sub(comment, " ", text, flags=re.DOTALL)


def test_names_in_comments_exist(project_files):
    """Files, and words with an underscore, that comments of the library or of the model mention."""
    suffixes = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".h", ".toml", ".ini"}
    paths = [ROOT / name for name in project_files if Path(name).suffix in suffixes]
    files = {path.name for path in paths}
    parts = {path: comments_and_code(path) for path in paths}
    words = {word for _, code in parts.values() for word in re.findall(r"\w+", code)}
    words |= FOREIGN_NAMES | {"language_level", "freethreading_compatible"}
    named = re.compile(r"(?<![\w./-])[a-z]+(?:_[a-z0-9]+)+\b(?![./*-])")
    file_named = re.compile(r"(?<![\w/-])\w+\.(?:pxd|pxi|pyx|h|py)\b")
    wrong = {}
    for path, (comments, _) in parts.items():
        if not str(path.relative_to(ROOT)).startswith(COMMENTED):
            continue
        text = "\n".join(comments)
        unknown = set(named.findall(text)) - words | set(file_named.findall(text)) - files
        if unknown:
            wrong[path.name] = unknown

    assert not wrong


# ---- packaging ----


def test_depends_names_every_core_file(project):
    """An unnamed file would be missing from the sdist, and changing it would rebuild nothing."""
    (core,) = project["tool"]["setuptools"]["ext-modules"]

    expected = [str(path.relative_to(ROOT)) for path in CORE_FILES if path.suffix != ".pyx"]

    assert expected == core["depends"]


def test_packages_are_named(project):
    """A folder that is not named would be missing from the wheel."""
    folders = [path.parent.relative_to(ROOT) for path in (ROOT / "shmrhash").rglob("__init__.py")]
    packages = sorted(".".join(folder.parts) for folder in folders)

    assert packages == sorted(project["tool"]["setuptools"]["packages"])


def test_version_is_in_one_place_and_the_changelog_begins_with_it(project):
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "shmrhash.__version__"}
    assert shmrhash.__version__ == re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)[1]


def test_cython_folder_is_no_package():
    """With an __init__ it would shadow Cython's own `cython` module."""
    assert not list((ROOT / "cython").glob("__init__*"))


def test_sdist_holds_every_project_file(project_files, tmp_path):
    """Build the sdist from a copy of the tracked files; only dot files may be missing."""
    copy = tmp_path / "copy"
    for name in project_files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)

    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}

    assert {name for name in project_files if not name.startswith(".")} <= held
    assert not [name for name in held if name.endswith(("_core.c", ".so", ".pyc"))]


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    if not script.exists():
        pytest.skip("not in the sdist")
    assert os.access(script, os.X_OK)
    commands = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert any(line in commands for line in script.read_text().splitlines() if "tox" in line)


def test_no_file_has_a_path_of_one_machine(project_files):
    pattern = re.compile(r"(?<![\w./])/(?:work|root|home|Users)" + r"/\w")
    found = [name for name in project_files if pattern.search((ROOT / name).read_text())]

    assert not found


# ---- documents ----


@pytest.mark.parametrize("name", ["README", "CHANGELOG", "DESIGN", "CONTRIBUTING", "SECURITY"])
def test_document_exists(name):
    assert (ROOT / f"{name}.md").read_text().startswith("# ")


def promised_ids():
    """Return the ids of the guarantees, from the table of DESIGN.md."""
    ids = set(re.findall(r"^\| *\**([A-Z]\d)\b", (ROOT / "DESIGN.md").read_text(), re.MULTILINE))
    assert ids, "DESIGN.md has no table whose rows begin with an id"
    return ids


def test_cited_guarantees_exist_in_the_design():
    """Docstrings of tests and comments of the core cite guarantees by their ids."""
    letters = "".join(sorted({promise[0] for promise in promised_ids()}))
    citation = re.compile(rf"(?<![\w-])[{letters}]\d(?!\w)")
    wrong = {}
    for path in [*ROOT.glob("tests/**/test_*.py"), *CORE_FILES]:
        text = path.read_text()
        if path.suffix == ".py":
            text = "\n".join(docstrings(text))
        unknown = set(citation.findall(text)) - promised_ids()
        if unknown:
            wrong[path.name] = unknown

    assert not wrong


def test_every_guarantee_has_a_test():
    cited = set()
    for path in ROOT.glob("tests/**/test_*.py"):
        for text in docstrings(path.read_text()):
            cited |= set(re.findall(r"\b[A-Z]\d\b", text))

    assert promised_ids() <= cited


def docstrings(source):
    """Return the docstrings of a module, its classes and its functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [text for text in map(ast.get_docstring, nodes) if text]


# ---- the public interface ----

NEVER_RAISES = {"close"}


def public_things():
    """Yield every public class, function, method and property, with its name."""
    for name in shmrhash.__all__:
        thing = getattr(shmrhash, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        yield pytest.param(name, thing, id=name)
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            owners = itertools.takewhile(lambda owner: owner not in (object, tuple), thing.__mro__)
            members = {member for owner in owners for member in vars(owner)}
            for member in sorted(member for member in members if not member.startswith("_")):
                qualified = f"{name}.{member}"
                yield pytest.param(qualified, getattr(thing, member), id=qualified)


@pytest.mark.parametrize(("name", "thing"), list(public_things()))
def test_public_thing_is_documented(name, thing):
    """All have a docstring; functions say what they raise; a class may explain its attributes."""
    text = inspect.getdoc(thing) or ""
    owner, _, member = name.rpartition(".")

    if inspect.isclass(thing):
        assert text, f"{name} has no docstring"
    elif inspect.isroutine(thing):
        says = re.search(r"\b[Rr]aises?\b", text) or (text and member in NEVER_RAISES)
        assert says, f"what does {name} raise?"
    else:
        explained = inspect.getdoc(getattr(shmrhash, owner)) or ""
        assert text or re.search(rf"\b{member}\b", explained), f"what is {name}?"


def test_lines_that_are_named_as_unreached_exist(monkeypatch):
    """`tox -e coverage`, which would notice too, takes long."""
    monkeypatch.syspath_prepend(ROOT / "tools" / "coverage")
    import measure

    assert measure.stale() == []


def test_importing_sources_that_are_not_built_explains_the_problem(tmp_path):
    """A program in the root of a clone imports the folder shmrhash/, not the installed package."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "shmrhash", tmp_path / "shmrhash", ignore=ignored)

    command = [sys.executable, "-c", "import shmrhash"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "without its compiled part" in done.stderr.splitlines()[-1]
