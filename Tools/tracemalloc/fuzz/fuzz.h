// What the fuzz targets of tracemalloc's containers share: reading the input,
// an allocator that fails when told, and keys that collide.

#ifndef TRACEMALLOC_FUZZ_H
#define TRACEMALLOC_FUZZ_H

#include "Python.h"
#include "pycore_tracemalloc_containers.h"

#if SIZEOF_VOID_P < 8
#  error "the keys are made for addresses of 64 bits"
#endif

#define CHECK(COND, ...) \
    do { \
        if (!(COND)) { \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
            fprintf(stderr, __VA_ARGS__); \
            fprintf(stderr, "\n"); \
            abort(); \
        } \
    } while (0)

extern int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);


/* --- Input -------------------------------------------------------------- */

typedef struct {
    const uint8_t *data;
    size_t size;
} fuzz_input;

// 0 when there is no more.
static inline unsigned int
next_byte(fuzz_input *input)
{
    if (input->size == 0) {
        return 0;
    }
    input->size--;
    return *input->data++;
}

static inline uint64_t
next_bytes(fuzz_input *input, int count)
{
    uint64_t number = 0;
    for (int i = 0; i < count; i++) {
        number = number << 8 | next_byte(input);
    }
    return number;
}

// Small, or one of the largest there are.
static inline uint64_t
next_number(fuzz_input *input, uint64_t largest)
{
    unsigned int byte = next_byte(input);
    return byte < 128 ? byte : largest - (byte - 128);
}

// What to do, how, and how often.
typedef struct {
    unsigned int op;              // below 16
    unsigned int flags;           // below 16; with 8 it is done more than once
    size_t count;
} fuzz_step;

static inline fuzz_step
next_step(fuzz_input *input)
{
    unsigned int byte = next_byte(input);
    fuzz_step step = {byte & 15, byte >> 4, 1};
    if (step.flags & 8) {
        step.count += next_byte(input);
    }
    return step;
}


/* --- Allocator ---------------------------------------------------------- */

// More than all containers of a target have.
#ifndef MAX_BLOCKS
#  define MAX_BLOCKS 64
#endif

// Blocks come from malloc() unchanged, so that the sanitizer sees their ends.
typedef struct {
    void *blocks[MAX_BLOCKS];
    size_t sizes[MAX_BLOCKS];
    size_t live;                  // number of blocks
    size_t bytes;                 // and the sum of their sizes
    size_t calls;                 // of malloc(), calloc() and realloc()
    size_t failures;              // of these
    unsigned int fail_in;         // the next call but so many fails; 0: none
    bool fail_on;                 // and do all after it fail, too?
    PyMemAllocatorEx allocator;
} fuzz_heap;

static inline size_t
heap_find(const fuzz_heap *heap, const void *ptr)
{
    size_t i = 0;
    while (i < heap->live && heap->blocks[i] != ptr) {
        i++;
    }
    CHECK(i < heap->live, "freed or resized what is not allocated");
    return i;
}

static inline bool
heap_fails(fuzz_heap *heap)
{
    heap->calls++;
    if (heap->fail_in == 0 || --heap->fail_in > 0) {
        return false;
    }
    heap->fail_in = heap->fail_on;
    heap->failures++;
    return true;
}

static inline void *
heap_new(fuzz_heap *heap, size_t size, int fill)
{
    if (heap_fails(heap)) {
        return NULL;
    }
    CHECK(heap->live < MAX_BLOCKS, "too many blocks");
    void *ptr = malloc(size);
    CHECK(ptr != NULL, "out of memory");
    memset(ptr, fill, size);
    heap->blocks[heap->live] = ptr;
    heap->sizes[heap->live++] = size;
    heap->bytes += size;
    return ptr;
}

static inline void *
heap_malloc(void *ctx, size_t size)
{
    return heap_new(ctx, size, 0xCB);
}

static inline void *
heap_calloc(void *ctx, size_t nelem, size_t elsize)
{
    return heap_new(ctx, nelem * elsize, 0);
}

