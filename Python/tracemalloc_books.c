// An interpreter's books: its traces.  Who allocates, and when, is the hooks'
// business.
//
// Whenever the lock of the books is free, the sizes of all their traces are
// what was added through the account, and the directory has an entry for each
// trace in the table `shared`.

#include "Python.h"
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_obmalloc.h"      // _PyObject_GetPoolBlockSize()
#include "pycore_pystate.h"       // _Py_IsMainInterpreter()
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
count_operation(_PyTraceBooks *books)
{
    _Py_atomic_store_uint64_relaxed(&books->operations,
                                    books->operations + 1);
}

static void
lock_books(_PyTraceBooks *books)
{
    _PyTraceLock_Lock(&books->lock);
    count_operation(books);
}

static void
unlock_books(_PyTraceBooks *books)
{
    _PyTraceLock_Unlock(&books->lock);
}

// For a thread that is attached to the interpreter.
static inline void
lock_own_books(_PyTraceBooks *books)
{
    _PyTraceLock_LockOwn(&books->lock);
    count_operation(books);
}

static inline void
unlock_own_books(_PyTraceBooks *books)
{
    _PyTraceLock_UnlockOwn(&books->lock);
}


/* --- Open, close, clear ------------------------------------------------- */

static void
init_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    _PyTracePools_Init(&books->pools, &runtime->below->raw);
    books->spare = false;
    _PyTraceMap_Init(&books->traces, &runtime->below->raw);
    _PyTraceTable_Init(&books->shared, &runtime->below->raw);
    _PyTraceIntern_Init(&books->intern, &runtime->below->raw);
    books->epoch = ++runtime->epoch;
}

// Move the traces out, and their sizes off the counters.
static void
take_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books,
              _PyTraceContents *contents)
{
    _PyTraceDirectory_RemoveAll(runtime->directory, books, &books->shared);
    contents->pools = books->pools;
    contents->traces = books->traces;
    contents->shared = books->shared;
    contents->intern = books->intern;
    contents->capture = NULL;
    _PyTraceCapture_Clear(books->capture);
    _PyTraceCounters_RemoveAccount(&runtime->counters, &books->account);
    init_contents(runtime, books);
}

void
_PyTraceContents_Free(_PyTraceContents *contents)
{
    _PyTracePools_Clear(&contents->pools);
    _PyTraceMap_Clear(&contents->traces);
    _PyTraceTable_Clear(&contents->shared);
    _PyTraceIntern_Clear(&contents->intern);
    _PyTraceCapture_Free(contents->capture);
}

// For the first books.
static int
open_runtime(_PyTraceRuntime *runtime)
{
    if (runtime->directory == NULL) {
        _PyTraceDirectory *directory = _PyTraceDirectory_New();
        if (directory == NULL) {
            return -1;
        }
        // Pairs with the acquire in take_foreign() and is_nobodys().
        _Py_atomic_store_ptr_release(&runtime->directory, directory);
    }
    _PyTraceDirectory_Renew(runtime->directory, &runtime->below->raw);
    _PyTraceCounters_Init(&runtime->counters);
    return 0;
}

