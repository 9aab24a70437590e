// From the frames that a thread is executing to an interned traceback.
//
// Runs inside allocator hooks, on any thread that has a thread state, attached
// or detached, and so takes no reference, makes no object and waits for
// nothing.  That is safe because a thread looks at its own frames only: nobody
// else pops them, each frame keeps its code object alive, and the code object
// its filename and line table.
//
// The stack is walked but once for each activation of a function.  A frame
// whose callers were found is marked (`callers_known`, which is zero in each
// new activation), and what was found is remembered.  As long as the mark is
// there the frame is the same activation, so its callers and the places where
// they wait for it are the same as well: a walk ends at the first marked
// frame.  What is remembered may be lost at any time, but is never wrong:
// caches are hashed, and each entry has its whole key in it.
//
//   activations: frame -> its callers, and the last traceback from there
//   sites:       instruction, callers -> traceback
//   locations:   instruction -> filename, line
//
// An instruction is an address together with the version of its code object,
// which no two code objects of an interpreter have in common, whenever they
// live; 0 is no version.  "The callers" are as much as a traceback depends on:
// their number if one frame is kept, else the traceback that the caller itself
// would have.  Tracebacks are built from the oldest frame on then.

#include "Python.h"
#include "pycore_code.h"          // _PyCode_InitAddressRange()
#include "pycore_frame.h"         // _PyFrame_GetFirstComplete()
#include "pycore_pyhash.h"        // _Py_HashBytes()
#include "pycore_tracemalloc.h"   // _PyTraceIntern

// 24 bytes each.  Recursion of some hundred levels fits.
#define ACTIVATION_BITS 10
#define SITE_BITS 12
#define LOCATION_BITS 10

// From so many frames on, not every caller gets a traceback of its own: memory
// would grow with the square of the depth.
#define LONG_TRACEBACK 128

typedef struct {
    const _PyInterpreterFrame *frame;
    const _Py_CODEUNIT *instr;    // NULL: no traceback
    uint32_t callers;
    _PyTraceback_Id traceback;
} activation;

typedef struct {
    const _Py_CODEUNIT *instr;
    uint32_t version;
    uint32_t callers;
    _PyTraceback_Id traceback;
} site;

typedef struct {
    const _Py_CODEUNIT *instr;
    uint32_t version;
    _PyTraceFrame item;
} location;

typedef struct {
    activation activations[1 << ACTIVATION_BITS];
    site sites[1 << SITE_BITS];
    location locations[1 << LOCATION_BITS];
} memory;

struct _tracemalloc_capture {
    const PyMemAllocatorEx *allocator;
    memory remembered;
    // The frames of a walk, most recent first.
    _PyInterpreterFrame **frames;
    size_t nframes;               // that there is room for
};

// One walk: where its results go, and what it depends on.
typedef struct {
    _PyTraceCapture *capture;
    _PyTraceIntern *intern;
    int max_nframe;
} walk;


_PyTraceCapture *
_PyTraceCapture_New(const PyMemAllocatorEx *allocator)
{
    _PyTraceCapture *capture = allocator->calloc(allocator->ctx, 1,
                                                 sizeof(_PyTraceCapture));
    if (capture != NULL) {
        capture->allocator = allocator;
    }
    return capture;
}

void
_PyTraceCapture_Free(_PyTraceCapture *capture)
{
    if (capture != NULL) {
        const PyMemAllocatorEx *allocator = capture->allocator;
        allocator->free(allocator->ctx, capture->frames);
        allocator->free(allocator->ctx, capture);
    }
}

void
_PyTraceCapture_Clear(_PyTraceCapture *capture)
{
    memset(&capture->remembered, 0, sizeof(memory));
}

size_t
_PyTraceCapture_Memory(const _PyTraceCapture *capture)
{
    return sizeof(*capture) + capture->nframes * sizeof(_PyInterpreterFrame *);
}


/* --- Places in the code ------------------------------------------------- */

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

// Multiplicative; the high bits are good.
static inline size_t
hash_key(const void *ptr, uint32_t more, int bits)
{
    uint64_t hash = ((uint64_t)(uintptr_t)ptr
                     + more * UINT64_C(0xC2B2AE3D27D4EB4F))
                    * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(hash >> (64 - bits));
}

static int
find_item(_PyTraceIntern *intern, _PyInterpreterFrame *frame,
          _PyTraceFrame *item)
{
    PyObject *filename = _PyFrame_GetCode(frame)->co_filename;
    item->lineno = frame_lineno(frame);
    return intern_filename(intern, filename, &item->filename);
}

