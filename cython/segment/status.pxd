# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# The outcomes of core functions. _core.pyx turns those that leave the core into exceptions.
#
# The first group ends an operation (BUSY does when the wait was in vain). The second group never
# becomes an exception: it says what has to be done, with no lock held, before the operation is
# tried again.

cdef enum Status:
    OK = 0
    ABSENT            # no element has this key (ENOENT)
    PRESENT           # an element has this key already (EEXIST)
    FULL              # max_entries elements are in the map (E2BIG)
    NO_MEMORY         # the shared-memory file system is full (ENOMEM)
    CORRUPT           # the segment holds something that no operation could have left (EUCLEAN)
    BUSY              # a lock is held by a live process: wait for Op.wait_word (EBUSY)
    NO_CONTEXT        # every operation context or process slot is taken (EUSERS)
    CLOSED            # this process no longer has a mapping (EBADF)
    OUT_OF_BYTES      # objects would take more than max_bytes (ENOMEM)
    SYSTEM_ERROR      # a system call failed; errno is in Op.error_number

    RETRY             # another operation changed what this one was reading: start again
    NEED_BUCKETS      # commit the next piece of the bucket array, then start again
    NEED_ELEMENTS     # commit a block of elements, then start again
    NEED_LINES        # commit a block of overflow lines, then start again
    NEED_OBJECTS      # commit a block for objects of some class, then start again