int
_PyTraceBooks_Open(_PyTraceRuntime *runtime, PyInterpreterState *interp,
                   int max_nframe)
{
    _PyTraceBooks *books = &interp->tracemalloc;
    assert(!books->tracing);
    if (runtime->ntracing == 0 && open_runtime(runtime) < 0) {
        return -1;
    }
    _PyTraceCapture *capture = _PyTraceCapture_New(&runtime->below->raw);
    if (capture == NULL) {
        return -1;
    }
    _PyTraceLock_LockMutex(&books->lock);
    count_operation(books);
    init_contents(runtime, books);
    books->capture = capture;
    _PyTraceAccount_Init(&books->account, &books->lock);
    books->max_nframe = max_nframe;
    books->shares_all = _PyTraceBooks_SharesObmalloc(interp);
    books->tracing = 1;
    _PyTraceLock_Open(&books->lock, interp);
    _PyTraceLock_UnlockMutex(&books->lock);

    books->next = runtime->tracing;
    runtime->tracing = books;
    _Py_atomic_store_int_relaxed(&runtime->ntracing, runtime->ntracing + 1);
    return 0;
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

    _PyTraceLock_LockMutex(&books->lock);
    count_operation(books);
    books->tracing = 0;
    take_contents(runtime, books, contents);
    contents->capture = books->capture;
    books->capture = NULL;
    _PyTraceLock_Close(&books->lock);
    _PyTraceLock_UnlockMutex(&books->lock);

    if (runtime->ntracing == 0) {
        assert(_PyTraceCounters_Sum(&runtime->counters) == 0);
        _PyTraceDirectory_Renew(runtime->directory, &runtime->below->raw);
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
    _PyTraceCounters_ResetPeak(&runtime->counters);
}


void
_PyTraceBooks_ForgetFrames(_PyTraceBooks *books)
{
    lock_books(books);
    if (books->tracing) {
        _PyTraceCapture_Clear(books->capture);
    }
    unlock_books(books);
}


/* --- Change a trace ----------------------------------------------------- */

// What is done under the lock of the books may turn out to need the
// runtime's, which comes first: NEEDS_LOCK.  It is done again under both then.
typedef enum {
    DONE,
    NOT_FOUND,
    NO_MEMORY,
    NEEDS_LOCK,
} result;

// Every change of a size goes through here.
static result
change_size(_PyTraceCaller *caller, _PyTraceBooks *books,
            size_t from, size_t to)
{
    _PyTraceCounters *counters = &caller->runtime->counters;
    _PyTraceAccount *account = &books->account;
    if (from < to) {
        if (!_PyTraceAccount_TryAdd(account, to - from)) {
            if (!caller->locked) {
                return NEEDS_LOCK;
            }
            if (_PyTraceCounters_Add(counters, account, to - from) < 0) {
                return NO_MEMORY;
            }
        }
    }
    else if (!_PyTraceAccount_TryRemove(account, from - to)) {
        if (!caller->locked) {
            return NEEDS_LOCK;
        }
        _PyTraceCounters_Remove(counters, account, from - to);
    }
    return DONE;
}

// Where the trace of a block is, if it has one.
typedef struct {
    enum { NOWHERE, POOLED, MAPPED, SHARED } kind;
    _PyTracePoolPlace pooled;     // in books->pools
    _PyTraceBlock *block;         // in books->traces
    _PyTrace *shared;             // in books->shared
} place;

static place
find(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr)
{
    place found = {.kind = NOWHERE};
    if (domain == 0) {
        found.pooled = _PyTracePools_Find(&books->pools, ptr);
        if (found.pooled.trace != NULL) {
            found.kind = POOLED;
            return found;
        }
        found.block = _PyTraceMap_Find(&books->traces, ptr);
        if (found.block != NULL) {
            found.kind = MAPPED;
            return found;
        }
    }
    found.shared = _PyTraceTable_Find(&books->shared, domain, ptr);
    if (found.shared != NULL) {
        found.kind = SHARED;
    }
    return found;
}

static inline size_t
size_at(place found)
{
    switch (found.kind) {
        case POOLED: return found.pooled.trace->size;
        case MAPPED: return found.block->size;
        case SHARED: return found.shared->size;
        default: return 0;
    }
}

static inline _PyTraceback_Id *
traceback_at(place found)
{
    switch (found.kind) {
        case POOLED: return &found.pooled.trace->traceback;
        case MAPPED: return &found.block->traceback;
        case SHARED: return &found.shared->traceback;
        default: Py_UNREACHABLE();
    }
}

// The trace of a block that was found.  Member by member: a processor waits
// where it loads as one what it has just stored as two.
static inline Py_ALWAYS_INLINE void
get_trace(place found, unsigned int domain, uintptr_t ptr, _PyTrace *trace)
{
    trace->ptr = ptr;
    trace->size = size_at(found);
    trace->traceback = *traceback_at(found);
    trace->domain = domain;
}

// Remove a trace; from one of the tables, perhaps with its room kept there.
static inline Py_ALWAYS_INLINE void
remove_at(_PyTraceBooks *books, place found, bool keep_room)
{
    switch (found.kind) {
        case POOLED:
            assert(!keep_room);
            _PyTracePools_Remove(&books->pools, found.pooled);
            break;
        case MAPPED:
            _PyTraceMap_Remove(&books->traces, found.block, keep_room);
            break;
        case SHARED:
            _PyTraceTable_Remove(&books->shared, found.shared, keep_room);
            break;
        default:
            Py_UNREACHABLE();
    }
}

bool
_PyTraceBooks_Get(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
                  _PyTrace *trace)
{
    place found = find(books, domain, ptr);
    if (found.kind != NOWHERE) {
        get_trace(found, domain, ptr, trace);
    }
    return found.kind != NOWHERE;
}

// A place in the pools for a block of the calling thread's interpreter, which
// has these books.
static inline _PyTracePoolPlace
pool_place(_PyTraceBooks *books, uintptr_t ptr, size_t size)
{
    _PyTracePoolPlace nowhere = {NULL, NULL};
#ifdef Py_GIL_DISABLED
    // There is no pymalloc.
    return nowhere;
#else
    if (size > SMALL_REQUEST_THRESHOLD) {
        return nowhere;
    }
    _PyTracePool *pool = _PyTracePools_Pool(&books->pools, ptr);
    if (pool == NULL || pool->used == 0) {
        // Is it a pool, still or again?
        size_t block_size = _PyObject_GetPoolBlockSize((void *)ptr);
        if (block_size == 0) {
            return nowhere;
        }
        if (pool == NULL || pool->block_size != block_size) {
            pool = _PyTracePools_Prepare(&books->pools, ptr, block_size);
            if (pool == NULL) {
                return nowhere;
            }
        }
    }
    if (!books->spare) {
        if (_PyTraceMap_Reserve(&books->traces) < 0) {
            return nowhere;
        }
        books->spare = true;
    }
    return _PyTracePool_FreePlace(pool, ptr);
#endif
}

static inline _PyTraceBlock
as_block(const _PyTrace *trace)
{
    assert(trace->domain == 0 && trace->size <= _PyTraceBlock_MAX_SIZE);
    return (_PyTraceBlock){
        trace->ptr, (uint32_t)trace->size, trace->traceback,
    };
}

// Give room in the map back.
static inline void
return_map_room(_PyTraceBooks *books)
{
    if (books->spare) {
        _PyTraceMap_Unreserve(&books->traces);
    }
    books->spare = true;
}

// `books` are NULL if they are gone.
static void
return_room(_PyTraceRuntime *runtime, _PyTraceBooks *books,
            _PyTraceRoom *room)
{
    if (room->reserved && books != NULL && room->epoch == books->epoch) {
        if (room->shared) {
            _PyTraceTable_Unreserve(&books->shared);
        }
        else {
            return_map_room(books);
        }
    }
    if (room->listed) {
        _PyTraceDirectory_Unreserve(runtime->directory);
    }
    room->reserved = room->listed = false;
}

// See to it that there is room for a trace.  What is there already, from an
// earlier try or an earlier trace, is kept.
static result
make_room(_PyTraceRuntime *runtime, _PyTraceBooks *books, bool shared,
          _PyTraceRoom *room)
{
    bool valid = (room->reserved && room->shared == shared
                  && room->epoch == books->epoch);
    bool had_trace = room->epoch != 0;
    if (!valid) {
        // In the directory there may be room of before books were cleared.
        return_room(runtime, books, room);
        room->books = books;
        room->epoch = books->epoch;
        room->shared = shared;
        room->reserved = (
            shared ? _PyTraceTable_Reserve(&books->shared)
            : had_trace ? _PyTraceMap_ReserveAnyway(&books->traces)
            : _PyTraceMap_Reserve(&books->traces)) == 0;
        if (!room->reserved) {
            return NO_MEMORY;
        }
    }
    if (shared && !room->listed) {
        room->listed = _PyTraceDirectory_Reserve(runtime->directory) == 0;
        if (!room->listed) {
            return NO_MEMORY;
        }
    }
    return DONE;
}

static void
change_at(place found, const _PyTrace *trace)
{
    switch (found.kind) {
        case POOLED:
            found.pooled.trace->size = (uint16_t)trace->size;
            found.pooled.trace->traceback = trace->traceback;
            break;
        case MAPPED:
            *found.block = as_block(trace);
            break;
        default:
            *found.shared = *trace;
    }
}

// Give a block its trace, in place of an old one.
static result
store(_PyTraceCaller *caller, _PyTraceBooks *books, const _PyTrace *trace,
      bool shared, _PyTraceRoom *room)
{
    place old = find(books, trace->domain, trace->ptr);
    // A block that was tracked after all may be untracked by anybody.
    bool move = (shared && old.kind == MAPPED)
                || (old.kind == POOLED
                    && (shared || trace->size > UINT16_MAX));
    bool add = old.kind == NOWHERE || move;
    _PyTracePoolPlace pooled = {NULL, NULL};
    if (add && !shared && caller->attached && books == caller->books) {
        pooled = pool_place(books, trace->ptr, trace->size);
    }
    if (add && pooled.trace == NULL) {
        result res = make_room(caller->runtime, books, shared, room);
        if (res != DONE) {
            return res;
        }
    }
    result res = change_size(caller, books, size_at(old), trace->size);
    if (res != DONE) {
        return res;
    }
    if (!add) {
        change_at(old, trace);
        return DONE;
    }
    if (move) {
        remove_at(books, old, false);
    }
    if (pooled.trace != NULL) {
        _PyTracePools_AddAt(&books->pools, pooled, trace->ptr, trace->size,
                            trace->traceback);
        // try_record() and try_settle() return the room.
        return DONE;
    }
    if (shared) {
        _PyTraceTable_Put(&books->shared, trace);
        _PyTraceDirectory_Put(caller->runtime->directory, books,
                              trace->domain, trace->ptr);
    }
    else {
        _PyTraceMap_Put(&books->traces, as_block(trace));
    }
    room->reserved = room->listed = false;
    return DONE;
}

// A new object follows on the allocation of its block, and finds the trace
// that it is to have.  Remember what that depends on.
static inline void
set_last(_PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr)
{
    _PyThreadStateImpl *impl = (_PyThreadStateImpl *)tstate;
    const _PyInterpreterFrame *frame = tstate->current_frame;
    impl->tracemalloc.block = 0;
    if (frame != NULL) {
        // One that is not complete yet is not known, and so not the same.
        impl->tracemalloc.block = ptr;
        impl->tracemalloc.frame = frame;
        impl->tracemalloc.instr = frame->instr_ptr;
        impl->tracemalloc.operation = books->operations;
    }
}

// Is a block the one that a thread recorded last, by the same instruction of
// the same activation, with nothing else done in these books since then?
static inline bool
is_last(const _PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr)
{
    const _PyThreadStateImpl *impl = (_PyThreadStateImpl *)tstate;
    const _PyInterpreterFrame *frame = tstate->current_frame;
    return impl->tracemalloc.block == ptr
           && impl->tracemalloc.operation == _Py_atomic_load_uint64_relaxed(
               &books->operations)
           && frame == impl->tracemalloc.frame && frame->callers_known
           && frame->instr_ptr == impl->tracemalloc.instr;
}

static result
try_record(_PyTraceCaller *caller, _PyTrace *trace, bool shared,
           bool must, _PyTraceRoom *room)
{
    _PyTraceBooks *books = caller->books;
    assert(books->tracing);
    result res = DONE;
    lock_books(books);
    if (_PyTraceCapture_Traceback(books->capture, &books->intern,
                                  caller->tstate, books->max_nframe,
                                  &trace->traceback) < 0)
    {
        trace->traceback = _PyTraceback_UNKNOWN;
        res = must ? DONE : NO_MEMORY;
    }
    if (res == DONE) {
        shared = (shared || books->shares_all
                  || trace->size > _PyTraceBlock_MAX_SIZE);
        res = store(caller, books, trace, shared, room);
    }
    if (res != NEEDS_LOCK) {
        return_room(caller->runtime, books, room);
    }
    if (res == DONE && caller->attached && trace->domain == 0) {
        set_last(books, caller->tstate, trace->ptr);
    }
    unlock_books(books);
    return res;
}

// Record a block in the caller's books, from which `room` is, if it is any.
// If it must not fail, a block for which there is room gets "<unknown>" when
// its traceback cannot be stored.
static int
record(_PyTraceCaller *caller, unsigned int domain, uintptr_t ptr,
       size_t size, bool shared, bool must, _PyTraceRoom *room)
{
    _PyTrace trace = {.ptr = ptr, .size = size, .domain = domain};
    if (!_PyTraceAccount_MayAdd(&caller->books->account, size)) {
        // Saves a second try while the sum is growing.
        _PyTraceCaller_Lock(caller);
    }
    result res = try_record(caller, &trace, shared, must, room);
    if (res == NEEDS_LOCK) {
        _PyTraceCaller_Lock(caller);
        res = try_record(caller, &trace, shared, must, room);
    }
    return res == DONE ? 0 : -1;
}

// The room of a trace that is to be removed.  For one in a pool it is in the
// map, since the block may move anywhere.
static inline void
set_room(_PyTraceBooks *books, place found, bool keep_room,
         _PyTraceRoom *room)
{
    room->books = books;
    room->epoch = books->epoch;
    room->shared = found.kind == SHARED;
    room->listed = false;
    room->reserved = keep_room;
    if (keep_room && found.kind == POOLED) {
        room->reserved = books->spare
                         || _PyTraceMap_ReserveAnyway(&books->traces) == 0;
        books->spare = false;
    }
}

static result
try_take(_PyTraceCaller *caller, _PyTraceBooks *books, unsigned int domain,
         uintptr_t ptr, bool keep_room, _PyTraceTaken *taken)
{
    result res = NOT_FOUND;
    lock_books(books);
    place found = find(books, domain, ptr);
    if (found.kind != NOWHERE) {
        get_trace(found, domain, ptr, &taken->trace);
        res = change_size(caller, books, taken->trace.size, 0);
    }
    if (res == DONE) {
        set_room(books, found, keep_room, &taken->room);
        remove_at(books, found, keep_room && found.kind != POOLED);
        if (found.kind == SHARED) {
            taken->room.listed = _PyTraceDirectory_Remove(
                caller->runtime->directory, books, domain, ptr, keep_room);
        }
    }
    unlock_books(books);
    return res;
}

static bool
take_from(_PyTraceCaller *caller, _PyTraceBooks *books, unsigned int domain,
          uintptr_t ptr, bool keep_room, _PyTraceTaken *taken)
{
    result res = try_take(caller, books, domain, ptr, keep_room, taken);
    if (res == NEEDS_LOCK) {
        _PyTraceCaller_Lock(caller);
        res = try_take(caller, books, domain, ptr, keep_room, taken);
    }
    return res == DONE;
}

bool
_PyTraceBooks_SharesObmalloc(PyInterpreterState *interp)
{
    return !_Py_IsMainInterpreter(interp)
           && _PyInterpreterState_HasFeature(interp,
                                             Py_RTFLAGS_USE_MAIN_OBMALLOC);
}

// Take out the trace of a block that no other interpreter may free.
static void
take_private(_PyTraceCaller *caller, unsigned int domain, uintptr_t ptr,
             bool keep_room, _PyTraceTaken *taken)
{
    _PyTraceCaller_Lock(caller);
    for (_PyTraceBooks *books = caller->runtime->tracing; books != NULL;
         books = books->next)
    {
        if (books != caller->books
            && take_from(caller, books, domain, ptr, keep_room, taken))
        {
            return;
        }
    }
}

// Take out the trace of a block that is not in the caller's books.
static void
take_foreign(_PyTraceCaller *caller, unsigned int domain, uintptr_t ptr,
             bool keep_room, _PyTraceTaken *taken)
{
    // Pairs with the release in open_runtime().
    _PyTraceDirectory *directory =
        _Py_atomic_load_ptr_acquire(&caller->runtime->directory);
    taken->room = (_PyTraceRoom){0};
    if (directory != NULL
        && _PyTraceDirectory_MayHave(directory, domain, ptr))
    {
        _PyTraceBooks *owner = _PyTraceDirectory_Find(directory, domain, ptr);
        if (owner != NULL && owner != caller->books) {
            // These books may be gone by now, but not once we have the lock.
            _PyTraceCaller_Lock(caller);
            owner = _PyTraceDirectory_Find(directory, domain, ptr);
        }
        if (owner != NULL && owner != caller->books
            && take_from(caller, owner, domain, ptr, keep_room, taken))
        {
            return;
        }
    }
    if (caller->any_block) {
        take_private(caller, domain, ptr, keep_room, taken);
    }
    else if (caller->tstate != NULL
             && _PyTraceBooks_SharesObmalloc(caller->tstate->interp))
    {
        (void)take_from(caller, &_PyRuntime._main_interpreter.tracemalloc,
                        domain, ptr, keep_room, taken);
    }
}

// May others have a trace of a block that the caller, whose books are open,
// has got?
static inline bool
others_may_have(const _PyTraceCaller *caller, unsigned int domain,
                uintptr_t ptr)
{
    return _PyTraceDirectory_MayHave(caller->runtime->directory, domain, ptr)
           || caller->any_block || caller->books->shares_all;
}

// Is there the trace of a block that was in a pool where a larger one is now?
// Only if it was freed behind the hooks.
static inline bool
is_left_behind(const _PyTraceBooks *books, uintptr_t ptr, size_t size)
{
    return size > SMALL_REQUEST_THRESHOLD
           && _PyTracePools_Find(&books->pools, ptr).trace != NULL;
}

bool
_PyTraceBooks_RecordOwn(_PyTraceBooks *books, PyThreadState *tstate,
                        uintptr_t ptr, size_t size, _PyTraceRoom *room)
{
    assert(tstate == _PyThreadState_GET() && books->tracing);
    if (size > _PyTraceBlock_MAX_SIZE || books->shares_all) {
        return false;
    }
    _PyTraceMap *map = &books->traces;
    _PyTraceBlock *slot = NULL;
    _PyTraceback_Id id;
    bool done = false;
    lock_own_books(books);
    bool reserved = room != NULL && room->reserved && !room->shared
                    && room->epoch == books->epoch;
    _PyTracePoolPlace pooled = pool_place(books, ptr, size);
    // What is in the directory may be the trace of anybody, or in the table
    // `shared`.  A block of a pool has none there: who may free it takes it.
    if (pooled.pool == NULL && !is_left_behind(books, ptr, size)
        && !_PyTraceDirectory_MayHave(_PyRuntime.tracemalloc.directory,
                                      0, ptr)
        && (reserved ? map->old == NULL : _PyTraceMap_HasRoom(map)))
    {
        // Without old slots one probe will do.
        slot = _PyTraceMap_Probe(map, ptr);
    }
    if ((pooled.trace != NULL || (slot != NULL && slot->ptr == 0))
        && _PyTraceCapture_Traceback(books->capture, &books->intern, tstate,
                                     books->max_nframe, &id) == 0
        && _PyTraceAccount_TryAdd(&books->account, size))
    {
        // From here on the block has its trace.
        if (pooled.trace != NULL) {
            _PyTracePools_AddAt(&books->pools, pooled, ptr, size, id);
            if (reserved) {
                return_map_room(books);
            }
        }
        else {
            map->reserved -= reserved;
            _PyTraceMap_AddAt(map, slot,
                              (_PyTraceBlock){ptr, (uint32_t)size, id});
        }
        if (reserved) {
            room->reserved = false;
        }
        set_last(books, tstate, ptr);
        done = true;
    }
    unlock_own_books(books);
    return done;
}

bool
_PyTraceBooks_TakeOwn(_PyTraceBooks *books, uintptr_t ptr, bool keep_room,
                      _PyTraceTaken *taken)
{
    assert(books->tracing);
    bool done = false;
    lock_own_books(books);
    place found = {.kind = POOLED};
    found.pooled = _PyTracePools_Find(&books->pools, ptr);
    if (found.pooled.trace == NULL) {
        found.block = _PyTraceMap_Find(&books->traces, ptr);
        found.kind = found.block != NULL ? MAPPED : NOWHERE;
    }
    if (found.kind != NOWHERE
        && _PyTraceAccount_TryRemove(&books->account, size_at(found)))
    {
        get_trace(found, 0, ptr, &taken->trace);
        set_room(books, found, keep_room, &taken->room);
        remove_at(books, found, keep_room && found.kind != POOLED);
        done = true;
    }
    unlock_own_books(books);
    return done;
}

int
_PyTraceCaller_Record(_PyTraceCaller *caller, unsigned int domain,
                      uintptr_t ptr, size_t size, bool shared)
{
    _PyTraceTaken taken;
    _PyTraceRoom room = {0};
    if (!others_may_have(caller, domain, ptr)) {
        return record(caller, domain, ptr, size, shared, false, &room);
    }
    take_foreign(caller, domain, ptr, true, &taken);
    int res = record(caller, domain, ptr, size, shared, false, &room);
    _PyTraceCaller_Settle(caller, &taken, res < 0);
    return res;
}

void
_PyTraceCaller_Take(_PyTraceCaller *caller, unsigned int domain,
                    uintptr_t ptr, bool keep_room, _PyTraceTaken *taken)
{
    taken->room = (_PyTraceRoom){0};
    if (!caller->books->tracing
        || !take_from(caller, caller->books, domain, ptr, keep_room, taken))
    {
        take_foreign(caller, domain, ptr, keep_room, taken);
    }
}

void
_PyTraceCaller_Rerecord(_PyTraceCaller *caller, _PyTraceTaken *taken,
                        unsigned int domain, uintptr_t ptr, size_t size,
                        bool shared)
{
    _PyTraceRoom none = {0};
    bool own = taken->room.books == caller->books;
    (void)record(caller, domain, ptr, size, shared, true,
                 own ? &taken->room : &none);
    if (!own) {
        _PyTraceCaller_Settle(caller, taken, false);
    }
}

static result
try_settle(_PyTraceCaller *caller, _PyTraceBooks *books,
           _PyTraceTaken *taken, bool put_back)
{
    _PyTraceRoom *room = &taken->room;
    const _PyTrace *trace = &taken->trace;
    result res = DONE;
    lock_books(books);
    // Somebody may have tracked the block in the meantime.
    if (put_back && room->epoch == books->epoch
        && find(books, trace->domain, trace->ptr).kind == NOWHERE)
    {
        res = store(caller, books, trace, room->shared, room);
    }
    if (res != NEEDS_LOCK) {
        return_room(caller->runtime, books, room);
    }
    unlock_books(books);
    return res;
}

static bool
are_open(const _PyTraceRuntime *runtime, const _PyTraceBooks *books)
{
    const _PyTraceBooks *other = runtime->tracing;
    while (other != NULL && other != books) {
        other = other->next;
    }
    return other != NULL;
}

void
_PyTraceCaller_Settle(_PyTraceCaller *caller, _PyTraceTaken *taken,
                      bool put_back)
{
    _PyTraceBooks *books = taken->room.books;
    bool has_room = taken->room.reserved || taken->room.listed;
    if (taken->room.epoch == 0 || (!has_room && !put_back)) {
        return;
    }
    if (books != caller->books) {
        _PyTraceCaller_Lock(caller);
        if (!are_open(caller->runtime, books)) {
            return_room(caller->runtime, NULL, &taken->room);
            return;
        }
    }
    if (try_settle(caller, books, taken, put_back) == NEEDS_LOCK) {
        _PyTraceCaller_Lock(caller);
        (void)try_settle(caller, books, taken, put_back);
    }
}

#ifndef NDEBUG
// Has a block the traceback that it would be given?
static bool
is_up_to_date(_PyTraceBooks *books, PyThreadState *tstate, uintptr_t ptr)
{
    _PyTrace trace;
    _PyTraceback_Id id;
    // Without a GIL others may have been here after is_last().
    const _PyThreadStateImpl *impl = (_PyThreadStateImpl *)tstate;
    bool same = true;
    lock_own_books(books);
    if (books->operations == impl->tracemalloc.operation + 1) {
        same = _PyTraceBooks_Get(books, 0, ptr, &trace)
               && (trace.traceback == _PyTraceback_UNKNOWN
                   || _PyTraceCapture_Traceback(
                       books->capture, &books->intern, tstate,
                       books->max_nframe, &id) < 0
                   || trace.traceback == id);
    }
    unlock_own_books(books);
    return same;
}
#endif

bool
_PyTraceBooks_ReattributeOwn(_PyTraceBooks *books, PyThreadState *tstate,
                             uintptr_t ptr)
{
    assert(tstate == _PyThreadState_GET() && books->tracing);
    if (is_last(books, tstate, ptr)) {
        assert(is_up_to_date(books, tstate, ptr));
        return true;
    }
    lock_own_books(books);
    place found = find(books, 0, ptr);
    _PyTraceback_Id id;
    if (found.kind != NOWHERE
        && _PyTraceCapture_Traceback(books->capture, &books->intern, tstate,
                                     books->max_nframe, &id) == 0)
    {
        *traceback_at(found) = id;
    }
    unlock_own_books(books);
    return found.kind != NOWHERE;
}

void
_PyTraceCaller_Reattribute(_PyTraceCaller *caller, uintptr_t ptr)
{
    assert(caller->attached && caller->books->tracing);
    if (_Py_atomic_load_int_relaxed(&caller->runtime->ntracing) == 1) {
        return;
    }
    // Interpreters that share an object allocator may also find each other's
    // blocks on their free lists.
    _PyTraceTaken taken;
    _PyTraceRoom room = {0};
    take_foreign(caller, 0, ptr, true, &taken);
    if (taken.room.epoch != 0) {
        int res = record(caller, 0, ptr, taken.trace.size, false, false,
                         &room);
        _PyTraceCaller_Settle(caller, &taken, res < 0);
    }
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
    size_t npooled = books->pools.used, nmapped = books->traces.used;
    size_t ntraces = npooled + nmapped + books->shared.used;
    if (ntraces == 0) {
        return 0;
    }
    if (alloc_traces(snapshot, ntraces) < 0
        || _PyTraceIntern_Copy(&books->intern, &snapshot->intern) < 0)
    {
        return -1;
    }
    _PyTracePools_Copy(&books->pools, snapshot->traces);
    _PyTraceMap_Copy(&books->traces, snapshot->traces + npooled);
    _PyTraceTable_Copy(&books->shared, snapshot->traces + npooled + nmapped);
    return 0;
}

static int
copy_one(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
         _PyTraceSnapshot *snapshot)
{
    _PyTrace trace;
    if (!_PyTraceBooks_Get(books, domain, ptr, &trace)) {
        return 0;
    }
    if (alloc_traces(snapshot, 1) < 0) {
        return -1;
    }
    snapshot->traces[0] = trace;
    return _PyTraceIntern_CopyTraceback(&books->intern, trace.traceback,
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
_PyTraceBooks_Memory(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
    lock_books(books);
    size_t size = _PyTracePools_Memory(&books->pools)
                  + _PyTraceMap_Memory(&books->traces)
                  + _PyTraceTable_Memory(&books->shared)
                  + _PyTraceIntern_Memory(&books->intern)
                  + _PyTraceCapture_Memory(books->capture)
                  + _PyTraceDirectory_Memory(runtime->directory,
                                             books->shared.used);
    unlock_books(books);
    return size;
}
