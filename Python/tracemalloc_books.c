// An interpreter's books: its traces, and its share in the process-wide
// counters.  Who allocates, and when, is the hooks' business.
//
// Two equations hold whenever the locks are free:
//
//   books->traced_memory   == sum of the sizes of the traces in the books
//   runtime->traced_memory == sum of traced_memory over all open books
//
// and the directory has an entry for each shared trace of each open books.
//
// Every change of a size goes through add_size() or remove_size(), under the
// locks of both sides.

#include "Python.h"
#include "pycore_runtime.h"       // _PyRuntime
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


/* --- Directory ---------------------------------------------------------- */

// The books whose shared trace a block has, or NULL.
static _PyTraceBooks *
directory_find(_PyTraceRuntime *runtime, unsigned int domain, uintptr_t ptr)
{
    const _PyTrace *entry = _PyTraceTable_Find(&runtime->directory,
                                               domain, ptr);
    return entry == NULL ? NULL : (_PyTraceBooks *)(uintptr_t)entry->size;
}

// Use up a reservation.
static void
directory_put(_PyTraceRuntime *runtime, _PyTraceBooks *books,
              unsigned int domain, uintptr_t ptr)
{
    _PyTrace entry = {
        .ptr = ptr,
        .size = (size_t)(uintptr_t)books,
        .traceback = _PyTraceback_UNKNOWN,
        .domain = domain,
    };
    _PyTraceTable_Put(&runtime->directory, &entry);
}

static void
directory_remove(_PyTraceRuntime *runtime, unsigned int domain, uintptr_t ptr)
{
    _PyTrace *entry = _PyTraceTable_Find(&runtime->directory, domain, ptr);
    assert(entry != NULL);
    _PyTraceTable_Remove(&runtime->directory, entry);
}

static void
directory_remove_all(_PyTraceRuntime *runtime, const _PyTraceTable *shared)
{
    const _PyTrace *trace = NULL;
    while ((trace = _PyTraceTable_Next(shared, trace)) != NULL) {
        directory_remove(runtime, trace->domain, trace->ptr);
    }
}


/* --- Open, close, clear ------------------------------------------------- */

static void
init_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    _PyTraceTable_Init(&books->traces, &runtime->below->raw);
    _PyTraceTable_Init(&books->shared, &runtime->below->raw);
    _PyTraceIntern_Init(&books->intern, &runtime->below->raw);
    books->epoch = ++runtime->epoch;
}

// Move the traces out, and their sizes off the counters.
static void
take_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books,
              _PyTraceContents *contents)
{
    directory_remove_all(runtime, &books->shared);
    contents->traces = books->traces;
    contents->shared = books->shared;
    contents->intern = books->intern;
    remove_size(runtime, books, books->traced_memory);
    init_contents(runtime, books);
}

void
_PyTraceContents_Free(_PyTraceContents *contents)
{
    _PyTraceTable_Clear(&contents->traces);
    _PyTraceTable_Clear(&contents->shared);
    _PyTraceIntern_Clear(&contents->intern);
}

