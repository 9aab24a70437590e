// All traces of an interpreter at once: to open and to drop them, to find one,
// to add up and to copy them.

#include "Python.h"
#include "pycore_tracemalloc_shared.h"  // lock_mutex()


/* --- All traces --------------------------------------------------------- */

int
_PyTraceMalloc_OpenTraces(interp_state *tm, uint8_t reached)
{
    const PyMemAllocatorEx *allocator = _PyTraceMalloc_RawAllocatorBelow(
        reached);
    tracemalloc_directory *directory = RUNTIME->directory;
    if (directory == NULL) {
        // Not from Python's allocators, since it outlives them.
        directory = calloc(1, sizeof(tracemalloc_directory));
        if (directory == NULL) {
            return -1;
        }
        // Pairs with the acquire in may_be_listed().
        _Py_atomic_store_ptr_release(&RUNTIME->directory, directory);
    }
    if (is_idle()) {
        lock_mutex(&RUNTIME->directory_mutex);
        int res = _PyTraceMalloc_TableInit(&directory->table, allocator);
        unlock_mutex(&RUNTIME->directory_mutex);
        if (res < 0) {
            return -1;
        }
    }
    llist_init(&tm->threads);
    llist_init(&tm->pages);
    tm->owns_pages = !shares_obmalloc(tm);
    return _PyTraceMalloc_TableInit(&tm->table, allocator);
}

// Add all traces to the counters, or take them away.
static void
count_all(interp_state *tm, bool add)
{
    const tracemalloc_trace *trace = NULL;
    while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
        _PyTraceMalloc_ChangeSum(NULL, trace->size, add, true);
    }
    struct llist_node *node;
    llist_for_each(node, &tm->pages) {
        size_t sum = _PyTraceMalloc_SumSlots(
            llist_data(node, tracemalloc_page, node));
        _PyTraceMalloc_ChangeSum(NULL, sum, add, true);
    }
}

static void
unlist_all(interp_state *tm)
{
    const tracemalloc_trace *trace = NULL;
    while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
        _PyTraceMalloc_ChangeShared(-(int)trace->tracked);
        if (trace->listed) {
            _PyTraceMalloc_UnlistBlock(tm, trace->domain, trace->ptr);
        }
    }
}

void
_PyTraceMalloc_DropTraces(interp_state *tm)
{
#if WITH_GIL
    _PyTraceMalloc_CloseCredit(&tm->credit, true);
#endif
    lock_mutex(&tm->mutex);
    count_all(tm, false);
    unlist_all(tm);
    _PyTraceMalloc_TableFree(&tm->table);
    _PyTraceMalloc_FreePages(tm);
    // A query may still have a reference.
    _PyTraceMalloc_InternDecref(tm->intern);
    tm->intern = NULL;
    unlock_mutex(&tm->mutex);
}

bool
_PyTraceMalloc_Find(PyInterpreterState *interp, unsigned int domain,
                    uintptr_t ptr, tracemalloc_trace *trace)
{
    interp_state *tm = &interp->tracemalloc;
    if (domain == 0) {
        const tracemalloc_slot *slot = _PyTraceMalloc_FindSlot(interp, ptr);
        if (slot != NULL && slot->traceback != _PyTraceMalloc_NO_TRACEBACK) {
            *trace = (tracemalloc_trace){
                .ptr = ptr, .size = slot->size, .traceback = slot->traceback,
            };
            return true;
        }
    }
    // Comes second: one may be left of a block that was freed behind the hooks.
    const tracemalloc_trace *found = _PyTraceMalloc_TableFind(&tm->table,
                                                              domain, ptr);
    if (found != NULL) {
        *trace = *found;
    }
    return found != NULL;
}

// The caller is attached, so nobody is inside the credit with which a thread
// could do without the mutex.
size_t
_PyTraceMalloc_GetMemory(void)
{
    interp_state *tm = &_PyInterpreterState_GET()->tracemalloc;
    if (!tm->tracing) {
        return 0;
    }
    size_t nlisted = 0;
    lock_mutex(&tm->mutex);
    const tracemalloc_trace *trace = NULL;
    while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
        nlisted += trace->listed;
    }
    size_t size = tm->page_memory + _PyTraceMalloc_TableMemory(&tm->table)
                  + (tm->intern != NULL ? tm->intern->memory : 0)
                  + (size_t)_Py_atomic_load_ssize_relaxed(
                      &tm->capture_memory);
    const tracemalloc_table *entries = &RUNTIME->directory->table;
    lock_mutex(&RUNTIME->directory_mutex);
    // This interpreter's part of the directory; also of one without entries.
    int ntracing = _Py_atomic_load_int_relaxed(&RUNTIME->ntracing);
    size += (size_t)((double)_PyTraceMalloc_TableMemory(entries)
                     * (double)(nlisted + 1)
                     / ((double)entries->used + ntracing));
    unlock_mutex(&RUNTIME->directory_mutex);
    unlock_mutex(&tm->mutex);
    return size;
}

