// Fuzz target: the table of traces (Python/tracemalloc_table.c), compared with
// an array.

#include "fuzz.h"

#define MAX_KEYS 1024             // in the table at a time
#define MAX_RESERVED 2048
#define MAX_GONE 8
#define WORK 20000                // traces checked after every operation

static const unsigned int domains[] = {0, 1, 2, UINT_MAX};

typedef struct {
    fuzz_input input;
    fuzz_heap heap;
    _PyTraceTable table;

    // The model.  Element i is free if it has no traceback, which otherwise
    // tells the index.
    _PyTrace traces[MAX_KEYS];
    size_t top;                   // elements from here on are free
    size_t used;
    size_t reserved;

    _PyTrace gone[MAX_GONE];      // the last ones removed
    size_t ngone;
    uint32_t serial;
    size_t work;
} fuzz_state;

static fuzz_state state;


/* --- The model ---------------------------------------------------------- */

static bool
is_free(const _PyTrace *trace)
{
    return trace->traceback == _PyTraceback_NONE;
}

// MAX_KEYS if it is not there.
static size_t
model_find(const fuzz_state *f, unsigned int domain, uintptr_t ptr)
{
    for (size_t i = 0; i < f->top; i++) {
        const _PyTrace *trace = &f->traces[i];
        if (!is_free(trace) && trace->domain == domain && trace->ptr == ptr) {
            return i;
        }
    }
    return MAX_KEYS;
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

static const _PyTrace *
model_add(fuzz_state *f, unsigned int domain, uintptr_t ptr, size_t size)
{
    size_t i = 0;
    while (i < f->top && !is_free(&f->traces[i])) {
        i++;
    }
    f->top = Py_MAX(f->top, i + 1);
    f->used++;
    f->traces[i] = (_PyTrace){
        .ptr = ptr,
        .size = size,
        .traceback = new_traceback(f, i),
        .domain = domain,
    };
    return &f->traces[i];
}

static void
model_remove(fuzz_state *f, size_t i)
{
    f->traces[i].traceback = _PyTraceback_NONE;
    f->used--;
    while (f->top > 0 && is_free(&f->traces[f->top - 1])) {
        f->top--;
    }
}

// The next one in the table from the i-th on, cyclically.
static size_t
model_next(const fuzz_state *f, size_t i)
{
    assert(f->used > 0);
    for (i %= f->top; is_free(&f->traces[i]); ) {
        i = (i + 1) % f->top;
    }
    return i;
}


/* --- Checks ------------------------------------------------------------- */

static bool
same_trace(const _PyTrace *a, const _PyTrace *b)
{
    return a->ptr == b->ptr && a->size == b->size
           && a->traceback == b->traceback && a->domain == b->domain;
}

// The trace is found just if the model has it.
static _PyTrace *
check_find(const fuzz_state *f, unsigned int domain, uintptr_t ptr)
{
    _PyTrace *trace = _PyTraceTable_Find(&f->table, domain, ptr);
    size_t i = model_find(f, domain, ptr);
    if (i == MAX_KEYS) {
        CHECK(trace == NULL, "found a trace of (%u, %zx)",
              domain, (size_t)ptr);
    }
    else {
        CHECK(trace != NULL, "lost the trace of (%u, %zx)",
              domain, (size_t)ptr);
        CHECK(same_trace(trace, &f->traces[i]),
              "the trace of (%u, %zx) is wrong", domain, (size_t)ptr);
    }
    return trace;
}

static void
check_counts(const fuzz_state *f)
{
    const _PyTraceTable *table = &f->table;
    CHECK(table->used == f->used, "%zu traces, not %zu",
          table->used, f->used);
    CHECK(table->reserved == f->reserved, "%zu reservations, not %zu",
          table->reserved, f->reserved);
    CHECK(table->used + table->reserved <= table->limit
          && (table->limit < table->capacity || table->capacity == 0),
          "%zu traces and %zu reservations in %zu slots",
          table->used, table->reserved, table->capacity);
    CHECK(_PyTraceTable_Memory(table) == f->heap.bytes,
          "%zu bytes are held, but %zu reported",
          f->heap.bytes, _PyTraceTable_Memory(table));
    CHECK((size_t)(table->slots != NULL) == f->heap.live,
          "%zu blocks are held", f->heap.live);
}

// The one from the table is in the model, and is seen for the first time.
static void
check_seen(const fuzz_state *f, const _PyTrace *trace, bool *seen)
{
    size_t key = index_of_traceback(trace->traceback);
    CHECK(same_trace(trace, &f->traces[key]), "a trace is wrong");
    CHECK(!seen[key], "a trace was given twice");
    seen[key] = true;
}

static void
check_walk(const fuzz_state *f)
{
    bool seen[MAX_KEYS] = {false};
    const _PyTrace *trace = NULL;
    size_t used = 0;
    while ((trace = _PyTraceTable_Next(&f->table, trace)) != NULL) {
        check_seen(f, trace, seen);
        used++;
    }
    CHECK(used == f->used, "walked over %zu traces of %zu", used, f->used);
}

static void
check_copy(const fuzz_state *f)
{
    static _PyTrace out[MAX_KEYS];
    bool seen[MAX_KEYS] = {false};
    _PyTraceTable_Copy(&f->table, out);
    for (size_t i = 0; i < f->used; i++) {
        check_seen(f, &out[i], seen);
    }
}

static void
check_all(const fuzz_state *f)
{
    const _PyTraceTable *table = &f->table;
    size_t calls = f->heap.calls;
    check_counts(f);
    CHECK(_PyTraceTable_IsValid(table), "the table is not valid");
    for (size_t i = 0; i < f->top; i++) {
        const _PyTrace *trace = &f->traces[i];
        if (!is_free(trace)) {
            const _PyTrace *found =
                _PyTraceTable_Find(table, trace->domain, trace->ptr);
            CHECK(found != NULL && same_trace(found, trace),
                  "the trace of (%u, %zx) is lost or wrong",
                  trace->domain, (size_t)trace->ptr);
        }
    }
    check_walk(f);
    check_copy(f);
    for (size_t i = 0; i < MAX_GONE; i++) {
        (void)check_find(f, f->gone[i].domain, f->gone[i].ptr);
    }
    CHECK(f->heap.calls == calls, "looking allocates memory");
}


/* --- Operations --------------------------------------------------------- */

static void
check_shrunk(const fuzz_state *f, const _PyTraceTable *before)
{
    const _PyTraceTable *table = &f->table;
    CHECK(table->slots == before->slots
          || (table->capacity < before->capacity
              && table->used + table->reserved <= table->limit / 2),
          "the table has shrunk so far that it will soon grow again");
}

static bool
op_reserve(fuzz_state *f)
{
    if (f->reserved == MAX_RESERVED) {
        return false;
    }
    _PyTraceTable before = f->table;
    size_t failures = f->heap.failures;
    int result = _PyTraceTable_Reserve(&f->table);
    CHECK((result < 0) == (f->heap.failures > failures),
          "%zu allocations failed, and reserving returned %d",
          f->heap.failures - failures, result);
    CHECK(result == 0 || before.used + before.reserved == before.limit,
          "there was room");
    CHECK(result == 0 || f->table.slots == before.slots,
          "without memory, but resized");
    f->reserved += result == 0;
    return result == 0;
}

static void
op_unreserve(fuzz_state *f)
{
    if (f->reserved > 0) {
        _PyTraceTable before = f->table;
        _PyTraceTable_Unreserve(&f->table);
        f->reserved--;
        check_shrunk(f, &before);
    }
}

static void
op_put(fuzz_state *f, unsigned int domain, uintptr_t ptr, size_t size)
{
    if (check_find(f, domain, ptr) != NULL || f->used == MAX_KEYS
        || (f->reserved == 0 && !op_reserve(f)))
    {
        return;
    }
    const _PyTrace *trace = model_add(f, domain, ptr, size);
    f->reserved--;
    size_t calls = f->heap.calls;
    _PyTraceTable_Put(&f->table, trace);
    CHECK(f->heap.calls == calls, "to put allocates memory");
}

static void
op_remove(fuzz_state *f, unsigned int domain, uintptr_t ptr, bool keep_room)
{
    _PyTrace *trace = check_find(f, domain, ptr);
    if (trace == NULL || (keep_room && f->reserved == MAX_RESERVED)) {
        return;
    }
    f->gone[f->ngone++ % MAX_GONE] = *trace;
    _PyTraceTable before = f->table;
    _PyTraceTable_Remove(&f->table, trace, keep_room);
    model_remove(f, model_find(f, domain, ptr));
    f->reserved += keep_room;
    check_shrunk(f, &before);
}

static void
op_change(fuzz_state *f, unsigned int domain, uintptr_t ptr, size_t size)
{
    _PyTrace *trace = check_find(f, domain, ptr);
    if (trace != NULL) {
        size_t i = model_find(f, domain, ptr);
        trace->size = f->traces[i].size = size;
        trace->traceback = f->traces[i].traceback = new_traceback(f, i);
    }
}

// What is taken out can be put back without memory.
static void
op_replace(fuzz_state *f, unsigned int domain, uintptr_t ptr, size_t size)
{
    if (check_find(f, domain, ptr) != NULL && f->reserved < MAX_RESERVED) {
        op_remove(f, domain, ptr, true);
        size_t reserved = f->reserved;
        op_put(f, domain, ptr, size);
        CHECK(f->reserved == reserved - 1
              && model_find(f, domain, ptr) < MAX_KEYS,
              "what was removed could not be put back");
    }
}

static void
op_clear(fuzz_state *f)
{
    _PyTraceTable_Clear(&f->table);
    memset(f->traces, 0, sizeof(f->traces));
    f->top = f->used = f->reserved = 0;
    CHECK(f->heap.live == 0 && f->heap.bytes == 0, "%zu blocks are leaked",
          f->heap.live);
}

// With keys that the input makes up.
static void
do_keys(fuzz_state *f, const fuzz_step *what)
{
    unsigned int domain = domains[what->flags >> 1 & 3];
    fuzz_keys keys = next_keys(&f->input);
    size_t size = 0;
    if (what->op <= 2) {
        size = (size_t)next_number(&f->input, SIZE_MAX);
    }
    for (size_t i = 0; i < what->count; i++) {
        uintptr_t ptr = key_at(&keys, domain, i);
        switch (what->op) {
        case 0: case 1: case 2:
            op_put(f, domain, ptr, size);
            break;
        case 3: case 4:
            op_remove(f, domain, ptr, what->flags & 1);
            break;
        default:
            (void)check_find(f, domain, ptr);
            break;
        }
    }
}

// With traces that are in the table.
static void
do_traces(fuzz_state *f, const fuzz_step *what)
{
    size_t i = 4 * next_byte(&f->input);
    bool flag = what->flags & 1;
    size_t size = 0;
    if (what->op == 7) {
        size = (size_t)next_number(&f->input, SIZE_MAX);
    }
    for (size_t n = what->count; n > 0 && f->used > 0; n--) {
        i = model_next(f, i);
        const _PyTrace *trace = &f->traces[i];
        if (what->op != 7) {
            op_remove(f, trace->domain, trace->ptr, flag);
            i += 1 + (what->flags >> 1 & 3);
            continue;
        }
        if (flag) {
            op_replace(f, trace->domain, trace->ptr, size);
        }
        else {
            op_change(f, trace->domain, trace->ptr, size);
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
        do_traces(f, &what);
        break;
    case 8: case 9:
        while (count-- > 0 && op_reserve(f)) {
        }
        break;
    case 10:
        while (count-- > 0) {
            op_unreserve(f);
        }
        break;
    case 12:
        next_failure(&f->input, &f->heap);
        break;
    case 13:
        f->heap.fail_in = 0;
        break;
    case 14:
        _PyTraceTable_ForgetReservations(&f->table);
        f->reserved = 0;
        break;
    case 15:
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
    _PyTraceTable_Init(&f->table, &f->heap.allocator);
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
