// tracemalloc's life cycle (start, stop, fork, the end of an interpreter), its
// public C API, and what it has to say in a fatal error.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_StopTheWorld()
#include "pycore_fileutils.h"     // _Py_write_noraise()
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_traceback.h"     // _Py_DumpDecimal()
#include "pycore_tracemalloc.h"   // _PyTraceRuntime

// As many as _PyTraceback.nframe can count.
#define MAX_NFRAME UINT16_MAX


/* --- Start and stop ----------------------------------------------------- */

// Bring all other threads that are attached to the interpreter to rest, where
// it has no GIL that does it.  One of them may still be in a hook, detached by
// the allocator below: it looks again when it comes back.
static void
stop_world(PyInterpreterState *interp)
{
    PyThreadState *tstate = _PyThreadState_GET();
    // Another thread, or none, ends an interpreter that has no threads left.
    if (tstate != NULL && tstate->interp == interp) {
        _PyEval_StopTheWorld(interp);
    }
}

static void
start_world(PyInterpreterState *interp)
{
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL && tstate->interp == interp) {
        _PyEval_StartTheWorld(interp);
    }
}

typedef enum {
    START_OK,
    START_NO_KEY,
    START_NO_MEMORY,
} start_result;

static start_result
start_locked(_PyTraceRuntime *runtime, PyInterpreterState *interp,
             int max_nframe)
{
    _PyTraceBooks *books = &interp->tracemalloc;
    if (books->tracing) {
        // Another thread was faster.
        return START_OK;
    }
    if (PyThread_tss_create(&books->reentrant_key) != 0) {
        return START_NO_KEY;
    }
    // Hooks first, so that what is recorded is also seen being freed.
    if (_PyTraceHooks_Install(runtime) < 0
        || _PyTraceBooks_Open(runtime, interp, max_nframe) < 0)
    {
        PyThread_tss_delete(&books->reentrant_key);
        if (_PyTraceRuntime_IsIdle(runtime)) {
            _PyTraceHooks_Remove(runtime);
        }
        return START_NO_MEMORY;
    }
    return START_OK;
}

int
_PyTraceMalloc_Start(int max_nframe)
{
    if (max_nframe < 1 || max_nframe > MAX_NFRAME) {
        PyErr_Format(PyExc_ValueError,
                     "the number of frames must be in range [1; %lu]",
                     (unsigned long)MAX_NFRAME);
        return -1;
    }

    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    PyInterpreterState *interp = _PyInterpreterState_GET();
    if (interp->tracemalloc.tracing) {
        return 0;
    }
    stop_world(interp);
    _PyTraceRuntime_Lock(runtime);
    start_result res = start_locked(runtime, interp, max_nframe);
    _PyTraceRuntime_Unlock(runtime);
    start_world(interp);

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
    }
    Py_UNREACHABLE();
}

// Returns false if the books were closed already.
static bool
stop_locked(_PyTraceRuntime *runtime, _PyTraceBooks *books,
            _PyTraceContents *contents)
{
    if (!books->tracing) {
        return false;
    }
    _PyTraceBooks_Close(runtime, books, contents);
    PyThread_tss_delete(&books->reentrant_key);
    if (_PyTraceRuntime_IsIdle(runtime)) {
        _PyTraceHooks_Remove(runtime);
    }
    return true;
}

static void
stop(PyInterpreterState *interp)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceContents contents;
    if (!interp->tracemalloc.tracing) {
        return;
    }

    stop_world(interp);
    _PyTraceRuntime_Lock(runtime);
    bool stopped = stop_locked(runtime, &interp->tracemalloc, &contents);
    _PyTraceRuntime_Unlock(runtime);
    start_world(interp);

    if (stopped) {
        _PyTraceContents_Free(&contents);
    }
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
_PyTraceMalloc_InitRuntime(void)
{
#if SIZEOF_VOID_P == 8 && defined(__linux__)
    // See _Py_TRACEMALLOC_PADDING.
    Py_BUILD_ASSERT(offsetof(_PyRuntimeState, ref_tracer)
                    - offsetof(_PyRuntimeState, tracemalloc) == 232);
#endif
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    assert(runtime->ntracing == 0);
    // The allocators are what they are without hooks.
    runtime->hooked = 0;
    runtime->ref_tracer = NULL;
    runtime->tstates_gone = false;
}

void
_PyTraceMalloc_ForgetThreadStates(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    runtime->tstates_gone = true;
    _PyTraceRuntime_Unlock(runtime);
}


/* --- Fork --------------------------------------------------------------- */

