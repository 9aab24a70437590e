// From a frame to its filename and line, and to the id of its traceback.
//
// Decoding a line table takes time that is linear in its length, and looking
// up a filename means to compare its text.  So both are remembered by
// instruction, for all threads of an interpreter: an address together with the
// version of its code object, see tracemalloc_capture.c.

#include "Python.h"
#include "pycore_code.h"          // _PyCode_InitAddressRange()
#include "pycore_frame.h"         // _PyFrame_GetFirstComplete()
#include "pycore_tracemalloc_shared.h"  // lock_mutex()


// As PyUnstable_InterpreterFrame_GetLine(), but always from the line table:
// instrumentation data may be replaced while a detached thread looks at it.
static unsigned int
frame_lineno(_PyInterpreterFrame *frame)
{
    PyCodeObject *code = _PyFrame_GetCode(frame);
    int addr = _PyInterpreterFrame_LASTI(frame) * (int)sizeof(_Py_CODEUNIT);
    assert(addr >= 0);
    PyCodeAddressRange range;
    _PyCode_InitAddressRange(code, &range);
    int lineno = _PyCode_CheckLineNumber(addr, &range);
    return lineno < 0 ? 0 : (unsigned int)lineno;
}

static int
find_location(interp_state *tm, _PyInterpreterFrame *frame,
              tracemalloc_frame *location)
{
    location->lineno = frame_lineno(frame);
    return _PyTraceMalloc_InternFilename(
        tm->intern, _PyFrame_GetCode(frame)->co_filename,
        &location->filename);
}

static int
locate(interp_state *tm, _PyInterpreterFrame *frame,
       tracemalloc_frame *location)
{
    const _Py_CODEUNIT *instr = frame->instr_ptr;
    uint32_t version = _PyFrame_GetCode(frame)->co_version;
    tracemalloc_location *cached = &tm->intern->locations[
        hash_key(instr, version, 1 << _PyTraceMalloc_LOCATION_BITS)];
    if (version == 0 || cached->instr != instr || cached->version != version) {
        if (find_location(tm, frame, location) < 0) {
            return -1;
        }
        *cached = (tracemalloc_location){instr, version, *location};
    }
    *location = cached->frame;
    return 0;
}

static int
intern_locked(interp_state *tm, _PyInterpreterFrame *frame,
              size_t total_nframe, uint32_t *id)
{
    if (tm->intern == NULL) {
        tm->intern = _PyTraceMalloc_InternNew(tm->table.allocator);
        if (tm->intern == NULL) {
            return -1;
        }
    }
    size_t nframe = Py_MIN(total_nframe, (size_t)tm->max_nframe);
    tracemalloc_item *item = _PyTraceMalloc_NewItem(
        tm->intern, nframe, sizeof(tracemalloc_frame), total_nframe);
    if (item == NULL) {
        return -1;
    }
    for (size_t i = 0; i < nframe; i++) {
        if (locate(tm, frame, &item->frames[i]) < 0) {
            _PyTraceMalloc_FreeItem(tm->intern, item);
            return -1;
        }
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    return _PyTraceMalloc_InternTraceback(tm->intern, item, id);
}

int
_PyTraceMalloc_InternFrames(interp_state *tm, _PyInterpreterFrame *frame,
                            size_t total_nframe, uint32_t *id)
{
    lock_mutex(&tm->mutex);
    int res = intern_locked(tm, frame, total_nframe, id);
    unlock_mutex(&tm->mutex);
    return res;
}

#ifndef NDEBUG
// More frames than these are not counted: deep recursion would take quadratic
// time.
#define COUNTED_FRAMES 1000

// Is this what a walk over all frames finds?  The places of callers may be
// remembered ones: their line tables would take most of the time.
bool
_PyTraceMalloc_IsExact(interp_state *tm, _PyInterpreterFrame *frame,
                       uint32_t id)
{
    size_t max_nframe = (size_t)tm->max_nframe, n = 0;
    bool exact = true;
    lock_mutex(&tm->mutex);
    const tracemalloc_item *traceback = _PyTraceMalloc_GetItem(tm->intern, id);
    for (; exact && frame != NULL && n < Py_MAX(max_nframe, COUNTED_FRAMES);
         n++)
    {
        tracemalloc_frame location;
        if (n < max_nframe) {
            if ((n == 0 ? find_location(tm, frame, &location)
                        : locate(tm, frame, &location)) < 0)
            {
                unlock_mutex(&tm->mutex);
                return true;      // no memory to tell
            }
            exact = n < traceback->length
                    && location.filename == traceback->frames[n].filename
                    && location.lineno == traceback->frames[n].lineno;
        }
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    size_t total = Py_MIN(n, UINT16_MAX);
    exact = exact && traceback->length == Py_MIN(n, max_nframe)
            && (frame == NULL ? traceback->total_nframe == total
                              : traceback->total_nframe >= total);
    unlock_mutex(&tm->mutex);
    return exact;
}
#endif
