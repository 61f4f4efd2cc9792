"""The documents are true: programs run, links have targets, drawings equal their sources."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import shmrhash

ROOT = Path(__file__).resolve().parents[2]
SEGMENTS = Path(os.environ.get("SHMRHASH_DIR", "/dev/shm"))
SITE = ROOT / "docs" / "site"
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ["README", "CONTRIBUTING", "DESIGN"]),
    *sorted(ROOT.glob("docs/**/*.md")),
]
LANGUAGES = {"python", "cython", "sh", "text", "ini", "yaml", "toml", "json", "dockerfile"}
# Examples whose text is also a block of a document.
SHOWN = ["shared_dict.py", "shared_counter.py"]
NEEDS_SERVER = "it needs a server"  # an excuse: tests/near runs these programs
TIMEOUT_SECONDS = 500  # for one block, on a busy machine; most take a second

each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


class Block(NamedTuple):
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    text: str
    excuse: str | None  # the reason why it is not run


FENCE = re.compile(
    r"(?:^<!-- not run: (?P<excuse>[^\n]+) -->\n\n?)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks_of(path):
    text = path.read_text()
    return [
        Block(
            path,
            text.count("\n", 0, match.start("text")),
            match["language"],
            match["text"],
            match["excuse"],
        )
        for match in FENCE.finditer(text)
    ]


BLOCKS = [block for path in DOCUMENTS for block in blocks_of(path)]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]


def identify(block):
    return f"{block.path.relative_to(ROOT)}:{block.line}"


@pytest.fixture
def directory(map_name):
    """An empty directory of segments, for this test alone. Maps left in it must be sound."""
    with tempfile.TemporaryDirectory(prefix=map_name, dir=SEGMENTS) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def reference():
    """docs/site/reference.py, which makes the reference's pages from the package."""
    spec = importlib.util.spec_from_file_location("reference", SITE / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(command, directory, cwd):
    settings = os.environ | {"SHMRHASH_DIR": str(directory), "NO_COLOR": "1"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )


@pytest.mark.parametrize("block", PROGRAMS, ids=identify)
def test_program_of_a_document_prints_the_output_that_it_shows(
    block, directory, tmp_path, monkeypatch
):
    """Every Python block is a whole program; a comment after a print is a line of its output."""
    if block.excuse == NEEDS_SERVER:
        pages = "near_cache.md", "near_postgres.md", "near_web.md"
        assert block.path.name in pages, "tests/near runs the programs of these pages only"
        return
    assert block.excuse is None, "this is no reason why a Python block could not run"
    program = tmp_path / "program.py"
    program.write_text(block.text)

    done = run([sys.executable, program], directory, tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = iter(done.stdout.splitlines())
    for promised in re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE):
        assert promised in written, f"{promised!r} is not printed, or too early:\n{done.stdout}"
    monkeypatch.setenv("SHMRHASH_DIR", str(directory))
    for name in os.listdir(directory):
        assert not name.startswith("shmrhash-anonymous-")
        try:
            left = shmrhash.RHashMap.open(name)
        except shmrhash.LayoutMismatch:
            left = shmrhash.Sync.open(name)
        with left:
            left.check()


def test_commands_of_the_guide_run_one_after_another(directory, tmp_path):
    """docs/howto/command-line.md, as a reader would try it: each line succeeds."""
    lines = [
        line
        for block in blocks_of(ROOT / "docs" / "howto" / "command-line.md")
        if block.language == "sh" and block.excuse is None
        for line in block.text.splitlines()
    ]
    assert len(lines) > 15

    for line in lines:
        done = run([sys.executable, "-m", *line.split()], directory, tmp_path)

        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"


def test_documents_name_commands_and_options_that_exist(reference):
    """`shmrhash COMMAND --option` in a document exists in the command."""
    text = reference.command_line()
    helps = dict(re.findall(r"^## (\w+)\n\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    helps["help"] = ""
    used = set()
    for path in DOCUMENTS:
        for line in re.findall(r"(?:`|^)shmrhash ([^`\n]+)", path.read_text(), re.MULTILINE):
            used.add(line.partition("  #")[0].partition(" #")[0])
    assert len(used) > 20

    for line in used:
        words = [word for word in line.split() if word not in ("-j", "-p")]
        if words[0] == "--owner":
            words = words[2:]
        if words and words[0] != "COMMAND" and not words[0].startswith("-"):
            known = helps.get(words[0])
            assert known is not None, line
            assert all(word in known for word in words if word.startswith("--")), line


def test_documents_name_figures_that_metrics_prints(directory, tmp_path):
    command_line = [sys.executable, "-m", "shmrhash"]
    created = ["create", "hits", "key", "8", "value", "8", "entries", "10"]
    assert run([*command_line, *created], directory, tmp_path).returncode == 0
    printed = run([*command_line, "metrics"], directory, tmp_path).stdout
    named = set()
    for path in DOCUMENTS:
        named |= set(re.findall(r"`(shmrhash_\w+)`", path.read_text()))
    assert len(named) > 5

    unknown = {name for name in named if f"# TYPE {name} " not in printed}

    assert not unknown


@pytest.mark.parametrize("name", SHOWN)
def test_short_example_is_a_block_of_a_document(name):
    assert (ROOT / "examples" / name).read_text() in [block.text for block in PROGRAMS]


@each_document
def test_code_is_fenced_and_says_its_language(path):
    """A block without a language, or one that is only indented, would not be run."""
    text = path.read_text()
    assert {block.language for block in blocks_of(path)} <= LANGUAGES
    assert text.count("```") == 2 * len(blocks_of(path))
    prose = FENCE.sub("", text)

    assert not re.findall(r"\n\n {4,}(?!- )\S.*", prose)


def anchors_of(path):
    """Return the anchors of a document's headings."""
    prose = FENCE.sub("", path.read_text())
    titles = re.findall(r"^#+ +(.+?)(?: \{ #\S+ \})?$", prose, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title).strip().lower() for title in titles]
    return {title.replace(" ", "-") for title in plain} | set(re.findall(r"\{ #(\S+) \}", prose))


@each_document
def test_links_have_targets(path):
    """A relative link names a file of the project, and an anchor one of the file's headings."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        place, _, anchor = target.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (path.parent / place).resolve() if place else path
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            wrong.append(target)

    assert not wrong


@each_document
def test_files_named_in_documents_exist(path):
    """`tests/...`, `cython/...` and similar words in a document are paths of the project."""
    folders = "tests|benchmarks|tools|examples|docs|shmrhash|cython"
    named = re.findall(rf"[` ]((?:{folders})/[\w./]+)[ `]", path.read_text())

    assert not [name for name in named if not (ROOT / name).exists()]


def test_drawings_equal_the_output_of_their_sources():
    command = [sys.executable, ROOT / "docs" / "drawings" / "make.py", "--check"]

    done = run(command, SEGMENTS, ROOT)

    assert done.returncode == 0, done.stdout + done.stderr


def test_segment_is_drawn_to_scale(make_map, monkeypatch):
    """M1: the drawing has the numbers of such a map; on more processors a map has more depots."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "drawings")
    segment = importlib.import_module("segment")

    facts = make_map(key_size=8, value_size=8, max_entries=1_000_000).info()

    drawn = sum(size for _, size, _ in segment.REGIONS)
    assert facts["bytes_reserved"] == pytest.approx(drawn, rel=0.05)
    assert facts["bytes_committed"] == pytest.approx(dict(segment.COMMITTED)["empty"], rel=0.2)


def test_every_drawing_is_in_a_document():
    text = "".join(path.read_text() for path in DOCUMENTS)

    unused = [path.name for path in ROOT.glob("docs/drawings/*.svg") if path.name not in text]

    assert not unused


def test_reference_has_every_public_thing(reference):
    """Each public name, and each method of the three classes, appears once: expand() compares."""
    pages = [
        reference.expand(path.read_text()) for path in sorted(ROOT.glob("docs/reference/*.md"))
    ]

    text = "\n".join(pages)
    assert "{{" not in text
    assert not [name for name in shmrhash.__all__ if not re.search(rf"\b{name}\b", text)]


def test_reference_without_a_method_is_noticed(reference):
    page = "{{ members SharedCounter inc }}\n"

    with pytest.raises(LookupError, match="most_common"):
        reference.expand(page)
