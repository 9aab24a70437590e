// The traces of an interpreter: add, remove, and give a new traceback.  When
// that is to happen is the hooks' business.
//
// A trace is in the slot of its block (see pycore_tracemalloc_pages.h) or in
// the interpreter's hash table: blocks of the raw domain, tracked blocks,
// large blocks, blocks of somebody else's allocator.  Whatever may be freed by
// a thread that does not hold the interpreter's GIL is *listed* in the
// directory, too.
//
// Who else may be here?  Only the thread that owns a block writes its slot: no
// other thread passes the address to tracemalloc meanwhile.  The hash table is
// guarded by the mutex of the interpreter.  With the GIL there is a shortcut:
// the thread that holds the GIL and is inside its open credit need not lock.
// All others hold the runtime's mutex, close that credit and lock.
//
// A trace is counted before it is stored, and uncounted after it was removed;
// inside the credit, where nobody can look, the order does not matter.  So the
// sum is never less than what the traces add up to.

#include "Python.h"
#include "pycore_object.h"        // _PyType_PreHeaderSize()
#include "pycore_tracemalloc_shared.h"  // has_same_gil()


/* --- Slots -------------------------------------------------------------- */

// Remove the trace of a block from its slot; it is not uncounted.
static inline bool
remove_from_slot(tracemalloc_page *page, tracemalloc_removed *removed)
{
    if (!_PyTraceMalloc_HasSlots(page)) {
        return false;
    }
    tracemalloc_slot *slot = _PyTraceMalloc_SlotAt(page, removed->trace.ptr);
    if (slot == NULL || slot->traceback == _PyTraceMalloc_NO_TRACEBACK) {
        return false;
    }
    removed->trace.size = slot->size;
    removed->trace.traceback = slot->traceback;
    removed->owner = page->owner;
    removed->generation = page->owner->generation;
    slot->traceback = _PyTraceMalloc_NO_TRACEBACK;
    return true;
}

// The slot for a block that the calling thread has just got, of its own
// interpreter; NULL if the trace is to go to the hash table.
static tracemalloc_slot *
make_slot(interp_state *tm, tracemalloc_page **link, uintptr_t ptr,
          size_t size)
{
    if (link == NULL || !tm->owns_pages || size > UINT32_MAX) {
        return NULL;
    }
    tracemalloc_page *page = _PyTraceMalloc_LoadPage(link);
    if (!_PyTraceMalloc_HasSlots(page)) {
        lock_mutex(&tm->mutex);
        page = _PyTraceMalloc_MakePage(as_interp(tm), link, ptr);
        unlock_mutex(&tm->mutex);
    }
    return _PyTraceMalloc_OwnSlot(as_interp(tm), page, ptr);
}


/* --- Add ---------------------------------------------------------------- */

// The traceback of the thread if it is at a remembered site; else
// NO_TRACEBACK.
static inline Py_ALWAYS_INLINE uint32_t
remembered_traceback(PyThreadState *tstate)
{
    thread_state *ts = thread_of(tstate);
    interp_state *tm = &tstate->interp->tracemalloc;
    _PyInterpreterFrame *frame = tstate->current_frame;
    if (frame == NULL
        || ts->epoch != _Py_atomic_load_uint64_relaxed(&tm->epoch))
    {
        return _PyTraceMalloc_NO_TRACEBACK;
    }
    const tracemalloc_site *site = site_of(ts, frame->instr_ptr);
    if (!is_at_site(site, frame)) {
        return _PyTraceMalloc_NO_TRACEBACK;
    }
    assert(_PyTraceMalloc_IsExact(tm, frame, site->traceback));
    return site->traceback;
}

// The traceback of the thread, which is at no remembered site; or `otherwise`
// if there is no memory or the interpreter does not trace any more.
static Py_NO_INLINE uint32_t
capture(PyThreadState *tstate, uint32_t otherwise)
{
    tracemalloc_caller caller = attached_caller(tstate);
    uint32_t id;
    if (!caller.interp->tracing || _PyTraceMalloc_Capture(&caller, &id) < 0) {
        return otherwise;
    }
    return id;
}

