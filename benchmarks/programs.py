"""Programs that run inside the kernel, for bench_kernel.py, assembled by hand: no clang, no libbpf.

    with LoopProgram(kernel_map, ["lookup"]) as program:
        program.run(turns=1000, passes=1000)    -> Ran(nanoseconds, done)

A program does what the benchmarks of the kernel series run at a system call: two nested bpf_loop()s
around one helper call, with the key in a global variable, of which each turn patches word 0. The
program takes the time itself, by bpf_ktime_get_ns() around both loops. It is a raw tracepoint
program, started with BPF_PROG_TEST_RUN, so it runs in the thread that starts it.

The verifier replaces bpf_loop() and the lookup of a hash map by direct code, as in the series.
"""

import ctypes
import itertools
import os
import struct
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from building import KEY_WORD_1
from support.kernel import bpf

PROG_LOAD, PROG_TEST_RUN = 5, 10
MAP_TYPE_ARRAY, PROG_TYPE_RAW_TRACEPOINT = 2, 17
MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, KTIME_GET_NS, LOOP = 1, 2, 3, 5, 181
LOOP_TURNS_MAX = 1 << 23  # the limit of one bpf_loop()

# The program's globals, one element of an array map. Offsets of 8-byte words, then the buffers.
TURNS, PASSES, NANOSECONDS, DONE, FIRST, STEP = range(0, 48, 8)
KEY_AT, KEY_BYTES, VALUE_BYTES = 64, 1024, 4096
VALUE_AT = KEY_AT + KEY_BYTES
GLOBALS_BYTES = VALUE_AT + VALUE_BYTES

UPDATE_FLAGS = {"update": 0, "insert": 1}
TASKS = ["nothing", "lookup", "update", "insert", "delete"]


class Ran(NamedTuple):
    nanoseconds: int
    done: int  # how many calls succeeded


# ---- assembler: one instruction is 8 bytes, a 64-bit constant is two of them ----


def instruction(code, dst=0, src=0, offset=0, immediate=0):
    return [struct.pack("=BBhi", code, dst | src << 4, offset, immediate)]


def move(dst, value):
    return instruction(0xB7, dst, immediate=value)


def copy(dst, src):
    return instruction(0xBF, dst, src)


def load(dst, base, offset):
    return instruction(0x79, dst, base, offset)


def store(base, offset, src):
    return instruction(0x7B, base, src, offset)


def constant(dst, kind, low, high=0):
    """kind 1: a map; 2: the address of a byte of an array map; 4: a function."""
    low = low - (1 << 32) if low >= 1 << 31 else low
    return instruction(0x18, dst, kind, immediate=low) + instruction(0, immediate=high)


def call(helper):
    return instruction(0x85, immediate=helper)


LEAVE = instruction(0x95)
ADD, MULTIPLY, SUBTRACT = 0x0F, 0x2F, 0x1F


def patch_key(globals_fd):
    """Set word 0 of the key to the turn's number (r1) times STEP plus FIRST; r6 = the globals."""
    return [
        *constant(6, 2, globals_fd),
        *load(2, 6, STEP),
        *instruction(MULTIPLY, 1, 2),
        *load(2, 6, FIRST),
        *instruction(ADD, 1, 2),
        *instruction(0x63, 6, 1, KEY_AT),  # four bytes
    ]


def turn_body(task, map_fd, globals_fd):
    """The inner loop's callback: calls a helper once, and counts the calls that succeeded."""
    code = patch_key(globals_fd)
    if task != "nothing":
        code += constant(1, 1, map_fd)
        code += copy(2, 6) + instruction(0x07, 2, immediate=KEY_AT)
    if task == "lookup":
        # As in the series: a missing key ends the loop, by returning 1.
        code += call(MAP_LOOKUP_ELEM) + instruction(0x15, 0, offset=2)  # NULL: skip two
        return code + move(0, 0) + LEAVE + move(0, 1) + LEAVE
    if task in UPDATE_FLAGS:
        code += copy(3, 6) + instruction(0x07, 3, immediate=VALUE_AT)
        code += move(4, UPDATE_FLAGS[task]) + call(MAP_UPDATE_ELEM)
    elif task == "delete":
        code += call(MAP_DELETE_ELEM)
    if task != "nothing":
        code += instruction(0x55, 0, offset=3)  # not 0, an error: skip three
        code += load(1, 6, DONE) + instruction(0x07, 1, immediate=1) + store(6, DONE, 1)
    return code + move(0, 0) + LEAVE


def call_loop(turns_at, function_at, here):
    """bpf_loop(globals[turns_at], function_at, NULL, 0); here: the place of this code."""
    return [
        *load(1, 6, turns_at),
        *constant(2, 4, function_at - (here + 1) - 1),
        *move(3, 0),
        *move(4, 0),
        *call(LOOP),
    ]


