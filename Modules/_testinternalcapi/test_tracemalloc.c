// What the tests of tracemalloc cannot do in Python, other than by threads,
// allocators and frames: look at the traced memory without changing it, leak an
// object, set a reference tracer, run out of keys or code versions.

#include "parts.h"
#include "pycore_interp.h"        // _PyInterpreterState_LookUpIDObject()
#include "pycore_runtime.h"       // _PyRuntime
#include "test_tracemalloc.h"

#include <stdlib.h>               // calloc(), free()


/* --- Shared with the other files ---------------------------------------- */

const domain_functions _PyTestTracemalloc_Domains[3] = {
    [PYMEM_DOMAIN_RAW] = {
        PyMem_RawMalloc, PyMem_RawCalloc, PyMem_RawRealloc, PyMem_RawFree,
    },
    [PYMEM_DOMAIN_MEM] = {
        PyMem_Malloc, PyMem_Calloc, PyMem_Realloc, PyMem_Free,
    },
    [PYMEM_DOMAIN_OBJ] = {
        PyObject_Malloc, PyObject_Calloc, PyObject_Realloc, PyObject_Free,
    },
};

int
_PyTestTracemalloc_FindName(const char *what, const char * const *names,
                            int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    PyErr_Format(PyExc_ValueError, "unknown kind of %s: '%s'", what, name);
    return -1;
}

int
_PyTestTracemalloc_DomainConverter(PyObject *arg, void *out)
{
    static const char * const names[] = {"raw", "mem", "obj"};
    const char *name = PyUnicode_AsUTF8(arg);
    int i = name == NULL ? -1 : _PyTestTracemalloc_FindName(
        "allocator domain", names, Py_ARRAY_LENGTH(names), name);
    if (i < 0) {
        return 0;
    }
    *(const domain_functions **)out = &_PyTestTracemalloc_Domains[i];
    return 1;
}

int
_PyTestTracemalloc_AddressConverter(PyObject *arg, void *out)
{
    void *ptr = PyLong_AsVoidPtr(arg);
    *(void **)out = ptr;
    return ptr != NULL || !PyErr_Occurred();
}

// Interrupted waits go on.
int
_PyTestTracemalloc_Wait(PyEvent *event, double timeout, int detach)
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


/* --- Exact readings ----------------------------------------------------- */

// The functions of _tracemalloc in the interpreter of the caller, looked up
// before the reading, so that nothing is allocated while it is made.
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

// The sum of the sizes of this interpreter's traces, or -1, and the counter
// as it was then.
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

// The same for another interpreter that nobody runs at the moment.
//
// What happens to that interpreter's memory while the traces are released
// and the thread state is cleared that was needed to get them, is a change
// of the counter, and is added to the sum.
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

// Add up the traces of other interpreters.
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
    for (const tracemalloc_allocator *record = runtime->allocators;
         record != NULL; record = record->next)
    {
        n++;
    }
    PyMutex_Unlock(&runtime->mutex);
    return PyLong_FromSsize_t(n);
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


/* --- Without the runtime's lock ----------------------------------------- */

// What an attached thread does most: allocate, reallocate and free blocks of
// its own.  Whoever waits for the lock in here waits forever.
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
"tracemalloc state is held.  Before that, the sum is brought well below its\n"
"peak, and a closed credit is given the time to be opened again.");

