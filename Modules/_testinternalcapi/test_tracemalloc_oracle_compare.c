// The oracle of tracemalloc: its own tracebacks, and comparing.

#include "parts.h"
#include "test_tracemalloc_oracle.h"

#include <stdarg.h>               // va_list


/* --- Tracebacks --------------------------------------------------------- */

// Inner frames first; they have the hash `inner`.
static void
set_frame(frame_t *frame, uint64_t inner, int kind, const void *text,
          size_t length, int lineno)
{
    uint64_t hash = mix(inner ^ length);
    size_t first = length - Py_MIN(length, sizeof(frame->name) - 1);
    for (size_t i = 0; i < length; i++) {
        Py_UCS4 ch = PyUnicode_READ(kind, text, i);
        hash = mix(hash ^ ch);
        if (i >= first) {
            frame->name[i - first] = ' ' <= ch && ch <= '~' ? (char)ch : '?';
        }
    }
    frame->name[length - first] = 0;
    // No line is 0 for tracemalloc.
    frame->lineno = lineno < 0 ? 0 : (unsigned int)lineno;
    frame->print = mix(hash ^ frame->lineno);
}

static void
set_unknown_frame(frame_t *frame, uint64_t inner)
{
    set_frame(frame, inner, PyUnicode_1BYTE_KIND, "<unknown>", 9, 0);
}

static uint64_t
hash_traceback(uint64_t frames, size_t total)
{
    return mix(frames ^ Py_MIN(total, MAX_TOTAL_NFRAME));
}

static size_t
kept(const frames_t *frames, int limit)
{
    return Py_MIN((size_t)limit, frames->nframe);
}

uint64_t
_PyTestOracle_HashFrames(const frames_t *frames, int limit)
{
    return hash_traceback(frames->items[kept(frames, limit) - 1].print,
                          frames->total);
}

static frames_t *
new_frames(size_t total)
{
    size_t nframe = Py_MIN(total, MAX_TOTAL_NFRAME);
    frames_t *frames = alloc(sizeof(frames_t) + nframe * sizeof(frame_t));
    frames->total = total;
    frames->nframe = nframe;
    frames_t *next;
    do {
        next = _Py_atomic_load_ptr(&_PyTestOracle.all_frames);
        frames->next = next;
    } while (!_Py_atomic_compare_exchange_ptr(&_PyTestOracle.all_frames, &next,
                                              frames));
    return frames;
}

frames_t *
_PyTestOracle_Capture(void)
{
    size_t total = 0;
    PyFrameObject *frame = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    for (; frame != NULL; total++) {
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    frames_t *frames = new_frames(total);
    frame = (PyFrameObject *)Py_XNewRef(PyEval_GetFrame());
    for (size_t i = 0; i < frames->nframe; i++) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        PyObject *name = code->co_filename;
        set_frame(&frames->items[i], i == 0 ? 0 : frames->items[i - 1].print,
                  PyUnicode_KIND(name), PyUnicode_DATA(name),
                  (size_t)PyUnicode_GET_LENGTH(name),
                  PyFrame_GetLineNumber(frame));
        Py_DECREF(code);
        Py_SETREF(frame, PyFrame_GetBack(frame));
    }
    Py_XDECREF(frame);
    return frames;
}

// A frame of a trace that was read out.
static void
read_frame(const tracemalloc_intern *intern, const tracemalloc_frame *from,
           uint64_t inner, frame_t *frame)
{
    if (from->filename == 0) {
        set_unknown_frame(frame, inner);
        // It has no line either, or else this is seen by the hash.
        frame->print += from->lineno;
        frame->lineno = from->lineno;
    }
    else {
        const tracemalloc_item *name = _PyTraceMalloc_GetItem(intern,
                                                              from->filename);
        set_frame(frame, inner, name->unit, name->frames, name->length,
                  (int)from->lineno);
    }
}

