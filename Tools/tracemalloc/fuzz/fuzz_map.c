// Fuzz target: the map of traces (Python/tracemalloc_map.c), compared with an
// array.

#include "fuzz.h"

#define MAX_KEYS 1024             // in the map at a time
#define MAX_RESERVED 2048
#define MAX_MOVED 64              // slots moved by one call
#define MAX_GONE 8
#define WORK 20000                // traces checked after every operation

typedef struct {
    fuzz_input input;
    fuzz_heap heap;
    _PyTraceMap map;

    // The model.  Element i is free if its ptr is 0, and its traceback tells
    // its index.
    _PyTraceBlock blocks[MAX_KEYS];
    size_t top;                   // elements from here on are free
    size_t used;
    size_t reserved;
    size_t most;                  // slots taken without memory for more, or 0

    uintptr_t gone[MAX_GONE];     // the last ones removed
    size_t ngone;
    uint32_t serial;
    size_t work;
} fuzz_state;

static fuzz_state state;


/* --- The model ---------------------------------------------------------- */

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

static size_t
model_add(fuzz_state *f, uintptr_t ptr)
{
    size_t i = 0;
    while (i < f->top && f->blocks[i].ptr != 0) {
        i++;
    }
    f->top = Py_MAX(f->top, i + 1);
    f->blocks[i].ptr = ptr;
    f->used++;
    return i;
}

static void
model_remove(fuzz_state *f, size_t i)
{
    f->blocks[i].ptr = 0;
    f->used--;
    while (f->top > 0 && f->blocks[f->top - 1].ptr == 0) {
        f->top--;
    }
}

// The next one in the map from the i-th on, cyclically.
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
same_block(const _PyTraceBlock *a, const _PyTraceBlock *b)
{
    return a->ptr == b->ptr && a->size == b->size
           && a->traceback == b->traceback;
}

// The trace is found just if the model has it.
static _PyTraceBlock *
check_find(fuzz_state *f, uintptr_t ptr)
{
    _PyTraceBlock *block = _PyTraceMap_Find(&f->map, ptr);
    size_t i = model_find(f, ptr);
    if (i == MAX_KEYS) {
        CHECK(block == NULL, "found a trace of %zx", (size_t)ptr);
    }
    else {
        CHECK(block != NULL, "lost the trace of %zx", (size_t)ptr);
        CHECK(same_block(block, &f->blocks[i]),
              "the trace of %zx is wrong", (size_t)ptr);
    }
    return block;
}

static void
check_counts(const fuzz_state *f)
{
    const _PyTraceMap *map = &f->map;
    size_t taken = map->used + map->reserved;
    CHECK(map->used == f->used, "%zu traces, not %zu", map->used, f->used);
    CHECK(map->reserved == f->reserved, "%zu reservations, not %zu",
          map->reserved, f->reserved);
    CHECK(taken <= Py_MAX(map->limit, f->most)
          && (map->capacity == 0 || Py_MAX(taken, map->limit) < map->capacity),
          "%zu traces and %zu reservations in %zu slots",
          map->used, map->reserved, map->capacity);
    CHECK(_PyTraceMap_Memory(map) == f->heap.bytes,
          "%zu bytes are held, but %zu reported",
          f->heap.bytes, _PyTraceMap_Memory(map));
    CHECK((size_t)(map->slots != NULL) + (map->old != NULL) == f->heap.live,
          "%zu blocks are held", f->heap.live);
}

// Only old slots may hold a mark.
static void
check_marks(const _PyTraceMap *map)
{
    for (size_t i = 0; i < map->capacity; i++) {
        CHECK(map->slots[i].ptr == 0
              || map->slots[i].ptr >= _PyTraceBlock_MIN_PTR,
              "slot %zu holds a mark", i);
    }
}

