// Fuzz target: the traces in pools (Python/tracemalloc_pools.c), compared with
// an array.

#define MAX_BLOCKS 4096           // one for each pool, empty ones included

#include "fuzz.h"

#define MAX_KEYS 512              // in the pools at a time
#define MAX_RECENT 8
#define MAX_COLLIDING 512         // pools that have the same slot
#define COLLIDING_SLOTS 2048      // with a capacity of at most this
#define MIN_CAPACITY 64
#define WORK 100000               // slots checked after every operation

// A block and the size that all blocks of its pool had when the pool was made
// known.
typedef struct {
    uintptr_t ptr;
    size_t block_size;
    uint16_t size;
    _PyTraceback_Id traceback;
} fuzz_block;

typedef struct {
    fuzz_input input;
    fuzz_heap heap;
    _PyTracePools pools;

    // The model.  Element i is free if its ptr is 0, and its traceback tells
    // its index.
    fuzz_block blocks[MAX_KEYS];
    size_t top;                   // elements from here on are free
    size_t used;
    size_t npools;                // that have a block

    uintptr_t recent[MAX_RECENT]; // the last ones added or removed
    size_t nrecent;
    uint32_t serial;
    size_t work;
} fuzz_state;

static fuzz_state state;


/* --- The model ---------------------------------------------------------- */

static uintptr_t
pool_of(uintptr_t ptr)
{
    return ptr - ptr % POOL_SIZE;
}

// MAX_KEYS if it is not there.
static size_t
model_find(const fuzz_state *f, uintptr_t ptr)
{
    for (size_t i = 0; i < f->top && ptr != 0; i++) {
        if (f->blocks[i].ptr == ptr) {
            return i;
        }
    }
    return MAX_KEYS;
}

// The number of blocks in the pool of this address; also the size of blocks
// there, unless there are none.
static size_t
model_count(const fuzz_state *f, uintptr_t ptr, size_t *block_size)
{
    size_t count = 0;
    for (size_t i = 0; i < f->top; i++) {
        const fuzz_block *block = &f->blocks[i];
        if (block->ptr != 0 && pool_of(block->ptr) == pool_of(ptr)) {
            *block_size = block->block_size;
            count++;
        }
    }
    return count;
}

// Has another block the place that this one is to have?
static bool
model_is_taken(const fuzz_state *f, uintptr_t ptr, size_t block_size)
{
    size_t place = (ptr % POOL_SIZE - POOL_OVERHEAD) / block_size;
    for (size_t i = 0; i < f->top; i++) {
        uintptr_t other = f->blocks[i].ptr;
        if (other != 0 && pool_of(other) == pool_of(ptr)
            && (other % POOL_SIZE - POOL_OVERHEAD) / block_size == place)
        {
            return true;
        }
    }
    return false;
}

static size_t
model_add(fuzz_state *f, uintptr_t ptr)
{
    size_t i = 0, block_size;
    while (i < f->top && f->blocks[i].ptr != 0) {
        i++;
    }
    f->npools += model_count(f, ptr, &block_size) == 0;
    f->top = Py_MAX(f->top, i + 1);
    f->blocks[i].ptr = ptr;
    f->used++;
    return i;
}

static void
model_remove(fuzz_state *f, size_t i)
{
    uintptr_t ptr = f->blocks[i].ptr;
    size_t block_size;
    f->blocks[i].ptr = 0;
    f->used--;
    f->npools -= model_count(f, ptr, &block_size) == 0;
    while (f->top > 0 && f->blocks[f->top - 1].ptr == 0) {
        f->top--;
    }
}

// The next one in the pools from the i-th on, cyclically.
static size_t
model_next(const fuzz_state *f, size_t i)
{
    assert(f->used > 0);
    for (i %= f->top; f->blocks[i].ptr == 0; ) {
        i = (i + 1) % f->top;
    }
    return i;
}

static _PyTraceback_Id
new_traceback(fuzz_state *f, size_t i)
{
    f->serial = (f->serial + 1) & 0xFFFFF;
    return UINT32_MAX - (f->serial * MAX_KEYS + (uint32_t)i);
}

static size_t
index_of_traceback(_PyTraceback_Id id)
{
    return (UINT32_MAX - id) % MAX_KEYS;
}


/* --- Checks ------------------------------------------------------------- */

static bool
same_block(const _PyTracePooled *a, const fuzz_block *b)
{
    return a->size == b->size && a->traceback == b->traceback;
}

