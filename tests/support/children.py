"""Forked children: a child runs a function, and the test gets its result or its error.

    assert in_child(shared_map.lookup, key) == value    # runs it, waits, and returns its result

    child = Child(work, shared_map)                     # runs beside the test
    ...
    assert child.result() == 3

    def store(parent):                                  # says how far it is, and waits for the test
        shared_map[key] = value
        parent.say("stored")
        parent.wait()

    with Partner(store) as child:                       # the end of the block kills it
        assert child.hear() == "stored"
        child.tell()

A child leaves by os._exit(), so that nothing of the test runner's is cleaned up twice. It dies with
its parent's thread. What the function raises fails the test in result() and in hear(), with the
child's traceback; so does a child that is stuck.

workers.py is for processes that start together, stepping.py for one that is stopped at an
instruction.
"""

import ctypes
import os
import signal
import time
import traceback
from multiprocessing import Pipe

FAILED_EXIT = 3  # the exit code of a child whose function raised
TIMEOUT_S = 300.0  # far more than any child needs on a busy machine
POLL_S = 0.02  # no end of file comes if the child's children have the pipe
PR_SET_PDEATHSIG = 1


class ChildFailed(AssertionError):
    """The function raised in the child, or the child died or was stuck."""


class Child:
    """A forked process that calls function(*arguments) and ends."""

    def __init__(self, function, *arguments):
        self.label = f"{getattr(function, '__name__', function)} in a child"
        self.exitcode = None  # or minus the signal; None until the child is reaped
        self._outcome = None
        self._said = []
        self._connection, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(theirs, function, arguments)
        theirs.close()

    def _live(self, connection, function, arguments):
        """Run the child; it never returns from here."""
        code = FAILED_EXIT
        try:
            die_with_parent()
            self._connection.close()
            pipe = os.fstat(connection.fileno())
            try:
                outcome = "result", self._call(connection, function, arguments)
                code = 0
            except BaseException:
                outcome = "error", traceback.format_exc()
            code = send_outcome(connection, pipe, outcome, code)
        finally:
            os._exit(code)

    def _call(self, _connection, function, arguments):
        return function(*arguments)

    def result(self):
        """Wait for the child's end; return what the function returned, and raise if it failed.

        A function that closed the child's end of the pipe and succeeded returns None to the
        test.
        """
        self.join()
        kind, value = self._outcome or ("nothing", None)
        if kind == "error":
            raise ChildFailed(f"{self.label}:\n{value}")
        if self.exitcode != 0:
            raise ChildFailed(f"{self.label}: {describe_exit(self.exitcode)}")
        return value

    def join(self):
        """Wait for the child's end; return the exit code, or minus the signal."""
        while self.exitcode is None and self._outcome is None:
            if not self._receive():
                break
        if self.exitcode is None:
            self._ended(os.waitpid(self.pid, 0)[1])
        return self.exitcode

    def kill(self):
        """Kill the child with SIGKILL wherever it is, unless it has ended; return join()."""
        if self.exitcode is None:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(os.waitpid(self.pid, 0)[1])
        return self.exitcode

    def has_ended(self):
        """Return whether the child has ended, without waiting."""
        if self.exitcode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._ended(status)
        return self.exitcode is not None

    def _receive(self):
        """Wait for one message; return False if no more can come."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not self._connection.poll(POLL_S):
            if self.has_ended():
                return False
            if time.monotonic() > deadline_s:
                os.kill(self.pid, signal.SIGABRT)  # faulthandler writes where it is to stderr
                self.kill()
                raise ChildFailed(f"{self.label}: stuck; its place is on stderr")
        return self._take()

    def _take(self):
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            return False
        if kind == "said":
            self._said.append(value)
        else:
            self._outcome = kind, value
        return True

    def _ended(self, status):
        self.exitcode = os.waitstatus_to_exitcode(status)
        while self._connection.poll() and self._take():
            pass
        self._connection.close()

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        if self.kill() == FAILED_EXIT and failure is None:
            self.result()


class Partner(Child):
    """A child with which the test exchanges messages: it calls function(parent, *arguments), and
    parent is a Parent."""

    def _call(self, connection, function, arguments):
        return function(Parent(connection), *arguments)

    def hear(self):
        """Wait for the next message that the child says, and return it."""
        while not self._said:
            if self._outcome is not None or not self._receive():
                self.result()
                raise ChildFailed(f"{self.label}: ended, and had nothing to say")
        return self._said.pop(0)

    def rest(self):
        """Wait for the child's end; return all messages that were not heard before."""
        self.join()
        return self._said

    def tell(self, message=None):
        """Send the message that the child's parent.wait() returns."""
        self._connection.send(message)


class Parent:
    """The test, as its child sees it."""

    def __init__(self, connection):
        self._connection = connection

    def say(self, message=None):
        self._connection.send(("said", message))

    def wait(self):
        """Wait for the next tell(), and return its message."""
        return self._connection.recv()

    def has_called(self):
        """Return whether there is a message for wait()."""
        return self._connection.poll()


def in_child(function, *arguments):
    """Call the function in a child; return its result."""
    return Child(function, *arguments).result()


def stays(function, *arguments):
    """Return a child that has called the function, and stays until it is killed."""

    def stay(parent):
        kept = function(*arguments)
        parent.say("ready")
        while True:
            signal.pause()
        return kept

    child = Partner(stay)
    child.hear()
    return child


def kill(*children):
    """Kill these children, which must be alive; all are killed before the first is reaped."""
    for child in children:
        assert child.exitcode is None
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        if child.kill() != -signal.SIGKILL:
            child.result()  # raises what the function raised
            raise ChildFailed(f"{child.label}: ended before it was killed")


def die_with_parent():
    """Let the kernel kill this process when the thread that forked it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def send_outcome(connection, pipe, outcome, code):
    """Send the outcome, unless the function closed the descriptor; return the child's exit code."""
    try:
        if not os.path.samestat(pipe, os.fstat(connection.fileno())):
            return code  # the number is now that of another file
        connection.send(outcome)
    except OSError:
        return code
    except BaseException:  # a result that cannot be pickled
        connection.send(("error", traceback.format_exc()))
        return FAILED_EXIT
    return code


def describe_exit(exitcode):
    if exitcode < 0:
        return f"killed by {signal.Signals(-exitcode).name}"
    return f"exit code {exitcode}"
