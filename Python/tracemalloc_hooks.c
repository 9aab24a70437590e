// The hooks through which tracemalloc sees the memory of the process, put on
// top of the allocators of PEP 445.
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
#include "pycore_tracemalloc_shared.h"  // thread_of()

#define NUM_DOMAINS _PyTraceMalloc_NUM_DOMAINS
#define NUM_LEVELS _PyTraceMalloc_NUM_LEVELS

#define DOMAIN_BIT(DOMAIN) ((uint8_t)(1 << (DOMAIN)))
// For the lowest hooks of the raw domain.
#define LOWEST_BIT DOMAIN_BIT(NUM_DOMAINS)


/* --- Reentrancy --------------------------------------------------------- */

// The allocator below a hook may call another one: pymalloc gets what is
// larger than 512 bytes from the raw domain.  A block is traced once, by the
// outermost hook.  That hook also notes which block is being freed, and the
// traceback that it had, for the report of a fatal error.

static inline bool
had_trace(const tracemalloc_removed *removed)
{
    return removed->trace.traceback != _PyTraceMalloc_NO_TRACEBACK;
}

// Mark the thread as reentrant, and note the block that it frees: in its thread
// state or, if it is not attached, in the interpreter's key.  False if it must
// not be traced, or if the system has no room for a note.
static inline Py_ALWAYS_INLINE bool
enter(const tracemalloc_caller *caller, tracemalloc_removed *removed)
{
    thread_state *ts = caller->tstate != NULL ? thread_of(caller->tstate)
                                              : NULL;
    // A thread may have become reentrant before it was detached.
    bool traced = caller->interp->tracing && (ts == NULL || !ts->reentrant);
    if (!caller->attached) {
        // The key is missing in an interpreter that inherited -X tracemalloc
        // until a thread needs it.
        Py_tss_t *key = &caller->interp->reentrant_key;
        return traced && PyThread_tss_create(key) == 0
               && PyThread_tss_get(key) == NULL
               && PyThread_tss_set(key, removed) == 0;
    }
    if (ts->freed_block == 0 && had_trace(removed)) {
        ts->freed_block = removed->trace.ptr;
        ts->freed_traceback = removed->trace.traceback;
        ts->freed_owner = removed->owner;
    }
    ts->reentrant |= traced;
    return traced;
}

// The counterpart; `traced` is what enter() has returned.
static inline Py_ALWAYS_INLINE void
leave(const tracemalloc_caller *caller, const tracemalloc_removed *removed,
      bool traced)
{
    if (caller->attached) {
        thread_state *ts = thread_of(caller->tstate);
        if (ts->freed_block == removed->trace.ptr) {
            ts->freed_block = 0;
        }
        ts->reentrant &= !traced;
    }
    // If tracing was stopped, or even started anew, while the thread made the
    // call then the note is gone already.
    else if (traced && PyThread_tss_is_created(&caller->interp->reentrant_key))
    {
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
    Py_tss_t *key = &interp_of(_PyTraceMalloc_DetachedThread())->reentrant_key;
    const tracemalloc_removed *noted =
        PyThread_tss_is_created(key) ? PyThread_tss_get(key) : NULL;
    return noted != NULL ? *noted : removed;
}


/* --- Any call ----------------------------------------------------------- */

typedef enum { MALLOC, CALLOC, REALLOC, FREE } alloc_function;

// The allocator that the hooks of a domain wrap; see below, Install
// and remove.
static inline const PyMemAllocatorEx *
below(PyMemAllocatorDomain domain, int level)
{
    // Pairs with the release in install_domain().
    const tracemalloc_allocator *record = _Py_atomic_load_ptr_acquire(
        &RUNTIME->below[level][domain]);
    return &record->alloc;
}

static inline void *
call_below(const PyMemAllocatorEx *alloc, alloc_function function, void *ptr,
           size_t nelem, size_t elsize)
{
    switch (function) {
        case MALLOC: return alloc->malloc(alloc->ctx, elsize);
        case CALLOC: return alloc->calloc(alloc->ctx, nelem, elsize);
        case REALLOC: return alloc->realloc(alloc->ctx, ptr, elsize);
        case FREE: alloc->free(alloc->ctx, ptr); return NULL;
    }
    Py_UNREACHABLE();
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
        return 1;
    }
    return _PyTraceMalloc_Add(caller, 0, (uintptr_t)ptr, size, origin);
}