// The trace is found just if the model has it.
static _PyTracePoolPlace
check_find(fuzz_state *f, uintptr_t ptr)
{
    _PyTracePoolPlace place = _PyTracePools_Find(&f->pools, ptr);
    size_t i = model_find(f, ptr);
    if (i == MAX_KEYS) {
        CHECK(place.trace == NULL, "found a trace of %zx", (size_t)ptr);
    }
    else {
        CHECK(place.trace != NULL, "lost the trace of %zx", (size_t)ptr);
        CHECK(same_block(place.trace, &f->blocks[i]),
              "the trace of %zx is wrong", (size_t)ptr);
        CHECK(_PyTracePool_Address(place.pool, place.trace) == ptr,
              "the trace of %zx has another address", (size_t)ptr);
    }
    CHECK(place.pool == NULL || place.pool->address == pool_of(ptr),
          "found the pool of another address");
    CHECK(place.pool == NULL || ptr % POOL_SIZE >= POOL_OVERHEAD,
          "a block is in the header of its pool");
    return place;
}

// Is what the address is near to found just if the model has it?
static void
check_around(fuzz_state *f, uintptr_t ptr)
{
    const size_t offsets[] = {
        0, 1, POOL_OVERHEAD - 1, POOL_OVERHEAD, POOL_OVERHEAD + 1,
        POOL_SIZE - 512, POOL_SIZE - ALIGNMENT, POOL_SIZE - 1,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(offsets); i++) {
        (void)check_find(f, pool_of(ptr) + offsets[i]);
    }
    (void)check_find(f, ptr - ALIGNMENT);
    (void)check_find(f, ptr - 1);
    (void)check_find(f, ptr);
    (void)check_find(f, ptr + 1);
    (void)check_find(f, ptr + ALIGNMENT);
    (void)check_find(f, ptr - POOL_SIZE);
    (void)check_find(f, ptr + POOL_SIZE);
    (void)check_find(f, ptr ^ UINT64_C(1) << 63);
}

// The pool of an address has as many traces, and blocks of the size, that the
// model has.
static void
check_pool(const fuzz_state *f, uintptr_t ptr)
{
    size_t block_size = 0;
    size_t count = model_count(f, ptr, &block_size);
    const _PyTracePool *pool = _PyTracePools_Pool(&f->pools, ptr);
    CHECK((pool == NULL ? 0 : pool->used) == count,
          "the pool of %zx has not %zu traces", (size_t)ptr, count);
    CHECK(count == 0 || pool->block_size == block_size,
          "the pool of %zx has not blocks of %zu bytes", (size_t)ptr,
          block_size);
}

static void
check_counts(const fuzz_state *f)
{
    const _PyTracePools *pools = &f->pools;
    CHECK(pools->used == f->used, "%zu traces, not %zu", pools->used, f->used);
    CHECK(pools->npools - pools->nempty == f->npools,
          "%zu pools without the %zu empty ones, not %zu",
          pools->npools, pools->nempty, f->npools);
    CHECK(2 * pools->npools <= pools->capacity, "%zu pools in %zu slots",
          pools->npools, pools->capacity);
    CHECK((pools->capacity & (pools->capacity - 1)) == 0,
          "%zu slots are no power of two", pools->capacity);
    CHECK(_PyTracePools_Memory(pools) == f->heap.bytes,
          "%zu bytes are held, but %zu reported",
          f->heap.bytes, _PyTracePools_Memory(pools));
    CHECK(pools->npools + (pools->slots != NULL) == f->heap.live,
          "%zu blocks are held", f->heap.live);
}

static void
check_copy(const fuzz_state *f)
{
    static _PyTrace out[MAX_KEYS];
    static bool seen[MAX_KEYS];
    memset(seen, 0, sizeof(seen));
    _PyTracePools_Copy(&f->pools, out);
    for (size_t i = 0; i < f->used; i++) {
        size_t key = index_of_traceback(out[i].traceback);
        const fuzz_block *block = &f->blocks[key];
        CHECK(block->ptr != 0 && out[i].ptr == block->ptr
              && out[i].domain == 0 && out[i].size == block->size
              && out[i].traceback == block->traceback,
              "a copied trace is wrong");
        CHECK(!seen[key], "a trace was copied twice");
        seen[key] = true;
    }
}

