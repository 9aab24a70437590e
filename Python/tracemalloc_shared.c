// Who is calling; the hash table of an interpreter: its lock, what is counted,
// the directory of the traces that any thread may have to find, and traces
// that are put back.

#include "Python.h"
#include "pycore_tracemalloc_shared.h"  // has_same_gil()


/* --- Who is calling ----------------------------------------------------- */

PyThreadState *
_PyTraceMalloc_DetachedThread(void)
{
    if (RUNTIME->tstates_gone
        && (PyThread_get_thread_ident()
            != _PyRuntimeState_GetFinalizingID(&_PyRuntime)))
    {
        // It may have been freed, and its key be deleted at any moment.  The
        // thread that finalizes has one for each interpreter that it ends.
        return NULL;
    }
    PyThreadState *tstate = PyGILState_GetThisThreadState();
    if (tstate != NULL && (_Py_atomic_load_int_relaxed(&tstate->state)
                           == _Py_THREAD_ATTACHED))
    {
        // Another thread is using it.
        return NULL;
    }
    return tstate;
}

void
_PyTraceMalloc_BeginCall(tracemalloc_caller *caller)
{
    caller->tstate = _PyThreadState_GET();
    caller->attached = caller->tstate != NULL;
    if (!caller->attached) {
        lock_mutex(&RUNTIME->mutex);
        caller->tstate = _PyTraceMalloc_DetachedThread();
    }
    caller->interp = interp_of(caller->tstate);
}

void
_PyTraceMalloc_EndCall(const tracemalloc_caller *caller)
{
    if (!caller->attached) {
        unlock_mutex(&RUNTIME->mutex);
    }
}


/* --- Locking the hash table --------------------------------------------- */

// Who holds the GIL, and is inside its open credit, can do without the mutex.
// Returns whether the mutex was locked.
static bool
lock_table(const tracemalloc_caller *caller, interp_state *tm)
{
#if WITH_GIL
    if (!caller->attached || !has_same_gil(caller->interp, tm)) {
        // A thread could do without the mutex as long as it has credit.
        _PyTraceMalloc_CloseCredit(&tm->credit, false);
    }
    else if (_PyTraceMalloc_EnterCredit(&tm->credit)) {
        return false;
    }
#endif
    lock_mutex(&tm->mutex);
    return true;
}

static void
unlock_table(interp_state *tm, bool locked)
{
    if (locked) {
        unlock_mutex(&tm->mutex);
    }
#if WITH_GIL
    else {
        _PyTraceMalloc_LeaveCredit(&tm->credit);
    }
#endif
}


/* --- Counting ----------------------------------------------------------- */

// The caller's credit, open or not, or NULL if it has none.
static tracemalloc_credit *
usable_credit(const tracemalloc_caller *caller)
{
    if (caller->attached && caller->interp->tracing
        && (WITH_GIL || !thread_of(caller->tstate)->ended))
    {
        return own_credit(caller->tstate);
    }
    return NULL;
}

void
_PyTraceMalloc_CountChange(const tracemalloc_caller *caller, size_t old_size,
                           size_t new_size)
{
    bool add = new_size > old_size;
    size_t change = add ? new_size - old_size : old_size - new_size;
    if (change == 0) {
        return;
    }
    tracemalloc_credit *credit = usable_credit(caller);
    if (credit == NULL
        || !(add ? _PyTraceMalloc_TryCountAdd(credit, change)
                 : _PyTraceMalloc_TryCountRemove(credit, change)))
    {
        _PyTraceMalloc_ChangeSum(credit, change, add, !caller->attached);
    }
}

void
_PyTraceMalloc_CountRemove(const tracemalloc_caller *caller, size_t size)
{
    _PyTraceMalloc_CountChange(caller, size, 0);
}


/* --- Directory ---------------------------------------------------------- */

static void
change_group(unsigned int domain, uintptr_t ptr, uint32_t change)
{
    uint32_t *group = group_of(domain, ptr);
    _Py_atomic_store_uint32_relaxed(group, *group + change);
}

// Which interpreter has the trace of a block?
static interp_state *
find_owner(unsigned int domain, uintptr_t ptr)
{
    tracemalloc_directory *directory = RUNTIME->directory;
    lock_mutex(&RUNTIME->directory_mutex);
    const tracemalloc_trace *entry = _PyTraceMalloc_TableFind(
        &directory->table, domain, ptr);
    interp_state *owner = entry == NULL ? NULL : entry->owner;
    unlock_mutex(&RUNTIME->directory_mutex);
    return owner;
}

// -1 if there is no memory, 1 if another interpreter has listed the block.
static int
list_block(interp_state *tm, unsigned int domain, uintptr_t ptr, bool must)
{
    int res = 0;
    tracemalloc_directory *directory = RUNTIME->directory;
    lock_mutex(&RUNTIME->directory_mutex);
    const tracemalloc_trace *entry = _PyTraceMalloc_TableFind(
        &directory->table, domain, ptr);
    if (entry != NULL) {
        res = entry->owner != tm;
    }
    else {
        tracemalloc_trace new_entry = {
            .ptr = ptr, .owner = tm, .domain = domain,
            .traceback = _PyTraceMalloc_UNKNOWN,
        };
        res = _PyTraceMalloc_TableAdd(&directory->table, &new_entry, must);
        if (res == 0) {
            change_group(domain, ptr, 1);
        }
    }
    unlock_mutex(&RUNTIME->directory_mutex);
    return res;
}

