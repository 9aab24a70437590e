// Traces keyed by domain and address, in an open-addressing hash table.  A
// plain container: the caller locks.
//
// The range of the hash is reduced by multiplication instead of a mask, so
// that the table may have any size.  Deleting is Knuth's Algorithm 6.4R, which
// moves later entries of a cluster back instead of leaving tombstones.

#include "Python.h"
#include "pycore_tracemalloc_containers.h"  // _PyTraceTable

#define MIN_CAPACITY 64

// Load is at most 3/4 when the table is grown, then half of that: linear
// probing needs 8.5 slots for a miss at 3/4, 1.8 at 3/8.
#define CAPACITY_LIMIT(capacity) ((capacity) / 4 * 3)


static inline size_t
home_slot(const _PyTraceTable *table, unsigned int domain, uintptr_t ptr)
{
    // 32 bits are enough for any table that fits into memory, which is at most
    // a few billion slots.
    uint64_t hash = _PyTraceTable_Hash(domain, ptr);
    return (size_t)((hash * (uint64_t)table->capacity) >> 32);
}

static inline size_t
next_slot(const _PyTraceTable *table, size_t i)
{
    return i + 1 < table->capacity ? i + 1 : 0;
}

static inline bool
is_free(const _PyTrace *slot)
{
    return slot->traceback == _PyTraceback_NONE;
}


void
_PyTraceTable_Init(_PyTraceTable *table, const PyMemAllocatorEx *allocator)
{
    *table = (_PyTraceTable){.allocator = allocator};
}

void
_PyTraceTable_Clear(_PyTraceTable *table)
{
    const PyMemAllocatorEx *allocator = table->allocator;
    if (table->slots != NULL) {
        allocator->free(allocator->ctx, table->slots);
    }
    _PyTraceTable_Init(table, allocator);
}

// Put a trace into the first free slot from its home slot on.
static void
insert(_PyTraceTable *table, const _PyTrace *trace)
{
    size_t i = home_slot(table, trace->domain, trace->ptr);
    while (!is_free(&table->slots[i])) {
        i = next_slot(table, i);
    }
    table->slots[i] = *trace;
}

static int
resize(_PyTraceTable *table, size_t capacity)
{
    assert(table->used + table->reserved <= CAPACITY_LIMIT(capacity));
    if (capacity > UINT32_MAX) {
        return -1;
    }
    const PyMemAllocatorEx *allocator = table->allocator;
    _PyTrace *slots = allocator->calloc(allocator->ctx,
                                        capacity, sizeof(_PyTrace));
    if (slots == NULL) {
        return -1;
    }

    _PyTraceTable old = *table;
    table->slots = slots;
    table->capacity = capacity;
    table->limit = CAPACITY_LIMIT(capacity);
    for (size_t i = 0; i < old.capacity; i++) {
        if (!is_free(&old.slots[i])) {
            insert(table, &old.slots[i]);
        }
    }
    if (old.slots != NULL) {
        allocator->free(allocator->ctx, old.slots);
    }
    return 0;
}

int
_PyTraceTable_Reserve(_PyTraceTable *table)
{
    if (table->used + table->reserved == table->limit) {
        size_t capacity = Py_MAX(table->capacity * 2, MIN_CAPACITY);
        if (resize(table, capacity) < 0) {
            return -1;
        }
    }
    table->reserved++;
    return 0;
}

// Give memory back after a peak.  The table stays at most half as full as it
// may be, so that the next few traces do not make it grow again.
static void
shrink(_PyTraceTable *table)
{
    if (table->capacity > MIN_CAPACITY
        && table->used + table->reserved < table->limit / 8)
    {
        // Failing is harmless: the table is only larger than it need be.
        (void)resize(table, Py_MAX(table->capacity / 4, MIN_CAPACITY));
    }
}

void
_PyTraceTable_Unreserve(_PyTraceTable *table)
{
    assert(table->reserved > 0);
    table->reserved--;
    shrink(table);
}

void
_PyTraceTable_Put(_PyTraceTable *table, const _PyTrace *trace)
{
    assert(table->reserved > 0);
    assert(trace->traceback != _PyTraceback_NONE);
    assert(_PyTraceTable_Find(table, trace->domain, trace->ptr) == NULL);
    table->reserved--;
    table->used++;
    insert(table, trace);
}

_PyTrace *
_PyTraceTable_Find(const _PyTraceTable *table, unsigned int domain,
                   uintptr_t ptr)
{
    if (table->used == 0) {
        return NULL;
    }
    size_t i = home_slot(table, domain, ptr);
    while (!is_free(&table->slots[i])) {
        _PyTrace *trace = &table->slots[i];
        if (trace->ptr == ptr && trace->domain == domain) {
            return trace;
        }
        i = next_slot(table, i);
    }
    return NULL;
}

void
_PyTraceTable_Remove(_PyTraceTable *table, _PyTrace *trace, bool keep_room)
{
    assert(!is_free(trace));
    size_t hole = (size_t)(trace - table->slots);
    assert(hole < table->capacity);

    for (size_t i = next_slot(table, hole); ; i = next_slot(table, i)) {
        const _PyTrace *slot = &table->slots[i];
        if (is_free(slot)) {
            break;
        }
        size_t home = home_slot(table, slot->domain, slot->ptr);
        if (_PyTraceTable_ProbePasses(home, hole, i)) {
            table->slots[hole] = *slot;
            hole = i;
        }
    }
    table->slots[hole].traceback = _PyTraceback_NONE;
    table->used--;
    if (keep_room) {
        table->reserved++;
    }
    shrink(table);
}

void
_PyTraceTable_ForgetReservations(_PyTraceTable *table)
{
    table->reserved = 0;
}

const _PyTrace *
_PyTraceTable_Next(const _PyTraceTable *table, const _PyTrace *trace)
{
    if (table->used == 0) {
        // There may be no slots at all.
        return NULL;
    }
    const _PyTrace *end = table->slots + table->capacity;
    trace = trace == NULL ? table->slots : trace + 1;
    while (trace < end && is_free(trace)) {
        trace++;
    }
    return trace < end ? trace : NULL;
}

void
_PyTraceTable_Copy(const _PyTraceTable *table, _PyTrace *out)
{
    const _PyTrace *trace = NULL;
    while ((trace = _PyTraceTable_Next(table, trace)) != NULL) {
        *out++ = *trace;
    }
}

size_t
_PyTraceTable_Memory(const _PyTraceTable *table)
{
    return table->capacity * sizeof(_PyTrace);
}

bool
_PyTraceTable_IsValid(const _PyTraceTable *table)
{
    size_t used = 0;
    for (size_t i = 0; i < table->capacity; i++) {
        _PyTrace *slot = &table->slots[i];
        if (is_free(slot)) {
            continue;
        }
        used++;
        if (_PyTraceTable_Find(table, slot->domain, slot->ptr) != slot) {
            return false;
        }
    }
    return used == table->used
           && used + table->reserved <= table->limit
           && (table->limit < table->capacity || table->capacity == 0);
}