// Count a trace, instead of a size that was `counted` before, and store it in
// the hash table, in place of one that is there.  -1 if there is no memory, 1
// if another thread has tracked the block meanwhile.  In both cases `counted`
// is counted again.
static int
add_to_own_table(const tracemalloc_caller *caller,
                 const tracemalloc_trace *trace, size_t counted, bool must)
{
    interp_state *tm = caller->interp;
    tracemalloc_removed old = {.trace = *trace};
    if (_PyTraceMalloc_FindAndRemove(caller, tm, &old)) {
        _PyTraceMalloc_CountRemove(caller, old.trace.size);
        must = true;
    }
    _PyTraceMalloc_CountChange(caller, counted, trace->size);
    int res = _PyTraceMalloc_AddToTable(caller, tm, trace, must);
    if (res != 0) {
        _PyTraceMalloc_CountChange(caller, trace->size, counted);
    }
    return res;
}

// With the traceback known.
static int
store_block(PyThreadState *tstate, uintptr_t ptr, size_t size,
            tracemalloc_block_origin origin, uint32_t traceback)
{
    tracemalloc_caller caller = attached_caller(tstate);
    interp_state *tm = caller.interp;
    size_t counted = origin == BLOCK_REALLOCATED ? size : 0;
    tracemalloc_page **link = _PyTraceMalloc_PageLink(tstate->interp, ptr);

    tracemalloc_slot *slot = make_slot(tm, link, ptr, size);
    tracemalloc_removed old = {.trace = {.ptr = ptr}};
    if (remove_from_slot(_PyTraceMalloc_LoadPage(link), &old)) {
        _PyTraceMalloc_CountRemove(&caller, old.trace.size);
    }
    // It may have been tracked before, by whichever interpreter.
    if (_PyTraceMalloc_RemoveListed(&caller, &old)) {
        _PyTraceMalloc_CountRemove(&caller, old.trace.size);
    }
    if (slot != NULL) {
        _PyTraceMalloc_CountChange(&caller, counted, size);
        slot->size = (uint32_t)size;
        slot->traceback = traceback;
        return 0;
    }
    if (link != NULL) {
        _PyTraceMalloc_NoteTabled(link);
    }
    tracemalloc_trace trace = {
        .ptr = ptr,
        .size = size,
        .traceback = traceback,
        // Threads without this GIL, or of another interpreter, may free it.
        .listed = !WITH_GIL || !tm->owns_pages,
    };
    return add_to_own_table(&caller, &trace, counted, origin != BLOCK_NEW);
}

// What most blocks need that are in no page: the GIL is held, and the credit
// is open and suffices.  False if it is not as simple as that.
static inline bool
try_add_to_table(PyThreadState *tstate, uintptr_t ptr, size_t size,
                 tracemalloc_block_origin origin, uint32_t traceback)
{
    interp_state *tm = &tstate->interp->tracemalloc;
    if (!WITH_GIL || !tm->owns_pages || may_be_listed(0, ptr)) {
        return false;
    }
    tracemalloc_credit *credit = own_credit(tstate);
    tracemalloc_trace trace = {
        .ptr = ptr, .size = size,
        .traceback = traceback & _PyTraceMalloc_MAX_ID,
    };
    size_t needed = origin == BLOCK_REALLOCATED ? 0 : size;
    bool done = false;
    if (_PyTraceMalloc_EnterCredit(credit)) {
        if (needed <= (uint64_t)credit->available
            && _PyTraceMalloc_TableAdd(&tm->table, &trace, false) == 0)
        {
            credit->available -= (int64_t)needed;
            done = true;
        }
        _PyTraceMalloc_LeaveCredit(credit);
    }
    return done;
}

