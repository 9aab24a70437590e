// What only the files of tracemalloc share: how the hash table of an
// interpreter is locked, counting, the directory, capture, and the hooks.

#ifndef Py_INTERNAL_TRACEMALLOC_SHARED_H
#define Py_INTERNAL_TRACEMALLOC_SHARED_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_pystate.h"       // _Py_IsMainInterpreter()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc_pages.h"  // _PyTraceMalloc_PageLink()

typedef struct _tracemalloc_interp_state interp_state;
typedef struct _tracemalloc_thread_state thread_state;

#define RUNTIME (&_PyRuntime.tracemalloc)

// Has each interpreter a GIL, its own or that of others?
#ifdef Py_GIL_DISABLED
#  define WITH_GIL 0
#else
#  define WITH_GIL 1
#endif

static inline thread_state *
thread_of(PyThreadState *tstate)
{
    return &((_PyThreadStateImpl *)tstate)->tracemalloc;
}

// The interpreter of a thread state; without one the main interpreter.
static inline interp_state *
interp_of(PyThreadState *tstate)
{
    return tstate != NULL ? &tstate->interp->tracemalloc
           : &_PyRuntime._main_interpreter.tracemalloc;
}

// Does no interpreter trace?
static inline bool
is_idle(void)
{
    return _Py_atomic_load_int_relaxed(&RUNTIME->ntracing) == 0;
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

static inline void
unlock_mutex(PyMutex *mutex)
{
    PyMutex_Unlock(mutex);
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
        unlock_mutex(&RUNTIME->mutex);
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

// Does a subinterpreter use the main interpreter's object allocator?  Without
// a GIL, each thread has its own heaps.
static inline bool
shares_obmalloc(interp_state *tm)
{
    PyInterpreterState *interp = as_interp(tm);
    return WITH_GIL
           && (interp->feature_flags & Py_RTFLAGS_USE_MAIN_OBMALLOC) != 0
           && !_Py_IsMainInterpreter(interp);
}

// Do they have the same GIL?  It may say no though they do.
static inline bool
has_same_gil(interp_state *tm, interp_state *other)
{
    return tm == other
           || (other == &_PyRuntime._main_interpreter.tracemalloc
               && shares_obmalloc(tm) && !as_interp(tm)->ceval.own_gil);
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

// With the GIL it is the last one of all threads: a block that another thread
// frees may come back to this one as an object from a free list.
static inline tracemalloc_last_block *
last_block_of(PyThreadState *tstate)
{
#ifdef Py_GIL_DISABLED
    return &thread_of(tstate)->last;
#else
    return &tstate->interp->tracemalloc.last;
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
        (tracemalloc_directory *)_Py_atomic_load_ptr_acquire(
            &RUNTIME->directory);
    return directory != NULL
           && _Py_atomic_load_uint32_relaxed(group_of(domain, ptr)) != 0;
}


/* --- The hash table, counting, the directory --------------------------- */

// Count another size of a block, of which 0 is none, with the caller's credit
// if it has any.  In one step: nobody sees the sum without the block, or with
// it twice.
extern void _PyTraceMalloc_CountChange(
    const tracemalloc_caller *caller, size_t old_size, size_t new_size);
extern void _PyTraceMalloc_CountRemove(
    const tracemalloc_caller *caller, size_t size);

// Remove a block of an interpreter from the directory, if it is there.
extern void _PyTraceMalloc_UnlistBlock(
    interp_state *tm, unsigned int domain, uintptr_t ptr);

// The next two lock the table of an interpreter that traces.  The caller holds
// the runtime's mutex, unless it has that interpreter's GIL.

// -1 if there is no memory, 1 if the block has a trace there or a listed one
// elsewhere; nothing has changed then.
extern int _PyTraceMalloc_AddToTable(
    const tracemalloc_caller *caller, interp_state *tm,
    const tracemalloc_trace *trace, bool must);
// Remove the trace of a block; it is not uncounted.
extern bool _PyTraceMalloc_FindAndRemove(
    const tracemalloc_caller *caller, interp_state *tm,
    tracemalloc_removed *removed);
// The same for a listed trace, of whichever interpreter has it.
extern bool _PyTraceMalloc_RemoveListed(
    const tracemalloc_caller *caller, tracemalloc_removed *removed);


/* --- All traces of an interpreter --------------------------------------- */

// With the mutex of the interpreter held.
extern bool _PyTraceMalloc_Find(
    PyInterpreterState *interp, unsigned int domain, uintptr_t ptr,
    tracemalloc_trace *trace);

// With the runtime's mutex held, and no other thread attached.  Open sets up
// what holds traces, once hooks are in; -1 if there is no memory.  Drop
// removes all traces and uncounts them.
extern int _PyTraceMalloc_OpenTraces(interp_state *tm, uint8_t reached);
extern void _PyTraceMalloc_DropTraces(interp_state *tm);

// With the runtime's mutex held: no interpreter traces any more, so the
// directory has no entries.  Free its memory while its allocator is there.
extern void _PyTraceMalloc_CloseDirectory(void);

// Another reason, or one less, why a trace may not be in its slot.
extern void _PyTraceMalloc_ChangeShared(int change);

// In the child of fork(), with no other thread left: nobody asks for the traces
// of an interpreter any more; and the sum is what this one's add up to.
extern void _PyTraceMalloc_AbandonTraces(interp_state *tm);
extern void _PyTraceMalloc_RecountAfterFork(interp_state *tm);


/* --- Capture ------------------------------------------------------------ */

// Of an address and a number, less than `size`.  Multiplicative: the high bits
// are good.
static inline size_t
hash_key(const void *ptr, uint64_t number, size_t size)
{
    uint64_t hash = (((uint64_t)(uintptr_t)ptr >> 1)
                     + number * UINT64_C(0xC2B2AE3D27D4EB4F))
                    * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)((hash >> 32) * size >> 32);
}

// Where a thread remembers a capture at this instruction.
static inline tracemalloc_site *
site_of(thread_state *ts, const void *instr)
{
    return &ts->sites[(uintptr_t)instr / 4 % _PyTraceMalloc_NUM_SITES];
}

// Is the frame where the traceback of this site was captured?
static inline bool
is_at_site(const tracemalloc_site *site, const _PyInterpreterFrame *frame)
{
    return frame->callers_known && site->frame == frame
           && site->instr == frame->instr_ptr;
}

// The traceback of the calling thread; UNKNOWN if it is stateless.  -1 if
// there is no memory.
extern int _PyTraceMalloc_Capture(
    const tracemalloc_caller *caller, uint32_t *id);

// Free what a thread remembers, with the runtime's mutex held.
extern void _PyTraceMalloc_CaptureFree(
    PyInterpreterState *interp, thread_state *ts);

// Intern the traceback of a complete frame.  -1 if there is no memory.
extern int _PyTraceMalloc_InternFrames(
    interp_state *tm, struct _PyInterpreterFrame *frame,
    size_t total_nframe, uint32_t *id);

#ifndef NDEBUG
// Is this traceback what a walk over all frames finds?
extern bool _PyTraceMalloc_IsExact(
    interp_state *tm, struct _PyInterpreterFrame *frame, uint32_t id);
#endif


/* --- Hooks -------------------------------------------------------------- */

// Which domains have hooks that a call reaches?  Bits `1 << domain`; and those
// of `reached` in the thread state.  For an attached thread without locks.
extern uint8_t _PyTraceMalloc_ProbeHooks(void);

// With the runtime's mutex held.  Install returns -1 if there is no memory;
// some hooks may be installed then.
extern int _PyTraceMalloc_InstallHooks(uint8_t reached);
extern void _PyTraceMalloc_RemoveHooks(void);

// The allocator below the lowest hooks of the raw domain, also below those that
// came later on top of others; the C library's if the lowest ones are not in
// use.
extern const PyMemAllocatorEx *_PyTraceMalloc_RawAllocatorBelow(
    uint8_t reached);

// The thread state of the calling thread, which is not attached; NULL if it
// has none that is its own.
extern PyThreadState *_PyTraceMalloc_DetachedThread(void);

// Who is calling?  Locks the runtime's mutex unless the thread is attached:
// that keeps its thread state and its interpreter alive.
extern void _PyTraceMalloc_BeginCall(tracemalloc_caller *caller);
extern void _PyTraceMalloc_EndCall(const tracemalloc_caller *caller);

// The trace of the block that the calling thread is freeing or reallocating;
// NO_TRACEBACK if there is none.
extern tracemalloc_removed _PyTraceMalloc_GetRemoved(void);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_SHARED_H
