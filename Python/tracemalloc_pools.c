// Traces of the blocks that lie in the pools of pymalloc, by pool and block.
// A plain container: the caller locks.
//
// What the hot path needs is in the header.  Here is what makes and drops
// pools.  Nobody tells when a pool is given back or cut into blocks of another
// size; but it cannot be while one of its blocks is alive, and so has a trace.
// For one without traces the caller asks again.

#include "Python.h"
#include "pycore_tracemalloc_containers.h"  // _PyTracePools

#define MIN_CAPACITY 64


void
_PyTracePools_Init(_PyTracePools *pools, const PyMemAllocatorEx *allocator)
{
    *pools = (_PyTracePools){.allocator = allocator};
}

// Slots for traces: one for each block, and one for what remains at the end.
static size_t
count_slots(size_t block_size)
{
    return (POOL_SIZE - POOL_OVERHEAD) / block_size + 1;
}

static size_t
memory_of(const _PyTracePool *pool)
{
    return sizeof(_PyTracePool)
           + count_slots(pool->block_size) * sizeof(_PyTracePooled);
}

static void
free_memory(const _PyTracePools *pools, void *memory)
{
    if (memory != NULL) {
        pools->allocator->free(pools->allocator->ctx, memory);
    }
}

static void
free_pool(_PyTracePools *pools, _PyTracePool *pool)
{
    pools->memory -= memory_of(pool);
    free_memory(pools, pool);
}

void
_PyTracePools_Clear(_PyTracePools *pools)
{
    for (size_t i = 0; i < pools->capacity; i++) {
        if (pools->slots[i] != NULL) {
            free_memory(pools, pools->slots[i]);
        }
    }
    free_memory(pools, pools->slots);
    _PyTracePools_Init(pools, pools->allocator);
}

// Make slots for pools anew, at most half of them taken.  Empty pools are left
// out.
static int
rebuild(_PyTracePools *pools)
{
    size_t capacity = MIN_CAPACITY;
    size_t count = pools->npools - pools->nempty;
    while (capacity < 4 * count) {
        capacity *= 2;
    }
    _PyTracePool **slots = pools->allocator->calloc(
        pools->allocator->ctx, capacity, sizeof(_PyTracePool *));
    if (slots == NULL) {
        return -1;
    }
    _PyTracePools old = *pools;
    pools->slots = slots;
    pools->capacity = capacity;
    pools->npools = count;
    pools->nempty = 0;
    for (size_t i = 0; i < old.capacity; i++) {
        _PyTracePool *pool = old.slots[i];
        if (pool == NULL) {
            continue;
        }
        if (pool->used == 0) {
            free_pool(pools, pool);
        }
        else {
            *_PyTracePools_Probe(pools, pool->address) = pool;
        }
    }
    free_memory(pools, old.slots);
    return 0;
}

static _PyTracePool *
new_pool(_PyTracePools *pools, uintptr_t address, size_t block_size)
{
    // So 16 bits of the reciprocal are enough for the index of every block.
    Py_BUILD_ASSERT((POOL_SIZE >> ALIGNMENT_SHIFT)
                    * (SMALL_REQUEST_THRESHOLD >> ALIGNMENT_SHIFT) <= 1 << 16);

    _PyTracePool *pool = pools->allocator->calloc(
        pools->allocator->ctx, 1,
        sizeof(_PyTracePool)
        + count_slots(block_size) * sizeof(_PyTracePooled));
    if (pool != NULL) {
        size_t units = block_size >> ALIGNMENT_SHIFT;
        pool->address = address;
        pool->block_size = (uint16_t)block_size;
        pool->reciprocal = (uint32_t)(((1 << 16) + units - 1) / units);
        pools->memory += memory_of(pool);
    }
    return pool;
}

_PyTracePool *
_PyTracePools_Prepare(_PyTracePools *pools, uintptr_t ptr, size_t block_size)
{
    assert(block_size % ALIGNMENT == 0);
    assert(0 < block_size && block_size <= SMALL_REQUEST_THRESHOLD);
    if (pools->capacity == 0 && rebuild(pools) < 0) {
        return NULL;
    }
    uintptr_t address = ptr & ~(uintptr_t)POOL_SIZE_MASK;
    _PyTracePool **slot = _PyTracePools_Probe(pools, address);
    if (*slot == NULL && 2 * (pools->npools + 1) > pools->capacity) {
        if (rebuild(pools) < 0) {
            return NULL;
        }
        slot = _PyTracePools_Probe(pools, address);
    }
    assert(*slot == NULL || (*slot)->used == 0);
    if (*slot == NULL || (*slot)->block_size != block_size) {
        _PyTracePool *pool = new_pool(pools, address, block_size);
        if (pool == NULL) {
            return NULL;
        }
        if (*slot != NULL) {
            free_pool(pools, *slot);
        }
        else {
            pools->npools++;
            pools->nempty++;
        }
        *slot = pool;
    }
    return *slot;
}

void
_PyTracePools_DropEmpty(_PyTracePools *pools)
{
    // Failing is harmless: they are there a little longer.
    (void)rebuild(pools);
}

// The next trace in slot i or after it, or NULL.
static const _PyTracePooled *
next_trace(const _PyTracePool *pool, size_t *i)
{
    for (; *i < count_slots(pool->block_size); ++*i) {
        if (pool->traces[*i].traceback != _PyTraceback_NONE) {
            return &pool->traces[*i];
        }
    }
    return NULL;
}

void
_PyTracePools_Copy(const _PyTracePools *pools, _PyTrace *out)
{
    for (size_t n = 0; n < pools->capacity; n++) {
        const _PyTracePool *pool = pools->slots[n];
        if (pool == NULL || pool->used == 0) {
            continue;
        }
        const _PyTracePooled *trace;
        for (size_t i = 0; (trace = next_trace(pool, &i)) != NULL; i++) {
            *out++ = (_PyTrace){
                .ptr = _PyTracePool_Address(pool, trace),
                .size = trace->size,
                .traceback = trace->traceback,
            };
        }
    }
}

size_t
_PyTracePools_Memory(const _PyTracePools *pools)
{
    return pools->memory + pools->capacity * sizeof(_PyTracePool *);
}

bool
_PyTracePools_IsValid(const _PyTracePools *pools)
{
    size_t npools = 0, nempty = 0, used = 0, memory = 0;
    for (size_t n = 0; n < pools->capacity; n++) {
        const _PyTracePool *pool = pools->slots[n];
        if (pool == NULL) {
            continue;
        }
        size_t here = 0;
        const _PyTracePooled *trace;
        for (size_t i = 0; (trace = next_trace(pool, &i)) != NULL; i++) {
            here++;
            uintptr_t ptr = _PyTracePool_Address(pool, trace);
            if (_PyTracePools_Find(pools, ptr).trace != trace) {
                return false;
            }
        }
        if (here != pool->used
            || _PyTracePools_Probe(pools, pool->address) != &pools->slots[n])
        {
            return false;
        }
        npools++;
        nempty += here == 0;
        used += here;
        memory += memory_of(pool);
    }
    return npools == pools->npools && nempty == pools->nempty
           && used == pools->used && memory == pools->memory
           && 2 * npools <= pools->capacity;
}