// The same for a block in a page of the own interpreter, which needs a free
// slot and enough credit.
static inline Py_ALWAYS_INLINE bool
try_add_to_slot(PyThreadState *tstate, uintptr_t ptr, size_t size,
                tracemalloc_block_origin origin, uint32_t traceback)
{
    tracemalloc_page *page = _PyTraceMalloc_LoadPage(
        _PyTraceMalloc_PageLink(tstate->interp, ptr));
    tracemalloc_slot *slot = _PyTraceMalloc_OwnSlot(tstate->interp, page, ptr);
    if (slot == NULL || slot->traceback != _PyTraceMalloc_NO_TRACEBACK
        || size > UINT32_MAX
        // A block that was freed behind the hooks may have left a trace.
        || (!WITH_GIL && _Py_atomic_load_int_relaxed(&page->tabled)
            && may_be_listed(0, ptr))
        || _Py_atomic_load_int_relaxed(&RUNTIME->nshared) != 0
        || (origin != BLOCK_REALLOCATED
            && !_PyTraceMalloc_TryCountAdd(own_credit(tstate), size)))
    {
        return false;
    }
    slot->size = (uint32_t)size;
    slot->traceback = traceback;
    *last_block_of(tstate) = (tracemalloc_last_block){ptr, traceback};
    return true;
}

static Py_NO_INLINE int
add_block_slowly(PyThreadState *tstate, uintptr_t ptr, size_t size,
                 tracemalloc_block_origin origin, uint32_t traceback)
{
    last_block_of(tstate)->ptr = 0;
    if (traceback == _PyTraceMalloc_NO_TRACEBACK) {
        traceback = capture(tstate, origin == BLOCK_NEW
                                    ? _PyTraceMalloc_NO_TRACEBACK
                                    : _PyTraceMalloc_UNKNOWN);
        // The allocator below may have let another thread stop tracing.
        if (!tstate->interp->tracemalloc.tracing) {
            return 1;
        }
        if (traceback == _PyTraceMalloc_NO_TRACEBACK) {
            return -1;
        }
        if (try_add_to_slot(tstate, ptr, size, origin, traceback)) {
            return 0;
        }
    }
    if (_PyTraceMalloc_PageLink(tstate->interp, ptr) != NULL
        || !try_add_to_table(tstate, ptr, size, origin, traceback))
    {
        int res = store_block(tstate, ptr, size, origin, traceback);
        if (res != 0) {
            return res;
        }
    }
    *last_block_of(tstate) = (tracemalloc_last_block){ptr, traceback};
    return 0;
}

int
_PyTraceMalloc_AddBlock(PyThreadState *tstate, uintptr_t ptr, size_t size,
                        tracemalloc_block_origin origin)
{
    uint32_t traceback = remembered_traceback(tstate);
    if (traceback != _PyTraceMalloc_NO_TRACEBACK
        && try_add_to_slot(tstate, ptr, size, origin, traceback))
    {
        return 0;
    }
    return add_block_slowly(tstate, ptr, size, origin, traceback);
}

// Remove the trace of a block that the caller may not own; it is not
// uncounted.
static bool
remove_anywhere(const tracemalloc_caller *caller, tracemalloc_removed *removed)
{
    bool found = _PyTraceMalloc_RemoveListed(caller, removed);
    if (found || removed->trace.domain != 0) {
        return found;
    }
    // Any interpreter may have a trace that is not listed.
    struct llist_node *node;
    lock_runtime(caller);
    llist_for_each(node, &RUNTIME->tracing) {
        interp_state *tm = llist_data(node, interp_state, node);
        tracemalloc_page *page = _PyTraceMalloc_LoadPage(
            _PyTraceMalloc_PageLink(as_interp(tm), removed->trace.ptr));
        // Without the GIL all traces in the hash table are listed.
        found = remove_from_slot(page, removed)
                || (WITH_GIL
                    && _PyTraceMalloc_FindAndRemove(caller, tm, removed));
        if (found) {
            break;
        }
    }
    unlock_runtime(caller);
    return found;
}

