// The _tracemalloc module: makes Python objects of the traces.  A query first
// copies raw data, then builds objects from the copy, with no lock held.

#include "Python.h"
#include "pycore_global_strings.h"  // _Py_DECLARE_STR()
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_list.h"          // _PyList_AppendTakeRef()
#include "pycore_object.h"        // _PyType_PreHeaderSize()
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _Py_STR()
#include "pycore_tracemalloc.h"   // tracemalloc_snapshot

#include "clinic/_tracemalloc.c.h"

_Py_DECLARE_STR(anon_unknown, "<unknown>");


/*[clinic input]
module _tracemalloc
[clinic start generated code]*/
/*[clinic end generated code: output=da39a3ee5e6b4b0d input=708a98302fc46e5f]*/


/* --- Raw data to objects ------------------------------------------------ */

// Objects made so far for the ids of a snapshot, to make each of them once.
// Elements are strong references or NULL.
typedef struct {
    const tracemalloc_intern *intern;
    PyObject **filenames;         // by filename id
    size_t nfilenames;
    PyObject **tracebacks;        // by traceback id
    size_t ntracebacks;
} converter;

static void
free_objects(PyObject **objects, size_t n)
{
    for (size_t i = 0; objects != NULL && i < n; i++) {
        Py_XDECREF(objects[i]);
    }
    PyMem_RawFree(objects);
}

static void
converter_fini(converter *conv)
{
    free_objects(conv->filenames, conv->nfilenames);
    free_objects(conv->tracebacks, conv->ntracebacks);
}

static int
converter_init(converter *conv, const tracemalloc_intern *intern)
{
    conv->intern = intern;
    conv->nfilenames = intern->filenames.length + 1;
    conv->ntracebacks = (intern->tracebacks.length
                         + _PyTraceMalloc_UNKNOWN + 1);
    conv->filenames = PyMem_RawCalloc(conv->nfilenames, sizeof(PyObject *));
    conv->tracebacks = PyMem_RawCalloc(conv->ntracebacks, sizeof(PyObject *));
    if (conv->filenames == NULL || conv->tracebacks == NULL) {
        converter_fini(conv);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

// Returns a borrowed reference.
static PyObject *
filename_as_object(converter *conv, uint32_t id)
{
    PyObject **cached = &conv->filenames[id];
    if (*cached == NULL) {
        const void *text;
        const tracemalloc_filename *name =
            _PyTraceMalloc_GetFilename(conv->intern, id, &text);
        if (name == NULL) {
            *cached = Py_NewRef(&_Py_STR(anon_unknown));
        }
        else {
            *cached = PyUnicode_FromKindAndData(name->kind, text,
                                                (Py_ssize_t)name->length);
        }
    }
    return *cached;
}

static PyObject *
frame_as_object(converter *conv, const tracemalloc_frame *frame)
{
    PyObject *filename = filename_as_object(conv, frame->filename);
    if (filename == NULL) {
        return NULL;
    }
    PyObject *lineno = PyLong_FromUnsignedLong(frame->lineno);
    if (lineno == NULL) {
        return NULL;
    }
    PyObject *tuple = PyTuple_Pack(2, filename, lineno);
    Py_DECREF(lineno);
    return tuple;
}

static PyObject *
frames_as_object(converter *conv, const tracemalloc_frame *frames, int nframe)
{
    PyObject *tuple = PyTuple_New(nframe);
    if (tuple == NULL) {
        return NULL;
    }
    for (int i = 0; i < nframe; i++) {
        PyObject *frame = frame_as_object(conv, &frames[i]);
        if (frame == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, i, frame);
    }
    return tuple;
}

// Returns a borrowed reference.
static PyObject *
traceback_as_object(converter *conv, uint32_t id)
{
    PyObject **cached = &conv->tracebacks[id];
    if (*cached == NULL) {
        const tracemalloc_frame *frames;
        const tracemalloc_traceback *traceback =
            _PyTraceMalloc_GetFrames(conv->intern, id, &frames);
        *cached = frames_as_object(conv, frames, traceback->nframe);
    }
    return *cached;
}

// Steals a reference to `item`, which may be NULL with an exception set.
static int
set_item(PyObject *tuple, Py_ssize_t i, PyObject *item)
{
    if (item == NULL) {
        return -1;
    }
    PyTuple_SET_ITEM(tuple, i, item);
    return 0;
}

static PyObject *
trace_as_object(converter *conv, const tracemalloc_trace *trace)
{
    const tracemalloc_frame *frames;
    const tracemalloc_traceback *traceback =
        _PyTraceMalloc_GetFrames(conv->intern, trace->traceback, &frames);
    PyObject *traceback_obj = traceback_as_object(conv, trace->traceback);
    if (traceback_obj == NULL) {
        return NULL;
    }
    PyObject *tuple = PyTuple_New(4);
    if (tuple == NULL) {
        return NULL;
    }
    if (set_item(tuple, 0, PyLong_FromUnsignedLong(trace->domain)) < 0
        || set_item(tuple, 1, PyLong_FromSize_t(trace->size)) < 0
        || set_item(tuple, 2, Py_NewRef(traceback_obj)) < 0
        || set_item(tuple, 3,
                    PyLong_FromUnsignedLong(traceback->total_nframe)) < 0)
    {
        Py_DECREF(tuple);
        return NULL;
    }
    // It is in no cycle: spare the collector a million of them.
    PyObject_GC_UnTrack(tuple);
    return tuple;
}

static int
append_traces(PyObject *list, const tracemalloc_snapshot *snapshot)
{
    converter conv;
    if (converter_init(&conv, &snapshot->intern) < 0) {
        return -1;
    }
    int res = 0;
    for (size_t i = 0; res == 0 && i < snapshot->ntraces; i++) {
        PyObject *trace = trace_as_object(&conv, &snapshot->traces[i]);
        res = trace == NULL ? -1
              : _PyList_AppendTakeRef((PyListObject *)list, trace);
    }
    converter_fini(&conv);
    return res;
}

static PyObject *
get_traces(void)
{
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    tracemalloc_snapshot snapshot;
    if (_PyTraceMalloc_Snapshot(&snapshot) < 0) {
        Py_DECREF(list);
        return NULL;
    }

    // The result's own blocks are not traced: it is about those that were
    // there before.
    bool reentrant = _PyTraceMalloc_SetReentrant(true);
    int res = append_traces(list, &snapshot);
    (void)_PyTraceMalloc_SetReentrant(reentrant);

    _PyTraceMalloc_FreeSnapshot(&snapshot);
    if (res < 0) {
        Py_DECREF(list);
        return NULL;
    }
    return list;
}

PyObject *
_PyTraceMalloc_GetTraceback(unsigned int domain, uintptr_t ptr)
{
    tracemalloc_snapshot snapshot;
    if (_PyTraceMalloc_SnapshotBlock(domain, ptr, &snapshot) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    converter conv;
    if (snapshot.ntraces == 0) {
        result = Py_NewRef(Py_None);
    }
    else if (converter_init(&conv, &snapshot.intern) == 0) {
        result = Py_XNewRef(traceback_as_object(
            &conv, snapshot.traces[0].traceback));
        converter_fini(&conv);
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
    return PyBool_FromLong(_PyTraceMalloc_IsTracing());
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
    return get_traces();
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
    if (_PyTraceMalloc_Start(nframe) < 0) {
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
    _PyTraceMalloc_Stop();
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
    return PyLong_FromLong(_PyTraceMalloc_GetTracebackLimit());
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
