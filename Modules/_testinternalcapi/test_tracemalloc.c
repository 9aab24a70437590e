/* Native threads and raw memory blocks for test_tracemalloc_interpreters.

   The Python tests cannot make a thread without a thread state, cannot
   allocate with PyMem_RawMalloc() while they hold no GIL, and cannot look at
   the traced memory without changing it.  The functions here do that, and
   only that: what is right and what is wrong is for the tests to say.

   Everything that outlives a call (jobs, pools) comes from the C library's
   malloc(), so that no test sees memory of this file in its traces.  What a
   native thread uses is reference counted: when a wait times out, the thread
   that did not come back keeps its share alive. */

#include "parts.h"
#include "pycore_interp.h"        // _PyInterpreterState_LookUpID()
#include "pycore_lock.h"          // PyEvent
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // _PyTraceMalloc_GetTraceback()

#include <errno.h>                // errno
#include <stdlib.h>               // malloc(), free(), abort()


/* --- Arguments ---------------------------------------------------------- */

/* The thread that makes a call: this one with its thread state attached or
   detached, or a new one that never has a thread state. */
enum how { ATTACHED, DETACHED, STATELESS };

static int
parse_how(const char *name, enum how *how)
{
    static const char * const names[] = {"attached", "detached", "stateless"};
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *how = (enum how)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown kind of thread: '%s'", name);
    return -1;
}

/* Wait for an event of a native thread.  Without 'detach' the caller keeps
   the GIL for the whole time.  Interrupted waits go on. */
static int
wait_for_event(PyEvent *event, double timeout, int detach)
{
    PyTime_t now, deadline;
    (void)PyTime_MonotonicRaw(&now);
    deadline = now + (PyTime_t)(timeout * 1e9);
    do {
        if (PyEvent_WaitTimed(event, deadline - now, detach)) {
            return 0;
        }
        (void)PyTime_MonotonicRaw(&now);
    } while (now < deadline);
    PyErr_SetString(PyExc_TimeoutError, "a native thread did not finish");
    return -1;
}


/* --- One call of the allocators, by any kind of thread ------------------ */

enum op { RAW_MALLOC, RAW_CALLOC, RAW_REALLOC, RAW_FREE, TRACK, UNTRACK };

typedef struct {
    enum op op;
    unsigned int domain;
    void *ptr;
    size_t size;
    int res;
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
        PyMem_RawFree(job->ptr);
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
    _PyEvent_Notify(&job->done);
    job_decref(job);
}

/* Run the job in the kind of thread that the test asked for.  A stateless
   thread is waited for with the GIL held. */
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
    return wait_for_event(&job->done, timeout, 0);
}

/* Return the job that has run, to be released by job_decref(). */
static job_t *
job_call(enum op op, unsigned int domain, PyObject *addr, Py_ssize_t size,
         const char *how_name, double timeout)
{
    enum how how;
    if (parse_how(how_name, &how) < 0) {
        return NULL;
    }
    void *ptr = NULL;
    if (addr != NULL) {
        ptr = PyLong_AsVoidPtr(addr);
        if (ptr == NULL && PyErr_Occurred()) {
            return NULL;
        }
    }
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

/* The address of the block, or None where there is no memory. */
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

/* What PyTraceMalloc_Track() or PyTraceMalloc_Untrack() returned. */
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

#define DEFAULT_TIMEOUT 60.0

PyDoc_STRVAR(raw_malloc_doc,
"tracemalloc_raw_malloc(size, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawMalloc() in a thread that is attached, detached or stateless.");

static PyObject *
tracemalloc_raw_malloc(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "n|sd", &size, &how, &timeout)) {
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
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "n|sd", &size, &how, &timeout)) {
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
    PyObject *addr;
    Py_ssize_t size;
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "On|sd", &addr, &size, &how, &timeout)) {
        return NULL;
    }
    return job_address(job_call(RAW_REALLOC, 0, addr, size, how, timeout));
}

PyDoc_STRVAR(raw_free_doc,
"tracemalloc_raw_free(address, how='attached', timeout=60.0)\n"
"--\n\n"
"PyMem_RawFree().");

static PyObject *
tracemalloc_raw_free(PyObject *self, PyObject *args)
{
    PyObject *addr;
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "O|sd", &addr, &how, &timeout)) {
        return NULL;
    }
    job_t *job = job_call(RAW_FREE, 0, addr, 0, how, timeout);
    if (job == NULL) {
        return NULL;
    }
    job_decref(job);
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
    PyObject *addr;
    Py_ssize_t size;
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "IOn|sd", &domain, &addr, &size, &how,
                          &timeout))
    {
        return NULL;
    }
    return job_result(job_call(TRACK, domain, addr, size, how, timeout));
}

