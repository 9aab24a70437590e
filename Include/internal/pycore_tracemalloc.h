// tracemalloc: which line of Python allocated each live block of memory.
//
// Every interpreter keeps books of its own: a *trace* (domain, address, size,
// traceback) for each block that it allocated while it was tracing.  What
// cannot be per interpreter stays in the runtime state: the allocator hooks of
// PEP 445, which see the memory of the whole process, and the sum of all
// traced sizes with its peak.
//
// Layers; a file calls only what stands below it:
//
//   Modules/_tracemalloc.c        the Python module; raw data to objects
//   Python/tracemalloc.c          start, stop, fork, the end; public C API
//   Python/tracemalloc_hooks.c    allocator hooks, reference tracer
//   Python/tracemalloc_books.c    record, forget, copy out; the counters
//   Python/tracemalloc_capture.c  a thread's frames to a traceback id
//   Python/tracemalloc_intern.c   filenames and tracebacks, to ids and back
//   Python/tracemalloc_table.c    (domain, address) to (size, traceback id)
//
// The last two are plain containers: no lock, no interpreter, no Python
// object.  Filenames are copied as text, so that no reference is owned and
// nothing of one interpreter is ever freed by another.
//
// Locks, in the order in which they are taken:
//
//   1. _PyRuntime.tracemalloc.mutex              the process-wide state
//   2. PyInterpreterState.tracemalloc.mutex      one interpreter's books; a
//                                                thread holds one at a time,
//                                                but for fork()
//   3. _PyRuntime.allocators.mutex               while hooks are put in or out
//
// Hooks run with HEAD_LOCK() held, so that comes before all of them and must
// not be taken under any.  All three are taken without detaching the thread
// state (the GIL is never released, so no other code runs in between); hence,
// while one of them is held: no Python object is made or released, nothing
// waits for the GIL, the world is not stopped, and memory comes only from the
// raw allocator below the hooks.
//
// "Attached" below means that the calling thread has an attached thread state
// (it holds the GIL of its interpreter, where there is one).  A "detached"
// thread has a thread state that is not attached, a "stateless" one has none.
//
// See InternalDocs/tracemalloc.md for the design and its reasons.

#ifndef Py_INTERNAL_TRACEMALLOC_H
#define Py_INTERNAL_TRACEMALLOC_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include "pycore_lock.h"          // PyMutex
#include "pycore_tracemalloc_containers.h"  // _PyTraceTable

#include <stdbool.h>


/* --- State -------------------------------------------------------------- */

// The allocators below the hooks, as they were when the hooks went in.  A
// record is never changed or freed once it is published: a thread that was
// held up between loading a hook and running it may need it at any time.
struct _tracemalloc_allocators {
    PyMemAllocatorEx raw;
    PyMemAllocatorEx mem;
    PyMemAllocatorEx obj;
    struct _tracemalloc_allocators *previous;
};

// Makes _tracemalloc_runtime_state as large as it was in 3.13.0, where that
// was measured: on 64-bit Linux.
#define _Py_TRACEMALLOC_PADDING 16

// Process-wide.  Guarded by `mutex` unless noted.
struct _tracemalloc_runtime_state {
    PyMutex mutex;

    // Bit `1 << domain` is set while the hooks of that allocator domain are
    // installed.
    uint8_t hooked;

    // Thread states other than the finalizing one may be gone: a detached
    // thread must not look at its own any more.
    bool tstates_gone;

    // Number of interpreters that trace.  Written under the mutex; read
    // without it, relaxed, to get out of the way when nothing traces.
    int ntracing;

    // The interpreters that trace, linked by `next`.
    struct _tracemalloc_interp_state *tracing;

    // The newest of the allocator records.  Written under the mutex, with
    // release order; read without it, with acquire order.
    struct _tracemalloc_allocators *below;

    // Whose shared traces are whose: the `size` of an entry is the address of
    // the books.  Lets a free find the owner in one look, however many
    // interpreters trace.
    _PyTraceTable directory;

