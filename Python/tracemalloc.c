// tracemalloc's life cycle (start, stop, fork, the end of an interpreter),
// queries, and public C API.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_StopTheWorldAll()
#include "pycore_tracemalloc_shared.h"  // lock_mutex()

#ifdef HAVE_FORK
#  include <pthread.h>            // pthread_atfork()
#endif

// As many as tracemalloc_item.total_nframe can count.
#define MAX_NFRAME UINT16_MAX


// False if the caller has no thread state, since it deletes an interpreter
// without threads.  In a handler of fork() the caller itself has stopped the
// others already.  And at finalization no other thread can attach, and one
// that has ended while it waited to stop the world may still hold the lock for
// that.
static bool
has_other_threads(void)
{
    return _PyThreadState_GET() != NULL
           && !_PyRuntime.stoptheworld.world_stopped
           && _PyRuntimeState_GetFinalizing(&_PyRuntime) == NULL;
}

// Without a GIL, other threads, of any interpreter, may use the slots of this
// one: bring them to rest.  Then lock the runtime.  Returns what
// start_threads() needs.
static bool
stop_threads(void)
{
    bool stopped = has_other_threads();
    if (stopped) {
        _PyEval_StopTheWorldAll(&_PyRuntime);
    }
    lock_mutex(&RUNTIME->mutex);
    return stopped;
}

static void
start_threads(bool stopped)
{
    unlock_mutex(&RUNTIME->mutex);
    if (stopped) {
        _PyEval_StartTheWorldAll(&_PyRuntime);
    }
}


/* --- Start and stop ----------------------------------------------------- */

// Give back what only a process needs where an interpreter traces.
static void
close_if_idle(void)
{
    if (is_idle()) {
        _PyTraceMalloc_CloseDirectory();
        _PyTraceMalloc_RemoveHooks();
    }
}

// What threads remember of frames is void from now on.
static void
new_epoch(interp_state *tm)
{
    _Py_atomic_store_uint64_relaxed(&tm->epoch, ++RUNTIME->last_number);
}

// -1 if there is no memory, -2 if there is no key.
static int
start_locked(interp_state *tm, int max_nframe, bool inherited,
             uint8_t reached)
{
    if (tm->tracing) {
        // Another thread was faster.
        return 0;
    }
    if (!inherited && PyThread_tss_create(&tm->reentrant_key) != 0) {
        return -2;
    }
    // Hooks first, so that the free of what is traced is seen.
    if (_PyTraceMalloc_InstallHooks(reached) < 0
        || _PyTraceMalloc_OpenTraces(tm, reached) < 0)
    {
        PyThread_tss_delete(&tm->reentrant_key);
        close_if_idle();
        return -1;
    }
    if (is_idle()) {
        _PyTraceMalloc_CountersInit();
    }
    _PyTraceMalloc_ChangeShared(tm->owns_pages ? 0 : 1);
    tm->max_nframe = max_nframe;
    tm->generation = ++RUNTIME->last_number;
    new_epoch(tm);
    tm->tracing = 1;
    llist_insert_tail(&RUNTIME->tracing, &tm->node);
    _Py_atomic_add_int(&RUNTIME->ntracing, 1);
    return 0;
}

int
_PyTraceMalloc_Start(int max_nframe, bool inherited)
{
    if (max_nframe < 1 || max_nframe > MAX_NFRAME) {
        PyErr_Format(PyExc_ValueError,
                     "the number of frames must be in range [1; %lu]",
                     (unsigned long)MAX_NFRAME);
        return -1;
    }
    interp_state *tm = &_PyInterpreterState_GET()->tracemalloc;
    // This runs code that may be anybody's, so it needs to be done without
    // locks.  Hooks that others install or remove meanwhile make no difference.
    uint8_t reached = _PyTraceMalloc_ProbeHooks();
    bool stopped = stop_threads();
    int res = start_locked(tm, max_nframe, inherited, reached);
    start_threads(stopped);
    if (res == -2) {
        PyErr_SetString(PyExc_RuntimeError,
                        "cannot start tracemalloc: the system has no "
                        "thread-specific storage key left");
    }
    else if (res < 0) {
        PyErr_NoMemory();
    }
    return res < 0 ? -1 : 0;
}

static void
forget_thread(PyInterpreterState *interp, thread_state *ts)
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
    tm->tracing = 0;
    _Py_atomic_store_uint64_relaxed(&tm->epoch, 0);
    llist_remove(&tm->node);
    _Py_atomic_add_int(&RUNTIME->ntracing, -1);

    struct llist_node *node;
    llist_for_each_safe(node, &tm->threads) {
        forget_thread(interp, llist_data(node, thread_state, node));
    }
    _PyTraceMalloc_DropTraces(tm);
    _PyTraceMalloc_ChangeShared(tm->owns_pages ? 0 : -1);
    PyThread_tss_delete(&tm->reentrant_key);
    close_if_idle();
}

void
_PyTraceMalloc_Stop(PyInterpreterState *interp)
{
    if (interp->tracemalloc.tracing) {
        bool stopped = stop_threads();
        // Another thread may have been faster.
        if (interp->tracemalloc.tracing) {
            stop_locked(interp);
        }
        start_threads(stopped);
    }
}

void
_PyTraceMalloc_ThreadEnds(PyThreadState *tstate)
{
    thread_state *ts = thread_of(tstate);
    lock_mutex(&RUNTIME->mutex);
    ts->ended = true;
    forget_thread(tstate->interp, ts);
    unlock_mutex(&RUNTIME->mutex);
}

