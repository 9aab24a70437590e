// Calls of the allocators and of PyTraceMalloc_Track() by threads of any kind,
// for the tests of tracemalloc.
//
// The Python tests cannot make a thread without a thread state, and cannot
// allocate with PyMem_RawMalloc() while they hold no GIL.  The functions here
// do that, and only that: what is right and what is wrong is for the tests to
// say.
//
// Everything that outlives a call (jobs, pools) comes from the C library's
// malloc(), so that no test sees memory of this file in its traces.  What a
// native thread uses is reference counted: when a wait times out, the thread
// that did not come back keeps its share alive.

#include "parts.h"
#include "test_tracemalloc.h"

#include <errno.h>                // errno
#include <stdlib.h>               // calloc(), free()


/* --- Arguments ---------------------------------------------------------- */

#define address_converter _PyTestTracemalloc_AddressConverter

// The thread that makes a call: this one with its thread state attached or
// detached, or a new one that never has a thread state.
enum how { ATTACHED, DETACHED, STATELESS };

static int
how_converter(PyObject *arg, void *out)
{
    static const char * const names[] = {"attached", "detached", "stateless"};
    const char *name = PyUnicode_AsUTF8(arg);
    int i = name == NULL ? -1 : _PyTestTracemalloc_FindName(
        "thread", names, Py_ARRAY_LENGTH(names), name);
    *(enum how *)out = (enum how)i;
    return i >= 0;
}


/* --- One call of the allocators, by any kind of thread ------------------ */

enum op { RAW_MALLOC, RAW_CALLOC, RAW_REALLOC, RAW_FREE, TRACK, UNTRACK };

typedef struct {
    enum op op;
    unsigned int domain;
    void *ptr;
    size_t size;
    int res;
    int has_state;          // does a stateless thread have a thread state now?
    PyEvent done;
    int refs;               // atomic: the caller and the thread
} job_t;

static void
job_decref(job_t *job)
{
    if (_Py_atomic_add_int(&job->refs, -1) == 1) {
        free(job);
    }
}

static void
job_run(job_t *job)
{
    switch (job->op) {
    case RAW_MALLOC:
        job->ptr = PyMem_RawMalloc(job->size);
        break;
    case RAW_CALLOC:
        job->ptr = PyMem_RawCalloc(1, job->size);
        break;
    case RAW_REALLOC:
        job->ptr = PyMem_RawRealloc(job->ptr, job->size);
        break;
    case RAW_FREE:
        errno = EDOM;
        PyMem_RawFree(job->ptr);
        job->res = errno == EDOM ? 0 : -1;
        break;
    case TRACK:
        job->res = PyTraceMalloc_Track(job->domain, (uintptr_t)job->ptr,
                                       job->size);
        break;
    case UNTRACK:
        job->res = PyTraceMalloc_Untrack(job->domain, (uintptr_t)job->ptr);
        break;
    }
}

static void
job_thread(void *arg)
{
    job_t *job = (job_t *)arg;
    job_run(job);
    job->has_state = PyGILState_GetThisThreadState() != NULL;
    _PyEvent_Notify(&job->done);
    job_decref(job);
}

// Run the job in the kind of thread that the test asked for.  A stateless
// thread is waited for with the GIL held.
static int
job_run_how(job_t *job, enum how how, double timeout)
{
    switch (how) {
    case ATTACHED:
        job_run(job);
        return 0;
    case DETACHED:
        Py_BEGIN_ALLOW_THREADS
        job_run(job);
        Py_END_ALLOW_THREADS
        return 0;
    case STATELESS:
        break;
    }
    _Py_atomic_add_int(&job->refs, 1);
    if (PyThread_start_new_thread(job_thread, job)
        == PYTHREAD_INVALID_THREAD_ID)
    {
        job_decref(job);
        PyErr_SetString(PyExc_RuntimeError, "cannot start a thread");
        return -1;
    }
    if (_PyTestTracemalloc_Wait(&job->done, timeout, 0) < 0) {
        return -1;
    }
    if (job->has_state) {
        PyErr_SetString(PyExc_AssertionError, "a thread state was made");
        return -1;
    }
    return 0;
}

