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
//   Modules/_tracemalloc.c          the Python module; raw data to objects
//   Python/tracemalloc.c            start, stop, fork, the end; public C API
//   Python/tracemalloc_hooks.c      allocator hooks, reference tracer
//   Python/tracemalloc_books.c      record, take, copy out
//   Python/tracemalloc_capture.c    a thread's frames to a traceback id
//   Python/tracemalloc_counters.c   the process-wide sum and its peak
//   Python/tracemalloc_lock.c       the lock of the books
//   Python/tracemalloc_directory.c  who has the trace of a block
//   Python/tracemalloc_intern.c     filenames and tracebacks, to ids and back
//   Python/tracemalloc_pools.c      block of pymalloc to (size, traceback id)
//   Python/tracemalloc_map.c        address to (size, traceback id)
//   Python/tracemalloc_table.c      (domain, address) to (size, traceback id)
//
// The last four are plain containers: no lock, no interpreter, no Python
// object.  Filenames are copied as text, so that no reference is owned and
// nothing of one interpreter is ever freed by another.
//
// Locks, in the order in which they are taken:
//
//   1. _PyRuntime.tracemalloc.mutex              the process-wide state
//   2. PyInterpreterState.tracemalloc.lock       one interpreter's books; a
//                                                thread holds one at a time,
//                                                and others with the first
//   3. _PyTraceDirectory.mutex                   the directory
//   3. _PyRuntime.allocators.mutex               while hooks are put in or out
//
// A thread that is attached records and frees blocks of its own with the
// second alone.  It takes the first where the sum reaches a new peak, where it
// frees what another interpreter has traced, and to start, stop or query.
//
// Hooks run with HEAD_LOCK() held, so that comes before all of them and must
// not be taken under any.  All are taken without detaching the thread
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

#include "pycore_llist.h"         // struct llist_node
#include "pycore_lock.h"          // PyMutex
#include "pycore_tracemalloc_containers.h"  // _PyTraceTable

#include <stdbool.h>


typedef struct _tracemalloc_runtime_state _PyTraceRuntime;
typedef struct _tracemalloc_interp_state _PyTraceBooks;
typedef struct _tracemalloc_capture _PyTraceCapture;


/* --- Lock of the books -------------------------------------------------- */

// Android may kill a process for a system call that it does not know.
#if defined(__linux__) && !defined(__ANDROID__) && defined(__GNUC__) \
    && !defined(Py_GIL_DISABLED)
#  define _Py_TRACE_LOCK_RESERVES
#endif

// A mutex which can be reserved for the threads that hold the GIL of an
// interpreter: that saves each of them two locked instructions.
typedef struct {
    PyMutex mutex;

    // Is a holder of the GIL inside without the mutex, or about to look
    // whether it may be?  Atomic, but where no other can look; written by
    // holders of the GIL only.
    int inside;

    // May holders of the GIL do without the mutex?  Atomic.  Written with the
    // mutex held.  A thread without the GIL sets it only if it gives up.
    int reserved;

    // How often holders of the GIL have taken the mutex since the last time
    // that others did.  Guarded by the mutex.
    unsigned int uses;

    // The GIL for whose holders it may be reserved, or NULL.  Written under
    // the mutex, the runtime's and this GIL, or when no thread is left that
    // could hold it.
    const struct _gil_runtime_state *gil;
} _PyTraceLock;

// Let it be reserved, from now on, for holders of this interpreter's GIL; and
// no longer.  With the lock held by _LockMutex().
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceLock_Open(
    _PyTraceLock *lock, PyInterpreterState *interp);
extern void _PyTraceLock_Close(_PyTraceLock *lock);

// For anybody.  None of these detaches the thread.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceLock_LockMutex(_PyTraceLock *lock);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceLock_UnlockMutex(_PyTraceLock *lock);

// Give up after so many nanoseconds, more or less.  False if it was not
// locked.
extern bool _PyTraceLock_TryLockMutex(_PyTraceLock *lock, PyTime_t timeout);

// For a thread that is attached to the interpreter, or to another that has the
// same GIL.  In a free-threaded build this is the mutex.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceLock_LockOwnSlowly(_PyTraceLock *lock);