// Remove the trace of a block, if there is one, and note it.  Returns what
// enter() does.
static inline Py_ALWAYS_INLINE bool
begin(const tracemalloc_caller *caller, PyMemAllocatorDomain domain,
      alloc_function function, tracemalloc_removed *removed)
{
    if (domain != PYMEM_DOMAIN_RAW && caller->attached) {
        _PyTraceMalloc_RemoveBlock(caller->tstate, removed);
    }
    else if (removed->trace.ptr != 0) {
        // NULL is no block, though PyTraceMalloc_Track() may have got it.
        _PyTraceMalloc_Remove(caller, removed);
    }
    if (function == FREE && had_trace(removed)) {
        _PyTraceMalloc_CountRemove(caller, removed->trace.size);
    }
    return (function != FREE || had_trace(removed)) && enter(caller, removed);
}

// After a realloc(): the old trace was removed, and is still counted.
static inline Py_ALWAYS_INLINE void
end_realloc(const tracemalloc_caller *caller, PyMemAllocatorDomain domain,
            const tracemalloc_removed *removed, bool traced, void *ptr,
            size_t size)
{
    if (ptr == NULL) {
        if (had_trace(removed)) {
            _PyTraceMalloc_PutBack(caller, removed);
        }
        return;
    }
    _PyTraceMalloc_CountChange(caller, removed->trace.size,
                               traced ? size : 0);
    if (traced && add_trace(caller, domain, ptr, size, BLOCK_REALLOCATED) != 0)
    {
        // It has no trace, but realloc() does not fail because of that.
        _PyTraceMalloc_CountRemove(caller, size);
    }
}

// The counterpart of begin(): `ptr` is what the call has returned.  -1 if
// there is no memory for the trace of a new block.
static inline Py_ALWAYS_INLINE int
end(const tracemalloc_caller *caller, PyMemAllocatorDomain domain,
    alloc_function function, const tracemalloc_removed *removed, bool traced,
    void *ptr, size_t size)
{
    int res = 0;
    if (function != FREE && removed->trace.ptr != 0) {
        end_realloc(caller, domain, removed, traced, ptr, size);
    }
    else if (traced && ptr != NULL) {
        res = add_trace(caller, domain, ptr, size, BLOCK_NEW);
    }
    leave(caller, removed, traced);
    return res;
}

// Any call of a thread that is not attached.  `ptr` is NULL if a block is
// allocated.
static Py_NO_INLINE void *
call_unattached(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
                alloc_function function, void *ptr, size_t n, size_t size)
{
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller;
    int res = 0, saved_errno = errno;
    _PyTraceMalloc_BeginCall(&caller);
    bool traced = begin(&caller, domain, function, &removed);
    _PyTraceMalloc_EndCall(&caller);
    errno = saved_errno;
    void *result = call_below(alloc, function, ptr, n, size);
    if (traced || had_trace(&removed)) {
        saved_errno = errno;
        // Who is calling may have changed by now.
        _PyTraceMalloc_BeginCall(&caller);
        res = end(&caller, domain, function, &removed, traced, result,
                  n * size);
        _PyTraceMalloc_EndCall(&caller);
        errno = saved_errno;
    }
    if (res < 0) {
        alloc->free(alloc->ctx, result);
        return NULL;
    }
    return result;
}


/* --- Allocate, reallocate, free ----------------------------------------- */