// Return the job that has run, to be released by job_decref().
static job_t *
job_call(enum op op, unsigned int domain, void *ptr, Py_ssize_t size,
         enum how how, double timeout)
{
    job_t *job = (job_t *)calloc(1, sizeof(job_t));
    if (job == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    job->op = op;
    job->domain = domain;
    job->ptr = ptr;
    job->size = (size_t)size;
    job->refs = 1;
    if (job_run_how(job, how, timeout) < 0) {
        job_decref(job);
        return NULL;
    }
    return job;
}

// The address of the block, or None where there is no memory.
static PyObject *
job_address(job_t *job)
{
    if (job == NULL) {
        return NULL;
    }
    void *ptr = job->ptr;
    job_decref(job);
    if (ptr == NULL) {
        Py_RETURN_NONE;
    }
    return PyLong_FromVoidPtr(ptr);
}

// What PyTraceMalloc_Track() or PyTraceMalloc_Untrack() returned.
static PyObject *
job_result(job_t *job)
{
    if (job == NULL) {
        return NULL;
    }
    int res = job->res;
    job_decref(job);
    return PyLong_FromLong(res);
}

PyDoc_STRVAR(raw_malloc_doc,
"tracemalloc_raw_malloc(size, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawMalloc() in a thread that is attached, detached or stateless.");

static PyObject *
tracemalloc_raw_malloc(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "n|O&d", &size, how_converter, &how, &timeout))
    {
        return NULL;
    }
    return job_address(job_call(RAW_MALLOC, 0, NULL, size, how, timeout));
}

PyDoc_STRVAR(raw_calloc_doc,
"tracemalloc_raw_calloc(size, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawCalloc(1, size), otherwise as tracemalloc_raw_malloc().");

static PyObject *
tracemalloc_raw_calloc(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "n|O&d", &size, how_converter, &how, &timeout))
    {
        return NULL;
    }
    return job_address(job_call(RAW_CALLOC, 0, NULL, size, how, timeout));
}

PyDoc_STRVAR(raw_realloc_doc,
"tracemalloc_raw_realloc(address, size, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawRealloc(): the new address, or None if it failed.");

static PyObject *
tracemalloc_raw_realloc(PyObject *self, PyObject *args)
{
    void *ptr;
    Py_ssize_t size;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "O&n|O&d", address_converter, &ptr, &size,
                          how_converter, &how, &timeout))
    {
        return NULL;
    }
    return job_address(job_call(RAW_REALLOC, 0, ptr, size, how, timeout));
}

PyDoc_STRVAR(raw_free_doc,
"tracemalloc_raw_free(address, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawFree(), which must not change errno.");

static PyObject *
tracemalloc_raw_free(PyObject *self, PyObject *args)
{
    void *ptr;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "O&|O&d", address_converter, &ptr,
                          how_converter, &how, &timeout))
    {
        return NULL;
    }
    job_t *job = job_call(RAW_FREE, 0, ptr, 0, how, timeout);
    if (job == NULL) {
        return NULL;
    }
    int res = job->res;
    job_decref(job);
    if (res < 0) {
        PyErr_SetString(PyExc_AssertionError, "free() has changed errno");
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(track_doc,
"tracemalloc_track(domain, address, size, how='attached', timeout=60.0)\n"
"--\n\n"
"The result of PyTraceMalloc_Track().");

static PyObject *
tracemalloc_track(PyObject *self, PyObject *args)
{
    unsigned int domain;
    void *ptr;
    Py_ssize_t size;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "IO&n|O&d", &domain, address_converter, &ptr,
                          &size, how_converter, &how, &timeout))
    {
        return NULL;
    }
    return job_result(job_call(TRACK, domain, ptr, size, how, timeout));
}

PyDoc_STRVAR(untrack_doc,
"tracemalloc_untrack(domain, address, how='attached', timeout=60.0)\n"
"--\n\n"
"The result of PyTraceMalloc_Untrack().");

