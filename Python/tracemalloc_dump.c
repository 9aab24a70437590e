// What a fatal error report says of a block: where it was allocated.
//
// The thread that reports the error may hold a lock itself, and others run on:
// nothing here waits for long.

#include "Python.h"
#include "pycore_fileutils.h"     // _Py_write_noraise()
#include "pycore_traceback.h"     // _Py_DumpDecimal()
#include "pycore_tracemalloc_shared.h"  // has_same_gil()

#define TIMEOUT (100 * 1000 * 1000)     // nanoseconds

#define MAX_FILENAME 500          // as in a traceback by faulthandler

#define PUTS(fd, str) (void)_Py_write_noraise(fd, str, (int)strlen(str))

// Like _Py_DumpASCII(), which needs a str object.
static void
dump_filename(int fd, const tracemalloc_intern *intern, uint32_t id)
{
    if (id == 0) {
        PUTS(fd, "<unknown>");
        return;
    }
    const tracemalloc_item *name = _PyTraceMalloc_GetItem(intern, id);
    size_t length = Py_MIN(name->length, MAX_FILENAME);
    for (size_t i = 0; i < length; i++) {
        Py_UCS4 ch = PyUnicode_READ(name->unit, name->frames, i);
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
    if (length < name->length) {
        PUTS(fd, "...");
    }
}

// Another thread may have cleared the traces since the block had this one: the
// id may be nothing's, or a filename's.
static bool
is_traceback(const tracemalloc_intern *intern, uint32_t id)
{
    return id == _PyTraceMalloc_UNKNOWN
           || (intern != NULL && id <= intern->last_id
               && (_PyTraceMalloc_GetItem(intern, id)->unit
                   == sizeof(tracemalloc_frame)));
}

static void
dump_frames(int fd, const tracemalloc_intern *intern, uint32_t id)
{
    const tracemalloc_item *traceback = _PyTraceMalloc_GetItem(intern, id);
    PUTS(fd, "Memory block allocated at (most recent call first):\n");
    for (size_t i = 0; i < traceback->length; i++) {
        PUTS(fd, "  File \"");
        dump_filename(fd, intern, traceback->frames[i].filename);
        PUTS(fd, "\", line ");
        _Py_DumpDecimal(fd, traceback->frames[i].lineno);
        PUTS(fd, "\n");
    }
    PUTS(fd, "\n");
}

static bool
lock_for_dump(PyMutex *mutex)
{
    return _PyMutex_LockTimed(mutex, TIMEOUT, _Py_LOCK_DONT_DETACH)
           == PY_LOCK_ACQUIRED;
}

// May the hash table of an interpreter be read with its mutex held?  With the
// GIL its threads may do without the mutex; see lock_table().
static bool
is_readable(PyThreadState *tstate, interp_state *tm)
{
    return !WITH_GIL
           || (tstate != NULL
               && has_same_gil(&tstate->interp->tracemalloc, tm));
}

// `removed` is the trace of the block that this thread is freeing.
static bool
dump_trace(int fd, interp_state *tm, const tracemalloc_removed *removed,
           uintptr_t ptr)
{
    if (!lock_for_dump(&tm->mutex)) {
        return false;
    }
    tracemalloc_trace trace;
    bool found = is_readable(_PyThreadState_GET(), tm)
                 && _PyTraceMalloc_Find(as_interp(tm), 0, ptr, &trace);
    if (!found && removed->owner == tm && removed->trace.ptr == ptr) {
        trace = removed->trace;
        // Of an attached thread the generation is not noted.
        found = trace.traceback != _PyTraceMalloc_NO_TRACEBACK
                && (removed->generation == 0
                    || removed->generation == tm->generation)
                && is_traceback(tm->intern, trace.traceback);
    }
    if (found) {
        dump_frames(fd, tm->intern, trace.traceback);
    }
    PyMutex_Unlock(&tm->mutex);
    return found;
}

void
_PyMem_DumpTraceback(int fd, const void *ptr)
{
    bool found = false;
    PyThreadState *tstate = _PyThreadState_GET();
    interp_state *own = interp_of(tstate);
    if (!is_idle()) {
        if (!lock_for_dump(&RUNTIME->mutex)) {
            return;
        }
        const tracemalloc_removed removed = _PyTraceMalloc_GetRemoved();
        struct llist_node *node;
        llist_for_each(node, &RUNTIME->tracing) {
            found = dump_trace(fd, llist_data(node, interp_state, node),
                               &removed, (uintptr_t)ptr);
            if (found) {
                break;
            }
        }
        PyMutex_Unlock(&RUNTIME->mutex);
    }
    if (!found && !own->tracing) {
        PUTS(fd, "Enable tracemalloc to get the memory block "
                 "allocation traceback\n\n");
    }
}