static inline Py_ALWAYS_INLINE void *
hook_alloc(PyMemAllocatorDomain domain, int level, alloc_function function,
           size_t nelem, size_t elsize)
{
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL && !is_idle()) {
        return call_unattached(domain, alloc, function, NULL, nelem, elsize);
    }
    if (tstate == NULL || !tstate->interp->tracemalloc.tracing
        || thread_of(tstate)->reentrant)
    {
        if (tstate != NULL && thread_of(tstate)->reentrant) {
            thread_of(tstate)->reached |=
                DOMAIN_BIT(domain)
                | (domain == PYMEM_DOMAIN_RAW && level == 0 ? LOWEST_BIT : 0);
        }
        return call_below(alloc, function, NULL, nelem, elsize);
    }
    thread_state *ts = thread_of(tstate);
    ts->reentrant = true;
    void *ptr = call_below(alloc, function, NULL, nelem, elsize);
    if (ptr != NULL) {
        tracemalloc_caller caller = attached_caller(tstate);
        if (add_trace(&caller, domain, ptr, nelem * elsize, BLOCK_NEW) < 0) {
            alloc->free(alloc->ctx, ptr);
            ptr = NULL;
        }
    }
    ts->reentrant = false;
    return ptr;
}

// Has the interpreter's object allocator no block that anybody traces?
static inline Py_ALWAYS_INLINE bool
has_untraced_objects(PyThreadState *tstate)
{
    return WITH_GIL && !tstate->interp->tracemalloc.tracing
           && _Py_atomic_load_int_relaxed(&RUNTIME->nshared) == 0
           && !shares_obmalloc(&tstate->interp->tracemalloc);
}

// Can the call go straight to the allocator below?  There is no block, nobody
// traces, an outer hook is at work; or nobody can have a trace of the block,
// and the caller adds none.
static inline Py_ALWAYS_INLINE bool
has_no_trace(PyThreadState *tstate, PyMemAllocatorDomain domain,
             alloc_function function, void *ptr)
{
    if (ptr == NULL || is_idle()) {
        return true;
    }
    if (tstate != NULL && thread_of(tstate)->freed_block == (uintptr_t)ptr) {
        return true;
    }
    if (domain == PYMEM_DOMAIN_RAW) {
        bool traced = tstate == NULL || tstate->interp->tracemalloc.tracing;
        return (function == FREE || !traced)
               && !may_be_listed(0, (uintptr_t)ptr);
    }
    return tstate != NULL && has_untraced_objects(tstate);
}

// What an attached thread does less often than the hooks below.
static Py_NO_INLINE void *
call_attached(PyThreadState *tstate, PyMemAllocatorDomain domain,
              const PyMemAllocatorEx *alloc, alloc_function function,
              void *ptr, size_t size)
{
    tracemalloc_removed removed = {.trace = {.ptr = (uintptr_t)ptr}};
    tracemalloc_caller caller = attached_caller(tstate);
    int saved_errno = errno;
    bool traced = begin(&caller, domain, function, &removed);
    errno = saved_errno;
    void *result = call_below(alloc, function, ptr, 1, size);
    saved_errno = errno;
    (void)end(&caller, domain, function, &removed, traced, result, size);
    errno = saved_errno;
    return result;
}

static inline Py_ALWAYS_INLINE void *
hook_realloc(PyMemAllocatorDomain domain, int level, void *ptr, size_t size)
{
    if (ptr == NULL) {
        return hook_alloc(domain, level, REALLOC, 1, size);
    }
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    if (has_no_trace(tstate, domain, REALLOC, ptr)) {
        return alloc->realloc(alloc->ctx, ptr, size);
    }
    if (tstate == NULL) {
        return call_unattached(domain, alloc, REALLOC, ptr, 1, size);
    }
    return call_attached(tstate, domain, alloc, REALLOC, ptr, size);
}

// What nearly every call that frees a traced block does.
static Py_NO_INLINE void
free_attached(PyThreadState *tstate, const PyMemAllocatorEx *alloc, void *ptr)
{
    thread_of(tstate)->freed_block = (uintptr_t)ptr;
    _PyTraceMalloc_FreeBlock(tstate, (uintptr_t)ptr);
    alloc->free(alloc->ctx, ptr);
    thread_of(tstate)->freed_block = 0;
}

