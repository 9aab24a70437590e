// tracemalloc's life cycle (start, stop, fork, the end of an interpreter), its
// queries, and its public C API.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_StopTheWorldAll()
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // tracemalloc_caller

// As many as tracemalloc_traceback.nframe can count.
#define MAX_NFRAME UINT16_MAX

#define RUNTIME (&_PyRuntime.tracemalloc)

typedef struct _tracemalloc_interp_state interp_state;


static void
lock_runtime(void)
{
    PyMutex_LockFlags(&RUNTIME->mutex, _Py_LOCK_DONT_DETACH);
}

static void
unlock_runtime(void)
{
    PyMutex_Unlock(&RUNTIME->mutex);
}

static bool
is_idle(void)
{
    return _Py_atomic_load_int_relaxed(&RUNTIME->ntracing) == 0;
}

// Without a GIL, other threads, of any interpreter, may use the slots of this
// one: bring them to rest.  Then lock the runtime.
static void
stop_threads(void)
{
    // A thread without thread state ends an interpreter that has no threads.
    if (_PyThreadState_GET() != NULL) {
        _PyEval_StopTheWorldAll(&_PyRuntime);
    }
    lock_runtime();
}

static void
start_threads(void)
{
    unlock_runtime();
    if (_PyThreadState_GET() != NULL) {
        _PyEval_StartTheWorldAll(&_PyRuntime);
    }
}


/* --- Start and stop ----------------------------------------------------- */

static uint64_t
next_epoch(void)
{
    return ++RUNTIME->epoch;
}

static void
set_epoch(interp_state *tm, uint64_t epoch)
{
    _Py_atomic_store_uint64_relaxed(&tm->epoch, epoch);
}

static void
add_to_ntracing(int change)
{
    _Py_atomic_store_int_relaxed(&RUNTIME->ntracing,
                                 RUNTIME->ntracing + change);
}

static int
open_traces(interp_state *tm)
{
    // Hooks are in, so there is an allocator below them.
    if (_PyTraceMalloc_OpenTraces(tm, _PyTraceMalloc_RawAllocator()) < 0) {
        return -1;
    }
    if (_PyTraceMalloc_LocationsInit(tm) < 0) {
        _PyTraceMalloc_TableFree(&tm->table);
        return -1;
    }
    llist_init(&tm->threads);
    tm->capture_memory = 0;
    return 0;
}

typedef enum {
    START_OK,
    START_NO_KEY,
    START_NO_MEMORY,
    START_AGAIN,
} start_result;

static start_result
start_locked(PyInterpreterState *interp, int max_nframe, bool inherited,
             uint8_t reached)
{
    interp_state *tm = &interp->tracemalloc;
    if (tm->tracing) {
        // Another thread was faster.
        return START_OK;
    }
    if (!inherited && PyThread_tss_create(&tm->reentrant_key) != 0) {
        return START_NO_KEY;
    }
    // Hooks first, so that the free of what is traced is seen.
    if (_PyTraceMalloc_InstallHooks(reached) < 0 || open_traces(tm) < 0) {
        PyThread_tss_delete(&tm->reentrant_key);
        if (is_idle()) {
            _PyTraceMalloc_RemoveHooks();
        }
        return START_NO_MEMORY;
    }
    if (is_idle()) {
        if (RUNTIME->tracing.next == NULL) {
            llist_init(&RUNTIME->tracing);
        }
        _PyTraceMalloc_CountersInit(&RUNTIME->counters);
    }
    _PyTraceMalloc_ChangeShared(tm->owns_pages ? 0 : 1);
    tm->max_nframe = max_nframe;
    tm->generation = next_epoch();
    set_epoch(tm, tm->generation);
    tm->tracing = 1;
    llist_insert_tail(&RUNTIME->tracing, &tm->node);
    add_to_ntracing(1);
    return START_OK;
}

static int
start(int max_nframe, bool inherited)
{
    if (max_nframe < 1 || max_nframe > MAX_NFRAME) {
        PyErr_Format(PyExc_ValueError,
                     "the number of frames must be in range [1; %lu]",
                     (unsigned long)MAX_NFRAME);
        return -1;
    }
    PyInterpreterState *interp = _PyInterpreterState_GET();
    if (interp->tracemalloc.tracing) {
        return 0;
    }
    start_result res = START_AGAIN;
    while (res == START_AGAIN) {
        // The probe runs code that may be anybody's, so it needs to be done
        // without locks.
        uint32_t version = _Py_atomic_load_uint32(&RUNTIME->hooks_version);
        uint8_t reached = _PyTraceMalloc_ProbeHooks();
        stop_threads();
        if (version == _Py_atomic_load_uint32(&RUNTIME->hooks_version)) {
            res = start_locked(interp, max_nframe, inherited, reached);
        }
        start_threads();
    }
    switch (res) {
        case START_OK:
            return 0;
        case START_NO_KEY:
            PyErr_SetString(PyExc_RuntimeError,
                            "cannot start tracemalloc: the system has no "
                            "thread-specific storage key left");
            return -1;
        case START_NO_MEMORY:
            PyErr_NoMemory();
            return -1;
        case START_AGAIN:
            break;
    }
    Py_UNREACHABLE();
}

