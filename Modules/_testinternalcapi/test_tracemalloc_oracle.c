/* An oracle for tracemalloc: random operations with books of its own.

   Threads of all kinds (attached, detached, stateless) in all kinds of
   interpreters (main, sharing the main GIL, with a GIL of their own) allocate,
   reallocate, free, track and untrack blocks, and start, stop and clear
   tracemalloc.  The oracle writes down which trace each block must have, and
   compares that with all traces there are, by address, and with the
   process-wide counters.

   Everything happens in rounds.  All threads ("actors") go down into Python
   code to some depth and rest there.  The traces that Python's own memory has
   at this moment are the baseline.  Then only code of this file runs, so that
   at the end of the round each trace must be one of the baseline or one that
   the oracle knows, and the other way round.

   - In a serial round the actors take turns: everything is known.  The
     counters and the peak are compared after one step in sixteen, and after
     the last one.
   - In a parallel round all actors run at once and pass blocks to each other.
     Each interpreter has a version, which is odd while tracing is started,
     stopped or cleared there, and another one afterwards.  What was recorded
     while the version did not change is known; what was recorded meanwhile
     may have a trace or not, and if it has one then the right one.

   The driver is Lib/test/tracemalloc_oracle.py; run it with the seed of a
   failure, and the same options, to replay it:

       ./python -m test.tracemalloc_oracle --seed 1234

   The oracle's own memory comes from malloc(), and is not traced.  It uses
   none of tracemalloc's code but for reading the traces out. */

#include "parts.h"
#include "pycore_interp.h"        // _PyInterpreterState_LookUpID()
#include "pycore_lock.h"          // PyMutex
#include "pycore_parking_lot.h"   // Py_PARK_OK
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_semaphore.h"     // _PySemaphore
#include "pycore_tracemalloc.h"   // _PyTraceMalloc_CopyTraces()

#include <stdarg.h>               // va_list
#include <stdlib.h>               // malloc(), free(), qsort(), abort()

#define MAX_INTERPS 16
#define MAX_ACTORS 32
#define NSLOTS 48
#define MAX_TOTAL_NFRAME UINT16_MAX

// More than any allocator can give where addresses have 64 bits.
#define TOO_MUCH ((size_t)PY_SSIZE_T_MAX - 4096)


/* --- State -------------------------------------------------------------- */

typedef struct {
    uint64_t print;               // hash of this frame and all inner ones
    unsigned int lineno;
    char name[24];                // the filename's end, for messages
} frame_t;

/* The frames of an actor in a round.  Blocks refer to it. */
typedef struct frames {
    struct frames *next;
    bool used;
    size_t total;
    size_t nframe;                // at most MAX_TOTAL_NFRAME
    frame_t items[1];
} frames_t;

enum kind { RAW, MEM, OBJ, TRACKED };

/* A block and the trace that it must have.  Belongs to who took it out of its
   slot, or to its slot. */
typedef struct {
    enum kind kind;
    unsigned int domain;
    uintptr_t ptr;
    int owner;                    // index of an interpreter, or -1: no trace
    int before, after;            // the owner's versions around recording
    size_t size;
    const frames_t *frames;
} block_t;

/* Blocks that may be used by the same threads. */
typedef struct {
    block_t *slots[NSLOTS];       // atomic
} pool_t;

enum { POOL_RAW, POOL_TRACKED, POOL_MAIN, NPOOLS = POOL_MAIN + MAX_INTERPS };

typedef struct {
    PyInterpreterState *interp;   // NULL: there is none, or it is gone
    const char *kind;
    bool known;                   // are `tracing` and `limit`?
    int pool;                     // of its mem and obj blocks
    PyMutex changing;             // guards the next three
    int version;                  // atomic; odd while the next two change
    int tracing;                  // atomic
    int limit;                    // atomic
    bool deep;                    // has an actor of that many frames
    size_t baseline;              // size of its traces in the baseline
} interp_t;

/* What traced memory must be; in a parallel round, one actor's share. */
typedef struct {
    Py_ssize_t size;
    Py_ssize_t peak;
    size_t added;
} tally_t;

enum command { ENTER, STEPS, LEAVE, QUIT };

typedef struct {
    bool alive;
    int index;
    bool stateless;
    interp_t *home;               // the main interpreter, if stateless
    PyThreadState *tstate;
    PyObject *descend;
    _PySemaphore wake;
    enum command command;
    int nsteps;
    int depth;                    // of Python calls; -1: no Python code at all
    bool at_rest;
    uint64_t rng;
    const frames_t *frames;
    bool attached;
    tally_t own;
    tally_t *tally;
    size_t seen;                  // largest traced memory that it has read
    const char *op;               // the last one, for messages
    const char *op_how;
    size_t op_size;
} actor_t;

/* A trace, found or expected. */
typedef struct {
    unsigned int domain;
    uintptr_t ptr;
    int owner;
    size_t size;
    uint64_t print;               // hash of the traceback
    enum { NO, MAYBE, YES } need;
    int version;                  // of the owner; of the baseline only
    block_t *block;               // NULL: not the oracle's
    const tracemalloc_trace *trace;        // found ones only
} item_t;

typedef struct {
    item_t *items;
    size_t length;
    size_t capacity;
} items_t;