int
_PyTraceMalloc_Add(const tracemalloc_caller *caller, unsigned int domain,
                   uintptr_t ptr, size_t size,
                   tracemalloc_block_origin origin)
{
    uint32_t traceback;
    assert(caller->interp->tracing);
    bool must = origin == BLOCK_REALLOCATED;
    bool track = origin == BLOCK_TRACKED;
    size_t counted = must ? size : 0;
    if (_PyTraceMalloc_Capture(caller, &traceback) < 0) {
        if (!must) {
            return -1;
        }
        traceback = _PyTraceMalloc_UNKNOWN;
    }
    tracemalloc_trace trace = {
        .ptr = ptr,
        .size = size,
        .domain = domain,
        .traceback = traceback,
        .listed = 1,
        .tracked = track && domain == 0,
    };
    tracemalloc_removed old = {.trace = {.ptr = ptr, .domain = domain}};
    bool found = trace.tracked ? remove_anywhere(caller, &old)
                 : _PyTraceMalloc_RemoveListed(caller, &old);
    if (found && track) {
        counted = old.trace.size;
    }
    else if (found) {
        // It is left of a block that was freed behind the hooks.
        _PyTraceMalloc_CountRemove(caller, old.trace.size);
    }
    int res = add_to_own_table(caller, &trace, counted, must);
    if (found && track && res < 0) {
        // PyTraceMalloc_Track() has failed, and changes nothing.
        _PyTraceMalloc_PutBack(caller, &old);
    }
    else if (found && track && res > 0) {
        _PyTraceMalloc_CountRemove(caller, old.trace.size);
    }
    return res;
}


/* --- Remove ------------------------------------------------------------- */

// Remove a trace that is in no slot; it is not uncounted.
static Py_NO_INLINE void
remove_slowly(const tracemalloc_caller *caller, bool own_table,
              tracemalloc_removed *removed)
{
    bool found = false;
    interp_state *tm = caller->interp;
    if (own_table && tm->tracing) {
        found = _PyTraceMalloc_FindAndRemove(caller, tm, removed);
    }
    interp_state *main = &_PyRuntime._main_interpreter.tracemalloc;
    if (!found && own_table
        && tm != main && has_same_gil(tm, main) && main->tracing)
    {
        found = _PyTraceMalloc_FindAndRemove(caller, main, removed);
    }
    if (!found) {
        (void)_PyTraceMalloc_RemoveListed(caller, removed);
    }
}

// The trace of a block of the "mem" or "object" domain is in no slot.
static Py_NO_INLINE void
remove_block_slowly(PyThreadState *tstate, tracemalloc_page **link,
                    tracemalloc_removed *removed)
{
    interp_state *tm = &tstate->interp->tracemalloc;
    tracemalloc_page *page = _PyTraceMalloc_LoadPage(link);
    bool has_slot = _PyTraceMalloc_HasSlots(page)
                    && !_Py_atomic_load_int_relaxed(&page->tabled)
                    && _PyTraceMalloc_SlotAt(page, removed->trace.ptr) != NULL;
    bool in_page = link != NULL && (page == NULL || has_slot);
    if (in_page && _Py_atomic_load_int_relaxed(&RUNTIME->nshared) == 0) {
        // It was allocated before tracing began.
        return;
    }
    // Without the GIL all traces in the hash table are listed.
    bool own_table = WITH_GIL && !in_page
                     && (tm->tracing || shares_obmalloc(tm));
    if (own_table || may_be_listed(0, removed->trace.ptr)) {
        tracemalloc_caller caller = attached_caller(tstate);
        remove_slowly(&caller, own_table, removed);
    }
}