int
_PyTraceMalloc_Start(int max_nframe)
{
    return start(max_nframe, false);
}

int
_PyTraceMalloc_StartInherited(int max_nframe)
{
    return start(max_nframe, true);
}

static void
forget_thread(PyInterpreterState *interp,
              struct _tracemalloc_thread_state *ts)
{
    if (ts->capture != NULL) {
        _PyTraceMalloc_CaptureFree(interp, ts);
    }
#ifdef Py_GIL_DISABLED
    _PyTraceMalloc_CloseCredit(&ts->credit, true);
#endif
}

static void
stop_locked(PyInterpreterState *interp)
{
    interp_state *tm = &interp->tracemalloc;
    if (!tm->tracing) {
        return;
    }
    tm->tracing = 0;
    tm->generation = 0;
    set_epoch(tm, 0);
    llist_remove(&tm->node);
    add_to_ntracing(-1);

    struct llist_node *node;
    llist_for_each_safe(node, &tm->threads) {
        forget_thread(interp, llist_data(
            node, struct _tracemalloc_thread_state, node));
    }
    _PyTraceMalloc_DropTraces(tm);
    _PyTraceMalloc_ChangeShared(tm->owns_pages ? 0 : -1);
    _PyTraceMalloc_LocationsFree(tm);
    PyThread_tss_delete(&tm->reentrant_key);
}

static void
stop(PyInterpreterState *interp)
{
    if (!interp->tracemalloc.tracing) {
        return;
    }
    stop_threads();
    stop_locked(interp);
    if (is_idle()) {
        _PyTraceMalloc_RemoveHooks();
    }
    start_threads();
}

void
_PyTraceMalloc_Stop(void)
{
    stop(_PyInterpreterState_GET());
}

void
_PyTraceMalloc_Fini(PyInterpreterState *interp)
{
    stop(interp);
}

void
_PyTraceMalloc_ThreadEnds(PyThreadState *tstate)
{
    struct _tracemalloc_thread_state *ts =
        &((_PyThreadStateImpl *)tstate)->tracemalloc;
    ts->ended = true;
    bool has_credit = false;
#ifdef Py_GIL_DISABLED
    has_credit = _Py_atomic_load_int_relaxed(&ts->credit.open);
#endif
    if (ts->capture == NULL && !has_credit) {
        return;
    }
    lock_runtime();
    forget_thread(tstate->interp, ts);
    unlock_runtime();
}

void
_PyTraceMalloc_InitRuntime(void)
{
#if SIZEOF_VOID_P == 8 && defined(__linux__)
    Py_BUILD_ASSERT(sizeof(struct _tracemalloc_runtime_state) == 232);
#endif
    assert(RUNTIME->ntracing == 0);
    // The allocators are what they are without hooks.
    RUNTIME->hooked = 0;
    memset(RUNTIME->level, 0, sizeof(RUNTIME->level));
    RUNTIME->ref_tracer = NULL;
    RUNTIME->tstates_gone = false;
}

void
_PyTraceMalloc_ForgetThreadStates(void)
{
    lock_runtime();
    RUNTIME->tstates_gone = true;
    unlock_runtime();
}


/* --- Fork --------------------------------------------------------------- */

#ifdef HAVE_FORK
static void
lock_all(bool lock)
{
    struct llist_node *node;
    if (is_idle()) {
        return;
    }
    llist_for_each(node, &RUNTIME->tracing) {
        PyMutex *mutex = &llist_data(node, interp_state, node)->mutex;
        if (lock) {
            PyMutex_LockFlags(mutex, _Py_LOCK_DONT_DETACH);
        }
        else {
            PyMutex_Unlock(mutex);
        }
    }
    PyMutex *mutex = &RUNTIME->directory->mutex;
    if (lock) {
        PyMutex_LockFlags(mutex, _Py_LOCK_DONT_DETACH);
    }
    else {
        PyMutex_Unlock(mutex);
    }
}

void
_PyTraceMalloc_BeforeFork(void)
{
    lock_runtime();
    lock_all(true);
}

void
_PyTraceMalloc_AfterFork_Parent(void)
{
    lock_all(false);
    unlock_runtime();
}

// The locks are held by this thread, and whoever else waited for them is gone.
// So are the threads of other interpreters, at an arbitrary point: nothing of
// these interpreters can be trusted, and their memory is left alone.
void
_PyTraceMalloc_AfterFork_Child(void)
{
    PyInterpreterState *main = &_PyRuntime._main_interpreter;
    interp_state *tm = &main->tracemalloc;
    _PyMutex_at_fork_reinit(&RUNTIME->mutex);
    _PyMutex_at_fork_reinit(&tm->mutex);
    if (is_idle()) {
        return;
    }
    struct llist_node *node;
    llist_for_each_safe(node, &RUNTIME->tracing) {
        interp_state *other = llist_data(node, interp_state, node);
        if (other != tm) {
            other->tracing = 0;
            llist_remove(node);
            add_to_ntracing(-1);
        }
    }
    _PyMutex_at_fork_reinit(&RUNTIME->directory->mutex);
    _PyTraceMalloc_ForgetOthersAfterFork(tm);
    if (is_idle()) {
        // Another thread may have held the mutex of the allocators.
        _PyMutex_at_fork_reinit(&_PyRuntime.allocators.mutex);
        _PyTraceMalloc_RemoveHooks();
    }
}
#endif