// Filename and line of a frame.  Saves to decode the line table, which is
// linear in its length, and to look up the text of the filename.
static int
locate(const walk *w, _PyInterpreterFrame *frame, _PyTraceFrame *item)
{
    uint32_t version = _PyFrame_GetCode(frame)->co_version;
    location *place = &w->capture->remembered.locations[
        hash_key(frame->instr_ptr, version, LOCATION_BITS)];
    if (version == 0) {
        return find_item(w->intern, frame, item);
    }
    if (place->instr != frame->instr_ptr || place->version != version) {
        if (find_item(w->intern, frame, item) < 0) {
            return -1;
        }
        *place = (location){frame->instr_ptr, version, *item};
    }
    *item = place->item;
    return 0;
}


/* --- Tracebacks --------------------------------------------------------- */

// The traceback of so many frames, most recent first, and of what called the
// last one.
static int
build(const walk *w, _PyInterpreterFrame *const *frames, size_t nframe,
      uint32_t callers, _PyTraceback_Id *id)
{
    size_t total_nframe = nframe;
    assert(nframe <= (size_t)w->max_nframe);
    _PyTraceIntern_BeginTraceback(w->intern);
    for (size_t i = 0; i < nframe; i++) {
        _PyTraceFrame item;
        if (locate(w, frames[i], &item) < 0
            || _PyTraceIntern_AddFrame(w->intern, item) < 0)
        {
            return -1;
        }
    }
    if (w->max_nframe == 1) {
        total_nframe += callers;
    }
    else if (callers != _PyTraceback_NONE) {
        total_nframe += _PyTraceIntern_GetTraceback(
            w->intern, callers, NULL)->total_nframe;
        if (_PyTraceIntern_AddFramesOf(w->intern, callers,
                                       (size_t)w->max_nframe - nframe) < 0)
        {
            return -1;
        }
    }
    return _PyTraceIntern_EndTraceback(w->intern, total_nframe, id);
}

// The traceback of a frame with these callers.
static int
find_traceback(const walk *w, _PyInterpreterFrame *frame, uint32_t callers,
               _PyTraceback_Id *id)
{
    uint32_t version = _PyFrame_GetCode(frame)->co_version;
    site *place = &w->capture->remembered.sites[
        hash_key(frame->instr_ptr, version ^ (callers << 16) ^ callers,
                 SITE_BITS)];
    if (version != 0 && place->instr == frame->instr_ptr
        && place->version == version && place->callers == callers)
    {
        *id = place->traceback;
        return 0;
    }
    if (build(w, &frame, 1, callers, id) < 0) {
        return -1;
    }
    if (version != 0) {
        *place = (site){frame->instr_ptr, version, callers, *id};
    }
    return 0;
}


/* --- Activations -------------------------------------------------------- */

static inline activation *
activation_slot(_PyTraceCapture *capture, const _PyInterpreterFrame *frame)
{
    return &capture->remembered.activations[
        hash_key(frame, 0, ACTIVATION_BITS)];
}

// What is remembered of a frame, or NULL.
static inline activation *
find_activation(_PyTraceCapture *capture, const _PyInterpreterFrame *frame)
{
    activation *found = activation_slot(capture, frame);
    return frame->callers_known && found->frame == frame ? found : NULL;
}

// Remember the callers of a frame; or its traceback, too, unless NONE.
static void
remember(_PyTraceCapture *capture, _PyInterpreterFrame *frame,
         uint32_t callers, _PyTraceback_Id id)
{
    *activation_slot(capture, frame) = (activation){
        frame, id == _PyTraceback_NONE ? NULL : frame->instr_ptr, callers, id,
    };
    frame->callers_known = 1;
}

static int
add_frame(_PyTraceCapture *capture, size_t i, _PyInterpreterFrame *frame)
{
    if (i == capture->nframes) {
        const PyMemAllocatorEx *allocator = capture->allocator;
        size_t nframes = Py_MAX(capture->nframes * 2, 64);
        void *frames = allocator->realloc(
            allocator->ctx, capture->frames,
            nframes * sizeof(_PyInterpreterFrame *));
        if (frames == NULL) {
            return -1;
        }
        capture->frames = frames;
        capture->nframes = nframes;
    }
    capture->frames[i] = frame;
    return 0;
}

// The callers of what the first of these frames calls.
static int
find_callers(const walk *w, _PyInterpreterFrame *const *frames, size_t nframe,
             uint32_t callers, uint32_t *result)
{
    if (w->max_nframe == 1) {
        *result = callers + (uint32_t)nframe;
        return 0;
    }
    if (nframe == 1) {
        return find_traceback(w, frames[0], callers, result);
    }
    return build(w, frames, nframe, callers, result);
}

