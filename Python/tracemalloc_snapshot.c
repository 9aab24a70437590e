// All traces of an interpreter at once: to open and to drop them, to find one,
// to add up and to copy them.

#include "Python.h"
#include "pycore_tracemalloc_shared.h"  // lock_own()


/* --- All traces --------------------------------------------------------- */

int
_PyTraceMalloc_OpenTraces(interp_state *tm)
{
    const PyMemAllocatorEx *allocator = _PyTraceMalloc_AllocatorBelow(
        PYMEM_DOMAIN_RAW);
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
    int res = 0;
    lock_mutex(&directory->mutex);
    if (directory->table.used == 0) {
        // It may still be of an allocator that is gone.
        _PyTraceMalloc_TableFree(&directory->table);
        res = _PyTraceMalloc_TableInit(&directory->table, allocator);
    }
    PyMutex_Unlock(&directory->mutex);

    llist_init(&tm->threads);
    tm->capture_memory = 0;
    llist_init(&tm->pages);
    tm->page_memory = tm->page_budget = 0;
    tm->owns_pages = !shares_obmalloc(tm);
    tm->intern = NULL;
    if (res < 0) {
        return -1;
    }
    return _PyTraceMalloc_TableInit(&tm->table, allocator);
}

void
_PyTraceMalloc_DropTraces(interp_state *tm)
{
    _PyTraceMalloc_LockInterp(tm, true);
    tracemalloc_trace *trace = NULL;
    while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
        _PyTraceMalloc_ChangeSum(NULL, trace->size, false, true);
        if (trace->listed) {
            _PyTraceMalloc_UnlistBlock(tm, trace->domain, trace->ptr);
        }
        _PyTraceMalloc_ChangeShared(-(int)trace->tracked);
    }
    struct llist_node *node;
    llist_for_each(node, &tm->pages) {
        size_t sum = _PyTraceMalloc_SumSlots(
            llist_data(node, tracemalloc_page, node));
        _PyTraceMalloc_ChangeSum(NULL, sum, false, true);
    }
    _PyTraceMalloc_TableFree(&tm->table);
    _PyTraceMalloc_FreePages(tm);
    // A query may still have a reference.
    _PyTraceMalloc_InternDecref(tm->intern);
    tm->intern = NULL;
    PyMutex_Unlock(&tm->mutex);
}

bool
_PyTraceMalloc_Find(PyInterpreterState *interp, unsigned int domain,
                    uintptr_t ptr, tracemalloc_trace *trace)
{
    interp_state *tm = &interp->tracemalloc;
    const tracemalloc_trace *found = _PyTraceMalloc_TableFind(&tm->table,
                                                              domain, ptr);
    if (found != NULL) {
        *trace = *found;
        return true;
    }
    if (domain == 0) {
        const tracemalloc_slot *slot = _PyTraceMalloc_FindSlot(interp, ptr);
        if (slot != NULL && slot->traceback != _PyTraceMalloc_NO_TRACEBACK) {
            *trace = (tracemalloc_trace){
                .ptr = ptr, .size = slot->size, .traceback = slot->traceback,
            };
            return true;
        }
    }
    return false;
}

size_t
_PyTraceMalloc_TracesMemory(interp_state *tm)
{
    size_t nlisted = 0;
    _PyTraceMalloc_LockInterp(tm, true);
    const tracemalloc_trace *trace = NULL;
    while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
        nlisted += trace->listed;
    }
    size_t size = tm->page_memory + _PyTraceMalloc_TableMemory(&tm->table)
                  + (tm->intern != NULL ? tm->intern->memory : 0)
                  + tm->capture_memory;
    const tracemalloc_table *entries = &RUNTIME->directory->table;
    lock_mutex(&RUNTIME->directory->mutex);
    if (nlisted > 0 && entries->used > 0) {
        // This interpreter's part of the directory.
        size += (size_t)((double)_PyTraceMalloc_TableMemory(entries)
                         * (double)nlisted / (double)entries->used);
    }
    PyMutex_Unlock(&RUNTIME->directory->mutex);
    PyMutex_Unlock(&tm->mutex);
    return size;
}

void
_PyTraceMalloc_ForgetOthersAfterFork(interp_state *tm)
{
    tracemalloc_table *entries = &RUNTIME->directory->table;
    tracemalloc_trace *entry = NULL;
    memset(RUNTIME->directory->groups, 0,
           sizeof(RUNTIME->directory->groups));
    _PyTraceMalloc_TableFree(entries);
    RUNTIME->nshared = 0;
    _PyTraceMalloc_CountersAfterFork();
    if (!tm->tracing) {
        return;
    }
    while ((entry = _PyTraceMalloc_TableNext(&tm->table, entry)) != NULL) {
        _PyTraceMalloc_ChangeSum(NULL, entry->size, true, true);
        _PyTraceMalloc_ChangeShared(entry->tracked);
        if (entry->listed) {
            (void)_PyTraceMalloc_ListBlock(tm, entry->domain, entry->ptr,
                                           true);
        }
    }
    struct llist_node *node;
    llist_for_each(node, &tm->pages) {
        size_t sum = _PyTraceMalloc_SumSlots(
            llist_data(node, tracemalloc_page, node));
        _PyTraceMalloc_ChangeSum(NULL, sum, true, true);
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

// With room for this many traces.
static int
open_snapshot(interp_state *tm, size_t ntraces, tracemalloc_snapshot *snapshot)
{
    const PyMemAllocatorEx *allocator = tm->table.allocator;
    *snapshot = (tracemalloc_snapshot){
        .allocator = allocator,
        .intern = tm->intern,
        .last_id = _PyTraceMalloc_UNKNOWN,
    };
    if (tm->intern != NULL) {
        _Py_atomic_add_ssize(&tm->intern->refcount, 1);
        snapshot->last_id = tm->intern->last_id;
    }
    snapshot->traces = allocator->malloc(
        allocator->ctx, Py_MAX(ntraces, 1) * sizeof(tracemalloc_trace));
    if (snapshot->traces == NULL) {
        _PyTraceMalloc_FreeSnapshot(snapshot);
        return -1;
    }
    return 0;
}

int
_PyTraceMalloc_CopyTraces(PyInterpreterState *interp,
                          tracemalloc_snapshot *snapshot)
{
    interp_state *tm = &interp->tracemalloc;
    _PyTraceMalloc_LockInterp(tm, true);
    int res = open_snapshot(tm, count_traces(tm), snapshot);
    if (res == 0) {
        struct llist_node *node;
        llist_for_each(node, &tm->pages) {
            copy_slots(llist_data(node, tracemalloc_page, node), snapshot);
        }
        const tracemalloc_trace *trace = NULL;
        while ((trace = _PyTraceMalloc_TableNext(&tm->table, trace)) != NULL) {
            snapshot->traces[snapshot->ntraces++] = *trace;
        }
    }
    PyMutex_Unlock(&tm->mutex);
    return res;
}

int
_PyTraceMalloc_CopyTrace(PyInterpreterState *interp, unsigned int domain,
                         uintptr_t ptr, tracemalloc_snapshot *snapshot)
{
    interp_state *tm = &interp->tracemalloc;
    _PyTraceMalloc_LockInterp(tm, true);
    int res = open_snapshot(tm, 1, snapshot);
    if (res == 0) {
        snapshot->ntraces = _PyTraceMalloc_Find(interp, domain, ptr,
                                                snapshot->traces);
    }
    PyMutex_Unlock(&tm->mutex);
    return res;
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