uint64_t
_PyTestOracle_HashTrace(const tracemalloc_intern *intern,
                        const tracemalloc_trace *trace)
{
    const tracemalloc_item *traceback =
        _PyTraceMalloc_GetItem(intern, trace->traceback);
    frame_t frame = {0};
    for (size_t i = 0; i < traceback->length; i++) {
        read_frame(intern, &traceback->frames[i], frame.print, &frame);
    }
    return hash_traceback(frame.print, traceback->total_nframe);
}

frames_t *
_PyTestOracle_UnknownFrames(void)
{
    frames_t *frames = new_frames(1);
    set_unknown_frame(&frames->items[0], 0);
    return frames;
}


/* --- Comparing ---------------------------------------------------------- */

static item_t *
add_item(items_t *items)
{
    if (items->length == items->capacity) {
        items->capacity = items->capacity * 2 + 1000;
        items->items = realloc(items->items,
                               items->capacity * sizeof(item_t));
        if (items->items == NULL) {
            abort();
        }
    }
    item_t *item = &items->items[items->length++];
    *item = (item_t){0};
    return item;
}

static int
compare_items(const void *x, const void *y)
{
    const item_t *a = (const item_t *)x, *b = (const item_t *)y;
    if (a->domain != b->domain) {
        return a->domain < b->domain ? -1 : 1;
    }
    if (a->ptr != b->ptr) {
        return a->ptr < b->ptr ? -1 : 1;
    }
    return 0;
}

static void
expect_block(items_t *expected, block_t *b)
{
    item_t *item = add_item(expected);
    item->domain = b->domain;
    item->ptr = b->ptr;
    item->owner = b->owner;
    item->size = b->size;
    item->block = b;
    if (b->owner >= 0) {
        interp_t *interp = &_PyTestOracle.interps[b->owner];
        item->need = need_of(b, interp->version);
        if (item->need != NO) {
            item->print = _PyTestOracle_HashFrames(b->frames, interp->limit);
        }
    }
}

static void
collect_expected(items_t *expected, bool with_baseline)
{
    FOR_BLOCKS(b) {
        expect_block(expected, b);
    }
    size_t nbaseline = with_baseline ? _PyTestOracle.baseline.length : 0;
    for (size_t i = 0; i < nbaseline; i++) {
        item_t *item = &_PyTestOracle.baseline.items[i];
        if (_PyTestOracle.interps[item->owner].version == item->version) {
            *add_item(expected) = *item;
        }
    }
    qsort(expected->items, expected->length, sizeof(item_t), compare_items);
}

// One of the interpreter's actors does it, all are at rest.
static void
take_snapshot(interp_t *interp, tracemalloc_snapshot *snapshot)
{
    FOR_ACTORS(a) {
        if (a->home == interp && !a->stateless) {
            a->snapshot = snapshot;
            command_actor(a, SNAPSHOT);
            wait_for(&_PyTestOracle.done);
            return;
        }
    }
    abort();
}

// Return the sum of the sizes.
static size_t
collect_found(items_t *found, tracemalloc_snapshot *snapshots)
{
    size_t sum = 0;
    for (int owner = 0; owner < MAX_INTERPS; owner++) {
        interp_t *interp = &_PyTestOracle.interps[owner];
        tracemalloc_snapshot *snapshot = &snapshots[owner];
        if (interp->interp == NULL || !interp->tracing) {
            continue;
        }
        take_snapshot(interp, snapshot);
        // By traceback id, as far as they are needed.
        uint64_t *prints = alloc(((size_t)snapshot->last_id + 1)
                                 * sizeof(uint64_t));
        for (size_t i = 0; i < snapshot->ntraces; i++) {
            const tracemalloc_trace *trace = &snapshot->traces[i];
            uint64_t *print = &prints[trace->traceback];
            if (*print == 0) {
                *print = _PyTestOracle_HashTrace(snapshot->intern, trace);
            }
            item_t *item = add_item(found);
            item->domain = trace->domain;
            item->ptr = trace->ptr;
            item->owner = owner;
            item->size = trace->size;
            item->print = *print;
            item->need = YES;
            item->version = interp->version;
            item->trace = trace;
            sum += trace->size;
        }
        free(prints);
    }
    if (found->length > 0) {
        qsort(found->items, found->length, sizeof(item_t), compare_items);
    }
    _PyTestOracle.ncompared += found->length;
    return sum;
}