static struct {
    bool may_fail;                // may memory be asked for that isn't there?
    interp_t interps[MAX_INTERPS];
    actor_t actors[MAX_ACTORS];
    pool_t pools[NPOOLS];
    frames_t *all_frames;
    frames_t *unknown;            // of a thread without Python frames
    _PySemaphore done;
    bool parallel, quiet;
    tally_t tally;
    items_t baseline;
    size_t ncompared;
    int failed;                   // atomic
    char message[2000];
} oracle;


/* --- Small things ------------------------------------------------------- */

static void *
alloc(size_t size)
{
    void *ptr = calloc(1, size);
    if (ptr == NULL) {
        abort();
    }
    return ptr;
}

/* SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
   Generators", 2014.  Its output function also serves as a hash. */
static uint64_t
mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static size_t
rnd(actor_t *a, size_t n)
{
    uint64_t x = mix(a->rng);
    a->rng += 0x9e3779b97f4a7c15u;
    return (size_t)((x >> 11) % n);
}

/* The first failure counts.  Its message is read when all are at rest. */
static void
fail(const char *format, ...)
{
    int no = 0;
    if (_Py_atomic_compare_exchange_int(&oracle.failed, &no, 1)) {
        va_list args;
        va_start(args, format);
        vsnprintf(oracle.message, sizeof(oracle.message), format, args);
        va_end(args);
    }
}

static bool
failed(void)
{
    return _Py_atomic_load_int(&oracle.failed);
}

static actor_t *
next_actor(actor_t *a)
{
    do {
        a = a == NULL ? oracle.actors : a + 1;
    } while (a < oracle.actors + MAX_ACTORS && !a->alive);
    return a < oracle.actors + MAX_ACTORS ? a : NULL;
}

#define FOR_ACTORS(a) \
    for (actor_t *a = NULL; (a = next_actor(a)) != NULL; )

#define FOR_BLOCKS(b) \
    for (int i_ = 0; i_ < NPOOLS * NSLOTS; i_++) \
        for (block_t *b = oracle.pools[i_ / NSLOTS].slots[i_ % NSLOTS]; \
             b != NULL; b = NULL)

static void
fail_step(actor_t *a, const char *what, long got)
{
    fail("actor %d (%s %d, %s), %s(%zu): %s (got %ld)", a->index,
         a->home->kind, (int)(a->home - oracle.interps), a->op_how,
         a->op, a->op_size, what, got);
}

static void
wait_for(_PySemaphore *semaphore)
{
    while (_PySemaphore_Wait(semaphore, -1, 0) != Py_PARK_OK) {
    }
}


/* --- Tracebacks --------------------------------------------------------- */

/* Inner frames first; they have the hash `inner`. */
static void
set_frame(frame_t *frame, uint64_t inner, int kind, const void *text,
          size_t length, int lineno)
{
    uint64_t hash = mix(inner ^ length);
    size_t first = length - Py_MIN(length, sizeof(frame->name) - 1);
    for (size_t i = 0; i < length; i++) {
        Py_UCS4 ch = PyUnicode_READ(kind, text, i);
        hash = mix(hash ^ ch);
        if (i >= first) {
            frame->name[i - first] = ' ' <= ch && ch <= '~' ? (char)ch : '?';
        }
    }
    frame->name[length - first] = 0;
    // No line is 0 for tracemalloc.
    frame->lineno = lineno < 0 ? 0 : (unsigned int)lineno;
    frame->print = mix(hash ^ frame->lineno);
}

static void
set_unknown_frame(frame_t *frame, uint64_t inner)
{
    set_frame(frame, inner, PyUnicode_1BYTE_KIND, "<unknown>", 9, 0);
}

static uint64_t
hash_traceback(uint64_t frames, size_t total)
{
    return mix(frames ^ Py_MIN(total, MAX_TOTAL_NFRAME));
}

static size_t
kept(const frames_t *frames, int limit)
{
    return Py_MIN((size_t)limit, frames->nframe);
}

static uint64_t
print_of(const frames_t *frames, int limit)
{
    return hash_traceback(frames->items[kept(frames, limit) - 1].print,
                          frames->total);
}

static frames_t *
new_frames(size_t total)
{
    size_t nframe = Py_MIN(total, MAX_TOTAL_NFRAME);
    frames_t *frames = alloc(sizeof(frames_t) + nframe * sizeof(frame_t));
    frames->total = total;
    frames->nframe = nframe;
    frames_t *next;
    do {
        next = _Py_atomic_load_ptr(&oracle.all_frames);
        frames->next = next;
    } while (!_Py_atomic_compare_exchange_ptr(&oracle.all_frames, &next,
                                              frames));
    return frames;
}