static inline void
_PyTraceLock_LockOwn(_PyTraceLock *lock)
{
#ifdef _Py_TRACE_LOCK_RESERVES
    // Not recursive.
    assert(!_Py_atomic_load_int_relaxed(&lock->inside));
#  ifdef _Py_THREAD_SANITIZER
    (void)_Py_atomic_exchange_int(&lock->inside, 1);
    int reserved = _Py_atomic_load_int(&lock->reserved);
#  else
    _Py_atomic_store_int_relaxed(&lock->inside, 1);
    // The processor's part is done by whoever ends the reservation.
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    int reserved = _Py_atomic_load_int_relaxed(&lock->reserved);
#  endif
    if (reserved) {
        __atomic_signal_fence(__ATOMIC_ACQUIRE);
        return;
    }
    _Py_atomic_store_int_relaxed(&lock->inside, 0);
#endif
    _PyTraceLock_LockOwnSlowly(lock);
}

static inline void
_PyTraceLock_UnlockOwn(_PyTraceLock *lock)
{
#ifdef _Py_TRACE_LOCK_RESERVES
    if (_Py_atomic_load_int_relaxed(&lock->inside)) {
        _Py_atomic_store_int_release(&lock->inside, 0);
        return;
    }
#endif
    PyMutex_Unlock(&lock->mutex);
}

// _LockOwn() or _LockMutex(), whichever it has to be.
extern void _PyTraceLock_Lock(_PyTraceLock *lock);
extern void _PyTraceLock_Unlock(_PyTraceLock *lock);

#ifdef HAVE_FORK
// In the child: nobody holds it.  It was held by _LockMutex(), or the books
// are closed.
extern void _PyTraceLock_AfterFork(_PyTraceLock *lock);
#endif


/* --- Counters ----------------------------------------------------------- */

// The sum of all traced sizes and its peak, in bytes.  Guarded by the
// runtime's mutex.
typedef struct {
    // The sum, and all credit given out on top of it.
    size_t committed;

    // The largest value that the sum has had: since the first interpreter
    // began to trace, or since it was reset.
    size_t peak;

    // Accounts that are not closed.
    struct llist_node open;

    // The account that may exceed the peak, or NULL.  No other is open then.
    struct _tracemalloc_account *sole;

    // The account that was here last, and how often it came without another.
    struct _tracemalloc_account *last;
    unsigned int run;
} _PyTraceCounters;

// Through which an interpreter changes the counters.
typedef struct _tracemalloc_account {
    // Bytes that may be added without asking, or _PyTraceAccount_CLOSED.
    // Guarded by `lock`, under which alone it may be changed, but not from or
    // to closed: this takes the runtime's mutex, too.  Read without, relaxed,
    // as a hint.
    Py_ssize_t credit;

    // The least that the credit has been since the account was opened.
    // Guarded by `lock`.
    Py_ssize_t lowest;

    // What has been added and not taken, in bytes, with the credit of an open
    // account.  Guarded by the runtime's mutex, as is `open`.
    size_t share;

    struct llist_node open;

    // Of the books that the account belongs to.  Set before the first use.
    _PyTraceLock *lock;
} _PyTraceAccount;

#define _PyTraceAccount_CLOSED (-1)

// To be called before anything else, with the runtime's mutex held; the second
// with the books locked, too.
extern void _PyTraceCounters_Init(_PyTraceCounters *counters);
extern void _PyTraceAccount_Init(_PyTraceAccount *account, _PyTraceLock *lock);

// Might _TryAdd() succeed?  A hint.
static inline bool
_PyTraceAccount_MayAdd(const _PyTraceAccount *account, size_t size)
{
    Py_ssize_t credit = _Py_atomic_load_ssize_relaxed(&account->credit);
    return credit >= 0 && (size_t)credit >= size;
}

// Add to the sum, or take from it, with the books locked.  False if that can't
// be done without the runtime's mutex; nothing has changed then.
static inline bool
_PyTraceAccount_TryAdd(_PyTraceAccount *account, size_t size)
{
    if (!_PyTraceAccount_MayAdd(account, size)) {
        return false;
    }
    Py_ssize_t credit = account->credit - (Py_ssize_t)size;
    _Py_atomic_store_ssize_relaxed(&account->credit, credit);
    if (credit < account->lowest) {
        account->lowest = credit;
    }
    return true;
}

static inline bool
_PyTraceAccount_TryRemove(_PyTraceAccount *account, size_t size)
{
    if (account->credit == _PyTraceAccount_CLOSED) {
        return false;
    }
    _Py_atomic_store_ssize_relaxed(&account->credit,
                                   account->credit + (Py_ssize_t)size);
    return true;
}

