// tracemalloc: which line of Python allocated each live block of memory.
//
// Every interpreter has its own traces, tracebacks, filenames, traceback limit
// and reentrancy key (PyInterpreterState.tracemalloc).  Process-wide are only
// the allocator hooks of PEP 445 and the counters of traced memory
// (_PyRuntime.tracemalloc).  Each thread remembers what it needs to find its
// next traceback, and holds credit for the counters (_PyThreadStateImpl).
//
// Between malloc() and free() one thread owns a block.  If the block lies in a
// page of the object allocator (a pool of pymalloc, a page of mimalloc), its
// trace is in a *slot* which is found from its address, and the owner of the
// block writes the slot: no lock, no atomic read-modify-write.  All other
// traces are in one hash table for each interpreter.
//
// Files; calls go downward, but for the question which allocator is below the
// hooks:
//
//   Modules/_tracemalloc.c          the Python module
//   Python/tracemalloc.c            start, stop, fork, the end; public C API
//   Python/tracemalloc_dump.c       where a block in a fatal error is from
//   Python/tracemalloc_hooks.c      allocator hooks
//   Python/tracemalloc_traces.c     add and remove traces
//   Python/tracemalloc_snapshot.c   all traces: drop them, find one, copy
//   Python/tracemalloc_shared.c     lock, count, and list traces
//   Python/tracemalloc_pages.c      slots of the blocks in a page
//   Python/tracemalloc_table.c      hash table of traces
//   Python/tracemalloc_counters.c   the process-wide sum and peak
//   Python/tracemalloc_capture.c    a thread's frames to a traceback id
//   Python/tracemalloc_locations.c  a frame to its filename and line
//   Python/tracemalloc_intern.c     filenames and tracebacks to ids and back
//
// Headers, apart from this one: _data.h has what is kept (traces, counters,
// tracebacks), _pages.h and _shared.h what only these files use.
//
// Locks, in the order in which they are taken:
//
//   1. HEAD_LOCK(): hooks may run while it is held
//   2. _PyRuntime.tracemalloc.mutex
//   3. PyInterpreterState.tracemalloc.mutex, one at a time (fork() takes all)
//   4. directory_mutex (a field of the runtime's state);
//      _PyRuntime.allocators.mutex
//
// None of them detaches the thread state while it waits.  While one is held no
// Python object is created or released, nothing stops the world, and memory
// comes only from the raw allocator below the hooks, or the C library's.
//
// An *attached* thread has an attached thread state (it holds the GIL, where
// there is one); a *detached* thread has a thread state that is not attached;
// a *stateless* thread has none.  Only an attached thread allocates or frees
// memory of the "mem" and "object" domains.  A thread that is not attached
// holds the runtime's mutex while it works on traces.
//
// See InternalDocs/tracemalloc.md for the reasons.

#ifndef Py_INTERNAL_TRACEMALLOC_H
#define Py_INTERNAL_TRACEMALLOC_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include "pycore_tracemalloc_data.h"  // tracemalloc_table

struct _tracemalloc_interp_state;


/* --- State of the runtime ----------------------------------------------- */

// An allocator below the hooks.  Neither changed nor freed: a thread that was
// held up on its way into a hook may still need it.
typedef struct _tracemalloc_allocator {
    PyMemAllocatorEx alloc;
    struct _tracemalloc_allocator *next;
} tracemalloc_allocator;

#define _PyTraceMalloc_NUM_DOMAINS 3

// How often hooks can be put on top of an allocator that may have hooks below.
#define _PyTraceMalloc_NUM_LEVELS 4

// Process-wide.  Guarded by `mutex` unless noted.  On 64-bit systems this is
// as large as in 3.13.5, so that what follows in _PyRuntime stays where it
// was.
struct _tracemalloc_runtime_state {
    // Read by every hook, so that it is apart from what all threads write
    // (`mutex`, `counters`).  Written under the mutex.