PyDoc_STRVAR(untrack_doc,
"tracemalloc_untrack(domain, address, how='attached', timeout=60.0)\n"
"--\n\n"
"The result of PyTraceMalloc_Untrack().");

static PyObject *
tracemalloc_untrack(PyObject *self, PyObject *args)
{
    unsigned int domain;
    PyObject *addr;
    const char *how = "attached";
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "IO|sd", &domain, &addr, &how, &timeout)) {
        return NULL;
    }
    return job_result(job_call(UNTRACK, domain, addr, 0, how, timeout));
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
parse_work(const char *name, enum work *work)
{
    static const char * const names[] = {"raw", "track", "gilstate"};
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *work = (enum work)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown kind of work: '%s'", name);
    return -1;
}

/* Start the threads.  The pool itself counts as one that is running, so that
   'done' is not set before pool_wait(). */
static pool_t *
pool_new(const char *work_name, int nthreads, Py_ssize_t loops)
{
    enum work work;
    if (parse_work(work_name, &work) < 0) {
        return NULL;
    }
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

/* Wait for all threads: the passes that they have done, or -1.  To be called
   once. */
static Py_ssize_t
pool_wait(pool_t *pool, double timeout, int detach)
{
    pool_leave(pool);
    if (wait_for_event(&pool->done, timeout, detach) < 0) {
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
    const char *work;
    int nthreads, hold_gil;
    Py_ssize_t loops;
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "sinp|d", &work, &nthreads, &loops,
                          &hold_gil, &timeout))
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
    const char *work;
    int nthreads;
    if (!PyArg_ParseTuple(args, "si", &work, &nthreads)) {
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

/* One thread allocates, another frees.  With most C libraries the next block
   of the first thread is at the address which the second has just freed. */

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

/* Hand a block to the other thread, or free it here if the queue is full. */
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
"Return how many blocks that are still allocated have no trace, out of 64.");

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
    int err = wait_for_event(&handoff->done, timeout, 1);
    handoff_decref(handoff);

    long missing = 0;
    for (int i = 0; i < HANDOFF_KEEP; i++) {
        if (kept[i] == NULL) {
            continue;
        }
        if (!err) {
            PyObject *frames = _PyTraceMalloc_GetTraceback(
                0, (uintptr_t)kept[i]);
            if (frames == NULL) {
                err = -1;
            }
            missing += (frames == Py_None);
            Py_XDECREF(frames);
        }
        PyMem_RawFree(kept[i]);
    }
    return err ? NULL : PyLong_FromLong(missing);
}


/* --- Exact readings ----------------------------------------------------- */

/* The functions of _tracemalloc in the interpreter of the caller, looked up
   before the reading, so that nothing is allocated while it is made. */
static PyObject *
get_function(const char *name)
{
    PyObject *module = PyImport_ImportModule("_tracemalloc");
    if (module == NULL) {
        return NULL;
    }
    PyObject *func = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return func;
}

static int
read_pair(PyObject *get_traced_memory, Py_ssize_t pair[2])
{
    PyObject *res = PyObject_CallNoArgs(get_traced_memory);
    if (res == NULL) {
        return -1;
    }
    int ok = PyArg_ParseTuple(res, "nn", &pair[0], &pair[1]);
    Py_DECREF(res);
    return ok ? 0 : -1;
}

static Py_ssize_t
sum_sizes(PyObject *traces)
{
    Py_ssize_t sum = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(traces); i++) {
        PyObject *trace = PyList_GET_ITEM(traces, i);
        sum += PyLong_AsSsize_t(PyTuple_GET_ITEM(trace, 1));
    }
    return sum;
}

/* The sum of the sizes of this interpreter's traces, or -1, and the counter
   as it was then. */
static Py_ssize_t
sum_own_traces(Py_ssize_t *traced)
{
    Py_ssize_t sum = -1, pair[2];
    PyObject *list, *traces;
    PyObject *get_traced_memory = get_function("get_traced_memory");
    PyObject *get_traces = get_function("_get_traces");
    if (get_traced_memory == NULL || get_traces == NULL) {
        goto done;
    }
    // Leave an empty list in the free list, for _get_traces() to find: that
    // list must not be a new block between the traces and the counter.
    list = PyList_New(0);
    if (list == NULL) {
        goto done;
    }
    Py_DECREF(list);
    traces = PyObject_CallNoArgs(get_traces);
    if (traces == NULL) {
        goto done;
    }
    // Before the traces go: tuples that were taken out of the free list may
    // not go back there, but be freed.
    if (read_pair(get_traced_memory, pair) == 0) {
        sum = sum_sizes(traces);
        *traced = pair[0];
    }
    Py_DECREF(traces);

done:
    Py_XDECREF(get_traces);
    Py_XDECREF(get_traced_memory);
    return PyErr_Occurred() ? -1 : sum;
}