// The same with the runtime's mutex held, too.  _Add() returns -1 if the sum
// would exceed PY_SSIZE_T_MAX; _Remove() cannot fail.
extern int _PyTraceCounters_Add(
    _PyTraceCounters *counters, _PyTraceAccount *account, size_t size);
extern void _PyTraceCounters_Remove(
    _PyTraceCounters *counters, _PyTraceAccount *account, size_t size);

// Close an account, whose books are locked, and take from the sum all that was
// added through it.
extern void _PyTraceCounters_RemoveAccount(
    _PyTraceCounters *counters, _PyTraceAccount *account);

// With the runtime's mutex held and no books locked.
extern size_t _PyTraceCounters_Sum(_PyTraceCounters *counters);
extern void _PyTraceCounters_ResetPeak(_PyTraceCounters *counters);


/* --- Directory ---------------------------------------------------------- */

#define _Py_TRACE_GROUP_BITS 12

// From a block to the books with its trace: for traces of blocks that anybody
// may free.  Guarded by `mutex` unless noted.  Takes that itself, after the
// locks of the books.
typedef struct {
    PyMutex mutex;

    // The `size` of an entry is the address of the books.
    _PyTraceTable table;

    // Number of entries, by group.  Written under the mutex; read without it,
    // relaxed.
    uint32_t groups[1 << _Py_TRACE_GROUP_BITS];
} _PyTraceDirectory;

// NULL if there is no memory.
extern _PyTraceDirectory *_PyTraceDirectory_New(void);

// Free the memory of the table if nothing is in it; what is put in later
// comes from this allocator.  Needed before the first use.
extern void _PyTraceDirectory_Renew(
    _PyTraceDirectory *directory, const PyMemAllocatorEx *allocator);

static inline uint32_t *
_PyTraceDirectory_Group(_PyTraceDirectory *directory,
                        unsigned int domain, uintptr_t ptr)
{
    uint32_t hash = _PyTraceTable_Hash(domain, ptr);
    return &directory->groups[hash >> (32 - _Py_TRACE_GROUP_BITS)];
}

// False if a block that the calling thread owns is not in the directory.
static inline bool
_PyTraceDirectory_MayHave(_PyTraceDirectory *directory,
                          unsigned int domain, uintptr_t ptr)
{
    return _Py_atomic_load_uint32_relaxed(
        _PyTraceDirectory_Group(directory, domain, ptr)) != 0;
}

// The books with the trace of a block, or NULL.
extern _PyTraceBooks *_PyTraceDirectory_Find(
    _PyTraceDirectory *directory, unsigned int domain, uintptr_t ptr);

// Room for one more entry, as for _PyTraceTable_Reserve(); _Put() uses it up.
extern int _PyTraceDirectory_Reserve(_PyTraceDirectory *directory);
extern void _PyTraceDirectory_Unreserve(_PyTraceDirectory *directory);
extern void _PyTraceDirectory_Put(
    _PyTraceDirectory *directory, _PyTraceBooks *books,
    unsigned int domain, uintptr_t ptr);

// Remove an entry of these books.  Returns true if its room was kept.
extern bool _PyTraceDirectory_Remove(
    _PyTraceDirectory *directory, _PyTraceBooks *books,
    unsigned int domain, uintptr_t ptr, bool keep_room);

// Remove the entries of all traces in a table of these books.
extern void _PyTraceDirectory_RemoveAll(
    _PyTraceDirectory *directory, _PyTraceBooks *books,
    const _PyTraceTable *shared);

// Bytes of memory held for so many of the entries.
extern size_t _PyTraceDirectory_Memory(
    _PyTraceDirectory *directory, size_t nentries);


/* --- State -------------------------------------------------------------- */

// The allocators below the hooks, as they were when the hooks went in.  Once a
// record is published, it is not freed and what it says is not changed: a
// thread that was held up between loading a hook and running it may need it at
// any time.  There are as many as there were different ones.
struct _tracemalloc_allocators {
    PyMemAllocatorEx raw;
    PyMemAllocatorEx mem;
    PyMemAllocatorEx obj;
    struct _tracemalloc_allocators *previous;     // under the mutex
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

    // Whose shared traces are whose.  NULL until an interpreter begins to
    // trace, then never changed or freed.  Written under the mutex, with
    // release order; read without it, with acquire order, or plainly by those
    // who have open books, which were opened later.  Has a lock of its own.
    _PyTraceDirectory *directory;

    _PyTraceCounters counters;

    // The last epoch given to an interpreter's books.
    uint64_t epoch;