void
_PyTraceMalloc_CloseDirectory(void)
{
    tracemalloc_directory *directory = RUNTIME->directory;
    if (directory != NULL) {
        lock_mutex(&RUNTIME->directory_mutex);
        _PyTraceMalloc_TableFree(&directory->table);
        unlock_mutex(&RUNTIME->directory_mutex);
    }
}

void
_PyTraceMalloc_AbandonTraces(interp_state *tm)
{
    unlist_all(tm);
    _PyTraceMalloc_FreePages(tm);
}

void
_PyTraceMalloc_RecountAfterFork(interp_state *tm)
{
    if (tm->tracing) {
        count_all(tm, true);
    }
}


/* --- Copies ------------------------------------------------------------- */

static size_t
count_traces(interp_state *tm)
{
    size_t n = tm->table.used;
    struct llist_node *node;
    llist_for_each(node, &tm->pages) {
        const tracemalloc_page *page = llist_data(node, tracemalloc_page,
                                                  node);
        for (size_t i = 0; i < page->nslots; i++) {
            n += page->slots[i].traceback != _PyTraceMalloc_NO_TRACEBACK;
        }
    }
    return n;
}

static void
copy_slots(const tracemalloc_page *page, tracemalloc_snapshot *snapshot)
{
    for (size_t i = 0; i < page->nslots; i++) {
        const tracemalloc_slot *slot = &page->slots[i];
        if (slot->traceback != _PyTraceMalloc_NO_TRACEBACK) {
            snapshot->traces[snapshot->ntraces++] = (tracemalloc_trace){
                .ptr = page->start + i * page->block_size,
                .size = slot->size,
                .traceback = slot->traceback,
            };
        }
    }
}

// With no traces yet.
static void
open_snapshot(interp_state *tm, tracemalloc_snapshot *snapshot)
{
    *snapshot = (tracemalloc_snapshot){
        .allocator = tm->table.allocator,
        .intern = tm->intern,
        .last_id = _PyTraceMalloc_UNKNOWN,
    };
    if (tm->intern != NULL) {
        _Py_atomic_add_ssize(&tm->intern->refcount, 1);
        snapshot->last_id = tm->intern->last_id;
    }
}

// See GetMemory() for the lock.
int
_PyTraceMalloc_CopyTraces(PyInterpreterState *interp,
                          tracemalloc_snapshot *snapshot)
{
    interp_state *tm = &interp->tracemalloc;
    lock_mutex(&tm->mutex);
    open_snapshot(tm, snapshot);
    const PyMemAllocatorEx *allocator = snapshot->allocator;
    snapshot->traces = allocator->malloc(
        allocator->ctx,
        Py_MAX(count_traces(tm), 1) * sizeof(tracemalloc_trace));
    if (snapshot->traces != NULL) {
        struct llist_node *node;
        llist_for_each(node, &tm->pages) {
            copy_slots(llist_data(node, tracemalloc_page, node), snapshot);
        }
        const tracemalloc_trace *trace = NULL;
        while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
            snapshot->traces[snapshot->ntraces++] = *trace;
        }
    }
    unlock_mutex(&tm->mutex);
    if (snapshot->traces == NULL) {
        _PyTraceMalloc_FreeSnapshot(snapshot);
        return -1;
    }
    return 0;
}

// See GetMemory() for the lock.
bool
_PyTraceMalloc_SnapshotBlock(unsigned int domain, uintptr_t ptr,
                             tracemalloc_trace *trace,
                             tracemalloc_snapshot *snapshot)
{
    PyInterpreterState *interp = _PyInterpreterState_GET();
    interp_state *tm = &interp->tracemalloc;
    lock_mutex(&tm->mutex);
    open_snapshot(tm, snapshot);
    bool found = tm->tracing && _PyTraceMalloc_Find(interp, domain, ptr,
                                                    trace);
    unlock_mutex(&tm->mutex);
    return found;
}

void
_PyTraceMalloc_FreeSnapshot(tracemalloc_snapshot *snapshot)
{
    if (snapshot->traces != NULL) {
        snapshot->allocator->free(snapshot->allocator->ctx, snapshot->traces);
    }
    _PyTraceMalloc_InternDecref(snapshot->intern);
    *snapshot = (tracemalloc_snapshot){0};
}
