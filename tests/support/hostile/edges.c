/* The function that gcc's -fsanitize-coverage=trace-pc calls at each basic block of the core: it
 * counts the core's edges.
 *
 * It is linked into the instrumented extension, but not instrumented itself. edges_count_into() gives
 * it memory of EDGES bytes; before that call nothing is counted. */
#include <stddef.h>
#include <stdint.h>

#define EDGES 65536

static uint8_t *volatile edge_counts;
static __thread uint32_t edge_before;

void edges_count_into(uint8_t *memory)
{
    edge_counts = memory;
}

void __sanitizer_cov_trace_pc(void)
{
    uint8_t *counts = edge_counts;
    uint64_t place;
    uint32_t block;
    if (counts == NULL)
        return;
    /* Distances from this function, which do not depend on where the code is loaded. */
    place = (uint64_t)(uintptr_t)__builtin_return_address(0) - (uint64_t)(uintptr_t)&edges_count_into;
    block = (uint32_t)((place * 0x9E3779B97F4A7C15u) >> 48);
    counts += (block ^ edge_before) & (EDGES - 1);
    if (*counts != 255)
        ++*counts;
    edge_before = block >> 1;
}