    // Sum of the sizes of all traces of all interpreters, in bytes, and the
    // largest value that it has had since the first of them began to trace.
    size_t traced_memory;
    size_t peak_traced_memory;

    // The last epoch given to an interpreter's books.
    uint64_t epoch;

    // The tracer of PyRefTracer_SetTracer(), which ours calls while it is in
    // its place.
    // Written under the mutex; read without it, relaxed.
    PyRefTracer ref_tracer;

    // Keeps what follows in _PyRuntimeState where it was in 3.13.0.
    uintptr_t padding[_Py_TRACEMALLOC_PADDING];
};

// One interpreter's books.  Guarded by `mutex` unless noted.
struct _tracemalloc_interp_state {
    PyMutex mutex;

    // Is this interpreter tracing?  Written under both mutexes while no other
    // thread is attached to this interpreter: they wait for the GIL, or the
    // world is stopped, or there are none.  So an attached thread may read it
    // freely, any other under the runtime's mutex.
    int tracing;

    // Frames kept of a traceback.  Written and read like `tracing`.
    int max_nframe;

    // Set for a thread that is inside a hook, or must not be traced for
    // another reason: to a constant, or to the trace of a block that the
    // thread is giving back.  Created and deleted like `tracing` is written;
    // its value belongs to the thread itself.
    Py_tss_t reentrant_key;

    // Next in _PyRuntime.tracemalloc.tracing; guarded by the runtime's mutex.
    struct _tracemalloc_interp_state *next;

    // May any block of this interpreter be freed by another one?  So it is
    // with a subinterpreter that uses the main one's object allocator.
    // Written and read like `tracing`.
    bool shares_all;

    // Changes whenever traceback ids lose their meaning.  Unique over all
    // interpreters.
    uint64_t epoch;

    // Sum of the sizes in both tables, in bytes.
    size_t traced_memory;

    // Blocks that are freed by this interpreter, or by one that uses its
    // object allocator: those of the "mem" and "object" domains.
    _PyTraceTable traces;

    // Blocks that anybody may free: those of the "raw" domain, and what is
    // given to PyTraceMalloc_Track().  They are in the directory, too.
    _PyTraceTable shared;

    _PyTraceIntern intern;
};

#define _tracemalloc_runtime_state_INIT { .ntracing = 0 }

#define _tracemalloc_interp_state_INIT \
    { \
        .max_nframe = 1, \
        .reentrant_key = Py_tss_NEEDS_INIT, \
    }


/* --- Capture ------------------------------------------------------------ */

// Intern the traceback of a thread: the frames of `tstate`, which must be the
// calling thread's own, or _PyTraceback_UNKNOWN if it is NULL.  -1 if there is
// no memory.
extern int _PyTraceCapture_Traceback(
    _PyTraceIntern *intern, PyThreadState *tstate, int max_nframe,
    _PyTraceback_Id *id);


/* --- Books -------------------------------------------------------------- */

typedef struct _tracemalloc_runtime_state _PyTraceRuntime;
typedef struct _tracemalloc_interp_state _PyTraceBooks;

// What _PyTraceBooks_Open() sets up and _Close() takes away.
typedef struct {
    _PyTraceTable traces;
    _PyTraceTable shared;
    _PyTraceIntern intern;
} _PyTraceContents;

// A trace taken out of the books, to be put back or dropped.
typedef struct {
    uint64_t epoch;               // of the books that it is from; 0: none
    bool shared;                  // from which of their tables
    _PyTrace trace;
} _PyTraceTaken;

// A copy of an interpreter's traces, for a query.
typedef struct {
    _PyTrace *traces;
    size_t ntraces;
    _PyTraceIntern intern;
} _PyTraceSnapshot;

