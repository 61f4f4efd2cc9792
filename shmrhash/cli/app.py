"""The group of commands: shortened names, global options, help, and the exit after an error."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

import shmrhash
from shmrhash.cli.errors import STATUS_NO, STATUS_USAGE, Failure, message_of, status_of
from shmrhash.cli.screen import json_text, printable
from shmrhash.cli.session import Command, Session, json_options, pass_session, user_id
from shmrhash.cli.words import completion_script

STATUS_INTERRUPTED = 130
STATUS_PIPE = 141

BPFTOOL = "commands of bpftool"
COMMANDS = {  # by section of the help: each command and its module
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
    "inspect": {
        "ls": "commands.ls",
        "info": "commands.ls",
        "top": "commands.top",
        "watch": "commands.watch",
        "wait": "commands.wait",
        "stat": "commands.stat",
        "metrics": "commands.metrics",
        "trace": "commands.trace",
        "simulate": "commands.trace",
        "locks": "commands.locks",
        "near": "commands.near",
    },
    "repair": {
        "check": "commands.check",
        "repair": "commands.check",
        "gc": "commands.check",
        "unlink": "commands.check",
        "unlock": "commands.locks",
        "doctor": "commands.doctor",
    },
    "move and measure": {
        "export": "commands.transfer",
        "import": "commands.transfer",
        "bench": "commands.bench",
        "completion": "app",
    },
}
SHELLS = ("bash", "zsh", "fish")
MODULE_OF = {name: module for section in COMMANDS.values() for name, module in section.items()}

EPILOG = """\b
MAP is NAME, 'name NAME', 'pinned FILE' or 'id INODE'. DATA is bytes in bpftool's notation
(1 0 0x1f, hex 01 00 1f), or with --str a text, with --u64 a number, with --struct its fields;
for a SharedDict it follows the declared types. Pickles are read only with --unpickle.

\b
Examples:
  shmrhash ls                                   all maps, their users and their health
  shmrhash dump hits --str --value-u64          keys are text, values are counters
  shmrhash update hits key alice value 7 --str --value-u64
  shmrhash lookup sessions key alice            a SharedDict knows its types
  shmrhash lookup hits key hex 61 6c 69 63 65 00 00 00
  shmrhash -j show | jq '.[] | .name'
  shmrhash check hits && echo sound
  shmrhash top                                  rates of all maps, live

\b
Exit status:
  0  done                               5  damaged, another version, or not a map
  1  the answer is no: no such key,     6  no room: the map or /dev/shm is full
     key exists, a problem was found    7  busy: a lock was not released in time
  2  wrong arguments                    8  a Python package is missing
  3  no such map                        9  another error of the system
  4  permission denied                130  interrupted; 141: the output pipe was closed

\b
Commands and keywords may be shortened, as in bpftool: 'shmrhash d hits' is 'shmrhash dump hits'.
Only a terminal gets colours; NO_COLOR turns them off. 'shmrhash COMMAND --help' has examples."""


class Commands(click.Group):
    """Commands that are imported when they are needed, and may be shortened."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULE_OF)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = full_name(cmd_name)
        if name is None:
            return None
        module = importlib.import_module(f"shmrhash.cli.{MODULE_OF[name]}")
        command = getattr(module, f"{name}_command")
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
            raise Failure(f"no command {words[0]!r}.{hint} 'shmrhash help' lists the commands.")
        return command.name, command, words[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in COMMANDS.items():
            rows = []
            for name in section:
                command = self.get_command(ctx, name)
                assert command is not None
                rows.append((name, command.get_short_help_str(70)))
            with formatter.section(title.capitalize()):
                formatter.write_dl(rows)


def full_name(word: str) -> str | None:
    """The command that word names or abbreviates: the first of bpftool's, else the only other."""
    if word in MODULE_OF or not word:
        return word or None
    begun = [name for name in MODULE_OF if name.startswith(word)]
    ours = [name for name in begun if name not in COMMANDS[BPFTOOL]]
    if len(ours) > 1 and len(ours) == len(begun):
        raise Failure(f"{word!r} is ambiguous: it can be {' or '.join(ours)}")
    return begun[0] if begun else None


@click.group(cls=Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shmrhash.__version__, "-V", "--version", message="%(version)s")
@click.option(
    "--dir", "directory", metavar="DIR", help="The directory of segments, instead of /dev/shm."
)
@click.option("--owner", metavar="USER", help="Also trust the maps of this user.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 1e9),
    default=5.0,
    metavar="SECONDS",
    help="How long to wait for a lock whose owner is alive (5).",
)
@pass_session
def group(session: Session, directory: str | None, owner: str | None, timeout: float) -> None:
    """Inspect and repair hash maps in shared memory: bpftool's commands, and more."""
    if directory:
        os.environ["SHMRHASH_DIR"] = os.path.abspath(directory)
    session.timeout = timeout
    session.owner = user_id(owner) if owner else None


group.params += json_options()


@click.command("help", cls=Command, short_help="This text, or the help of one command.")
@click.argument("name", metavar="[COMMAND]", required=False)
@pass_session
@click.pass_context
def help_command(context: click.Context, session: Session, name: str | None) -> None:
    """The list of commands, or the help of one: 'shmrhash help dump'."""
    if session.json:
        session.emit(None)
        return
    assert context.parent is not None
    command = group.get_command(context, name) if name else group
    if command is None:
        raise Failure(f"no command {name!r}")
    if command is group:
        click.echo(group.get_help(context.parent))
    else:
        with click.Context(command, info_name=command.name, parent=context.parent) as own:
            click.echo(command.get_help(own))


@click.command("completion", cls=Command, short_help="Completion of the command line, for a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@pass_session
def completion_command(session: Session, shell: str) -> None:
    """Print the code that makes bash, zsh or fish complete commands, maps and keywords.

    \b
    Examples:
      eval "$(shmrhash completion bash)"           in ~/.bashrc
      eval "$(shmrhash completion zsh)"            in ~/.zshrc
      shmrhash completion fish | source            in ~/.config/fish/config.fish
    """
    text = completion_script(shell, group)
    if session.json:
        session.emit(text)
    else:
        click.echo(text)


def run(arguments: Sequence[str]) -> int:
    """Run a command; return its exit status. Errors of users, library and system end here."""
    session = Session()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status = group.main(
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
    """Print an error as bpftool does."""
    try:
        if session.json:
            print(json_text({"error": message}, session.pretty), flush=True)
        else:
            print(f"Error: {printable(message)}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_PIPE
    return status or STATUS_NO
