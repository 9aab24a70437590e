// The hooks through which tracemalloc sees the memory of the process: the
// allocators of PEP 445, and the reference tracer.
//
// Hooks run in the oddest places: in threads that Python does not know, with
// any lock of the runtime held, while threads and interpreters come and go.
// They never take the GIL and never create or attach a thread state.
//
// Each hook has one shape: is the caller to be traced, the allocator below,
// the books.  A trace is taken out of the books before its block is given back
// to the allocator below, which may hand out the same address to another
// thread at once, and put in after the block was received from it.

#include "Python.h"
#include "pycore_object.h"        // _PyType_PreHeaderSize()
#include "pycore_pymem.h"         // _PyMem_ReplaceFunctions()
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // _PyTraceRuntime

// Any non-NULL pointer will do.
#define REENTRANT ((void *)&_PyRuntime.tracemalloc)

#define DOMAIN_BIT(DOMAIN) ((uint8_t)(1 << (DOMAIN)))

static const PyMemAllocatorDomain alloc_domains[] = {
    PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ,
};


/* --- Who is calling ----------------------------------------------------- */

// The thread state of the calling thread, which is not attached, or NULL.
static PyThreadState *
detached_tstate(_PyTraceRuntime *runtime)
{
    if (runtime->tstates_gone
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
identify(_PyTraceCaller *caller, PyThreadState *tstate, bool attached)
{
    caller->tstate = tstate;
    caller->attached = attached;
    caller->any_block = false;
    caller->books = tstate != NULL ? &tstate->interp->tracemalloc
                    : &_PyRuntime._main_interpreter.tracemalloc;
}

void
_PyTraceCaller_BeginLocked(_PyTraceCaller *caller)
{
    caller->runtime = &_PyRuntime.tracemalloc;
    caller->locked = true;
    PyThreadState *tstate = _PyThreadState_GET();
    bool attached = tstate != NULL;
    if (!attached) {
        tstate = detached_tstate(caller->runtime);
    }
    identify(caller, tstate, attached);
}

void
_PyTraceCaller_Begin(_PyTraceCaller *caller)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL) {
        // The lock keeps its thread state and interpreter where they are.
        _PyTraceRuntime_Lock(&_PyRuntime.tracemalloc);
        _PyTraceCaller_BeginLocked(caller);
        return;
    }
    caller->runtime = &_PyRuntime.tracemalloc;
    caller->locked = false;
    identify(caller, tstate, true);
}


/* --- Reentrancy --------------------------------------------------------- */

// The allocator below a hook may call another one: pymalloc gets what is
// larger than 512 bytes from the raw domain.  A block is traced once, by the
// outermost hook.

// The mark of an attached thread is in its thread state: that saves calls to
// the thread library.  Without one to look into, the key of the interpreter
// has to do.
static inline void **
mark_field(PyThreadState *tstate)
{
    return &((_PyThreadStateImpl *)tstate)->tracemalloc.mark;
}

static inline void *
get_mark(const _PyTraceCaller *caller)
{
    void *mark = NULL;
    if (caller->tstate != NULL) {
        mark = *mark_field(caller->tstate);
    }
    if (mark == NULL && !caller->attached) {
        mark = PyThread_tss_get(&caller->books->reentrant_key);
    }
    return mark;
}

static inline int
set_mark(const _PyTraceCaller *caller, void *mark)
{
    if (caller->attached) {
        *mark_field(caller->tstate) = mark;
        return 0;
    }
    return PyThread_tss_set(&caller->books->reentrant_key, mark);
}

// Is a call to be traced, and if so, keep those that it makes from it.
// Returns 1 or 0, or -1 if the thread has no room for its mark.
static inline int
begin_tracing(const _PyTraceCaller *caller)
{
    if (!caller->books->tracing || get_mark(caller) != NULL) {
        return 0;
    }
    return set_mark(caller, REENTRANT) == 0 ? 1 : -1;
}

