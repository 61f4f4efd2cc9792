# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# A number inside a value, and the operations that change it in one step.
#
# Integers are little-endian, of 1, 2, 4 or 8 bytes, and wrap around; floats are IEEE 754 of 4 or 8
# bytes. Nothing here touches shared memory: bits in, bits out.
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    FIELD_ADD = 0
    FIELD_MIN = 1
    FIELD_MAX = 2
    FIELD_OR = 3
    FIELD_AND = 4

cdef enum:
    FIELD_SIGNED = 0
    FIELD_UNSIGNED = 1
    FIELD_FLOAT = 2

cdef struct NumberField:
    uint64_t offset            # of its first byte in the value
    uint64_t operand           # its bits, in the low bytes
    uint32_t size              # in bytes
    uint32_t kind
    uint32_t operation

cdef inline uint64_t field_mask(const NumberField *field) noexcept nogil:
    return 0xFFFFFFFFFFFFFFFFULL >> (64 - 8 * field.size)

cdef inline int64_t sign_extended(uint64_t bits, uint32_t size) noexcept nogil:
    return <int64_t> (bits << (64 - 8 * size)) >> (64 - 8 * size)

cdef inline double float_of(uint64_t bits, uint32_t size) noexcept nogil:
    cdef double wide
    cdef float narrow
    if size == 8:
        memcpy(&wide, &bits, 8)
        return wide
    memcpy(&narrow, &bits, 4)
    return narrow

cdef inline uint64_t bits_of(double number, uint32_t size) noexcept nogil:
    cdef uint64_t bits = 0
    cdef float narrow = <float> number
    if size == 8:
        memcpy(&bits, &number, 8)
    else:
        memcpy(&bits, &narrow, 4)
    return bits

cdef inline bint field_above(
        const NumberField *field, uint64_t bits, uint64_t other) noexcept nogil:
    """Whether the number in bits is greater than the other. False if one is a NaN."""
    if field.kind == FIELD_FLOAT:
        return float_of(bits, field.size) > float_of(other, field.size)
    if field.kind == FIELD_SIGNED:
        return sign_extended(bits, field.size) > sign_extended(other, field.size)
    return bits > other

cdef inline uint64_t field_compute(const NumberField *field, uint64_t bits) noexcept nogil:
    """The field's bits after the operation."""
    if field.operation == FIELD_ADD:
        if field.kind == FIELD_FLOAT:
            return bits_of(
                float_of(bits, field.size) + float_of(field.operand, field.size), field.size)
        return (bits + field.operand) & field_mask(field)
    if field.operation == FIELD_OR:
        return bits | field.operand
    if field.operation == FIELD_AND:
        return bits & field.operand
    if field.operation == FIELD_MIN:
        return field.operand if field_above(field, bits, field.operand) else bits
    return field.operand if field_above(field, field.operand, bits) else bits