/* The same for another interpreter that nobody runs at the moment.

   What happens to that interpreter's memory while the traces are released
   and the thread state is cleared that was needed to get them, is a change
   of the counter, and is added to the sum. */
static Py_ssize_t
sum_traces_of(PyInterpreterState *interp, PyObject *get_traced_memory)
{
    PyThreadState *tstate = PyThreadState_New(interp);
    if (tstate == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    PyThreadState *save_tstate = PyThreadState_Swap(tstate);
    Py_ssize_t inside = 0, pair[2];
    Py_ssize_t sum = sum_own_traces(&inside);
    PyErr_Clear();
    PyThreadState_Clear(tstate);
    PyThreadState_Swap(save_tstate);
    int err = read_pair(get_traced_memory, pair);
    PyThreadState_Delete(tstate);
    if (err) {
        return -1;
    }
    if (sum < 0) {
        PyErr_SetString(PyExc_RuntimeError,
                        "cannot get the traces of another interpreter");
        return -1;
    }
    return sum + (pair[0] - inside);
}

/* Add up the traces of other interpreters. */
static Py_ssize_t
sum_others(PyObject *ids, PyObject *get_traced_memory)
{
    Py_ssize_t sum = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ids); i++) {
        PyInterpreterState *interp = _PyInterpreterState_LookUpIDObject(
            PyTuple_GET_ITEM(ids, i));
        if (interp == NULL) {
            return -1;
        }
        if (interp == PyInterpreterState_Get()) {
            PyErr_SetString(PyExc_ValueError,
                            "the current interpreter is added anyway");
            return -1;
        }
        Py_ssize_t part = sum_traces_of(interp, get_traced_memory);
        if (part < 0) {
            return -1;
        }
        sum += part;
    }
    return sum;
}

PyDoc_STRVAR(sums_doc,
"tracemalloc_sums(*ids)\n"
"--\n\n"
"Return (sizes of all traces, get_traced_memory()[0]), read at one moment.\n\n"
"The traces are those of the current interpreter and of the others that are\n"
"given, none of which may be running.");

static PyObject *
tracemalloc_sums(PyObject *self, PyObject *ids)
{
    PyObject *get_traced_memory = get_function("get_traced_memory");
    if (get_traced_memory == NULL) {
        return NULL;
    }
    // This interpreter comes last: entering the others allocates memory here.
    Py_ssize_t others = sum_others(ids, get_traced_memory);
    Py_DECREF(get_traced_memory);
    if (others < 0) {
        return NULL;
    }
    Py_ssize_t traced = 0;
    Py_ssize_t sum = sum_own_traces(&traced);
    if (sum < 0) {
        return NULL;
    }
    return Py_BuildValue("nn", sum + others, traced);
}

PyDoc_STRVAR(records_doc,
"tracemalloc_records()\n"
"--\n\n"
"Return the number of records of the allocators below the hooks.");

static PyObject *
tracemalloc_records(PyObject *self, PyObject *Py_UNUSED(args))
{
    struct _tracemalloc_runtime_state *runtime = &_PyRuntime.tracemalloc;
    Py_ssize_t n = 0;
    PyMutex_Lock(&runtime->mutex);
    for (struct _tracemalloc_record *record = runtime->records;
         record != NULL; record = record->previous)
    {
        n++;
    }
    PyMutex_Unlock(&runtime->mutex);
    return PyLong_FromSsize_t(n);
}

PyDoc_STRVAR(call_and_read_doc,
"tracemalloc_call_and_read(name)\n"
"--\n\n"
"Call a function of _tracemalloc and read get_traced_memory() at once.");

static PyObject *
tracemalloc_call_and_read(PyObject *self, PyObject *args)
{
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name)) {
        return NULL;
    }
    PyObject *get_traced_memory = get_function("get_traced_memory");
    if (get_traced_memory == NULL) {
        return NULL;
    }
    PyObject *func = get_function(name);
    if (func == NULL) {
        Py_DECREF(get_traced_memory);
        return NULL;
    }
    Py_ssize_t pair[2];
    int err = -1;
    PyObject *res = PyObject_CallNoArgs(func);
    if (res != NULL) {
        err = read_pair(get_traced_memory, pair);
        Py_DECREF(res);
    }
    Py_DECREF(func);
    Py_DECREF(get_traced_memory);
    return err ? NULL : Py_BuildValue("nn", pair[0], pair[1]);
}