    // The tracer of PyRefTracer_SetTracer(), which ours calls while it is in
    // its place.
    // Written under the mutex; read without it, relaxed.
    PyRefTracer ref_tracer;

    // Keeps what follows in _PyRuntimeState where it was in 3.13.0.
    uintptr_t padding[_Py_TRACEMALLOC_PADDING];
};

// One interpreter's books.  Guarded by `lock` unless noted.
struct _tracemalloc_interp_state {
    _PyTraceLock lock;

    // Is this interpreter tracing?  Written under both locks while no other
    // thread is attached to this interpreter: they wait for the GIL, or the
    // world is stopped, or there are none.  So an attached thread may read it
    // freely, any other under the runtime's mutex.
    int tracing;

    // Frames kept of a traceback.  Written and read like `tracing`.
    int max_nframe;

    // Set for a thread that is inside a hook, or must not be traced for
    // another reason: to a constant, or to the trace of a block that the
    // thread is giving back.  Created and deleted like `tracing` is written;
    // its value belongs to the thread itself.  An attached thread uses its
    // thread state instead.
    Py_tss_t reentrant_key;

    // Next in _PyRuntime.tracemalloc.tracing; guarded by the runtime's mutex.
    struct _tracemalloc_interp_state *next;

    // May any block of this interpreter be freed by another one?  So it is
    // with a subinterpreter that uses the main one's object allocator.
    // Written and read like `tracing`.
    bool shares_all;

    // How often the books were locked to read or change traces.  Written under
    // the lock; read without it, relaxed, to see whether anything has changed.
    uint64_t operations;

    // Changes whenever traceback ids lose their meaning.  Unique over all
    // interpreters.  Written under both locks, read under one of them.
    uint64_t epoch;

    // Where the sizes of all traces are counted.  Has rules of its own.
    _PyTraceAccount account;

    // Blocks that are freed by this interpreter, or by one that uses its
    // object allocator: those of the "mem" and "object" domains.  The first
    // has most of what is in pools of pymalloc.
    _PyTracePools pools;
    _PyTraceMap traces;

    // Is there room in `traces` for a block of a pool that is reallocated, and
    // may move anywhere?  There is whenever a trace is put into a pool, so
    // that no memory is needed then.
    bool spare;

    // Blocks that anybody may free: those of the "raw" domain, and what is
    // given to PyTraceMalloc_Track().  They are in the directory, too.  So are
    // those that are too large for the map.
    _PyTraceTable shared;

    _PyTraceIntern intern;

    // NULL while not tracing.
    _PyTraceCapture *capture;
};

#define _tracemalloc_runtime_state_INIT { .ntracing = 0 }

#define _tracemalloc_interp_state_INIT \
    { \
        .max_nframe = 1, \
        .reentrant_key = Py_tss_NEEDS_INIT, \
    }


/* --- Capture ------------------------------------------------------------ */

// What the tracebacks of some books were made from, so that the next one is
// mostly found without a look at more than one frame.  Guarded by the lock of
// these books.

// NULL if there is no memory.
extern _PyTraceCapture *_PyTraceCapture_New(const PyMemAllocatorEx *allocator);
extern void _PyTraceCapture_Free(_PyTraceCapture *capture);

// Needed when ids lose their meaning, and when what a frame or code object was
// like when its traceback was found has changed.
extern void _PyTraceCapture_Clear(_PyTraceCapture *capture);

// Intern the traceback of a thread: the frames of `tstate`, which must be the
// calling thread's own, or _PyTraceback_UNKNOWN if it is NULL.  -1 if there is
// no memory.
extern int _PyTraceCapture_Traceback(
    _PyTraceCapture *capture, _PyTraceIntern *intern, PyThreadState *tstate,
    int max_nframe, _PyTraceback_Id *id);

// Bytes of memory held.
extern size_t _PyTraceCapture_Memory(const _PyTraceCapture *capture);


/* --- Books -------------------------------------------------------------- */

// What _PyTraceBooks_Open() sets up and _Close() takes away.
typedef struct {
    _PyTracePools pools;
    _PyTraceMap traces;
    _PyTraceTable shared;
    _PyTraceIntern intern;
    _PyTraceCapture *capture;     // NULL unless closed
} _PyTraceContents;

// Room for one trace, promised by some books.  Whoever has room uses it or
// gives it back: with nobody inside a hook, none is out.
typedef struct {
    _PyTraceBooks *books;         // may be gone: to be compared only
    uint64_t epoch;               // of these books; 0: no books
    bool shared;                  // in the table `shared` or in `traces`
    bool reserved;                // is there room in it?
    bool listed;                  // is there room in the directory?
} _PyTraceRoom;

