"""Adapters of bench_rivals.py: maps in shared memory for Python."""

import warnings
from pathlib import Path

from rivals import LeftOut, Rival, loop_add, loop_batch, loop_call, loop_mixed_calls, loop_store


class Subetha(Rival):
    name = "subetha-ipc HashMap"
    note = "fixed capacity (made for twice the entries), fixed sizes"
    module = "subetha"
    slots_per_entry = 2

    def create(self):
        from subetha import HashMap

        capacity = 1 << (self.max_entries * self.slots_per_entry - 1).bit_length()
        self.arguments = (self.place, capacity, self.key_size, self.value_size)
        return HashMap(*self.arguments)

    def special(self, subject):
        return {
            "get": loop_call(subject.get),
            "set": loop_store(subject.insert),
            "mixed": loop_mixed_calls(subject.get, subject.insert),
            "insert": loop_store(subject.insert),
            "delete": loop_call(subject.remove),
            "batch": loop_batch(subject.get_many),
        }

    def found(self, key):
        return self.subject.get(key)

    def in_child(self):
        from subetha import HashMap

        self.subject = HashMap.open(*self.arguments)

    def close(self):
        del self.subject
        self.remove_files()


class AtomicDict(Rival):
    name = "atomic-dict"
    note = "64-bit integers only, nothing can be deleted, shared by fork only"
    module = "atomic_dict"

    def create(self):
        from atomic_dict.core import AtomicDict

        if self.key_size != 8 or self.value_size != 8:
            raise LeftOut("64-bit integers only")
        return AtomicDict(self.max_entries)

    def key(self, key):
        return int.from_bytes(key, "little")

    value = key

    def special(self, subject):
        def get(keys, value):
            for key in keys:
                subject[key].load()

        def mixed(keys, value):
            for start in range(0, len(keys), 10):
                first, *others = keys[start : start + 10]
                subject[first] = value
                for key in others:
                    subject[key].load()

        add = loop_add(lambda key, amount: subject[key].add(amount))
        return {"get": get, "mixed": mixed, "in": None, "delete": None, "add": add}

    def found(self, key):
        return self.subject[key].load() or None  # a load of an absent key makes it, with value 0

    def kernel_bytes(self):
        return len(self.subject.mm)  # shared and without a name: in no process's RssAnon


class Ultra(Rival):
    name = "UltraDict"
    note = "each process has a dict and a log of changes; 200 MB buffer"
    module = "UltraDict"

    def create(self):
        UltraDict = __import__(self.module).UltraDict  # noqa: N806
        self.shm_name = Path(self.place).name
        return UltraDict(
            name=self.shm_name,
            create=True,
            auto_unlink=False,
            buffer_size=200_000_000,
            full_dump_size=200_000_000,
        )

    def in_child(self):
        UltraDict = __import__(self.module).UltraDict  # noqa: N806
        self.subject = UltraDict(name=self.shm_name, create=False, auto_unlink=False)

    def close(self):
        self.subject.unlink()
        self.subject.close()


class Ultra2(Ultra):
    name = "UltraDict 2"
    module = "UltraDict2"


class SharedMemoryDict(Rival):
    name = "shared-memory-dict"
    note = "the whole dict is pickled at each change; no lock unless asked for"
    module = "shared_memory_dict"

    def create(self):
        from shared_memory_dict import SharedMemoryDict

        if self.max_entries > 100_000:
            raise LeftOut("it pickles all entries at each change: hours to fill")
        size = 4096 + self.max_entries * (self.key_size + self.value_size + 64)
        return SharedMemoryDict(name=Path(self.place).name, size=size)

    def fill(self, keys, value):
        self.subject.update(dict.fromkeys(keys, value))

    def close(self):
        self.subject.shm.close()
        self.subject.shm.unlink()


class SharedHashMap(Rival):
    name = "shared-hashmap"
    note = "fixed capacity (made for twice the entries)"
    module = "shared_hashmap"
    slots_per_entry = 2

    def create(self):
        from shared_hashmap import SharedHashMap

        if self.max_entries > 100_000:
            raise LeftOut("opening it makes some 10 KB of Python objects for each bucket")
        self.shm_name = Path(self.place).name
        # A value is padded by a marker of its type.
        return SharedHashMap(
            self.shm_name,
            capacity=self.max_entries * self.slots_per_entry,
            max_key_size=self.key_size + 16,
            max_value_size=self.value_size + 16,
        )

    def in_child(self):
        from shared_hashmap import SharedHashMap

        self.subject = SharedHashMap(self.shm_name, create=False)

    def close(self):
        self.subject.close()
        self.subject.unlink()


class ZeroCopy(Rival):
    name = "zero-copy-ipc"
    module = "zero_copy_ipc"

    def create(self):
        from zero_copy_ipc import ZeroCopyDict

        self.shm_name = Path(self.place).name
        heap = max(1 << 24, self.max_entries * (self.key_size + self.value_size + 256))
        return ZeroCopyDict.create(self.shm_name, heap_size=heap, slot_count=self.max_entries * 2)

    def in_child(self):
        from zero_copy_ipc import ZeroCopyDict

        self.subject = ZeroCopyDict.attach(self.shm_name)

    def close(self):
        self.subject.close()
        self.remove_files()


class EasyGlobals(Rival):
    name = "easyglobals"
    note = "attributes; one process may write a name, others read it"
    module = "EasyGlobals"
    shared = False  # our loops write every key from every process

    def create(self):
        from EasyGlobals import Globals

        warnings.filterwarnings("ignore", message="EasyGlobals does not support")  # others fork
        room = (1 << 24) + self.max_entries * (self.value_size + 512)
        slots = self.max_entries * 2
        return Globals(Path(self.place).name, capacity=room, slot_count=slots)

    def key(self, key):
        return "k" + key.hex()

    def special(self, subject):
        def get(keys, value):
            for key in keys:
                getattr(subject, key)

        def put(keys, value):
            for key in keys:
                setattr(subject, key, value)

        def drop(keys, value):
            for key in keys:
                delattr(subject, key)

        def mixed(keys, value):
            for start in range(0, len(keys), 10):
                first, *others = keys[start : start + 10]
                setattr(subject, first, value)
                for key in others:
                    getattr(subject, key)

        return {"get": get, "set": put, "insert": put, "delete": drop, "mixed": mixed, "in": None}

    def found(self, key):
        return getattr(self.subject, key, None)

    def close(self):
        self.subject.close()
        place = Path(self.place)
        for path in place.parent.glob(f"fg_{place.name.replace('-', '_')}*"):
            path.unlink()  # which a forked child has left


MEMORY_RIVALS = [
    Subetha,
    AtomicDict,
    Ultra,
    Ultra2,
    SharedMemoryDict,
    SharedHashMap,
    ZeroCopy,
    EasyGlobals,
]