static void
check_all(fuzz_state *f)
{
    const _PyTracePools *pools = &f->pools;
    size_t calls = f->heap.calls;
    check_counts(f);
    CHECK(_PyTracePools_IsValid(pools), "the pools are not valid");
    for (size_t i = 0; i < f->top; i++) {
        const fuzz_block *block = &f->blocks[i];
        if (block->ptr != 0) {
            _PyTracePoolPlace found = _PyTracePools_Find(pools, block->ptr);
            CHECK(found.trace != NULL && same_block(found.trace, block)
                  && found.pool->block_size == block->block_size,
                  "the trace of %zx is lost or wrong", (size_t)block->ptr);
        }
    }
    check_copy(f);
    for (size_t i = 0; i < MAX_RECENT; i++) {
        check_around(f, f->recent[i]);
    }
    CHECK(f->heap.calls == calls, "looking allocates memory");
}

// What may have become of the slots in a call?
static void
check_rebuilt(const fuzz_state *f, const _PyTracePools *before)
{
    const _PyTracePools *pools = &f->pools;
    if (pools->slots != before->slots) {
        // Counting what was added since.
        CHECK(pools->nempty <= 1, "%zu empty pools are not dropped",
              pools->nempty);
        CHECK(pools->capacity == MIN_CAPACITY
              || pools->capacity < 8 * pools->npools,
              "%zu slots for %zu pools", pools->capacity, pools->npools);
    }
    else {
        CHECK(pools->npools >= before->npools, "a pool is dropped");
    }
}


/* --- Operations --------------------------------------------------------- */

// The pool of an address, which is to be in no header.  If it has no traces it
// is made known, or known anew, with blocks of this size.  NULL if there is no
// memory.
static _PyTracePool *
op_prepare(fuzz_state *f, uintptr_t ptr, size_t block_size)
{
    _PyTracePool *known = _PyTracePools_Pool(&f->pools, ptr);
    if (known != NULL && known->used > 0) {
        return known;
    }
    _PyTracePools before = f->pools;
    size_t failures = f->heap.failures, calls = f->heap.calls;
    bool is_known = known != NULL && known->block_size == block_size
                    && 2 * (before.npools + 1) <= before.capacity;
    _PyTracePool *pool = _PyTracePools_Prepare(&f->pools, ptr, block_size);
    CHECK((pool == NULL) == (f->heap.failures > failures),
          "%zu allocations failed, and preparing returned %p",
          f->heap.failures - failures, (void *)pool);
    CHECK(!is_known || (pool == known && f->heap.calls == calls),
          "a known pool is made again");
    if (pool != NULL) {
        CHECK(pool == _PyTracePools_Pool(&f->pools, ptr),
              "the pool of %zx is not found", (size_t)ptr);
        CHECK(pool->address == pool_of(ptr) && pool->used == 0
              && pool->block_size == block_size,
              "the pool of %zx is wrong", (size_t)ptr);
    }
    check_rebuilt(f, &before);
    return pool;
}

static void
op_add(fuzz_state *f, uintptr_t ptr, size_t block_size, uint16_t size)
{
    if (ptr % POOL_SIZE < POOL_OVERHEAD || check_find(f, ptr).trace != NULL
        || f->used == MAX_KEYS)
    {
        return;
    }
    _PyTracePool *pool = op_prepare(f, ptr, block_size);
    if (pool == NULL) {
        return;
    }
    // While a pool has traces its blocks are still thought to be as large as
    // they were.
    (void)model_count(f, ptr, &block_size);
    size_t calls = f->heap.calls;
    _PyTracePoolPlace place = _PyTracePool_FreePlace(pool, ptr);
    bool is_taken = model_is_taken(f, ptr, block_size);
    CHECK((place.trace == NULL) == is_taken,
          "the place of %zx is %s", (size_t)ptr, is_taken ? "taken" : "free");
    CHECK(place.pool == pool, "the place of %zx is elsewhere", (size_t)ptr);
    if (place.trace != NULL) {
        size_t i = model_add(f, ptr);
        f->blocks[i] = (fuzz_block){
            ptr, block_size, size, new_traceback(f, i)};
        _PyTracePools_AddAt(
            &f->pools, place, ptr, size, f->blocks[i].traceback);
        f->recent[f->nrecent++ % MAX_RECENT] = ptr;
    }
    (void)check_find(f, ptr);
    check_pool(f, ptr);
    CHECK(f->heap.calls == calls, "to add allocates memory");
}

