// What tracemalloc keeps: traces, the directory, the counters, filenames and
// tracebacks.  Who locks what is said in pycore_tracemalloc.h.

#ifndef Py_INTERNAL_TRACEMALLOC_DATA_H
#define Py_INTERNAL_TRACEMALLOC_DATA_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include "pycore_llist.h"         // struct llist_node
#include "pycore_lock.h"          // PyMutex
#include "pycore_pyatomic_ft_wrappers.h"  // _Py_atomic_compiler_fence()

#include <stdbool.h>


/* --- Traces ------------------------------------------------------------- */

// Ids of tracebacks; filenames have ids from 2 on as well.
#define _PyTraceMalloc_NO_TRACEBACK 0   // a slot without a trace
#define _PyTraceMalloc_UNKNOWN 1        // the traceback "<unknown>:0"
#define _PyTraceMalloc_MAX_ID ((UINT32_C(1) << 30) - 1)

// A trace in a hash table, or a copy of one.
typedef struct {
    uintptr_t ptr;
    union {
        size_t size;              // bytes
        // In the directory: the interpreter that has the trace.
        struct _tracemalloc_interp_state *owner;
    };
    unsigned int domain;
    unsigned int traceback : 30;  // an id
    // Is the trace in the directory, so that any thread can find it?
    unsigned int listed : 1;
    // Was the block given to PyTraceMalloc_Track() in domain 0?
    unsigned int tracked : 1;
} tracemalloc_trace;

// The trace of a block in a page.  Written by the thread that owns the block.
typedef struct {
    uint32_t traceback;           // an id
    uint32_t size;                // bytes
} tracemalloc_slot;

// The slots of a page.
typedef struct _tracemalloc_page {
    // In the owner's `pages`; guarded by the owner's mutex.
    struct llist_node node;
    // The interpreter that has these traces.
    struct _tracemalloc_interp_state *owner;
    // Where the page points to this struct.
    struct _tracemalloc_page **link;
    // Address of the first block.
    uintptr_t start;
    // 2**31 / the size of a block in units of _PyTraceMalloc_UNIT, rounded up.
    uint32_t reciprocal;
    uint32_t block_size;          // bytes; both are 0 if there is one block
    uint32_t nslots;
    // May blocks of this page have traces in the hash table?  Atomic.
    int tabled;
    tracemalloc_slot slots[];
} tracemalloc_page;

// What a page points to while the traces of its blocks are in the hash table,
// since there are too few of them to pay for an array of slots.
#define _PyTraceMalloc_SPARSE ((tracemalloc_page *)1)

#define _PyTraceMalloc_PART_BITS 5
#define _PyTraceMalloc_NUM_PARTS (1 << _PyTraceMalloc_PART_BITS)

typedef struct {
    tracemalloc_trace *entries;
    uint32_t capacity;
    uint32_t used;
} tracemalloc_part;

// Hash table with (domain, address) as the key.
typedef struct {
    tracemalloc_part parts[_PyTraceMalloc_NUM_PARTS];
    size_t used;                  // in all parts
    const PyMemAllocatorEx *allocator;
} tracemalloc_table;

// Init takes some memory, so that the first traces need none; -1 if there is
// none.  Free leaves a table without memory, which can be used all the same.
extern int _PyTraceMalloc_TableInit(
    tracemalloc_table *table, const PyMemAllocatorEx *allocator);
extern void _PyTraceMalloc_TableFree(tracemalloc_table *table);

// Add a trace.  1 if its key is in the table already, -1 if there is no
// memory; `must` uses the last free entries then.
extern int _PyTraceMalloc_TableAdd(
    tracemalloc_table *table, const tracemalloc_trace *trace, bool must);

extern tracemalloc_trace *_PyTraceMalloc_TableFind(
    const tracemalloc_table *table, unsigned int domain, uintptr_t ptr);
extern void _PyTraceMalloc_TableRemove(
    tracemalloc_table *table, tracemalloc_trace *trace);

// The trace after `trace`, or the first if that is NULL; NULL at the end.
extern tracemalloc_trace *_PyTraceMalloc_TableNext(
    const tracemalloc_table *table, const tracemalloc_trace *trace);
extern size_t _PyTraceMalloc_TableMemory(const tracemalloc_table *table);

