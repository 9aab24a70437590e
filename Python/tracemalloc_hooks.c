// The hooks through which tracemalloc sees the memory of the process: the
// allocators of PEP 445, and the reference tracer.
//
// Hooks run in the oddest places: in threads that Python does not know, with
// any lock of the runtime held, while threads and interpreters come and go.
// They never take the GIL and never create or attach a thread state.
//
// Each hook has one shape: is the caller to be traced, the allocator below,
// the trace.  A trace is removed before its block is given back to the
// allocator below, which may hand out the same address to another thread at
// once, and added after the block was received from it.

#include "Python.h"
#include "pycore_pymem.h"         // _PyMem_ReplaceFunctions()
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // tracemalloc_caller

#define RUNTIME (&_PyRuntime.tracemalloc)

// Any non-NULL pointer will do.
#define REENTRANT ((void *)RUNTIME)

#define DOMAIN_BIT(DOMAIN) ((uint8_t)(1 << (DOMAIN)))

typedef struct _tracemalloc_thread_state thread_state;


/* --- Who is calling ----------------------------------------------------- */

static inline thread_state *
thread_of(PyThreadState *tstate)
{
    return &((_PyThreadStateImpl *)tstate)->tracemalloc;
}

static inline bool
is_idle(void)
{
    return _Py_atomic_load_int_relaxed(&RUNTIME->ntracing) == 0;
}

// The thread state of the calling thread, which is not attached, or NULL.
static PyThreadState *
detached_tstate(void)
{
    if (RUNTIME->tstates_gone
        && (PyThread_get_thread_ident()
            != _PyRuntimeState_GetFinalizingID(&_PyRuntime)))
    {
        // It may have been freed, and its key be deleted at any moment.  The
        // thread that finalizes has one for each interpreter that it ends.
        return NULL;
    }
    return PyGILState_GetThisThreadState();
}

static inline void
set_caller(tracemalloc_caller *caller, PyThreadState *tstate, bool attached)
{
    caller->tstate = tstate;
    caller->attached = attached;
    caller->interp = tstate != NULL ? &tstate->interp->tracemalloc
                     : &_PyRuntime._main_interpreter.tracemalloc;
}

void
_PyTraceMalloc_BeginCall(tracemalloc_caller *caller)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL) {
        set_caller(caller, tstate, true);
        return;
    }
    PyMutex_LockFlags(&RUNTIME->mutex, _Py_LOCK_DONT_DETACH);
    set_caller(caller, detached_tstate(), false);
}

void
_PyTraceMalloc_EndCall(const tracemalloc_caller *caller)
{
    if (!caller->attached) {
        PyMutex_Unlock(&RUNTIME->mutex);
    }
}


/* --- Reentrancy --------------------------------------------------------- */

// The allocator below a hook may call another one: pymalloc gets what is
// larger than 512 bytes from the raw domain.  A block is traced once, by the
// outermost hook.

// The key may be missing in an interpreter that inherited -X tracemalloc: it
// is taken when the first thread needs it.  Returns false if none is left.
static bool
has_key(const tracemalloc_caller *caller)
{
    Py_tss_t *key = &caller->interp->reentrant_key;
    return PyThread_tss_is_created(key)
           || (caller->interp->tracing && PyThread_tss_create(key) == 0);
}

// What a thread that is not attached has stored: NULL, REENTRANT, or the trace
// of the block that it is freeing or reallocating.
static void *
get_key(const tracemalloc_caller *caller)
{
    Py_tss_t *key = &caller->interp->reentrant_key;
    return PyThread_tss_is_created(key) ? PyThread_tss_get(key) : NULL;
}

// May the calls of a detached thread be traced?  The mark may have been set
// while the thread was attached.
static bool
is_traced_detached(const tracemalloc_caller *caller)
{
    return caller->interp->tracing && get_key(caller) == NULL
           && (caller->tstate == NULL
               || thread_of(caller->tstate)->mark == NULL);
}

// Keep the calls that a detached thread makes from being traced.  False if
// they are not to be traced anyway, or if it has no room for its mark.
static bool
mark_detached(const tracemalloc_caller *caller, void *mark)
{
    return is_traced_detached(caller) && has_key(caller)
           && PyThread_tss_set(&caller->interp->reentrant_key, mark) == 0;
}

// The counterpart.  If tracing was stopped, or even started anew, while the
// thread made the call then the mark is gone already.
static void
unmark_detached(const tracemalloc_caller *caller)
{
    if (PyThread_tss_is_created(&caller->interp->reentrant_key)) {
        // Cannot fail: only a first value may need memory.
        (void)PyThread_tss_set(&caller->interp->reentrant_key, NULL);
    }
}