static PyObject *
tracemalloc_untrack(PyObject *self, PyObject *args)
{
    unsigned int domain;
    void *ptr;
    enum how how = ATTACHED;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "IO&|O&d", &domain, address_converter, &ptr,
                          how_converter, &how, &timeout))
    {
        return NULL;
    }
    return job_result(job_call(UNTRACK, domain, ptr, 0, how, timeout));
}


/* --- Pools of native threads -------------------------------------------- */

enum work {
    WORK_RAW,               // the raw allocators
    WORK_TRACK,             // PyTraceMalloc_Track() and _Untrack()
    WORK_GILSTATE,          // PyGILState_Ensure() before anything else
};

#define POOL_DOMAIN 0x7001u
#define POOL_CAPSULE "_testinternalcapi.tracemalloc_pool"

typedef struct {
    enum work work;
    Py_ssize_t loops;       // each thread's, or -1: until 'stop'
    int stop;               // atomic
    int running;            // atomic: threads that have not finished
    int refs;               // atomic: the capsule or caller, each thread
    Py_ssize_t passes;      // atomic: what all threads have done
    PyEvent done;           // the last thread has finished
} pool_t;

static void
pool_decref(pool_t *pool)
{
    if (_Py_atomic_add_int(&pool->refs, -1) == 1) {
        free(pool);
    }
}

static void
work_raw(Py_ssize_t i)
{
    char *p = (char *)PyMem_RawMalloc(16 + (size_t)(i % 700));
    char *q = (char *)PyMem_RawCalloc(1, 24);
    if (p != NULL) {
        p[0] = 1;
        char *larger = (char *)PyMem_RawRealloc(p, 40 + (size_t)(i % 1100));
        if (larger != NULL) {
            p = larger;
        }
    }
    PyMem_RawFree(q);
    PyMem_RawFree(p);
}

static void
work_track(Py_ssize_t i, const void *mine)
{
    // An address on this thread's own stack: no other thread tracks it.
    uintptr_t ptr = (uintptr_t)mine;
    (void)PyTraceMalloc_Track(POOL_DOMAIN, ptr, 8 + (size_t)(i % 50));
    (void)PyTraceMalloc_Track(POOL_DOMAIN, ptr, 9);
    (void)PyTraceMalloc_Untrack(POOL_DOMAIN, ptr);
}

static void
work_gilstate(void)
{
    PyGILState_STATE gilstate = PyGILState_Ensure();
    PyObject *obj = PyBytes_FromStringAndSize(NULL, 100);
    if (obj == NULL) {
        PyErr_Clear();
    }
    Py_XDECREF(obj);
    PyGILState_Release(gilstate);
}

static void
pool_work(pool_t *pool)
{
    char mine = 0;
    for (Py_ssize_t i = 0; pool->loops < 0 || i < pool->loops; i++) {
        if (_Py_atomic_load_int_relaxed(&pool->stop)) {
            break;
        }
        switch (pool->work) {
        case WORK_RAW:
            work_raw(i);
            break;
        case WORK_TRACK:
            work_track(i, &mine);
            break;
        case WORK_GILSTATE:
            work_gilstate();
            break;
        }
        _Py_atomic_add_ssize(&pool->passes, 1);
    }
}

static void
pool_leave(pool_t *pool)
{
    if (_Py_atomic_add_int(&pool->running, -1) == 1) {
        _PyEvent_Notify(&pool->done);
    }
}

static void
pool_thread(void *arg)
{
    pool_t *pool = (pool_t *)arg;
    pool_work(pool);
    pool_leave(pool);
    pool_decref(pool);
}

static int
work_converter(PyObject *arg, void *out)
{
    static const char * const names[] = {"raw", "track", "gilstate"};
    const char *name = PyUnicode_AsUTF8(arg);
    int i = name == NULL ? -1 : _PyTestTracemalloc_FindName(
        "work", names, Py_ARRAY_LENGTH(names), name);
    *(enum work *)out = (enum work)i;
    return i >= 0;
}

