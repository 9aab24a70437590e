// An oracle for tracemalloc: random operations, and a model of the traces.
//
// Threads of all kinds (attached, detached, stateless) in all kinds of
// interpreters (main, sharing the main GIL, with a GIL of their own) allocate,
// reallocate, free, track and untrack blocks, and start, stop and clear
// tracemalloc.  The oracle writes down which trace each block must have, and
// compares that with all traces there are, by address, and with the
// process-wide counters.
//
// Everything happens in rounds.  All threads ("actors") go down into Python
// code to some depth and rest there.  The traces that Python's own memory has
// at this moment are the baseline.  Then only code of the oracle runs, so that
// at the end of the round each trace must be one of the baseline or one that
// the oracle knows, and the other way round.
//
// This file has the threads and the rounds, test_tracemalloc_oracle_steps.c
// what they do, and test_tracemalloc_oracle_compare.c compares.
//
// - In a serial round the actors take turns: everything is known.  The
//   counters and the peak are compared after one step in sixteen, and after
//   the last one.
// - In a parallel round all actors run at once and pass blocks to each other.
//   Each interpreter has a version, which is odd while tracing is started,
//   stopped or cleared there, and another one afterwards.  What was recorded
//   while the version did not change is known; what was recorded meanwhile
//   may have a trace or not, and if it has one then the right one.
//
// The driver is Lib/test/tracemalloc_oracle.py; run it with the seed of a
// failure, and the same options, to replay it:
//
//     ./python -m test.tracemalloc_oracle --seed 1234
//
// The oracle's own memory comes from malloc(), and is not traced.  It calls
// the functions of _tracemalloc where these allocate nothing.  Of the code of
// tracemalloc it uses only what reads the traces and the counters, since no
// Python object may be made for that.

#include "parts.h"
#include "pycore_interp.h"        // _PyInterpreterState_LookUpID()
#include "test_tracemalloc_oracle.h"

#include <stdarg.h>               // va_list

oracle_state _PyTestOracle;

void
_PyTestOracle_Fail(const char *format, ...)
{
    int no = 0;
    if (_Py_atomic_compare_exchange_int(&_PyTestOracle.failed, &no, 1)) {
        va_list args;
        va_start(args, format);
        vsnprintf(_PyTestOracle.message, sizeof(_PyTestOracle.message),
                  format, args);
        va_end(args);
    }
}


/* --- Actors ------------------------------------------------------------- */

static void
attach(actor_t *a)
{
    PyEval_RestoreThread(a->tstate);
    a->attached = true;
}

static void
detach(actor_t *a)
{
    a->attached = false;
    (void)PyEval_SaveThread();
}

static void
steps(actor_t *a, int n)
{
    while (n > 0 && !failed()) {
        bool attached = !a->stateless && rnd(a, 4) != 0;
        if (attached) {
            attach(a);
        }
        for (size_t i = rnd(a, 6) + 1; n > 0 && i > 0; i--, n--) {
            _PyTestOracle_Step(a);
        }
        if (attached) {
            detach(a);
        }
    }
}

static enum command
report_and_wait(actor_t *a)
{
    _PySemaphore_Wakeup(&_PyTestOracle.done);
    wait_for(&a->wake);
    return a->command;
}

// Where an actor rests in a round.  Detached.
static void
rest(actor_t *a, const frames_t *frames)
{
    a->frames = frames;
    a->at_rest = true;
    while (true) {
        switch (report_and_wait(a)) {
            case STEPS:
                steps(a, a->nsteps);
                break;
            case SNAPSHOT:
                attach(a);
                if (_PyTraceMalloc_Snapshot(a->snapshot) < 0) {
                    abort();
                }
                detach(a);
                break;
            default:
                return;
        }
    }
}

static void
enter(actor_t *a)
{
    if (a->stateless || a->depth < 0) {
        rest(a, _PyTestOracle.unknown);
        return;
    }
    attach(a);
    a->at_rest = false;
    PyObject *res = PyObject_CallFunction(
        a->descend, "iiI", a->index, a->depth,
        (unsigned int)rnd(a, (size_t)1 << 31));
    if (res == NULL) {
        PyErr_Print();
        _PyTestOracle_Fail("actor %d: its Python code failed", a->index);
    }
    Py_XDECREF(res);
    detach(a);
    if (!a->at_rest) {
        // Keep in step with the others.
        rest(a, _PyTestOracle.unknown);
    }
}