/* The frames of the caller, by means of frame objects. */
static frames_t *
capture(void)
{
    size_t total = 0;
    PyFrameObject *frame = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    for (; frame != NULL; total++) {
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    frames_t *frames = new_frames(total);
    frame = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    for (size_t i = 0; i < frames->nframe; i++) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        PyObject *name = code->co_filename;
        set_frame(&frames->items[i], i == 0 ? 0 : frames->items[i - 1].print,
                  PyUnicode_KIND(name), PyUnicode_DATA(name),
                  (size_t)PyUnicode_GET_LENGTH(name),
                  PyFrame_GetLineNumber(frame));
        Py_DECREF(code);
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    Py_XDECREF(frame);
    return frames;
}

/* A frame of a trace that was read out. */
static void
read_frame(const tracemalloc_intern *intern, const tracemalloc_frame *from,
           uint64_t inner, frame_t *frame)
{
    const void *text;
    const tracemalloc_filename *name =
        _PyTraceMalloc_GetFilename(intern, from->filename, &text);
    if (name == NULL) {
        set_unknown_frame(frame, inner);
        // It has no line either, or else this is seen by the hash.
        frame->print += from->lineno;
        frame->lineno = from->lineno;
    }
    else {
        set_frame(frame, inner, name->kind, text, name->length,
                  (int)from->lineno);
    }
}

static uint64_t
print_of_trace(const tracemalloc_intern *intern, const tracemalloc_trace *trace)
{
    const tracemalloc_frame *frames;
    const tracemalloc_traceback *traceback =
        _PyTraceMalloc_GetFrames(intern, trace->traceback, &frames);
    frame_t frame = {0};
    for (size_t i = 0; i < traceback->nframe; i++) {
        read_frame(intern, &frames[i], frame.print, &frame);
    }
    return hash_traceback(frame.print, traceback->total_nframe);
}


/* --- What is expected of a block ---------------------------------------- */

static int
version_of(interp_t *interp)
{
    return _Py_atomic_load_int(&interp->version);
}

static bool
is_tracing(interp_t *interp)
{
    return _Py_atomic_load_int(&interp->tracing);
}

/* Must a block have a trace, if its owner has this version now? */
static int
need_of(const block_t *b, int version)
{
    if (b->owner < 0 || b->after != version
        || !is_tracing(&oracle.interps[b->owner]))
    {
        return NO;
    }
    return b->before == b->after ? YES : MAYBE;
}

/* The trace of a block is dropped. */
static void
expect_none(actor_t *a, block_t *b)
{
    if (b->owner >= 0
        && need_of(b, version_of(&oracle.interps[b->owner])) == YES)
    {
        a->tally->size -= (Py_ssize_t)b->size;
    }
    b->owner = -1;
}

/* A block was recorded by the actor, whose interpreter had that version
   before. */
static void
expect_trace(actor_t *a, block_t *b, int before, size_t size)
{
    expect_none(a, b);
    b->owner = (int)(a->home - oracle.interps);
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

static const struct {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void (*free)(void *);
} allocators[] = {
    [RAW] = {PyMem_RawMalloc, PyMem_RawCalloc, PyMem_RawRealloc,
             PyMem_RawFree},
    [MEM] = {PyMem_Malloc, PyMem_Calloc, PyMem_Realloc, PyMem_Free},
    [OBJ] = {PyObject_Malloc, PyObject_Calloc, PyObject_Realloc,
             PyObject_Free},
};

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
        ptr = allocators[kind].malloc(size);
    }
    else if (how == 1) {
        ptr = allocators[kind].calloc(n, size / n);
    }
    else {
        ptr = allocators[kind].realloc(NULL, size);
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
    bool too_much = (SIZEOF_VOID_P > 4 && oracle.may_fail
                     && rnd(a, 5) == 0);
    size_t size = too_much ? TOO_MUCH : rnd_size(a);
    set_op(a, "realloc", size);
    int before = version_of(a->home);
    void *ptr = allocators[b->kind].realloc((void *)b->ptr, size);
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

static void
step_free(actor_t *a, block_t *b)
{
    set_op(a, "free", b->size);
    // Before the block is gone: its address may be somebody else's then.
    expect_none(a, b);
    allocators[b->kind].free((void *)b->ptr);
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

/* The number of interpreters that are tracing; `sum` tells if it has changed
   between two calls. */
static int
count_tracing(unsigned int *sum)
{
    int n = 0;
    *sum = 0;
    for (int i = 0; i < MAX_INTERPS; i++) {
        int version = version_of(&oracle.interps[i]);
        *sum += (unsigned int)version;
        if (version % 2 == 1) {
            return -1;
        }
        n += is_tracing(&oracle.interps[i]);
    }
    return n;
}

static void
step_untrack(actor_t *a, block_t *b)
{
    unsigned int before, after;
    set_op(a, "untrack", b->size);
    int ntracing = count_tracing(&before);
    int res = PyTraceMalloc_Untrack(b->domain, b->ptr);
    if (count_tracing(&after) == ntracing && before == after
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

/* Ask for the trace of a single block. */
static void
step_probe(actor_t *a, block_t *b)
{
    tracemalloc_snapshot snapshot;
    set_op(a, "probe", b->size);
    int before = version_of(a->home);
    int need = NO, limit = _Py_atomic_load_int(&a->home->limit);
    if (b->owner == (int)(a->home - oracle.interps)) {
        need = need_of(b, before);
    }
    if (_PyTraceMalloc_SnapshotBlock(b->domain, b->ptr, &snapshot) < 0) {
        PyErr_Clear();
        fail_step(a, "no memory", 0);
        return;
    }
    if (version_of(a->home) == before && before % 2 == 0) {
        if (snapshot.ntraces == 0 ? need == YES : need == NO) {
            fail_step(a, "wrong number of traces", (long)snapshot.ntraces);
        }
        else if (snapshot.ntraces > 0) {
            if (snapshot.traces[0].size != b->size) {
                fail_step(a, "wrong size", (long)snapshot.traces[0].size);
            }
            if (print_of_trace(&snapshot.intern, &snapshot.traces[0])
                != print_of(b->frames, limit))
            {
                fail_step(a, "wrong traceback", 0);
            }
        }
    }
    _PyTraceMalloc_FreeSnapshot(&snapshot);
}

/* Take a block out of a slot, do something to it, and put it back. */
static void
step_block(actor_t *a, int pool)
{
    block_t **slot = &oracle.pools[pool].slots[rnd(a, NSLOTS)];
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
        step_free(a, b);
        b = NULL;
    }
    if (b != NULL) {
        // Another actor may have filled the slot meanwhile.
        b = _Py_atomic_exchange_ptr(slot, b);
        if (b != NULL) {
            step_free(a, b);
        }
    }
}


/* --- Steps: start, stop and clear --------------------------------------- */

/* In a serial round, while all blocks are in their slots. */
static size_t
sum_of(interp_t *interp)
{
    size_t sum = interp->baseline;
    int version = version_of(interp);
    FOR_BLOCKS(b) {
        if (b->owner == (int)(interp - oracle.interps)
            && need_of(b, version) != NO)
        {
            sum += b->size;
        }
    }
    return sum;
}

static void
begin_change(interp_t *interp)
{
    _Py_atomic_add_int(&interp->version, 1);
}

static void
end_change(interp_t *interp, bool tracing, int limit)
{
    interp->baseline = 0;
    _Py_atomic_store_int(&interp->tracing, tracing);
    _Py_atomic_store_int(&interp->limit, limit);
    _Py_atomic_add_int(&interp->version, 1);
}

enum change { START, STOP, CLEAR };

static void
call_change(actor_t *a, enum change what, int limit)
{
    static const char * const names[] = {"start", "stop", "clear_traces"};
    set_op(a, names[what], (size_t)limit);
    if (what == STOP) {
        _PyTraceMalloc_Stop();
    }
    else if (what == CLEAR) {
        _PyTraceMalloc_ClearTraces();
    }
    else if (_PyTraceMalloc_Start(limit) < 0) {
        PyErr_Clear();
        fail_step(a, "it failed", -1);
    }
}

static void
change(actor_t *a, enum change what, int limit)
{
    interp_t *interp = a->home;
    unsigned int ignored;
    if (is_tracing(interp) == (what == START)) {
        // Changes nothing.
        call_change(a, what, limit);
        return;
    }
    if (!oracle.parallel) {
        a->tally->size -= (Py_ssize_t)sum_of(interp);
    }
    begin_change(interp);
    call_change(a, what, limit);
    end_change(interp, what != STOP,
               what == START ? limit : interp->limit);
    if (!oracle.parallel) {
        if (what == CLEAR) {
            a->tally->peak = a->tally->size;
        }
        else if (what == STOP && count_tracing(&ignored) == 0) {
            a->tally->peak = 0;
        }
    }
}

static void
step_change(actor_t *a)
{
    static const int limits[] = {1, 1, 2, 3, 7, 25, 200, MAX_TOTAL_NFRAME};
    int limit = limits[rnd(a, Py_ARRAY_LENGTH(limits))];
    size_t what = rnd(a, 8);
    if (a->home->deep) {
        limit = Py_MIN(limit, 200);
    }
    PyMutex_Lock(&a->home->changing);
    if (what < 2) {
        change(a, STOP, 0);
    }
    else if (what < 4) {
        change(a, CLEAR, 0);
    }
    else {
        if (what < 6) {
            change(a, STOP, 0);
        }
        change(a, START, limit);
    }
    if (_PyTraceMalloc_IsTracing() != is_tracing(a->home)) {
        fail_step(a, "is_tracing() is wrong", _PyTraceMalloc_IsTracing());
    }
    if (_PyTraceMalloc_GetTracebackLimit() != a->home->limit) {
        fail_step(a, "wrong limit", _PyTraceMalloc_GetTracebackLimit());
    }
    PyMutex_Unlock(&a->home->changing);
}

/* Look at everything, or set the peak back. */
static void
step_look(actor_t *a)
{
    size_t size, peak;
    if (!oracle.quiet && rnd(a, 4) == 0) {
        set_op(a, "reset_peak", 0);
        _PyTraceMalloc_ResetPeak();
        a->tally->peak = oracle.parallel ? a->tally->peak : a->tally->size;
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

static void
step(actor_t *a)
{
    size_t what = rnd(a, 64);
    if (what < 2 && a->attached && !oracle.quiet) {
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


/* --- Actors ------------------------------------------------------------- */

static void
attach(actor_t *a)
{
    PyEval_RestoreThread(a->tstate);
    a->attached = true;
}

static void
detach(actor_t *a)
{
    a->attached = false;
    (void)PyEval_SaveThread();
}

static void
steps(actor_t *a, int n)
{
    while (n > 0 && !failed()) {
        bool attached = !a->stateless && rnd(a, 4) != 0;
        if (attached) {
            attach(a);
        }
        for (size_t i = rnd(a, 6) + 1; n > 0 && i > 0; i--, n--) {
            step(a);
        }
        if (attached) {
            detach(a);
        }
    }
}

static enum command
report_and_wait(actor_t *a)
{
    _PySemaphore_Wakeup(&oracle.done);
    wait_for(&a->wake);
    return a->command;
}

/* Where an actor rests in a round.  Detached. */
static void
rest(actor_t *a, const frames_t *frames)
{
    a->frames = frames;
    a->at_rest = true;
    while (report_and_wait(a) == STEPS) {
        steps(a, a->nsteps);
    }
}

static void
enter(actor_t *a)
{
    if (a->stateless || a->depth < 0) {
        rest(a, oracle.unknown);
        return;
    }
    attach(a);
    a->at_rest = false;
    PyObject *res = PyObject_CallFunction(
        a->descend, "iiI", a->index, a->depth,
        (unsigned int)rnd(a, (size_t)1 << 31));
    if (res == NULL) {
        PyErr_Print();
        fail("actor %d: its Python code failed", a->index);
    }
    Py_XDECREF(res);
    detach(a);
    if (!a->at_rest) {
        // Keep in step with the others.
        rest(a, oracle.unknown);
    }
}

/* Free the blocks of an object allocator that may end with the interpreter.
   In the free-threaded build each thread has a heap of its own, which goes to
   the thread's interpreter when the thread ends. */
static void
drain(actor_t *a)
{
#ifndef Py_GIL_DISABLED
    if (a->home->pool == POOL_MAIN) {
        return;
    }
#endif
    for (int i = 0; i < NSLOTS; i++) {
        block_t **slot = &oracle.pools[a->home->pool].slots[i];
        if (*slot != NULL) {
            step_free(a, *slot);
            *slot = NULL;
        }
    }
}

static void
actor_begin(actor_t *a)
{
    a->tstate = PyThreadState_New(a->home->interp);
    if (a->tstate == NULL) {
        abort();
    }
    attach(a);
    PyObject *module = PyImport_ImportModule("test.tracemalloc_oracle");
    if (module != NULL) {
        a->descend = PyObject_GetAttrString(module, "descend");
        Py_DECREF(module);
    }
    if (a->descend == NULL) {
        PyErr_Print();
        fail("actor %d cannot import its Python code", a->index);
    }
    if (!a->home->known) {
        // It may have been started by -X tracemalloc.
        begin_change(a->home);
        end_change(a->home, _PyTraceMalloc_IsTracing(),
                   _PyTraceMalloc_GetTracebackLimit());
        a->home->known = true;
    }
    detach(a);
}

static void
actor_thread(void *arg)
{
    actor_t *a = (actor_t *)arg;
    if (!a->stateless) {
        actor_begin(a);
    }
    while (report_and_wait(a) == ENTER) {
        enter(a);
    }
    if (!a->stateless) {
        attach(a);
        drain(a);
        Py_CLEAR(a->descend);
        PyThreadState_Clear(a->tstate);
        PyThreadState_DeleteCurrent();
    }
    _PySemaphore_Wakeup(&oracle.done);
}

/* Called without a thread state attached, like all that follows. */
static void
tell(actor_t *a, enum command command)
{
    a->command = command;
    _PySemaphore_Wakeup(&a->wake);
}

static void
tell_all(enum command command)
{
    int n = 0;
    FOR_ACTORS(a) {
        tell(a, command);
        n++;
    }
    for (; n > 0; n--) {
        wait_for(&oracle.done);
    }
}


/* --- Comparing ---------------------------------------------------------- */

static item_t *
add_item(items_t *items)
{
    if (items->length == items->capacity) {
        items->capacity = items->capacity * 2 + 1000;
        items->items = realloc(items->items,
                               items->capacity * sizeof(item_t));
        if (items->items == NULL) {
            abort();
        }
    }
    item_t *item = &items->items[items->length++];
    *item = (item_t){0};
    return item;
}

static int
compare_items(const void *x, const void *y)
{
    const item_t *a = (const item_t *)x, *b = (const item_t *)y;
    if (a->domain != b->domain) {
        return a->domain < b->domain ? -1 : 1;
    }
    if (a->ptr != b->ptr) {
        return a->ptr < b->ptr ? -1 : 1;
    }
    return 0;
}

static void
expect_block(items_t *expected, block_t *b)
{
    item_t *item = add_item(expected);
    item->domain = b->domain;
    item->ptr = b->ptr;
    item->owner = b->owner;
    item->size = b->size;
    item->block = b;
    if (b->owner >= 0) {
        interp_t *interp = &oracle.interps[b->owner];
        item->need = need_of(b, interp->version);
        if (item->need != NO) {
            item->print = print_of(b->frames, interp->limit);
        }
    }
}

static void
collect_expected(items_t *expected, bool with_baseline)
{
    FOR_BLOCKS(b) {
        expect_block(expected, b);
    }
    for (size_t i = 0; with_baseline && i < oracle.baseline.length; i++) {
        item_t *item = &oracle.baseline.items[i];
        if (oracle.interps[item->owner].version == item->version) {
            *add_item(expected) = *item;
        }
    }
    qsort(expected->items, expected->length, sizeof(item_t), compare_items);
}

/* Return the sum of the sizes. */
static size_t
collect_found(items_t *found, tracemalloc_snapshot *snapshots)
{
    size_t sum = 0;
    for (int owner = 0; owner < MAX_INTERPS; owner++) {
        interp_t *interp = &oracle.interps[owner];
        tracemalloc_snapshot *snapshot = &snapshots[owner];
        if (interp->interp == NULL || !interp->tracing) {
            continue;
        }
        PyMutex_Lock(&_PyRuntime.tracemalloc.mutex);
        if (_PyTraceMalloc_CopyTraces(interp->interp, snapshot) < 0) {
            abort();
        }
        PyMutex_Unlock(&_PyRuntime.tracemalloc.mutex);
        // By traceback id, as far as they are needed.
        uint64_t *prints = alloc((snapshot->intern.tracebacks.length + 2)
                                 * sizeof(uint64_t));
        for (size_t i = 0; i < snapshot->ntraces; i++) {
            const tracemalloc_trace *trace = &snapshot->traces[i];
            uint64_t *print = &prints[trace->traceback];
            if (*print == 0) {
                *print = print_of_trace(&snapshot->intern, trace);
            }
            item_t *item = add_item(found);
            item->domain = trace->domain;
            item->ptr = trace->ptr;
            item->owner = owner;
            item->size = trace->size;
            item->print = *print;
            item->need = YES;
            item->version = interp->version;
            item->trace = trace;
            sum += trace->size;
        }
        free(prints);
    }
    if (found->length > 0) {
        qsort(found->items, found->length, sizeof(item_t), compare_items);
    }
    oracle.ncompared += found->length;
    return sum;
}

static size_t
append(char *text, size_t size, size_t length, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text + length, size - length, format, args);
    va_end(args);
    return Py_MIN(length + (size_t)Py_MAX(n, 0), size - 1);
}

/* The trace of an item, expected or found, with its innermost frames. */
static void
describe(char *text, size_t size, const item_t *item,
         const tracemalloc_snapshot *snapshots)
{
    const interp_t *interp = &oracle.interps[item->owner];
    size_t n, total, len = append(text, size, 0, "%zu bytes in %s %d",
                                  item->size, interp->kind, item->owner);
    const tracemalloc_intern *intern = &snapshots[item->owner].intern;
    const tracemalloc_frame *found = NULL;
    if (item->trace != NULL) {
        const tracemalloc_traceback *traceback = _PyTraceMalloc_GetFrames(
            intern, item->trace->traceback, &found);
        n = traceback->nframe;
        total = traceback->total_nframe;
    }
    else if (item->block != NULL) {
        n = kept(item->block->frames, interp->limit);
        total = item->block->frames->total;
    }
    else {
        (void)append(text, size, len, ", as before");
        return;
    }
    len = append(text, size, len, ", %zu of %zu frames:", n, total);
    for (size_t i = 0; i < Py_MIN(n, 6); i++) {
        frame_t frame;
        if (found != NULL) {
            read_frame(intern, &found[i], 0, &frame);
        }
        else {
            frame = item->block->frames->items[i];
        }
        len = append(text, size, len, " %s:%u", frame.name, frame.lineno);
    }
}

/* Either may be NULL. */
static void
fail_compare(const char *what, const item_t *expected, const item_t *found,
             const tracemalloc_snapshot *snapshots)
{
    static const char * const kinds[] = {"raw", "mem", "obj", "tracked"};
    const item_t *item = expected != NULL ? expected : found;
    char texts[2][700] = {"none", "none"};
    if (expected != NULL && expected->need != NO) {
        describe(texts[0], sizeof(texts[0]), expected, snapshots);
    }
    if (found != NULL) {
        describe(texts[1], sizeof(texts[1]), found, snapshots);
    }
    fail("%s: %s block %#zx in domain %u: expected %s; found %s", what,
         item->block == NULL ? "Python's" : kinds[item->block->kind],
         (size_t)item->ptr, item->domain, texts[0], texts[1]);
}

/* What was uncertain is certain now. */
static void
settle(const item_t *expected, bool found)
{
    if (expected->block != NULL) {
        if (found) {
            expected->block->before = expected->block->after;
        }
        else {
            expected->block->owner = -1;
        }
    }
}

static void
compare(const items_t *expected, const items_t *found, bool rebase,
        const tracemalloc_snapshot *snapshots)
{
    const item_t *e = expected->items, *e_end = e + expected->length;
    const item_t *f = found->items, *f_end = f + found->length;
    while ((e < e_end || f < f_end) && !failed()) {
        int order = e == e_end ? 1 : f == f_end ? -1 : compare_items(e, f);
        if (f + 1 < f_end && compare_items(f, f + 1) == 0) {
            fail_compare("two interpreters have a trace", order ? NULL : e,
                         f, snapshots);
        }
        if (order < 0) {
            if (e->need == YES) {
                fail_compare("a trace is missing", e, NULL, snapshots);
            }
            settle(e++, false);
            continue;
        }
        if (order > 0 && rebase) {
            item_t *item = add_item(&oracle.baseline);
            *item = *f;
            item->trace = NULL;
            oracle.interps[f->owner].baseline += f->size;
        }
        else if (order > 0) {
            fail_compare("trace of a block which is not there", NULL, f,
                         snapshots);
        }
        else if (e->need == NO) {
            fail_compare("there must be no trace", e, f, snapshots);
        }
        else if (e->owner != f->owner || e->size != f->size
                 || e->print != f->print)
        {
            fail_compare("wrong trace", e, f, snapshots);
        }
        f++;
        if (order == 0) {
            settle(e++, true);
        }
    }
}

/* Compare everything.  With `rebase`, traces that are not the oracle's become
   the baseline; without it they must be in the baseline. */
static void
audit(bool rebase)
{
    tracemalloc_snapshot snapshots[MAX_INTERPS] = {0};
    items_t expected = {0}, found = {0};
    size_t size, peak;
    if (failed()) {
        return;
    }
    if (rebase) {
        oracle.baseline.length = 0;
        for (int i = 0; i < MAX_INTERPS; i++) {
            oracle.interps[i].baseline = 0;
        }
    }
    size_t sum = collect_found(&found, snapshots);
    collect_expected(&expected, !rebase);
    compare(&expected, &found, rebase, snapshots);
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    unsigned int ignored;
    if (sum != size || (peak != 0 && count_tracing(&ignored) == 0)) {
        fail("the traces have %zu bytes, get_traced_memory() is "
             "(%zu, %zu)", sum, size, peak);
    }
    if (rebase) {
        oracle.tally = (tally_t){(Py_ssize_t)size, (Py_ssize_t)peak, 0};
    }
    for (int i = 0; i < MAX_INTERPS; i++) {
        if (snapshots[i].traces != NULL) {
            _PyTraceMalloc_FreeSnapshot(&snapshots[i]);
        }
    }
    free(expected.items);
    free(found.items);
}

/* In a serial round, after some steps.  Threads may hold credit that was given
   out to them, and each query takes it back: so most steps are not followed by
   one. */
#define STEPS_PER_QUERY 16

static void
check_counters(actor_t *a)
{
    size_t size, peak;
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    if ((Py_ssize_t)size != oracle.tally.size
        || (Py_ssize_t)peak != oracle.tally.peak)
    {
        char what[200];
        snprintf(what, sizeof(what), "get_traced_memory() must be "
                 "(%zd, %zd) and is (%zu, %zu)", oracle.tally.size,
                 oracle.tally.peak, size, peak);
        fail_step(a, what, 0);
    }
}

/* After a parallel round.  The most that all actors together can have had is
   the sum of what each had at most; if one starts, stops or clears, then
   what the others take away may not have been there. */
static void
check_bounds(void)
{
    size_t size, peak, seen = 0;
    Py_ssize_t last = oracle.tally.size, most = last, least = 0;
    FOR_ACTORS(a) {
        last += a->own.size;
        most += oracle.quiet ? a->own.peak : (Py_ssize_t)a->own.added;
        seen = Py_MAX(seen, a->seen);
    }
    most = Py_MAX(most, oracle.tally.peak);
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    if (oracle.quiet) {
        least = Py_MAX(oracle.tally.peak, (Py_ssize_t)seen);
        if (last != (Py_ssize_t)size) {
            fail("traced memory must be %zd and is %zu", last, size);
        }
    }
    least = Py_MAX(least, (Py_ssize_t)size);
    if ((Py_ssize_t)peak < least || (Py_ssize_t)peak > most) {
        fail("the peak must be in [%zd; %zd] and is %zu", least, most, peak);
    }
}


/* --- Rounds ------------------------------------------------------------- */

/* Free the frames that no block needs. */
static void
sweep_frames(void)
{
    for (frames_t *frames = oracle.all_frames; frames != NULL;
         frames = frames->next)
    {
        frames->used = frames == oracle.unknown;
    }
    FOR_BLOCKS(b) {
        if (b->owner >= 0) {
            ((frames_t *)b->frames)->used = true;
        }
    }
    frames_t **link = &oracle.all_frames;
    while (*link != NULL) {
        frames_t *frames = *link;
        if (frames->used) {
            link = &frames->next;
        }
        else {
            *link = frames->next;
            free(frames);
        }
    }
}

static int
rnd_depth(actor_t *a)
{
    size_t what = rnd(a, 400);
    if (what == 0 && !is_tracing(a->home)) {
        // Not while tracing: going down would take quadratic time, and as
        // much memory if all frames are kept.
        a->home->deep = true;
        return MAX_TOTAL_NFRAME + 5;
    }
    return what < 4 ? 1000 : what < 40 ? 100 : what < 70 ? -1
           : (int)rnd(a, 30);
}

static void
run_serial(actor_t *director, int nsteps)
{
    actor_t *alive[MAX_ACTORS];
    size_t n = 0;
    FOR_ACTORS(a) {
        alive[n++] = a;
        a->nsteps = 1;
        a->tally = &oracle.tally;
    }
    for (; nsteps > 0 && !failed(); nsteps--) {
        actor_t *a = alive[rnd(director, n)];
        tell(a, STEPS);
        wait_for(&oracle.done);
        if (nsteps % STEPS_PER_QUERY == 1) {
            check_counters(a);
        }
    }
}

static void
run_parallel(int nsteps)
{
    FOR_ACTORS(a) {
        a->nsteps = nsteps;
        a->own = (tally_t){0};
        a->tally = &a->own;
        a->seen = 0;
    }
    tell_all(STEPS);
    if (!failed()) {
        check_bounds();
    }
}

static void
run_round(uint64_t seed, int nsteps)
{
    actor_t director = {.rng = mix(seed)};
    sweep_frames();
    FOR_ACTORS(a) {
        a->home->deep = false;
    }
    FOR_ACTORS(a) {
        a->rng = mix(mix(seed) + (uint64_t)a->index + 1);
        a->depth = rnd_depth(a);
    }
    tell_all(ENTER);
    audit(true);
    if (!failed()) {
        if (oracle.parallel) {
            run_parallel(nsteps);
        }
        else {
            run_serial(&director, nsteps);
        }
    }
    audit(false);
    tell_all(LEAVE);
}


/* --- Functions ---------------------------------------------------------- */

static PyObject *
result(PyObject *value)
{
    if (failed()) {
        PyErr_SetString(PyExc_AssertionError, oracle.message);
        Py_CLEAR(value);
    }
    return value;
}

static void
init_oracle(void)
{
    _PySemaphore_Init(&oracle.done);
    oracle.unknown = new_frames(1);
    set_unknown_frame(&oracle.unknown->items[0], 0);
    for (uintptr_t i = 0; i < NSLOTS; i++) {
        // The same address in several domains, and the extremes of both.
        // Domain 0 too: no allocator returns these addresses.
        static const unsigned int domains[] = {0, 1, 0xbeef, UINT_MAX};
        block_t *b = alloc(sizeof(block_t));
        b->kind = TRACKED;
        b->domain = domains[i % 4];
        b->ptr = i < 4 ? UINTPTR_MAX : (i / 4 - 1) * 16;
        b->owner = -1;
        oracle.pools[POOL_TRACKED].slots[i] = b;
    }
}

static int
add_actor(interp_t *home, bool stateless)
{
    int i = 0;
    while (i < MAX_ACTORS && oracle.actors[i].alive) {
        i++;
    }
    actor_t *a = &oracle.actors[i];
    if (i < MAX_ACTORS) {
        *a = (actor_t){.alive = true, .index = i, .stateless = stateless,
                       .home = home, .tally = &oracle.tally};
        _PySemaphore_Init(&a->wake);
    }
    if (i == MAX_ACTORS
        || (PyThread_start_new_thread(actor_thread, a)
            == PYTHREAD_INVALID_THREAD_ID))
    {
        PyErr_SetString(PyExc_RuntimeError, "no more threads");
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    wait_for(&oracle.done);
    Py_END_ALLOW_THREADS
    return 0;
}

PyDoc_STRVAR(add_doc,
"tracemalloc_oracle_add(id, nactors, nstateless, may_fail)\n"
"--\n\n"
"Add an interpreter, with threads of its own and stateless ones.\n\n"
"The main one comes first.  'may_fail': ask for too much memory at times.\n"
"Return its index.");

static PyObject *
add(PyObject *self, PyObject *args)
{
    long long id;
    int nactors, nstateless, may_fail, i = 0;
    if (!PyArg_ParseTuple(args, "Liip", &id, &nactors, &nstateless,
                          &may_fail))
    {
        return NULL;
    }
    if (oracle.unknown == NULL) {
        init_oracle();
    }
    oracle.may_fail = may_fail;
    while (i < MAX_INTERPS - 1 && oracle.interps[i].interp != NULL) {
        i++;
    }
    interp_t *it = &oracle.interps[i];
    PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
    if (it->interp != NULL || interp == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no such interpreter, or full");
        return NULL;
    }
    bool own = !(interp->feature_flags & Py_RTFLAGS_USE_MAIN_OBMALLOC);
    it->interp = interp;
    it->known = false;
    it->kind = i == 0 ? "main" : own ? "isolated" : "legacy";
    it->pool = POOL_MAIN + (i != 0 && own ? i : 0);
    for (int n = 0; n < nactors + nstateless; n++) {
        if (add_actor(it, n >= nactors) < 0) {
            return NULL;
        }
    }
    return result(PyLong_FromLong(i));
}

PyDoc_STRVAR(remove_doc,
"tracemalloc_oracle_remove(index)\n"
"--\n\n"
"Forget an interpreter, which is going to be destroyed, and end its threads.");

static PyObject *
remove_(PyObject *self, PyObject *arg)
{
    long index = PyLong_AsLong(arg);
    if (index < 0 || index >= MAX_INTERPS) {
        return PyErr_Format(PyExc_ValueError, "wrong index");
    }
    interp_t *interp = &oracle.interps[index];
    Py_BEGIN_ALLOW_THREADS
    FOR_ACTORS(a) {
        if (a->home == interp) {
            a->tally = &oracle.tally;
            tell(a, QUIT);
            wait_for(&oracle.done);
            _PySemaphore_Destroy(&a->wake);
            a->alive = false;
        }
    }
    Py_END_ALLOW_THREADS
    begin_change(interp);
    end_change(interp, false, 1);
    interp->interp = NULL;
    return result(Py_NewRef(Py_None));
}

PyDoc_STRVAR(act_doc,
"tracemalloc_oracle_act(actor)\n"
"--\n\n"
"Called by the actor's Python code where it shall rest during the round.");

static PyObject *
act(PyObject *self, PyObject *arg)
{
    long i = PyLong_AsLong(arg);
    if (i < 0 || i >= MAX_ACTORS) {
        return NULL;
    }
    actor_t *a = &oracle.actors[i];
    frames_t *frames = capture();
    detach(a);
    rest(a, frames);
    attach(a);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(round_doc,
"tracemalloc_oracle_round(seed, nsteps, parallel, quiet)\n"
"--\n\n"
"Run a round; AssertionError if there is a difference.\n\n"
"In a parallel round each actor makes 'nsteps' steps, otherwise all\n"
"together.  Nothing is started, stopped or cleared in a quiet one.  Return\n"
"the number of traces that were looked at.");

static PyObject *
round_(PyObject *self, PyObject *args)
{
    unsigned long long seed;
    int nsteps, parallel, quiet;
    if (!PyArg_ParseTuple(args, "Kipp", &seed, &nsteps, &parallel, &quiet)) {
        return NULL;
    }
    oracle.parallel = parallel;
    oracle.quiet = quiet;
    oracle.ncompared = 0;
    Py_BEGIN_ALLOW_THREADS
    run_round(seed, nsteps);
    Py_END_ALLOW_THREADS
    return result(PyLong_FromSize_t(oracle.ncompared));
}

static PyMethodDef test_methods[] = {
    {"tracemalloc_oracle_add", add, METH_VARARGS, add_doc},
    {"tracemalloc_oracle_remove", remove_, METH_O, remove_doc},
    {"tracemalloc_oracle_act", act, METH_O, act_doc},
    {"tracemalloc_oracle_round", round_, METH_VARARGS, round_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocOracle(PyObject *module)
{
    if (PyModule_AddFunctions(module, test_methods) < 0) {
        return -1;
    }
    return 0;
}
