// The oracle of tracemalloc: what actors do, and what is expected then.

#include "parts.h"
#include "test_tracemalloc.h"
#include "test_tracemalloc_oracle.h"

// More than any allocator can give where addresses have 64 bits.
#define TOO_MUCH ((size_t)PY_SSIZE_T_MAX - 4096)

const int _PyTestOracle_Limits[NLIMITS] = {
    1, 1, 2, 3, 7, 25, 200, MAX_TOTAL_NFRAME,
};


/* --- What is expected of a block ---------------------------------------- */

// The trace of a block is dropped.
static void
expect_none(actor_t *a, block_t *b)
{
    if (b->owner >= 0
        && need_of(b, version_of(&_PyTestOracle.interps[b->owner])) == YES)
    {
        a->tally->size -= (Py_ssize_t)b->size;
    }
    b->owner = -1;
}

// A block was recorded by the actor, whose interpreter had that version
// before.
static void
expect_trace(actor_t *a, block_t *b, int before, size_t size)
{
    expect_none(a, b);
    b->owner = (int)(a->home - _PyTestOracle.interps);
    b->before = before;
    // In the middle of a change: it may come before or after this.
    b->after = (version_of(a->home) + 1) & ~1;
    b->size = size;
    b->frames = a->frames;
    a->tally->added += size;
    if (need_of(b, b->after) != NO) {
        a->tally->size += (Py_ssize_t)size;
        a->tally->peak = Py_MAX(a->tally->peak, a->tally->size);
    }
}


/* --- Steps: blocks ------------------------------------------------------ */

static size_t
rnd_size(actor_t *a)
{
    switch (rnd(a, 8)) {
    case 0: return rnd(a, 3);
    case 1: return 505 + rnd(a, 16);
    case 2: return rnd(a, 5000);
    case 3: return rnd(a, rnd(a, 16) ? 10000 : 3000000);
    case 4: case 5: return 48;
    default: return 1 + rnd(a, 512);
    }
}

static void
set_op(actor_t *a, const char *op, size_t size)
{
    a->op = op;
    a->op_how = a->stateless ? "stateless" : a->attached ? "attached"
                : "detached";
    a->op_size = size;
}

static block_t *
step_alloc(actor_t *a, enum kind kind)
{
    size_t n = 1 + rnd(a, 8), size = rnd_size(a) / n * n;
    int how = (int)rnd(a, 3);
    void *ptr;
    set_op(a, how == 0 ? "malloc" : how == 1 ? "calloc" : "realloc-new",
           size);
    int before = version_of(a->home);
    if (how == 0) {
        ptr = _PyTestTracemalloc_Domains[kind].malloc(size);
    }
    else if (how == 1) {
        ptr = _PyTestTracemalloc_Domains[kind].calloc(n, size / n);
    }
    else {
        ptr = _PyTestTracemalloc_Domains[kind].realloc(NULL, size);
    }
    if (ptr == NULL) {
        fail_step(a, "no memory", 0);
        return NULL;
    }
    block_t *b = alloc(sizeof(block_t));
    b->kind = kind;
    b->ptr = (uintptr_t)ptr;
    b->owner = -1;
    expect_trace(a, b, before, size);
    return b;
}

static void
step_realloc(actor_t *a, block_t *b)
{
    bool too_much = (SIZEOF_VOID_P > 4 && _PyTestOracle.may_fail
                     && rnd(a, 5) == 0);
    size_t size = too_much ? TOO_MUCH : rnd_size(a);
    set_op(a, "realloc", size);
    int before = version_of(a->home);
    void *ptr = _PyTestTracemalloc_Domains[b->kind].realloc((void *)b->ptr,
                                                            size);
    if (too_much) {
        // Nothing has changed.
        if (ptr != NULL) {
            fail_step(a, "there was more memory than expected", 0);
        }
    }
    else if (ptr == NULL) {
        fail_step(a, "no memory", 0);
    }
    else {
        b->ptr = (uintptr_t)ptr;
        expect_trace(a, b, before, size);
    }
}

void
_PyTestOracle_FreeBlock(actor_t *a, block_t *b)
{
    set_op(a, "free", b->size);
    // Before the block is gone: its address may be somebody else's then.
    expect_none(a, b);
    _PyTestTracemalloc_Domains[b->kind].free((void *)b->ptr);
    free(b);
}