tracemalloc_removed
_PyTraceMalloc_GetRemoved(void)
{
    tracemalloc_removed removed = {.owner = NULL};
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL) {
        const thread_state *ts = thread_of(tstate);
        removed.trace.ptr = ts->freed_block;
        removed.trace.traceback = ts->freed_traceback;
        removed.owner = ts->freed_owner;
        return removed;
    }
    tracemalloc_caller caller;
    set_caller(&caller, detached_tstate(), false);
    const void *mark = get_key(&caller);
    if (mark != NULL && mark != REENTRANT) {
        removed = *(const tracemalloc_removed *)mark;
    }
    return removed;
}

bool
_PyTraceMalloc_SetReentrant(bool reentrant)
{
    thread_state *ts = thread_of(_PyThreadState_GET());
    bool previous = ts->mark != NULL;
    ts->mark = reentrant ? REENTRANT : NULL;
    return previous;
}


/* --- Allocate ----------------------------------------------------------- */

// The allocator that the hooks of a domain and a level wrap; see
// tracemalloc_install.c.
static inline const PyMemAllocatorEx *
below(PyMemAllocatorDomain domain, int level)
{
    // Pairs with the release in record_below().
    return _Py_atomic_load_ptr_acquire(&RUNTIME->below[domain][level]);
}

// Are calls of an attached thread to be traced?
static inline bool
is_traced(PyThreadState *tstate)
{
    return tstate->interp->tracemalloc.tracing
           && thread_of(tstate)->mark == NULL;
}

// malloc(), calloc(), or realloc() of nothing.
typedef enum { MALLOC, CALLOC, REALLOC } alloc_function;

static inline void *
call_below(const PyMemAllocatorEx *alloc, alloc_function function,
           size_t nelem, size_t elsize)
{
    switch (function) {
        case CALLOC: return alloc->calloc(alloc->ctx, nelem, elsize);
        case REALLOC: return alloc->realloc(alloc->ctx, NULL, elsize);
        default: return alloc->malloc(alloc->ctx, elsize);
    }
}

static inline int
add_trace(const tracemalloc_caller *caller, PyMemAllocatorDomain domain,
          void *ptr, size_t size, tracemalloc_block_origin origin)
{
    if (domain != PYMEM_DOMAIN_RAW && caller->attached) {
        return _PyTraceMalloc_AddBlock(caller->tstate, (uintptr_t)ptr, size,
                                       origin);
    }
    // The allocator below may have let another thread stop tracing.
    if (!caller->interp->tracing) {
        return 0;
    }
    return _PyTraceMalloc_Add(caller, 0, (uintptr_t)ptr, size, origin);
}

static void *
alloc_detached(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
               alloc_function function, size_t nelem, size_t elsize)
{
    tracemalloc_caller caller;
    _PyTraceMalloc_BeginCall(&caller);
    bool traced = mark_detached(&caller, REENTRANT);
    _PyTraceMalloc_EndCall(&caller);

    void *ptr = call_below(alloc, function, nelem, elsize);
    if (!traced) {
        return ptr;
    }
    // Who is calling may have changed by now.
    int res = 0;
    _PyTraceMalloc_BeginCall(&caller);
    if (ptr != NULL) {
        res = add_trace(&caller, domain, ptr, nelem * elsize, BLOCK_NEW);
    }
    unmark_detached(&caller);
    _PyTraceMalloc_EndCall(&caller);
    if (res < 0) {
        alloc->free(alloc->ctx, ptr);
        return NULL;
    }
    return ptr;
}

// Of a thread that is not attached, or is not to be traced.
static Py_NO_INLINE void *
alloc_otherwise(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
                alloc_function function, size_t nelem, size_t elsize)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL && !is_idle()) {
        return alloc_detached(domain, alloc, function, nelem, elsize);
    }
    void *mark = tstate != NULL ? thread_of(tstate)->mark : NULL;
    if (mark != NULL && mark != REENTRANT) {
        // See _PyTraceMalloc_ProbeHooks().
        *(uint8_t *)mark |= DOMAIN_BIT(domain);
    }
    return call_below(alloc, function, nelem, elsize);
}

static inline Py_ALWAYS_INLINE void *
hook_alloc(PyMemAllocatorDomain domain, int level, alloc_function function,
           size_t nelem, size_t elsize)
{
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL || !is_traced(tstate)) {
        return alloc_otherwise(domain, alloc, function, nelem, elsize);
    }
    thread_state *ts = thread_of(tstate);
    ts->mark = REENTRANT;
    void *ptr = call_below(alloc, function, nelem, elsize);
    if (ptr != NULL) {
        tracemalloc_caller caller;
        set_caller(&caller, tstate, true);
        if (add_trace(&caller, domain, ptr, nelem * elsize, BLOCK_NEW) < 0) {
            alloc->free(alloc->ctx, ptr);
            ptr = NULL;
        }
    }
    ts->mark = NULL;
    return ptr;
}


