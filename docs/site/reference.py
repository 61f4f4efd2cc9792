"""The reference's text, made from the package: signatures from its stub and sources, docstrings.

members("RHashMap", ["lookup", "get"]) is the Markdown of these; errors() is that of the exceptions,
command_line() that of the command. Whatever cannot be found is an error: the site is not built.
"""

import ast
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import shmrhash

PACKAGE = Path(shmrhash.__file__).parent
ERRORS = {
    name: thing
    for name in shmrhash.__all__
    if inspect.isclass(thing := getattr(shmrhash, name)) and issubclass(thing, Exception)
}


LEAD = re.compile(r"^(Raises\b|(?:Types|Concurrency|Expiry|Attributes)[.:])")
MODULES = [name for name in sys.modules if name.startswith("shmrhash._")]


# ---- signatures ----


@cache
def definitions(path):
    """The functions of each class of a source or stub: {class: {name: [FunctionDef, ...]}}."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            functions = found.setdefault(node.name, {})
            only_typed = [part.body for part in node.body if isinstance(part, ast.If)]
            for item in itertools.chain(node.body, *only_typed):
                if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    functions.setdefault(item.name, []).append(item)
    return found


def source_of(owner):
    """The file that has the types of a class: the stub for what is compiled."""
    if owner.__module__.rpartition(".")[2] == "_core":
        return PACKAGE / "_core.pyi"
    return Path(inspect.getfile(owner))


def is_overload(definition):
    return any(getattr(mark, "id", "") == "overload" for mark in definition.decorator_list)


def definitions_of(cls, name):
    """All definitions of a method, from the class that has it: several if a stub overloads it.

    Of a method that a source overloads, it is the one that is run.
    """
    for owner in cls.__mro__:
        if name in vars(owner):
            found = definitions(source_of(owner)).get(owner.__name__, {}).get(name)
            if found:
                return [item for item in found if not is_overload(item)] or found
    raise LookupError(f"neither stub nor source has {cls.__name__}.{name}")


def parameters(arguments):
    """Parameters as they are written, without self, cls and what is private."""
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    texts = []
    for place, (argument, default) in enumerate(zip(plain, defaults, strict=True)):
        if place or argument.arg not in ("self", "cls"):
            texts.append(parameter(argument, default))
        if place + 1 == len(arguments.posonlyargs) and texts:
            texts.append("/")
    if arguments.vararg:
        texts.append("*" + parameter(arguments.vararg, None))
    elif any(not argument.arg.startswith("_") for argument in arguments.kwonlyargs):
        texts.append("*")
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if not argument.arg.startswith("_"):
            texts.append(parameter(argument, default))
    if arguments.kwarg:
        texts.append("**" + parameter(arguments.kwarg, None))
    return texts


def parameter(argument, default):
    text = argument.arg
    if argument.annotation:
        text += ": " + ast.unparse(argument.annotation)
    if default is not None:
        written = default_text(default)
        text += (" = " if argument.annotation else "=") + written
    return text


def default_text(default):
    """A default as a caller would write it: permissions octal, constants by name if public, else by
    value."""
    written = ast.unparse(default)
    if re.fullmatch(r"[A-Z_]+", written) and written not in shmrhash.__all__:
        values = {getattr(sys.modules[module], written, None) for module in MODULES} - {None}
        plain = [value for value in values if isinstance(value, (int, float, str))]
        return repr(plain[0]) if len(plain) == 1 else "..."
    if isinstance(default, ast.Constant) and default.value == 0o600:
        return "0o600"
    return written


def signature(name, function, cls=None):
    """One definition as a line, or as several if it is long."""
    texts = parameters(function.args)
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    if cls:
        returns = re.sub(r"\b(_D|Self)\b", cls.__name__, returns)
    returns = returns.replace("_core.", "")
    if isinstance(function, ast.AsyncFunctionDef):
        name = f"await {name}"
    line = f"{name}({', '.join(texts)}){returns}"
    if len(line) <= 88:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in texts) + f"){returns}"


# ---- docstrings ----


def markdown(docstring, arguments=()):
    """A docstring as Markdown: indented blocks are code, what explains arguments is a list."""
    parts = []
    for paragraph in re.split(r"\n[ ]*\n", docstring.strip("\n")):
        lines = paragraph.splitlines()
        if lines[0].startswith(("    ", ">>> ")):
            code = "\n".join(line.removeprefix("    ") for line in lines)
            parts.append(f"```python\n{code}\n```")
        else:
            text = " ".join(line.strip() for line in lines)
            items = explained(text, arguments)
            parts.append("\n".join(f"- {item}" for item in items) if items else prose(text))
    return "\n\n".join(parts) + "\n"


def explained(text, arguments):
    """The items of a paragraph such as "key: ... value, flags: ...", or none if it is not one."""
    if not arguments:
        return []
    name = "(?:" + "|".join(map(re.escape, arguments)) + ")"
    item = re.compile(rf"({name}(?:(?:, | and ){name})*): ")
    if not item.match(text):
        return []
    starts = [match.start() for match in item.finditer(text)]
    starts = [place for place in starts if place == 0 or text[place - 2 : place] in (". ", "; ")]
    found = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        names, _, said = text[start:end].strip().partition(": ")
        found.append(re.sub(r"\w+", lambda word: code_of(word[0]), names) + ": " + prose(said))
    return found


def code_of(word):
    return word if word == "and" else f"`{word}`"


def names_of(function):
    arguments = function.args
    every = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
    return sorted({argument.arg for argument in every} - {"self", "cls"}, key=len, reverse=True)


def prose(text):
    """One paragraph: names of exceptions become links, and so do promises."""
    pieces = re.split(r"(``.*?``)", text)
    for place in range(0, len(pieces), 2):
        piece = re.sub(r"([*<\\])", r"\\\1", pieces[place])
        piece = re.sub(
            r"\b([A-Z][A-Za-z]+)\b",
            lambda match: (
                f"[{match[1]}](errors.md#{match[1].lower()})" if match[1] in ERRORS else match[1]
            ),
            piece,
        )
        piece = re.sub(r"\(([A-Z]\d)\)", r"([\1](../explanation/index.md#promises))", piece)
        piece = re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", piece)
        if place == 0:
            piece = LEAD.sub(r"**\1**", piece)
        pieces[place] = piece
    return "".join(pieces).replace("``", "`")


# ---- what the pages ask for ----


def public_members(cls):
    owners = [owner for owner in cls.__mro__ if owner is not object]
    return {name for owner in owners for name in vars(owner) if not name.startswith("_")}


def members(class_name, names):
    """The methods and properties of these names, each with a heading."""
    cls = getattr(shmrhash, class_name)
    parts = []
    for name in names:
        thing = inspect.getattr_static(cls, name)
        text = inspect.getdoc(getattr(cls, name))
        if not text:
            raise LookupError(f"{class_name}.{name} has no docstring")
        if inspect.isroutine(thing) or isinstance(thing, (classmethod, staticmethod)):
            items = definitions_of(cls, name)
            written = "\n".join(signature(name, item, cls) for item in items)
            parts.append(f"### {name}() {{ #{class_name}.{name} }}\n\n```python\n{written}\n```\n")
            arguments = {argument for item in items for argument in names_of(item)}
        else:
            arguments = ()
            parts.append(f"### {name} {{ #{class_name}.{name} }}\n")
        parts.append(markdown(text, sorted(arguments, key=len, reverse=True)))
    return "\n".join(parts)


def constructor(class_name):
    """How an object is made, and the docstring of its class."""
    cls = getattr(shmrhash, class_name)
    parts = [markdown(inspect.cleandoc(cls.__doc__))]
    if "__init__" in vars(cls) and cls is not shmrhash.RHashMap:  # that is made by create()
        (definition,) = definitions_of(cls, "__init__")
        written = signature(class_name, definition).partition(" -> ")[0]
        parts.append(f"```python\n{written}\n```\n")
        if text := ast.get_docstring(definition):
            parts.append(markdown(text, names_of(definition)))
    return "\n".join(parts)


def function(name):
    thing = getattr(shmrhash, name)
    for node in ast.parse(Path(inspect.getfile(thing)).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            written = signature(name, node)
            text = markdown(inspect.getdoc(thing), names_of(node))
            return f"```python\n{written}\n```\n\n{text}"
    raise LookupError(f"no source of {name}()")


def errors():
    """Every exception: what it also is, its errno, and what it says."""
    parts = []
    for name, error in sorted(ERRORS.items(), key=lambda item: (len(item[1].__mro__), item[0])):
        bases = []
        for base in error.__bases__:
            link = f"[{base.__name__}](#{base.__name__.lower()})"
            bases.append(link if base in ERRORS.values() else f"`{base.__name__}`")
        parts.append(
            f"### {name} {{ #{name.lower()} }}\n\nIs also: {', '.join(bases)}.\n\n"
            + markdown(inspect.getdoc(error))
        )
    return "\n".join(parts)


def command_line():
    """The help of shmrhash, and of each of its commands."""
    (overview,) = helps([])
    names = re.findall(r"^  (\w+) {2,}[A-Z]", overview.partition("Commands of")[2], re.MULTILINE)
    if len(names) < 20:
        raise LookupError("shmrhash lists its commands in another way")
    names.remove("help")
    parts = [f"```text\n{overview}\n```\n"]
    for name, text in zip(names, helps(*([name] for name in names)), strict=True):
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


# All commands in one process, which takes as long as one of them.
ASK = """
import json, sys
from shmrhash import cli
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = [*words, "--help"]
    if cli.main():
        sys.exit(f"no help of {words}")
    print(end="\\f", flush=True)