// Start the threads.  The pool itself counts as one that is running, so that
// 'done' is not set before pool_wait().
static pool_t *
pool_new(enum work work, int nthreads, Py_ssize_t loops)
{
    pool_t *pool = (pool_t *)calloc(1, sizeof(pool_t));
    if (pool == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    pool->work = work;
    pool->loops = loops;
    pool->running = 1;
    pool->refs = 1;
    for (int i = 0; i < nthreads; i++) {
        _Py_atomic_add_int(&pool->running, 1);
        _Py_atomic_add_int(&pool->refs, 1);
        if (PyThread_start_new_thread(pool_thread, pool)
            == PYTHREAD_INVALID_THREAD_ID)
        {
            _Py_atomic_add_int(&pool->running, -1);
            _Py_atomic_add_int(&pool->refs, -1);
            _Py_atomic_store_int(&pool->stop, 1);
            pool_decref(pool);
            PyErr_SetString(PyExc_RuntimeError, "cannot start a thread");
            return NULL;
        }
    }
    return pool;
}

// Wait for all threads: the passes that they have done, or -1.  To be called
// once.
static Py_ssize_t
pool_wait(pool_t *pool, double timeout, int detach)
{
    pool_leave(pool);
    if (_PyTestTracemalloc_Wait(&pool->done, timeout, detach) < 0) {
        return -1;
    }
    return _Py_atomic_load_ssize(&pool->passes);
}

PyDoc_STRVAR(run_pool_doc,
"tracemalloc_run_pool(work, nthreads, loops, hold_gil, timeout=60.0)\n"
"--\n\n"
"Run native threads and wait for them, with or without the GIL.\n\n"
"The work is 'raw', 'track' or 'gilstate'.  Return all threads' passes.");

static PyObject *
tracemalloc_run_pool(PyObject *self, PyObject *args)
{
    enum work work;
    int nthreads, hold_gil;
    Py_ssize_t loops;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "O&inp|d", work_converter, &work, &nthreads,
                          &loops, &hold_gil, &timeout))
    {
        return NULL;
    }
    if (loops < 0) {
        PyErr_SetString(PyExc_ValueError, "loops must not be negative");
        return NULL;
    }
    pool_t *pool = pool_new(work, nthreads, loops);
    if (pool == NULL) {
        return NULL;
    }
    Py_ssize_t passes = pool_wait(pool, timeout, !hold_gil);
    _Py_atomic_store_int(&pool->stop, 1);
    pool_decref(pool);
    if (passes < 0) {
        return NULL;
    }
    return PyLong_FromSsize_t(passes);
}

static void
pool_capsule_free(PyObject *capsule)
{
    pool_t *pool = (pool_t *)PyCapsule_GetPointer(capsule, POOL_CAPSULE);
    if (pool != NULL) {
        pool_decref(pool);
    }
}

PyDoc_STRVAR(pool_start_doc,
"tracemalloc_pool_start(work, nthreads)\n"
"--\n\n"
"Start native threads that work until tracemalloc_pool_stop().\n\n"
"A pool that is never stopped works until the process ends.");