// The counterpart.  If tracing was stopped, or even started anew, while a
// detached thread made the call then the mark is gone already.
static inline void
end_tracing(const _PyTraceCaller *caller)
{
    if (caller->attached
        || PyThread_tss_is_created(&caller->books->reentrant_key))
    {
        // Cannot fail: only a first value may need memory.
        (void)set_mark(caller, NULL);
    }
}

// Let the mark of a thread whose calls are not to be traced point to a trace
// that is out of the books while its block is freed or reallocated: if the
// block turns out to be corrupted, the error report tells where it was
// allocated.
static inline bool
show_taken(const _PyTraceCaller *caller, _PyTraceTaken *taken)
{
    return taken->room.epoch != 0 && set_mark(caller, taken) == 0;
}

// The trace that a mark points to, or NULL.
static inline const _PyTraceTaken *
as_taken(const void *mark)
{
    return mark == REENTRANT ? NULL : mark;
}

const _PyTraceTaken *
_PyTraceHooks_GetTaken(const _PyTraceCaller *caller)
{
    if (!caller->attached
        && !PyThread_tss_is_created(&caller->books->reentrant_key))
    {
        return NULL;
    }
    return as_taken(get_mark(caller));
}

bool
_PyTraceHooks_SetReentrant(bool reentrant)
{
    void **mark = mark_field(_PyThreadState_GET());
    bool previous = *mark != NULL;
    *mark = reentrant ? REENTRANT : NULL;
    return previous;
}


/* --- Allocate, reallocate, free ----------------------------------------- */

// The allocator that the hooks of a domain wrap.
static const PyMemAllocatorEx *
below(_PyTraceRuntime *runtime, PyMemAllocatorDomain domain)
{
    // Pairs with the release in record_below().
    const struct _tracemalloc_allocators *record =
        _Py_atomic_load_ptr_acquire(&runtime->below);
    switch (domain) {
        case PYMEM_DOMAIN_RAW: return &record->raw;
        case PYMEM_DOMAIN_MEM: return &record->mem;
        default: return &record->obj;
    }
}

// For a thread that is not known to be attached: what it is may change while
// the allocator below runs.

static inline int
enter(_PyTraceCaller *caller)
{
    _PyTraceCaller_Begin(caller);
    int res = begin_tracing(caller);
    _PyTraceCaller_End(caller);
    return res;
}

static inline void
leave(const _PyTraceCaller *before)
{
    if (before->attached) {
        // Saves to find out again who is calling.
        end_tracing(before);
        return;
    }
    _PyTraceCaller caller;
    _PyTraceCaller_Begin(&caller);
    end_tracing(&caller);
    _PyTraceCaller_End(&caller);
}

// The books of an attached thread if its calls are to be traced, else NULL.
static inline _PyTraceBooks *
open_books(PyThreadState *tstate)
{
    _PyTraceBooks *books = &tstate->interp->tracemalloc;
    return books->tracing && *mark_field(tstate) == NULL ? books : NULL;
}

static Py_NO_INLINE int
record(PyMemAllocatorDomain domain, void *ptr, size_t size)
{
    int res = 0;
    _PyTraceCaller caller;
    _PyTraceCaller_Begin(&caller);
    if (caller.books->tracing) {
        res = _PyTraceCaller_Record(&caller, 0, (uintptr_t)ptr, size,
                                    domain == PYMEM_DOMAIN_RAW);
    }
    _PyTraceCaller_End(&caller);
    return res;
}

// Take out the trace of a block that is given back or reallocated.
static inline void
take(_PyTraceCaller *caller, PyMemAllocatorDomain domain, void *ptr,
     bool keep_room, _PyTraceTaken *taken)
{
    if (domain == PYMEM_DOMAIN_RAW || !caller->attached
        || !caller->books->tracing
        || !_PyTraceBooks_TakeOwn(caller->books, (uintptr_t)ptr, keep_room,
                                  taken))
    {
        _PyTraceCaller_Take(caller, 0, (uintptr_t)ptr, keep_room, taken);
    }
}

// Has an attached thread taken out the trace of this block already, in an
// outer hook?
static inline bool
is_taken(PyThreadState *tstate, void *ptr)
{
    const _PyTraceTaken *taken = as_taken(*mark_field(tstate));
    return taken != NULL && taken->trace.ptr == (uintptr_t)ptr
           && taken->trace.domain == 0;
}