    // Number of interpreters that trace; relaxed.
    int ntracing;
    // Number of reasons why the trace of a block in a page may be somewhere
    // else: traces by PyTraceMalloc_Track() in domain 0, and interpreters that
    // trace and share the main one's object allocator.  Relaxed.
    int nshared;
    // NULL until an interpreter traces, then never changed; stored with
    // release, loaded with acquire.
    tracemalloc_directory *directory;
    // What is below the hooks of each level; stored with release, loaded with
    // acquire.
    tracemalloc_allocator *below[_PyTraceMalloc_NUM_LEVELS]
                                [_PyTraceMalloc_NUM_DOMAINS];

    // All that were ever below.
    tracemalloc_allocator *allocators;
    // The interpreters that trace.
    struct llist_node tracing;
    // The last number given out as a generation or as an epoch.
    uint64_t last_number;
    // Number of levels that have hooks, and that ever had some, by domain.
    uint8_t nlevels[_PyTraceMalloc_NUM_DOMAINS];
    uint8_t nused[_PyTraceMalloc_NUM_DOMAINS];
    // May other thread states than the finalizing thread's be gone?
    bool tstates_gone;
    // Does the system make other processors see a write?
    bool has_barrier;
    // Will the C library call tracemalloc when the process forks?
    bool handles_forks;

    // All that follows is written by all threads.
    char padding[28 + sizeof(Py_tss_t)];
    PyMutex mutex;
    PyMutex directory_mutex;
    tracemalloc_counters counters;
};

#define _tracemalloc_runtime_state_INIT(state) \
    { \
        .tracing = LLIST_INIT(state.tracing), \
        .counters = {.open = LLIST_INIT(state.counters.open)}, \
    }


/* --- State of an interpreter -------------------------------------------- */

// The block of the last trace, and its traceback; the block is 0 again once an
// object was created or a block freed.
typedef struct {
    uintptr_t ptr;
    uint32_t traceback;
} tracemalloc_last_block;

// Guarded by `mutex` unless noted.
struct _tracemalloc_interp_state {
    // Read by every hook of an attached thread.  Written under the runtime's
    // mutex while no other thread is attached to the interpreter.
    int tracing;
    int max_nframe;               // frames kept of a traceback
    // Changes when what threads remember of frames is void.  Unique over all
    // interpreters; 0 while not tracing.  Atomic.
    uint64_t epoch;
    // Changes when ids lose their meaning: start, clear_traces().  Written
    // like `tracing`.
    uint64_t generation;
    // Has the interpreter an object allocator of its own?  Written like
    // `tracing`.
    bool owns_pages;

    PyMutex mutex;
    // Also guarded by the GIL and open credit, see lock_table().
    tracemalloc_table table;
    struct llist_node pages;      // of tracemalloc_page
    size_t page_memory;           // bytes
    // Bytes that may be spent on slots of pages with few traces.
    size_t page_budget;
    // Made for the first traceback; NULL before that, and after
    // clear_traces().
    tracemalloc_intern *intern;
    Py_ssize_t capture_memory;    // bytes that the threads hold; atomic

    // Thread states that have a capture; guarded by the runtime's mutex.
    struct llist_node threads;
    // In _PyRuntime.tracemalloc.tracing.
    struct llist_node node;

    // Set for a thread that is not attached while it is inside a hook.  An
    // attached thread uses `reentrant` of its thread state, since to ask the
    // thread library takes longer than all the rest of a hook.  The key is
    // created and deleted under the runtime's mutex.
    Py_tss_t reentrant_key;

#ifndef Py_GIL_DISABLED
    // Of whoever holds the GIL.
    tracemalloc_credit credit;
    tracemalloc_last_block last;
#endif
};

#define _tracemalloc_interp_state_INIT \
    { \
        .max_nframe = 1, \
        .reentrant_key = Py_tss_NEEDS_INIT, \
    }


/* --- State of a thread -------------------------------------------------- */