static void
step_track(actor_t *a, block_t *b)
{
    size_t size = rnd_size(a);
    set_op(a, "track", size);
    int before = version_of(a->home);
    bool tracing = is_tracing(a->home);
    int res = PyTraceMalloc_Track(b->domain, b->ptr, size);
    if (version_of(a->home) == before && before % 2 == 0
        && res != (tracing ? 0 : -2))
    {
        fail_step(a, tracing ? "expected 0" : "expected -2", res);
    }
    if (res == 0) {
        expect_trace(a, b, before, size);
    }
    else if (res != -2) {
        fail_step(a, "expected 0 or -2", res);
    }
}

int
_PyTestOracle_CountTracing(unsigned int *sum)
{
    int n = 0;
    *sum = 0;
    for (int i = 0; i < MAX_INTERPS; i++) {
        int version = version_of(&_PyTestOracle.interps[i]);
        *sum += (unsigned int)version;
        if (version % 2 == 1) {
            return -1;
        }
        n += is_tracing(&_PyTestOracle.interps[i]);
    }
    return n;
}

static void
step_untrack(actor_t *a, block_t *b)
{
    unsigned int before, after;
    set_op(a, "untrack", b->size);
    int ntracing = _PyTestOracle_CountTracing(&before);
    int res = PyTraceMalloc_Untrack(b->domain, b->ptr);
    if (_PyTestOracle_CountTracing(&after) == ntracing && before == after
        && ntracing >= 0 && res != (ntracing > 0 ? 0 : -2))
    {
        fail_step(a, ntracing ? "expected 0" : "expected -2", res);
    }
    if (res != 0 && res != -2) {
        fail_step(a, "expected 0 or -2", res);
    }
    // Where nothing traces, nothing has a trace.
    expect_none(a, b);
}

// Ask for the trace of a single block.
static void
step_probe(actor_t *a, block_t *b)
{
    tracemalloc_trace trace;
    tracemalloc_snapshot snapshot;
    set_op(a, "probe", b->size);
    int before = version_of(a->home);
    int need = NO, limit = _Py_atomic_load_int(&a->home->limit);
    if (b->owner == (int)(a->home - _PyTestOracle.interps)) {
        need = need_of(b, before);
    }
    bool found = _PyTraceMalloc_SnapshotBlock(b->domain, b->ptr, &trace,
                                              &snapshot);
    if (version_of(a->home) == before && before % 2 == 0) {
        if (need == (found ? NO : YES)) {
            fail_step(a, "wrong number of traces", found);
        }
        else if (found) {
            if (trace.size != b->size) {
                fail_step(a, "wrong size", (long)trace.size);
            }
            if (_PyTestOracle_HashTrace(snapshot.intern, &trace)
                != _PyTestOracle_HashFrames(b->frames, limit))
            {
                fail_step(a, "wrong traceback", 0);
            }
        }
    }
    _PyTraceMalloc_FreeSnapshot(&snapshot);
}

// Take a block out of a slot, do something to it, and put it back.
static void
step_block(actor_t *a, int pool)
{
    block_t **slot = &_PyTestOracle.pools[pool].slots[rnd(a, NSLOTS)];
    block_t *b = _Py_atomic_exchange_ptr(slot, NULL);
    size_t what = rnd(a, 16);
    if (b == NULL) {
        if (pool != POOL_TRACKED) {
            b = step_alloc(a, pool == POOL_RAW ? RAW : MEM + rnd(a, 2));
        }
    }
    else if (what < 2 && a->attached) {
        step_probe(a, b);
    }
    else if (b->kind == TRACKED ? what < 10 : what == 2) {
        step_track(a, b);
    }
    else if (b->kind == TRACKED || what == 3) {
        step_untrack(a, b);
    }
    else if (what < 9) {
        step_realloc(a, b);
    }
    else {
        _PyTestOracle_FreeBlock(a, b);
        b = NULL;
    }
    if (b != NULL) {
        // Another actor may have filled the slot meanwhile.
        b = _Py_atomic_exchange_ptr(slot, b);
        if (b != NULL) {
            _PyTestOracle_FreeBlock(a, b);
        }
    }
}


/* --- Steps: start, stop and clear --------------------------------------- */

// In a serial round, while all blocks are in their slots.
static size_t
sum_of(interp_t *interp)
{
    size_t sum = interp->baseline;
    int version = version_of(interp);
    FOR_BLOCKS(b) {
        if (b->owner == (int)(interp - _PyTestOracle.interps)
            && need_of(b, version) != NO)
        {
            sum += b->size;
        }
    }
    return sum;
}