def functions(tasks, map_fd, globals_fd, starts):
    """The program's functions: main, one pass, one turn of each task; they begin at starts."""
    main = constant(6, 2, globals_fd) + call(KTIME_GET_NS) + copy(7, 0)
    main += call_loop(PASSES, starts[1], starts[0] + len(main))
    main += call(KTIME_GET_NS) + instruction(SUBTRACT, 0, 7) + store(6, NANOSECONDS, 0)
    main += move(0, 0) + LEAVE

    one_pass = constant(6, 2, globals_fd)
    for number, task in enumerate(tasks):
        one_pass += call_loop(TURNS, starts[2 + number], starts[1] + len(one_pass))
        if task == "lookup":  # bpf_loop() returns its turns; other tasks count themselves
            one_pass += load(1, 6, DONE) + instruction(ADD, 1, 0) + store(6, DONE, 1)
    one_pass += move(0, 0) + LEAVE
    return [main, one_pass, *(turn_body(task, map_fd, globals_fd) for task in tasks)]


def assemble(tasks, map_fd, globals_fd):
    """All instructions, and the starts of the functions, which follow from their lengths."""
    unplaced = functions(tasks, map_fd, globals_fd, [0] * (2 + len(tasks)))
    starts = [0, *itertools.accumulate(map(len, unplaced[:-1]))]
    placed = functions(tasks, map_fd, globals_fd, starts)
    return list(itertools.chain(*placed)), starts


def function_types(names):
    """BTF of `static int name(void)` for each name: a descriptor, the number of the first type."""
    texts = b"\0" + b"".join(name + b"\0" for name in [b"int", *names])

    def at(name):
        return texts.index(b"\0" + name + b"\0") + 1

    types = struct.pack("=4I", at(b"int"), 1 << 24, 4, 32)  # number 1
    types += struct.pack("=3I", 0, 13 << 24, 1)  # number 2: a prototype that returns int
    for name in names:
        types += struct.pack("=3I", at(name), 12 << 24, 2)
    header = struct.pack("=HBB5I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(texts))
    contents = bpf.buffer_of(header + types + texts)
    attr = bpf.attributes("2Q3I", bpf.address(contents), 0, len(contents), 0, 0)
    fd = bpf.bpf(bpf.BTF_LOAD, attr)
    if fd < 0:
        raise bpf.Refused("bpf(BPF_BTF_LOAD)", -fd)
    return fd, 3


def load_program(code, starts):
    """BPF_PROG_LOAD: a descriptor. If the verifier refuses, the error has the end of its log."""
    types_fd, first_type = function_types([b"function_%d" % n for n in range(len(starts))])
    try:
        instructions = bpf.buffer_of(b"".join(code))
        places = bpf.buffer_of(
            b"".join(struct.pack("=2I", at, first_type + n) for n, at in enumerate(starts))
        )
        licence = bpf.buffer_of(b"GPL\0")  # bpf_ktime_get_ns demands it
        log = ctypes.create_string_buffer(1 << 16)
        attr = bpf.attributes(
            "2I2Q2IQ2I16s4IQ2I",
            *(PROG_TYPE_RAW_TRACEPOINT, len(code), bpf.address(instructions)),
            *(bpf.address(licence), 1, len(log), bpf.address(log), 0, 0, b"shmrhash_bench"),
            *(0, 0, types_fd, 8, bpf.address(places), len(starts), 0),
        )
        fd = bpf.bpf(PROG_LOAD, attr)
        if fd < 0:
            words = log.value.decode(errors="replace")[-500:]
            raise bpf.Refused(f"bpf(BPF_PROG_LOAD): {words}", -fd)
        return fd
    finally:
        os.close(types_fd)


class LoopProgram:
    """Runs each task `turns` times, and all that `passes` times; in one thread at a time."""

    def __init__(self, kernel_map, tasks):
        attr = bpf.attributes("5I", MAP_TYPE_ARRAY, 4, GLOBALS_BYTES, 1, 0)
        self.globals_fd = bpf.bpf(bpf.MAP_CREATE, attr)
        if self.globals_fd < 0:
            raise bpf.Refused("bpf(BPF_MAP_CREATE) of an array", -self.globals_fd)
        self.fd = -1
        try:
            self.fd = load_program(*assemble(tasks, kernel_map.fd, self.globals_fd))
        except BaseException:
            self.close()
            raise
        self.variables = bpf.KernelMap(self.globals_fd, 4, GLOBALS_BYTES)

    def prepare(self, *, turns, passes, first=1, step=1):
        """Set the globals; return the attributes of BPF_PROG_TEST_RUN that start the program."""
        if turns > LOOP_TURNS_MAX or passes > LOOP_TURNS_MAX:
            raise ValueError("more turns than bpf_loop() takes")
        words = [(KEY_WORD_1 * word) & 0xFFFFFFFF for word in range(KEY_BYTES // 4)]
        contents = bytearray(GLOBALS_BYTES)
        struct.pack_into("=6Q", contents, 0, turns, passes, 0, 0, first, step)
        struct.pack_into(f"={len(words)}I", contents, KEY_AT, *words)
        said = self.variables.update(bytes(4), bytes(contents))
        if said.error:
            raise RuntimeError(f"the program's globals: {said.error}")
        return bpf.attributes("I", self.fd)

    def result(self):
        contents = self.variables.lookup(bytes(4)).result
        return Ran(*struct.unpack_from("=2Q", contents, NANOSECONDS))

    def run(self, **loops):
        """Prepare the program and start it once. Raises OSError."""
        started = bpf.bpf(PROG_TEST_RUN, self.prepare(**loops))
        if started < 0:
            raise OSError(-started, "bpf(BPF_PROG_TEST_RUN)")
        return self.result()

    def close(self):
        for fd in (self.fd, self.globals_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.globals_fd = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
