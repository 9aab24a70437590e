// C Extension module to test the containers of tracemalloc: the table of
// traces (Python/tracemalloc_table.c), the map of traces (tracemalloc_map.c)
// and the interned tracebacks (tracemalloc_intern.c).
//
// They get their memory from an allocator that counts, can be told to fail,
// moves a block whenever it is resized, and notices writes behind a block.

#include "parts.h"
#include "pycore_tracemalloc_containers.h"  // _PyTraceTable

// Leave the test function; run() cleans up.
#define CHECK(COND, ...) \
    do { \
        if (!(COND)) { \
            PyErr_Format(PyExc_AssertionError, __VA_ARGS__); \
            return -1; \
        } \
    } while (0)


/* --- Allocator ---------------------------------------------------------- */

#define NEVER SIZE_MAX
#define LIVE_MAGIC 0x5AFEB10C
#define GUARD_SIZE 64
#define GUARD_BYTE 0xA7
#define NEW_BYTE 0xCB
#define OLD_BYTE 0xDB

// Stands before each block.
typedef struct test_block {
    struct test_block *next;
    struct test_block *previous;
    size_t size;
    size_t magic;
} test_block;

typedef struct {
    test_block blocks;            // head of the circular list of live blocks
    size_t live;                  // number of live blocks
    size_t bytes;                 // and the sum of their sizes
    size_t calls;                 // of malloc(), calloc() and realloc()
    size_t fail_at;               // number of the call that fails
    bool fail_on;                 // and do all after it fail, too?
    bool damaged;                 // found a block that is not in order
} test_heap;

static void
heap_init(test_heap *heap)
{
    *heap = (test_heap){.fail_at = NEVER};
    heap->blocks.next = heap->blocks.previous = &heap->blocks;
}

static void
heap_fail_at(test_heap *heap, size_t call, bool fail_on)
{
    heap->calls = 0;
    heap->fail_at = call;
    heap->fail_on = fail_on;
}

static bool
block_is_intact(const test_block *block)
{
    if (block->magic != LIVE_MAGIC) {
        return false;
    }
    const unsigned char *guard =
        (const unsigned char *)(block + 1) + block->size;
    for (size_t i = 0; i < GUARD_SIZE; i++) {
        if (guard[i] != GUARD_BYTE) {
            return false;
        }
    }
    return true;
}

static bool
heap_is_intact(const test_heap *heap)
{
    const test_block *block = heap->blocks.next;
    for (; block != &heap->blocks; block = block->next) {
        if (!block_is_intact(block)) {
            return false;
        }
    }
    return !heap->damaged;
}

static void *
heap_new_block(test_heap *heap, size_t size, int fill)
{
    size_t call = heap->calls++;
    if (call == heap->fail_at || (call > heap->fail_at && heap->fail_on)) {
        return NULL;
    }
    test_block *block = PyMem_RawMalloc(sizeof(*block) + size + GUARD_SIZE);
    if (block == NULL) {
        return NULL;
    }
    *block = (test_block){
        .next = heap->blocks.next,
        .previous = &heap->blocks,
        .size = size,
        .magic = LIVE_MAGIC,
    };
    block->next->previous = block;
    block->previous->next = block;
    heap->live++;
    heap->bytes += size;
    memset(block + 1, fill, size);
    memset((char *)(block + 1) + size, GUARD_BYTE, GUARD_SIZE);
    return block + 1;
}

static void *
test_malloc(void *ctx, size_t size)
{
    return heap_new_block(ctx, size, NEW_BYTE);
}

static void *
test_calloc(void *ctx, size_t nelem, size_t elsize)
{
    return heap_new_block(ctx, nelem * elsize, 0);
}

static void
test_free(void *ctx, void *ptr)
{
    test_heap *heap = ctx;
    test_block *block = (test_block *)ptr - 1;
    if (!block_is_intact(block)) {
        // Leaking it is safer than to trust what is written there.
        heap->damaged = true;
        return;
    }
    block->next->previous = block->previous;
    block->previous->next = block->next;
    heap->live--;
    heap->bytes -= block->size;
    memset(block, OLD_BYTE, sizeof(*block) + block->size);
    PyMem_RawFree(block);
}

// Always moves, so that a stale pointer is noticed.
static void *
test_realloc(void *ctx, void *ptr, size_t size)
{
    void *copy = test_malloc(ctx, size);
    if (copy != NULL && ptr != NULL) {
        memcpy(copy, ptr, Py_MIN(size, ((test_block *)ptr - 1)->size));
        test_free(ctx, ptr);
    }
    return copy;
}


/* --- What each test starts with ----------------------------------------- */

typedef struct {
    test_heap heap;
    PyMemAllocatorEx allocator;
    uint64_t random_state;
    _PyTraceTable table;
    _PyTraceTable ruler;          // see home_slot()
    _PyTraceMap map;
    _PyTracePools pools;
    _PyTraceIntern intern;
    _PyTraceIntern copy;
    void *scratch;                // freed with PyMem_RawFree() at the end
    size_t scratch_length;
} test_state;

