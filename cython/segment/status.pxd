# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The outcomes of core functions. _core.pyx turns those that leave the core into exceptions.
#
# The first group is final: an operation ends with it. The second stays in write.pxd and wait.pxd:
# it says what has to happen, outside every lock, before the operation is tried again.

cdef enum Status:
    OK = 0
    ABSENT            # no element has this key (ENOENT)
    PRESENT           # an element has this key already (EEXIST)
    FULL              # max_entries elements are in the map (E2BIG)
    NO_MEMORY         # the shared-memory file system is full (ENOMEM)
    CORRUPT           # the segment holds something no operation of ours leaves (EUCLEAN)
    BUSY              # a lock is held by a live process: wait for Op.wait_word (EBUSY)
    NO_CONTEXT        # every operation context or process slot is taken (EUSERS)
    CLOSED            # this process has no mapping any more (EBADF)
    OUT_OF_BYTES      # objects would take more than max_bytes (ENOMEM)
    SYSTEM_ERROR      # a system call failed; errno is in Op.error_number

    RETRY             # somebody changed what was looked at: start again
    NEED_BUCKETS      # commit the next piece of the bucket array, then start again
    NEED_ELEMENTS     # commit a block of elements, then start again
    NEED_LINES        # commit a block of overflow lines, then start again
    NEED_OBJECTS      # commit a block for objects of some class, then start again
