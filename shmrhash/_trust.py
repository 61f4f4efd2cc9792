"""The users whose maps a process uses: its own, root, and one other user that it names.

A user who may write to a map decides what its readers get, including pickles, and may truncate the
file while they read. So root, too, uses another user's map only if told to. To inspect such a map
it reads the file, or starts a child process.
"""

import contextlib
import os
import pwd


def is_trusted(user: int, owner: int | None) -> bool:
    """Whether this process uses maps that belong to user. owner: the user it names, or None."""
    return user in (0, os.geteuid(), owner)


def user_name(user: int) -> str:
    """The name of a user, or the number if the system has no name for it."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return str(user)


def user_text(user: int) -> str:
    """A user in messages: the number, and the name if there is one."""
    name = user_name(user)
    return name if name == str(user) else f"{user} ({name})"


def stranger_message(path: str, user: int) -> str:
    """The message that the file of an untrusted user is not used, and the remedy."""
    own = os.geteuid()
    who = "root" if own == 0 else f"user {user_text(own)} or root"
    return (
        f"{path} belongs to user {user_text(user)}, not to {who}; pass owner={user} to trust that "
        f"user"
    )