static inline uint32_t
_PyTraceMalloc_HashBlock(unsigned int domain, uintptr_t ptr)
{
    // Fibonacci hashing (Knuth, TAOCP 6.4); the high bits are the good ones.
    uint64_t key = ((uint64_t)ptr >> 3) + ((uint64_t)domain << 40);
    return (uint32_t)((key * UINT64_C(0x9E3779B97F4A7C15)) >> 32);
}


/* --- Directory ---------------------------------------------------------- */

#define _PyTraceMalloc_GROUP_BITS 12

// Which interpreter has the trace of a block that any thread may free.
// Guarded by the runtime's `directory_mutex` unless noted.
typedef struct {
    tracemalloc_table table;
    // Number of entries whose blocks have this hash.  Read without the mutex:
    // who frees a block got its address after the block was counted here.
    uint32_t groups[1 << _PyTraceMalloc_GROUP_BITS];
} tracemalloc_directory;


/* --- Counters ----------------------------------------------------------- */

#define _PyTraceMalloc_CLOSED 0
#define _PyTraceMalloc_OPEN 1
#define _PyTraceMalloc_FENCED 2   // open; its owner needs a fence each time

// Credit that one thread at a time may use without a lock: a thread or, with
// the GIL, whoever holds the GIL of an interpreter.
typedef struct {
    // Is the owner using the credit right now?  Atomic, written by the owner.
    int inside;
    // May the owner use it, and how?  One of those above; atomic, written
    // under the runtime's mutex.
    int open;
    // What follows is written by the owner while `inside`, or under the
    // runtime's mutex while not `open`.  Bytes that may still be added.
    int64_t available;
    // What is freed becomes available, but not beyond this: a free that would
    // go beyond it closes the credit.  0 while the sum is growing.
    int64_t limit;
    // The least that was available when something was freed.
    int64_t lowest;
    // What follows is guarded by the runtime's mutex.  Operations until a
    // credit that others closed is opened again.
    int rest;
    // Operations so far with that mutex while nobody else had credit.
    int alone;
    // In `open` of the counters.
    struct llist_node node;
} tracemalloc_credit;

// Guarded by the runtime's mutex.
typedef struct {
    // The sum of all traced sizes and of all open credit, in bytes, modulo
    // 2**64, and how often it passed that: PyTraceMalloc_Track() takes any
    // size.
    uint64_t committed;
    int carries;
    // The largest sum so far; behind while the sum is growing.
    uint64_t peak;
    struct llist_node open;       // of tracemalloc_credit
} tracemalloc_counters;

// Add to the sum or take from it, where the calling thread's credit does not
// serve; it is NULL if the thread has none.  `locked`: is the runtime's mutex
// held?  The thread is not inside its credit.
extern void _PyTraceMalloc_ChangeSum(
    tracemalloc_credit *credit, size_t size, bool add, bool locked);

// With the runtime's mutex held.
extern void _PyTraceMalloc_CountersInit(void);
extern void _PyTraceMalloc_CloseCredits(void);
extern void _PyTraceMalloc_CountersAfterFork(void);
extern void _PyTraceMalloc_ResetCounterPeak(void);

// `own`: it is the calling thread's, or nobody can use it any more.
extern void _PyTraceMalloc_CloseCredit(tracemalloc_credit *credit, bool own);

// The rest of _PyTraceMalloc_EnterCredit() if the credit is closed or fenced.
extern bool _PyTraceMalloc_EnterFenced(tracemalloc_credit *credit);

// Is the credit open?  If so, it must be left soon.
static inline bool
_PyTraceMalloc_EnterCredit(tracemalloc_credit *credit)
{
    // Whoever closes the credit makes the processor see it.  Here only the
    // compiler must keep the order.
    _Py_atomic_store_int_relaxed(&credit->inside, 1);
    _Py_atomic_compiler_fence();
    return _Py_atomic_load_int(&credit->open) == _PyTraceMalloc_OPEN
           || _PyTraceMalloc_EnterFenced(credit);
}

static inline void
_PyTraceMalloc_LeaveCredit(tracemalloc_credit *credit)
{
    _Py_atomic_store_int_release(&credit->inside, 0);
}