// The counterpart of try_add_to_table().
static inline bool
try_remove_from_table(PyThreadState *tstate, uintptr_t ptr)
{
    interp_state *tm = &tstate->interp->tracemalloc;
    thread_state *ts = thread_of(tstate);
    tracemalloc_credit *credit = own_credit(tstate);
    if (!WITH_GIL || !tm->tracing || !_PyTraceMalloc_EnterCredit(credit)) {
        return false;
    }
    bool done = false;
    tracemalloc_trace *trace = _PyTraceMalloc_TableFind(&tm->table, 0, ptr);
    if (trace != NULL && !trace->listed
        && _PyTraceMalloc_TryReturn(credit, trace->size))
    {
        ts->freed_traceback = trace->traceback;
        ts->freed_owner = tm;
        _PyTraceMalloc_TableRemove(&tm->table, trace);
        done = true;
    }
    _PyTraceMalloc_LeaveCredit(credit);
    return done;
}

// free() must not change errno.
static Py_NO_INLINE void
uncount_slowly(PyThreadState *tstate, size_t size)
{
    tracemalloc_caller caller = attached_caller(tstate);
    int saved_errno = errno;
    _PyTraceMalloc_CountRemove(&caller, size);
    errno = saved_errno;
}

static Py_NO_INLINE void
free_block_slowly(PyThreadState *tstate, tracemalloc_page **link,
                  uintptr_t ptr)
{
    if (link == NULL && try_remove_from_table(tstate, ptr)) {
        return;
    }
    thread_state *ts = thread_of(tstate);
    tracemalloc_removed removed = {.trace = {.ptr = ptr}};
    int saved_errno = errno;
    remove_block_slowly(tstate, link, &removed);
    errno = saved_errno;
    ts->freed_traceback = removed.trace.traceback;
    ts->freed_owner = removed.owner;
    if (removed.trace.traceback != _PyTraceMalloc_NO_TRACEBACK) {
        uncount_slowly(tstate, removed.trace.size);
    }
}

void
_PyTraceMalloc_FreeBlock(PyThreadState *tstate, uintptr_t ptr)
{
    thread_state *ts = thread_of(tstate);
    last_block_of(tstate)->ptr = 0;
    tracemalloc_page **link = _PyTraceMalloc_PageLink(tstate->interp, ptr);
    tracemalloc_page *page = _PyTraceMalloc_LoadPage(link);
    if (_PyTraceMalloc_HasSlots(page)) {
        tracemalloc_slot *slot = _PyTraceMalloc_SlotAt(page, ptr);
        if (slot != NULL && slot->traceback != _PyTraceMalloc_NO_TRACEBACK) {
            size_t size = slot->size;
            ts->freed_traceback = slot->traceback;
            ts->freed_owner = page->owner;
            slot->traceback = _PyTraceMalloc_NO_TRACEBACK;
            if (!_PyTraceMalloc_TryCountRemove(own_credit(tstate), size)) {
                uncount_slowly(tstate, size);
            }
            return;
        }
    }
    else if (page == NULL && link != NULL
             && _Py_atomic_load_int_relaxed(&RUNTIME->nshared) == 0)
    {
        // It was allocated before tracing began, or is not traced here.
        ts->freed_traceback = _PyTraceMalloc_NO_TRACEBACK;
        return;
    }
    free_block_slowly(tstate, link, ptr);
}

void
_PyTraceMalloc_RemoveBlock(PyThreadState *tstate, tracemalloc_removed *removed)
{
    tracemalloc_page **link = _PyTraceMalloc_PageLink(tstate->interp,
                                                      removed->trace.ptr);
    if (!remove_from_slot(_PyTraceMalloc_LoadPage(link), removed)) {
        remove_block_slowly(tstate, link, removed);
    }
}

void
_PyTraceMalloc_Remove(const tracemalloc_caller *caller,
                      tracemalloc_removed *removed)
{
    if (may_be_listed(removed->trace.domain, removed->trace.ptr)) {
        remove_slowly(caller, caller->attached, removed);
    }
}