// Free the blocks of an object allocator that may end with the interpreter.
// In the free-threaded build each thread has a heap of its own, which goes to
// the thread's interpreter when the thread ends.
static void
drain(actor_t *a)
{
#ifndef Py_GIL_DISABLED
    if (a->home->pool == POOL_MAIN) {
        return;
    }
#endif
    for (int i = 0; i < NSLOTS; i++) {
        block_t **slot = &_PyTestOracle.pools[a->home->pool].slots[i];
        if (*slot != NULL) {
            _PyTestOracle_FreeBlock(a, *slot);
            *slot = NULL;
        }
    }
}

static int
get_functions(actor_t *a)
{
    static const char * const names[] = {
        "start", "stop", "clear_traces", "reset_peak", "is_tracing",
        "get_traceback_limit",
    };
    PyObject *module = PyImport_ImportModule("_tracemalloc");
    for (int i = 0; module != NULL && i < NFUNCTIONS; i++) {
        a->functions[i] = PyObject_GetAttrString(module, names[i]);
    }
    Py_XDECREF(module);
    for (int i = 0; i < NLIMITS; i++) {
        a->limits[i] = PyLong_FromLong(_PyTestOracle_Limits[i]);
    }
    return PyErr_Occurred() ? -1 : 0;
}

// It may have been started by -X tracemalloc.
static void
get_state(actor_t *a)
{
    begin_change(a->home);
    PyObject *limit = PyObject_CallNoArgs(a->functions[GET_TRACEBACK_LIMIT]);
    end_change(a->home, _PyTestOracle_Call(a, IS_TRACING, NULL) == Py_True,
               (int)PyLong_AsLong(limit));
    a->home->known = true;
    Py_XDECREF(limit);
}

static void
actor_begin(actor_t *a)
{
    a->tstate = PyThreadState_New(a->home->interp);
    if (a->tstate == NULL) {
        abort();
    }
    attach(a);
    PyObject *module = PyImport_ImportModule("test.tracemalloc_oracle");
    if (module != NULL) {
        a->descend = PyObject_GetAttrString(module, "descend");
        Py_DECREF(module);
    }
    if (a->descend == NULL || get_functions(a) < 0) {
        PyErr_Print();
        _PyTestOracle_Fail("actor %d cannot import its Python code", a->index);
    }
    else if (!a->home->known) {
        get_state(a);
    }
    detach(a);
}

static void
actor_thread(void *arg)
{
    actor_t *a = (actor_t *)arg;
    if (!a->stateless) {
        actor_begin(a);
    }
    while (report_and_wait(a) == ENTER) {
        enter(a);
    }
    if (!a->stateless) {
        attach(a);
        drain(a);
        Py_CLEAR(a->descend);
        for (int i = 0; i < NFUNCTIONS; i++) {
            Py_CLEAR(a->functions[i]);
        }
        for (int i = 0; i < NLIMITS; i++) {
            Py_CLEAR(a->limits[i]);
        }
        PyThreadState_Clear(a->tstate);
        PyThreadState_DeleteCurrent();
    }
    _PySemaphore_Wakeup(&_PyTestOracle.done);
}

static void
tell_all(enum command command)
{
    int n = 0;
    FOR_ACTORS(a) {
        command_actor(a, command);
        n++;
    }
    for (; n > 0; n--) {
        wait_for(&_PyTestOracle.done);
    }
}


/* --- Rounds ------------------------------------------------------------- */

// Free the frames that no block needs.
static void
sweep_frames(void)
{
    for (frames_t *frames = _PyTestOracle.all_frames; frames != NULL;
         frames = frames->next)
    {
        frames->used = frames == _PyTestOracle.unknown;
    }
    FOR_BLOCKS(b) {
        if (b->owner >= 0) {
            ((frames_t *)b->frames)->used = true;
        }
    }
    frames_t **link = &_PyTestOracle.all_frames;
    while (*link != NULL) {
        frames_t *frames = *link;
        if (frames->used) {
            link = &frames->next;
        }
        else {
            *link = frames->next;
            free(frames);
        }
    }
}