static PyObject *
tracemalloc_use_credit(PyObject *self, PyObject *Py_UNUSED(args))
{
    // What is freed becomes credit.
    PyMem_RawFree(PyMem_RawMalloc(1 << 20));
    int res = use_credit(64);

    PyMutex *mutex = &_PyRuntime.tracemalloc.mutex;
    PyMutex_Lock(mutex);
    if (res == 0) {
        res = use_credit(64);
    }
    PyMutex_Unlock(mutex);
    if (res < 0) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(call_locked_doc,
"tracemalloc_call_locked(func)\n"
"--\n\n"
"Call func() while the lock of the runtime's tracemalloc state is held, and\n"
"return the result.  Nothing may trace.");

static PyObject *
tracemalloc_call_locked(PyObject *self, PyObject *func)
{
    PyMutex *mutex = &_PyRuntime.tracemalloc.mutex;
    PyMutex_Lock(mutex);
    PyObject *result = PyObject_CallNoArgs(func);
    PyMutex_Unlock(mutex);
    return result;
}


#define NUM_BLOCKS 8192
#define MAX_SUM 50000000          // bytes
#define MAX_TURNERS 4

typedef struct {
    void *blocks[NUM_BLOCKS];
    size_t sizes[NUM_BLOCKS];
    int nblocks;
    size_t sum;                   // bytes
    size_t peak;
    uint64_t random;
} turns_state;

static uint32_t
next_random(turns_state *state)
{
    // Knuth's MMIX generator; the high bits are the good ones.
    state->random = state->random * UINT64_C(6364136223846793005)
                    + UINT64_C(1442695040888963407);
    return (uint32_t)(state->random >> 33);
}

// Allocate and free raw blocks, without anything else that is traced.  Some
// turns are long enough for credit to be opened, in some nothing is freed, and
// in some the blocks are larger than what credit is handed out.
static void
take_turn(turns_state *state)
{
    uint32_t nsteps = next_random(state) % (next_random(state) % 2 ? 3000 : 5);
    uint32_t nadds = next_random(state) % 5;    // of four steps
    uint32_t max_size = next_random(state) % 2 ? 700 : 100000;
    for (uint32_t i = 0; i < nsteps; i++) {
        bool full = state->nblocks == NUM_BLOCKS || state->sum >= MAX_SUM;
        if (next_random(state) % 4 < nadds && !full) {
            size_t size = 1 + next_random(state) % max_size;
            state->sizes[state->nblocks] = size;
            state->blocks[state->nblocks] = PyMem_RawMalloc(size);
            state->nblocks++;
            state->sum += size;
            state->peak = Py_MAX(state->peak, state->sum);
        }
        else if (state->nblocks > 0) {
            int index = (int)(next_random(state) % (uint32_t)state->nblocks);
            PyMem_RawFree(state->blocks[index]);
            state->sum -= state->sizes[index];
            state->nblocks--;
            state->blocks[index] = state->blocks[state->nblocks];
            state->sizes[index] = state->sizes[state->nblocks];
        }
    }
}

PyDoc_STRVAR(take_turns_doc,
"tracemalloc_take_turns(seed, *ids)\n"
"--\n\n"
"Call reset_peak(), then allocate and free raw blocks in this interpreter\n"
"and in at most three others, in turns.\n\n"
"Return the growth of the sum and of the peak, and what they have to be.");

static PyObject *
tracemalloc_take_turns(PyObject *self, PyObject *args)
{
    PyThreadState *tstates[MAX_TURNERS] = {PyThreadState_Get()};
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n < 2 || n > MAX_TURNERS) {
        PyErr_SetString(PyExc_TypeError, "wrong number of arguments");
        return NULL;
    }
    unsigned long seed = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(args, 0));
    if (seed == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *reset_peak = get_function("reset_peak");
    PyObject *res = reset_peak == NULL ? NULL
                    : PyObject_CallNoArgs(reset_peak);
    Py_XDECREF(reset_peak);
    if (res == NULL) {
        return NULL;
    }
    Py_DECREF(res);
    // Not traced.
    turns_state *state = calloc(1, sizeof(*state));
    if (state == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 1; i < n; i++) {
        PyInterpreterState *interp = _PyInterpreterState_LookUpIDObject(
            PyTuple_GET_ITEM(args, i));
        tstates[i] = interp == NULL ? NULL : PyThreadState_New(interp);
        if (tstates[i] == NULL) {
            Py_FatalError("no interpreter or no memory");
        }
    }
    state->random = seed;
    size_t before, peak_before, sum, peak;
    _PyTraceMalloc_GetTracedMemory(&before, &peak_before);
    for (uint32_t turns = next_random(state) % 16; turns > 0; turns--) {
        PyThreadState_Swap(tstates[next_random(state) % (uint32_t)n]);
        take_turn(state);
    }
    PyThreadState_Swap(tstates[0]);
    _PyTraceMalloc_GetTracedMemory(&sum, &peak);
    PyObject *found = Py_BuildValue("(nn)(nn)", (Py_ssize_t)(sum - before),
                                    (Py_ssize_t)(peak - before),
                                    (Py_ssize_t)state->sum,
                                    (Py_ssize_t)state->peak);
    while (state->nblocks > 0) {
        PyMem_RawFree(state->blocks[--state->nblocks]);
    }
    free(state);
    for (Py_ssize_t i = 1; i < n; i++) {
        PyThreadState_Swap(tstates[i]);
        PyThreadState_Clear(tstates[i]);
        PyThreadState_Swap(tstates[0]);
        PyThreadState_Delete(tstates[i]);
    }
    return found;
}


/* --- Versions of code objects ------------------------------------------- */

PyDoc_STRVAR(next_code_version_doc,
"tracemalloc_next_code_version(version)\n"
"--\n\n"
"Set the version of the next code object: 0 if there are none left, which\n"
"remains so.  Return what it would have been.");

static PyObject *
tracemalloc_next_code_version(PyObject *self, PyObject *arg)
{
    unsigned long version = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred()) {
        return NULL;
    }
    struct _py_func_state *state = &PyInterpreterState_Get()->func_state;
    uint32_t old = state->next_version;
    state->next_version = (uint32_t)version;
    return PyLong_FromUnsignedLong(old);
}


/* --- The functions ------------------------------------------------------ */

static PyMethodDef test_methods[] = {
    {"tracemalloc_sums", tracemalloc_sums, METH_VARARGS, sums_doc},
    {"tracemalloc_records", tracemalloc_records, METH_NOARGS, records_doc},
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
    {"tracemalloc_use_credit", tracemalloc_use_credit, METH_NOARGS,
     use_credit_doc},
    {"tracemalloc_call_locked", tracemalloc_call_locked, METH_O,
     call_locked_doc},
    {"tracemalloc_take_turns", tracemalloc_take_turns, METH_VARARGS,
     take_turns_doc},
    {"tracemalloc_next_code_version", tracemalloc_next_code_version, METH_O,
     next_code_version_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_Tracemalloc(PyObject *module)
{
#if SIZEOF_VOID_P == 8
    // As in 3.13.5: what follows in _PyRuntime stays where it was.
    Py_BUILD_ASSERT(sizeof(_PyRuntime.tracemalloc) == 224 + sizeof(Py_tss_t));
#endif
    return PyModule_AddFunctions(module, test_methods);
}