static PyObject *
tracemalloc_pool_start(PyObject *self, PyObject *args)
{
    enum work work;
    int nthreads;
    if (!PyArg_ParseTuple(args, "O&i", work_converter, &work, &nthreads)) {
        return NULL;
    }
    pool_t *pool = pool_new(work, nthreads, -1);
    if (pool == NULL) {
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(pool, POOL_CAPSULE, pool_capsule_free);
    if (capsule == NULL) {
        _Py_atomic_store_int(&pool->stop, 1);
        pool_decref(pool);
    }
    return capsule;
}

PyDoc_STRVAR(pool_join_doc,
"tracemalloc_pool_join(pool)\n"
"--\n\n"
"Work in the pool until it is stopped, with the thread state detached.");

static PyObject *
tracemalloc_pool_join(PyObject *self, PyObject *capsule)
{
    pool_t *pool = (pool_t *)PyCapsule_GetPointer(capsule, POOL_CAPSULE);
    if (pool == NULL) {
        return NULL;
    }
    if (pool->work == WORK_GILSTATE) {
        PyErr_SetString(PyExc_ValueError, "this thread has a thread state");
        return NULL;
    }
    _Py_atomic_add_int(&pool->running, 1);
    _Py_atomic_add_int(&pool->refs, 1);
    Py_BEGIN_ALLOW_THREADS
    pool_work(pool);
    pool_leave(pool);
    pool_decref(pool);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(pool_passes_doc,
"tracemalloc_pool_passes(pool)\n"
"--\n\n"
"The passes that all threads of the pool have done so far.");

static PyObject *
tracemalloc_pool_passes(PyObject *self, PyObject *capsule)
{
    pool_t *pool = (pool_t *)PyCapsule_GetPointer(capsule, POOL_CAPSULE);
    if (pool == NULL) {
        return NULL;
    }
    return PyLong_FromSsize_t(_Py_atomic_load_ssize(&pool->passes));
}

PyDoc_STRVAR(pool_stop_doc,
"tracemalloc_pool_stop(pool, timeout=60.0)\n"
"--\n\n"
"Stop the pool and wait for its threads.  Return the passes of all threads.");

static PyObject *
tracemalloc_pool_stop(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "O|d", &capsule, &timeout)) {
        return NULL;
    }
    pool_t *pool = (pool_t *)PyCapsule_GetPointer(capsule, POOL_CAPSULE);
    if (pool == NULL) {
        return NULL;
    }
    if (_Py_atomic_exchange_int(&pool->stop, 1)) {
        PyErr_SetString(PyExc_ValueError, "the pool was stopped before");
        return NULL;
    }
    Py_ssize_t passes = pool_wait(pool, timeout, 1);
    if (passes < 0) {
        return NULL;
    }
    return PyLong_FromSsize_t(passes);
}


/* --- A block that changes hands ----------------------------------------- */

// One thread allocates, another frees.  With most C libraries the next block
// of the first thread is at the address which the second has just freed.

#define HANDOFF_KEEP 64
#define HANDOFF_QUEUE 64
#define HANDOFF_SIZE 3000

typedef struct {
    void *queue[HANDOFF_QUEUE];     // atomic: blocks to be freed
    int stop;                       // atomic
    int refs;                       // atomic: the caller and the thread
    PyEvent done;
} handoff_t;

static void
handoff_decref(handoff_t *handoff)
{
    if (_Py_atomic_add_int(&handoff->refs, -1) == 1) {
        free(handoff);
    }
}

static void
handoff_free_all(handoff_t *handoff)
{
    for (int i = 0; i < HANDOFF_QUEUE; i++) {
        if (_Py_atomic_load_ptr_relaxed(&handoff->queue[i]) != NULL) {
            PyMem_RawFree(_Py_atomic_exchange_ptr(&handoff->queue[i], NULL));
        }
    }
}

static void
handoff_thread(void *arg)
{
    handoff_t *handoff = (handoff_t *)arg;
    while (!_Py_atomic_load_int(&handoff->stop)) {
        handoff_free_all(handoff);
    }
    handoff_free_all(handoff);
    _PyEvent_Notify(&handoff->done);
    handoff_decref(handoff);
}

// Hand a block to the other thread, or free it here if the queue is full.
static void
handoff_give(handoff_t *handoff, Py_ssize_t turn, void *block)
{
    void *empty = NULL;
    if (!_Py_atomic_compare_exchange_ptr(&handoff->queue[turn % HANDOFF_QUEUE],
                                         &empty, block))
    {
        PyMem_RawFree(block);
    }
}

PyDoc_STRVAR(handoff_doc,
"tracemalloc_handoff(loops, timeout=60.0)\n"
"--\n\n"
"Allocate blocks here that another thread frees, again and again.\n\n"
"Return the addresses of the last 64 blocks, which are still allocated.");