void
_PyTraceMalloc_RemoveAnywhere(const tracemalloc_caller *caller,
                              unsigned int domain, uintptr_t ptr)
{
    tracemalloc_removed removed = {.trace = {.ptr = ptr, .domain = domain}};
    if (remove_anywhere(caller, &removed)) {
        _PyTraceMalloc_CountRemove(caller, removed.trace.size);
    }
}


/* --- New objects -------------------------------------------------------- */

// The trace is in the hash table, or another interpreter has it.
static Py_NO_INLINE void
reattribute_slowly(PyThreadState *tstate, uintptr_t ptr, uint32_t traceback)
{
    tracemalloc_removed removed = {.trace = {.ptr = ptr}};
    _PyTraceMalloc_RemoveBlock(tstate, &removed);
    if (removed.trace.traceback == _PyTraceMalloc_NO_TRACEBACK) {
        return;
    }
    tracemalloc_caller caller = attached_caller(tstate);
    if (traceback == _PyTraceMalloc_NO_TRACEBACK) {
        traceback = capture(tstate, _PyTraceMalloc_NO_TRACEBACK);
    }
    if (traceback == _PyTraceMalloc_NO_TRACEBACK) {
        // Without memory it keeps the old one.
        _PyTraceMalloc_PutBack(&caller, &removed);
    }
    else if (removed.owner == caller.interp) {
        removed.trace.traceback = traceback & _PyTraceMalloc_MAX_ID;
        _PyTraceMalloc_PutBack(&caller, &removed);
    }
    else if (store_block(tstate, ptr, removed.trace.size, BLOCK_REALLOCATED,
                         traceback) != 0)
    {
        _PyTraceMalloc_CountRemove(&caller, removed.trace.size);
    }
}

#ifndef NDEBUG
// Is this its traceback, unless somebody has untracked the block?
static bool
has_traceback(PyThreadState *tstate, uintptr_t ptr, uint32_t traceback)
{
    interp_state *tm = &tstate->interp->tracemalloc;
    tracemalloc_trace trace;
    lock_mutex(&tm->mutex);
    bool found = _PyTraceMalloc_Find(tstate->interp, 0, ptr, &trace);
    unlock_mutex(&tm->mutex);
    return !found || trace.traceback == traceback;
}
#endif

// A block from a free list has the trace of its previous life; it gets the
// traceback of its new one (bpo-35053).
void
_PyTraceMalloc_ObjectCreated(PyThreadState *tstate, PyObject *op)
{
    // Also if the thread is reentrant: it has the block now.
    tracemalloc_last_block *last = last_block_of(tstate);
    uintptr_t ptr = (uintptr_t)op - _PyType_PreHeaderSize(Py_TYPE(op));
    uint32_t traceback = remembered_traceback(tstate);
    bool is_last = last->ptr == ptr && last->traceback == traceback;
    last->ptr = 0;
    // Another interpreter may have given the block a trace of its own since.
    if (is_last && _Py_atomic_load_int_relaxed(&RUNTIME->nshared) == 0) {
        // A new object in a new block.
        assert(has_traceback(tstate, ptr, traceback));
        return;
    }
    tracemalloc_page **link = _PyTraceMalloc_PageLink(tstate->interp, ptr);
    tracemalloc_page *page = _PyTraceMalloc_LoadPage(link);
    tracemalloc_slot *slot = _PyTraceMalloc_OwnSlot(tstate->interp, page, ptr);
    if (slot != NULL && slot->traceback != _PyTraceMalloc_NO_TRACEBACK) {
        // Without memory it keeps the old one.
        slot->traceback = traceback != _PyTraceMalloc_NO_TRACEBACK
                          ? traceback : capture(tstate, slot->traceback);
    }
    // A page with neither slots nor a mark has no traces: the block is older
    // than tracing.
    else if (link == NULL || page != NULL
             || _Py_atomic_load_int_relaxed(&RUNTIME->nshared) != 0)
    {
        reattribute_slowly(tstate, ptr, traceback);
    }
}