// A trace taken out of the books; none if room.epoch is 0.
typedef struct {
    _PyTrace trace;
    _PyTraceRoom room;
} _PyTraceTaken;

// The calling thread, with the books of its interpreter, which may be closed;
// without a thread state, the main interpreter's.
typedef struct {
    _PyTraceRuntime *runtime;
    _PyTraceBooks *books;
    PyThreadState *tstate;        // attached or detached, or NULL
    bool attached;                // is it attached?
    bool locked;                  // does it hold the runtime's mutex?
    bool any_block;               // may it name blocks that it does not own?
} _PyTraceCaller;

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

// Lock the runtime for the rest of the call, if it isn't.  Not with books
// locked.
static inline void
_PyTraceCaller_Lock(_PyTraceCaller *caller)
{
    if (!caller->locked) {
        _PyTraceRuntime_Lock(caller->runtime);
        caller->locked = true;
    }
}

// The counterpart of _PyTraceCaller_Begin(), see below.
static inline void
_PyTraceCaller_End(_PyTraceCaller *caller)
{
    if (caller->locked) {
        _PyTraceRuntime_Unlock(caller->runtime);
    }
}

// These need the runtime to be locked.

// Begin and end to trace.  What was in the books on closing is moved to
// `contents`, to be freed by _PyTraceContents_Free() outside the locks.  _Open
// returns -1 if there is no memory.
extern int _PyTraceBooks_Open(
    _PyTraceRuntime *runtime, PyInterpreterState *interp, int max_nframe);
extern void _PyTraceBooks_Close(
    _PyTraceRuntime *runtime, _PyTraceBooks *books,
    _PyTraceContents *contents);
extern void _PyTraceContents_Free(_PyTraceContents *contents);

// Forget all traces, but trace on.
extern void _PyTraceBooks_Clear(
    _PyTraceRuntime *runtime, _PyTraceBooks *books,
    _PyTraceContents *contents);

// These need no lock.

// Is this a subinterpreter that uses the main one's object allocator?
extern bool _PyTraceBooks_SharesObmalloc(PyInterpreterState *interp);

// Look at frames and code objects anew, of which something has changed.
extern void _PyTraceBooks_ForgetFrames(_PyTraceBooks *books);

// These lock what they need, the runtime included.  What they cost does not
// depend on the number of interpreters, but for _Settle() of another one's and
// for `any_block`.

// Record a block in the caller's books, which are open, with the traceback of
// the calling thread (see _PyTraceCapture_Traceback()).  A trace that anybody
// had for this block is dropped.  `shared` if anybody may free the block.
// -1 if there is no memory; nothing has changed then.
extern int _PyTraceCaller_Record(
    _PyTraceCaller *caller, unsigned int domain, uintptr_t ptr, size_t size,
    bool shared);

// What _Record(), _Take() and _Reattribute() come to for nearly all blocks,
// done with a fourth of the instructions: a thread that is attached to the
// interpreter, whose books are open, has got, or gives back, a block in
// domain 0, or reallocates it, and then has `room` for it.  False if it is not
// as simple as that; nothing has changed then.
extern bool _PyTraceBooks_RecordOwn(
    _PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr, size_t size,
    _PyTraceRoom *room);
extern bool _PyTraceBooks_TakeOwn(
    _PyTraceBooks *books, uintptr_t ptr, bool keep_room,
    _PyTraceTaken *taken);

// Give the trace of a block in domain 0, if there is one, the traceback of the
// calling thread.  Without memory for it the trace stays as it was.  False if
// there is none in these books.
extern bool _PyTraceBooks_ReattributeOwn(
    _PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr);

// Take out the trace of a block, whosever it is, to drop it; or, if
// `keep_room`, to finish it by _Rerecord() or _Settle().
extern void _PyTraceCaller_Take(
    _PyTraceCaller *caller, unsigned int domain, uintptr_t ptr,
    bool keep_room, _PyTraceTaken *taken);

// The block of the trace taken out was reallocated: record it anew, in the
// caller's books, which are open.  Cannot fail if the trace was from there and
// goes to the same container, for then it has its room; otherwise the block may
// remain without one.
extern void _PyTraceCaller_Rerecord(
    _PyTraceCaller *caller, _PyTraceTaken *taken,
    unsigned int domain, uintptr_t ptr, size_t size, bool shared);

