"""A seccomp filter in this process that refuses system calls, as a sandbox or an older kernel
does.

A filter cannot be removed, so only children install one.
"""

import ctypes
import errno
import os
import struct

# Call numbers of x86-64, and of machines whose Linux port is younger.
NUMBERS = {
    "x86_64": {
        "madvise": 28, "fcntl": 72, "munlock": 150, "exit_group": 231, "fallocate": 285,
        "membarrier": 324,
    },
    "aarch64": {
        "madvise": 233, "fcntl": 25, "munlock": 229, "exit_group": 94, "fallocate": 47,
        "membarrier": 283,
    },
}  # fmt: skip
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

# Numbers that Python's modules do not name, or not in every version.
MADV_REMOVE, MADV_DONTFORK, MADV_DONTDUMP = 9, 10, 16
MADV_WIPEONFORK, MADV_POPULATE_WRITE = 18, 23
F_OFD_GETLK, F_OFD_SETLK = 36, 37
PUNCH_HOLE = 3  # with FALLOC_FL_KEEP_SIZE
PLACES = {"madvise": 2, "fcntl": 1, "fallocate": 1}  # the argument that is compared with `asked`


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def refuse(call, asked=None, number=errno.EINVAL):
    """From now on refuse this call with the errno number; with `asked`, only if its argument is
    that one."""
    rules = [(LOAD, 0, 0, 0), (JUMP_EQUAL, 0, 1 if asked is None else 3, number_of(call))]
    if asked is not None:  # compare the low half of the argument
        rules += [(LOAD, 0, 0, 16 + 8 * PLACES[call]), (JUMP_EQUAL, 0, 1, asked)]
    install([*rules, (RETURN, 0, 0, ERRNO | number), (RETURN, 0, 0, ALLOW)])


def die_of_any_call():
    """From now on every system call but that of os._exit() kills this process with SIGSYS."""
    last = number_of("exit_group")
    install(
        [(LOAD, 0, 0, 0), (JUMP_EQUAL, 1, 0, last), (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW)]
    )


def number_of(call):
    machine = os.uname().machine
    assert machine in NUMBERS, "add the machine's numbers"
    return NUMBERS[machine][call]


def install(rules):
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *rule) for rule in rules))
    program = Program(len(rules), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