PyDoc_STRVAR(peak_of_doc,
"tracemalloc_peak_of(size)\n"
"--\n\n"
"Call reset_peak(), allocate and free a raw block of this size.\n\n"
"Return by how much the peak is now above the current size.");

static PyObject *
tracemalloc_peak_of(PyObject *self, PyObject *args)
{
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "n", &size)) {
        return NULL;
    }
    PyObject *get_traced_memory = get_function("get_traced_memory");
    if (get_traced_memory == NULL) {
        return NULL;
    }
    PyObject *reset_peak = get_function("reset_peak");
    if (reset_peak == NULL) {
        Py_DECREF(get_traced_memory);
        return NULL;
    }
    Py_ssize_t pair[2];
    int err = -1;
    PyObject *res = PyObject_CallNoArgs(reset_peak);
    if (res != NULL) {
        Py_DECREF(res);
        PyMem_RawFree(PyMem_RawMalloc((size_t)size));
        err = read_pair(get_traced_memory, pair);
    }
    Py_DECREF(reset_peak);
    Py_DECREF(get_traced_memory);
    return err ? NULL : PyLong_FromSsize_t(pair[1] - pair[0]);
}


/* --- Objects that die in another interpreter ---------------------------- */

PyDoc_STRVAR(leak_doc,
"tracemalloc_leak(obj)\n"
"--\n\n"
"Add a reference to an object and return its address.");

static PyObject *
tracemalloc_leak(PyObject *self, PyObject *obj)
{
    return PyLong_FromVoidPtr(Py_NewRef(obj));
}

PyDoc_STRVAR(unleak_doc,
"tracemalloc_unleak(address)\n"
"--\n\n"
"Drop the reference that tracemalloc_leak() has added.");

static PyObject *
tracemalloc_unleak(PyObject *self, PyObject *addr)
{
    PyObject *obj = (PyObject *)PyLong_AsVoidPtr(addr);
    if (obj == NULL) {
        return NULL;
    }
    Py_DECREF(obj);
    Py_RETURN_NONE;
}


/* --- A user's reference tracer ------------------------------------------ */

typedef struct {
    Py_ssize_t created;     // atomic
    Py_ssize_t destroyed;   // atomic
} ref_counts_t;

static int
count_refs(PyObject *Py_UNUSED(obj), PyRefTracerEvent event, void *data)
{
    ref_counts_t *counts = (ref_counts_t *)data;
    if (event == PyRefTracer_CREATE) {
        _Py_atomic_add_ssize(&counts->created, 1);
    }
    else {
        _Py_atomic_add_ssize(&counts->destroyed, 1);
    }
    return 0;
}

PyDoc_STRVAR(set_ref_tracer_doc,
"tracemalloc_set_ref_tracer()\n"
"--\n\n"
"Set a PyRefTracer which counts objects.");

