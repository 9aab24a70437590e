// An interpreter's books: its traces, and its share in the process-wide
// counters.  Who allocates, and when, is the hooks' business.
//
// Two equations hold whenever the locks are free:
//
//   books->traced_memory   == sum of the sizes of the traces in the books
//   runtime->traced_memory == sum of traced_memory over all open books
//
// Every change of a size goes through add_size() or remove_size(), under the
// locks of both sides.

#include "Python.h"
#include "pycore_tracemalloc.h"   // _PyTraceBooks


/* --- Locks -------------------------------------------------------------- */

void
_PyTraceRuntime_Lock(_PyTraceRuntime *runtime)
{
    PyMutex_LockFlags(&runtime->mutex, _Py_LOCK_DONT_DETACH);
}

void
_PyTraceRuntime_Unlock(_PyTraceRuntime *runtime)
{
    PyMutex_Unlock(&runtime->mutex);
}

static inline void
lock_books(_PyTraceBooks *books)
{
    PyMutex_LockFlags(&books->mutex, _Py_LOCK_DONT_DETACH);
}

static inline void
unlock_books(_PyTraceBooks *books)
{
    PyMutex_Unlock(&books->mutex);
}


/* --- Counters ----------------------------------------------------------- */

static void
add_size(_PyTraceRuntime *runtime, _PyTraceBooks *books, size_t size)
{
    assert(runtime->traced_memory <= SIZE_MAX - size);
    books->traced_memory += size;
    runtime->traced_memory += size;
    if (runtime->peak_traced_memory < runtime->traced_memory) {
        runtime->peak_traced_memory = runtime->traced_memory;
    }
}

static void
remove_size(_PyTraceRuntime *runtime, _PyTraceBooks *books, size_t size)
{
    assert(size <= books->traced_memory);
    assert(books->traced_memory <= runtime->traced_memory);
    books->traced_memory -= size;
    runtime->traced_memory -= size;
}


/* --- Open, close, clear ------------------------------------------------- */

static void
init_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    _PyTraceTable_Init(&books->traces, &runtime->below->raw);
    _PyTraceIntern_Init(&books->intern, &runtime->below->raw);
    books->epoch = ++runtime->epoch;
}

// Move the traces out, and their sizes off the counters.
static void
take_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books,
              _PyTraceContents *contents)
{
    contents->traces = books->traces;
    contents->intern = books->intern;
    remove_size(runtime, books, books->traced_memory);
    init_contents(runtime, books);
}

void
_PyTraceContents_Free(_PyTraceContents *contents)
{
    _PyTraceTable_Clear(&contents->traces);
    _PyTraceIntern_Clear(&contents->intern);
}

void
_PyTraceBooks_Open(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                   int max_nframe)
{
    assert(!books->tracing);
    lock_books(books);
    assert(books->traced_memory == 0);
    init_contents(runtime, books);
    books->max_nframe = max_nframe;
    books->tracing = 1;
    unlock_books(books);

    books->next = runtime->tracing;
    runtime->tracing = books;
    _Py_atomic_store_int_relaxed(&runtime->ntracing, runtime->ntracing + 1);
}

static void
unlink_books(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    _PyTraceBooks **link = &runtime->tracing;
    while (*link != books) {
        assert(*link != NULL);
        link = &(*link)->next;
    }
    *link = books->next;
    books->next = NULL;
}

void
_PyTraceBooks_Close(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                    _PyTraceContents *contents)
{
    assert(books->tracing);
    unlink_books(runtime, books);
    _Py_atomic_store_int_relaxed(&runtime->ntracing, runtime->ntracing - 1);

    lock_books(books);
    books->tracing = 0;
    take_contents(runtime, books, contents);
    unlock_books(books);

    if (runtime->ntracing == 0) {
        assert(runtime->traced_memory == 0);
        runtime->peak_traced_memory = 0;
    }
}

void
_PyTraceBooks_Clear(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                    _PyTraceContents *contents)
{
    assert(books->tracing);
    lock_books(books);
    take_contents(runtime, books, contents);
    unlock_books(books);
    runtime->peak_traced_memory = runtime->traced_memory;
}


/* --- Record, take, put back --------------------------------------------- */

// Give a block the trace it shall have, old or new.
static int
store(_PyTraceRuntime *runtime, _PyTraceBooks *books, const _PyTrace *trace)
{
    _PyTrace *old = _PyTraceTable_Find(&books->traces,
                                       trace->domain, trace->ptr);
    if (old != NULL) {
        remove_size(runtime, books, old->size);
        *old = *trace;
    }
    else {
        if (_PyTraceTable_Reserve(&books->traces) < 0) {
            return -1;
        }
        _PyTraceTable_Put(&books->traces, trace);
    }
    add_size(runtime, books, trace->size);
    return 0;
}

int
_PyTraceBooks_Record(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                     PyThreadState *tstate,
                     unsigned int domain, uintptr_t ptr, size_t size)
{
    assert(books->tracing);
    _PyTrace trace = {.ptr = ptr, .size = size, .domain = domain};

    lock_books(books);
    int res = _PyTraceCapture_Traceback(&books->intern, tstate,
                                        books->max_nframe, &trace.traceback);
    if (res == 0) {
        res = store(runtime, books, &trace);
    }
    unlock_books(books);
    return res;
}

bool
_PyTraceBooks_Reattribute(_PyTraceBooks *books, PyThreadState *tstate,
                          uintptr_t ptr)
{
    assert(books->tracing);
    lock_books(books);
    _PyTrace *trace = _PyTraceTable_Find(&books->traces, 0, ptr);
    bool found = trace != NULL;
    if (found) {
        _PyTraceback_Id id;
        if (_PyTraceCapture_Traceback(&books->intern, tstate,
                                      books->max_nframe, &id) == 0)
        {
            trace->traceback = id;
        }
    }
    unlock_books(books);
    return found;
}

