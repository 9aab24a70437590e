// Hash table of traces, keyed by domain and address.  A plain container: the
// caller locks.
//
// Resizing a table of millions of traces would stop the program for a while.
// So there are many small tables, the *parts*, and each is resized by itself.
// A part is open-addressing with linear probing.  A removal moves later
// entries of the cluster back (Knuth, TAOCP 6.4, Algorithm R), so that no
// tombstones are left.
//
// The high bits of the hash choose the part, the others are reduced to its
// range by multiplication, so that a part may have any size.

#include "Python.h"
#include "pycore_tracemalloc_data.h"  // tracemalloc_table

#define PART_BITS _PyTraceMalloc_PART_BITS
#define NUM_PARTS _PyTraceMalloc_NUM_PARTS

// Entries for which a part has memory at first.
#define MIN_CAPACITY 8

#define FULL(capacity) ((capacity) / 4 * 3)

typedef tracemalloc_part part;


static inline bool
is_free(const tracemalloc_trace *entry)
{
    return entry->traceback == _PyTraceMalloc_NO_TRACEBACK;
}

static inline size_t
part_index(unsigned int domain, uintptr_t ptr)
{
    return _PyTraceMalloc_HashBlock(domain, ptr) >> (32 - PART_BITS);
}

static inline size_t
home_index(const part *p, unsigned int domain, uintptr_t ptr)
{
    uint32_t hash = _PyTraceMalloc_HashBlock(domain, ptr) << PART_BITS;
    return (size_t)(((uint64_t)hash * p->capacity) >> 32);
}

static inline size_t
next_index(const part *p, size_t i)
{
    return i + 1 < p->capacity ? i + 1 : 0;
}

// The entry that has this key, or else the free one where it belongs.
static inline tracemalloc_trace *
probe(const part *p, unsigned int domain, uintptr_t ptr)
{
    size_t i = home_index(p, domain, ptr);
    while (!is_free(&p->entries[i])
           && (p->entries[i].ptr != ptr || p->entries[i].domain != domain))
    {
        i = next_index(p, i);
    }
    return &p->entries[i];
}

static int
resize(part *p, const PyMemAllocatorEx *allocator, size_t capacity)
{
    if (capacity > UINT32_MAX) {
        return -1;
    }
    part old = *p;
    tracemalloc_trace *entries = allocator->calloc(
        allocator->ctx, capacity, sizeof(tracemalloc_trace));
    if (entries == NULL) {
        return -1;
    }
    p->entries = entries;
    p->capacity = (uint32_t)capacity;
    for (size_t i = 0; i < old.capacity; i++) {
        const tracemalloc_trace *trace = &old.entries[i];
        if (!is_free(trace)) {
            *probe(p, trace->domain, trace->ptr) = *trace;
        }
    }
    if (old.entries != NULL) {
        allocator->free(allocator->ctx, old.entries);
    }
    return 0;
}

// They differ, for the parts are not to be resized all at the same time.
static size_t
first_capacity(size_t i)
{
    return MIN_CAPACITY + i * MIN_CAPACITY / NUM_PARTS;
}

int
_PyTraceMalloc_TableInit(tracemalloc_table *table,
                         const PyMemAllocatorEx *allocator)
{
    *table = (tracemalloc_table){.allocator = allocator};
    for (size_t i = 0; i < NUM_PARTS; i++) {
        if (resize(&table->parts[i], allocator, first_capacity(i)) < 0) {
            _PyTraceMalloc_TableFree(table);
            return -1;
        }
    }
    return 0;
}

void
_PyTraceMalloc_TableFree(tracemalloc_table *table)
{
    const PyMemAllocatorEx *allocator = table->allocator;
    for (size_t i = 0; i < NUM_PARTS; i++) {
        if (table->parts[i].entries != NULL) {
            allocator->free(allocator->ctx, table->parts[i].entries);
        }
    }
    *table = (tracemalloc_table){.allocator = allocator};
}