/* --- Free --------------------------------------------------------------- */

static Py_NO_INLINE void
free_detached(const PyMemAllocatorEx *alloc, void *ptr)
{
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller;
    int saved_errno = errno;
    _PyTraceMalloc_BeginCall(&caller);
    _PyTraceMalloc_Remove(&caller, true, &removed);
    // A corrupted block is reported with its traceback.
    bool marked = removed.trace.traceback != _PyTraceMalloc_NO_TRACEBACK
                  && mark_detached(&caller, &removed);
    _PyTraceMalloc_EndCall(&caller);
    errno = saved_errno;

    alloc->free(alloc->ctx, ptr);
    if (marked) {
        saved_errno = errno;
        _PyTraceMalloc_BeginCall(&caller);
        unmark_detached(&caller);
        _PyTraceMalloc_EndCall(&caller);
        errno = saved_errno;
    }
}

static Py_NO_INLINE void
free_raw(PyThreadState *tstate, void *ptr)
{
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller;
    set_caller(&caller, tstate, true);
    _PyTraceMalloc_Remove(&caller, true, &removed);
    thread_state *ts = thread_of(tstate);
    ts->freed_traceback = removed.trace.traceback;
    ts->freed_owner = removed.owner;
}

static inline Py_ALWAYS_INLINE void
hook_free(PyMemAllocatorDomain domain, int level, void *ptr)
{
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    if (ptr == NULL || is_idle()) {
        alloc->free(alloc->ctx, ptr);
        return;
    }
    if (tstate == NULL) {
        free_detached(alloc, ptr);
        return;
    }
    thread_state *ts = thread_of(tstate);
    uintptr_t outer_block = ts->freed_block;
    if (outer_block == (uintptr_t)ptr) {
        // An outer hook has removed the trace.
        alloc->free(alloc->ctx, ptr);
        return;
    }
    if (domain == PYMEM_DOMAIN_RAW) {
        free_raw(tstate, ptr);
    }
    else {
        _PyTraceMalloc_FreeBlock(tstate, (uintptr_t)ptr);
    }
    ts->freed_block = (uintptr_t)ptr;
    alloc->free(alloc->ctx, ptr);
    ts->freed_block = outer_block;
}


/* --- Reallocate --------------------------------------------------------- */

// The block has a new size, and a new address perhaps; its old trace was
// removed, but is still counted.
static void
finish_realloc(const tracemalloc_caller *caller, PyMemAllocatorDomain domain,
               const tracemalloc_removed *removed, void *ptr, size_t size,
               bool traced)
{
    bool had_trace = removed->trace.traceback != _PyTraceMalloc_NO_TRACEBACK;
    if (ptr == NULL) {
        if (had_trace) {
            _PyTraceMalloc_PutBack(caller, removed);
        }
        return;
    }
    if (had_trace) {
        _PyTraceMalloc_Uncount(caller, removed->trace.size);
    }
    if (traced) {
        // Reallocating never fails because of tracing: if even the last room
        // is used up then the block remains without a trace.
        (void)add_trace(caller, domain, ptr, size,
                        (uintptr_t)ptr == removed->trace.ptr ? BLOCK_IN_PLACE
                                                             : BLOCK_MOVED);
    }
}

static void *
realloc_detached(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
                 void *ptr, size_t size)
{
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller;
    _PyTraceMalloc_BeginCall(&caller);
    bool traced = mark_detached(&caller, &removed);
    _PyTraceMalloc_Remove(&caller, false, &removed);
    _PyTraceMalloc_EndCall(&caller);

    void *ptr2 = alloc->realloc(alloc->ctx, ptr, size);

    // Who is calling may have changed by now.
    _PyTraceMalloc_BeginCall(&caller);
    finish_realloc(&caller, domain, &removed, ptr2, size, traced);
    if (traced) {
        unmark_detached(&caller);
    }
    _PyTraceMalloc_EndCall(&caller);
    return ptr2;
}