void
_PyTraceMalloc_UnlistBlock(interp_state *tm, unsigned int domain,
                           uintptr_t ptr)
{
    tracemalloc_directory *directory = RUNTIME->directory;
    lock_mutex(&RUNTIME->directory_mutex);
    tracemalloc_trace *entry = _PyTraceMalloc_TableFind(
        &directory->table, domain, ptr);
    if (entry != NULL && entry->owner == tm) {
        _PyTraceMalloc_TableRemove(&directory->table, entry);
        change_group(domain, ptr, (uint32_t)-1);
    }
    unlock_mutex(&RUNTIME->directory_mutex);
}


/* --- The hash table ----------------------------------------------------- */

void
_PyTraceMalloc_ChangeShared(int change)
{
    if (change != 0) {
        _Py_atomic_add_int(&RUNTIME->nshared, change);
    }
}

int
_PyTraceMalloc_AddToTable(const tracemalloc_caller *caller, interp_state *tm,
                          const tracemalloc_trace *trace, bool must)
{
    bool locked = lock_table(caller, tm);
    int res = _PyTraceMalloc_TableAdd(&tm->table, trace, must);
    if (res == 0 && trace->listed) {
        res = list_block(tm, trace->domain, trace->ptr, must);
        if (res != 0) {
            _PyTraceMalloc_TableRemove(
                &tm->table, _PyTraceMalloc_TableFind(&tm->table, trace->domain,
                                                     trace->ptr));
        }
    }
    if (res == 0) {
        _PyTraceMalloc_ChangeShared(trace->tracked);
    }
    unlock_table(tm, locked);
    return res;
}

bool
_PyTraceMalloc_FindAndRemove(const tracemalloc_caller *caller,
                             interp_state *tm, tracemalloc_removed *removed)
{
    bool locked = lock_table(caller, tm);
    tracemalloc_trace *found = _PyTraceMalloc_TableFind(
        &tm->table, removed->trace.domain, removed->trace.ptr);
    if (found != NULL) {
        removed->trace = *found;
        removed->owner = tm;
        removed->generation = tm->generation;
        if (found->listed) {
            _PyTraceMalloc_UnlistBlock(tm, found->domain, found->ptr);
        }
        _PyTraceMalloc_ChangeShared(-(int)found->tracked);
        _PyTraceMalloc_TableRemove(&tm->table, found);
    }
    unlock_table(tm, locked);
    return found != NULL;
}

bool
_PyTraceMalloc_RemoveListed(const tracemalloc_caller *caller,
                            tracemalloc_removed *removed)
{
    unsigned int domain = removed->trace.domain;
    uintptr_t ptr = removed->trace.ptr;
    if (!may_be_listed(domain, ptr)) {
        return false;
    }
    interp_state *owner = find_owner(domain, ptr);
    if (owner == NULL || owner == caller->interp) {
        return owner != NULL
               && _PyTraceMalloc_FindAndRemove(caller, owner, removed);
    }
    // With this lock the owner cannot end; it may have ended before.
    lock_runtime(caller);
    owner = find_owner(domain, ptr);
    bool found = owner != NULL && owner != caller->interp
                 && _PyTraceMalloc_FindAndRemove(caller, owner, removed);
    unlock_runtime(caller);
    return found;
}


/* --- After a realloc() -------------------------------------------------- */

static bool
put_back(const tracemalloc_caller *caller, const tracemalloc_removed *removed)
{
    interp_state *tm = removed->owner;
    const tracemalloc_trace *trace = &removed->trace;
    if (!tm->tracing || tm->generation != removed->generation) {
        return false;
    }
    if (!trace->listed) {
        // Somebody may have tracked the block meanwhile.
        if (may_be_listed(0, trace->ptr)
            && find_owner(0, trace->ptr) != NULL)
        {
            return false;
        }
        tracemalloc_slot *slot = _PyTraceMalloc_FindSlot(as_interp(tm),
                                                         trace->ptr);
        if (slot != NULL) {
            slot->size = (uint32_t)trace->size;
            slot->traceback = trace->traceback;
            return true;
        }
    }
    return _PyTraceMalloc_AddToTable(caller, tm, trace, true) == 0;
}

void
_PyTraceMalloc_PutBack(const tracemalloc_caller *caller,
                       const tracemalloc_removed *removed)
{
    bool done = false;
    if (removed->owner == caller->interp) {
        done = put_back(caller, removed);
    }
    else {
        struct llist_node *node;
        lock_runtime(caller);
        llist_for_each(node, &RUNTIME->tracing) {
            if (llist_data(node, interp_state, node) == removed->owner) {
                done = put_back(caller, removed);
                break;
            }
        }
        unlock_runtime(caller);
    }
    if (!done) {
        _PyTraceMalloc_CountRemove(caller, removed->trace.size);
    }
}