static size_t
append(char *text, size_t size, size_t length, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text + length, size - length, format, args);
    va_end(args);
    return Py_MIN(length + (size_t)Py_MAX(n, 0), size - 1);
}

// The trace of an item, expected or found, with its innermost frames.
static void
describe(char *text, size_t size, const item_t *item,
         const tracemalloc_snapshot *snapshots)
{
    const interp_t *interp = &_PyTestOracle.interps[item->owner];
    size_t n, total, len = append(text, size, 0, "%zu bytes in %s %d",
                                  item->size, interp->kind, item->owner);
    const tracemalloc_intern *intern = snapshots[item->owner].intern;
    const tracemalloc_frame *found = NULL;
    if (item->trace != NULL) {
        const tracemalloc_item *traceback = _PyTraceMalloc_GetItem(
            intern, item->trace->traceback);
        found = traceback->frames;
        n = traceback->length;
        total = traceback->total_nframe;
    }
    else if (item->block != NULL) {
        n = kept(item->block->frames, interp->limit);
        total = item->block->frames->total;
    }
    else {
        (void)append(text, size, len, ", as before");
        return;
    }
    len = append(text, size, len, ", %zu of %zu frames:", n, total);
    for (size_t i = 0; i < Py_MIN(n, 6); i++) {
        frame_t frame;
        if (found != NULL) {
            read_frame(intern, &found[i], 0, &frame);
        }
        else {
            frame = item->block->frames->items[i];
        }
        len = append(text, size, len, " %s:%u", frame.name, frame.lineno);
    }
}

// Either may be NULL.
static void
fail_compare(const char *what, const item_t *expected, const item_t *found,
             const tracemalloc_snapshot *snapshots)
{
    static const char * const kinds[] = {"raw", "mem", "obj", "tracked"};
    const item_t *item = expected != NULL ? expected : found;
    char texts[2][700] = {"none", "none"};
    if (expected != NULL && expected->need != NO) {
        describe(texts[0], sizeof(texts[0]), expected, snapshots);
    }
    if (found != NULL) {
        describe(texts[1], sizeof(texts[1]), found, snapshots);
    }
    _PyTestOracle_Fail(
        "%s: %s block %#zx in domain %u: expected %s; found %s", what,
        item->block == NULL ? "Python's" : kinds[item->block->kind],
        (size_t)item->ptr, item->domain, texts[0], texts[1]);
}

// What was uncertain is certain now.
static void
settle(const item_t *expected, bool found)
{
    if (expected->block != NULL) {
        if (found) {
            expected->block->before = expected->block->after;
        }
        else {
            expected->block->owner = -1;
        }
    }
}

