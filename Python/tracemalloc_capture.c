// From the frames that a thread is executing to an interned traceback.
//
// Runs inside allocator hooks, on any thread that has a thread state, attached
// or detached, and so takes no reference, makes no object and waits for
// nothing.  That is safe because a thread looks at its own frames only: nobody
// else pops them, each frame keeps its code object alive, and the code object
// its filename and line table, which never change while it runs.

#include "Python.h"
#include "pycore_code.h"          // _PyCode_InitAddressRange()
#include "pycore_frame.h"         // _PyThreadState_GetFrame()
#include "pycore_pyhash.h"        // _Py_HashBytes()
#include "pycore_tracemalloc.h"   // _PyTraceIntern


// As PyUnstable_InterpreterFrame_GetLine(), but always from the line table:
// instrumentation data may be replaced while a detached thread looks at it.
static unsigned int
frame_lineno(_PyInterpreterFrame *frame)
{
    PyCodeObject *code = _PyFrame_GetCode(frame);
    int addr = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
    int lineno;
    if (addr < 0) {
        // A generator that has not started yet.
        lineno = code->co_firstlineno;
    }
    else {
        PyCodeAddressRange range;
        _PyCode_InitAddressRange(code, &range);
        lineno = _PyCode_CheckLineNumber(addr, &range);
    }
    return lineno < 0 ? 0 : (unsigned int)lineno;
}

// The hash of the str object, which mostly has been computed before.  It is
// not stored here: a detached thread must not write to a shared object.
static Py_uhash_t
filename_hash(PyObject *filename, const void *text, size_t size)
{
    Py_hash_t hash = _Py_atomic_load_ssize_relaxed(
        &((PyASCIIObject *)filename)->hash);
    if (hash == -1) {
        hash = _Py_HashBytes(text, (Py_ssize_t)size);
    }
    return (Py_uhash_t)hash;
}

static int
intern_filename(_PyTraceIntern *intern, PyObject *filename, uint32_t *id)
{
    if (filename == NULL || !PyUnicode_Check(filename)) {
        *id = 0;
        return 0;
    }
    _PyTraceFilename name = {
        .length = (size_t)PyUnicode_GET_LENGTH(filename),
        .kind = (int)PyUnicode_KIND(filename),
    };
    const void *text = PyUnicode_DATA(filename);
    name.hash = filename_hash(filename, text,
                              name.length * (size_t)name.kind);
    return _PyTraceIntern_Filename(intern, &name, text, id);
}

// The filename of the last frame: mostly that of the next one, too.  Saves to
// look up the same text again; borrowed while its frame is on the stack.
typedef struct {
    PyObject *filename;
    uint32_t id;
} last_filename;

static int
add_frame(_PyTraceIntern *intern, _PyInterpreterFrame *frame,
          last_filename *last)
{
    PyObject *filename = _PyFrame_GetCode(frame)->co_filename;
    if (filename != last->filename) {
        if (intern_filename(intern, filename, &last->id) < 0) {
            return -1;
        }
        last->filename = filename;
    }
    _PyTraceFrame item = {last->id, frame_lineno(frame)};
    return _PyTraceIntern_AddFrame(intern, item);
}

int
_PyTraceCapture_Traceback(_PyTraceIntern *intern, PyThreadState *tstate,
                          int max_nframe, _PyTraceback_Id *id)
{
    size_t nframe = 0;
    size_t limit = (size_t)max_nframe;
    last_filename last = {NULL, 0};

    _PyTraceIntern_BeginTraceback(intern);
    _PyInterpreterFrame *frame = NULL;
    if (tstate != NULL) {
        frame = _PyThreadState_GetFrame(tstate);
    }
    while (frame != NULL) {
        if (nframe < limit && add_frame(intern, frame, &last) < 0) {
            return -1;
        }
        nframe++;
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    return _PyTraceIntern_EndTraceback(intern, nframe, id);
}
