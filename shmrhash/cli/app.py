"""The group of verbs: prefixes, global options, help, and what an error ends in."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

import shmrhash
from shmrhash.cli import completion, jsontext
from shmrhash.cli.screen import printable
from shmrhash.cli.session import (
    Session,
    Verb,
    json_options,
    message_of,
    pass_session,
    status_of,
    user_id,
)
from shmrhash.cli.words import STATUS_NO, STATUS_USAGE, Failure

STATUS_INTERRUPTED = 130
STATUS_PIPE = 141

BPFTOOL = "verbs of bpftool"
VERBS = {
    BPFTOOL: {
        "show": "commands.show",
        "list": "commands.show",
        "help": "app",
        "dump": "commands.show",
        "update": "commands.change",
        "lookup": "commands.show",
        "getnext": "commands.show",
        "delete": "commands.change",
        "create": "commands.change",
        "freeze": "commands.change",
    },
    "see": {
        "ls": "commands.ls",
        "info": "commands.ls",
        "top": "commands.watch",
        "watch": "commands.watch",
        "stat": "commands.stat",
        "metrics": "commands.metrics",
    },
    "mend": {
        "check": "commands.check",
        "repair": "commands.check",
        "gc": "commands.check",
        "unlink": "commands.check",
        "doctor": "commands.doctor",
    },
    "move and measure": {
        "export": "commands.transfer",
        "import": "commands.transfer",
        "bench": "commands.bench",
        "completion": "app",
    },
}
MODULE_OF = {verb: module for section in VERBS.values() for verb, module in section.items()}

EPILOG = """\b
MAP is NAME, 'name NAME', 'pinned FILE' or 'id INODE'. DATA is bytes as bpftool takes them
(1 0 0x1f, hex 01 00 1f), or one word with --str, --u64 or --struct; for a SharedDict what its
types are: a text, a number. Pickles are not read unless --unpickle is said.

\b
Examples:
  shmrhash ls                                   all maps, who uses them, how they are
  shmrhash dump hits --str --value-u64          keys are text, values are counters
  shmrhash update hits key alice value 7 --str --value-u64
  shmrhash lookup sessions key alice            a SharedDict knows its types
  shmrhash lookup hits key hex 61 6c 69 63 65 00 00 00
  shmrhash -j show | jq '.[] | .name'
  shmrhash check hits && echo sound
  shmrhash top                                  what happens now

\b
Exit status:
  0  done                               5  damaged, of another version, or no map
  1  the answer is no: no such key,     6  no room: map full, /dev/shm full
     exists already, something found    7  busy: a lock was not released in time
  2  wrong arguments                    8  a Python package is missing (says which)
  3  no such map                        9  another error of the system
  4  not permitted                    130  interrupted; 141 the reader of a pipe went away

\b
Verbs and keywords may be shortened: 'shmrhash d hits' dumps, as with bpftool.
Colours are for terminals; NO_COLOR turns them off. --help behind a verb has its examples."""


class Verbs(click.Group):
    """Verbs that are imported when they are wanted, and may be shortened."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = verb_of(cmd_name)
        if verb is None:
            return None
        module = importlib.import_module(f"shmrhash.cli.{MODULE_OF[verb]}")
        command = getattr(module, f"{verb}_verb")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        words = args[1:] if args[0] == "map" and len(args) > 1 else args
        command = self.get_command(ctx, words[0])
        if command is None:
            near = difflib.get_close_matches(words[0], MODULE_OF, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise Failure(f"what is {words[0]!r}?{hint} 'shmrhash help' lists the verbs.")
        return command.name, command, words[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in VERBS.items():
            rows = []
            for verb in section:
                command = self.get_command(ctx, verb)
                assert command is not None
                rows.append((verb, command.get_short_help_str(70)))
            with formatter.section(title.capitalize()):
                formatter.write_dl(rows)


def verb_of(word: str) -> str | None:
    """The verb that word is, or begins: bpftool's come first, in its order; ours must be clear."""
    if word in MODULE_OF or not word:
        return word or None
    begun = [verb for verb in MODULE_OF if verb.startswith(word)]
    ours = [verb for verb in begun if verb not in VERBS[BPFTOOL]]
    if len(ours) > 1 and len(ours) == len(begun):
        raise Failure(f"{word!r} may be {' or '.join(ours)}")
    return begun[0] if begun else None


@click.group(cls=Verbs, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shmrhash.__version__, "-V", "--version", message="%(version)s")
@click.option("--dir", "directory", metavar="DIR", help="Where segments are, if not in /dev/shm.")
@click.option("--owner", metavar="USER", help="Trust the maps of this user too.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 1e9),
    default=5.0,
    metavar="SECONDS",
    help="How long to wait for a lock whose owner is alive (5).",
)
@pass_session
def verbs(session: Session, directory: str | None, owner: str | None, timeout: float) -> None:
    """See and mend hash maps in shared memory; the verbs of bpftool map, and more."""
    if directory:
        os.environ["SHMRHASH_DIR"] = os.path.abspath(directory)
    session.timeout = timeout
    session.owner = user_id(owner) if owner else None


verbs.params += json_options()


@click.command("help", cls=Verb, short_help="This text, or that of a verb.")
@click.argument("verb", required=False)
@pass_session
@click.pass_context
def help_verb(context: click.Context, session: Session, verb: str | None) -> None:
    """What the verbs are, or how to use one: 'shmrhash help dump'."""
    if session.json:
        session.emit(None)
        return
    assert context.parent is not None
    command = verbs.get_command(context, verb) if verb else verbs
    if command is None:
        raise Failure(f"what is {verb!r}?")
    if command is verbs:
        click.echo(verbs.get_help(context.parent))
    else:
        with click.Context(command, info_name=command.name, parent=context.parent) as own:
            click.echo(command.get_help(own))


@click.command("completion", cls=Verb, short_help="Code that completes words in a shell.")
@click.argument("shell", type=click.Choice(list(completion.LINES)))
@pass_session
def completion_verb(session: Session, shell: str) -> None:
    """Print the code with which bash, zsh or fish completes verbs, maps and keywords.

    \b
    Examples:
      eval "$(shmrhash completion bash)"           in ~/.bashrc
      eval "$(shmrhash completion zsh)"            in ~/.zshrc
      shmrhash completion fish | source            in ~/.config/fish/config.fish
    """
    text = completion.script(shell, verbs)
    if session.json:
        session.emit(text)
    else:
        click.echo(text)


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit status. No exception of a user's making leaves it."""
    session = Session()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = verbs.main(
            list(arguments), prog_name="shmrhash", standalone_mode=False, obj=session
        )
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return STATUS_USAGE
    except click.ClickException as error:
        return _complain(session, error.format_message().replace("\n", " "), STATUS_USAGE)
    except Failure as error:
        return _complain(session, str(error), error.status)
    except (KeyboardInterrupt, click.Abort):
        return STATUS_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_PIPE
    except (shmrhash.Error, OSError) as error:
        return _complain(session, message_of(error), status_of(error))


def _complain(session: Session, message: str, status: int) -> int:
    """Tell the user what went wrong, in the way of bpftool."""
    try:
        if session.json:
            print(jsontext.dumps({"error": message}, session.pretty), flush=True)
        else:
            print(f"Error: {printable(message)}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_PIPE
    return status or STATUS_NO
