// An interpreter's books: its traces.  Who allocates, and when, is the hooks'
// business.
//
// Whenever the mutex of the books is free, the sizes of the traces in both
// tables are what was added through the account, and the directory has an
// entry for each trace in the table `shared`.

#include "Python.h"
#include "pycore_frame.h"         // _PyThreadState_GetFrame()
#include "pycore_pystate.h"       // _PyInterpreterState_HasFeature()
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
    _Py_atomic_store_uint64_relaxed(&books->operations,
                                    books->operations + 1);
}

static inline void
unlock_books(_PyTraceBooks *books)
{
    PyMutex_Unlock(&books->mutex);
}


/* --- Open, close, clear ------------------------------------------------- */

static void
init_contents(_PyTraceRuntime *runtime, _PyTraceBooks *books)
{
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
    contents->traces = books->traces;
    contents->shared = books->shared;
    contents->intern = books->intern;
    contents->capture = NULL;
    _PyTraceCapture_Forget(books->capture);
    _PyTraceCounters_Forget(&runtime->counters, &books->account);
    init_contents(runtime, books);
}

void
_PyTraceContents_Free(_PyTraceContents *contents)
{
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
        // Pairs with the acquire in take_foreign().
        _Py_atomic_store_ptr_release(&runtime->directory, directory);
    }
    _PyTraceDirectory_Renew(runtime->directory, &runtime->below->raw);
    _PyTraceCounters_Init(&runtime->counters);
    return 0;
}

int
_PyTraceBooks_Open(_PyTraceRuntime *runtime, _PyTraceBooks *books,
                   int max_nframe, bool shares_all)
{
    assert(!books->tracing);
    if (runtime->ntracing == 0 && open_runtime(runtime) < 0) {
        return -1;
    }
    _PyTraceCapture *capture = _PyTraceCapture_New(&runtime->below->raw);
    if (capture == NULL) {
        return -1;
    }
    lock_books(books);
    init_contents(runtime, books);
    books->capture = capture;
    _PyTraceAccount_Init(&books->account);
    books->max_nframe = max_nframe;
    books->shares_all = shares_all;
    books->tracing = 1;
    unlock_books(books);

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

    lock_books(books);
    books->tracing = 0;
    take_contents(runtime, books, contents);
    contents->capture = books->capture;
    books->capture = NULL;
    unlock_books(books);

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
        _PyTraceCapture_Forget(books->capture);
    }
    unlock_books(books);
}


/* --- Change a trace ----------------------------------------------------- */

// What is done under the mutex of the books may turn out to need the
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

// Where the trace of a block is; NULL twice if it has none.
typedef struct {
    _PyTraceBlock *block;         // in books->traces
    _PyTrace *shared;             // in books->shared
} place;

static inline bool
is_found(place found)
{
    return found.block != NULL || found.shared != NULL;
}

static inline place
find(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr)
{
    place found = {NULL, NULL};
    if (domain == 0) {
        found.block = _PyTraceMap_Find(&books->traces, ptr);
    }
    if (found.block == NULL) {
        found.shared = _PyTraceTable_Find(&books->shared, domain, ptr);
    }
    return found;
}

static inline _PyTrace
trace_at(place found)
{
    if (found.shared != NULL) {
        return *found.shared;
    }
    return (_PyTrace){
        .ptr = found.block->ptr,
        .size = found.block->size,
        .traceback = found.block->traceback,
    };
}

bool
_PyTraceBooks_Get(_PyTraceBooks *books, unsigned int domain, uintptr_t ptr,
                  _PyTrace *trace)
{
    place found = find(books, domain, ptr);
    if (is_found(found)) {
        *trace = trace_at(found);
    }
    return is_found(found);
}

