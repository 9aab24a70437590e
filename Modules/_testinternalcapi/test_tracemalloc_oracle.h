// The oracle of tracemalloc: what its files share.

#ifndef Py_TESTINTERNALCAPI_TRACEMALLOC_ORACLE_H
#define Py_TESTINTERNALCAPI_TRACEMALLOC_ORACLE_H

#include "pycore_lock.h"          // PyMutex
#include "pycore_parking_lot.h"   // Py_PARK_OK
#include "pycore_semaphore.h"     // _PySemaphore
#include "pycore_tracemalloc.h"   // tracemalloc_snapshot

#include <stdlib.h>               // calloc(), free(), abort()

#define MAX_INTERPS 16
#define MAX_ACTORS 32
#define NSLOTS 48
#define MAX_TOTAL_NFRAME UINT16_MAX


/* --- State -------------------------------------------------------------- */

typedef struct {
    uint64_t print;               // hash of this frame and all inner ones
    unsigned int lineno;
    char name[24];                // the filename's end, for messages
} frame_t;

// The frames of an actor in a round.  Blocks refer to it.
typedef struct frames {
    struct frames *next;
    bool used;
    size_t total;
    size_t nframe;                // at most MAX_TOTAL_NFRAME
    frame_t items[1];
} frames_t;

enum kind { RAW, MEM, OBJ, TRACKED };

// A block and the trace that it must have.  Belongs to who took it out of its
// slot, or to its slot.
typedef struct {
    enum kind kind;
    unsigned int domain;
    uintptr_t ptr;
    int owner;                    // index of an interpreter, or -1: no trace
    int before, after;            // the owner's versions around recording
    size_t size;
    const frames_t *frames;
} block_t;

// Blocks that may be used by the same threads.
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

// What traced memory must be; in a parallel round, one actor's share.
typedef struct {
    Py_ssize_t size;
    Py_ssize_t peak;
    size_t added;
} tally_t;

enum command { ENTER, STEPS, SNAPSHOT, LEAVE, QUIT };

// Functions that allocate no object, and so may be called while all blocks are
// known.  (get_traceback_limit() makes an int, if that is no small one.)
enum {
    START, STOP, CLEAR_TRACES, RESET_PEAK, IS_TRACING, GET_TRACEBACK_LIMIT,
    NFUNCTIONS
};
#define SMALL_INT 256
#define NLIMITS 8

typedef struct {
    bool alive;
    int index;
    bool stateless;
    interp_t *home;               // the main interpreter, if stateless
    PyThreadState *tstate;
    PyObject *descend;
    PyObject *functions[NFUNCTIONS];      // of _tracemalloc
    PyObject *limits[NLIMITS];            // ints for start()
    tracemalloc_snapshot *snapshot;       // where to put one
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

// A trace, found or expected.
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

typedef struct {
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
} oracle_state;

extern oracle_state _PyTestOracle;


/* --- test_tracemalloc_oracle.c ------------------------------------------ */

// The first failure counts.  Its message is read when all are at rest.
extern void _PyTestOracle_Fail(const char *format, ...);

/* --- test_tracemalloc_oracle_steps.c ------------------------------------ */

// A random step of an actor.
extern void _PyTestOracle_Step(actor_t *a);

extern void _PyTestOracle_FreeBlock(actor_t *a, block_t *b);

// Call a function of _tracemalloc.  Its result is an immortal object, or NULL
// with an exception set.
extern PyObject *_PyTestOracle_Call(actor_t *a, int function, PyObject *arg);

// The number of interpreters that are tracing; `sum` tells if it has changed
// between two calls.
extern int _PyTestOracle_CountTracing(unsigned int *sum);

// The arguments of start().
extern const int _PyTestOracle_Limits[NLIMITS];

/* --- test_tracemalloc_oracle_compare.c ---------------------------------- */

// The frames of the caller, by means of frame objects.
extern frames_t *_PyTestOracle_Capture(void);

// The frames of a thread without Python code.
extern frames_t *_PyTestOracle_UnknownFrames(void);

// Hashes of the traceback that a block must have, and has.
extern uint64_t _PyTestOracle_HashFrames(const frames_t *frames, int limit);
extern uint64_t _PyTestOracle_HashTrace(
    const tracemalloc_intern *intern, const tracemalloc_trace *trace);

// Compare everything.  With `rebase`, traces that are not the oracle's become
// the baseline; without it they must be in the baseline.
extern void _PyTestOracle_Audit(bool rebase);

// The counters, after some steps of a serial round.
extern void _PyTestOracle_CheckCounters(actor_t *a);

// The counters after a parallel round.
extern void _PyTestOracle_CheckBounds(void);


/* --- Small things ------------------------------------------------------- */

static inline void *
alloc(size_t size)
{
    void *ptr = calloc(1, size);
    if (ptr == NULL) {
        abort();
    }
    return ptr;
}

// SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
// Generators", 2014.  Its output function also serves as a hash.
static inline uint64_t
mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline size_t
rnd(actor_t *a, size_t n)
{
    uint64_t x = mix(a->rng);
    a->rng += 0x9e3779b97f4a7c15u;
    return (size_t)((x >> 11) % n);
}

static inline bool
failed(void)
{
    return _Py_atomic_load_int(&_PyTestOracle.failed);
}

static inline actor_t *
next_actor(actor_t *a)
{
    do {
        a = a == NULL ? _PyTestOracle.actors : a + 1;
    } while (a < _PyTestOracle.actors + MAX_ACTORS && !a->alive);
    return a < _PyTestOracle.actors + MAX_ACTORS ? a : NULL;
}

#define FOR_ACTORS(a) \
    for (actor_t *a = NULL; (a = next_actor(a)) != NULL; )

#define FOR_BLOCKS(b) \
    for (int i_ = 0; i_ < NPOOLS * NSLOTS; i_++) \
        for (block_t *b = _PyTestOracle.pools[i_ / NSLOTS] \
                          .slots[i_ % NSLOTS]; \
             b != NULL; b = NULL)

static inline void
fail_step(actor_t *a, const char *what, long got)
{
    _PyTestOracle_Fail(
        "actor %d (%s %d, %s), %s(%zu): %s (got %ld)", a->index,
        a->home->kind, (int)(a->home - _PyTestOracle.interps), a->op_how,
        a->op, a->op_size, what, got);
}

static inline void
wait_for(_PySemaphore *semaphore)
{
    while (_PySemaphore_Wait(semaphore, -1, 0) != Py_PARK_OK) {
    }
}

// Called without a thread state attached.
static inline void
command_actor(actor_t *a, enum command command)
{
    a->command = command;
    _PySemaphore_Wakeup(&a->wake);
}

static inline int
version_of(interp_t *interp)
{
    return _Py_atomic_load_int(&interp->version);
}

static inline bool
is_tracing(interp_t *interp)
{
    return _Py_atomic_load_int(&interp->tracing);
}

// Must a block have a trace, if its owner has this version now?
static inline int
need_of(const block_t *b, int version)
{
    if (b->owner < 0 || b->after != version
        || !is_tracing(&_PyTestOracle.interps[b->owner]))
    {
        return NO;
    }
    return b->before == b->after ? YES : MAYBE;
}

static inline void
begin_change(interp_t *interp)
{
    _Py_atomic_add_int(&interp->version, 1);
}

static inline void
end_change(interp_t *interp, bool tracing, int limit)
{
    interp->baseline = 0;
    _Py_atomic_store_int(&interp->tracing, tracing);
    _Py_atomic_store_int(&interp->limit, limit);
    _Py_atomic_add_int(&interp->version, 1);
}

#endif