void
_PyTraceBooks_Open(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                   int max_nframe, bool shares_all)
{
    assert(!books->tracing);
    if (runtime->directory.allocator == NULL) {
        _PyTraceTable_Init(&runtime->directory, &runtime->below->raw);
    }
    lock_books(books);
    assert(books->traced_memory == 0);
    init_contents(runtime, books);
    books->max_nframe = max_nframe;
    books->shares_all = shares_all;
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
        assert(runtime->directory.used == 0);
        if (runtime->directory.reserved == 0) {
            _PyTraceTable_Clear(&runtime->directory);
            runtime->directory.allocator = NULL;
        }
        // else: a thread is about to return its reservation.
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

_PyTrace *
_PyTraceBooks_Find(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr)
{
    _PyTrace *trace = _PyTraceTable_Find(&books->traces, domain, ptr);
    if (trace == NULL) {
        trace = _PyTraceTable_Find(&books->shared, domain, ptr);
    }
    return trace;
}

static int
add_trace(_PyTraceRuntime *runtime, _PyTraceBooks *books,
          const _PyTrace *trace, bool shared)
{
    _PyTraceTable *table = shared ? &books->shared : &books->traces;
    if (_PyTraceTable_Reserve(table) < 0) {
        return -1;
    }
    if (shared) {
        if (_PyTraceTable_Reserve(&runtime->directory) < 0) {
            _PyTraceTable_Unreserve(table);
            return -1;
        }
        directory_put(runtime, books, trace->domain, trace->ptr);
    }
    _PyTraceTable_Put(table, trace);
    return 0;
}

// Give a block the trace it shall have, old or new.
static int
store(_PyTraceRuntime *runtime, _PyTraceBooks *books, const _PyTrace *trace,
      bool shared)
{
    _PyTrace *old = _PyTraceBooks_Find(books, trace->domain, trace->ptr);
    if (old != NULL) {
        remove_size(runtime, books, old->size);
        *old = *trace;
    }
    else if (add_trace(runtime, books, trace, shared) < 0) {
        return -1;
    }
    add_size(runtime, books, trace->size);
    return 0;
}

int
_PyTraceBooks_Record(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                     PyThreadState *tstate, unsigned int domain,
                     uintptr_t ptr, size_t size, bool shared)
{
    assert(books->tracing);
    _PyTrace trace = {.ptr = ptr, .size = size, .domain = domain};

    lock_books(books);
    int res = _PyTraceCapture_Traceback(&books->intern, tstate,
                                        books->max_nframe, &trace.traceback);
    if (res == 0) {
        res = store(runtime, books, &trace, shared || books->shares_all);
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
    _PyTrace *trace = _PyTraceBooks_Find(books, 0, ptr);
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

// Remove a trace and reserve the room that it had.
static void
remove_keeping_room(_PyTraceTable *table, _PyTrace *trace)
{
    _PyTraceTable_Remove(table, trace);
    int res = _PyTraceTable_Reserve(table);
    (void)res;
    assert(res == 0);
}

static bool
take(_PyTraceRuntime *runtime, _PyTraceBooks *books,
     unsigned int domain, uintptr_t ptr, _PyTraceTaken *taken)
{
    lock_books(books);
    _PyTraceTable *table = &books->traces;
    _PyTrace *trace = _PyTraceTable_Find(table, domain, ptr);
    if (trace == NULL) {
        table = &books->shared;
        trace = _PyTraceTable_Find(table, domain, ptr);
    }
    bool found = trace != NULL;
    if (found) {
        taken->epoch = books->epoch;
        taken->shared = table == &books->shared;
        taken->trace = *trace;
        remove_keeping_room(table, trace);
        if (taken->shared) {
            remove_keeping_room(
                &runtime->directory,
                _PyTraceTable_Find(&runtime->directory, domain, ptr));
        }
        remove_size(runtime, books, taken->trace.size);
    }
    unlock_books(books);
    return found;
}

// Blocks that are not shared belong to the main interpreter, if the caller may
// free them at all.
void
_PyTraceRuntime_TakeFromOthers(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                               unsigned int domain, uintptr_t ptr,
                               _PyTraceTaken *taken)
{
    taken->epoch = 0;
    _PyTraceBooks *owner = directory_find(runtime, domain, ptr);
    if (owner == NULL) {
        owner = &_PyRuntime._main_interpreter.tracemalloc;
    }
    if (owner != books && owner->tracing) {
        (void)take(runtime, owner, domain, ptr, taken);
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

// The books that a trace was taken from, or NULL if they were closed or
// cleared meanwhile.  Their epoch tells, for the books themselves may be gone.
static _PyTraceBooks *
find_books(_PyTraceRuntime *runtime, _PyTraceBooks *first, uint64_t epoch)
{
    if (first->tracing && first->epoch == epoch) {
        return first;
    }
    _PyTraceBooks *books = runtime->tracing;
    while (books != NULL && books->epoch != epoch) {
        books = books->next;
    }
    return books;
}

void
_PyTraceRuntime_Settle(_PyTraceRuntime *runtime, _PyTraceBooks *first,
                       const _PyTraceTaken *taken, bool put_back)
{
    if (taken->epoch == 0) {
        return;
    }
    if (taken->shared) {
        _PyTraceTable_Unreserve(&runtime->directory);
    }
    _PyTraceBooks *books = find_books(runtime, first, taken->epoch);
    if (books == NULL) {
        return;
    }
    lock_books(books);
    _PyTraceTable_Unreserve(taken->shared ? &books->shared : &books->traces);
    // Somebody may have tracked the block in the meantime.
    if (put_back
        && _PyTraceBooks_Find(books, taken->trace.domain,
                              taken->trace.ptr) == NULL)
    {
        int res = store(runtime, books, &taken->trace, taken->shared);
        (void)res;
        assert(res == 0);
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
    size_t ntraces = books->traces.used + books->shared.used;
    if (ntraces == 0) {
        return 0;
    }
    if (alloc_traces(snapshot, ntraces) < 0
        || _PyTraceIntern_Copy(&books->intern, &snapshot->intern) < 0)
    {
        return -1;
    }
    _PyTraceTable_Copy(&books->traces, snapshot->traces);
    _PyTraceTable_Copy(&books->shared, snapshot->traces + books->traces.used);
    return 0;
}

static int
copy_one(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
         _PyTraceSnapshot *snapshot)
{
    const _PyTrace *trace = _PyTraceBooks_Find(books, domain, ptr);
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

// The directory's memory is divided by the number of entries.
static size_t
directory_memory(const _PyTraceRuntime *runtime, const _PyTraceBooks *books)
{
    if (books->shared.used == 0) {
        return 0;
    }
    double part = (double)books->shared.used / runtime->directory.used;
    return (size_t)(part * _PyTraceTable_Memory(&runtime->directory));
}

size_t
_PyTraceBooks_Memory(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    lock_books(books);
    size_t size = _PyTraceTable_Memory(&books->traces)
                  + _PyTraceTable_Memory(&books->shared)
                  + _PyTraceIntern_Memory(&books->intern)
                  + directory_memory(runtime, books);
    unlock_books(books);
    return size;
}