static PyObject *
tracemalloc_handoff(PyObject *self, PyObject *args)
{
    Py_ssize_t loops;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "n|d", &loops, &timeout)) {
        return NULL;
    }
    handoff_t *handoff = (handoff_t *)calloc(1, sizeof(handoff_t));
    if (handoff == NULL) {
        return PyErr_NoMemory();
    }
    handoff->refs = 2;
    if (PyThread_start_new_thread(handoff_thread, handoff)
        == PYTHREAD_INVALID_THREAD_ID)
    {
        free(handoff);
        PyErr_SetString(PyExc_RuntimeError, "cannot start a thread");
        return NULL;
    }

    void *kept[HANDOFF_KEEP] = {NULL};
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < loops; i++) {
        void *block = PyMem_RawMalloc(HANDOFF_SIZE);
        void *old = kept[i % HANDOFF_KEEP];
        kept[i % HANDOFF_KEEP] = block;
        if (old != NULL) {
            handoff_give(handoff, i, old);
        }
    }
    Py_END_ALLOW_THREADS

    _Py_atomic_store_int(&handoff->stop, 1);
    int err = _PyTestTracemalloc_Wait(&handoff->done, timeout, 1);
    handoff_decref(handoff);

    PyObject *list = err ? NULL : PyList_New(HANDOFF_KEEP);
    for (int i = 0; list != NULL && i < HANDOFF_KEEP; i++) {
        PyObject *addr = PyLong_FromVoidPtr(kept[i]);
        if (addr == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, addr);
    }
    for (int i = 0; list == NULL && i < HANDOFF_KEEP; i++) {
        PyMem_RawFree(kept[i]);
    }
    return list;
}


/* --- After finalization ------------------------------------------------- */

static void
track_after_finalization(void)
{
    char mine;
    uintptr_t ptr = (uintptr_t)&mine;
    int track = PyTraceMalloc_Track(POOL_DOMAIN, ptr, 10);
    int untrack = PyTraceMalloc_Untrack(POOL_DOMAIN, ptr);
    work_raw(1);
    fprintf(stderr, "after finalization: track %d, untrack %d\n",
            track, untrack);
    fflush(stderr);
}

PyDoc_STRVAR(track_at_exit_doc,
"tracemalloc_track_at_exit()\n"
"--\n\n"
"Call PyTraceMalloc_Track() and _Untrack() once Python is finalized.\n\n"
"The results are written to stderr.");

static PyObject *
tracemalloc_track_at_exit(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (Py_AtExit(track_after_finalization) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "Py_AtExit() failed");
        return NULL;
    }
    Py_RETURN_NONE;
}


/* --- The functions ------------------------------------------------------ */

static PyMethodDef test_methods[] = {
    {"tracemalloc_raw_malloc", tracemalloc_raw_malloc, METH_VARARGS,
     raw_malloc_doc},
    {"tracemalloc_raw_calloc", tracemalloc_raw_calloc, METH_VARARGS,
     raw_calloc_doc},
    {"tracemalloc_raw_realloc", tracemalloc_raw_realloc, METH_VARARGS,
     raw_realloc_doc},
    {"tracemalloc_raw_free", tracemalloc_raw_free, METH_VARARGS,
     raw_free_doc},
    {"tracemalloc_track", tracemalloc_track, METH_VARARGS, track_doc},
    {"tracemalloc_untrack", tracemalloc_untrack, METH_VARARGS, untrack_doc},
    {"tracemalloc_run_pool", tracemalloc_run_pool, METH_VARARGS,
     run_pool_doc},
    {"tracemalloc_pool_start", tracemalloc_pool_start, METH_VARARGS,
     pool_start_doc},
    {"tracemalloc_pool_join", tracemalloc_pool_join, METH_O, pool_join_doc},
    {"tracemalloc_pool_passes", tracemalloc_pool_passes, METH_O,
     pool_passes_doc},
    {"tracemalloc_pool_stop", tracemalloc_pool_stop, METH_VARARGS,
     pool_stop_doc},
    {"tracemalloc_handoff", tracemalloc_handoff, METH_VARARGS, handoff_doc},
    {"tracemalloc_track_at_exit", tracemalloc_track_at_exit, METH_NOARGS,
     track_at_exit_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocThreads(PyObject *module)
{
    return PyModule_AddFunctions(module, test_methods);
}
