// What the files of tracemalloc that deal with traces share: how the hash
// table of an interpreter is locked, counting, and the directory.

#ifndef Py_INTERNAL_TRACEMALLOC_SHARED_H
#define Py_INTERNAL_TRACEMALLOC_SHARED_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_pystate.h"       // _Py_IsMainInterpreter()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc_pages.h"  // _PyTraceMalloc_PageLink()

typedef struct _tracemalloc_interp_state interp_state;
typedef struct _tracemalloc_thread_state thread_state;

#define RUNTIME (&_PyRuntime.tracemalloc)

// May a thread that holds the GIL, and is inside its open credit, do without
// the mutex of its interpreter?
#ifdef Py_GIL_DISABLED
#  define USE_CREDIT_AS_LOCK 0
#else
#  define USE_CREDIT_AS_LOCK 1
#endif

static inline thread_state *
thread_of(PyThreadState *tstate)
{
    return &((_PyThreadStateImpl *)tstate)->tracemalloc;
}

static inline PyInterpreterState *
as_interp(interp_state *tm)
{
    return _Py_CONTAINER_OF(tm, PyInterpreterState, tracemalloc);
}

static inline void
lock_mutex(PyMutex *mutex)
{
    PyMutex_LockFlags(mutex, _Py_LOCK_DONT_DETACH);
}

// The runtime's mutex, which a caller that is not attached holds already.
static inline void
lock_runtime(const tracemalloc_caller *caller)
{
    if (caller->attached) {
        lock_mutex(&RUNTIME->mutex);
    }
}

static inline void
unlock_runtime(const tracemalloc_caller *caller)
{
    if (caller->attached) {
        PyMutex_Unlock(&RUNTIME->mutex);
    }
}

static inline tracemalloc_caller
attached_caller(PyThreadState *tstate)
{
    return (tracemalloc_caller){
        .tstate = tstate,
        .interp = &tstate->interp->tracemalloc,
        .attached = true,
    };
}

// Does a subinterpreter use the main interpreter's object allocator?  Then it
// has the same GIL, too.
static inline bool
shares_obmalloc(interp_state *tm)
{
    PyInterpreterState *interp = as_interp(tm);
    return !_Py_IsMainInterpreter(interp)
           && _PyInterpreterState_HasFeature(interp,
                                             Py_RTFLAGS_USE_MAIN_OBMALLOC);
}

static inline bool
has_same_gil(interp_state *tm, interp_state *other)
{
    return tm == other
           || (other == &_PyRuntime._main_interpreter.tracemalloc
               && shares_obmalloc(tm));
}

// For the interpreter of an attached thread, or one that has the same GIL.
// Returns whether the mutex was locked.
static inline bool
lock_own(interp_state *tm)
{
#if USE_CREDIT_AS_LOCK
    if (_PyTraceMalloc_EnterCredit(&tm->credit)) {
        return false;
    }
#endif
    lock_mutex(&tm->mutex);
    return true;
}

static inline void
unlock_own(interp_state *tm, bool locked)
{
    if (locked) {
        PyMutex_Unlock(&tm->mutex);
    }
#if USE_CREDIT_AS_LOCK
    else {
        _PyTraceMalloc_LeaveCredit(&tm->credit);
    }
#endif
}

static inline tracemalloc_credit *
own_credit(PyThreadState *tstate)
{
#ifdef Py_GIL_DISABLED
    return &thread_of(tstate)->credit;
#else
    return &tstate->interp->tracemalloc.credit;
#endif
}

static inline uint32_t *
group_of(unsigned int domain, uintptr_t ptr)
{
    uint32_t hash = _PyTraceMalloc_HashBlock(domain, ptr);
    return &RUNTIME->directory->groups[
        hash >> (32 - _PyTraceMalloc_GROUP_BITS)];
}

// False if a block that the calling thread owns is not in the directory.
static inline bool
may_be_listed(unsigned int domain, uintptr_t ptr)
{
    tracemalloc_directory *directory =
        _Py_atomic_load_ptr_acquire(&RUNTIME->directory);
    return directory != NULL
           && _Py_atomic_load_uint32_relaxed(group_of(domain, ptr)) != 0;
}


// Lock the hash table of an interpreter: of the calling thread's, of which it
// is the only thread, with the runtime's mutex held; or of any, with the
// runtime's mutex held unless it has the GIL.  The second returns what
// unlock_own() needs.
extern void _PyTraceMalloc_LockWhole(
    interp_state *tm);
extern bool _PyTraceMalloc_LockTable(
    const tracemalloc_caller *caller, interp_state *tm);

// Add to the counters, and take from them, with the caller's credit if it has
// any.
extern void _PyTraceMalloc_CountAdd(
    const tracemalloc_caller *caller, size_t size);
extern void _PyTraceMalloc_CountRemove(
    const tracemalloc_caller *caller, size_t size);

// Enter a block in the directory, and remove it.  -1 if there is no memory.
extern int _PyTraceMalloc_ListBlock(
    interp_state *tm, unsigned int domain, uintptr_t ptr, bool must);
extern void _PyTraceMalloc_UnlistBlock(
    interp_state *tm, unsigned int domain, uintptr_t ptr);

// With the table locked.  -1 if there is no memory; nothing has changed then.
extern int _PyTraceMalloc_AddToTable(
    interp_state *tm, const tracemalloc_trace *trace, bool must);
extern void _PyTraceMalloc_RemoveFromTable(
    interp_state *tm, tracemalloc_trace *trace);
extern void _PyTraceMalloc_CountTracked(
    const tracemalloc_trace *trace, int change);

// Remove the trace of a block from the table of an interpreter that traces; or
// a listed one, perhaps only that of another interpreter.  It is not
// uncounted.
extern bool _PyTraceMalloc_TakeFromTable(
    const tracemalloc_caller *caller, interp_state *tm,
    tracemalloc_removed *removed);
extern bool _PyTraceMalloc_TakeListed(
    const tracemalloc_caller *caller, bool others_only,
    tracemalloc_removed *removed);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_SHARED_H
