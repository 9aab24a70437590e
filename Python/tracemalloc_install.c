// Putting tracemalloc's hooks in, and taking them out.
//
// Hooks are put in by replacing the functions of an allocator, one by one,
// while its ctx stays.  A caller loads the function and the ctx one after the
// other and may see one from before and one from after: every mixture is
// valid.
//
// Others set allocators, too.  So where there are to be hooks:
//
// - If a call reaches hooks, they are in, on top or below somebody else's
//   allocator.
// - If what the hooks had below them is on top, or what has nobody's hooks
//   below it, then whoever had saved that has set it again.
// - Else somebody has set an allocator without chaining.  Or it is chained,
//   but did not need the hooks for this call.  So others go in on top of it,
//   of the next level, which have below them what is on top now; a level is
//   used once, so that a call cannot go round in circles.
//
// All with the runtime's mutex held, unless noted.

#include "Python.h"
#include "pycore_pymem.h"         // _PyMem_ReplaceFunctions()
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // _PyTraceMalloc_hooks

#define RUNTIME (&_PyRuntime.tracemalloc)

#define DOMAIN_BIT(DOMAIN) ((uint8_t)(1 << (DOMAIN)))

static const PyMemAllocatorDomain alloc_domains[] = {
    PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ,
};


/* --- Allocators --------------------------------------------------------- */

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

static const PyMemAllocatorEx *
below(PyMemAllocatorDomain domain)
{
    return RUNTIME->below[domain][RUNTIME->level[domain]];
}

const PyMemAllocatorEx *
_PyTraceMalloc_RawAllocator(void)
{
    return below(PYMEM_DOMAIN_RAW);
}

// Without the mutex.
uint8_t
_PyTraceMalloc_ProbeHooks(void)
{
    _PyThreadStateImpl *tstate = (_PyThreadStateImpl *)_PyThreadState_GET();
    struct _tracemalloc_thread_state *ts = &tstate->tracemalloc;
    void *mark = ts->mark;
    uint8_t reached = 0;
    ts->mark = &reached;
    PyMem_RawFree(PyMem_RawMalloc(1));
    PyMem_Free(PyMem_Malloc(1));
    PyObject_Free(PyObject_Malloc(1));
    ts->mark = mark;
    return reached;
}

// Publish what is to be below the hooks of a level.  There are as many records
// as there were different allocators.
static int
record_below(PyMemAllocatorDomain domain, int level,
             const PyMemAllocatorEx *allocator)
{
    struct _tracemalloc_record *record = RUNTIME->records;
    while (record != NULL && !same_allocator(&record->allocator, allocator)) {
        record = record->previous;
    }
    if (record == NULL) {
        // Not from Python's allocators, since it outlives them.
        record = malloc(sizeof(*record));
        if (record == NULL) {
            return -1;
        }
        record->allocator = *allocator;
        record->previous = RUNTIME->records;
        RUNTIME->records = record;
    }
    // Pairs with the acquire in below() of tracemalloc_hooks.c.
    _Py_atomic_store_ptr_release(&RUNTIME->below[domain][level],
                                 &record->allocator);
    return 0;
}


/* --- Reference tracer --------------------------------------------------- */

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
    PyMutex_LockFlags(&RUNTIME->mutex, _Py_LOCK_DONT_DETACH);
    _Py_atomic_store_ptr_relaxed(&_PyRuntime.ref_tracer.tracer_data, data);
    _Py_atomic_store_ptr_relaxed(&RUNTIME->ref_tracer, (void *)tracer);
    if (get_tracer_slot() != _PyTraceMalloc_TraceRef) {
        set_tracer_slot(tracer);
    }
    PyMutex_Unlock(&RUNTIME->mutex);
}

PyRefTracer
_PyTraceMalloc_GetRefTracer(void **data)
{
    PyMutex_LockFlags(&RUNTIME->mutex, _Py_LOCK_DONT_DETACH);
    PyRefTracer tracer = RUNTIME->ref_tracer;
    if (data != NULL) {
        *data = _PyRuntime.ref_tracer.tracer_data;
    }
    PyMutex_Unlock(&RUNTIME->mutex);
    return tracer;
}


/* --- In and out --------------------------------------------------------- */

// The level of the hooks that are to go in on top; -1 if none are.
static int
choose_level(PyMemAllocatorDomain domain, const PyMemAllocatorEx *top,
             bool reached)
{
    int level = RUNTIME->level[domain];
    bool hooked = RUNTIME->hooked & DOMAIN_BIT(domain);
    if (reached || same_functions(top, &_PyTraceMalloc_hooks[level][domain])) {
        // Somebody may have put them in again who had saved them.
        RUNTIME->hooked |= DOMAIN_BIT(domain);
        return -1;
    }
    if (!hooked || _PyMem_IsBuiltinAllocator(top)) {
        return 0;
    }
    if (same_allocator(top, below(domain))) {
        return level;
    }
    return level + 1 < _PyTraceMalloc_NUM_LEVELS ? level + 1 : -1;
}

static int
install_domain(PyMemAllocatorDomain domain, bool reached)
{
    PyMemAllocatorEx top;
    int level;
    do {
        // Again if somebody has set another allocator meanwhile.
        PyMem_GetAllocator(domain, &top);
        level = choose_level(domain, &top, reached);
        if (level < 0) {
            return 0;
        }
        if (record_below(domain, level, &top) < 0) {
            return -1;
        }
    } while (!_PyMem_ReplaceFunctions(domain, &top,
                                      &_PyTraceMalloc_hooks[level][domain]));
    RUNTIME->level[domain] = (uint8_t)level;
    RUNTIME->hooked |= DOMAIN_BIT(domain);
    return 0;
}

int
_PyTraceMalloc_InstallHooks(uint8_t reached)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(alloc_domains); i++) {
        PyMemAllocatorDomain domain = alloc_domains[i];
        if (install_domain(domain, reached & DOMAIN_BIT(domain)) < 0) {
            return -1;
        }
    }
    _Py_atomic_store_uintptr_relaxed(
        &RUNTIME->block_offset,
        _PyMem_DebugBlockOffset(below(PYMEM_DOMAIN_OBJ)));
    _Py_atomic_add_uint32(&RUNTIME->hooks_version, 1);
    set_tracer_slot(_PyTraceMalloc_TraceRef);
    return 0;
}

// Hooks which have others on top of them cannot be taken out, for these would
// be lost.  They stay and only pass calls on.
void
_PyTraceMalloc_RemoveHooks(void)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(alloc_domains); i++) {
        PyMemAllocatorDomain domain = alloc_domains[i];
        if (!(RUNTIME->hooked & DOMAIN_BIT(domain))) {
            continue;
        }
        const PyMemAllocatorEx *bottom = below(domain);
        PyMemAllocatorEx top =
            _PyTraceMalloc_hooks[RUNTIME->level[domain]][domain];
        top.ctx = bottom->ctx;
        if (_PyMem_ReplaceFunctions(domain, &top, bottom)) {
            RUNTIME->hooked &= (uint8_t)~DOMAIN_BIT(domain);
            RUNTIME->level[domain] = 0;
        }
    }
    _Py_atomic_add_uint32(&RUNTIME->hooks_version, 1);
    set_tracer_slot(RUNTIME->ref_tracer);
}