// False if it cannot be done with the credit; nothing has changed then.
static inline bool
_PyTraceMalloc_TryCountAdd(tracemalloc_credit *credit, size_t size)
{
    bool done = false;
    if (_PyTraceMalloc_EnterCredit(credit)) {
        done = size <= (uint64_t)credit->available;
        credit->available -= done ? (int64_t)size : 0;
        _PyTraceMalloc_LeaveCredit(credit);
    }
    return done;
}

// Free this size with the credit, if that can be done.  The owner is inside.
static inline bool
_PyTraceMalloc_TryReturn(tracemalloc_credit *credit, size_t size)
{
    int64_t available = credit->available;
    int64_t returnable = credit->limit - available;
    if (returnable < 0 || size > (uint64_t)returnable) {
        return false;
    }
    credit->lowest = Py_MIN(credit->lowest, available);
    credit->available = available + (int64_t)size;
    return true;
}

static inline bool
_PyTraceMalloc_TryCountRemove(tracemalloc_credit *credit, size_t size)
{
    bool done = false;
    if (_PyTraceMalloc_EnterCredit(credit)) {
        done = _PyTraceMalloc_TryReturn(credit, size);
        _PyTraceMalloc_LeaveCredit(credit);
    }
    return done;
}


/* --- Filenames and tracebacks ------------------------------------------- */

typedef struct {
    uint32_t filename;            // an id; 0 is "<unknown>"
    uint32_t lineno;
} tracemalloc_frame;

// A filename or a traceback.  Not changed any more once it has an id.
typedef struct {
    uint32_t hash;                // of what follows; of a filename, as str
    uint32_t length;              // code points, or frames kept
    uint16_t unit;                // bytes of a code point, or of a frame
    // Of a traceback: frames that there were, at most UINT16_MAX.  Of a
    // filename: 0.
    uint16_t total_nframe;
    // Space for `length` of them; or for the code points of a filename.
    tracemalloc_frame frames[1];
} tracemalloc_item;

// Where an instruction is: what is remembered of an address in a version of a
// code object.
typedef struct {
    const void *instr;
    uint32_t version;
    tracemalloc_frame frame;
} tracemalloc_location;

#define _PyTraceMalloc_LOCATION_BITS 10

// Enough for all ids.
#define _PyTraceMalloc_NUM_CHUNKS 25

// Each filename and each traceback once.  Filenames are kept as text: no
// reference to an object of any interpreter is owned.
typedef struct {
    // The interpreter's reference, and those of queries that run.  Atomic.
    Py_ssize_t refcount;
    const PyMemAllocatorEx *allocator;
    // Addresses of the items, by id.  Neither a chunk nor an item moves.
    tracemalloc_item **chunks[_PyTraceMalloc_NUM_CHUNKS];
    // Hash table of ids, 0 in a free entry; half of them are free.
    uint32_t *index;
    uint32_t index_size;          // a power of 2
    uint32_t last_id;             // UNKNOWN if there are no items
    size_t memory;                // bytes of all this
    // Direct-mapped cache.
    tracemalloc_location locations[1 << _PyTraceMalloc_LOCATION_BITS];
} tracemalloc_intern;

// With one reference.  NULL if there is no memory.
extern tracemalloc_intern *_PyTraceMalloc_InternNew(
    const PyMemAllocatorEx *allocator);
// Drop a reference; `intern` may be NULL.
extern void _PyTraceMalloc_InternDecref(tracemalloc_intern *intern);

// An item to be filled in, and then to be interned or freed.  NULL if there is
// no memory.
extern tracemalloc_item *_PyTraceMalloc_NewItem(
    const tracemalloc_intern *intern, size_t length, size_t unit,
    size_t total_nframe);
extern void _PyTraceMalloc_FreeItem(
    const tracemalloc_intern *intern, tracemalloc_item *item);

// Find an equal traceback and free this one, or add it.  -1 if there is no
// memory; it is freed then, too.
extern int _PyTraceMalloc_InternTraceback(
    tracemalloc_intern *intern, tracemalloc_item *traceback, uint32_t *id);
extern int _PyTraceMalloc_InternFilename(
    tracemalloc_intern *intern, PyObject *filename, uint32_t *id);

// The item of an id, but not of 0.  Needs no lock.  `intern` may be NULL for
// the traceback UNKNOWN.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(const tracemalloc_item *) _PyTraceMalloc_GetItem(
    const tracemalloc_intern *intern, uint32_t id);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_DATA_H
