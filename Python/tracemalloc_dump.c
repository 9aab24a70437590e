// What tracemalloc has to say in a fatal error: where a block was allocated.

#include "Python.h"
#include "pycore_fileutils.h"     // _Py_write_noraise()
#include "pycore_interp.h"        // PyInterpreterState.tracemalloc
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_traceback.h"     // _Py_DumpDecimal()
#include "pycore_tracemalloc.h"   // tracemalloc_removed

#define RUNTIME (&_PyRuntime.tracemalloc)

// The thread that reports the error may hold a lock itself.
#define DUMP_TIMEOUT (100 * 1000 * 1000)    // nanoseconds

#define PUTS(fd, str) (void)_Py_write_noraise(fd, str, (int)strlen(str))

// Like _Py_DumpASCII(), which needs a str object.
static void
dump_filename(int fd, const tracemalloc_intern *intern, uint32_t id)
{
    const void *text;
    const tracemalloc_filename *name =
        _PyTraceMalloc_GetFilename(intern, id, &text);
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
dump_frames(int fd, const tracemalloc_intern *intern, uint32_t id)
{
    const tracemalloc_frame *frames;
    const tracemalloc_traceback *traceback =
        _PyTraceMalloc_GetFrames(intern, id, &frames);
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

static bool
lock_for_dump(PyMutex *mutex)
{
    return _PyMutex_LockTimed(mutex, DUMP_TIMEOUT, _Py_LOCK_DONT_DETACH)
           == PY_LOCK_ACQUIRED;
}

// `removed` is the trace of the block that this thread is freeing.
static bool
dump_trace(int fd, struct _tracemalloc_interp_state *tm,
           const tracemalloc_removed *removed,
           uintptr_t ptr)
{
    PyInterpreterState *interp = _Py_CONTAINER_OF(tm, PyInterpreterState,
                                                  tracemalloc);
    if (!lock_for_dump(&tm->mutex)) {
        return false;
    }
    tracemalloc_trace trace;
    bool found = _PyTraceMalloc_Find(interp, 0, ptr, &trace);
    if (!found && removed->owner == tm && removed->trace.ptr == ptr
        && removed->trace.traceback != _PyTraceMalloc_NO_TRACEBACK)
    {
        trace = removed->trace;
        found = true;
    }
    if (found) {
        dump_frames(fd, &tm->intern, trace.traceback);
    }
    PyMutex_Unlock(&tm->mutex);
    return found;
}

void
_PyMem_DumpTraceback(int fd, const void *ptr)
{
    bool found = false, tracing = false;
    if (_Py_atomic_load_int_relaxed(&RUNTIME->ntracing) > 0) {
        if (!lock_for_dump(&RUNTIME->mutex)) {
            return;
        }
        const tracemalloc_removed removed = _PyTraceMalloc_GetRemoved();
        PyThreadState *tstate = _PyThreadState_GET();
        PyInterpreterState *interp = tstate != NULL
                                     ? tstate->interp
                                     : &_PyRuntime._main_interpreter;
        tracing = interp->tracemalloc.tracing;
        struct llist_node *node;
        llist_for_each(node, &RUNTIME->tracing) {
            found = dump_trace(fd, llist_data(
                node, struct _tracemalloc_interp_state, node),
                               &removed, (uintptr_t)ptr);
            if (found) {
                break;
            }
        }
        PyMutex_Unlock(&RUNTIME->mutex);
    }
    if (!found && !tracing) {
        PUTS(fd, "Enable tracemalloc to get the memory block "
                 "allocation traceback\n\n");
    }
}
