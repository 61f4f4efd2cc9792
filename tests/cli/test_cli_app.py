"""Every command: its name, options, help, completion; pipes; missing Python packages."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from support.commandline import FOLDER, run, say

import shmrhash
from shmrhash.cli import app
from shmrhash.cli.errors import Failure


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("s", "show"),
        ("l", "list"),
        ("ls", "ls"),
        ("d", "dump"),
        ("de", "delete"),
        ("u", "update"),
        ("unli", "unlink"),
        ("g", "getnext"),
        ("gc", "gc"),
        ("f", "freeze"),
        ("c", "create"),
        ("ch", "check"),
        ("st", "stat"),
        ("to", "top"),
        ("tr", "trace"),
        ("x", None),
        ("", None),
    ],
)
def test_commands_may_be_shortened(word, command):
    """A command may be shortened; if a prefix fits several commands, bpftool's commands come first,
    in its order."""
    assert command == app.full_name(word)


def test_an_ambiguous_shortened_command_is_refused():
    with pytest.raises(Failure, match="info or import"):
        app.full_name("i")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("frobnicate", "no command 'frobnicate'"),
        ("loookup hits", "Did you mean 'lookup'?"),
        ("i hits", "'i' is ambiguous: it can be info or import"),
        ("lookup", "expected a map"),
        ("show id x", "can't parse x as id"),
        ("lookup hits key 1 2", "key expected 8 bytes got 2"),
        ("lookup hits key 1 value 2", "key expected 8 bytes got 1"),
        ("update hits key k1 --str", "did not find value"),
        ("update hits key k1 key k2 value 1 --str", "duplicate key"),
        ("lookup hits key k1 --str --u64", "keys cannot be both str and u64"),
        ("lookup hits key k1 --struct <Y", "not a format of Python's struct"),
        ("lookup hits key k1 --struct ä", "not a format of Python's struct"),
        ("lookup hits key k1 --struct 99999999999999999s", "key has 8 bytes"),
        ("lookup hits key k1 --struct", "requires an argument"),
        ("dump hits --no-such-option", "unexpected argument: '--no-such-option'"),
        ("ls --no-such-option", "No such option"),
        ("create jobs key 8 value 8", "max entries not specified"),
        ("create jobs key 8 key 8 value 8 entries 1", "key size already specified"),
        ("create jobs key x value 8 entries 1", "can't parse x as key size"),
        ("create jobs key 8 value 8 entries 1 type array", "type must be rhash"),
        ("create jobs key 8 value 8 entries 1 name other", "a map has the name of its file"),
        ("create jobs key 8 value 8 entries 1 flags 0", "map create failed: Invalid argument"),
        ("create jobs key 8 value 8 entries 1 mode 9", "can't parse 0o9 as mode"),
        ("create jobs key 8 value 8 entries 1 colour red", "unknown arg colour"),
        ("create .. key 8 value 8 entries 1", "a map's name must have"),
        ("--owner nobody-of-this-name ls", "no user"),
        ("--timeout -1 ls", "not in the range"),
    ],
)
@pytest.mark.thorough
def test_mistake_is_explained(hits, words, message):
    """A mistake on the command line gives exit status 2 and a message that says what is wrong,
    without a traceback."""
    result = say(words, status=2)

    assert message in result.err
    assert result.err.startswith("Error: ")
    assert not result.out


def test_negative_numbers_are_not_taken_for_options(make):
    make("points", value_size=16).close()
    run("update", "points", "key", -7, "value", -1.5, 2, "--struct", "<q", "--value-struct", "<dd")

    found = run("-j", "lookup", "points", "key", -7, "--struct", "<q", "--value-struct", "<dd")
    assert found.json["formatted"] == {"key": -7, "value": [-1.5, 2.0]}


def test_layout_options_may_stand_before_or_after_the_command(hits):
    """The options -j and -p may stand before or after the command; -p prints JSON, too."""
    wanted = run("-p", "dump", hits).out

    assert wanted.startswith("[{\n        ")
    for words in (["dump", hits, "-p"], ["dump", "-jp", hits], ["-j", "dump", hits, "--pretty"]):
        assert wanted == run(*words).out


def test_module_runs_as_the_command(hits):
    module = [sys.executable, "-m", "shmrhash"]

    assert run("show").out == run("show", command=module).out
    assert shmrhash.__version__ == run("--version", command=module).out.strip()


def test_command_imports_only_the_modules_it_needs(hits):
    """A command imports neither other commands nor optional packages, whose import takes longer
    than a command."""
    program = "import sys; from shmrhash.cli import app; app.run(['ls']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())

    assert "shmrhash.cli.commands.ls" in imported
    commands = {name for name in imported if name.startswith("shmrhash.cli.commands.")}
    assert commands == {"shmrhash.cli.commands.ls"}
    slow = {"numpy", "msgspec", "rich", "matplotlib", "prometheus_client", "shmrhash.cli.files"}
    assert not imported & slow


def test_closing_the_pipe_that_reads_the_output_is_no_error(make):
    """`shmrhash dump | head` prints no traceback and no message."""
    make(entries=1000, max_entries=1000).close()
    script = f'"{sys.executable}" -m shmrhash dump hits | head -1'

    done = subprocess.run(
        script, shell=True, cwd=FOLDER, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("key: ")
    assert done.stderr == ""


def test_help_lists_every_command():
    """The commands help and --help print the same list of all commands."""
    text = run("--help").out
    assert "Exit status:" in text
    assert text == run("help").out
    for command in app.MODULE_OF:
        assert re.search(rf"^  {command} ", text, re.MULTILINE), command
    for command in ("dump", "top"):
        assert run("help", command).out == run(command, "--help").out
    assert run("-j", "help").json is None
    assert "Usage" in run(status=2).err
    assert "no command 'nothing'" in run("help", "nothing", status=2).err


@pytest.mark.parametrize("command", sorted(set(app.MODULE_OF) - {"help"}))
def test_command_has_help_with_examples(command, capsys):
    assert app.run([command, "--help"]) == 0
    text = capsys.readouterr().out

    assert "Examples:" in text
    assert re.search(rf"shmrhash (-\w+ )?{command}\b", text)
    assert max(map(len, text.splitlines())) <= 100


def completions(*words):
    """Return the words that a shell would offer for the last one."""
    asked = ShellComplete(app.group, {}, "shmrhash", "_SHMRHASH_COMPLETE")
    return [item.value for item in asked.get_completions(list(words[:-1]), words[-1])]


def test_commands_maps_and_keywords_are_completed(make):
    """The shell completes commands, maps and keywords, and also the names of options."""
    make("jobs").close()
    make("hits").close()
    Path(os.environ["SHMRHASH_DIR"], "notes").write_text("no map")

    assert "dump" in completions("du")
    assert {"hits", "jobs", "name", "pinned", "id"} == set(completions("dump", ""))
    assert completions("dump", "j") == ["jobs"]
    assert completions("info", "name", "h") == ["hits"]
    assert completions("update", "hits", "n") == ["noexist"]
    assert "--value-u64" in completions("dump", "--value")
    asked = {"_SHMRHASH_COMPLETE": "bash_complete", "COMP_WORDS": "shmrhash dump j"}
    assert "jobs" in run(env=os.environ | asked | {"COMP_CWORD": "2"}).out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_code_for_a_shell(shell):
    text = run("completion", shell).out
    assert "_SHMRHASH_COMPLETE" in text
    assert run("-j", "completion", shell).json == text.removesuffix("\n")


def test_python_without_a_needed_package_says_how_to_install_it():
    """A command that lacks a package names the extra and the command that installs it, without a
    traceback; exit status 8."""
    for module, extra, words in (
        ("click", "cli", ["ls"]),
        ("rich", "cli", ["ls"]),
        ("prometheus_client", "metrics", ["metrics"]),
    ):
        script = (
            f"import sys; sys.modules['{module}'] = None; from shmrhash.cli import main; "
            f"sys.exit(main())"
        )
        result = run(*words, status=8, command=[sys.executable, "-c", script])
        assert f"pip install 'shmrhash[{extra}]'" in result.err