// Put the trace back, or drop it for good.  Neither can fail; nothing happens
// if its books were cleared or closed in between.
extern void _PyTraceCaller_Settle(
    _PyTraceCaller *caller, _PyTraceTaken *taken, bool put_back);

// For a block in domain 0 that _PyTraceBooks_ReattributeOwn() has not found: a
// trace in the books of another interpreter that shares the object allocator
// moves to those of the caller, which is attached and whose books are open.
extern void _PyTraceCaller_Reattribute(_PyTraceCaller *caller, uintptr_t ptr);

// Copy the trace of a block; false if there is none.  With the books locked.
extern bool _PyTraceBooks_Get(
    _PyTraceBooks *books, unsigned int domain, uintptr_t ptr, _PyTrace *trace);

// Copy the books, which must be open.  -1 if there is no memory; nothing is
// left in `snapshot` then.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceBooks_Snapshot(
    _PyTraceBooks *books, _PyTraceSnapshot *snapshot);

// The same for a single block; ntraces is 0 if it has no trace.
extern int _PyTraceBooks_SnapshotBlock(
    _PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
    _PyTraceSnapshot *snapshot);

// Needs no lock.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceSnapshot_Free(_PyTraceSnapshot *snapshot);

// Bytes of memory held, with this interpreter's part of the directory.
extern size_t _PyTraceBooks_Memory(
    _PyTraceRuntime *runtime, _PyTraceBooks *books);


/* --- Hooks -------------------------------------------------------------- */

// Put the hooks in and take them out, with the runtime locked.  The first
// returns -1 if there is no memory for the record of what is below; some hooks
// may be in then.
extern int _PyTraceHooks_Install(_PyTraceRuntime *runtime);
extern void _PyTraceHooks_Remove(_PyTraceRuntime *runtime);

// Keep the calling thread, which is attached, from being traced (true), or
// trace it again.  Returns the previous setting.
extern bool _PyTraceHooks_SetReentrant(bool reentrant);

// The trace that the caller has taken from some books because it is freeing or
// reallocating the block, or NULL.  With the runtime locked.
extern const _PyTraceTaken *_PyTraceHooks_GetTaken(
    const _PyTraceCaller *caller);

// Find out who is calling.  Locks the runtime unless the thread is attached:
// that keeps its thread state and its interpreter where they are.  Valid until
// _PyTraceCaller_End(), which unlocks it.  A hook gets only blocks
// that its caller owns: `any_block` is false.
extern void _PyTraceCaller_Begin(_PyTraceCaller *caller);

// The same with the runtime locked already.
extern void _PyTraceCaller_BeginLocked(_PyTraceCaller *caller);

// For PyRefTracer_SetTracer() and _GetTracer(): the user's tracer, which is
// called by ours while an interpreter traces.  They take the runtime's mutex.
extern void _PyTraceMalloc_SetRefTracer(PyRefTracer tracer, void *data);
extern PyRefTracer _PyTraceMalloc_GetRefTracer(void **data);


/* --- Interface ---------------------------------------------------------- */

// These act on the interpreter of the calling thread, which is attached.

// Start tracing, with 1 to UINT16_MAX frames of a traceback; does nothing if
// it traces already.  -1 with an exception set, and nothing changed, if it
// can't. Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_Start(int max_nframe);

// Stop tracing and forget all traces; does nothing if it does not trace.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_Stop(void);

// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_IsTracing(void);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_ClearTraces(void);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_GetTracebackLimit(void);

// Bytes of memory used to keep this interpreter's traces.
extern size_t _PyTraceMalloc_GetMemory(void);

// Copy all traces, or that of one block.  -1 with MemoryError set.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_Snapshot(_PyTraceSnapshot *snapshot);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(int) _PyTraceMalloc_SnapshotBlock(
    unsigned int domain, uintptr_t ptr, _PyTraceSnapshot *snapshot);

// These are process-wide.

// Sizes in bytes; both are 0 if no interpreter traces.
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak);
// Export for '_testinternalcapi' shared extension.
PyAPI_FUNC(void) _PyTraceMalloc_ResetPeak(void);

// The calling thread, which is attached, has changed the line of a frame that
// is being executed, or the filename of a code object.
extern void _PyTraceMalloc_FramesChanged(void);

// The interpreter is about to be deleted, or died in a fork: stop tracing for
// good.  Needs no thread state.
extern void _PyTraceMalloc_Fini(PyInterpreterState *interp);

// The runtime is about to be initialized once more.  The caller has locked its
// state of tracemalloc.
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
