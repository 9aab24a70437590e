// The _tracemalloc module: makes Python objects of the traces.  A query copies
// the traces, and makes objects of them with no lock held.

#include "Python.h"
#include "pycore_global_strings.h"  // _Py_DECLARE_STR()
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_list.h"          // _PyList_AppendTakeRef()
#include "pycore_object.h"        // _PyType_PreHeaderSize()
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _Py_STR()
#include "pycore_tracemalloc.h"   // tracemalloc_snapshot
#include "pycore_unicodeobject.h" // _PyUnicode_InternMortal()

#include "clinic/_tracemalloc.c.h"

_Py_DECLARE_STR(anon_unknown, "<unknown>");


/*[clinic input]
module _tracemalloc
[clinic start generated code]*/
/*[clinic end generated code: output=da39a3ee5e6b4b0d input=708a98302fc46e5f]*/


/* --- Raw data to objects ------------------------------------------------ */

// Filenames and tracebacks of a snapshot as objects, to make each once.
typedef struct {
    const tracemalloc_intern *intern;
    // By id, as far as there is room: strong references or NULL.
    PyObject **objects;
    size_t nobjects;
} converter;

static PyObject *
filename_as_object(converter *conv, uint32_t id)
{
    if (id == 0) {
        return Py_NewRef(&_Py_STR(anon_unknown));
    }
    if (id < conv->nobjects && conv->objects[id] != NULL) {
        return Py_NewRef(conv->objects[id]);
    }
    const tracemalloc_item *name = _PyTraceMalloc_GetItem(conv->intern, id);
    PyObject *filename = PyUnicode_FromKindAndData(name->unit, name->frames,
                                                   (Py_ssize_t)name->length);
    if (filename == NULL) {
        return NULL;
    }
    if (id < conv->nobjects) {
        conv->objects[id] = Py_NewRef(filename);
    }
    else {
        // As that of a code object is: it is the same one.
        _PyUnicode_InternMortal(_PyInterpreterState_GET(), &filename);
    }
    return filename;
}

static PyObject *
frame_as_object(converter *conv, const tracemalloc_frame *frame)
{
    return Py_BuildValue("(NI)", filename_as_object(conv, frame->filename),
                         (unsigned int)frame->lineno);
}

static PyObject *
traceback_as_object(converter *conv, uint32_t id)
{
    if (id < conv->nobjects && conv->objects[id] != NULL) {
        return Py_NewRef(conv->objects[id]);
    }
    const tracemalloc_item *item = _PyTraceMalloc_GetItem(conv->intern, id);
    PyObject *tuple = PyTuple_New((Py_ssize_t)item->length);
    if (tuple == NULL) {
        return NULL;
    }
    for (uint32_t i = 0; i < item->length; i++) {
        PyObject *frame = frame_as_object(conv, &item->frames[i]);
        if (frame == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, i, frame);
    }
    if (id < conv->nobjects) {
        conv->objects[id] = Py_NewRef(tuple);
    }
    return tuple;
}

// Steals a reference to `item`, which may be NULL with an exception set.
static int
set_item(PyObject *tuple, Py_ssize_t i, PyObject *item)
{
    PyTuple_SET_ITEM(tuple, i, item);
    return item == NULL ? -1 : 0;
}

static PyObject *
trace_as_object(converter *conv, const tracemalloc_trace *trace)
{
    PyObject *tuple = PyTuple_New(4);
    if (tuple == NULL) {
        return NULL;
    }
    uint32_t id = trace->traceback;
    long total = _PyTraceMalloc_GetItem(conv->intern, id)->total_nframe;
    if (set_item(tuple, 0, PyLong_FromUnsignedLong(trace->domain)) < 0
        || set_item(tuple, 1, PyLong_FromSize_t(trace->size)) < 0
        || set_item(tuple, 2, traceback_as_object(conv, id)) < 0
        || set_item(tuple, 3, PyLong_FromLong(total)) < 0)
    {
        Py_DECREF(tuple);
        return NULL;
    }
    // It is in no cycle: spare the collector a million of them.
    PyObject_GC_UnTrack(tuple);
    return tuple;
}

static bool
is_equal(const tracemalloc_trace *a, const tracemalloc_trace *b)
{
    return a->size == b->size && a->traceback == b->traceback
           && a->domain == b->domain;
}

// A power of 2.
#define NUM_EARLIER 1024