static PyObject *
tracemalloc_set_ref_tracer(PyObject *self, PyObject *Py_UNUSED(args))
{
    // Never freed: another thread may be in count_refs() at any time.
    ref_counts_t *counts = (ref_counts_t *)calloc(1, sizeof(ref_counts_t));
    if (counts == NULL) {
        return PyErr_NoMemory();
    }
    if (PyRefTracer_SetTracer(count_refs, counts) < 0) {
        free(counts);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_ref_tracer_doc,
"tracemalloc_get_ref_tracer()\n"
"--\n\n"
"Return what the PyRefTracer has counted: (created, destroyed).\n\n"
"None if there is none, False if there is another one.");

static PyObject *
tracemalloc_get_ref_tracer(PyObject *self, PyObject *Py_UNUSED(args))
{
    void *data = NULL;
    PyRefTracer tracer = PyRefTracer_GetTracer(&data);
    if (tracer == NULL) {
        Py_RETURN_NONE;
    }
    if (tracer != count_refs) {
        Py_RETURN_FALSE;
    }
    ref_counts_t *counts = (ref_counts_t *)data;
    return Py_BuildValue("nn", _Py_atomic_load_ssize(&counts->created),
                         _Py_atomic_load_ssize(&counts->destroyed));
}

PyDoc_STRVAR(unset_ref_tracer_doc,
"tracemalloc_unset_ref_tracer()\n"
"--\n\n"
"Set the PyRefTracer to NULL.");

static PyObject *
tracemalloc_unset_ref_tracer(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (PyRefTracer_SetTracer(NULL, NULL) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}


/* --- Keys of thread specific storage ------------------------------------ */

#define KEYS_CAPSULE "_testinternalcapi.tracemalloc_keys"
#define MAX_KEYS (1 << 16)

typedef struct {
    int nkeys;
    Py_tss_t keys[MAX_KEYS];
} keys_t;

static void
keys_capsule_free(PyObject *capsule)
{
    keys_t *keys = (keys_t *)PyCapsule_GetPointer(capsule, KEYS_CAPSULE);
    if (keys == NULL) {
        return;
    }
    while (keys->nkeys > 0) {
        PyThread_tss_delete(&keys->keys[--keys->nkeys]);
    }
    free(keys);
}

PyDoc_STRVAR(take_keys_doc,
"tracemalloc_take_keys(leave)\n"
"--\n\n"
"Create TSS keys until only 'leave' of them are left in this process.\n\n"
"They are deleted with the capsule that is returned; None if this system\n"
"has no limit.");

static PyObject *
tracemalloc_take_keys(PyObject *self, PyObject *args)
{
    int leave;
    if (!PyArg_ParseTuple(args, "i", &leave)) {
        return NULL;
    }
    keys_t *keys = (keys_t *)calloc(1, sizeof(keys_t));
    if (keys == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *capsule = PyCapsule_New(keys, KEYS_CAPSULE, keys_capsule_free);
    if (capsule == NULL) {
        free(keys);
        return NULL;
    }
    while (keys->nkeys < MAX_KEYS
           && PyThread_tss_create(&keys->keys[keys->nkeys]) == 0)
    {
        keys->nkeys++;
    }
    if (keys->nkeys == MAX_KEYS) {
        Py_DECREF(capsule);
        Py_RETURN_NONE;
    }
    for (; leave > 0 && keys->nkeys > 0; leave--) {
        PyThread_tss_delete(&keys->keys[--keys->nkeys]);
    }
    return capsule;
}


/* --- An allocator below the hooks --------------------------------------- */

/* Installed before tracing starts, so that tracemalloc wraps it and gets its
   own memory from it as well.  It does one of two things when it is told to:
   it has no memory for some requests of one thread, or it holds one thread up
   in the middle of a request. */

#define NO_THREAD 0u
// What debug allocators may add to the size of a block.
#define DEBUG_EXTRA 64

static struct {
    int installed;
    PyMemAllocatorEx wrapped[3];        // by PyMemAllocatorDomain

    unsigned long thread;               // atomic: whose requests fail
    // The rest is for that thread alone.
    Py_ssize_t start;                   // the first request that fails
    Py_ssize_t stop;                    // the first after it that does not
    size_t spare;                       // blocks of this size never fail
    Py_ssize_t count;                   // requests so far
    Py_ssize_t failed;                  // requests that failed
    void *spared;                       // a block of that size, if not freed

    uintptr_t keep;                     // atomic: a block that is not freed
    size_t keep_size;                   // set before
    uintptr_t kept;                     // atomic: the same block, once it is
    void *kept_ctx;                     // of that allocator; set before

    uintptr_t gate;                     // atomic: a size, or an address
    int gate_detaches;                  // set before the gate
    PyEvent gate_reached;
    PyEvent gate_open;
} below;

static int
is_failing_thread(void)
{
    unsigned long thread = _Py_atomic_load_ulong(&below.thread);
    return thread != NO_THREAD && thread == PyThread_get_thread_ident();
}

static int
is_spared(size_t size)
{
    return below.spare != 0
           && size >= below.spare && size - below.spare <= DEBUG_EXTRA;
}

static int
has_no_memory(size_t size)
{
    if (!is_failing_thread() || is_spared(size)) {
        return 0;
    }
    Py_ssize_t i = below.count++;
    if (i < below.start || i >= below.stop) {
        return 0;
    }
    below.failed++;
    errno = ENOMEM;
    return 1;
}

static void
note_block(void *ptr, size_t size)
{
    if (ptr != NULL && is_failing_thread() && size == below.spare) {
        below.spared = ptr;
    }
}

/* Is this the block that shall not be given back when it is freed? */
static int
keep_block(void *ctx, uintptr_t ptr)
{
    if (ptr == 0
        || !_Py_atomic_compare_exchange_uintptr(&below.keep, &ptr, 0))
    {
        return 0;
    }
    below.kept_ctx = ctx;
    _Py_atomic_store_uintptr(&below.kept, ptr);
    return 1;
}

/* The block that was kept, if that is what is wanted, or NULL. */
static void *
reuse_block(void *ctx, size_t size)
{
    uintptr_t ptr = _Py_atomic_load_uintptr(&below.kept);
    if (ptr != 0 && size == below.keep_size && ctx == below.kept_ctx
        && _Py_atomic_compare_exchange_uintptr(&below.kept, &ptr, 0))
    {
        return (void *)ptr;
    }
    return NULL;
}

/* The first thread that comes with this size or address waits. */
static void
wait_at_gate(uintptr_t key)
{
    if (key != 0
        && _Py_atomic_compare_exchange_uintptr(&below.gate, &key, 0))
    {
        _PyEvent_Notify(&below.gate_reached);
        while (!PyEvent_WaitTimed(&below.gate_open, 1000 * 1000 * 1000,
                                  below.gate_detaches)) {
        }
    }
}

static void *
below_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(size)) {
        return NULL;
    }
    wait_at_gate(size);
    void *ptr = reuse_block(ctx, size);
    if (ptr == NULL) {
        ptr = wrapped->malloc(wrapped->ctx, size);
    }
    note_block(ptr, size);
    return ptr;
}

static void *
below_calloc(void *ctx, size_t nelem, size_t elsize)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(nelem * elsize)) {
        return NULL;
    }
    wait_at_gate(nelem * elsize);
    void *ptr = wrapped->calloc(wrapped->ctx, nelem, elsize);
    note_block(ptr, nelem * elsize);
    return ptr;
}