// Each how many frames of a walk is one to get a traceback?  Where all of
// them are long, some must do.
static size_t
find_step(const walk *w, size_t nframe, uint32_t callers)
{
    if (w->max_nframe > 1 && callers != _PyTraceback_NONE) {
        nframe += _PyTraceIntern_GetTraceback(w->intern, callers,
                                              NULL)->nframe;
    }
    return Py_MIN(nframe, (size_t)w->max_nframe) / LONG_TRACEBACK + 1;
}

// Find out, and remember, who called a frame.
static int
walk_callers(const walk *w, _PyInterpreterFrame *frame, uint32_t *callers)
{
    _PyTraceCapture *capture = w->capture;
    const activation *known = NULL;
    size_t n = 0;
    while (frame != NULL
           && (known = find_activation(capture, frame)) == NULL)
    {
        if (add_frame(capture, n++, frame) < 0) {
            return -1;
        }
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    *callers = 0;
    if (known != NULL) {
        *callers = known->callers;
        if (n > 0 && find_callers(w, &frame, 1, *callers, callers) < 0) {
            return -1;
        }
    }
    size_t step = find_step(w, n, *callers);
    size_t end = n;     // *callers are those of the frame before this one
    for (size_t i = n; i-- > 0; ) {
        _PyInterpreterFrame *const *frames = &capture->frames[i];
        if (i + 1 == end) {
            remember(capture, *frames, *callers, _PyTraceback_NONE);
        }
        if (i == 1 || (i > 0 && end - i == step)) {
            if (find_callers(w, frames, end - i, *callers, callers) < 0) {
                return -1;
            }
            end = i;
        }
    }
    return 0;
}

#ifndef NDEBUG
// More frames than these are not counted: deep recursion would take quadratic
// time.
#define COUNTED_FRAMES 1000

// Is this what a walk over all frames finds?  The places of callers may be
// remembered ones: their line tables would take most of the time.
static bool
is_exact(const walk *w, _PyInterpreterFrame *frame, _PyTraceback_Id id)
{
    const _PyTraceFrame *frames;
    const _PyTraceback *traceback =
        _PyTraceIntern_GetTraceback(w->intern, id, &frames);
    size_t max_nframe = (size_t)w->max_nframe;
    size_t n = 0;
    for (; frame != NULL && n < Py_MAX(max_nframe, COUNTED_FRAMES); n++) {
        if (n < max_nframe) {
            _PyTraceFrame item;
            if ((n == 0 ? find_item(w->intern, frame, &item)
                        : locate(w, frame, &item)) < 0)
            {
                return true;      // no memory to tell
            }
            // Interning may have moved them.
            traceback = _PyTraceIntern_GetTraceback(w->intern, id, &frames);
            if (n >= traceback->nframe
                || item.filename != frames[n].filename
                || item.lineno != frames[n].lineno)
            {
                return false;
            }
        }
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    size_t total = Py_MIN(n, UINT16_MAX);
    return traceback->nframe == Py_MIN(n, max_nframe)
           && (frame == NULL ? traceback->total_nframe == total
                             : traceback->total_nframe >= total);
}
#endif

static Py_NO_INLINE int
find_anew(const walk *w, _PyInterpreterFrame *frame, _PyTraceback_Id *id)
{
    uint32_t callers;
    frame = _PyFrame_GetFirstComplete(frame);
    if (frame == NULL) {
        *id = _PyTraceback_UNKNOWN;
        return 0;
    }
    if (walk_callers(w, frame, &callers) < 0
        || find_traceback(w, frame, callers, id) < 0)
    {
        return -1;
    }
    remember(w->capture, frame, callers, *id);
    assert(is_exact(w, frame, *id));
    return 0;
}

int
_PyTraceCapture_Traceback(_PyTraceCapture *capture, _PyTraceIntern *intern,
                          PyThreadState *tstate, int max_nframe,
                          _PyTraceback_Id *id)
{
    if (tstate == NULL || tstate->current_frame == NULL) {
        *id = _PyTraceback_UNKNOWN;
        return 0;
    }
    // Is it complete?  It is, if it is known.
    _PyInterpreterFrame *frame = tstate->current_frame;
    const activation *known = find_activation(capture, frame);
    if (known != NULL && known->instr == frame->instr_ptr) {
        *id = known->traceback;
        assert(is_exact(&(walk){capture, intern, max_nframe}, frame, *id));
        return 0;
    }
    walk w = {capture, intern, max_nframe};
    return find_anew(&w, frame, id);
}