// Where the thread was when it captured a traceback, and that traceback.
typedef struct {
    const struct _PyInterpreterFrame *frame;      // NULL: nothing remembered
    const void *instr;
    uint32_t traceback;
} tracemalloc_site;

#define _PyTraceMalloc_NUM_SITES 8

// Belongs to the thread unless noted.
struct _tracemalloc_thread_state {
    // Are calls of this thread not to be traced?
    bool reentrant;
    // Domains whose hooks such a call has reached: bits `1 << domain`; and
    // those of the lowest level: from bit _PyTraceMalloc_NUM_DOMAINS on.
    uint8_t reached;
    // The block that the outermost hook is freeing, or reallocating if it had a
    // trace; or 0.  The traceback that it had, and in which interpreter.
    uintptr_t freed_block;
    uint32_t freed_traceback;
    struct _tracemalloc_interp_state *freed_owner;
    // The last captures, by instruction; void unless `epoch` is the
    // interpreter's.
    uint64_t epoch;
    tracemalloc_site sites[_PyTraceMalloc_NUM_SITES];
    // What the thread remembers of its frames; see tracemalloc_capture.c.
    // Made at the first trace; freed by stop() or with the thread state.
    struct _tracemalloc_capture *capture;
    struct llist_node node;       // in `threads` of the interpreter
    // Is the thread state being deleted?
    bool ended;
#ifdef Py_GIL_DISABLED
    tracemalloc_credit credit;
    tracemalloc_last_block last;
#endif
};


/* --- Add, remove, find -------------------------------------------------- */

// The calling thread and its interpreter: the main interpreter for a stateless
// thread.
typedef struct {
    PyThreadState *tstate;        // attached or detached, or NULL
    struct _tracemalloc_interp_state *interp;
    // If not, then the caller holds the runtime's mutex.
    bool attached;
} tracemalloc_caller;

// A trace that was removed, for the time in which its block is freed or
// reallocated.  There was none if its traceback is NO_TRACEBACK.
typedef struct {
    tracemalloc_trace trace;
    struct _tracemalloc_interp_state *owner;      // may be gone by now
    uint64_t generation;          // of the owner
} tracemalloc_removed;

// A copy of the traces of an interpreter, and a reference to what their ids
// stand for.
typedef struct {
    tracemalloc_trace *traces;
    size_t ntraces;
    const PyMemAllocatorEx *allocator;    // of `traces`
    tracemalloc_intern *intern;   // may be NULL
    uint32_t last_id;             // others may be added meanwhile
} tracemalloc_snapshot;

// Where does a block come from?  One that was reallocated is counted already.
// It gets its trace even if that takes the table's last free entry, and with
// the traceback UNKNOWN if there is no memory for another one.
typedef enum {
    BLOCK_NEW,
    BLOCK_REALLOCATED,
    BLOCK_TRACKED,                // by PyTraceMalloc_Track()
} tracemalloc_block_origin;

// What nearly every hook does.  The thread is attached, its interpreter
// traces, and the block is of the "mem" or "object" domain.  -1 if there is no
// memory, 1 if the interpreter does not trace any more, or another thread has
// tracked the block meanwhile.  Nothing is added or counted then: after a
// realloc() the caller uncounts the size.
extern int _PyTraceMalloc_AddBlock(
    PyThreadState *tstate, uintptr_t ptr, size_t size,
    tracemalloc_block_origin origin);

// Remove and uncount the trace of a block of the "mem" or "object" domain that
// is about to be freed.
extern void _PyTraceMalloc_FreeBlock(PyThreadState *tstate, uintptr_t ptr);
// Remove that of one that is about to be reallocated; it remains counted.
extern void _PyTraceMalloc_RemoveBlock(
    PyThreadState *tstate, tracemalloc_removed *removed);

// The same for any block.  The caller's interpreter traces in _Add().  What
// _Remove() removes remains counted.
extern int _PyTraceMalloc_Add(
    const tracemalloc_caller *caller, unsigned int domain, uintptr_t ptr,
    size_t size, tracemalloc_block_origin origin);