// Can nobody have a trace of a block that an attached thread gives back or
// reallocates?  Saves all that follows for an interpreter that does not trace
// while another does.
static inline bool
is_nobodys(_PyTraceRuntime *runtime, PyThreadState *tstate, void *ptr)
{
    PyInterpreterState *interp = tstate->interp;
    // Pairs with the release in open_runtime().
    _PyTraceDirectory *directory =
        _Py_atomic_load_ptr_acquire(&runtime->directory);
    return !interp->tracemalloc.tracing
           && (directory == NULL
               || !_PyTraceDirectory_MayHave(directory, 0, (uintptr_t)ptr))
           && !_PyTraceBooks_SharesObmalloc(interp);
}

// Is there nothing to do for a block that is given back or reallocated?
static inline bool
passes_by(_PyTraceRuntime *runtime, PyThreadState *tstate, void *ptr)
{
    return _PyTraceRuntime_IsIdle(runtime)
           || (tstate != NULL && (is_taken(tstate, ptr)
                                  || is_nobodys(runtime, tstate, ptr)));
}

static inline void
rerecord(_PyTraceCaller *caller, _PyTraceTaken *taken, void *ptr, size_t size,
         PyMemAllocatorDomain domain)
{
    bool shared = domain == PYMEM_DOMAIN_RAW;
    if (!shared && caller->attached
        && _PyTraceBooks_RecordOwn(caller->books, caller->tstate,
                                   (uintptr_t)ptr, size, &taken->room))
    {
        // Room in another table, or in other books, was of no use.
        _PyTraceCaller_Settle(caller, taken, false);
        return;
    }
    _PyTraceCaller_Rerecord(caller, taken, 0, (uintptr_t)ptr, size, shared);
}

// malloc(), calloc(), or realloc() of nothing.
typedef enum { MALLOC, CALLOC, REALLOC } way;

static inline void *
call_below(const PyMemAllocatorEx *alloc, way how, size_t nelem,
           size_t elsize)
{
    switch (how) {
        case CALLOC: return alloc->calloc(alloc->ctx, nelem, elsize);
        case REALLOC: return alloc->realloc(alloc->ctx, NULL, elsize);
        default: return alloc->malloc(alloc->ctx, elsize);
    }
}

static void *
alloc_detached(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
               way how, size_t nelem, size_t elsize)
{
    _PyTraceCaller caller;
    int traced = enter(&caller);
    if (traced < 0) {
        return NULL;
    }
    void *ptr = call_below(alloc, how, nelem, elsize);
    if (!traced) {
        return ptr;
    }
    // Who is calling may have changed by now.
    _PyTraceCaller_Begin(&caller);
    int res = 0;
    if (ptr != NULL && caller.books->tracing) {
        res = _PyTraceCaller_Record(&caller, 0, (uintptr_t)ptr,
                                    nelem * elsize,
                                    domain == PYMEM_DOMAIN_RAW);
    }
    end_tracing(&caller);
    _PyTraceCaller_End(&caller);
    if (res < 0) {
        alloc->free(alloc->ctx, ptr);
        return NULL;
    }
    return ptr;
}

static inline void *
hook_alloc(PyMemAllocatorDomain domain, way how, size_t nelem, size_t elsize)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    const PyMemAllocatorEx *alloc = below(runtime, domain);
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL && !_PyTraceRuntime_IsIdle(runtime)) {
        return alloc_detached(domain, alloc, how, nelem, elsize);
    }
    _PyTraceBooks *books = tstate != NULL ? open_books(tstate) : NULL;
    if (books == NULL) {
        return call_below(alloc, how, nelem, elsize);
    }
    *mark_field(tstate) = REENTRANT;
    void *ptr = call_below(alloc, how, nelem, elsize);
    if (ptr != NULL
        && (domain == PYMEM_DOMAIN_RAW || !books->tracing
            || !_PyTraceBooks_RecordOwn(books, tstate, (uintptr_t)ptr,
                                        nelem * elsize, NULL))
        && record(domain, ptr, nelem * elsize) < 0)
    {
        alloc->free(alloc->ctx, ptr);
        ptr = NULL;
    }
    *mark_field(tstate) = NULL;
    return ptr;
}