// Does nothing trace?  To be asked first, and needs no lock; the answer may be
// out of date.
static inline bool
_PyTraceRuntime_IsIdle(_PyTraceRuntime *runtime)
{
    return _Py_atomic_load_int_relaxed(&runtime->ntracing) == 0;
}

// Lock the process-wide state without detaching.  Not recursive.
extern void _PyTraceRuntime_Lock(_PyTraceRuntime *runtime);
extern void _PyTraceRuntime_Unlock(_PyTraceRuntime *runtime);

// All below need the runtime to be locked, unless noted; those which are given
// books lock these themselves.

// Begin and end to trace.  What was in the books on closing is moved to
// `contents`, to be freed by _PyTraceContents_Free() outside the locks.
extern void _PyTraceBooks_Open(
    _PyTraceRuntime *runtime, _PyTraceBooks *books, int max_nframe,
    bool shares_all);
extern void _PyTraceBooks_Close(
    _PyTraceRuntime *runtime, _PyTraceBooks *books,
    _PyTraceContents *contents);
extern void _PyTraceContents_Free(_PyTraceContents *contents);

// Forget all traces, but trace on.
extern void _PyTraceBooks_Clear(
    _PyTraceRuntime *runtime, _PyTraceBooks *books,
    _PyTraceContents *contents);

// Record a block with the traceback of the calling thread (see
// _PyTraceCapture_Traceback()), in place of a trace that the books may have
// at its address.  `shared` if anybody may free it.  -1 if there is no memory;
// nothing has changed then.
extern int _PyTraceBooks_Record(
    _PyTraceRuntime *runtime, _PyTraceBooks *books, PyThreadState *tstate,
    unsigned int domain, uintptr_t ptr, size_t size, bool shared);

// The trace of a block or NULL, with the books locked.
extern _PyTrace *_PyTraceBooks_Find(
    _PyTraceBooks *books, unsigned int domain, uintptr_t ptr);

// Give the trace of a block in domain 0, if there is one, the traceback of
// the calling thread; false if there is none.  Without memory for it the trace
// stays as it was.  An attached thread need not lock the runtime for its own
// interpreter's books.
extern bool _PyTraceBooks_Reattribute(
    _PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr);

// Take out the trace of a block, whosever it is; `first` is the most likely
// owner.  What that costs does not depend on the number of interpreters.  The
// room of the trace is kept until _PyTraceRuntime_Settle().
extern void _PyTraceRuntime_Take(
    _PyTraceRuntime *runtime, _PyTraceBooks *first,
    unsigned int domain, uintptr_t ptr, _PyTraceTaken *taken);

// The same, but from all books except these.
extern void _PyTraceRuntime_TakeFromOthers(
    _PyTraceRuntime *runtime, _PyTraceBooks *books,
    unsigned int domain, uintptr_t ptr, _PyTraceTaken *taken);

// Put the trace back, or drop it for good.  Neither can fail; nothing happens
// if its books were cleared or closed in between.  `first` are the books that
// it is most likely from.
extern void _PyTraceRuntime_Settle(
    _PyTraceRuntime *runtime, _PyTraceBooks *first,
    const _PyTraceTaken *taken, bool put_back);

// Copy the books, which must be open.  -1 if there is no memory; nothing is
// left in `snapshot` then.
extern int _PyTraceBooks_Snapshot(
    _PyTraceBooks *books, _PyTraceSnapshot *snapshot);

// The same for a single block; ntraces is 0 if it has no trace.
extern int _PyTraceBooks_SnapshotBlock(
    _PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
    _PyTraceSnapshot *snapshot);

// Needs no lock.
extern void _PyTraceSnapshot_Free(_PyTraceSnapshot *snapshot);

// Bytes of memory held, with this interpreter's part of the directory.
extern size_t _PyTraceBooks_Memory(
    _PyTraceRuntime *runtime, _PyTraceBooks *books);


/* --- Hooks -------------------------------------------------------------- */