PyObject *
_PyTestOracle_Call(actor_t *a, int function, PyObject *arg)
{
    PyObject *res = PyObject_Vectorcall(a->functions[function], &arg,
                                        arg != NULL, NULL);
    Py_XDECREF(res);
    return res;
}

static void
call_change(actor_t *a, int function, size_t limit)
{
    static const char * const names[] = {"start", "stop", "clear_traces"};
    PyObject *arg = function == START ? a->limits[limit] : NULL;
    set_op(a, names[function],
           function == START ? (size_t)_PyTestOracle_Limits[limit] : 0);
    if (_PyTestOracle_Call(a, function, arg) == NULL) {
        PyErr_Clear();
        fail_step(a, "it failed", -1);
    }
}

static void
change(actor_t *a, int what, size_t limit)
{
    interp_t *interp = a->home;
    unsigned int ignored;
    if (is_tracing(interp) == (what == START)) {
        // Changes nothing.
        call_change(a, what, limit);
        return;
    }
    if (!_PyTestOracle.parallel) {
        a->tally->size -= (Py_ssize_t)sum_of(interp);
    }
    begin_change(interp);
    call_change(a, what, limit);
    end_change(interp, what != STOP,
               what == START ? _PyTestOracle_Limits[limit] : interp->limit);
    if (!_PyTestOracle.parallel) {
        if (what == CLEAR_TRACES) {
            a->tally->peak = a->tally->size;
        }
        else if (what == STOP && _PyTestOracle_CountTracing(&ignored) == 0) {
            a->tally->peak = 0;
        }
    }
}

static void
step_change(actor_t *a)
{
    // All but the last one, where it would take too long.
    size_t limit = rnd(a, a->home->deep ? NLIMITS - 1 : NLIMITS);
    size_t what = rnd(a, 8);
    PyMutex_Lock(&a->home->changing);
    if (what < 2) {
        change(a, STOP, 0);
    }
    else if (what < 4) {
        change(a, CLEAR_TRACES, 0);
    }
    else {
        if (what < 6) {
            change(a, STOP, 0);
        }
        change(a, START, limit);
    }
    bool tracing = _PyTestOracle_Call(a, IS_TRACING, NULL) == Py_True;
    if (tracing != is_tracing(a->home)) {
        fail_step(a, "is_tracing() is wrong", tracing);
    }
    // Another one is seen by the tracebacks.
    if (a->home->limit <= SMALL_INT) {
        PyObject *res = _PyTestOracle_Call(a, GET_TRACEBACK_LIMIT, NULL);
        if (PyLong_AsLong(res) != a->home->limit) {
            fail_step(a, "wrong limit", PyLong_AsLong(res));
        }
    }
    PyMutex_Unlock(&a->home->changing);
}

// Look at everything, or set the peak back.
static void
step_look(actor_t *a)
{
    size_t size, peak;
    if (a->attached && !_PyTestOracle.quiet && rnd(a, 4) == 0) {
        set_op(a, "reset_peak", 0);
        (void)_PyTestOracle_Call(a, RESET_PEAK, NULL);
        if (!_PyTestOracle.parallel) {
            a->tally->peak = a->tally->size;
        }
    }
    set_op(a, "get_traced_memory", 0);
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    a->seen = Py_MAX(a->seen, size);
    if (size > peak) {
        fail_step(a, "larger than the peak", (long)size);
    }
    if (a->attached) {
        tracemalloc_snapshot snapshot;
        set_op(a, "snapshot", 0);
        if (_PyTraceMalloc_Snapshot(&snapshot) < 0) {
            PyErr_Clear();
            fail_step(a, "no memory", -1);
            return;
        }
        _PyTraceMalloc_FreeSnapshot(&snapshot);
    }
}

void
_PyTestOracle_Step(actor_t *a)
{
    size_t what = rnd(a, 64);
    if (what < 2 && a->attached && !_PyTestOracle.quiet) {
        step_change(a);
    }
    else if (what < 4) {
        step_look(a);
    }
    else if (what < 20) {
        step_block(a, POOL_TRACKED);
    }
    else if (a->attached && what < 40) {
        step_block(a, a->home->pool);
    }
    else {
        step_block(a, POOL_RAW);
    }
}
