"""Whose maps a process uses: its own user's, root's, and those of one user that it names.

Who may write to a map decides what its readers get, pickles among it, and may truncate the file
under their feet. So root, too, uses a stranger's map only if it is told to: to look at one it reads
the file, or sends a child process.
"""

import contextlib
import os
import pwd


def is_trusted(user: int, owner: int | None) -> bool:
    """Whether this process uses maps that belong to user. owner: whom it names, or None."""
    return user in (0, os.geteuid(), owner)


def user_name(user: int) -> str:
    """The name of a user, or the number of one that has none here."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return str(user)


def user_text(user: int) -> str:
    """A user as messages name one: the number, and the name if there is one."""
    name = user_name(user)
    return name if name == str(user) else f"{user} ({name})"


def stranger_message(path: str, user: int) -> str:
    """Why the file of an untrusted user is not used, and what to do."""
    own = os.geteuid()
    who = "root" if own == 0 else f"user {user_text(own)} or root"
    return (
        f"{path} belongs to user {user_text(user)}, not to {who}; pass owner={user} to trust that "
        f"user"
    )