// Equal traces get one object where an earlier one is found at once: to touch
// new memory is most of what an object costs.
static int
fill_list(PyObject *list, converter *conv,
          const tracemalloc_snapshot *snapshot)
{
    // By hash, the index of a trace that may be equal.
    size_t earlier[NUM_EARLIER] = {0};
    for (size_t i = 0; i < snapshot->ntraces; i++) {
        const tracemalloc_trace *trace = &snapshot->traces[i];
        uint32_t hash = _PyTraceMalloc_HashBlock(trace->traceback,
                                                 trace->size);
        size_t *found = &earlier[(hash >> 16) % NUM_EARLIER];
        PyObject *obj;
        if (*found < i && is_equal(trace, &snapshot->traces[*found])) {
            obj = Py_NewRef(PyList_GET_ITEM(list, (Py_ssize_t)*found));
        }
        else {
            *found = i;
            obj = trace_as_object(conv, trace);
        }
        if (obj == NULL
            || _PyList_AppendTakeRef((PyListObject *)list, obj) < 0)
        {
            return -1;
        }
    }
    return 0;
}

static int
convert_traces(PyObject *list, const tracemalloc_snapshot *snapshot)
{
    // Below the hooks: it is not to be traced.
    const PyMemAllocatorEx *allocator = snapshot->allocator;
    if (snapshot->ntraces == 0) {
        return 0;
    }
    converter conv = {
        .intern = snapshot->intern,
        .nobjects = (size_t)snapshot->last_id + 1,
    };
    conv.objects = allocator->calloc(allocator->ctx, conv.nobjects,
                                     sizeof(PyObject *));
    if (conv.objects == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int res = fill_list(list, &conv, snapshot);
    for (size_t i = 0; i < conv.nobjects; i++) {
        Py_XDECREF(conv.objects[i]);
    }
    allocator->free(allocator->ctx, conv.objects);
    return res;
}

PyObject *
_PyTraceMalloc_GetTraceback(unsigned int domain, uintptr_t ptr)
{
    tracemalloc_trace trace;
    tracemalloc_snapshot snapshot;
    PyObject *result;
    if (_PyTraceMalloc_SnapshotBlock(domain, ptr, &trace, &snapshot)) {
        // There may be millions of ids: make no room for objects.
        converter conv = {.intern = snapshot.intern};
        result = traceback_as_object(&conv, trace.traceback);
    }
    else {
        result = Py_NewRef(Py_None);
    }
    _PyTraceMalloc_FreeSnapshot(&snapshot);
    return result;
}


/* --- Functions of the module -------------------------------------------- */

/*[clinic input]
_tracemalloc.is_tracing

Return True if this interpreter is tracing its memory allocations.
[clinic start generated code]*/

static PyObject *
_tracemalloc_is_tracing_impl(PyObject *module)
/*[clinic end generated code: output=2d763b42601cd3ef input=e5729416377cdf11]*/
{
    return PyBool_FromLong(
        _PyInterpreterState_GET()->tracemalloc.tracing);
}


/*[clinic input]
_tracemalloc.clear_traces

Forget all memory blocks traced by this interpreter.

The peak becomes the size of what other interpreters have traced.
[clinic start generated code]*/

static PyObject *
_tracemalloc_clear_traces_impl(PyObject *module)
/*[clinic end generated code: output=a86080ee41b84197 input=66edc1f9b25059c1]*/
{
    _PyTraceMalloc_ClearTraces();
    Py_RETURN_NONE;
}


/*[clinic input]
_tracemalloc._get_traces

Get the traces of all memory blocks allocated by this interpreter.

Return a list of (domain: int, size: int, traceback: tuple,
total_nframe: int) tuples.  A traceback is a tuple of
(filename: str, lineno: int) tuples.

Return an empty list if this interpreter is not tracing.
[clinic start generated code]*/

static PyObject *
_tracemalloc__get_traces_impl(PyObject *module)
/*[clinic end generated code: output=e9929876ced4b5cc input=1323da57d5ea4e09]*/
{
    // Without a GIL, PyList_New() crashes if there is no memory for the items.
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    tracemalloc_snapshot snapshot;
    if (_PyTraceMalloc_Snapshot(&snapshot) < 0) {
        Py_DECREF(list);
        return NULL;
    }
    // Only the list itself, as in 3.13.5, is among the traces; not its items.
    _PyThreadStateImpl *tstate = (_PyThreadStateImpl *)_PyThreadState_GET();
    bool reentrant = tstate->tracemalloc.reentrant;
    tstate->tracemalloc.reentrant = true;
    if (convert_traces(list, &snapshot) < 0) {
        Py_CLEAR(list);
    }
    tstate->tracemalloc.reentrant = reentrant;
    _PyTraceMalloc_FreeSnapshot(&snapshot);
    return list;
}


/*[clinic input]
_tracemalloc._get_object_traceback

    obj: object
    /

Get the traceback of where the object was allocated.

Return a tuple of (filename: str, lineno: int) tuples.

Return None if this interpreter is not tracing, or did not trace the
allocation of the object.
[clinic start generated code]*/

static PyObject *
_tracemalloc__get_object_traceback(PyObject *module, PyObject *obj)
/*[clinic end generated code: output=41ee0553a658b0aa input=176b92c88936300c]*/
{
    size_t presize = _PyType_PreHeaderSize(Py_TYPE(obj));
    return _PyTraceMalloc_GetTraceback(0, (uintptr_t)obj - presize);
}


/*[clinic input]
_tracemalloc.start

    nframe: int = 1
    /

Start tracing the memory allocations of this interpreter.

Keep at most nframe frames of the traceback of each block.  Do nothing
if this interpreter is tracing already.
[clinic start generated code]*/

static PyObject *
_tracemalloc_start_impl(PyObject *module, int nframe)
/*[clinic end generated code: output=caae05c23c159d3c input=9560a91198613bbf]*/
{
    if (_PyTraceMalloc_Start(nframe, false) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}


/*[clinic input]
_tracemalloc.stop

Stop tracing the memory allocations of this interpreter.

Also forget all memory blocks traced by it.
[clinic start generated code]*/

static PyObject *
_tracemalloc_stop_impl(PyObject *module)
/*[clinic end generated code: output=c3c42ae03e3955cd input=3d7e630650b62b0e]*/
{
    _PyTraceMalloc_Stop(_PyInterpreterState_GET());
    Py_RETURN_NONE;
}


/*[clinic input]
_tracemalloc.get_traceback_limit

Get the maximum number of frames kept of a traceback.

It is 1 until this interpreter starts tracing with another one.
[clinic start generated code]*/

static PyObject *
_tracemalloc_get_traceback_limit_impl(PyObject *module)
/*[clinic end generated code: output=d556d9306ba95567 input=929a539c1b0af09b]*/
{
    return PyLong_FromLong(
        _PyInterpreterState_GET()->tracemalloc.max_nframe);
}


/*[clinic input]
_tracemalloc.get_tracemalloc_memory

Get the number of bytes used to keep the traces of this interpreter.
[clinic start generated code]*/

static PyObject *
_tracemalloc_get_tracemalloc_memory_impl(PyObject *module)
/*[clinic end generated code: output=e3f14e280a55f5aa input=e3f971fdf7c6ab93]*/
{
    return PyLong_FromSize_t(_PyTraceMalloc_GetMemory());
}


/*[clinic input]
_tracemalloc.get_traced_memory

Get the size and the peak size of all traced memory blocks.

Return a tuple (current: int, peak: int) in bytes, summed over all
interpreters that are tracing.
[clinic start generated code]*/

static PyObject *
_tracemalloc_get_traced_memory_impl(PyObject *module)
/*[clinic end generated code: output=5b167189adb9e782 input=483ba746ccf3a606]*/
{
    size_t current, peak;
    _PyTraceMalloc_GetTracedMemory(&current, &peak);
    return Py_BuildValue("nn", (Py_ssize_t)current, (Py_ssize_t)peak);
}


/*[clinic input]
_tracemalloc.reset_peak

Set the peak size of all traced memory blocks to their present size.

Like get_traced_memory(), this is about all interpreters.
[clinic start generated code]*/

static PyObject *
_tracemalloc_reset_peak_impl(PyObject *module)
/*[clinic end generated code: output=140c2870f691dbb2 input=11046d5636fa5cfd]*/
{
    _PyTraceMalloc_ResetPeak();
    Py_RETURN_NONE;
}


/* --- The module --------------------------------------------------------- */

static PyMethodDef tracemalloc_methods[] = {
    _TRACEMALLOC_CLEAR_TRACES_METHODDEF
    _TRACEMALLOC_GET_TRACEBACK_LIMIT_METHODDEF
    _TRACEMALLOC_GET_TRACED_MEMORY_METHODDEF
    _TRACEMALLOC_GET_TRACEMALLOC_MEMORY_METHODDEF
    _TRACEMALLOC_IS_TRACING_METHODDEF
    _TRACEMALLOC_RESET_PEAK_METHODDEF
    _TRACEMALLOC_START_METHODDEF
    _TRACEMALLOC_STOP_METHODDEF
    _TRACEMALLOC__GET_OBJECT_TRACEBACK_METHODDEF
    _TRACEMALLOC__GET_TRACES_METHODDEF
    {NULL, NULL}
};

static PyModuleDef_Slot tracemalloc_slots[] = {
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
    {0, NULL}
};

PyDoc_STRVAR(tracemalloc_doc,
"Trace the memory blocks that this interpreter allocates.");

static struct PyModuleDef tracemalloc_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_tracemalloc",
    .m_doc = tracemalloc_doc,
    .m_methods = tracemalloc_methods,
    .m_slots = tracemalloc_slots,
};

PyMODINIT_FUNC
PyInit__tracemalloc(void)
{
    return PyModuleDef_Init(&tracemalloc_module);
}