static inline _PyTraceBlock
as_block(const _PyTrace *trace)
{
    assert(trace->domain == 0 && trace->size <= _PyTraceBlock_MAX_SIZE);
    return (_PyTraceBlock){
        trace->ptr, (uint32_t)trace->size, trace->traceback,
    };
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
            _PyTraceMap_Unreserve(&books->traces);
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
    bool valid = room->reserved && room->epoch == books->epoch;
    if (valid && room->shared != shared) {
        return_room(runtime, books, room);
        valid = false;
    }
    if (!valid) {
        room->books = books;
        room->epoch = books->epoch;
        room->shared = shared;
        room->reserved = (shared ? _PyTraceTable_Reserve(&books->shared)
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

// Give a block its trace, in place of an old one.
static result
store(_PyTraceCaller *caller, _PyTraceBooks *books, const _PyTrace *trace,
      bool shared, _PyTraceRoom *room)
{
    place old = find(books, trace->domain, trace->ptr);
    // A block that was tracked after all may be untracked by anybody.
    bool move = old.block != NULL && shared;
    if (!is_found(old) || move) {
        result res = make_room(caller->runtime, books, shared, room);
        if (res != DONE) {
            return res;
        }
    }
    result res = change_size(caller, books,
                             is_found(old) ? trace_at(old).size : 0,
                             trace->size);
    if (res != DONE) {
        return res;
    }
    if (old.shared != NULL) {
        *old.shared = *trace;
        return DONE;
    }
    if (old.block != NULL && !move) {
        *old.block = as_block(trace);
        return DONE;
    }
    if (move) {
        _PyTraceMap_Remove(&books->traces, old.block, false);
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
set_last(const _PyTraceCaller *caller, uintptr_t ptr)
{
    if (!caller->attached) {
        return;
    }
    _PyThreadStateImpl *impl = (_PyThreadStateImpl *)caller->tstate;
    _PyInterpreterFrame *frame = _PyThreadState_GetFrame(caller->tstate);
    if (frame == NULL) {
        impl->tracemalloc.block = 0;
        return;
    }
    impl->tracemalloc.block = ptr;
    impl->tracemalloc.frame = frame;
    impl->tracemalloc.instr = frame->instr_ptr;
    impl->tracemalloc.operation = caller->books->operations;
}

// Is a block the one that the caller recorded last, by the same instruction of
// the same activation, with nothing else done in these books since then?
static bool
is_last(const _PyTraceCaller *caller, uintptr_t ptr)
{
    _PyThreadStateImpl *impl = (_PyThreadStateImpl *)caller->tstate;
    if (impl->tracemalloc.block != ptr
        || impl->tracemalloc.operation != _Py_atomic_load_uint64_relaxed(
            &caller->books->operations))
    {
        return false;
    }
    const _PyInterpreterFrame *frame = _PyThreadState_GetFrame(caller->tstate);
    return frame != NULL && frame == impl->tracemalloc.frame
           && frame->callers_known
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
    if (res == DONE) {
        set_last(caller, trace->ptr);
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

static result
try_take(_PyTraceCaller *caller, _PyTraceBooks *books, unsigned int domain,
         uintptr_t ptr, bool keep_room, _PyTraceTaken *taken)
{
    result res = NOT_FOUND;
    lock_books(books);
    place found = find(books, domain, ptr);
    if (is_found(found)) {
        taken->trace = trace_at(found);
        res = change_size(caller, books, taken->trace.size, 0);
    }
    if (res == DONE) {
        taken->room.books = books;
        taken->room.epoch = books->epoch;
        taken->room.shared = found.shared != NULL;
        taken->room.reserved = keep_room;
        if (found.shared != NULL) {
            _PyTraceTable_Remove(&books->shared, found.shared, keep_room);
            taken->room.listed = _PyTraceDirectory_Remove(
                caller->runtime->directory, books, domain, ptr, keep_room);
        }
        else {
            _PyTraceMap_Remove(&books->traces, found.block, keep_room);
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

// May the caller free objects of the main interpreter?
static bool
shares_main_objects(_PyTraceCaller *caller)
{
    return caller->tstate != NULL
           && !_Py_IsMainInterpreter(caller->tstate->interp)
           && _PyInterpreterState_HasFeature(caller->tstate->interp,
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
    else if (shares_main_objects(caller)) {
        (void)take_from(caller, &_PyRuntime._main_interpreter.tracemalloc,
                        domain, ptr, keep_room, taken);
    }
}

// May others have a trace of a block that the caller, whose books are open,
// has got?
static inline bool
others_may_have(const _PyTraceCaller *caller, unsigned int domain, uintptr_t ptr)
{
    return _PyTraceDirectory_MayHave(caller->runtime->directory, domain, ptr)
           || caller->any_block || caller->books->shares_all;
}

bool
_PyTraceCaller_RecordOwn(const _PyTraceCaller *caller, uintptr_t ptr,
                         size_t size, _PyTraceRoom *room)
{
    _PyTraceBooks *books = caller->books;
    assert(caller->attached && books->tracing);
    if (size > _PyTraceBlock_MAX_SIZE || others_may_have(caller, 0, ptr)) {
        return false;
    }
    bool done = false;
    lock_books(books);
    _PyTraceback_Id id = _PyTraceCapture_Known(books->capture,
                                               caller->tstate);
    bool has_room = (room == NULL ? _PyTraceMap_HasRoom(&books->traces)
                     : room->reserved && !room->shared
                       && room->epoch == books->epoch);
    if (id != _PyTraceback_NONE && has_room
        && !is_found(find(books, 0, ptr))
        && _PyTraceAccount_TryAdd(&books->account, size))
    {
        _PyTraceBlock block = {ptr, (uint32_t)size, id};
        if (room != NULL) {
            _PyTraceMap_Put(&books->traces, block);
            room->reserved = false;
        }
        else {
            _PyTraceMap_Add(&books->traces, block);
        }
        set_last(caller, ptr);
        done = true;
    }
    unlock_books(books);
    return done;
}

bool
_PyTraceCaller_TakeOwn(const _PyTraceCaller *caller, uintptr_t ptr,
                       bool keep_room, _PyTraceTaken *taken)
{
    _PyTraceBooks *books = caller->books;
    assert(caller->attached);
    if (!books->tracing) {
        return false;
    }
    bool done = false;
    lock_books(books);
    _PyTraceBlock *block = _PyTraceMap_Find(&books->traces, ptr);
    if (block != NULL
        && _PyTraceAccount_TryRemove(&books->account, block->size))
    {
        taken->room = (_PyTraceRoom){
            .books = books, .epoch = books->epoch, .reserved = keep_room,
        };
        taken->trace = (_PyTrace){
            .ptr = ptr, .size = block->size, .traceback = block->traceback,
        };
        _PyTraceMap_Remove(&books->traces, block, keep_room);
        done = true;
    }
    unlock_books(books);
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
        && !is_found(find(books, trace->domain, trace->ptr)))
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
    if (!taken->room.reserved && !taken->room.listed) {
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

#ifdef Py_DEBUG
// Has a block the traceback that it would be given?
static bool
is_up_to_date(_PyTraceCaller *caller, uintptr_t ptr)
{
    _PyTraceBooks *books = caller->books;
    _PyTrace trace;
    _PyTraceback_Id id;
    uint64_t operations = books->operations;
    lock_books(books);
    bool result = true;
    // Without a GIL others may have been here after is_last().
    if (books->operations == operations + 1) {
        result = _PyTraceBooks_Get(books, 0, ptr, &trace)
                 && (trace.traceback == _PyTraceback_UNKNOWN
                     || _PyTraceCapture_Traceback(
                         books->capture, &books->intern, caller->tstate,
                         books->max_nframe, &id) < 0
                     || trace.traceback == id);
    }
    unlock_books(books);
    return result;
}
#endif

static bool
reattribute_own(_PyTraceCaller *caller, uintptr_t ptr)
{
    _PyTraceBooks *books = caller->books;
    lock_books(books);
    place found = find(books, 0, ptr);
    _PyTraceback_Id id;
    if (is_found(found)
        && _PyTraceCapture_Traceback(books->capture, &books->intern,
                                     caller->tstate, books->max_nframe,
                                     &id) == 0)
    {
        *(found.block != NULL ? &found.block->traceback
                              : &found.shared->traceback) = id;
    }
    unlock_books(books);
    return is_found(found);
}

void
_PyTraceCaller_Reattribute(_PyTraceCaller *caller, uintptr_t ptr)
{
    assert(caller->books->tracing);
    if (is_last(caller, ptr)) {
        assert(is_up_to_date(caller, ptr));
        return;
    }
    if (reattribute_own(caller, ptr)
        || _Py_atomic_load_int_relaxed(&caller->runtime->ntracing) == 1)
    {
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
    size_t ntraces = books->traces.used + books->shared.used;
    if (ntraces == 0) {
        return 0;
    }
    if (alloc_traces(snapshot, ntraces) < 0
        || _PyTraceIntern_Copy(&books->intern, &snapshot->intern) < 0)
    {
        return -1;
    }
    _PyTraceMap_Copy(&books->traces, snapshot->traces);
    _PyTraceTable_Copy(&books->shared, snapshot->traces + books->traces.used);
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
    size_t size = _PyTraceMap_Memory(&books->traces)
                  + _PyTraceTable_Memory(&books->shared)
                  + _PyTraceIntern_Memory(&books->intern)
                  + _PyTraceCapture_Memory(books->capture)
                  + _PyTraceDirectory_Memory(runtime->directory,
                                             books->shared.used);
    unlock_books(books);
    return size;
}