#ifdef HAVE_FORK
void
_PyTraceMalloc_BeforeFork(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    for (_PyTraceBooks *books = runtime->tracing; books != NULL;
         books = books->next)
    {
        _PyTraceLock_LockMutex(&books->lock);
    }
    if (runtime->directory != NULL) {
        PyMutex_LockFlags(&runtime->directory->mutex, _Py_LOCK_DONT_DETACH);
    }
}

void
_PyTraceMalloc_AfterFork_Parent(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    if (runtime->directory != NULL) {
        PyMutex_Unlock(&runtime->directory->mutex);
    }
    for (_PyTraceBooks *books = runtime->tracing; books != NULL;
         books = books->next)
    {
        _PyTraceLock_UnlockMutex(&books->lock);
    }
    _PyTraceRuntime_Unlock(runtime);
}

// The locks are held by this thread, and whoever else waited for them is gone.
// So are threads that were reallocating a block.
void
_PyTraceMalloc_AfterFork_Child(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyMutex_at_fork_reinit(&runtime->mutex);
    // Closed books may be locked, too: of them, only these can be looked into.
    _PyTraceLock_AfterFork(&_PyRuntime._main_interpreter.tracemalloc.lock);
    for (_PyTraceBooks *books = runtime->tracing; books != NULL;
         books = books->next)
    {
        _PyTraceLock_AfterFork(&books->lock);
        // But for the one that belongs to nobody.
        _PyTraceMap_ForgetReservations(&books->traces, books->spare);
        _PyTraceTable_ForgetReservations(&books->shared);
    }
    if (runtime->directory != NULL) {
        _PyMutex_at_fork_reinit(&runtime->directory->mutex);
        _PyTraceTable_ForgetReservations(&runtime->directory->table);
    }
}
#endif


/* --- Queries ------------------------------------------------------------ */

static _PyTraceBooks *
current_books(void)
{
    return &_PyInterpreterState_GET()->tracemalloc;
}

int
_PyTraceMalloc_IsTracing(void)
{
    return current_books()->tracing;
}

int
_PyTraceMalloc_GetTracebackLimit(void)
{
    return current_books()->max_nframe;
}

void
_PyTraceMalloc_ClearTraces(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceBooks *books = current_books();
    _PyTraceContents contents;

    _PyTraceRuntime_Lock(runtime);
    bool tracing = books->tracing;
    if (tracing) {
        _PyTraceBooks_Clear(runtime, books, &contents);
    }
    _PyTraceRuntime_Unlock(runtime);
    if (tracing) {
        _PyTraceContents_Free(&contents);
    }
}

void
_PyTraceMalloc_FramesChanged(void)
{
    if (!_PyTraceRuntime_IsIdle(&_PyRuntime.tracemalloc)) {
        _PyTraceBooks_ForgetFrames(current_books());
    }
}

size_t
_PyTraceMalloc_GetMemory(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceBooks *books = current_books();
    _PyTraceRuntime_Lock(runtime);
    size_t size = books->tracing ? _PyTraceBooks_Memory(runtime, books) : 0;
    _PyTraceRuntime_Unlock(runtime);
    return size;
}