static Py_NO_INLINE void *
realloc_attached(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
                 PyThreadState *tstate, void *ptr, size_t size)
{
    thread_state *ts = thread_of(tstate);
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller;
    set_caller(&caller, tstate, true);
    bool traced = is_traced(tstate);
    if (domain == PYMEM_DOMAIN_RAW) {
        _PyTraceMalloc_Remove(&caller, false, &removed);
    }
    else {
        _PyTraceMalloc_RemoveBlock(tstate, &removed);
    }
    uintptr_t outer_block = ts->freed_block;
    ts->freed_block = (uintptr_t)ptr;
    ts->freed_traceback = removed.trace.traceback;
    ts->freed_owner = removed.owner;
    if (traced) {
        ts->mark = REENTRANT;
    }
    void *ptr2 = alloc->realloc(alloc->ctx, ptr, size);
    ts->freed_block = outer_block;
    finish_realloc(&caller, domain, &removed, ptr2, size, traced);
    if (traced) {
        ts->mark = NULL;
    }
    return ptr2;
}

static inline Py_ALWAYS_INLINE void *
hook_realloc(PyMemAllocatorDomain domain, int level, void *ptr, size_t size)
{
    if (ptr == NULL) {
        return hook_alloc(domain, level, REALLOC, 1, size);
    }
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    if (is_idle() || (tstate != NULL && (thread_of(tstate)->freed_block
                                         == (uintptr_t)ptr)))
    {
        return alloc->realloc(alloc->ctx, ptr, size);
    }
    if (tstate == NULL) {
        return realloc_detached(domain, alloc, ptr, size);
    }
    return realloc_attached(domain, alloc, tstate, ptr, size);
}


/* --- The hooks ---------------------------------------------------------- */

// `ctx` is still that of the allocator below, see
// _PyTraceMalloc_InstallHooks(), and is not used here.
#define DEFINE_HOOKS(NAME, DOMAIN, LEVEL) \
    static void * \
    NAME ## _malloc ## LEVEL(void *Py_UNUSED(ctx), size_t size) \
    { \
        return hook_alloc(DOMAIN, LEVEL, MALLOC, 1, size); \
    } \
    static void * \
    NAME ## _calloc ## LEVEL(void *Py_UNUSED(ctx), size_t nelem, \
                             size_t elsize) \
    { \
        return hook_alloc(DOMAIN, LEVEL, CALLOC, nelem, elsize); \
    } \
    static void * \
    NAME ## _realloc ## LEVEL(void *Py_UNUSED(ctx), void *ptr, size_t size) \
    { \
        return hook_realloc(DOMAIN, LEVEL, ptr, size); \
    } \
    static void \
    NAME ## _free ## LEVEL(void *Py_UNUSED(ctx), void *ptr) \
    { \
        hook_free(DOMAIN, LEVEL, ptr); \
    }

#define HOOKS(NAME, LEVEL) \
    {NULL, NAME ## _malloc ## LEVEL, NAME ## _calloc ## LEVEL, \
     NAME ## _realloc ## LEVEL, NAME ## _free ## LEVEL}

DEFINE_HOOKS(raw, PYMEM_DOMAIN_RAW, 0)
DEFINE_HOOKS(mem, PYMEM_DOMAIN_MEM, 0)
DEFINE_HOOKS(obj, PYMEM_DOMAIN_OBJ, 0)
DEFINE_HOOKS(raw, PYMEM_DOMAIN_RAW, 1)
DEFINE_HOOKS(mem, PYMEM_DOMAIN_MEM, 1)
DEFINE_HOOKS(obj, PYMEM_DOMAIN_OBJ, 1)
DEFINE_HOOKS(raw, PYMEM_DOMAIN_RAW, 2)
DEFINE_HOOKS(mem, PYMEM_DOMAIN_MEM, 2)
DEFINE_HOOKS(obj, PYMEM_DOMAIN_OBJ, 2)

const PyMemAllocatorEx
_PyTraceMalloc_hooks[_PyTraceMalloc_NUM_LEVELS][3] = {
    {HOOKS(raw, 0), HOOKS(mem, 0), HOOKS(obj, 0)},
    {HOOKS(raw, 1), HOOKS(mem, 1), HOOKS(obj, 1)},
    {HOOKS(raw, 2), HOOKS(mem, 2), HOOKS(obj, 2)},
};


/* --- Reference tracer --------------------------------------------------- */

// A block from a free list has the trace of its previous life; it gets the
// traceback of its new one (bpo-35053).  Returns what the user's tracer does.
int
_PyTraceMalloc_TraceRef(PyObject *op, PyRefTracerEvent event, void *data)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (event == PyRefTracer_CREATE && tstate != NULL && is_traced(tstate)) {
        _PyTraceMalloc_Reattribute(tstate, op);
    }
    PyRefTracer user = (PyRefTracer)_Py_atomic_load_ptr_relaxed(
        &RUNTIME->ref_tracer);
    return user != NULL ? user(op, event, data) : 0;
}