/* --- Queries ------------------------------------------------------------ */

int
_PyTraceMalloc_IsTracing(void)
{
    return _PyInterpreterState_GET()->tracemalloc.tracing;
}

int
_PyTraceMalloc_GetTracebackLimit(void)
{
    return _PyInterpreterState_GET()->tracemalloc.max_nframe;
}

void
_PyTraceMalloc_ClearTraces(void)
{
    interp_state *tm = &_PyInterpreterState_GET()->tracemalloc;
    if (!tm->tracing) {
        return;
    }
    stop_threads();
    if (tm->tracing) {
        _PyTraceMalloc_DropTraces(tm);
        // Without memory the first traces may need some.
        (void)_PyTraceMalloc_TableInit(&tm->table, tm->table.allocator);
        _PyTraceMalloc_LocationsClear(tm);
        tm->generation = next_epoch();
        set_epoch(tm, tm->generation);
        _PyTraceMalloc_ResetCounterPeak();
    }
    start_threads();
}

void
_PyTraceMalloc_FramesChanged(PyInterpreterState *interp)
{
    interp_state *tm = &interp->tracemalloc;
    if (is_idle()) {
        return;
    }
    lock_runtime();
    if (tm->tracing) {
        set_epoch(tm, next_epoch());
        // With this lock nobody is looking at a filename.
        PyMutex_LockFlags(&tm->mutex, _Py_LOCK_DONT_DETACH);
        _PyTraceMalloc_LocationsClear(tm);
        PyMutex_Unlock(&tm->mutex);
    }
    unlock_runtime();
}

size_t
_PyTraceMalloc_GetMemory(void)
{
    interp_state *tm = &_PyInterpreterState_GET()->tracemalloc;
    lock_runtime();
    size_t size = 0;
    if (tm->tracing) {
        size = _PyTraceMalloc_TracesMemory(tm)
               + _PyTraceMalloc_LocationsMemory(tm);
    }
    unlock_runtime();
    return size;
}

int
_PyTraceMalloc_Snapshot(tracemalloc_snapshot *snapshot)
{
    PyInterpreterState *interp = _PyInterpreterState_GET();
    *snapshot = (tracemalloc_snapshot){0};
    int res = 0;
    if (interp->tracemalloc.tracing) {
        stop_threads();
        if (interp->tracemalloc.tracing) {
            res = _PyTraceMalloc_CopyTraces(interp, snapshot);
        }
        start_threads();
    }
    if (res < 0) {
        PyErr_NoMemory();
    }
    return res;
}

int
_PyTraceMalloc_SnapshotBlock(unsigned int domain, uintptr_t ptr,
                             tracemalloc_snapshot *snapshot)
{
    PyInterpreterState *interp = _PyInterpreterState_GET();
    *snapshot = (tracemalloc_snapshot){0};
    int res = 0;
    lock_runtime();
    if (interp->tracemalloc.tracing) {
        res = _PyTraceMalloc_CopyTrace(interp, domain, ptr, snapshot);
    }
    unlock_runtime();
    if (res < 0) {
        PyErr_NoMemory();
    }
    return res;
}

void
_PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak)
{
    *current = *peak = 0;
    lock_runtime();
    if (!is_idle()) {
        _PyTraceMalloc_CountersGet(current, peak);
    }
    unlock_runtime();
}

void
_PyTraceMalloc_ResetPeak(void)
{
    lock_runtime();
    if (!is_idle()) {
        _PyTraceMalloc_ResetCounterPeak();
    }
    unlock_runtime();
}


/* --- Public C API ------------------------------------------------------- */

int
PyTraceMalloc_Track(unsigned int domain, uintptr_t ptr, size_t size)
{
    if (is_idle()) {
        return -2;
    }
    tracemalloc_caller caller;
    int res = -2;
    _PyTraceMalloc_BeginCall(&caller);
    if (caller.interp->tracing) {
        res = _PyTraceMalloc_Add(&caller, domain, ptr, size, BLOCK_TRACKED);
    }
    _PyTraceMalloc_EndCall(&caller);
    return res;
}

int
PyTraceMalloc_Untrack(unsigned int domain, uintptr_t ptr)
{
    if (is_idle()) {
        return -2;
    }
    tracemalloc_caller caller;
    _PyTraceMalloc_BeginCall(&caller);
    _PyTraceMalloc_RemoveAnywhere(&caller, domain, ptr);
    _PyTraceMalloc_EndCall(&caller);
    return 0;
}