// Put the hooks in and take them out, with the runtime locked.  The first
// returns -1 if there is no memory for the record of what is below.
extern int _PyTraceHooks_Install(_PyTraceRuntime *runtime);
extern void _PyTraceHooks_Remove(_PyTraceRuntime *runtime);

// Keep the calling thread, which is attached, from being traced (true), or
// trace it again.  Returns the previous setting.
extern bool _PyTraceHooks_SetReentrant(_PyTraceBooks *books, bool reentrant);

// The trace that the calling thread has taken from some books because it is
// freeing or reallocating the block, or NULL.  With the runtime locked.
extern const _PyTraceTaken *_PyTraceHooks_GetTaken(_PyTraceBooks *books);

// The books of the calling thread: those of its thread state's interpreter,
// or of the main one if it has none.  *tstate is set to that thread state or
// NULL.  With the runtime locked, and valid until it is unlocked.
extern _PyTraceBooks *_PyTraceHooks_CallerBooks(
    _PyTraceRuntime *runtime, PyThreadState **tstate);

// For PyRefTracer_SetTracer() and _GetTracer(): the user's tracer, which is
// called by ours while an interpreter traces.
extern void _PyTraceMalloc_SetRefTracer(PyRefTracer tracer, void *data);
extern PyRefTracer _PyTraceMalloc_GetRefTracer(void **data);


/* --- Interface ---------------------------------------------------------- */

// These act on the interpreter of the calling thread, which is attached.

// Start tracing; does nothing if it traces already.  -1 with an exception
// set, and nothing changed, if it can't.
extern int _PyTraceMalloc_Start(int max_nframe);

// Stop tracing and forget all traces; does nothing if it does not trace.
extern void _PyTraceMalloc_Stop(void);

extern int _PyTraceMalloc_IsTracing(void);
extern void _PyTraceMalloc_ClearTraces(void);
extern int _PyTraceMalloc_GetTracebackLimit(void);

// Bytes of memory used to keep this interpreter's traces.
extern size_t _PyTraceMalloc_GetMemory(void);

// Copy all traces, or that of one block.  -1 with MemoryError set.
extern int _PyTraceMalloc_Snapshot(_PyTraceSnapshot *snapshot);
extern int _PyTraceMalloc_SnapshotBlock(
    unsigned int domain, uintptr_t ptr, _PyTraceSnapshot *snapshot);

// These are process-wide.

// Sizes in bytes; both are 0 if no interpreter traces.
extern void _PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak);
extern void _PyTraceMalloc_ResetPeak(void);

// The interpreter is about to be deleted, or died in a fork: stop tracing for
// good.  Needs no thread state.
extern void _PyTraceMalloc_Fini(PyInterpreterState *interp);

// The runtime is about to be initialized, perhaps not for the first time.
extern void _PyTraceMalloc_InitRuntime(void);

// Py_FinalizeEx() is about to delete the thread states of other threads,
// which may be running C code: wait until none of them is looking at its own
// in a hook, and let none of them do so any more.
extern void _PyTraceMalloc_ForgetThreadStates(void);

#ifdef HAVE_FORK
// Hold all locks over fork(), so that the child finds the books in order.
// Nothing may be allocated meanwhile, so the first of these comes last before
// fork() and the others first after it.
extern void _PyTraceMalloc_BeforeFork(void);
extern void _PyTraceMalloc_AfterFork_Parent(void);
extern void _PyTraceMalloc_AfterFork_Child(void);
#endif

// Write where a block was allocated to a file descriptor, or how to find
// out.  For fatal errors: it gives up rather than wait for a lock for long.
extern void _PyMem_DumpTraceback(int fd, const void *ptr);

// The traceback of a block as a tuple of (filename, lineno) tuples, or None
// if it has no trace in this interpreter.  NULL with an exception set on
// error.  Defined by the _tracemalloc module.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(PyObject *) _PyTraceMalloc_GetTraceback(
    unsigned int domain, uintptr_t ptr);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_H