// Any block, given back by anybody.
static Py_NO_INLINE void
free_any(PyMemAllocatorDomain domain, const PyMemAllocatorEx *alloc,
         void *ptr)
{
    _PyTraceCaller caller;
    _PyTraceTaken taken;
    _PyTraceCaller_Begin(&caller);
    take(&caller, domain, ptr, false, &taken);
    bool shown = (caller.books->tracing && get_mark(&caller) == NULL
                  && show_taken(&caller, &taken));
    _PyTraceCaller_End(&caller);

    alloc->free(alloc->ctx, ptr);
    if (shown) {
        leave(&caller);
    }
}

static inline void
hook_free(PyMemAllocatorDomain domain, void *ptr)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    const PyMemAllocatorEx *alloc = below(runtime, domain);
    PyThreadState *tstate = _PyThreadState_GET();

    if (ptr == NULL || passes_by(runtime, tstate, ptr)) {
        alloc->free(alloc->ctx, ptr);
        return;
    }
    _PyTraceTaken taken;
    _PyTraceBooks *books = tstate != NULL ? open_books(tstate) : NULL;
    if (books != NULL && domain != PYMEM_DOMAIN_RAW
        && _PyTraceBooks_TakeOwn(books, (uintptr_t)ptr, false, &taken))
    {
        *mark_field(tstate) = &taken;
        alloc->free(alloc->ctx, ptr);
        *mark_field(tstate) = NULL;
        return;
    }
    free_any(domain, alloc, ptr);
}

static void *
hook_realloc(PyMemAllocatorDomain domain, void *ptr, size_t size)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    if (ptr == NULL) {
        return hook_alloc(domain, REALLOC, 1, size);
    }
    const PyMemAllocatorEx *alloc = below(runtime, domain);
    PyThreadState *tstate = _PyThreadState_GET();
    if (passes_by(runtime, tstate, ptr)) {
        return alloc->realloc(alloc->ctx, ptr, size);
    }

    // Without room for its mark the call goes on untraced: reallocating never
    // fails because of tracing.
    _PyTraceCaller caller;
    _PyTraceTaken taken;
    _PyTraceCaller_Begin(&caller);
    bool traced = begin_tracing(&caller) > 0;
    take(&caller, domain, ptr, true, &taken);
    if (traced) {
        (void)show_taken(&caller, &taken);
    }
    _PyTraceCaller_End(&caller);

    void *ptr2 = alloc->realloc(alloc->ctx, ptr, size);

    _PyTraceCaller_Begin(&caller);
    if (ptr2 != NULL && traced && caller.books->tracing) {
        rerecord(&caller, &taken, ptr2, size, domain);
    }
    else {
        _PyTraceCaller_Settle(&caller, &taken, ptr2 == NULL);
    }
    if (traced) {
        end_tracing(&caller);
    }
    _PyTraceCaller_End(&caller);
    return ptr2;
}


/* --- The hooks ---------------------------------------------------------- */

// `ctx` is still that of the allocator below, see _PyTraceHooks_Install(), and
// is not used here.
#define DEFINE_HOOKS(NAME, DOMAIN) \
    static void * \
    NAME ## _malloc(void *Py_UNUSED(ctx), size_t size) \
    { \
        return hook_alloc(DOMAIN, MALLOC, 1, size); \
    } \
    static void * \
    NAME ## _calloc(void *Py_UNUSED(ctx), size_t nelem, size_t elsize) \
    { \
        return hook_alloc(DOMAIN, CALLOC, nelem, elsize); \
    } \
    static void * \
    NAME ## _realloc(void *Py_UNUSED(ctx), void *ptr, size_t size) \
    { \
        return hook_realloc(DOMAIN, ptr, size); \
    } \
    static void \
    NAME ## _free(void *Py_UNUSED(ctx), void *ptr) \
    { \
        hook_free(DOMAIN, ptr); \
    }