static int
rnd_depth(actor_t *a)
{
    size_t what = rnd(a, 400);
    if (what == 0 && !is_tracing(a->home)) {
        // Not while tracing: going down would take quadratic time, and as
        // much memory if all frames are kept.
        a->home->deep = true;
        return MAX_TOTAL_NFRAME + 5;
    }
    return what < 4 ? 1000 : what < 40 ? 100 : what < 70 ? -1
           : (int)rnd(a, 30);
}

// Threads may hold credit that was given out to them, and each query takes it
// back: so most steps are not followed by one.
#define STEPS_PER_QUERY 16

static void
run_serial(actor_t *director, int nsteps)
{
    actor_t *alive[MAX_ACTORS];
    size_t n = 0;
    FOR_ACTORS(a) {
        alive[n++] = a;
        a->nsteps = 1;
        a->tally = &_PyTestOracle.tally;
    }
    for (; nsteps > 0 && !failed(); nsteps--) {
        actor_t *a = alive[rnd(director, n)];
        command_actor(a, STEPS);
        wait_for(&_PyTestOracle.done);
        if (nsteps % STEPS_PER_QUERY == 1) {
            _PyTestOracle_CheckCounters(a);
        }
    }
}

static void
run_parallel(int nsteps)
{
    FOR_ACTORS(a) {
        a->nsteps = nsteps;
        a->own = (tally_t){0};
        a->tally = &a->own;
        a->seen = 0;
    }
    tell_all(STEPS);
    if (!failed()) {
        _PyTestOracle_CheckBounds();
    }
}

static void
run_round(uint64_t seed, int nsteps)
{
    actor_t director = {.rng = mix(seed)};
    sweep_frames();
    FOR_ACTORS(a) {
        a->home->deep = false;
    }
    FOR_ACTORS(a) {
        a->rng = mix(mix(seed) + (uint64_t)a->index + 1);
        a->depth = rnd_depth(a);
    }
    tell_all(ENTER);
    _PyTestOracle_Audit(true);
    if (!failed()) {
        if (_PyTestOracle.parallel) {
            run_parallel(nsteps);
        }
        else {
            run_serial(&director, nsteps);
        }
    }
    _PyTestOracle_Audit(false);
    tell_all(LEAVE);
}


/* --- Functions ---------------------------------------------------------- */

static PyObject *
result(PyObject *value)
{
    if (failed()) {
        PyErr_SetString(PyExc_AssertionError, _PyTestOracle.message);
        Py_CLEAR(value);
    }
    return value;
}

static void
init_oracle(void)
{
    _PySemaphore_Init(&_PyTestOracle.done);
    _PyTestOracle.unknown = _PyTestOracle_UnknownFrames();
    for (uintptr_t i = 0; i < NSLOTS; i++) {
        // The same address in several domains, and the extremes of both.
        // Domain 0 too: no allocator returns these addresses.
        static const unsigned int domains[] = {0, 1, 0xbeef, UINT_MAX};
        block_t *b = alloc(sizeof(block_t));
        b->kind = TRACKED;
        b->domain = domains[i % 4];
        b->ptr = i < 4 ? UINTPTR_MAX : (i / 4 - 1) * 16;
        b->owner = -1;
        _PyTestOracle.pools[POOL_TRACKED].slots[i] = b;
    }
}