"""


def helps(*commands):
    """The help texts of some commands, each a list of words."""
    settings = os.environ | {"COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(commands)],
        cwd=Path(__file__).parent,  # not the root, where shmrhash/ is what is not built
        env=settings,
        check=True,
        capture_output=True,
        text=True,
    )
    return [text.strip("\n") for text in done.stdout.split("\f")[:-1]]


def expand(text):
    """A page with what its lines in double braces ask for."""
    listed = {}

    def made(match):
        what, *words = match[1].split()
        if what == "members":
            listed.setdefault(words[0], []).extend(words[1:])
            return members(words[0], words[1:])
        if what == "as":  # members that another page explains
            listed.setdefault(words[0], []).extend(words[1:])
            return ""
        return {
            "constructor": constructor,
            "function": function,
            "errors": errors,
            "command-line": command_line,
        }[what](*words)

    expanded = re.sub(r"^\{\{ (.+?) \}\}$", made, text, flags=re.MULTILINE | re.DOTALL)
    for class_name, names in listed.items():
        if sorted(names) != sorted(public_members(getattr(shmrhash, class_name))):
            wrong = public_members(getattr(shmrhash, class_name)) ^ set(names)
            raise LookupError(f"the page of {class_name} lacks, has twice or invents: {wrong}")
    return expanded