static inline void
heap_free(void *ctx, void *ptr)
{
    fuzz_heap *heap = ctx;
    size_t i = heap_find(heap, ptr);
    heap->bytes -= heap->sizes[i];
    heap->live--;
    heap->blocks[i] = heap->blocks[heap->live];
    heap->sizes[i] = heap->sizes[heap->live];
    free(ptr);
}

// Always moves, so that a stale pointer is noticed.
static inline void *
heap_realloc(void *ctx, void *ptr, size_t size)
{
    fuzz_heap *heap = ctx;
    void *copy = heap_malloc(heap, size);
    if (copy != NULL && ptr != NULL) {
        memcpy(copy, ptr, Py_MIN(size, heap->sizes[heap_find(heap, ptr)]));
        heap_free(heap, ptr);
    }
    return copy;
}

static inline void
heap_init(fuzz_heap *heap)
{
    *heap = (fuzz_heap){
        .allocator = {
            heap, heap_malloc, heap_calloc, heap_realloc, heap_free},
    };
}

// 0 to 15: never, the next call, the one after it, ...; with 128 added all
// that follow fail as well.
static inline void
next_failure(fuzz_input *input, fuzz_heap *heap)
{
    unsigned int byte = next_byte(input);
    heap->fail_in = byte & 15;
    heap->fail_on = byte >> 7;
}


/* --- Keys --------------------------------------------------------------- */

// The address whose hash is `hash`: _PyTraceTable_Hash() drops the low half of
// a bijection.  The same hash and `low` collide in any domains.
static inline uintptr_t
address_of_hash(unsigned int domain, uint32_t hash, uint32_t low)
{
    const uint64_t multiplier = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t inverse = multiplier;
    for (int i = 0; i < 5; i++) {
        // Newton: twice as many bits are right each time.
        inverse *= 2 - multiplier * inverse;
    }
    uint64_t number = ((uint64_t)hash << 32 | low) * inverse;
    number ^= number >> 32;
    number *= inverse;
    uintptr_t ptr = number - ((uint64_t)domain << 32) - domain;
    CHECK(_PyTraceTable_Hash(domain, ptr) == hash,
          "address_of_hash() does not fit to _PyTraceTable_Hash() any more");
    return ptr;
}

// A family of addresses.
typedef struct {
    unsigned int kind;
    unsigned int variant;         // 5 bits
    uint64_t base;
} fuzz_keys;

static inline fuzz_keys
next_keys(fuzz_input *input)
{
    unsigned int byte = next_byte(input);
    fuzz_keys keys = {.kind = byte & 7, .variant = byte >> 3};
    keys.base = next_bytes(input, keys.kind == 7 ? 8 : 1);
    return keys;
}

static inline uintptr_t
key_at(const fuzz_keys *keys, unsigned int domain, size_t i)
{
    uint32_t base = (uint32_t)keys->base;
    uint32_t low = keys->variant << 16 | (uint32_t)i;
    switch (keys->kind) {
    case 0:
        // 0, 1 and 2, and what comes after them.
        return base + i;
    case 1:
        return UINTPTR_MAX - base - i;
    case 2:
        // Blocks of a pool.
        return UINT64_C(0x7F0000000000) + base * 0x4000 + (i + 1) * 16;
    case 3:
        // The last slot, whatever the capacity is: clusters wrap around.
        return address_of_hash(domain, UINT32_MAX - (base & 3), low);
    case 4:
        return address_of_hash(domain, base & 3, low);
    case 5:
        // One slot for all.
        return address_of_hash(domain, base << 24, low);
    case 6: {
        // Neighbouring slots.
        uint32_t stride = UINT32_C(1) << (12 + keys->variant % 16);
        return address_of_hash(
            domain, (base << 24) + (uint32_t)i * stride, (uint32_t)i);
    }
    default:
        return keys->base + i * 16;
    }
}

#endif  // !TRACEMALLOC_FUZZ_H