static inline Py_ALWAYS_INLINE void
hook_free(PyMemAllocatorDomain domain, int level, void *ptr)
{
    const PyMemAllocatorEx *alloc = below(domain, level);
    PyThreadState *tstate = _PyThreadState_GET();
    // Without a GIL, the block may be one that another interpreter traces.
    if (domain != PYMEM_DOMAIN_RAW && ptr != NULL && tstate != NULL
        && (tstate->interp->tracemalloc.tracing || !WITH_GIL)
        && thread_of(tstate)->freed_block == 0)
    {
        free_attached(tstate, alloc, ptr);
    }
    else if (has_no_trace(tstate, domain, FREE, ptr)) {
        alloc->free(alloc->ctx, ptr);
    }
    else if (tstate == NULL) {
        (void)call_unattached(domain, alloc, FREE, ptr, 1, 0);
    }
    else {
        (void)call_attached(tstate, domain, alloc, FREE, ptr, 0);
    }
}


/* --- The hooks ---------------------------------------------------------- */

// `ctx` is still that of the allocator below, see install_domain(), and is not
// used here.
#define DEFINE_HOOKS(NAME, DOMAIN, LEVEL) \
    static void * \
    NAME ## _malloc(void *Py_UNUSED(ctx), size_t size) \
    { \
        return hook_alloc(DOMAIN, LEVEL, MALLOC, 1, size); \
    } \
    static void * \
    NAME ## _calloc(void *Py_UNUSED(ctx), size_t nelem, size_t elsize) \
    { \
        return hook_alloc(DOMAIN, LEVEL, CALLOC, nelem, elsize); \
    } \
    static void * \
    NAME ## _realloc(void *Py_UNUSED(ctx), void *ptr, size_t size) \
    { \
        return hook_realloc(DOMAIN, LEVEL, ptr, size); \
    } \
    static void \
    NAME ## _free(void *Py_UNUSED(ctx), void *ptr) \
    { \
        hook_free(DOMAIN, LEVEL, ptr); \
    }