static void
op_remove(fuzz_state *f, uintptr_t ptr)
{
    _PyTracePoolPlace place = check_find(f, ptr);
    if (place.trace == NULL) {
        return;
    }
    _PyTracePools before = f->pools;
    size_t failures = f->heap.failures;
    _PyTracePools_Remove(&f->pools, place);
    size_t npools = f->npools;
    model_remove(f, model_find(f, ptr));
    f->recent[f->nrecent++ % MAX_RECENT] = ptr;
    (void)check_find(f, ptr);
    check_pool(f, ptr);
    check_rebuilt(f, &before);

    // Empty pools are dropped just if they are more than the others and some.
    size_t nempty = before.nempty + 1;
    bool drops = f->npools < npools
                 && nempty > Py_MAX(before.npools - nempty,
                                    _PyTracePools_KEEP_EMPTY);
    CHECK((f->pools.slots != before.slots)
          == (drops && f->heap.failures == failures),
          "%zu of %zu pools are empty and were %sdropped", nempty,
          before.npools, f->pools.slots != before.slots ? "" : "not ");
}

static void
op_change(fuzz_state *f, uintptr_t ptr, uint16_t size)
{
    _PyTracePooled *trace = check_find(f, ptr).trace;
    if (trace != NULL) {
        size_t i = model_find(f, ptr);
        trace->size = f->blocks[i].size = size;
        trace->traceback = f->blocks[i].traceback = new_traceback(f, i);
    }
}

static void
op_clear(fuzz_state *f)
{
    _PyTracePools_Clear(&f->pools);
    memset(f->blocks, 0, sizeof(f->blocks));
    f->top = f->used = f->npools = 0;
    CHECK(f->heap.live == 0 && f->heap.bytes == 0, "%zu blocks are leaked",
          f->heap.live);
}


/* --- Keys --------------------------------------------------------------- */

// Addresses of pools that all have the first, or the last, slot, whatever the
// capacity is.
static uintptr_t colliding[2][MAX_COLLIDING];

static void
find_colliding(void)
{
    static _PyTracePool *slots[COLLIDING_SLOTS];
    const _PyTracePools none = {.slots = slots, .capacity = COLLIDING_SLOTS};
    size_t counts[2] = {0, 0};
    uintptr_t ptr = UINT64_C(0x550000000000);
    while (counts[0] < MAX_COLLIDING || counts[1] < MAX_COLLIDING) {
        size_t home = (size_t)(_PyTracePools_Probe(&none, ptr) - slots);
        size_t which = home != 0;
        if ((home == 0 || home == COLLIDING_SLOTS - 1)
            && counts[which] < MAX_COLLIDING)
        {
            colliding[which][counts[which]++] = ptr;
        }
        ptr += POOL_SIZE;
    }
}

// Blocks of a family of pools.
typedef struct {
    unsigned int kind;
    size_t block_size;
    size_t base;                  // number of the first pool
    size_t block;                 // and of the first block
    size_t offset;                // in each block
    uintptr_t given;
    bool across;                  // one block in each pool?
} fuzz_keys_of_pools;

static fuzz_keys_of_pools
next_pools(fuzz_state *f, unsigned int flags)
{
    fuzz_input *input = &f->input;
    unsigned int byte = next_byte(input);
    fuzz_keys_of_pools keys = {.kind = byte & 7, .across = flags & 1};
    keys.block_size = ((byte >> 3) + 1) * ALIGNMENT;
    keys.block_size = Py_MIN(keys.block_size, SMALL_REQUEST_THRESHOLD);
    keys.base = next_byte(input);
    // Some of the first or of the last ones.
    keys.block = next_byte(input);
    size_t nblocks = (POOL_SIZE - POOL_OVERHEAD) / keys.block_size;
    if (keys.block >= 128) {
        keys.block += nblocks - Py_MIN(nblocks, 256);
    }
    keys.block %= nblocks;
    const size_t offsets[] = {0, ALIGNMENT, 1, keys.block_size - 1};
    keys.offset = offsets[flags >> 1 & 3] % keys.block_size;
    if (keys.kind == 7 && f->used > 0) {
        // Blocks of another size may be there.
        keys.given = f->blocks[model_next(f, 4 * keys.base)].ptr;
    }
    return keys;
}

static uintptr_t
pool_at(const fuzz_keys_of_pools *keys, size_t i)
{
    switch (keys->kind) {
    case 0:
        // 0 and 1 and what comes after them.
        return (keys->base + i) * POOL_SIZE;
    case 1:
        return pool_of(UINTPTR_MAX) - (keys->base + i) * POOL_SIZE;
    case 2:
        // Those of arenas.
        return UINT64_C(0x7F0000000000) + (keys->base + i) * POOL_SIZE;
    case 3:
        // Some of several arenas.
        return UINT64_C(0x7F0000000000) + (keys->base + i) * ARENA_SIZE;
    case 4:
        return colliding[0][(keys->base + i) % MAX_COLLIDING];
    case 5:
        // Probes wrap around.
        return colliding[1][(keys->base + i) % MAX_COLLIDING];
    case 6:
        // The address differs in the high bits alone.
        return (keys->base + i) << 52;
    default:
        return pool_of(keys->given) + i * POOL_SIZE;
    }
}