DEFINE_HOOKS(raw, PYMEM_DOMAIN_RAW)
DEFINE_HOOKS(mem, PYMEM_DOMAIN_MEM)
DEFINE_HOOKS(obj, PYMEM_DOMAIN_OBJ)

#define HOOKS(NAME) \
    {NULL, NAME ## _malloc, NAME ## _calloc, NAME ## _realloc, NAME ## _free}

static const PyMemAllocatorEx raw_hooks = HOOKS(raw);
static const PyMemAllocatorEx mem_hooks = HOOKS(mem);
static const PyMemAllocatorEx obj_hooks = HOOKS(obj);

static const PyMemAllocatorEx *
hooks_of(PyMemAllocatorDomain domain)
{
    switch (domain) {
        case PYMEM_DOMAIN_RAW: return &raw_hooks;
        case PYMEM_DOMAIN_MEM: return &mem_hooks;
        default: return &obj_hooks;
    }
}


/* --- Reference tracer --------------------------------------------------- */

static Py_NO_INLINE void
reattribute_any(uintptr_t ptr)
{
    _PyTraceCaller caller;
    _PyTraceCaller_Begin(&caller);
    _PyTraceCaller_Reattribute(&caller, ptr);
    _PyTraceCaller_End(&caller);
}

// A block from a free list has the trace of its previous life; give it the
// traceback of its new one (bpo-35053).
static Py_NO_INLINE void
reattribute(PyObject *op)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate == NULL || !tstate->interp->tracemalloc.tracing) {
        return;
    }
    uintptr_t ptr = (uintptr_t)op - _PyType_PreHeaderSize(Py_TYPE(op));
    if (!_PyTraceBooks_ReattributeOwn(&tstate->interp->tracemalloc, tstate,
                                      ptr))
    {
        reattribute_any(ptr);
    }
}

// Returns what the user's tracer does.
static int
trace_ref(PyObject *op, PyRefTracerEvent event, void *data)
{
    PyRefTracer user = (PyRefTracer)_Py_atomic_load_ptr_relaxed(
        &_PyRuntime.tracemalloc.ref_tracer);
    if (event == PyRefTracer_CREATE) {
        reattribute(op);
    }
    return user != NULL ? user(op, event, data) : 0;
}

static PyRefTracer
get_tracer_slot(void)
{
    return (PyRefTracer)_Py_atomic_load_ptr_relaxed(
        &_PyRuntime.ref_tracer.tracer_func);
}

static void
set_tracer_slot(PyRefTracer tracer)
{
    _Py_atomic_store_ptr_relaxed(&_PyRuntime.ref_tracer.tracer_func,
                                 (void *)tracer);
}

// There is one slot for a tracer.  Ours takes the place of the user's function
// there and calls it; the user's data stays where it is.
void
_PyTraceMalloc_SetRefTracer(PyRefTracer tracer, void *data)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    _Py_atomic_store_ptr_relaxed(&_PyRuntime.ref_tracer.tracer_data, data);
    _Py_atomic_store_ptr_relaxed(&runtime->ref_tracer, (void *)tracer);
    if (get_tracer_slot() != trace_ref) {
        set_tracer_slot(tracer);
    }
    _PyTraceRuntime_Unlock(runtime);
}

PyRefTracer
_PyTraceMalloc_GetRefTracer(void **data)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    PyRefTracer tracer = runtime->ref_tracer;
    if (data != NULL) {
        *data = _PyRuntime.ref_tracer.tracer_data;
    }
    _PyTraceRuntime_Unlock(runtime);
    return tracer;
}


/* --- In and out --------------------------------------------------------- */

static bool
same_functions(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b)
{
    return a->malloc == b->malloc && a->calloc == b->calloc
           && a->realloc == b->realloc && a->free == b->free;
}

static bool
same_allocator(const PyMemAllocatorEx *a, const PyMemAllocatorEx *b)
{
    return a->ctx == b->ctx && same_functions(a, b);
}

static bool
same_allocators(const struct _tracemalloc_allocators *a,
                const struct _tracemalloc_allocators *b)
{
    return same_allocator(&a->raw, &b->raw) && same_allocator(&a->mem, &b->mem)
           && same_allocator(&a->obj, &b->obj);
}