static bool
take(_PyTraceRuntime *runtime, _PyTraceBooks *books,
     unsigned int domain, uintptr_t ptr, _PyTraceTaken *taken)
{
    lock_books(books);
    _PyTrace *trace = _PyTraceTable_Find(&books->traces, domain, ptr);
    bool found = trace != NULL;
    if (found) {
        taken->epoch = books->epoch;
        taken->trace = *trace;
        _PyTraceTable_Remove(&books->traces, trace);
        // There is room: that of the trace just removed.
        int res = _PyTraceTable_Reserve(&books->traces);
        (void)res;
        assert(res == 0);
        remove_size(runtime, books, taken->trace.size);
    }
    unlock_books(books);
    return found;
}

void
_PyTraceRuntime_TakeFromOthers(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                               unsigned int domain, uintptr_t ptr,
                               _PyTraceTaken *taken)
{
    taken->epoch = 0;
    for (_PyTraceBooks *other = runtime->tracing; other != NULL;
         other = other->next)
    {
        if (other != books && take(runtime, other, domain, ptr, taken)) {
            return;
        }
    }
}

void
_PyTraceRuntime_Take(_PyTraceRuntime *runtime, _PyTraceBooks *first,
                     unsigned int domain, uintptr_t ptr, _PyTraceTaken *taken)
{
    if (!first->tracing || !take(runtime, first, domain, ptr, taken)) {
        _PyTraceRuntime_TakeFromOthers(runtime, first, domain, ptr, taken);
    }
}

void
_PyTraceRuntime_Settle(_PyTraceRuntime *runtime, const _PyTraceTaken *taken,
                       bool put_back)
{
    if (taken->epoch == 0) {
        return;
    }
    // Not to be found if the books were closed or cleared meanwhile.
    _PyTraceBooks *books = runtime->tracing;
    while (books != NULL && books->epoch != taken->epoch) {
        books = books->next;
    }
    if (books == NULL) {
        return;
    }
    lock_books(books);
    // Somebody may have tracked the block in the meantime.
    if (put_back
        && _PyTraceTable_Find(&books->traces, taken->trace.domain,
                              taken->trace.ptr) == NULL)
    {
        _PyTraceTable_Put(&books->traces, &taken->trace);
        add_size(runtime, books, taken->trace.size);
    }
    else {
        _PyTraceTable_Unreserve(&books->traces);
    }
    unlock_books(books);
}


/* --- Queries ------------------------------------------------------------ */

static void
init_snapshot(_PyTraceBooks *books, _PyTraceSnapshot *snapshot)
{
    *snapshot = (_PyTraceSnapshot){0};
    _PyTraceIntern_Init(&snapshot->intern, books->intern.allocator);
}

void
_PyTraceSnapshot_Free(_PyTraceSnapshot *snapshot)
{
    const PyMemAllocatorEx *allocator = snapshot->intern.allocator;
    if (snapshot->traces != NULL) {
        allocator->free(allocator->ctx, snapshot->traces);
        snapshot->traces = NULL;
        snapshot->ntraces = 0;
    }
    _PyTraceIntern_Clear(&snapshot->intern);
}

static int
alloc_traces(_PyTraceSnapshot *snapshot, size_t ntraces)
{
    const PyMemAllocatorEx *allocator = snapshot->intern.allocator;
    snapshot->traces = allocator->malloc(allocator->ctx,
                                         ntraces * sizeof(_PyTrace));
    if (snapshot->traces == NULL) {
        return -1;
    }
    snapshot->ntraces = ntraces;
    return 0;
}

static int
copy_all(const _PyTraceBooks *books, _PyTraceSnapshot *snapshot)
{
    if (books->traces.used == 0) {
        return 0;
    }
    if (alloc_traces(snapshot, books->traces.used) < 0
        || _PyTraceIntern_Copy(&books->intern, &snapshot->intern) < 0)
    {
        return -1;
    }
    _PyTraceTable_Copy(&books->traces, snapshot->traces);
    return 0;
}

static int
copy_one(const _PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
         _PyTraceSnapshot *snapshot)
{
    const _PyTrace *trace = _PyTraceTable_Find(&books->traces, domain, ptr);
    if (trace == NULL) {
        return 0;
    }
    if (alloc_traces(snapshot, 1) < 0) {
        return -1;
    }
    snapshot->traces[0] = *trace;
    return _PyTraceIntern_CopyTraceback(&books->intern, trace->traceback,
                                        &snapshot->intern,
                                        &snapshot->traces[0].traceback);
}

int
_PyTraceBooks_Snapshot(_PyTraceBooks *books, _PyTraceSnapshot *snapshot)
{
    assert(books->tracing);
    lock_books(books);
    init_snapshot(books, snapshot);
    int res = copy_all(books, snapshot);
    unlock_books(books);
    if (res < 0) {
        _PyTraceSnapshot_Free(snapshot);
    }
    return res;
}

int
_PyTraceBooks_SnapshotBlock(_PyTraceBooks *books, unsigned int domain,
                            uintptr_t ptr, _PyTraceSnapshot *snapshot)
{
    assert(books->tracing);
    lock_books(books);
    init_snapshot(books, snapshot);
    int res = copy_one(books, domain, ptr, snapshot);
    unlock_books(books);
    if (res < 0) {
        _PyTraceSnapshot_Free(snapshot);
    }
    return res;
}

size_t
_PyTraceBooks_Memory(_PyTraceBooks *books)
{
    lock_books(books);
    size_t size = _PyTraceTable_Memory(&books->traces)
                  + _PyTraceIntern_Memory(&books->intern);
    unlock_books(books);
    return size;
}