void
_PyTraceMalloc_ForgetThreadStates(void)
{
    lock_mutex(&RUNTIME->mutex);
    RUNTIME->tstates_gone = true;
    unlock_mutex(&RUNTIME->mutex);
}


/* --- Fork --------------------------------------------------------------- */

#ifdef HAVE_FORK
// Handlers of fork() in the C library.  Others may have handlers that run
// Python code, and let go of the GIL.  These ones run last before the fork,
// and first after it, since they are registered before any extension is
// loaded.  (So an allocator that is loaded later must not be locked by then.)

static void
change_mutexes(void (*change)(PyMutex *))
{
    struct llist_node *node;
    llist_for_each(node, &RUNTIME->tracing) {
        change(&llist_data(node, interp_state, node)->mutex);
    }
    change(&RUNTIME->directory_mutex);
}

static void
before_fork(void)
{
    lock_mutex(&RUNTIME->mutex);
    _PyTraceMalloc_CloseCredits();
    change_mutexes(lock_mutex);
}

static void
after_fork_in_parent(void)
{
    change_mutexes(unlock_mutex);
    unlock_mutex(&RUNTIME->mutex);
}

// Whoever else waited for the locks is gone.
static void
after_fork_in_child(void)
{
    change_mutexes(_PyMutex_at_fork_reinit);
    _PyMutex_at_fork_reinit(&RUNTIME->mutex);
}

int
_PyTraceMalloc_HandleForks(void)
{
    if (!RUNTIME->handles_forks) {
        if (pthread_atfork(before_fork, after_fork_in_parent,
                           after_fork_in_child) != 0)
        {
            return -1;
        }
        RUNTIME->handles_forks = true;
    }
    return 0;
}

// The threads of other interpreters are gone, at an arbitrary point: nothing
// of these interpreters can be trusted but what the locks guard.  The rest of
// their memory is left alone.
void
_PyTraceMalloc_AfterFork_Child(void)
{
    interp_state *tm = &_PyRuntime._main_interpreter.tracemalloc;
    // The thread may have got credit in a handler of pthread_atfork().
    _PyTraceMalloc_CloseCredits();
    // Threads that are gone had blocks counted which they were reallocating.
    _PyTraceMalloc_CountersAfterFork();
    if (is_idle()) {
        return;
    }
    struct llist_node *node;
    llist_for_each_safe(node, &RUNTIME->tracing) {
        interp_state *other = llist_data(node, interp_state, node);
        if (other != tm) {
            other->tracing = 0;
            llist_remove(node);
            _Py_atomic_add_int(&RUNTIME->ntracing, -1);
            // The child may free blocks of theirs, and need the keys.
            _PyTraceMalloc_AbandonTraces(other);
            _PyTraceMalloc_ChangeShared(other->owns_pages ? 0 : -1);
            PyThread_tss_delete(&other->reentrant_key);
        }
    }
    // Another thread may have held the mutex of the allocators.
    _PyMutex_at_fork_reinit(&_PyRuntime.allocators.mutex);
    _PyTraceMalloc_RecountAfterFork(tm);
    close_if_idle();
}
#endif


/* --- Queries ------------------------------------------------------------ */

void
_PyTraceMalloc_ClearTraces(void)
{
    interp_state *tm = &_PyInterpreterState_GET()->tracemalloc;
    bool stopped = stop_threads();
    if (tm->tracing) {
        _PyTraceMalloc_DropTraces(tm);
        // Without memory the first traces may need some.
        (void)_PyTraceMalloc_TableInit(&tm->table, tm->table.allocator);
        tm->generation = ++RUNTIME->last_number;
        new_epoch(tm);
        _PyTraceMalloc_ResetCounterPeak();
    }
    start_threads(stopped);
}

void
_PyTraceMalloc_FramesChanged(PyInterpreterState *interp)
{
    interp_state *tm = &interp->tracemalloc;
    if (is_idle()) {
        return;
    }
    lock_mutex(&RUNTIME->mutex);
    if (tm->tracing) {
        // With this lock nobody is looking at a filename.
        lock_mutex(&tm->mutex);
        if (tm->intern != NULL) {
            memset(tm->intern->locations, 0, sizeof(tm->intern->locations));
        }
        unlock_mutex(&tm->mutex);
        // A thread that sees the new epoch finds no old location any more.
        new_epoch(tm);
    }
    unlock_mutex(&RUNTIME->mutex);
}

int
_PyTraceMalloc_Snapshot(tracemalloc_snapshot *snapshot)
{
    PyInterpreterState *interp = _PyInterpreterState_GET();
    *snapshot = (tracemalloc_snapshot){0};
    int res = 0;
    bool stopped = stop_threads();
    if (interp->tracemalloc.tracing) {
        res = _PyTraceMalloc_CopyTraces(interp, snapshot);
    }
    start_threads(stopped);
    if (res < 0) {
        PyErr_NoMemory();
    }
    return res;
}

void
_PyTraceMalloc_ResetPeak(void)
{
    lock_mutex(&RUNTIME->mutex);
    _PyTraceMalloc_ResetCounterPeak();
    unlock_mutex(&RUNTIME->mutex);
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
        // If another thread has tracked it meanwhile, that came last.
        res = Py_MIN(res, 0);
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
