"""Shell completion: names of maps, keywords of bpftool's syntax, and the script for a shell."""

from __future__ import annotations

import os

import click

from shmrhash import _core, _segment
from shmrhash.cli.words import MAP_KEYWORDS

KEYWORDS = {
    "lookup": ["key"],
    "getnext": ["key"],
    "delete": ["key"],
    "update": ["key", "value", "any", "exist", "noexist"],
    "watch": ["key"],
    "create": ["type", "key", "value", "entries", "name", "flags", "extra", "mode"],
}
LINES = {
    "bash": 'eval "$(shmrhash completion bash)"    # in ~/.bashrc',
    "zsh": 'eval "$(shmrhash completion zsh)"    # in ~/.zshrc',
    "fish": "shmrhash completion fish | source    # in ~/.config/fish/config.fish",
}


def map_names() -> list[str]:
    """The maps of this machine, by the first bytes of their files."""
    names = []
    try:
        entries = sorted(os.scandir(_segment.directory()), key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in entries:
        try:
            if entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb", buffering=0) as file:
                    if file.read(8) == _core.MAGIC_BYTES:
                        names.append(entry.name)
        except OSError:  # not ours to read, or gone by now
            continue
    return names


def complete_words(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """What may come next behind a verb."""
    words = list(context.params.get(parameter.name or "") or ())
    verb = context.info_name or ""
    if not words:
        choices = [*map_names(), *MAP_KEYWORDS] if verb != "create" else []
    elif len(words) == 1 and words[0] == "name":
        choices = map_names()
    else:
        choices = [word for word in KEYWORDS.get(verb, []) if word not in words]
    return [word for word in choices if word.startswith(begun)]


def script(shell: str, group: click.Command) -> str:
    """The code that a shell evaluates to complete this command's words."""
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None
    return maker(group, {}, "shmrhash", "_SHMRHASH_COMPLETE").source()