// What the hooks of a domain have below them, or would have if they were put
// in now.  Returns true if they are in.
//
// They may be in without being on top: others may be installed over them.
// They are not in any more if what they have below them is on top, or what has
// nobody's hooks below it: whoever had saved that has set it again.
static bool
peek(_PyTraceRuntime *runtime, PyMemAllocatorDomain domain,
     PyMemAllocatorEx *alloc)
{
    PyMem_GetAllocator(domain, alloc);
    bool covered = (runtime->hooked & DOMAIN_BIT(domain)) != 0
                   && !same_allocator(alloc, below(runtime, domain))
                   && !_PyMem_IsBuiltinAllocator(alloc);
    if (covered || same_functions(alloc, hooks_of(domain))) {
        *alloc = *below(runtime, domain);
        return true;
    }
    return false;
}

// A record of these allocators, taken out of the list; NULL if there is none.
static struct _tracemalloc_allocators *
take_record(_PyTraceRuntime *runtime,
            const struct _tracemalloc_allocators *wanted)
{
    struct _tracemalloc_allocators **link = &runtime->below->previous;
    while (*link != NULL) {
        struct _tracemalloc_allocators *record = *link;
        if (same_allocators(record, wanted)) {
            *link = record->previous;
            return record;
        }
        link = &record->previous;
    }
    return NULL;
}

// Publish a record of what is below the hooks.
static int
record_below(_PyTraceRuntime *runtime)
{
    struct _tracemalloc_allocators now, *record = NULL;
    (void)peek(runtime, PYMEM_DOMAIN_RAW, &now.raw);
    (void)peek(runtime, PYMEM_DOMAIN_MEM, &now.mem);
    (void)peek(runtime, PYMEM_DOMAIN_OBJ, &now.obj);
    if (runtime->below != NULL) {
        if (same_allocators(runtime->below, &now)) {
            return 0;
        }
        record = take_record(runtime, &now);
    }
    if (record == NULL) {
        // Not from Python's allocators, since it outlives them.
        record = malloc(sizeof(*record));
        if (record == NULL) {
            return -1;
        }
        *record = now;
    }
    record->previous = runtime->below;
    // Pairs with the acquire in below().
    _Py_atomic_store_ptr_release(&runtime->below, record);
    return 0;
}

static bool
install_domain(_PyTraceRuntime *runtime, PyMemAllocatorDomain domain)
{
    PyMemAllocatorEx alloc;
    if (!peek(runtime, domain, &alloc)
        && !_PyMem_ReplaceFunctions(domain, below(runtime, domain),
                                    hooks_of(domain)))
    {
        return false;
    }
    runtime->hooked |= DOMAIN_BIT(domain);
    return true;
}

// A caller loads the function and its ctx one after the other and may see one
// from before and one from after.  Therefore ctx stays as it is and functions
// are replaced one by one: every mixture is valid.
int
_PyTraceHooks_Install(_PyTraceRuntime *runtime)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(alloc_domains); ) {
        if (record_below(runtime) < 0) {
            return -1;
        }
        // If another thread sets an allocator meanwhile, look again.
        if (install_domain(runtime, alloc_domains[i])) {
            i++;
        }
    }
    set_tracer_slot(trace_ref);
    return 0;
}

// Hooks which have others on top of them cannot be taken out, for these would
// be lost.  They stay and only pass calls on.
void
_PyTraceHooks_Remove(_PyTraceRuntime *runtime)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(alloc_domains); i++) {
        PyMemAllocatorDomain domain = alloc_domains[i];
        if (!(runtime->hooked & DOMAIN_BIT(domain))) {
            continue;
        }
        PyMemAllocatorEx hooks = *hooks_of(domain);
        hooks.ctx = below(runtime, domain)->ctx;
        if (_PyMem_ReplaceFunctions(domain, &hooks, below(runtime, domain))) {
            runtime->hooked &= (uint8_t)~DOMAIN_BIT(domain);
        }
    }
    set_tracer_slot(runtime->ref_tracer);
}