static int
add_actor(interp_t *home, bool stateless)
{
    int i = 0;
    while (i < MAX_ACTORS && _PyTestOracle.actors[i].alive) {
        i++;
    }
    actor_t *a = &_PyTestOracle.actors[i];
    if (i < MAX_ACTORS) {
        *a = (actor_t){.alive = true, .index = i, .stateless = stateless,
                       .home = home, .tally = &_PyTestOracle.tally};
        _PySemaphore_Init(&a->wake);
    }
    if (i == MAX_ACTORS
        || (PyThread_start_new_thread(actor_thread, a)
            == PYTHREAD_INVALID_THREAD_ID))
    {
        PyErr_SetString(PyExc_RuntimeError, "no more threads");
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    wait_for(&_PyTestOracle.done);
    Py_END_ALLOW_THREADS
    return 0;
}

PyDoc_STRVAR(add_doc,
"tracemalloc_oracle_add(id, nactors, nstateless, may_fail)\n"
"--\n\n"
"Add an interpreter, with threads of its own and stateless ones.\n\n"
"The main one comes first.  'may_fail': ask for too much memory at times.\n"
"Return its index.");

static PyObject *
add(PyObject *self, PyObject *args)
{
    long long id;
    int nactors, nstateless, may_fail, i = 0;
    if (!PyArg_ParseTuple(args, "Liip", &id, &nactors, &nstateless,
                          &may_fail))
    {
        return NULL;
    }
    if (_PyTestOracle.unknown == NULL) {
        init_oracle();
    }
    _PyTestOracle.may_fail = may_fail;
    while (i < MAX_INTERPS - 1 && _PyTestOracle.interps[i].interp != NULL) {
        i++;
    }
    interp_t *it = &_PyTestOracle.interps[i];
    PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
    if (it->interp != NULL || interp == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no such interpreter, or full");
        return NULL;
    }
    bool own = !(interp->feature_flags & Py_RTFLAGS_USE_MAIN_OBMALLOC);
    it->interp = interp;
    it->known = false;
    it->kind = i == 0 ? "main" : own ? "isolated" : "legacy";
    it->pool = POOL_MAIN + (i != 0 && own ? i : 0);
    for (int n = 0; n < nactors + nstateless; n++) {
        if (add_actor(it, n >= nactors) < 0) {
            return NULL;
        }
    }
    return result(PyLong_FromLong(i));
}

PyDoc_STRVAR(remove_doc,
"tracemalloc_oracle_remove(index)\n"
"--\n\n"
"Forget an interpreter, which is going to be destroyed, and end its threads.");

static PyObject *
remove_(PyObject *self, PyObject *arg)
{
    long index = PyLong_AsLong(arg);
    if (index < 0 || index >= MAX_INTERPS) {
        return PyErr_Format(PyExc_ValueError, "wrong index");
    }
    interp_t *interp = &_PyTestOracle.interps[index];
    Py_BEGIN_ALLOW_THREADS
    FOR_ACTORS(a) {
        if (a->home == interp) {
            a->tally = &_PyTestOracle.tally;
            command_actor(a, QUIT);
            wait_for(&_PyTestOracle.done);
            _PySemaphore_Destroy(&a->wake);
            a->alive = false;
        }
    }
    Py_END_ALLOW_THREADS
    begin_change(interp);
    end_change(interp, false, 1);
    interp->interp = NULL;
    return result(Py_NewRef(Py_None));
}

PyDoc_STRVAR(act_doc,
"tracemalloc_oracle_act(actor)\n"
"--\n\n"
"Called by the actor's Python code where it shall rest during the round.");

static PyObject *
act(PyObject *self, PyObject *arg)
{
    long i = PyLong_AsLong(arg);
    if (i < 0 || i >= MAX_ACTORS) {
        return NULL;
    }
    actor_t *a = &_PyTestOracle.actors[i];
    frames_t *frames = _PyTestOracle_Capture();
    detach(a);
    rest(a, frames);
    attach(a);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(round_doc,
"tracemalloc_oracle_round(seed, nsteps, parallel, quiet)\n"
"--\n\n"
"Run a round; AssertionError if there is a difference.\n\n"
"In a parallel round each actor makes 'nsteps' steps, otherwise all\n"
"together.  Nothing is started, stopped or cleared in a quiet one.  Return\n"
"the number of traces that were looked at.");

static PyObject *
round_(PyObject *self, PyObject *args)
{
    unsigned long long seed;
    int nsteps, parallel, quiet;
    if (!PyArg_ParseTuple(args, "Kipp", &seed, &nsteps, &parallel, &quiet)) {
        return NULL;
    }
    _PyTestOracle.parallel = parallel;
    _PyTestOracle.quiet = quiet;
    _PyTestOracle.ncompared = 0;
    Py_BEGIN_ALLOW_THREADS
    run_round(seed, nsteps);
    Py_END_ALLOW_THREADS
    return result(PyLong_FromSize_t(_PyTestOracle.ncompared));
}

static PyMethodDef test_methods[] = {
    {"tracemalloc_oracle_add", add, METH_VARARGS, add_doc},
    {"tracemalloc_oracle_remove", remove_, METH_O, remove_doc},
    {"tracemalloc_oracle_act", act, METH_O, act_doc},
    {"tracemalloc_oracle_round", round_, METH_VARARGS, round_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocOracle(PyObject *module)
{
    return PyModule_AddFunctions(module, test_methods);
}