// The same sequence in every run (Vigna's SplitMix64).
static uint64_t
next_random(test_state *t)
{
    uint64_t z = (t->random_state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static size_t
random_below(test_state *t, size_t bound)
{
    return (size_t)(next_random(t) % bound);
}

static size_t
reported_memory(const test_state *t)
{
    return _PyTraceTable_Memory(&t->table)
           + _PyTraceTable_Memory(&t->ruler)
           + _PyTraceMap_Memory(&t->map)
           + _PyTracePools_Memory(&t->pools)
           + _PyTraceIntern_Memory(&t->intern)
           + _PyTraceIntern_Memory(&t->copy);
}

static int
check_memory(const test_state *t)
{
    CHECK(heap_is_intact(&t->heap), "memory was written out of bounds");
    CHECK(reported_memory(t) == t->heap.bytes,
          "%zu bytes are held, but %zu reported",
          t->heap.bytes, reported_memory(t));
    return 0;
}

static void
clear_containers(test_state *t)
{
    _PyTraceTable_Clear(&t->table);
    _PyTraceTable_Clear(&t->ruler);
    _PyTraceMap_Clear(&t->map);
    _PyTracePools_Clear(&t->pools);
    _PyTraceIntern_Clear(&t->intern);
    _PyTraceIntern_Clear(&t->copy);
}

static int
check_all_freed(const test_state *t)
{
    CHECK(t->heap.live == 0, "%zu blocks of memory are leaked", t->heap.live);
    return check_memory(t);
}

static PyObject *
run(int (*test)(test_state *))
{
    test_state t = {.scratch = NULL};
    heap_init(&t.heap);
    t.allocator = (PyMemAllocatorEx){
        &t.heap, test_malloc, test_calloc, test_realloc, test_free};
    _PyTraceTable_Init(&t.table, &t.allocator);
    _PyTraceTable_Init(&t.ruler, &t.allocator);
    _PyTraceMap_Init(&t.map, &t.allocator);
    _PyTracePools_Init(&t.pools, &t.allocator);
    _PyTraceIntern_Init(&t.intern, &t.allocator);
    _PyTraceIntern_Init(&t.copy, &t.allocator);

    int result = test(&t);
    if (result == 0) {
        result = check_memory(&t);
    }
    clear_containers(&t);
    if (result == 0) {
        result = check_all_freed(&t);
    }
    PyMem_RawFree(t.scratch);
    if (result < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void *
get_scratch(test_state *t, size_t nelem, size_t elsize)
{
    t->scratch = PyMem_RawCalloc(nelem, elsize);
    if (t->scratch == NULL) {
        PyErr_NoMemory();
    }
    return t->scratch;
}


/* --- Table: helpers ----------------------------------------------------- */

static int
reserve(_PyTraceTable *table)
{
    CHECK(_PyTraceTable_Reserve(table) == 0, "no room for a trace");
    CHECK(table->used + table->reserved <= table->limit
          && table->limit < table->capacity,
          "%zu traces and %zu reservations in %zu slots",
          table->used, table->reserved, table->capacity);
    return 0;
}

static int
add_trace(_PyTraceTable *table, const _PyTrace *trace)
{
    if (reserve(table) < 0) {
        return -1;
    }
    size_t reserved = table->reserved;
    _PyTraceTable_Put(table, trace);
    CHECK(table->reserved == reserved - 1, "a put keeps its reservation");
    return 0;
}

static int
remove_trace(_PyTraceTable *table, const _PyTrace *trace)
{
    _PyTrace *found = _PyTraceTable_Find(table, trace->domain, trace->ptr);
    CHECK(found != NULL, "lost the trace of (%u, %zx)",
          trace->domain, (size_t)trace->ptr);
    size_t capacity = table->capacity;
    _PyTraceTable_Remove(table, found, false);
    CHECK(table->capacity == capacity
          || table->used + table->reserved <= table->limit / 2,
          "the table has shrunk so far that it will soon grow again");
    return 0;
}

static bool
same_trace(const _PyTrace *a, const _PyTrace *b)
{
    return a->ptr == b->ptr && a->size == b->size
           && a->traceback == b->traceback && a->domain == b->domain;
}

// Is the table what the model says?  Elements without a traceback are keys
// that must not be in the table.
static int
check_found(const _PyTraceTable *table, const _PyTrace *expected)
{
    const _PyTrace *found =
        _PyTraceTable_Find(table, expected->domain, expected->ptr);
    if (expected->traceback == _PyTraceback_NONE) {
        CHECK(found == NULL, "found a trace that is not there (%u, %zx)",
              expected->domain, (size_t)expected->ptr);
        return 0;
    }
    CHECK(found != NULL, "lost the trace of (%u, %zx)",
          expected->domain, (size_t)expected->ptr);
    CHECK(same_trace(found, expected), "the trace of (%u, %zx) is wrong",
          expected->domain, (size_t)expected->ptr);
    return 0;
}

static int
check_table(const test_state *t, const _PyTrace *model, size_t nkeys)
{
    size_t used = 0;
    for (size_t i = 0; i < nkeys; i++) {
        if (check_found(&t->table, &model[i]) < 0) {
            return -1;
        }
        used += model[i].traceback != _PyTraceback_NONE;
    }
    CHECK(t->table.used == used, "%zu traces are counted as %zu",
          used, t->table.used);
    CHECK(_PyTraceTable_IsValid(&t->table), "the table is not valid");
    return check_memory(t);
}

static bool
table_is_unchanged(const _PyTraceTable *a, const _PyTraceTable *b)
{
    return a->allocator == b->allocator && a->slots == b->slots
           && a->capacity == b->capacity && a->limit == b->limit
           && a->used == b->used && a->reserved == b->reserved;
}

// A trace for a test that does not care about its content.
static _PyTrace
plain_trace(size_t i)
{
    return (_PyTrace){
        .ptr = 0x10000 + i * 16,
        .size = i,
        .traceback = _PyTraceback_UNKNOWN,
    };
}

// Grow the ruler until it has as many slots as a table of `limit` traces.
static int
set_ruler(test_state *t, size_t limit)
{
    while (t->ruler.limit < limit || t->ruler.reserved < t->ruler.limit) {
        if (reserve(&t->ruler) < 0) {
            return -1;
        }
    }
    return 0;
}

// The first slot that is probed: where a trace goes when all are free.  All
// of the ruler's room stays reserved, so that it never changes its size.
static size_t
home_slot(test_state *t, unsigned int domain, uintptr_t ptr)
{
    _PyTrace trace = {
        .ptr = ptr, .domain = domain, .traceback = _PyTraceback_UNKNOWN};
    _PyTraceTable_Put(&t->ruler, &trace);
    _PyTrace *slot = _PyTraceTable_Find(&t->ruler, domain, ptr);
    size_t home = (size_t)(slot - t->ruler.slots);
    _PyTraceTable_Remove(&t->ruler, slot, false);
    (void)_PyTraceTable_Reserve(&t->ruler);
    return home;
}


/* --- Table: random operations compared with an array -------------------- */

static const unsigned int test_domains[] = {0, 1, UINT_MAX};

typedef struct {
    _PyTrace *traces;             // all keys; no traceback: not in the table
    size_t nkeys;                 // at most MAX_KEYS
    size_t used;
    size_t reserved;
} table_model;

#define MAX_KEYS 4096

static int
model_reserve(test_state *t, table_model *model)
{
    model->reserved++;
    return reserve(&t->table);
}

static int
model_put(test_state *t, table_model *model, size_t i)
{
    if (model->reserved == 0 && model_reserve(t, model) < 0) {
        return -1;
    }
    _PyTrace *trace = &model->traces[i];
    // The index tells check_copy() which one it is.
    trace->size = random_below(t, 1000) * MAX_KEYS + i;
    trace->traceback = 1 + (_PyTraceback_Id)random_below(t, UINT32_MAX);
    model->reserved--;
    model->used++;
    size_t calls = t->heap.calls;
    _PyTraceTable_Put(&t->table, trace);
    CHECK(t->heap.calls == calls, "a reserved put allocates memory");
    return 0;
}

static int
model_change_or_remove(test_state *t, table_model *model, size_t i)
{
    _PyTrace *trace = &model->traces[i];
    if (random_below(t, 4) == 0) {
        _PyTrace *found =
            _PyTraceTable_Find(&t->table, trace->domain, trace->ptr);
        trace->traceback = found->traceback =
            1 + (_PyTraceback_Id)random_below(t, UINT32_MAX);
    }
    else {
        model->used--;
        if (remove_trace(&t->table, trace) < 0) {
            return -1;
        }
        trace->traceback = _PyTraceback_NONE;
    }
    return 0;
}

// `growing`: rather put than remove.
static int
model_step(test_state *t, table_model *model, bool growing)
{
    size_t i = random_below(t, model->nkeys);
    if (check_found(&t->table, &model->traces[i]) < 0) {
        return -1;
    }
    bool absent = model->traces[i].traceback == _PyTraceback_NONE;
    size_t dice = random_below(t, 16);
    if (dice == 0 && model->reserved < 8
        && model->used + model->reserved < model->nkeys)
    {
        return model_reserve(t, model);
    }
    if (dice == 1 && model->reserved > 0) {
        model->reserved--;
        _PyTraceTable_Unreserve(&t->table);
        return 0;
    }
    if (absent == growing || dice == 2) {
        return absent ? model_put(t, model, i)
                      : model_change_or_remove(t, model, i);
    }
    return 0;
}

// _PyTraceTable_Copy() gives each trace once.
static int
check_copy(const test_state *t, const table_model *model)
{
    static _PyTrace out[MAX_KEYS];
    static bool seen[MAX_KEYS];
    memset(seen, 0, sizeof(seen));
    assert(t->table.used <= MAX_KEYS);
    _PyTraceTable_Copy(&t->table, out);
    for (size_t i = 0; i < t->table.used; i++) {
        size_t key = out[i].size % MAX_KEYS;
        CHECK(same_trace(&out[i], &model->traces[key]),
              "a copied trace is wrong");
        CHECK(!seen[key], "a trace was copied twice");
        seen[key] = true;
    }
    return 0;
}

static int
check_model(const test_state *t, const table_model *model)
{
    CHECK(t->table.used == model->used, "%zu traces, not %zu",
          t->table.used, model->used);
    CHECK(t->table.reserved == model->reserved, "%zu reservations, not %zu",
          t->table.reserved, model->reserved);
    if (check_table(t, model->traces, model->nkeys) < 0) {
        return -1;
    }
    return check_copy(t, model);
}

static int
compare_with_model(test_state *t, table_model *model, size_t steps)
{
    for (size_t i = 0; i < steps; i++) {
        bool growing = i / (steps / 8) % 2 == 0;
        if (model_step(t, model, growing) < 0) {
            return -1;
        }
        if (i % 499 == 0 && check_model(t, model) < 0) {
            return -1;
        }
    }
    return check_model(t, model);
}

// Keys of all sorts: small and large addresses, 0, and each of these in all
// domains.
static int
table_random(test_state *t)
{
    table_model model = {.nkeys = 3000};
    model.traces = get_scratch(t, model.nkeys, sizeof(_PyTrace));
    if (model.traces == NULL) {
        return -1;
    }
    for (size_t i = 0; i < model.nkeys; i++) {
        uintptr_t j = i / 3;
        uintptr_t ptr = j * 16;
        if (j % 2) {
            ptr = (j * (uintptr_t)UINT64_C(0x9E3779B97F4A7C15) << 1) | 1;
        }
        else if (j % 4) {
            ptr = UINTPTR_MAX - 15 - j * 4096;
        }
        model.traces[i].ptr = ptr;
        model.traces[i].domain = test_domains[i % 3];
    }
    return compare_with_model(t, &model, 160000);
}

// A smallest table, full of keys whose home is one of a few slots next to its
// end: one long cluster which wraps around.
static int
table_collisions(test_state *t)
{
    if (set_ruler(t, 1) < 0) {
        return -1;
    }
    size_t capacity = t->ruler.capacity;
    table_model model = {.nkeys = t->ruler.limit};
    model.traces = get_scratch(t, model.nkeys, sizeof(_PyTrace));
    if (model.traces == NULL) {
        return -1;
    }
    size_t i = 0;
    for (uintptr_t ptr = 0; i < model.nkeys; ptr += 8) {
        CHECK(ptr < 1 << 24, "no address has its home at the table's end");
        unsigned int domain = test_domains[ptr / 8 % 3];
        size_t home = home_slot(t, domain, ptr);
        // More and more of the table: the last 5, 10 ... slots.
        if (home >= capacity - 5 - i / 12 * 5) {
            model.traces[i].ptr = ptr;
            model.traces[i].domain = domain;
            i++;
        }
    }
    if (compare_with_model(t, &model, 80000) < 0) {
        return -1;
    }
    CHECK(t->table.capacity == capacity, "the table grew without need");
    return 0;
}

// The same address in two domains is two blocks, and so is address 0.
static int
table_keys(test_state *t)
{
    const uintptr_t ptrs[] = {0, 1, 16, UINTPTR_MAX};
    _PyTrace model[12];
    for (size_t i = 0; i < 12; i++) {
        model[i] = (_PyTrace){
            .ptr = ptrs[i / 3],
            .domain = test_domains[i % 3],
        };
    }
    if (check_table(t, model, 12) < 0) {
        return -1;
    }
    for (size_t i = 0; i < 12; i++) {
        model[i].size = i * 1000;
        model[i].traceback = UINT32_MAX - (_PyTraceback_Id)i;
        if (add_trace(&t->table, &model[i]) < 0
            || check_table(t, model, 12) < 0)
        {
            return -1;
        }
    }
    for (size_t i = 0; i < 12; i++) {
        if (remove_trace(&t->table, &model[i]) < 0) {
            return -1;
        }
        model[i].traceback = _PyTraceback_NONE;
        if (check_table(t, model, 12) < 0) {
            return -1;
        }
    }
    return 0;
}


/* --- Table: does the walker see a broken table? ------------------------- */

static int
table_is_valid(test_state *t)
{
    _PyTraceTable *table = &t->table;
    CHECK(_PyTraceTable_IsValid(table), "the empty table is not valid");
    for (size_t i = 0; i < 40; i++) {
        _PyTrace trace = plain_trace(i);
        if (add_trace(table, &trace) < 0) {
            return -1;
        }
    }
    CHECK(_PyTraceTable_IsValid(table), "the table is not valid");

    table->used++;
    CHECK(!_PyTraceTable_IsValid(table), "a wrong count goes unnoticed");
    table->used--;

    size_t reserved = table->reserved;
    table->reserved = table->limit - table->used + 1;
    CHECK(!_PyTraceTable_IsValid(table), "promises beyond the limit");
    table->reserved = reserved;

    table->limit += table->capacity;
    CHECK(!_PyTraceTable_IsValid(table), "the table may become full");
    table->limit -= table->capacity;

    // A trace that the probe for it does not reach.
    _PyTrace *slot = table->slots;
    while (slot->traceback == _PyTraceback_NONE) {
        slot++;
    }
    uintptr_t ptr = slot->ptr;
    size_t hidden = 0;
    for (size_t i = 1; i <= 32; i++) {
        slot->ptr = ptr + i;
        hidden += !_PyTraceTable_IsValid(table);
    }
    slot->ptr = ptr;
    CHECK(hidden > 0, "misplaced traces go unnoticed");
    CHECK(_PyTraceTable_IsValid(table), "the table was not restored");
    return 0;
}


/* --- Table: memory ------------------------------------------------------ */

#define FAILURE_TRACES 700

// Reserve while the heap may fail.  If it does, nothing has changed, and it
// works as soon as there is memory.
static int
reserve_or_retry(test_state *t, const _PyTrace *model, size_t *failures)
{
    _PyTraceTable before = t->table;
    size_t live = t->heap.live;
    if (_PyTraceTable_Reserve(&t->table) == 0) {
        return 0;
    }
    ++*failures;
    CHECK(table_is_unchanged(&before, &t->table),
          "a reservation that failed has changed the table");
    CHECK(t->heap.live == live, "a reservation that failed leaks");
    t->heap.fail_at = NEVER;
    if (check_table(t, model, FAILURE_TRACES) < 0) {
        return -1;
    }
    return reserve(&t->table);
}

// Fill and empty a table; allocation number `fail_at` fails.
static int
fill_and_empty(test_state *t, size_t fail_at, bool fail_on, size_t *failures)
{
    _PyTrace *model = t->scratch;
    heap_fail_at(&t->heap, fail_at, fail_on);
    for (size_t i = 0; i < FAILURE_TRACES; i++) {
        if (reserve_or_retry(t, model, failures) < 0) {
            return -1;
        }
        model[i].traceback = _PyTraceback_UNKNOWN;
        _PyTraceTable_Put(&t->table, &model[i]);
    }
    for (size_t i = 0; i < FAILURE_TRACES; i++) {
        if (remove_trace(&t->table, &model[i]) < 0) {
            return -1;
        }
        model[i].traceback = _PyTraceback_NONE;
        if (i % 16 == 0 && check_table(t, model, FAILURE_TRACES) < 0) {
            return -1;
        }
    }
    return check_table(t, model, FAILURE_TRACES);
}

static int
table_failures(test_state *t)
{
    _PyTrace *model = get_scratch(t, FAILURE_TRACES, sizeof(_PyTrace));
    if (model == NULL) {
        return -1;
    }
    for (size_t i = 0; i < FAILURE_TRACES; i++) {
        model[i] = plain_trace(i);
        model[i].traceback = _PyTraceback_NONE;
    }
    for (int fail_on = 0; fail_on < 2; fail_on++) {
        size_t failures = 0;
        size_t n = 0;
        do {
            if (fill_and_empty(t, n, fail_on, &failures) < 0) {
                return -1;
            }
            t->heap.fail_at = NEVER;
            clear_containers(t);
            if (check_all_freed(t) < 0) {
                return -1;
            }
        } while (t->heap.calls > n++);
        CHECK(failures >= 3, "only %zu reservations have failed", failures);
        CHECK(n > failures + 1, "no removal has failed to give memory back");
    }
    return 0;
}

// Take out a trace and put it back, as for a realloc() that fails.
static int
take_and_put_back(test_state *t, size_t i, bool no_memory)
{
    heap_fail_at(&t->heap, no_memory ? 0 : NEVER, true);
    _PyTrace trace = plain_trace(i);
    if (remove_trace(&t->table, &trace) < 0) {
        return -1;
    }
    size_t calls = t->heap.calls;
    CHECK(_PyTraceTable_Reserve(&t->table) == 0,
          "no room for a trace in place of another, of %zu", i + 1);
    _PyTraceTable_Put(&t->table, &trace);
    CHECK(t->heap.calls == calls,
          "a trace in place of another allocates memory, of %zu", i + 1);
    heap_fail_at(&t->heap, NEVER, false);
    return 0;
}

static int
table_take_and_put_back(test_state *t)
{
    const size_t ntraces = 2000;
    for (size_t i = 0; i < ntraces; i++) {
        _PyTrace trace = plain_trace(i);
        if (add_trace(&t->table, &trace) < 0
            || take_and_put_back(t, i, true) < 0
            || take_and_put_back(t, i, false) < 0)
        {
            return -1;
        }
    }
    for (size_t i = ntraces; i-- > 0; ) {
        if (take_and_put_back(t, i, true) < 0
            || take_and_put_back(t, i, false) < 0)
        {
            return -1;
        }
        _PyTrace trace = plain_trace(i);
        if (remove_trace(&t->table, &trace) < 0) {
            return -1;
        }
    }
    CHECK(t->table.used == 0, "the table is not empty");
    return 0;
}

// What is reserved can be put without memory, whatever happens in between.
static int
table_reservations(test_state *t)
{
    const size_t ntraces = 3000;
    for (size_t i = 0; i < ntraces; i++) {
        _PyTrace trace = plain_trace(i);
        if (add_trace(&t->table, &trace) < 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < ntraces; i++) {
        if (reserve(&t->table) < 0) {
            return -1;
        }
    }
    // The table may shrink now, but not below what is reserved.
    for (size_t i = 0; i < ntraces; i++) {
        _PyTrace trace = plain_trace(i);
        if (remove_trace(&t->table, &trace) < 0) {
            return -1;
        }
    }
    heap_fail_at(&t->heap, 0, true);
    for (size_t i = 0; i < ntraces; i++) {
        _PyTrace trace = plain_trace(i + ntraces / 2);
        _PyTraceTable_Put(&t->table, &trace);
        CHECK(t->table.used <= t->table.limit, "the table is overfull");
    }
    CHECK(t->heap.calls == 0, "a reserved put allocates memory");
    CHECK(_PyTraceTable_IsValid(&t->table), "the table is not valid");
    heap_fail_at(&t->heap, NEVER, false);
    return 0;
}

// Room for at most 8/3 times what has been needed while the table grows, and
// for 11 times what is needed after a peak.
static int
check_room(const test_state *t, size_t needed, size_t factor_thirds)
{
    size_t memory = _PyTraceTable_Memory(&t->table);
    size_t allowed = (needed * factor_thirds / 3 + 64) * sizeof(_PyTrace);
    CHECK(memory <= allowed, "%zu bytes for %zu traces, more than %zu",
          memory, needed, allowed);
    return check_memory(t);
}

static int
grow_and_shrink_by_traces(test_state *t, size_t ntraces)
{
    for (size_t i = 0; i < ntraces; i++) {
        _PyTrace trace = plain_trace(i);
        if (add_trace(&t->table, &trace) < 0
            || check_room(t, i + 1, 8) < 0)
        {
            return -1;
        }
    }
    for (size_t i = ntraces; i-- > 0; ) {
        _PyTrace trace = plain_trace(i);
        if (remove_trace(&t->table, &trace) < 0) {
            return -1;
        }
        if (check_room(t, i, 33) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
grow_and_shrink_by_reservations(test_state *t, size_t ntraces)
{
    for (size_t i = 0; i < ntraces; i++) {
        if (reserve(&t->table) < 0 || check_room(t, i + 1, 8) < 0) {
            return -1;
        }
    }
    for (size_t i = ntraces; i-- > 0; ) {
        _PyTraceTable_Unreserve(&t->table);
        if (check_room(t, i, 33) < 0) {
            return -1;
        }
    }
    return 0;
}

// No number of traces at which a few more and a few less allocate each time.
static int
check_hysteresis(test_state *t, size_t used)
{
    heap_fail_at(&t->heap, NEVER, false);
    for (size_t round = 0; round < 8; round++) {
        for (size_t i = 0; i < 3; i++) {
            _PyTrace trace = plain_trace(used + i);
            if (add_trace(&t->table, &trace) < 0) {
                return -1;
            }
        }
        for (size_t i = 0; i < 3; i++) {
            _PyTrace trace = plain_trace(used + i);
            if (remove_trace(&t->table, &trace) < 0) {
                return -1;
            }
        }
    }
    CHECK(t->heap.calls <= 1, "%zu resizes around %zu traces",
          t->heap.calls, used);
    return 0;
}

static int
table_memory(test_state *t)
{
    if (grow_and_shrink_by_traces(t, 20000) < 0
        || grow_and_shrink_by_reservations(t, 20000) < 0)
    {
        return -1;
    }
    for (size_t i = 0; i < 2000; i++) {
        _PyTrace trace = plain_trace(i);
        if (check_hysteresis(t, i) < 0 || add_trace(&t->table, &trace) < 0) {
            return -1;
        }
    }
    for (size_t i = 2000; i-- > 0; ) {
        _PyTrace trace = plain_trace(i);
        if (remove_trace(&t->table, &trace) < 0) {
            return -1;
        }
        if (check_hysteresis(t, i) < 0) {
            return -1;
        }
    }
    return 0;
}


/* --- Hash distribution -------------------------------------------------- */

// How many slots are looked at to find out that something is not there?
typedef struct {
    size_t slots;
    size_t run;                   // taken slots in a row
    size_t probes;                // one search from each of the slots
} probe_meter;

static void
meter_slot(probe_meter *meter, bool taken)
{
    meter->slots++;
    meter->run = taken ? meter->run + 1 : 0;
    meter->probes += meter->run + 1;
}

// A full table of addresses: is the mean number of probes near the theory of
// linear probing?  With 3/4 of the slots taken, that is 2.5 for what is in
// the table and 8.5 for what is not.
static int
check_distribution(test_state *t, const char *what)
{
    const _PyTraceTable *table = &t->table;
    if (set_ruler(t, table->limit) < 0) {
        return -1;
    }
    CHECK(t->ruler.capacity == table->capacity,
          "tables for as many traces differ in size");
    probe_meter meter = {0};
    size_t probes = 0;
    for (size_t i = 0; i < table->capacity; i++) {
        const _PyTrace *slot = &table->slots[i];
        bool taken = slot->traceback != _PyTraceback_NONE;
        meter_slot(&meter, taken);
        if (taken) {
            size_t home = home_slot(t, slot->domain, slot->ptr);
            size_t passed = i >= home ? i - home : i + table->capacity - home;
            probes += passed + 1;
        }
    }
    CHECK(probes <= table->used * 4,
          "%s: %zu probes to find %zu traces", what, probes, table->used);
    CHECK(meter.probes <= meter.slots * 14,
          "%s: %zu probes to miss %zu times",
          what, meter.probes, meter.slots);
    return 0;
}

static bool
table_is_full(const _PyTraceTable *table)
{
    return table->capacity >= 16384 && table->used == table->limit;
}

// Addresses like those that pools give out: `stride` apart from each other,
// in pools of `pool` bytes which are not adjacent.
static int
check_strides(test_state *t, size_t stride, size_t pool, unsigned int domain)
{
    uintptr_t ptr = (uintptr_t)UINT64_C(0x7F3A5C210040);
    uintptr_t end = ptr + pool;
    while (!table_is_full(&t->table)) {
        _PyTrace trace = {
            .ptr = ptr, .domain = domain, .traceback = _PyTraceback_UNKNOWN};
        if (add_trace(&t->table, &trace) < 0) {
            return -1;
        }
        ptr += stride;
        if (ptr + stride > end) {
            ptr = end + 7 * pool;
            end = ptr + pool;
        }
    }
    char what[64];
    PyOS_snprintf(what, sizeof(what), "domain %u, %zu bytes apart",
                  domain, stride);
    int result = check_distribution(t, what);
    clear_containers(t);
    return result;
}

static int
table_distribution(test_state *t)
{
    // The last ones are bad for a plain multiplicative (Fibonacci) hash.
    const size_t strides[] = {16, 32, 48, 64, 512, 4096, 144, 304, 1008};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(strides); i++) {
        for (size_t j = 0; j < Py_ARRAY_LENGTH(test_domains); j++) {
            unsigned int domain = test_domains[j];
            if (check_strides(t, strides[i], (size_t)1 << 28, domain) < 0
                || check_strides(t, strides[i], 16384, domain) < 0)
            {
                return -1;
            }
        }
    }
    return 0;
}

// One address in many domains.
static int
table_distribution_domains(test_state *t)
{
    _PyTrace trace = {
        .ptr = (uintptr_t)UINT64_C(0x7F3A5C210040),
        .traceback = _PyTraceback_UNKNOWN,
    };
    for (; !table_is_full(&t->table); trace.domain++) {
        if (add_trace(&t->table, &trace) < 0) {
            return -1;
        }
        CHECK(trace.domain < 20000, "the table does not become full");
    }
    return check_distribution(t, "domains");
}

static int
fill_with_malloc(test_state *t, void **blocks, size_t nblocks)
{
    for (size_t i = 0; i < nblocks; i++) {
        blocks[i] = PyMem_RawMalloc(1 + random_below(t, 600));
        if (blocks[i] == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        _PyTrace trace = {
            .ptr = (uintptr_t)blocks[i], .traceback = _PyTraceback_UNKNOWN};
        if (!table_is_full(&t->table) && add_trace(&t->table, &trace) < 0) {
            return -1;
        }
    }
    CHECK(table_is_full(&t->table), "too few blocks");
    return check_distribution(t, "malloc()");
}

static int
table_distribution_malloc(test_state *t)
{
    const size_t nblocks = 16384;
    void **blocks = get_scratch(t, nblocks, sizeof(void *));
    if (blocks == NULL) {
        return -1;
    }
    int result = fill_with_malloc(t, blocks, nblocks);
    for (size_t i = 0; i < nblocks; i++) {
        PyMem_RawFree(blocks[i]);
    }
    return result;
}


/* --- Interning: filenames ----------------------------------------------- */

#define MAX_TEXT 40

typedef struct {
    _PyTraceFilename name;
    char text[MAX_TEXT];
} test_filename;

static size_t
text_size(const _PyTraceFilename *name)
{
    return name->length * (size_t)name->kind;
}

static bool
same_filename(const _PyTraceFilename *a, const void *a_text,
              const _PyTraceFilename *b, const void *b_text)
{
    return a->hash == b->hash && a->kind == b->kind && a->length == b->length
           && (a->length == 0 || memcmp(a_text, b_text, text_size(a)) == 0);
}

// At most half full, and each id is in it once.
static int
check_index(const _PyTraceIndex *index, size_t length)
{
    CHECK(index->used == length, "%zu ids in the index, not %zu",
          index->used, length);
    CHECK(length == 0 || index->used <= (index->mask + 1) / 2,
          "an index of %zu slots has %zu ids", index->mask + 1, length);
    return 0;
}

static int
check_filename(const _PyTraceIntern *intern, uint32_t id,
               const test_filename *expected)
{
    const void *text = NULL;
    const _PyTraceFilename *name =
        _PyTraceIntern_GetFilename(intern, id, &text);
    CHECK(name != NULL, "filename %u is unknown", id);
    CHECK(same_filename(name, text, &expected->name, expected->text),
          "filename %u is wrong", id);
    CHECK((uintptr_t)text % (uintptr_t)name->kind == 0,
          "the text of filename %u is not aligned", id);
    return 0;
}

static int
intern_filename(test_state *t, const test_filename *name, uint32_t *id)
{
    // What is interned must not depend on the caller's memory.
    test_filename copy = *name;
    int result = _PyTraceIntern_Filename(&t->intern, &copy.name, copy.text,
                                         id);
    memset(&copy, OLD_BYTE, sizeof(copy));
    CHECK(result == 0, "no memory for a filename");
    return 0;
}

// Intern a filename and expect an id.
static int
check_filename_id(test_state *t, const test_filename *name, uint32_t expected)
{
    uint32_t id = UINT32_MAX;
    if (intern_filename(t, name, &id) < 0) {
        return -1;
    }
    CHECK(id == expected, "a filename has id %u, not %u", id, expected);
    // Before anything is done that a damaged heap might not survive.
    CHECK(heap_is_intact(&t->heap), "a filename was written out of bounds");
    if (check_index(&t->intern.filename_index,
                    t->intern.filenames.length) < 0)
    {
        return -1;
    }
    return check_filename(&t->intern, id, name);
}

// Few hashes, few characters, all kinds: much that is nearly the same.
static test_filename
random_filename(test_state *t)
{
    static const int kinds[] = {
        PyUnicode_1BYTE_KIND, PyUnicode_2BYTE_KIND, PyUnicode_4BYTE_KIND};
    test_filename result = {
        .name.kind = kinds[random_below(t, 3)],
        .name.length = random_below(t, 10),
        .name.hash = random_below(t, 8),
    };
    if (result.name.hash >= 4) {
        result.name.hash = ~(Py_uhash_t)0 >> result.name.hash;
    }
    // Equal bytes for any kind.
    int used = 1 + (int)random_below(t, 12);
    for (int i = 0; i < used && i < MAX_TEXT; i++) {
        result.text[i] = random_below(t, 3) == 0;
    }
    return result;
}

static int
intern_filenames(test_state *t)
{
    const size_t max_names = 3000;
    test_filename *names = get_scratch(t, max_names, sizeof(*names));
    if (names == NULL) {
        return -1;
    }
    size_t nnames = 0;
    for (size_t i = 0; i < 5000 && nnames < max_names; i++) {
        test_filename name = random_filename(t);
        size_t found = 0;
        while (found < nnames
               && !same_filename(&name.name, name.text,
                                 &names[found].name, names[found].text))
        {
            found++;
        }
        if (found == nnames) {
            names[nnames++] = name;
        }
        if (check_filename_id(t, &name, (uint32_t)found + 1) < 0
            || check_memory(t) < 0)
        {
            return -1;
        }
    }
    for (size_t i = 0; i < nnames; i++) {
        if (check_filename(&t->intern, (uint32_t)i + 1, &names[i]) < 0) {
            return -1;
        }
    }
    CHECK(nnames > 1000, "only %zu filenames", nnames);
    const void *text;
    CHECK(_PyTraceIntern_GetFilename(&t->intern, 0, &text) == NULL,
          "filename 0 is known");
    return 0;
}

// Each differs from the first in one respect.
static int
intern_filename_parts(test_state *t)
{
    const test_filename names[] = {
        {{.hash = 5, .length = 4, .kind = 1}, "abab"},
        {{.hash = 5, .length = 4, .kind = 1}, "abaa"},
        {{.hash = 5, .length = 4, .kind = 1}, "bbab"},
        {{.hash = 5, .length = 3, .kind = 1}, "aba"},
        {{.hash = 5, .length = 5, .kind = 1}, "ababa"},
        {{.hash = 5, .length = 2, .kind = 2}, "abab"},
        {{.hash = 5, .length = 1, .kind = 4}, "abab"},
        {{.hash = 5, .length = 4, .kind = 2}, "abab\0\0\0"},
        {{.hash = 5, .length = 4, .kind = 4}, "abab"},
        {{.hash = 6, .length = 4, .kind = 1}, "abab"},
        {{.hash = 5 ^ ~(~(Py_uhash_t)0 >> 1), .length = 4, .kind = 1},
         "abab"},
        {{.hash = 5, .length = 0, .kind = 1}, ""},
        {{.hash = 0, .length = 0, .kind = 1}, ""},
    };
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < Py_ARRAY_LENGTH(names); i++) {
            if (check_filename_id(t, &names[i], i + 1) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

// Texts of all sizes, wherever they come to stand in the memory for them.
static int
intern_text_sizes(test_state *t)
{
    const size_t nnames = 2000;
    for (size_t length = 0; length <= MAX_TEXT / 4; length++) {
        for (int kind = 1; kind <= 4; kind *= 2) {
            for (size_t i = 0; i < nnames; i++) {
                test_filename name = {
                    .name.kind = kind,
                    .name.length = length,
                    .name.hash = i,
                };
                memset(name.text, (int)(i % 251), sizeof(name.text));
                if (check_filename_id(t, &name, (uint32_t)i + 1) < 0) {
                    return -1;
                }
            }
            clear_containers(t);
            if (check_all_freed(t) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

// The first filename is the empty one, and there may be no other.
static int
intern_empty_filename(test_state *t)
{
    const test_filename empty = {{.hash = 0, .length = 0, .kind = 1}, ""};
    const test_filename other = {{.hash = 1, .length = 1, .kind = 1}, "x"};
    if (check_filename_id(t, &empty, 1) < 0
        || check_filename_id(t, &empty, 1) < 0)
    {
        return -1;
    }
    CHECK(_PyTraceIntern_Copy(&t->intern, &t->copy) == 0, "no memory");
    if (check_filename(&t->copy, 1, &empty) < 0
        || check_filename_id(t, &other, 2) < 0
        || check_filename_id(t, &empty, 1) < 0)
    {
        return -1;
    }
    return check_filename(&t->intern, 2, &other);
}


/* --- Interning: tracebacks ---------------------------------------------- */

static int
add_frames(_PyTraceIntern *intern, const _PyTraceFrame *frames, size_t nframe)
{
    for (size_t i = 0; i < nframe; i++) {
        if (_PyTraceIntern_AddFrame(intern, frames[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
put_traceback(_PyTraceIntern *intern, const _PyTraceFrame *frames,
              size_t nframe, size_t total_nframe, _PyTraceback_Id *id)
{
    _PyTraceIntern_BeginTraceback(intern);
    if (add_frames(intern, frames, nframe) < 0) {
        return -1;
    }
    return _PyTraceIntern_EndTraceback(intern, total_nframe, id);
}

static int
check_traceback(const _PyTraceIntern *intern, _PyTraceback_Id id,
                const _PyTraceFrame *expected, size_t nframe,
                size_t total_nframe)
{
    const _PyTraceFrame *frames;
    const _PyTraceback *traceback =
        _PyTraceIntern_GetTraceback(intern, id, &frames);
    CHECK(traceback->nframe == nframe, "traceback %u has %u frames, not %zu",
          id, (unsigned int)traceback->nframe, nframe);
    CHECK(traceback->total_nframe == total_nframe,
          "traceback %u had %u frames, not %zu",
          id, (unsigned int)traceback->total_nframe, total_nframe);
    for (size_t i = 0; i < nframe; i++) {
        CHECK(frames[i].filename == expected[i].filename
              && frames[i].lineno == expected[i].lineno,
              "frame %zu of traceback %u is wrong", i, id);
    }
    return 0;
}

// Intern a traceback and expect an id.
static int
check_traceback_id(test_state *t, const _PyTraceFrame *frames, size_t nframe,
                   size_t total_nframe, _PyTraceback_Id expected)
{
    _PyTraceback_Id id = _PyTraceback_NONE;
    CHECK(put_traceback(&t->intern, frames, nframe, total_nframe, &id) == 0,
          "no memory for a traceback");
    CHECK(id == expected, "a traceback has id %u, not %u", id, expected);
    if (check_index(&t->intern.traceback_index,
                    t->intern.tracebacks.length) < 0)
    {
        return -1;
    }
    return check_traceback(&t->intern, id, frames, nframe,
                           Py_MIN(total_nframe, UINT16_MAX));
}

// Each differs from the first in one respect.
static int
intern_traceback_parts(test_state *t)
{
    const struct {
        size_t nframe;
        size_t total_nframe;
        _PyTraceFrame frames[4];
    } tracebacks[] = {
        {3, 3, {{1, 10}, {2, 20}, {3, 30}}},
        {3, 3, {{4, 10}, {2, 20}, {3, 30}}},
        {3, 3, {{1, 10}, {2, 20}, {4, 30}}},
        {3, 3, {{1, 11}, {2, 20}, {3, 30}}},
        {3, 3, {{1, 10}, {2, 20}, {3, 31}}},
        {3, 3, {{2, 20}, {1, 10}, {3, 30}}},
        {3, 4, {{1, 10}, {2, 20}, {3, 30}}},
        {3, UINT16_MAX, {{1, 10}, {2, 20}, {3, 30}}},
        {2, 3, {{1, 10}, {2, 20}}},
        {2, 2, {{1, 10}, {2, 20}}},
        {4, 4, {{1, 10}, {2, 20}, {3, 30}, {3, 30}}},
        {1, 1, {{1, 10}}},
        {1, 1, {{UINT32_MAX, UINT_MAX}}},
        {1, 2, {{0, 0}}},
        {2, 2, {{0, 0}, {0, 0}}},
    };
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < Py_ARRAY_LENGTH(tracebacks); i++) {
            if (check_traceback_id(t, tracebacks[i].frames,
                                   tracebacks[i].nframe,
                                   tracebacks[i].total_nframe,
                                   (_PyTraceback_Id)i + 2) < 0)
            {
                return -1;
            }
        }
    }
    // More frames than can be counted are as many as can be counted.
    return check_traceback_id(t, tracebacks[0].frames, 3,
                              (size_t)UINT16_MAX + 3, 9);
}

static int
check_unknown(test_state *t)
{
    const _PyTraceFrame unknown = {0, 0};
    _PyTraceback_Id id = _PyTraceback_NONE;
    CHECK(put_traceback(&t->intern, NULL, 0, 0, &id) == 0
          && id == _PyTraceback_UNKNOWN,
          "no frames are not the unknown traceback");
    // Frames were there, but none was kept.
    CHECK(put_traceback(&t->intern, NULL, 0, 7, &id) == 0
          && id == _PyTraceback_UNKNOWN,
          "no kept frames are not the unknown traceback");
    return check_traceback(&t->intern, id, &unknown, 1, 1);
}

static int
intern_unknown(test_state *t)
{
    heap_fail_at(&t->heap, 0, true);
    if (check_unknown(t) < 0) {
        return -1;
    }
    CHECK(t->heap.calls == 0, "the unknown traceback needs memory");
    heap_fail_at(&t->heap, NEVER, false);

    const _PyTraceFrame frame = {1, 2};
    if (check_traceback_id(t, &frame, 1, 1, 2) < 0) {
        return -1;
    }
    return check_unknown(t);
}

// A traceback that is begun but not ended leaves nothing behind.
static int
intern_abandoned(test_state *t)
{
    const _PyTraceFrame first[] = {{1, 1}, {2, 2}};
    const _PyTraceFrame second[] = {{3, 3}, {4, 4}, {5, 5}};
    _PyTraceIntern_BeginTraceback(&t->intern);
    CHECK(add_frames(&t->intern, second, 3) == 0, "no memory");
    if (check_traceback_id(t, first, 2, 2, 2) < 0) {
        return -1;
    }
    _PyTraceIntern_BeginTraceback(&t->intern);
    CHECK(add_frames(&t->intern, second, 2) == 0, "no memory");
    if (check_unknown(t) < 0
        || check_traceback_id(t, second, 3, 3, 3) < 0
        || check_traceback_id(t, first, 2, 2, 2) < 0)
    {
        return -1;
    }
    // Not part of a copy either.
    _PyTraceIntern_BeginTraceback(&t->intern);
    CHECK(add_frames(&t->intern, first, 2) == 0, "no memory");
    CHECK(_PyTraceIntern_Copy(&t->intern, &t->copy) == 0, "no memory");
    CHECK(t->copy.frames.length == 5, "%zu frames were copied, not 5",
          t->copy.frames.length);
    if (check_traceback(&t->copy, 2, first, 2, 2) < 0
        || check_traceback(&t->copy, 3, second, 3, 3) < 0)
    {
        return -1;
    }
    // The frames that stand there are none of the next traceback's.
    if (check_traceback_id(t, second + 1, 1, 1, 4) < 0) {
        return -1;
    }
    CHECK(t->intern.frames.length == 6, "%zu frames are kept, not 6",
          t->intern.frames.length);
    return 0;
}

static int
intern_long(test_state *t)
{
    const size_t nframe = UINT16_MAX;
    _PyTraceFrame *frames = get_scratch(t, nframe, sizeof(*frames));
    if (frames == NULL) {
        return -1;
    }
    for (size_t i = 0; i < nframe; i++) {
        frames[i].filename = (uint32_t)(i * i);
        frames[i].lineno = (unsigned int)(i * 7);
    }
    if (check_traceback_id(t, frames, nframe, nframe, 2) < 0
        || check_traceback_id(t, frames, nframe, nframe + 1, 2) < 0
        || check_traceback_id(t, frames, nframe - 1, nframe, 3) < 0)
    {
        return -1;
    }
    frames[nframe - 1].filename++;
    if (check_traceback_id(t, frames, nframe, nframe, 4) < 0) {
        return -1;
    }
    frames[0].lineno++;
    if (check_traceback_id(t, frames, nframe, nframe, 5) < 0) {
        return -1;
    }
    CHECK(t->intern.frames.length == nframe * 4 - 1,
          "%zu frames are kept", t->intern.frames.length);
    return 0;
}

// The i-th of many different tracebacks.
static size_t
many_traceback(size_t i, _PyTraceFrame *frames)
{
    size_t nframe = 1 + i % 4;
    for (size_t j = 0; j < nframe; j++) {
        frames[j].filename = (uint32_t)(i / 4 % 61 + j);
        frames[j].lineno = (unsigned int)(i / 4 / 61 + j * 3);
    }
    return nframe;
}

static int
intern_many(test_state *t)
{
    const size_t ntracebacks = 100000;
    _PyTraceFrame frames[4];
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < ntracebacks; i++) {
            size_t nframe = many_traceback(i, frames);
            if (check_traceback_id(t, frames, nframe, nframe + i % 3,
                                   (_PyTraceback_Id)i + 2) < 0)
            {
                return -1;
            }
        }
        if (check_memory(t) < 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < ntracebacks; i++) {
        size_t nframe = many_traceback(i, frames);
        if (check_traceback(&t->intern, (_PyTraceback_Id)i + 2, frames,
                            nframe, nframe + i % 3) < 0)
        {
            return -1;
        }
    }
    return 0;
}

typedef struct {
    size_t nframe;
    size_t total_nframe;
    _PyTraceFrame frames[3];
} test_traceback;

// Give the first traceback the hash of the second: are they still two?
static int
check_equal_hashes(test_state *t, const test_traceback *first,
                   const test_traceback *second)
{
    if (check_traceback_id(t, second->frames, second->nframe,
                           second->total_nframe, 2) < 0)
    {
        return -1;
    }
    _PyTraceback *item = t->intern.tracebacks.items;
    uint32_t hash = item->hash;
    _PyTraceIntern_Clear(&t->intern);

    if (check_traceback_id(t, first->frames, first->nframe,
                           first->total_nframe, 2) < 0)
    {
        return -1;
    }
    item = t->intern.tracebacks.items;
    item->hash = hash;
    _PyTraceIndex *index = &t->intern.traceback_index;
    for (size_t i = 0; i <= index->mask; i++) {
        index->slots[i] = i == (hash & index->mask) ? 2 : 0;
    }
    if (check_traceback_id(t, second->frames, second->nframe,
                           second->total_nframe,
                           first == second ? 2 : 3) < 0)
    {
        return -1;
    }
    _PyTraceIntern_Clear(&t->intern);
    return 0;
}

static int
intern_equal_hashes(test_state *t)
{
    const test_traceback tracebacks[] = {
        {3, 3, {{1, 10}, {2, 20}, {3, 30}}},
        {2, 3, {{1, 10}, {2, 20}}},
        {3, 4, {{1, 10}, {2, 20}, {3, 30}}},
        {3, 3, {{4, 10}, {2, 20}, {3, 30}}},
        {3, 3, {{1, 10}, {2, 20}, {3, 31}}},
        {3, 3, {{1, 10}, {2, 20}, {4, 30}}},
    };
    const size_t ntracebacks = Py_ARRAY_LENGTH(tracebacks);
    for (size_t i = 0; i < ntracebacks; i++) {
        for (size_t j = 0; j < ntracebacks; j++) {
            if (check_equal_hashes(t, &tracebacks[i], &tracebacks[j]) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

// As many probes as it takes with a good hash?  While the index is at most
// half full, the theory of linear probing says 2.5 for a miss.
static int
check_index_distribution(const _PyTraceIndex *index, const char *what)
{
    probe_meter meter = {0};
    for (size_t i = 0; i <= index->mask; i++) {
        meter_slot(&meter, index->slots[i] != 0);
    }
    CHECK(meter.probes <= meter.slots * 4,
          "%s: %zu probes to miss %zu times",
          what, meter.probes, meter.slots);
    return 0;
}

// Tracebacks of `nframe` frames that differ in their depth and in one frame.
static int
check_index_with(test_state *t, uint32_t nfiles, unsigned int nlines,
                 size_t ndepths, size_t nframe, size_t frame,
                 const char *what)
{
    _PyTraceFrame frames[4] = {{5, 50}, {1, 100}, {2, 200}, {3, 300}};
    for (uint32_t file = 1; file <= nfiles; file++) {
        for (unsigned int line = 1; line <= nlines; line++) {
            for (size_t depth = 0; depth < ndepths; depth++) {
                _PyTraceback_Id id;
                frames[frame] = (_PyTraceFrame){file, line};
                CHECK(put_traceback(&t->intern, frames, nframe,
                                    nframe + depth, &id) == 0,
                      "no memory");
            }
        }
    }
    CHECK(t->intern.tracebacks.length == nfiles * nlines * ndepths,
          "%s: only %zu tracebacks", what, t->intern.tracebacks.length);
    int result =
        check_index_distribution(&t->intern.traceback_index, what);
    clear_containers(t);
    return result;
}

// Programs differ in what varies: the file, the line, the depth.
static int
intern_distribution(test_state *t)
{
    if (check_index_with(t, 1, 8192, 1, 1, 0, "lines") < 0
        || check_index_with(t, 8192, 1, 1, 1, 0, "files") < 0
        || check_index_with(t, 1, 1, 8192, 1, 0, "depths") < 0
        || check_index_with(t, 64, 128, 1, 1, 0, "files and lines") < 0
        || check_index_with(t, 1, 512, 16, 1, 0, "lines and depths") < 0
        || check_index_with(t, 16, 32, 16, 1, 0, "all of them") < 0
        || check_index_with(t, 64, 128, 1, 4, 0, "the first frame") < 0
        || check_index_with(t, 64, 128, 1, 4, 2, "the third frame") < 0
        || check_index_with(t, 64, 128, 1, 4, 3, "the last frame") < 0)
    {
        return -1;
    }
    return 0;
}


/* --- Interning: copies and memory --------------------------------------- */

#define NFILENAMES 120
#define NTRACEBACKS 150

// The i-th filename and traceback of a test.
static test_filename
nth_filename(size_t i)
{
    test_filename result = {
        .name.kind = 1 << i % 3,
        .name.length = i % 7,
        .name.hash = i / 2,
    };
    memset(result.text, (int)(i % 251) + 1, sizeof(result.text));
    if (result.name.length == 0) {
        result.name.hash = 1000 + i;
    }
    return result;
}

static size_t
nth_traceback(size_t i, _PyTraceFrame *frames)
{
    size_t nframe = 1 + i % 3;
    for (size_t j = 0; j < nframe; j++) {
        frames[j].filename = (uint32_t)((i + j) % (NFILENAMES + 1));
        frames[j].lineno = (unsigned int)(i * 5 + j);
    }
    return nframe;
}

static int
check_nth(const _PyTraceIntern *intern, size_t nfilenames,
          size_t ntracebacks)
{
    CHECK(intern->filenames.length == nfilenames,
          "%zu filenames, not %zu", intern->filenames.length, nfilenames);
    CHECK(intern->tracebacks.length == ntracebacks,
          "%zu tracebacks, not %zu", intern->tracebacks.length, ntracebacks);
    for (size_t i = 0; i < nfilenames; i++) {
        test_filename name = nth_filename(i);
        if (check_filename(intern, (uint32_t)i + 1, &name) < 0) {
            return -1;
        }
    }
    size_t nframes = 0;
    for (size_t i = 0; i < ntracebacks; i++) {
        _PyTraceFrame frames[3];
        size_t nframe = nth_traceback(i, frames);
        nframes += nframe;
        if (check_traceback(intern, (_PyTraceback_Id)i + 2, frames, nframe,
                            nframe + i) < 0)
        {
            return -1;
        }
    }
    CHECK(intern->frames.length == nframes, "%zu frames are kept, not %zu",
          intern->frames.length, nframes);
    return 0;
}

// After a failure: is all there that was there before, and nothing else?
static int
check_after_failure(test_state *t, size_t nfilenames, size_t ntracebacks,
                    size_t *failures)
{
    ++*failures;
    if (check_memory(t) < 0
        || check_index(&t->intern.filename_index, nfilenames) < 0
        || check_index(&t->intern.traceback_index, ntracebacks) < 0
        || check_nth(&t->intern, nfilenames, ntracebacks) < 0)
    {
        return -1;
    }
    t->heap.fail_at = NEVER;
    return 0;
}

// Intern all filenames, then all tracebacks; what fails is tried again.
static int
put_all_nth(test_state *t, size_t *failures)
{
    for (size_t i = 0; i < NFILENAMES; i++) {
        test_filename name = nth_filename(i);
        uint32_t id;
        size_t text_length = t->intern.text.length;
        if (_PyTraceIntern_Filename(&t->intern, &name.name, name.text,
                                    &id) < 0)
        {
            CHECK(t->intern.text.length == text_length,
                  "the text of a filename that failed is kept");
            if (check_after_failure(t, i, 0, failures) < 0
                || check_filename_id(t, &name, (uint32_t)i + 1) < 0)
            {
                return -1;
            }
            continue;
        }
        CHECK(id == i + 1, "filename %zu has id %u", i, id);
        if (check_index(&t->intern.filename_index, i + 1) < 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < NTRACEBACKS; i++) {
        _PyTraceFrame frames[3];
        size_t nframe = nth_traceback(i, frames);
        _PyTraceback_Id id;
        if (put_traceback(&t->intern, frames, nframe, nframe + i, &id) < 0) {
            if (check_after_failure(t, NFILENAMES, i, failures) < 0
                || check_traceback_id(t, frames, nframe, nframe + i,
                                      (_PyTraceback_Id)i + 2) < 0)
            {
                return -1;
            }
            continue;
        }
        CHECK(id == i + 2, "traceback %zu has id %u", i, id);
        if (check_index(&t->intern.traceback_index, i + 1) < 0) {
            return -1;
        }
    }
    return check_nth(&t->intern, NFILENAMES, NTRACEBACKS);
}

static int
intern_failures(test_state *t)
{
    for (int fail_on = 0; fail_on < 2; fail_on++) {
        size_t failures = 0;
        size_t n = 0;
        do {
            heap_fail_at(&t->heap, n, fail_on);
            if (put_all_nth(t, &failures) < 0 || check_memory(t) < 0) {
                return -1;
            }
            clear_containers(t);
            if (check_all_freed(t) < 0) {
                return -1;
            }
        } while (t->heap.calls > n++);
        // Six arrays, each of which grew at least once.
        CHECK(failures == n - 1 && n > 12,
              "%zu of %zu allocations have failed", failures, n - 1);
    }
    return 0;
}

static int
intern_copy(test_state *t)
{
    CHECK(_PyTraceIntern_Copy(&t->intern, &t->copy) == 0, "no memory");
    if (check_nth(&t->copy, 0, 0) < 0) {
        return -1;
    }
    CHECK(t->heap.live == 0, "a copy of nothing needs memory");

    size_t failures = 0;
    if (put_all_nth(t, &failures) < 0) {
        return -1;
    }
    size_t live = t->heap.live;
    size_t n = 0;
    for (heap_fail_at(&t->heap, n, true);
         _PyTraceIntern_Copy(&t->intern, &t->copy) < 0;
         heap_fail_at(&t->heap, ++n, true))
    {
        CHECK(t->heap.live == live, "a copy that failed leaks");
        if (check_nth(&t->copy, 0, 0) < 0 || check_memory(t) < 0) {
            return -1;
        }
    }
    t->heap.fail_at = NEVER;
    CHECK(n == 4, "%zu arrays were copied, not 4", n);
    if (check_memory(t) < 0) {
        return -1;
    }
    // The copy does not need the original any more.
    _PyTraceIntern_Clear(&t->intern);
    return check_nth(&t->copy, NFILENAMES, NTRACEBACKS);
}

// Are these the same lines of the same files?  Ids may differ.
static int
check_same_content(const test_state *t, _PyTraceback_Id id,
                   _PyTraceback_Id copy_id)
{
    const _PyTraceFrame *a, *b;
    const _PyTraceback *original =
        _PyTraceIntern_GetTraceback(&t->intern, id, &a);
    const _PyTraceback *copy =
        _PyTraceIntern_GetTraceback(&t->copy, copy_id, &b);
    CHECK(original->nframe == copy->nframe
          && original->total_nframe == copy->total_nframe,
          "the copy of traceback %u has other numbers of frames", id);
    for (size_t i = 0; i < original->nframe; i++) {
        const void *a_text, *b_text;
        const _PyTraceFilename *a_name =
            _PyTraceIntern_GetFilename(&t->intern, a[i].filename, &a_text);
        const _PyTraceFilename *b_name =
            _PyTraceIntern_GetFilename(&t->copy, b[i].filename, &b_text);
        CHECK((a_name == NULL) == (b_name == NULL),
              "a filename of the copy of traceback %u is unknown", id);
        CHECK(a_name == NULL
              || same_filename(a_name, a_text, b_name, b_text),
              "a filename of the copy of traceback %u is wrong", id);
        CHECK(a[i].lineno == b[i].lineno,
              "a line of the copy of traceback %u is wrong", id);
    }
    return 0;
}

static int
copy_all_tracebacks(test_state *t, size_t *failures)
{
    // Backwards, so that the ids become other ones.
    for (size_t i = NTRACEBACKS; i-- > 0; ) {
        _PyTraceback_Id id = (_PyTraceback_Id)i + 2;
        _PyTraceback_Id copy_id;
        if (_PyTraceIntern_CopyTraceback(&t->intern, id, &t->copy,
                                         &copy_id) < 0)
        {
            ++*failures;
            if (check_memory(t) < 0) {
                return -1;
            }
            t->heap.fail_at = NEVER;
            CHECK(_PyTraceIntern_CopyTraceback(&t->intern, id, &t->copy,
                                               &copy_id) == 0,
                  "a traceback cannot be copied after a failure");
        }
        CHECK(copy_id == NTRACEBACKS - i + 1,
              "the copy of traceback %u has id %u", id, copy_id);
    }
    for (size_t i = 0; i < NTRACEBACKS; i++) {
        if (check_same_content(t, (_PyTraceback_Id)i + 2,
                               (_PyTraceback_Id)(NTRACEBACKS - i + 1)) < 0)
        {
            return -1;
        }
    }
    return check_nth(&t->intern, NFILENAMES, NTRACEBACKS);
}

// What has been copied is not copied again.
static int
copy_all_tracebacks_again(test_state *t)
{
    for (_PyTraceback_Id id = 2; id < NTRACEBACKS + 2; id++) {
        _PyTraceback_Id copy_id;
        CHECK(_PyTraceIntern_CopyTraceback(&t->intern, id, &t->copy,
                                           &copy_id) == 0,
              "no memory");
        CHECK(copy_id == NTRACEBACKS + 3 - id,
              "two copies of traceback %u", id);
    }
    return check_memory(t);
}

static int
intern_copy_traceback(test_state *t)
{
    size_t failures = 0;
    _PyTraceback_Id id = _PyTraceback_NONE;
    CHECK(_PyTraceIntern_CopyTraceback(&t->intern, _PyTraceback_UNKNOWN,
                                       &t->copy, &id) == 0
          && id == _PyTraceback_UNKNOWN && t->heap.calls == 0,
          "the unknown traceback does not copy to itself");
    if (put_all_nth(t, &failures) < 0) {
        return -1;
    }
    size_t live = t->heap.live;
    for (int fail_on = 0; fail_on < 2; fail_on++) {
        failures = 0;
        size_t n = 0;
        do {
            heap_fail_at(&t->heap, n, fail_on);
            if (copy_all_tracebacks(t, &failures) < 0
                || check_memory(t) < 0)
            {
                return -1;
            }
            if (t->heap.fail_at == NEVER
                && copy_all_tracebacks_again(t) < 0)
            {
                return -1;
            }
            _PyTraceIntern_Clear(&t->copy);
            CHECK(t->heap.live == live, "copying tracebacks leaks");
        } while (t->heap.calls > n++);
        CHECK(failures == n - 1 && n > 12,
              "%zu of %zu allocations have failed", failures, n - 1);
    }
    return 0;
}

// A cleared container is as good as new.
static int
containers_clear(test_state *t)
{
    for (int round = 0; round < 3; round++) {
        size_t failures = 0;
        for (size_t i = 0; i < 500; i++) {
            _PyTrace trace = plain_trace(i);
            if (add_trace(&t->table, &trace) < 0 || reserve(&t->table) < 0) {
                return -1;
            }
        }
        if (put_all_nth(t, &failures) < 0) {
            return -1;
        }
        _PyTraceIntern_BeginTraceback(&t->intern);
        CHECK(add_frames(&t->intern, &(_PyTraceFrame){1, 1}, 1) == 0,
              "no memory");
        clear_containers(t);
        CHECK(t->table.used == 0 && t->table.reserved == 0,
              "traces are left in the table");
        if (check_nth(&t->intern, 0, 0) < 0 || check_all_freed(t) < 0) {
            return -1;
        }
        _PyTrace trace = plain_trace(0);
        trace.traceback = _PyTraceback_NONE;
        if (check_found(&t->table, &trace) < 0) {
            return -1;
        }
        // No frame is left that would become part of this one.
        _PyTraceback_Id id;
        CHECK(_PyTraceIntern_EndTraceback(&t->intern, 0, &id) == 0
              && id == _PyTraceback_UNKNOWN,
              "a frame is left");
        clear_containers(t);  // again: nothing is freed twice
    }
    return 0;
}


/* --- Map ---------------------------------------------------------------- */

// Addresses as pymalloc has them: blocks of 32 bytes in pools of 16 KiB.
static uintptr_t
map_key(size_t i)
{
    return 0x12340030 + i / 500 * 0x4000 + i % 500 * 32;
}

static int
map_add(_PyTraceMap *map, size_t i, uint32_t size)
{
    CHECK(_PyTraceMap_Reserve(map) == 0, "no room for a trace");
    _PyTraceMap_Put(map, (_PyTraceBlock){map_key(i), size, 2});
    return 0;
}

// sizes[i]: of the trace of map_key(i), or 0.
static int
check_map(const test_state *t, const uint32_t *sizes, size_t nkeys)
{
    static _PyTrace out[MAX_KEYS];
    const _PyTraceMap *map = &t->map;
    size_t used = 0;
    for (size_t i = 0; i < nkeys; i++) {
        const _PyTraceBlock *block = _PyTraceMap_Find(map, map_key(i));
        CHECK((block != NULL) == (sizes[i] != 0), "trace %zu: found %d",
              i, block != NULL);
        CHECK(block == NULL || block->size == sizes[i],
              "the trace %zu is wrong", i);
        used += sizes[i] != 0;
    }
    CHECK(map->used == used, "%zu traces, not %zu", map->used, used);
    CHECK(_PyTraceMap_IsValid(map), "the map is not valid");
    _PyTraceMap_Copy(map, out);
    for (size_t i = 0; i < used; i++) {
        const _PyTraceBlock *block = _PyTraceMap_Find(map, out[i].ptr);
        CHECK(block != NULL && out[i].domain == 0
              && out[i].size == block->size
              && out[i].traceback == block->traceback,
              "a copied trace is wrong");
        for (size_t j = i % 64; used < 500 && j < i; j++) {
            CHECK(out[i].ptr != out[j].ptr, "a trace was copied twice");
        }
    }
    return check_memory(t);
}

// Compared with an array, while it grows and shrinks again and again.
static int
map_random(test_state *t)
{
    static const size_t most[] = {MAX_KEYS, 200, 3000, 20, 1000, 0};
    uint32_t *sizes = get_scratch(t, MAX_KEYS, sizeof(*sizes));
    if (sizes == NULL) {
        return -1;
    }
    size_t reserved = 0;
    for (size_t step = 0; step < 600000; step++) {
        size_t i = random_below(t, MAX_KEYS);
        _PyTraceMap *map = &t->map;
        _PyTraceBlock *block = _PyTraceMap_Find(map, map_key(i));
        CHECK((block != NULL ? block->size : 0) == sizes[i],
              "the trace %zu is wrong", i);
        if (block == NULL && map->used < most[step / 20000 % 6]) {
            sizes[i] = 1 + (uint32_t)random_below(t, 1000);
            if (map_add(map, i, sizes[i]) < 0) {
                return -1;
            }
        }
        else if (block != NULL && random_below(t, 2)) {
            bool keep_room = random_below(t, 4) == 0;
            _PyTraceMap_Remove(map, block, keep_room);
            sizes[i] = 0;
            reserved += keep_room;
        }
        if (reserved > 0 && random_below(t, 4) == 0) {
            _PyTraceMap_Unreserve(map);
            reserved--;
        }
        CHECK(map->reserved == reserved, "%zu reservations, not %zu",
              map->reserved, reserved);
        if (step % 2500 == 0 && check_map(t, sizes, MAX_KEYS) < 0) {
            return -1;
        }
    }
    return check_map(t, sizes, MAX_KEYS);
}

// No call moves all of a large map, and none is in vain.
static int
map_moves_bit_by_bit(test_state *t)
{
    const size_t n = 100000;
    _PyTraceMap *map = &t->map;
    size_t resized = 0;
    for (size_t i = 0; i < n; i++) {
        const _PyTraceBlock *old = map->old, *slots = map->slots;
        size_t moved = map->moved;
        if (map_add(map, i, 1) < 0) {
            return -1;
        }
        if (old != NULL) {
            CHECK(map->slots == slots, "resized while there are old slots");
            CHECK(map->old == NULL || map->moved > moved, "nothing moves");
            CHECK(map->moved <= moved + 64, "%zu slots moved by one call",
                  map->moved - moved);
        }
        resized += map->slots != slots;
        CHECK(map->used * 3 >= map->capacity || map->capacity < 100,
              "%zu traces in %zu slots", map->used, map->capacity);
    }
    CHECK(resized > 20, "only %zu sizes", resized);
    CHECK(_PyTraceMap_IsValid(map), "the map is not valid");
    return check_memory(t);
}

// With no memory at any moment: nothing is lost, and room that was promised
// stays.
static int
map_failures(test_state *t)
{
    uint32_t *sizes = get_scratch(t, MAX_KEYS, sizeof(*sizes));
    if (sizes == NULL) {
        return -1;
    }
    _PyTraceMap *map = &t->map;
    size_t failed = 0;
    for (size_t i = 0; i < MAX_KEYS; i++) {
        heap_fail_at(&t->heap, 0, true);
        size_t reserved = map->reserved;
        if (_PyTraceMap_Reserve(map) < 0) {
            failed++;
            CHECK(map->reserved == reserved, "room without memory");
            // What is taken out can be put back.
            _PyTraceBlock *block = _PyTraceMap_Find(map, map_key(i / 2));
            if (block != NULL) {
                _PyTraceBlock copy = *block;
                _PyTraceMap_Remove(map, block, true);
                _PyTraceMap_Put(map, copy);
            }
            if (check_map(t, sizes, MAX_KEYS) < 0) {
                return -1;
            }
            heap_fail_at(&t->heap, NEVER, false);
            CHECK(_PyTraceMap_Reserve(map) == 0, "no room for a trace");
        }
        heap_fail_at(&t->heap, 0, true);
        sizes[i] = (uint32_t)i + 1;
        _PyTraceMap_Put(map, (_PyTraceBlock){map_key(i), sizes[i], 2});
    }
    CHECK(failed > 10, "memory was needed only %zu times", failed);
    // Without memory it can't shrink.
    size_t capacity = map->capacity;
    for (size_t i = 0; i < MAX_KEYS; i++) {
        _PyTraceMap_Remove(map, _PyTraceMap_Find(map, map_key(i)), false);
        sizes[i] = 0;
    }
    heap_fail_at(&t->heap, NEVER, false);
    CHECK(map->capacity == capacity, "shrunk without memory");
    return check_map(t, sizes, MAX_KEYS);
}

static int
map_shrinks(test_state *t)
{
    const size_t n = 50000, left = 100;
    _PyTraceMap *map = &t->map;
    for (size_t i = 0; i < n; i++) {
        if (map_add(map, i, 1) < 0) {
            return -1;
        }
    }
    size_t peak = _PyTraceMap_Memory(map);
    for (size_t i = left; i < n; i++) {
        _PyTraceMap_Remove(map, _PyTraceMap_Find(map, map_key(i)), false);
    }
    CHECK(map->used == left && _PyTraceMap_IsValid(map),
          "the map is not valid");
    CHECK(_PyTraceMap_Memory(map) < peak / 20, "%zu bytes for %zu traces",
          _PyTraceMap_Memory(map), left);
    if (_PyTraceMap_Reserve(map) < 0) {
        return -1;
    }
    _PyTraceMap_ForgetReservations(map, 1);
    CHECK(map->reserved == 1, "%zu slots promised", map->reserved);
    _PyTraceMap_ForgetReservations(map, 0);
    return check_memory(t);
}

// Any number may be looked up; some mean something in the slots.
static int
map_addresses(test_state *t)
{
    for (size_t i = 0; i < 1000; i++) {
        if (map_add(&t->map, i, 1) < 0) {
            return -1;
        }
        for (uintptr_t ptr = 0; ptr < _PyTraceBlock_MIN_PTR; ptr++) {
            CHECK(_PyTraceMap_Find(&t->map, ptr) == NULL,
                  "found %zx with %zu traces", (size_t)ptr, i + 1);
        }
        if (i % 3 == 0) {
            _PyTraceMap_Remove(
                &t->map, _PyTraceMap_Find(&t->map, map_key(i)), false);
        }
    }
    return 0;
}

// _PyTraceMap_IsValid() notices what is wrong.
static int
map_is_valid(test_state *t)
{
    _PyTraceMap *map = &t->map;
    for (size_t i = 0; i < 40; i++) {
        if (map_add(map, i, 1) < 0) {
            return -1;
        }
    }
    CHECK(_PyTraceMap_IsValid(map), "not valid");
    map->used++;
    CHECK(!_PyTraceMap_IsValid(map), "a wrong count is valid");
    map->used--;
    _PyTraceBlock *block = _PyTraceMap_Find(map, map_key(7));
    size_t i = (size_t)(block - map->slots);
    size_t j = i;
    do {
        j = (j + map->capacity / 2) % map->capacity;
        j = _PyTraceMap_NextSlot(j, map->capacity);
    } while (map->slots[j].ptr != 0);
    map->slots[j] = *block;
    block->ptr = 0;
    CHECK(!_PyTraceMap_IsValid(map), "a trace out of place is valid");
    *block = map->slots[j];
    map->slots[j].ptr = 0;
    CHECK(_PyTraceMap_IsValid(map), "not valid");
    return 0;
}

// Addresses in the order in which pymalloc hands them out do not cluster.
static int
map_distribution(test_state *t)
{
    _PyTraceMap *map = &t->map;
    size_t n = 30000, probes = 0, worst = 0;
    for (size_t i = 0; i < n; i++) {
        if (map_add(map, i, 1) < 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < n; i++) {
        const _PyTraceBlock *block = _PyTraceMap_Find(map, map_key(i));
        if (map->old != NULL && block >= map->old
            && block < map->old + map->old_capacity)
        {
            continue;
        }
        size_t home = _PyTraceMap_Home(block->ptr, map->capacity);
        size_t slot = (size_t)(block - map->slots);
        size_t distance = slot >= home ? slot - home
                          : slot + map->capacity - home;
        probes += distance + 1;
        worst = Py_MAX(worst, distance);
    }
    // Random keys need 2.5 at the largest load.
    CHECK(probes <= 3 * n, "%zu probes to find %zu traces", probes, n);
    CHECK(worst < 200, "%zu probes to find one of them", worst);
    return 0;
}

// A traceback that continues another one.
static int
intern_frames_of(test_state *t)
{
    _PyTraceIntern *intern = &t->intern;
    _PyTraceback_Id callers, id;
    const size_t n = 300;
    _PyTraceIntern_BeginTraceback(intern);
    for (size_t i = 0; i < n; i++) {
        _PyTraceFrame frame = {0, (unsigned int)i + 1};
        CHECK(_PyTraceIntern_AddFrame(intern, frame) == 0, "no memory");
    }
    CHECK(_PyTraceIntern_EndTraceback(intern, n, &callers) == 0, "no memory");
    for (size_t kept = 0; kept <= n + 1; kept += 43) {
        // The frames may have to move while they are copied.
        for (size_t more = 0; more < 3; more++) {
            _PyTraceFrame top = {0, 1000 + (unsigned int)more};
            _PyTraceIntern_BeginTraceback(intern);
            CHECK(_PyTraceIntern_AddFrame(intern, top) == 0
                  && _PyTraceIntern_AddFramesOf(intern, callers, kept) == 0
                  && _PyTraceIntern_EndTraceback(intern, n + 1, &id) == 0,
                  "no memory");
            const _PyTraceFrame *frames;
            const _PyTraceback *traceback =
                _PyTraceIntern_GetTraceback(intern, id, &frames);
            CHECK(traceback->nframe == Py_MIN(kept, n) + 1
                  && traceback->total_nframe == n + 1, "wrong length");
            CHECK(frames[0].lineno == top.lineno, "wrong frame 0");
            for (size_t i = 1; i < traceback->nframe; i++) {
                CHECK(frames[i].lineno == i, "wrong frame %zu", i);
            }
        }
    }
    return check_memory(t);
}


/* --- Pools -------------------------------------------------------------- */

#define NPOOLS 300
#define POOL_BLOCKS 8             // of each pool, that are used

// Pools as pymalloc has them, each with blocks of one size while it has any.
typedef struct {
    uint16_t block_size[NPOOLS];
    // Of the trace of a block, or 0.
    uint16_t sizes[NPOOLS][POOL_BLOCKS];
} pools_model;

// Address of a block.  Its pools are not neighbours; the first and the last
// blocks are among them; and the allocator may have put something before it.
static uintptr_t
pool_key(const pools_model *model, size_t pool, size_t i)
{
    size_t size = model->block_size[pool];
    size_t nblocks = (POOL_SIZE - POOL_OVERHEAD) / size;
    size_t block = i < POOL_BLOCKS / 2 ? i : nblocks - POOL_BLOCKS + i;
    return 0x10000000 + pool * pool % 7 * 0x1000000 + pool * POOL_SIZE
           + POOL_OVERHEAD + block * size
           + (size >= 4 * ALIGNMENT ? i % 2 * ALIGNMENT : 0);
}

static int
pool_add(test_state *t, const pools_model *model, size_t n, size_t i,
         bool *added)
{
    uintptr_t ptr = pool_key(model, n, i);
    _PyTracePool *pool = _PyTracePools_Pool(&t->pools, ptr);
    if (pool == NULL || pool->used == 0) {
        pool = _PyTracePools_Prepare(&t->pools, ptr, model->block_size[n]);
    }
    *added = pool != NULL;
    if (pool != NULL) {
        _PyTracePoolPlace place = _PyTracePool_FreePlace(pool, ptr);
        CHECK(place.trace != NULL, "no place for block %zu of pool %zu", i, n);
        _PyTracePools_AddAt(&t->pools, place, ptr, model->sizes[n][i],
                            (_PyTraceback_Id)(1 + n * POOL_BLOCKS + i));
    }
    return 0;
}

static int
check_pools(const test_state *t, const pools_model *model)
{
    static _PyTrace out[NPOOLS * POOL_BLOCKS];
    static bool seen[NPOOLS * POOL_BLOCKS];
    size_t used = 0;
    for (size_t n = 0; n < NPOOLS; n++) {
        for (size_t i = 0; i < POOL_BLOCKS; i++) {
            uintptr_t ptr = pool_key(model, n, i);
            const _PyTracePooled *trace =
                _PyTracePools_Find(&t->pools, ptr).trace;
            size_t size = trace == NULL ? 0 : trace->size;
            CHECK(size == model->sizes[n][i], "block %zu of pool %zu has "
                  "size %zu", i, n, size);
            // Only the address itself is one.
            CHECK(_PyTracePools_Find(&t->pools, ptr + 1).trace == NULL,
                  "found one byte behind");
            used += size != 0;
        }
    }
    CHECK(t->pools.used == used, "%zu traces, not %zu", t->pools.used, used);
    CHECK(_PyTracePools_IsValid(&t->pools), "the pools are not valid");
    _PyTracePools_Copy(&t->pools, out);
    memset(seen, 0, sizeof(seen));
    for (size_t k = 0; k < used; k++) {
        size_t key = out[k].traceback - 1;
        size_t n = key / POOL_BLOCKS, i = key % POOL_BLOCKS;
        CHECK(!seen[key], "a trace was copied twice");
        seen[key] = true;
        CHECK(out[k].ptr == pool_key(model, n, i) && out[k].domain == 0
              && out[k].size == model->sizes[n][i], "a copied trace is wrong");
    }
    return check_memory(t);
}

// Compared with an array, while pools come and go and change their block size.
static int
pools_random(test_state *t)
{
    pools_model *model = get_scratch(t, 1, sizeof(*model));
    if (model == NULL) {
        return -1;
    }
    for (size_t n = 0; n < NPOOLS; n++) {
        model->block_size[n] = ALIGNMENT;
    }
    for (size_t step = 0; step < 200000; step++) {
        bool growing = step / 20000 % 2 == 0;
        size_t n = random_below(t, NPOOLS), i = random_below(t, POOL_BLOCKS);
        size_t left = 0;
        for (size_t j = 0; j < POOL_BLOCKS; j++) {
            left += model->sizes[n][j] != 0;
        }
        if (left == 0 && random_below(t, 4) == 0) {
            model->block_size[n] = (uint16_t)(
                (1 + random_below(t, NB_SMALL_SIZE_CLASSES)) * ALIGNMENT);
        }
        uint16_t *size = &model->sizes[n][i];
        if (*size == 0 && (growing || random_below(t, 8) == 0)) {
            bool added;
            *size = (uint16_t)(1 + random_below(t, UINT16_MAX));
            if (pool_add(t, model, n, i, &added) < 0) {
                return -1;
            }
            CHECK(added, "block %zu of pool %zu was not added", i, n);
        }
        else if (*size != 0 && (!growing || random_below(t, 8) == 0)) {
            _PyTracePools_Remove(
                &t->pools,
                _PyTracePools_Find(&t->pools, pool_key(model, n, i)));
            *size = 0;
        }
        if (step % 2000 == 0 && check_pools(t, model) < 0) {
            return -1;
        }
    }
    return check_pools(t, model);
}

// Every size of blocks: no two have the same place, and none is outside.
static int
pools_blocks(test_state *t)
{
    for (size_t size = ALIGNMENT; size <= SMALL_REQUEST_THRESHOLD;
         size += ALIGNMENT)
    {
        uintptr_t address = size * 0x100000, ptr = address + POOL_OVERHEAD;
        _PyTracePool *pool = _PyTracePools_Prepare(&t->pools, ptr, size);
        CHECK(pool != NULL, "no pool of blocks of %zu bytes", size);
        for (size_t n = 0; ptr + size <= address + POOL_SIZE;
             n++, ptr += size)
        {
            _PyTracePoolPlace place = _PyTracePool_FreePlace(
                pool, ptr + n % size);
            CHECK(place.trace == &pool->traces[n], "block %zu of %zu bytes "
                  "has another place", n, size);
            _PyTracePools_AddAt(&t->pools, place, ptr + n % size, n, 2);
        }
        for (uintptr_t p = address; p < address + POOL_OVERHEAD; p++) {
            CHECK(_PyTracePools_Find(&t->pools, p).trace == NULL,
                  "found in the header");
        }
    }
    CHECK(_PyTracePools_IsValid(&t->pools), "the pools are not valid");
    return check_memory(t);
}

// Without memory nothing is added, and nothing that was there is lost.
static int
pools_failures(test_state *t)
{
    pools_model *model = get_scratch(t, 1, sizeof(*model));
    if (model == NULL) {
        return -1;
    }
    for (size_t n = 0; n < NPOOLS; n++) {
        model->block_size[n] = 48;
    }
    size_t failed = 0;
    for (size_t n = 0; n < NPOOLS; n++) {
        for (size_t fail_at = 0; ; fail_at++) {
            bool added;
            model->sizes[n][0] = 40;
            heap_fail_at(&t->heap, fail_at, true);
            if (pool_add(t, model, n, 0, &added) < 0) {
                return -1;
            }
            heap_fail_at(&t->heap, NEVER, false);
            if (added) {
                break;
            }
            failed++;
            model->sizes[n][0] = 0;
            if (n % 16 == 0 && check_pools(t, model) < 0) {
                return -1;
            }
        }
    }
    CHECK(failed > NPOOLS, "memory was needed only %zu times", failed);
    heap_fail_at(&t->heap, 0, true);
    for (size_t n = 0; n < NPOOLS; n++) {
        _PyTracePools_Remove(
            &t->pools, _PyTracePools_Find(&t->pools, pool_key(model, n, 0)));
        model->sizes[n][0] = 0;
    }
    heap_fail_at(&t->heap, NEVER, false);
    CHECK(t->pools.npools == NPOOLS, "dropped without memory");
    return check_pools(t, model);
}

// Memory is given back when most pools have no traces any more.
static int
pools_memory(test_state *t)
{
    pools_model *model = get_scratch(t, 1, sizeof(*model));
    if (model == NULL) {
        return -1;
    }
    for (size_t n = 0; n < NPOOLS; n++) {
        bool added;
        model->block_size[n] = 32;
        model->sizes[n][0] = 1;
        if (pool_add(t, model, n, 0, &added) < 0) {
            return -1;
        }
    }
    size_t peak = _PyTracePools_Memory(&t->pools);
    for (size_t n = 10; n < NPOOLS; n++) {
        _PyTracePools_Remove(
            &t->pools, _PyTracePools_Find(&t->pools, pool_key(model, n, 0)));
        model->sizes[n][0] = 0;
    }
    CHECK(_PyTracePools_Memory(&t->pools) < peak / 3, "%zu bytes of %zu",
          _PyTracePools_Memory(&t->pools), peak);
    return check_pools(t, model);
}

// _PyTracePools_IsValid() notices what is wrong.
static int
pools_is_valid(test_state *t)
{
    pools_model *model = get_scratch(t, 1, sizeof(*model));
    if (model == NULL) {
        return -1;
    }
    for (size_t n = 0; n < 20; n++) {
        bool added;
        model->block_size[n] = 32;
        model->sizes[n][0] = 1;
        if (pool_add(t, model, n, 0, &added) < 0) {
            return -1;
        }
    }
    _PyTracePool *pool = _PyTracePools_Pool(&t->pools, pool_key(model, 3, 0));
    CHECK(_PyTracePools_IsValid(&t->pools), "not valid");
    pool->used++;
    CHECK(!_PyTracePools_IsValid(&t->pools), "a wrong count is valid");
    pool->used--;
    pool->traces[0].offset = 32;
    CHECK(!_PyTracePools_IsValid(&t->pools), "a wrong offset is valid");
    pool->traces[0].offset = 0;
    pool->address += 0x40000000;
    CHECK(!_PyTracePools_IsValid(&t->pools), "a wrong address is valid");
    pool->address -= 0x40000000;
    t->pools.nempty++;
    CHECK(!_PyTracePools_IsValid(&t->pools), "a wrong count is valid");
    t->pools.nempty--;
    CHECK(_PyTracePools_IsValid(&t->pools), "not valid");
    return 0;
}

// Change something that is a number, and put it back.
#define CHECK_DAMAGE(PLACE, VALUE) \
    do { \
        uint64_t good = (PLACE); \
        (PLACE) = (VALUE); \
        CHECK(!_PyTraceIntern_IsValid(&t->intern), \
              #PLACE " = " #VALUE " is valid"); \
        (PLACE) = good; \
        CHECK(_PyTraceIntern_IsValid(&t->intern), "not valid"); \
    } while (0)

// The first slot that is taken, or free.
static size_t
find_slot(const _PyTraceIndex *index, bool taken)
{
    size_t i = 0;
    while ((index->slots[i] != 0) != taken) {
        i++;
    }
    return i;
}

static int
index_is_valid(test_state *t, _PyTraceIndex *index)
{
    size_t taken = find_slot(index, true), hole = find_slot(index, false);
    uint32_t id = index->slots[taken];
    CHECK_DAMAGE(index->used, index->used - 1);
    CHECK_DAMAGE(index->mask, index->mask - 1);
    CHECK_DAMAGE(index->slots[taken], 0);
    CHECK_DAMAGE(index->slots[taken], id == 2 ? 3 : 2);
    CHECK_DAMAGE(index->slots[taken], UINT32_MAX);
    CHECK_DAMAGE(index->slots[hole], id);
    return 0;
}

// _PyTraceIntern_IsValid() notices what is wrong.
static int
intern_is_valid(test_state *t)
{
    _PyTraceIntern *intern = &t->intern;
    CHECK(_PyTraceIntern_IsValid(intern), "not valid");
    for (uint32_t i = 0; i < 40; i++) {
        const uint16_t text[] = {(uint16_t)(500 + i), 7, 8};
        const _PyTraceFilename name = {.hash = 5, .length = 3, .kind = 2};
        _PyTraceFrame frames[] = {{0, i}, {0, 1}};
        _PyTraceback_Id id;
        CHECK(_PyTraceIntern_Filename(intern, &name, text,
                                      &frames[0].filename) == 0
              && put_traceback(intern, frames, 2, 2, &id) == 0, "no memory");
    }
    CHECK(_PyTraceIntern_Copy(intern, &t->copy) == 0, "no memory");
    CHECK(_PyTraceIntern_IsValid(&t->copy), "a copy is not valid");

    _PyTraceFilename *name = (_PyTraceFilename *)intern->filenames.items + 3;
    CHECK_DAMAGE(name->hash, 100);
    CHECK_DAMAGE(name->kind, 3);
    CHECK_DAMAGE(name->offset, name->offset + 1);
    CHECK_DAMAGE(name->offset, name[-1].offset);
    CHECK_DAMAGE(name->length, 5);
    CHECK_DAMAGE(name->length, SIZE_MAX);
    uint16_t *text = intern->text.items;
    CHECK_DAMAGE(text[name->offset / 2], text[name[-1].offset / 2]);
    CHECK_DAMAGE(intern->text.length, intern->text.length + 1);
    _PyTraceback *traceback = (_PyTraceback *)intern->tracebacks.items + 3;
    CHECK_DAMAGE(traceback->hash, traceback->hash + 1);
    CHECK_DAMAGE(traceback->first, 0);
    CHECK_DAMAGE(traceback->nframe, 0);
    CHECK_DAMAGE(traceback->nframe, UINT16_MAX);
    CHECK_DAMAGE(traceback->total_nframe, 1);
    _PyTraceFrame *frames = intern->frames.items;
    CHECK_DAMAGE(frames[6].filename, 41);
    CHECK_DAMAGE(frames[6].lineno, 77);
    CHECK_DAMAGE(intern->frames.length, intern->frames.length - 1);
    CHECK_DAMAGE(intern->frames.length, intern->frames.capacity + 1);
    if (index_is_valid(t, &intern->filename_index) < 0) {
        return -1;
    }
    return index_is_valid(t, &intern->traceback_index);
}


/* --- Module ------------------------------------------------------------- */

#define TEST(NAME) \
    static PyObject * \
    test_trace##NAME(PyObject *self, PyObject *Py_UNUSED(args)) \
    { \
        return run(NAME); \
    }

#define METHOD(NAME) {"test_trace" #NAME, test_trace##NAME, METH_NOARGS}

TEST(table_random)
TEST(table_collisions)
TEST(table_keys)
TEST(table_is_valid)
TEST(table_failures)
TEST(table_take_and_put_back)
TEST(table_reservations)
TEST(table_memory)
TEST(table_distribution)
TEST(table_distribution_domains)
TEST(table_distribution_malloc)
TEST(map_random)
TEST(map_moves_bit_by_bit)
TEST(map_failures)
TEST(map_shrinks)
TEST(map_addresses)
TEST(map_is_valid)
TEST(map_distribution)
TEST(pools_random)
TEST(pools_blocks)
TEST(pools_failures)
TEST(pools_memory)
TEST(pools_is_valid)
TEST(intern_filenames)
TEST(intern_filename_parts)
TEST(intern_text_sizes)
TEST(intern_empty_filename)
TEST(intern_traceback_parts)
TEST(intern_unknown)
TEST(intern_abandoned)
TEST(intern_long)
TEST(intern_frames_of)
TEST(intern_many)
TEST(intern_equal_hashes)
TEST(intern_distribution)
TEST(intern_failures)
TEST(intern_copy)
TEST(intern_copy_traceback)
TEST(intern_is_valid)
TEST(containers_clear)

static PyMethodDef test_methods[] = {
    METHOD(table_random),
    METHOD(table_collisions),
    METHOD(table_keys),
    METHOD(table_is_valid),
    METHOD(table_failures),
    METHOD(table_take_and_put_back),
    METHOD(table_reservations),
    METHOD(table_memory),
    METHOD(table_distribution),
    METHOD(table_distribution_domains),
    METHOD(table_distribution_malloc),
    METHOD(map_random),
    METHOD(map_moves_bit_by_bit),
    METHOD(map_failures),
    METHOD(map_shrinks),
    METHOD(map_addresses),
    METHOD(map_is_valid),
    METHOD(map_distribution),
    METHOD(pools_random),
    METHOD(pools_blocks),
    METHOD(pools_failures),
    METHOD(pools_memory),
    METHOD(pools_is_valid),
    METHOD(intern_filenames),
    METHOD(intern_filename_parts),
    METHOD(intern_text_sizes),
    METHOD(intern_empty_filename),
    METHOD(intern_traceback_parts),
    METHOD(intern_unknown),
    METHOD(intern_abandoned),
    METHOD(intern_long),
    METHOD(intern_frames_of),
    METHOD(intern_many),
    METHOD(intern_equal_hashes),
    METHOD(intern_distribution),
    METHOD(intern_failures),
    METHOD(intern_copy),
    METHOD(intern_copy_traceback),
    METHOD(intern_is_valid),
    METHOD(containers_clear),
    {NULL, NULL} /* sentinel */
};

int
_PyTestInternalCapi_Init_TracemallocContainers(PyObject *module)
{
    if (PyModule_AddFunctions(module, test_methods) < 0) {
        return -1;
    }
    return 0;
}