static uintptr_t
block_at(const fuzz_keys_of_pools *keys, size_t i)
{
    size_t nblocks = (POOL_SIZE - POOL_OVERHEAD) / keys->block_size;
    size_t pool = i, block = keys->block;
    if (!keys->across) {
        block += i;
        pool = block / nblocks;
    }
    return pool_at(keys, pool) + POOL_OVERHEAD
           + block % nblocks * keys->block_size + keys->offset;
}

// With blocks of pools that the input makes up.
static void
do_pools(fuzz_state *f, const fuzz_step *what)
{
    fuzz_keys_of_pools keys = next_pools(f, what->flags);
    uint16_t size = 1;
    if (what->op <= 2) {
        size = (uint16_t)next_number(&f->input, UINT16_MAX);
    }
    for (size_t i = 0; i < what->count; i++) {
        uintptr_t ptr = block_at(&keys, i);
        switch (what->op) {
        case 0: case 1: case 2:
            op_add(f, ptr, keys.block_size, size);
            break;
        case 3: case 4:
            op_remove(f, ptr);
            break;
        case 8:
            // Not every pool that is made known gets a block.
            (void)op_prepare(f, ptr, keys.block_size);
            break;
        case 10:
            (void)check_find(f, ptr);
            break;
        default:
            // Add and remove in turns: pools become empty, and are dropped.
            op_add(f, ptr, keys.block_size, size);
            op_remove(f, ptr);
            break;
        }
    }
    if (what->op == 10) {
        check_around(f, block_at(&keys, 0));
    }
}

// With any addresses of a pool, in what remains at its end, too.
static void
do_addresses(fuzz_state *f, const fuzz_step *what)
{
    fuzz_keys_of_pools keys = next_pools(f, what->flags);
    uintptr_t ptr = (pool_at(&keys, 0)
                     + next_bytes(&f->input, 2) % POOL_SIZE);
    uint16_t size = 0;
    if (what->op == 9) {
        size = (uint16_t)next_number(&f->input, UINT16_MAX);
    }
    for (size_t i = 0; i < what->count; i++) {
        if (what->op == 9) {
            op_add(f, ptr + i * (1 + keys.offset), keys.block_size, size);
        }
        else {
            (void)check_find(f, ptr + i);
        }
    }
}

// With blocks that have a trace.
static void
do_blocks(fuzz_state *f, const fuzz_step *what)
{
    size_t i = 4 * next_byte(&f->input);
    uint16_t size = 0;
    if (what->op == 7) {
        size = (uint16_t)next_number(&f->input, UINT16_MAX);
    }
    for (size_t n = what->count; n > 0 && f->used > 0; n--) {
        i = model_next(f, i);
        if (what->op == 7) {
            op_change(f, f->blocks[i].ptr, size);
            i++;
        }
        else {
            op_remove(f, f->blocks[i].ptr);
            i += 1 + (what->flags & 3);
        }
    }
}

static void
step(fuzz_state *f)
{
    fuzz_step what = next_step(&f->input);

    switch (what.op) {
    case 5: case 6: case 7:
        do_blocks(f, &what);
        break;
    case 9: case 13:
        do_addresses(f, &what);
        break;
    case 11:
        next_failure(&f->input, &f->heap);
        if (f->heap.fail_in > 0 && what.flags & 1) {
            // Not before the pools need slots, if each call is for a pool.
            f->heap.fail_in += (unsigned int)(
                f->pools.capacity / 2 - f->pools.npools);
        }
        break;
    case 12:
        f->heap.fail_in = 0;
        break;
    case 14:
        // Rarely, since it undoes what took many bytes.
        if (what.flags == 7) {
            op_clear(f);
        }
        break;
    default:
        do_pools(f, &what);
        break;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_state *f = &state;
    if (colliding[0][0] == 0) {
        find_colliding();
    }
    memset(f, 0, sizeof(*f));
    f->input = (fuzz_input){data, size};
    heap_init(&f->heap);
    _PyTracePools_Init(&f->pools, &f->heap.allocator);
    check_all(f);
    for (size_t i = 0; f->input.size > 0; i++) {
        step(f);
        check_counts(f);
        // Long inputs are not to take for ever.
        f->work += 1 + f->heap.bytes / sizeof(_PyTracePooled);
        if (f->work < WORK || i % 32 == 0) {
            check_all(f);
        }
    }
    check_all(f);
    op_clear(f);
    return 0;
}