static void
check_copy(const fuzz_state *f)
{
    static _PyTrace out[MAX_KEYS];
    static bool seen[MAX_KEYS];
    memset(seen, 0, sizeof(seen));
    _PyTraceMap_Copy(&f->map, out);
    for (size_t i = 0; i < f->used; i++) {
        size_t key = index_of_traceback(out[i].traceback);
        const _PyTraceBlock *block = &f->blocks[key];
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
    const _PyTraceMap *map = &f->map;
    size_t calls = f->heap.calls;
    check_counts(f);
    CHECK(_PyTraceMap_IsValid(map), "the map is not valid");
    check_marks(map);
    for (size_t i = 0; i < f->top; i++) {
        const _PyTraceBlock *block = &f->blocks[i];
        if (block->ptr != 0) {
            const _PyTraceBlock *found = _PyTraceMap_Find(map, block->ptr);
            CHECK(found != NULL && same_block(found, block),
                  "the trace of %zx is lost or wrong", (size_t)block->ptr);
        }
    }
    check_copy(f);
    for (size_t i = 0; i < MAX_GONE; i++) {
        (void)check_find(f, f->gone[i]);
    }
    for (uintptr_t ptr = 0; ptr < _PyTraceBlock_MIN_PTR; ptr++) {
        CHECK(_PyTraceMap_Find(map, ptr) == NULL, "found %zx", (size_t)ptr);
    }
    CHECK(f->heap.calls == calls, "looking allocates memory");
}

// What was in the map before a call that may move old slots?
static void
check_moved(const fuzz_state *f, const _PyTraceMap *before)
{
    const _PyTraceMap *map = &f->map;
    if (before->old == NULL) {
        return;
    }
    CHECK(map->slots == before->slots, "resized while there are old slots");
    size_t moved = map->old != NULL ? map->moved : before->old_capacity;
    CHECK(moved > before->moved, "nothing moves");
    CHECK(moved - before->moved <= MAX_MOVED, "%zu slots moved by one call",
          moved - before->moved);
}


/* --- Operations --------------------------------------------------------- */

// Without memory fifteen sixteenths of the slots may be taken, in steps of 16.
static bool
has_last_room(const _PyTraceMap *map)
{
    return map->used + map->reserved < map->capacity / 16 * 15;
}

static bool
op_reserve(fuzz_state *f, bool anyway)
{
    if (f->reserved == MAX_RESERVED) {
        return false;
    }
    _PyTraceMap before = f->map;
    size_t failures = f->heap.failures;
    bool has_room = _PyTraceMap_HasRoom(&f->map);
    int result = (anyway ? _PyTraceMap_ReserveAnyway(&f->map)
                         : _PyTraceMap_Reserve(&f->map));
    bool failed = f->heap.failures > failures;
    CHECK(failed || result == 0, "reserving fails with memory");
    CHECK(!failed || anyway || result < 0, "reserved without memory");
    CHECK(result == 0 || !anyway || !has_last_room(&before),
          "there was room for %zu traces in %zu slots",
          before.used + before.reserved + 1, before.capacity);
    CHECK(result == 0 || !has_room, "there was room");
    f->reserved += result == 0;
    if (result == 0 && failed) {
        f->most = f->used + f->reserved;
    }
    CHECK(f->map.reserved == f->reserved, "%zu reservations, not %zu",
          f->map.reserved, f->reserved);
    check_moved(f, &before);
    return result == 0;
}

static void
op_unreserve(fuzz_state *f)
{
    if (f->reserved > 0) {
        _PyTraceMap_Unreserve(&f->map);
        f->reserved--;
    }
}

// Without a reservation, if there is room and `plainly`.
static void
op_put(fuzz_state *f, uintptr_t ptr, uint32_t size, bool plainly)
{
    if (ptr < _PyTraceBlock_MIN_PTR || check_find(f, ptr) != NULL
        || f->used == MAX_KEYS)
    {
        return;
    }
    plainly = plainly && _PyTraceMap_HasRoom(&f->map);
    if (!plainly && f->reserved == 0 && !op_reserve(f, false)) {
        return;
    }
    size_t i = model_add(f, ptr);
    f->blocks[i] = (_PyTraceBlock){ptr, size, new_traceback(f, i)};
    size_t calls = f->heap.calls;
    if (plainly) {
        _PyTraceBlock *slot = _PyTraceMap_Probe(&f->map, ptr);
        _PyTraceMap_AddAt(&f->map, slot, f->blocks[i]);
    }
    else {
        f->reserved--;
        _PyTraceMap_Put(&f->map, f->blocks[i]);
    }
    CHECK(f->heap.calls == calls, "to put allocates memory");
}

static void
op_remove(fuzz_state *f, uintptr_t ptr, bool keep_room)
{
    _PyTraceBlock *block = check_find(f, ptr);
    if (block == NULL || (keep_room && f->reserved == MAX_RESERVED)) {
        return;
    }
    _PyTraceMap before = f->map;
    _PyTraceMap_Remove(&f->map, block, keep_room);
    check_moved(f, &before);
    model_remove(f, model_find(f, ptr));
    f->reserved += keep_room;
    f->gone[f->ngone++ % MAX_GONE] = ptr;
    CHECK(f->map.slots == before.slots
          || f->map.used + f->map.reserved <= f->map.limit / 2 + 1,
          "the map has shrunk so far that it will soon grow again");
}

static void
op_change(fuzz_state *f, uintptr_t ptr, uint32_t size)
{
    _PyTraceBlock *block = check_find(f, ptr);
    if (block != NULL) {
        size_t i = model_find(f, ptr);
        block->size = f->blocks[i].size = size;
        block->traceback = f->blocks[i].traceback = new_traceback(f, i);
    }
}

// What is taken out can be put back without memory.
static void
op_replace(fuzz_state *f, uintptr_t ptr, uint32_t size)
{
    if (check_find(f, ptr) != NULL && f->reserved < MAX_RESERVED) {
        op_remove(f, ptr, true);
        size_t reserved = f->reserved;
        op_put(f, ptr, size, false);
        CHECK(f->reserved == reserved - 1 && model_find(f, ptr) < MAX_KEYS,
              "what was removed could not be put back");
    }
}

static void
op_clear(fuzz_state *f)
{
    _PyTraceMap_Clear(&f->map);
    memset(f->blocks, 0, sizeof(f->blocks));
    f->top = f->used = f->reserved = f->most = 0;
    CHECK(f->heap.live == 0 && f->heap.bytes == 0, "%zu blocks are leaked",
          f->heap.live);
}

// With keys that the input makes up.
static void
do_keys(fuzz_state *f, const fuzz_step *what)
{
    fuzz_keys keys = next_keys(&f->input);
    bool flag = what->flags & 1;
    uint32_t size = 1;
    if (what->op <= 2) {
        size = (uint32_t)next_number(&f->input, UINT32_MAX);
    }
    for (size_t i = 0; i < what->count; i++) {
        uintptr_t ptr = key_at(&keys, 0, i);
        switch (what->op) {
        case 0: case 1: case 2:
            op_put(f, ptr, size, flag);
            break;
        case 3: case 4:
            op_remove(f, ptr, flag);
            break;
        case 10:
            (void)check_find(f, ptr);
            break;
        default:
            // Put and remove in turns, which moves old slots at any size.
            op_put(f, ptr, size, flag);
            op_remove(f, ptr, what->flags & 2);
            break;
        }
    }
}

// With blocks that are in the map.
static void
do_blocks(fuzz_state *f, const fuzz_step *what)
{
    size_t i = 4 * next_byte(&f->input);
    bool flag = what->flags & 1;
    uint32_t size = 0;
    if (what->op == 7) {
        size = (uint32_t)next_number(&f->input, UINT32_MAX);
    }
    for (size_t n = what->count; n > 0 && f->used > 0; n--) {
        i = model_next(f, i);
        if (what->op != 7) {
            op_remove(f, f->blocks[i].ptr, flag);
            i += 1 + (what->flags >> 1 & 3);
            continue;
        }
        if (flag) {
            op_replace(f, f->blocks[i].ptr, size);
        }
        else {
            op_change(f, f->blocks[i].ptr, size);
        }
        i++;
    }
}

static void
step(fuzz_state *f)
{
    fuzz_step what = next_step(&f->input);
    size_t count = what.count;

    switch (what.op) {
    case 5: case 6: case 7:
        do_blocks(f, &what);
        break;
    case 8:
        while (count-- > 0 && op_reserve(f, what.flags & 1)) {
        }
        break;
    case 9:
        while (count-- > 0) {
            op_unreserve(f);
        }
        break;
    case 11:
        next_failure(&f->input, &f->heap);
        break;
    case 12:
        f->heap.fail_in = 0;
        break;
    case 13:
        f->reserved = Py_MIN(f->reserved, what.flags);
        _PyTraceMap_ForgetReservations(&f->map, f->reserved);
        break;
    case 14:
        // Rarely, since it undoes what took many bytes.
        if (what.flags == 7) {
            op_clear(f);
        }
        break;
    default:
        do_keys(f, &what);
        break;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_state *f = &state;
    memset(f, 0, sizeof(*f));
    f->input = (fuzz_input){data, size};
    heap_init(&f->heap);
    _PyTraceMap_Init(&f->map, &f->heap.allocator);
    check_all(f);
    for (size_t i = 0; f->input.size > 0; i++) {
        step(f);
        check_counts(f);
        // Long inputs are not to take for ever.
        f->work += 1 + f->used;
        if (f->work < WORK || i % 32 == 0) {
            check_all(f);
        }
    }
    check_all(f);
    op_clear(f);
    return 0;
}