// Make room for one more trace.
static Py_NO_INLINE int
grow(tracemalloc_table *table, size_t i, bool must)
{
    part *p = &table->parts[i];
    size_t capacity = (size_t)p->capacity + p->capacity / 2;
    if (resize(p, table->allocator, Py_MAX(capacity, first_capacity(i))) < 0
        // A probe ends at a free entry, so one has to be left.
        && (!must || p->used + 1 >= p->capacity))
    {
        return -1;
    }
    return 0;
}

int
_PyTraceMalloc_TableAdd(tracemalloc_table *table,
                        const tracemalloc_trace *trace, bool must)
{
    size_t i = part_index(trace->domain, trace->ptr);
    part *p = &table->parts[i];
    assert(!is_free(trace));
    if (p->used >= FULL(p->capacity) && grow(table, i, must) < 0) {
        return -1;
    }
    tracemalloc_trace *entry = probe(p, trace->domain, trace->ptr);
    if (!is_free(entry)) {
        return 1;
    }
    *entry = *trace;
    p->used++;
    table->used++;
    return 0;
}

tracemalloc_trace *
_PyTraceMalloc_TableFind(const tracemalloc_table *table, unsigned int domain,
                         uintptr_t ptr)
{
    const part *p = &table->parts[part_index(domain, ptr)];
    if (p->used == 0) {
        return NULL;
    }
    tracemalloc_trace *entry = probe(p, domain, ptr);
    return is_free(entry) ? NULL : entry;
}

// Close the hole that a removed trace leaves.
static void
close_hole(part *p, size_t hole)
{
    size_t i = next_index(p, hole);
    for (; !is_free(&p->entries[i]); i = next_index(p, i)) {
        const tracemalloc_trace *entry = &p->entries[i];
        size_t home = home_index(p, entry->domain, entry->ptr);
        // Does a probe from `home` to `i` pass the hole?
        bool passes = (hole <= i ? home <= hole || home > i
                       : home <= hole && home > i);
        if (passes) {
            p->entries[hole] = *entry;
            hole = i;
        }
    }
    p->entries[hole].traceback = _PyTraceMalloc_NO_TRACEBACK;
}

void
_PyTraceMalloc_TableRemove(tracemalloc_table *table, tracemalloc_trace *trace)
{
    part *p = &table->parts[part_index(trace->domain, trace->ptr)];
    assert(p->entries <= trace && trace < p->entries + p->capacity);
    close_hole(p, (size_t)(trace - p->entries));
    p->used--;
    table->used--;
    // Give memory back after a peak.  The part stays at most half as full as
    // it may be.  If there is no memory it is only larger than it need be.
    if (p->capacity > 2 * MIN_CAPACITY && p->used < p->capacity / 8) {
        int saved_errno = errno;      // free() must not change it
        (void)resize(p, table->allocator, p->capacity / 3);
        errno = saved_errno;
    }
}

tracemalloc_trace *
_PyTraceMalloc_TableNext(const tracemalloc_table *table,
                         const tracemalloc_trace *trace)
{
    size_t i = trace == NULL ? 0 : part_index(trace->domain, trace->ptr);
    tracemalloc_trace *next = trace == NULL ? table->parts[0].entries
                              : (tracemalloc_trace *)trace + 1;
    for (;;) {
        const part *p = &table->parts[i];
        for (; next < p->entries + p->capacity; next++) {
            if (!is_free(next)) {
                return next;
            }
        }
        if (++i == NUM_PARTS) {
            return NULL;
        }
        next = table->parts[i].entries;
    }
}

size_t
_PyTraceMalloc_TableMemory(const tracemalloc_table *table)
{
    size_t n = 0;
    for (size_t i = 0; i < NUM_PARTS; i++) {
        n += table->parts[i].capacity;
    }
    return n * sizeof(tracemalloc_trace);
}