static void *
below_realloc(void *ctx, void *ptr, size_t size)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(size)) {
        return NULL;
    }
    wait_at_gate(size);
    ptr = wrapped->realloc(wrapped->ctx, ptr, size);
    note_block(ptr, size);
    return ptr;
}

static void
below_free(void *ctx, void *ptr)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    int kept = keep_block(ctx, (uintptr_t)ptr);
    wait_at_gate((uintptr_t)ptr);
    if (is_failing_thread() && ptr == below.spared) {
        below.spared = NULL;
    }
    if (!kept) {
        wrapped->free(wrapped->ctx, ptr);
    }
}

PyDoc_STRVAR(below_install_doc,
"tracemalloc_below_install()\n"
"--\n\n"
"Wrap the allocators, so that they can be made to fail or to wait.");

static PyObject *
tracemalloc_below_install(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "installed already");
        return NULL;
    }
    below.installed = 1;
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(below.wrapped); i++) {
        PyMemAllocatorDomain domain = (PyMemAllocatorDomain)i;
        PyMem_GetAllocator(domain, &below.wrapped[i]);
        PyMemAllocatorEx alloc = {
            .ctx = &below.wrapped[i],
            .malloc = below_malloc,
            .calloc = below_calloc,
            .realloc = below_realloc,
            .free = below_free,
        };
        PyMem_SetAllocator(domain, &alloc);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(below_remove_doc,
"tracemalloc_below_remove()\n"
"--\n\n"
"Set the allocators that tracemalloc_below_install() has found.");

static PyObject *
tracemalloc_below_remove(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (!below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "not installed");
        return NULL;
    }
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(below.wrapped); i++) {
        PyMem_SetAllocator((PyMemAllocatorDomain)i, &below.wrapped[i]);
    }
    below.installed = 0;
    Py_RETURN_NONE;
}

/* From here on requests of this thread fail. */
static int
begin_failing(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t spare)
{
    if (!below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "not installed");
        return -1;
    }
    below.start = start;
    below.stop = stop;
    below.spare = (size_t)spare;
    below.count = below.failed = 0;
    below.spared = NULL;
    _Py_atomic_store_ulong(&below.thread, PyThread_get_thread_ident());
    return 0;
}

static void
end_failing(void)
{
    _Py_atomic_store_ulong(&below.thread, NO_THREAD);
}

PyDoc_STRVAR(call_failing_doc,
"tracemalloc_call_failing(func, start, stop)\n"
"--\n\n"
"Call func() without memory for the requests from 'start' up to 'stop'.\n\n"
"Return (exception or None, number of requests that failed).");

static PyObject *
tracemalloc_call_failing(PyObject *self, PyObject *args)
{
    PyObject *func;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "Onn", &func, &start, &stop)
        || begin_failing(start, stop, 0) < 0)
    {
        return NULL;
    }
    PyObject *res = PyObject_CallNoArgs(func);
    PyObject *exc = PyErr_GetRaisedException();
    end_failing();
    Py_XDECREF(res);
    if (exc == NULL) {
        exc = Py_NewRef(Py_None);
    }
    return Py_BuildValue("Nn", exc, below.failed);
}