#define DEFINE_LEVEL(LEVEL) \
    DEFINE_HOOKS(raw ## LEVEL, PYMEM_DOMAIN_RAW, LEVEL) \
    DEFINE_HOOKS(mem ## LEVEL, PYMEM_DOMAIN_MEM, LEVEL) \
    DEFINE_HOOKS(obj ## LEVEL, PYMEM_DOMAIN_OBJ, LEVEL)

DEFINE_LEVEL(0)
DEFINE_LEVEL(1)
DEFINE_LEVEL(2)
DEFINE_LEVEL(3)

#define HOOKS(NAME) \
    {NULL, NAME ## _malloc, NAME ## _calloc, NAME ## _realloc, NAME ## _free}

// By level and domain.
static const PyMemAllocatorEx hooks[NUM_LEVELS][NUM_DOMAINS] = {
    {HOOKS(raw0), HOOKS(mem0), HOOKS(obj0)},
    {HOOKS(raw1), HOOKS(mem1), HOOKS(obj1)},
    {HOOKS(raw2), HOOKS(mem2), HOOKS(obj2)},
    {HOOKS(raw3), HOOKS(mem3), HOOKS(obj3)},
};


/* --- Install and remove ------------------------------------------------- */

// Put hooks on top of a domain.  There are three cases:
//
// - They are on top; or were taken out, and somebody who had saved them has
//   set them again.
// - On top is what the hooks have below them, or an allocator of CPython's:
//   whoever had saved that has set it again.  The same hooks go in again.
// - Else somebody has set an allocator, which may pass calls on to the hooks,
//   all, some or none.  The hooks of the next level go in on top of it.  A
//   level is used once, so that a call cannot go round in circles.  When all
//   are used, a call tells: if it reaches hooks then these have to do.

uint8_t
_PyTraceMalloc_ProbeHooks(void)
{
    thread_state *ts = thread_of(_PyThreadState_GET());
    bool reentrant = ts->reentrant;
    ts->reentrant = true;
    ts->reached = 0;
    PyMem_RawFree(PyMem_RawMalloc(1));
    PyMem_Free(PyMem_Malloc(1));
    PyObject_Free(PyObject_Malloc(1));
    ts->reentrant = reentrant;
    return ts->reached;
}

static bool
same_allocator(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b)
{
    return a->ctx == b->ctx && a->malloc == b->malloc && a->calloc == b->calloc
           && a->realloc == b->realloc && a->free == b->free;
}

// Find or make the record of an allocator.  NULL if there is no memory.
static tracemalloc_allocator *
record_allocator(const PyMemAllocatorEx *alloc)
{
    tracemalloc_allocator *record = RUNTIME->allocators;
    while (record != NULL && !same_allocator(&record->alloc, alloc)) {
        record = record->next;
    }
    if (record == NULL) {
        // Not from Python's allocators, since it outlives them.
        record = malloc(sizeof(*record));
        if (record != NULL) {
            record->alloc = *alloc;
            record->next = RUNTIME->allocators;
            RUNTIME->allocators = record;
        }
    }
    return record;
}

// The level of the hooks that go in on top of an allocator; -1 if no hooks are
// needed.
static int
choose_level(PyMemAllocatorDomain domain, const PyMemAllocatorEx *top,
             bool reached)
{
    int nused = RUNTIME->nused[domain];
    for (int level = 0; level < NUM_LEVELS; level++) {
        if (top->malloc == hooks[level][domain].malloc) {
            RUNTIME->nlevels[domain] = (uint8_t)(level + 1);
            return -1;
        }
    }
    if (_PyMem_IsBuiltinAllocator(top)) {
        return 0;
    }
    for (int level = 0; level < nused; level++) {
        if (same_allocator(top, below(domain, level))) {
            return level;
        }
    }
    if (nused < NUM_LEVELS) {
        return nused;
    }
    if (reached) {
        return -1;
    }
    // One that was in before stop() may be part of what is on top now.
    return Py_MIN(RUNTIME->nlevels[domain], NUM_LEVELS - 1);
}

// A caller loads the function and its ctx one after the other and may see one
// from before and one from after.  Therefore ctx stays as it is and functions
// are replaced one by one: every mixture is valid.
static int
install_domain(PyMemAllocatorDomain domain, bool reached)
{
    PyMemAllocatorEx top;
    int level;
    do {
        PyMem_GetAllocator(domain, &top);
        level = choose_level(domain, &top, reached);
        if (level < 0) {
            return 0;
        }
        tracemalloc_allocator *record = record_allocator(&top);
        if (record == NULL) {
            return -1;
        }
        // Pairs with the acquire in below().
        _Py_atomic_store_ptr_release(&RUNTIME->below[level][domain], record);
        // It fails if somebody else has set an allocator meanwhile.
    } while (!_PyMem_ReplaceFunctions(domain, &top, &hooks[level][domain]));
    RUNTIME->nlevels[domain] = (uint8_t)(level + 1);
    RUNTIME->nused[domain] = Py_MAX(RUNTIME->nused[domain],
                                    (uint8_t)(level + 1));
    return 0;
}

const PyMemAllocatorEx *
_PyTraceMalloc_RawAllocatorBelow(uint8_t reached)
{
    PyMemAllocatorEx top;
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &top);
    if (reached & LOWEST_BIT
        || top.malloc == hooks[0][PYMEM_DOMAIN_RAW].malloc)
    {
        return below(PYMEM_DOMAIN_RAW, 0);
    }
    // What is there may have them below it, and what was there may be gone.
    return &_PyMem_LibcAllocator;
}

int
_PyTraceMalloc_InstallHooks(uint8_t reached)
{
    for (int domain = 0; domain < NUM_DOMAINS; domain++) {
        if (install_domain(domain, reached & DOMAIN_BIT(domain)) < 0) {
            return -1;
        }
    }
    return 0;
}

// Hooks which have others on top of them cannot be taken out, for these would
// be lost.  They stay and only pass calls on.
void
_PyTraceMalloc_RemoveHooks(void)
{
    for (int domain = 0; domain < NUM_DOMAINS; domain++) {
        int level = RUNTIME->nlevels[domain] - 1;
        if (level < 0) {
            continue;
        }
        PyMemAllocatorEx top = hooks[level][domain];
        top.ctx = below(domain, level)->ctx;
        if (_PyMem_ReplaceFunctions(domain, &top, below(domain, level))) {
            RUNTIME->nlevels[domain] = (uint8_t)level;
        }
    }
}