static void
compare(const items_t *expected, const items_t *found, bool rebase,
        const tracemalloc_snapshot *snapshots)
{
    const item_t *e = expected->items, *e_end = e + expected->length;
    const item_t *f = found->items, *f_end = f + found->length;
    while ((e < e_end || f < f_end) && !failed()) {
        int order = e == e_end ? 1 : f == f_end ? -1 : compare_items(e, f);
        if (f + 1 < f_end && compare_items(f, f + 1) == 0) {
            fail_compare("two interpreters have a trace", order ? NULL : e,
                         f, snapshots);
        }
        if (order < 0) {
            if (e->need == YES) {
                fail_compare("a trace is missing", e, NULL, snapshots);
            }
            settle(e++, false);
            continue;
        }
        if (order > 0 && rebase) {
            item_t *item = add_item(&_PyTestOracle.baseline);
            *item = *f;
            item->trace = NULL;
            _PyTestOracle.interps[f->owner].baseline += f->size;
        }
        else if (order > 0) {
            fail_compare("trace of a block which is not there", NULL, f,
                         snapshots);
        }
        else if (e->need == NO) {
            fail_compare("there must be no trace", e, f, snapshots);
        }
        else if (e->owner != f->owner || e->size != f->size
                 || e->print != f->print)
        {
            fail_compare("wrong trace", e, f, snapshots);
        }
        f++;
        if (order == 0) {
            settle(e++, true);
        }
    }
}

void
_PyTestOracle_Audit(bool rebase)
{
    tracemalloc_snapshot snapshots[MAX_INTERPS] = {0};
    items_t expected = {0}, found = {0};
    size_t size, peak;
    if (failed()) {
        return;
    }
    if (rebase) {
        _PyTestOracle.baseline.length = 0;
        for (int i = 0; i < MAX_INTERPS; i++) {
            _PyTestOracle.interps[i].baseline = 0;
        }
    }
    size_t sum = collect_found(&found, snapshots);
    collect_expected(&expected, !rebase);
    compare(&expected, &found, rebase, snapshots);
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    unsigned int ignored;
    int ntracing = _PyTestOracle_CountTracing(&ignored);
    if (sum != size || (peak != 0 && ntracing == 0)) {
        _PyTestOracle_Fail("the traces have %zu bytes, get_traced_memory() is "
                           "(%zu, %zu)", sum, size, peak);
    }
    if (rebase) {
        _PyTestOracle.tally = (tally_t){(Py_ssize_t)size, (Py_ssize_t)peak, 0};
    }
    for (int i = 0; i < MAX_INTERPS; i++) {
        if (snapshots[i].traces != NULL) {
            _PyTraceMalloc_FreeSnapshot(&snapshots[i]);
        }
    }
    free(expected.items);
    free(found.items);
}

void
_PyTestOracle_CheckCounters(actor_t *a)
{
    size_t size, peak;
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    if ((Py_ssize_t)size != _PyTestOracle.tally.size
        || (Py_ssize_t)peak != _PyTestOracle.tally.peak)
    {
        char what[200];
        snprintf(what, sizeof(what), "get_traced_memory() must be "
                 "(%zd, %zd) and is (%zu, %zu)", _PyTestOracle.tally.size,
                 _PyTestOracle.tally.peak, size, peak);
        fail_step(a, what, 0);
    }
}

// The most that all actors together can have had is
// the sum of what each had at most; if one starts, stops or clears, then
// what the others take away may not have been there.
void
_PyTestOracle_CheckBounds(void)
{
    size_t size, peak, seen = 0;
    Py_ssize_t last = _PyTestOracle.tally.size, most = last, least = 0;
    FOR_ACTORS(a) {
        last += a->own.size;
        most += _PyTestOracle.quiet ? a->own.peak : (Py_ssize_t)a->own.added;
        seen = Py_MAX(seen, a->seen);
    }
    most = Py_MAX(most, _PyTestOracle.tally.peak);
    _PyTraceMalloc_GetTracedMemory(&size, &peak);
    if (_PyTestOracle.quiet) {
        least = Py_MAX(_PyTestOracle.tally.peak, (Py_ssize_t)seen);
        if (last != (Py_ssize_t)size) {
            _PyTestOracle_Fail("traced memory must be %zd and is %zu",
                               last, size);
        }
    }
    least = Py_MAX(least, (Py_ssize_t)size);
    if ((Py_ssize_t)peak < least || (Py_ssize_t)peak > most) {
        _PyTestOracle_Fail("the peak must be in [%zd; %zd] and is %zu",
                           least, most, peak);
    }
}