static void *
domain_realloc(PyMemAllocatorDomain domain, void *ptr, size_t size)
{
    switch (domain) {
    case PYMEM_DOMAIN_RAW:
        return ptr ? PyMem_RawRealloc(ptr, size) : PyMem_RawMalloc(size);
    case PYMEM_DOMAIN_MEM:
        return ptr ? PyMem_Realloc(ptr, size) : PyMem_Malloc(size);
    default:
        return ptr ? PyObject_Realloc(ptr, size) : PyObject_Malloc(size);
    }
}

static int
parse_domain(const char *name, PyMemAllocatorDomain *domain)
{
    static const char * const names[] = {"raw", "mem", "obj"};
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *domain = (PyMemAllocatorDomain)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown allocator domain: '%s'", name);
    return -1;
}

PyDoc_STRVAR(realloc_failing_doc,
"tracemalloc_realloc_failing(domain, address, size, start, stop, spare)\n"
"--\n\n"
"Reallocate a block in the domain 'raw', 'mem' or 'obj', or allocate one if\n"
"the address is 0, without memory for the requests from 'start' to 'stop'.\n\n"
"If 'spare' is true then the block itself does not fail nor count.  Return\n"
"(address or None, number of requests that failed, is a block lost?).");

static PyObject *
tracemalloc_realloc_failing(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *addr;
    Py_ssize_t size, start, stop;
    int spare;
    PyMemAllocatorDomain domain;
    if (!PyArg_ParseTuple(args, "sOnnnp", &name, &addr, &size,
                          &start, &stop, &spare)
        || parse_domain(name, &domain) < 0)
    {
        return NULL;
    }
    void *ptr = PyLong_AsVoidPtr(addr);
    if ((ptr == NULL && PyErr_Occurred())
        || begin_failing(start, stop, spare ? size : 0) < 0)
    {
        return NULL;
    }
    ptr = domain_realloc(domain, ptr, (size_t)size);
    end_failing();
    int lost = ptr == NULL && below.spared != NULL;
    addr = ptr == NULL ? Py_NewRef(Py_None) : PyLong_FromVoidPtr(ptr);
    return Py_BuildValue("Nni", addr, below.failed, lost);
}

PyDoc_STRVAR(domain_free_doc,
"tracemalloc_domain_free(domain, address)\n"
"--\n\n"
"Free a block of the domain 'raw', 'mem' or 'obj'.");

static PyObject *
tracemalloc_domain_free(PyObject *self, PyObject *args)
{
    const char *name;
    PyObject *addr;
    PyMemAllocatorDomain domain;
    if (!PyArg_ParseTuple(args, "sO", &name, &addr)
        || parse_domain(name, &domain) < 0)
    {
        return NULL;
    }
    void *ptr = PyLong_AsVoidPtr(addr);
    if (ptr == NULL && PyErr_Occurred()) {
        return NULL;
    }
    switch (domain) {
    case PYMEM_DOMAIN_RAW:
        PyMem_RawFree(ptr);
        break;
    case PYMEM_DOMAIN_MEM:
        PyMem_Free(ptr);
        break;
    case PYMEM_DOMAIN_OBJ:
        PyObject_Free(ptr);
        break;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(keep_doc,
"tracemalloc_keep(address, size)\n"
"--\n\n"
"Do not give the block at this address back when it is freed.  The next one\n"
"who asks the same allocator for a block of this size gets it.");

static PyObject *
tracemalloc_keep(PyObject *self, PyObject *args)
{
    PyObject *addr;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "On", &addr, &size)) {
        return NULL;
    }
    void *ptr = PyLong_AsVoidPtr(addr);
    if (ptr == NULL && PyErr_Occurred()) {
        return NULL;
    }
    below.keep_size = (size_t)size;
    _Py_atomic_store_uintptr(&below.keep, (uintptr_t)ptr);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_close_doc,
"tracemalloc_gate_close(key, detach=False)\n"
"--\n\n"
"Hold up the first thread that asks the allocators for a block of this size,\n"
"or frees the block at this address; with 'detach' without the GIL.");

static PyObject *
tracemalloc_gate_close(PyObject *self, PyObject *args)
{
    PyObject *key;
    int detach = 0;
    if (!PyArg_ParseTuple(args, "O|p", &key, &detach)) {
        return NULL;
    }
    void *value = PyLong_AsVoidPtr(key);
    if (value == NULL && PyErr_Occurred()) {
        return NULL;
    }
    below.gate_reached = below.gate_open = (PyEvent){0};
    below.gate_detaches = detach;
    _Py_atomic_store_uintptr(&below.gate, (uintptr_t)value);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_wait_doc,
"tracemalloc_gate_wait(timeout=60.0)\n"
"--\n\n"
"Wait, without the GIL, until a thread stands at the gate.");