int
_PyTraceMalloc_Snapshot(_PyTraceSnapshot *snapshot)
{
    _PyTraceBooks *books = current_books();
    *snapshot = (_PyTraceSnapshot){0};
    if (books->tracing && _PyTraceBooks_Snapshot(books, snapshot) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

int
_PyTraceMalloc_SnapshotBlock(unsigned int domain, uintptr_t ptr,
                             _PyTraceSnapshot *snapshot)
{
    _PyTraceBooks *books = current_books();
    *snapshot = (_PyTraceSnapshot){0};
    if (books->tracing
        && _PyTraceBooks_SnapshotBlock(books, domain, ptr, snapshot) < 0)
    {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

void
_PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    *current = *peak = 0;
    if (!_PyTraceRuntime_IsIdle(runtime)) {
        *current = _PyTraceCounters_Sum(&runtime->counters);
        *peak = runtime->counters.peak;
    }
    _PyTraceRuntime_Unlock(runtime);
}

void
_PyTraceMalloc_ResetPeak(void)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    _PyTraceRuntime_Lock(runtime);
    if (!_PyTraceRuntime_IsIdle(runtime)) {
        _PyTraceCounters_ResetPeak(&runtime->counters);
    }
    _PyTraceRuntime_Unlock(runtime);
}


/* --- Public C API ------------------------------------------------------- */

// In Python's own domain an interpreter also has traces of blocks that are not
// in the directory, since nobody else may free them.
static bool
may_be_any_block(unsigned int domain)
{
    return domain == 0;
}

int
PyTraceMalloc_Track(unsigned int domain, uintptr_t ptr, size_t size)
{
    if (_PyTraceRuntime_IsIdle(&_PyRuntime.tracemalloc)) {
        return -2;
    }
    _PyTraceCaller caller;
    _PyTraceCaller_Begin(&caller);
    int res = -2;
    if (caller.books->tracing) {
        caller.any_block = may_be_any_block(domain);
        res = _PyTraceCaller_Record(&caller, domain, ptr, size, true);
    }
    _PyTraceCaller_End(&caller);
    return res;
}

int
PyTraceMalloc_Untrack(unsigned int domain, uintptr_t ptr)
{
    if (_PyTraceRuntime_IsIdle(&_PyRuntime.tracemalloc)) {
        return -2;
    }
    _PyTraceCaller caller;
    _PyTraceTaken taken;
    _PyTraceCaller_Begin(&caller);
    caller.any_block = may_be_any_block(domain);
    _PyTraceCaller_Take(&caller, domain, ptr, false, &taken);
    _PyTraceCaller_End(&caller);
    return 0;
}


/* --- Fatal errors ------------------------------------------------------- */

// The thread that reports the error may hold a lock itself.
#define DUMP_TIMEOUT (100 * 1000 * 1000)    // nanoseconds

#define PUTS(fd, str) (void)_Py_write_noraise(fd, str, (int)strlen(str))

// Like _Py_DumpASCII(), which needs a str object.
static void
dump_filename(int fd, const _PyTraceIntern *intern, uint32_t id)
{
    const void *text;
    const _PyTraceFilename *name =
        _PyTraceIntern_GetFilename(intern, id, &text);
    if (name == NULL) {
        PUTS(fd, "<unknown>");
        return;
    }
    for (size_t i = 0; i < name->length; i++) {
        Py_UCS4 ch = PyUnicode_READ(name->kind, text, i);
        if (' ' <= ch && ch <= 126) {
            char c = (char)ch;
            (void)_Py_write_noraise(fd, &c, 1);
        }
        else {
            const char *escape = ch <= 0xff ? "\\x"
                                 : ch <= 0xffff ? "\\u" : "\\U";
            PUTS(fd, escape);
            _Py_DumpHexadecimal(fd, ch, ch <= 0xff ? 2
                                        : ch <= 0xffff ? 4 : 8);
        }
    }
}

static void
dump_traceback(int fd, const _PyTraceIntern *intern, _PyTraceback_Id id)
{
    const _PyTraceFrame *frames;
    const _PyTraceback *traceback =
        _PyTraceIntern_GetTraceback(intern, id, &frames);
    PUTS(fd, "Memory block allocated at (most recent call first):\n");
    for (size_t i = 0; i < traceback->nframe; i++) {
        PUTS(fd, "  File \"");
        dump_filename(fd, intern, frames[i].filename);
        PUTS(fd, "\", line ");
        _Py_DumpDecimal(fd, frames[i].lineno);
        PUTS(fd, "\n");
    }
    PUTS(fd, "\n");
}

// `taken` is a trace that this thread has taken out, or NULL.
static bool
dump_from_books(int fd, _PyTraceBooks *books, const _PyTraceTaken *taken,
                uintptr_t ptr)
{
    if (!_PyTraceLock_TryLockMutex(&books->lock, DUMP_TIMEOUT)) {
        return false;
    }
    _PyTrace trace;
    bool found = _PyTraceBooks_Get(books, 0, ptr, &trace);
    if (!found && taken != NULL && taken->room.epoch == books->epoch
        && taken->trace.ptr == ptr)
    {
        trace = taken->trace;
        found = true;
    }
    if (found) {
        dump_traceback(fd, &books->intern, trace.traceback);
    }
    _PyTraceLock_UnlockMutex(&books->lock);
    return found;
}

void
_PyMem_DumpTraceback(int fd, const void *ptr)
{
    _PyTraceRuntime *runtime = &_PyRuntime.tracemalloc;
    bool found = false, tracing = false;
    if (!_PyTraceRuntime_IsIdle(runtime)) {
        if (_PyMutex_LockTimed(&runtime->mutex, DUMP_TIMEOUT,
                               _Py_LOCK_DONT_DETACH) != PY_LOCK_ACQUIRED)
        {
            return;
        }
        _PyTraceCaller caller;
        _PyTraceCaller_BeginLocked(&caller);
        const _PyTraceTaken *taken = _PyTraceHooks_GetTaken(&caller);
        tracing = caller.books->tracing;
        for (_PyTraceBooks *books = runtime->tracing;
             books != NULL && !found; books = books->next)
        {
            found = dump_from_books(fd, books, taken, (uintptr_t)ptr);
        }
        _PyTraceCaller_End(&caller);
    }
    if (!found && !tracing) {
        PUTS(fd, "Enable tracemalloc to get the memory block "
                 "allocation traceback\n\n");
    }
}