extern void _PyTraceMalloc_Remove(
    const tracemalloc_caller *caller, tracemalloc_removed *removed);

// realloc() failed: put the removed trace back, which is still counted.  Needs
// no memory; if there is no place the trace is lost and uncounted.
extern void _PyTraceMalloc_PutBack(
    const tracemalloc_caller *caller, const tracemalloc_removed *removed);

// Remove the trace of a block that the caller may not own, of whichever
// interpreter has it.
extern void _PyTraceMalloc_RemoveAnywhere(
    const tracemalloc_caller *caller, unsigned int domain, uintptr_t ptr);

// An object was created, in a new block or in one from a free list, by a
// thread whose interpreter traces.
extern void _PyTraceMalloc_ObjectCreated(PyThreadState *tstate, PyObject *op);

// Copy all traces.  -1 if there is no memory.
extern int _PyTraceMalloc_CopyTraces(
    PyInterpreterState *interp, tracemalloc_snapshot *snapshot);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_FreeSnapshot(tracemalloc_snapshot *snapshot);

// The allocator ends a page, or cuts it anew: free its slots.
extern void _PyTraceMalloc_PageEnds(tracemalloc_page *page);


/* --- Interface ---------------------------------------------------------- */

// These act on the interpreter of the calling thread, which is attached.

// Start tracing, with 1 to UINT16_MAX frames of a traceback; does nothing if
// it traces already.  -1 with an exception set, and nothing changed, if it
// can't.  An inherited start takes the reentrancy key when it is needed.
extern int _PyTraceMalloc_Start(int max_nframe, bool inherited);

// Stop tracing and forget all traces; does nothing if it does not trace.  Of
// an interpreter without threads, the caller needs no thread state.
extern void _PyTraceMalloc_Stop(PyInterpreterState *interp);
extern void _PyTraceMalloc_ClearTraces(void);

// Bytes of memory used to keep this interpreter's traces.
extern size_t _PyTraceMalloc_GetMemory(void);

// Copy all traces.  -1 with MemoryError set.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_Snapshot(tracemalloc_snapshot *snapshot);
// Copy the trace of one block, if it has one, and keep its traceback in a
// snapshot, which is to be freed in any case.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(bool) _PyTraceMalloc_SnapshotBlock(
    unsigned int domain, uintptr_t ptr, tracemalloc_trace *trace,
    tracemalloc_snapshot *snapshot);

// The traceback of a block as a tuple of (filename, lineno) tuples, or None if
// it has no trace in this interpreter.  NULL with an exception set on error.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(PyObject *) _PyTraceMalloc_GetTraceback(
    unsigned int domain, uintptr_t ptr);

// These are process-wide.  Sizes in bytes; both are 0 if no interpreter
// traces.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak);
extern void _PyTraceMalloc_ResetPeak(void);

// An attached thread has changed the line of a frame that is being executed,
// the filename of a code object, or the evaluator of the interpreter.
extern void _PyTraceMalloc_FramesChanged(PyInterpreterState *interp);

// A thread state is being deleted.  Called before its heaps are abandoned.
extern void _PyTraceMalloc_ThreadEnds(PyThreadState *tstate);

// Py_FinalizeEx() is about to delete the thread states of other threads,
// which may be running C code: wait until none of them is looking at its own
// in a hook, and let none of them do so any more.
extern void _PyTraceMalloc_ForgetThreadStates(void);

#ifdef HAVE_FORK
// From now on hold the locks of tracemalloc over each fork().  -1 if there is
// no memory.
extern int _PyTraceMalloc_HandleForks(void);

// Comes first in a child that is to run Python code.
extern void _PyTraceMalloc_AfterFork_Child(void);
#endif

// Write to a file descriptor where a block was allocated, or how to find out.
// For fatal errors: it gives up rather than wait for a lock for long.
extern void _PyMem_DumpTraceback(int fd, const void *ptr);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_H