static PyObject *
tracemalloc_gate_wait(PyObject *self, PyObject *args)
{
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "|d", &timeout)
        || wait_for_event(&below.gate_reached, timeout, 1) < 0)
    {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_open_doc,
"tracemalloc_gate_open()\n"
"--\n\n"
"Let the thread at the gate go on.");

static PyObject *
tracemalloc_gate_open(PyObject *self, PyObject *Py_UNUSED(args))
{
    _Py_atomic_store_uintptr(&below.gate, 0);
    _PyEvent_Notify(&below.gate_open);
    Py_RETURN_NONE;
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


/* --- Without the runtime's lock ----------------------------------------- */

/* What an attached thread does most: allocate, reallocate and free blocks of
   its own.  Whoever waits for the lock in here waits forever. */
static int
use_credit(size_t size)
{
    for (int i = 0; i < 1000; i++) {
        void *raw = PyMem_RawMalloc(size);
        void *obj = PyObject_Malloc(size);
        void *larger = obj == NULL ? NULL : PyObject_Realloc(obj, 2 * size);
        PyMem_RawFree(raw);
        PyObject_Free(larger != NULL ? larger : obj);
        if (larger == NULL || raw == NULL) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(use_credit_doc,
"tracemalloc_use_credit()\n"
"\n"
"Allocate, reallocate and free small blocks while the lock of the runtime's\n"
"tracemalloc state is held.  The sum is brought well below its peak before.");

static PyObject *
tracemalloc_use_credit(PyObject *self, PyObject *Py_UNUSED(args))
{
    /* What is freed becomes credit. */
    PyMem_RawFree(PyMem_RawMalloc(1 << 20));

    PyMutex *mutex = &_PyRuntime.tracemalloc.mutex;
    PyMutex_Lock(mutex);
    int res = use_credit(64);
    PyMutex_Unlock(mutex);
    if (res < 0) {
        return PyErr_NoMemory();
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
    {"tracemalloc_sums", tracemalloc_sums, METH_VARARGS, sums_doc},
    {"tracemalloc_records", tracemalloc_records, METH_NOARGS, records_doc},
    {"tracemalloc_call_and_read", tracemalloc_call_and_read, METH_VARARGS,
     call_and_read_doc},
    {"tracemalloc_peak_of", tracemalloc_peak_of, METH_VARARGS, peak_of_doc},
    {"tracemalloc_leak", tracemalloc_leak, METH_O, leak_doc},
    {"tracemalloc_unleak", tracemalloc_unleak, METH_O, unleak_doc},
    {"tracemalloc_set_ref_tracer", tracemalloc_set_ref_tracer, METH_NOARGS,
     set_ref_tracer_doc},
    {"tracemalloc_get_ref_tracer", tracemalloc_get_ref_tracer, METH_NOARGS,
     get_ref_tracer_doc},
    {"tracemalloc_unset_ref_tracer", tracemalloc_unset_ref_tracer,
     METH_NOARGS, unset_ref_tracer_doc},
    {"tracemalloc_take_keys", tracemalloc_take_keys, METH_VARARGS,
     take_keys_doc},
    {"tracemalloc_below_install", tracemalloc_below_install, METH_NOARGS,
     below_install_doc},
    {"tracemalloc_below_remove", tracemalloc_below_remove, METH_NOARGS,
     below_remove_doc},
    {"tracemalloc_call_failing", tracemalloc_call_failing, METH_VARARGS,
     call_failing_doc},
    {"tracemalloc_realloc_failing", tracemalloc_realloc_failing,
     METH_VARARGS, realloc_failing_doc},
    {"tracemalloc_domain_free", tracemalloc_domain_free, METH_VARARGS,
     domain_free_doc},
    {"tracemalloc_keep", tracemalloc_keep, METH_VARARGS, keep_doc},
    {"tracemalloc_gate_close", tracemalloc_gate_close, METH_VARARGS,
     gate_close_doc},
    {"tracemalloc_gate_wait", tracemalloc_gate_wait, METH_VARARGS,
     gate_wait_doc},
    {"tracemalloc_gate_open", tracemalloc_gate_open, METH_NOARGS,
     gate_open_doc},
    {"tracemalloc_track_at_exit", tracemalloc_track_at_exit, METH_NOARGS,
     track_at_exit_doc},
    {"tracemalloc_use_credit", tracemalloc_use_credit, METH_NOARGS,
     use_credit_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_Tracemalloc(PyObject *module)
{
    if (PyModule_AddFunctions(module, test_methods) < 0) {
        return -1;
    }
    return 0;
}
