// Whose trace is it: from blocks that any interpreter may free to the books
// that have their traces.
//
// Most blocks that are freed are one's own, and of the others most have no
// trace at all.  So a filter comes first, which is read without a lock: how
// many entries there are in each of some thousand groups of blocks.  Who frees
// a block has got its address from whoever recorded it, by ways that order
// memory, and so cannot miss that it was counted.

#include "Python.h"
#include "pycore_tracemalloc.h"   // _PyTraceDirectory


static inline void
lock(_PyTraceDirectory *directory)
{
    PyMutex_LockFlags(&directory->mutex, _Py_LOCK_DONT_DETACH);
}

static inline void
unlock(_PyTraceDirectory *directory)
{
    PyMutex_Unlock(&directory->mutex);
}

static inline _PyTraceBooks *
get_owner(const _PyTrace *entry)
{
    return (_PyTraceBooks *)(uintptr_t)entry->size;
}

static inline void
set_owner(_PyTrace *entry, _PyTraceBooks *books)
{
    entry->size = (size_t)(uintptr_t)books;
}

static void
count(_PyTraceDirectory *directory, unsigned int domain, uintptr_t ptr,
      uint32_t change)
{
    uint32_t *n = _PyTraceDirectory_Group(directory, domain, ptr);
    _Py_atomic_store_uint32_relaxed(n, *n + change);
}

_PyTraceDirectory *
_PyTraceDirectory_New(void)
{
    // Not from Python's allocators, since it outlives them.
    return calloc(1, sizeof(_PyTraceDirectory));
}

void
_PyTraceDirectory_Renew(_PyTraceDirectory *directory,
                        const PyMemAllocatorEx *allocator)
{
    lock(directory);
    _PyTraceTable *table = &directory->table;
    // A thread that is reallocating a block will return its reservation.
    if (table->used + table->reserved == 0) {
        if (table->allocator != NULL) {
            _PyTraceTable_Clear(table);
        }
        _PyTraceTable_Init(table, allocator);
    }
    unlock(directory);
}

int
_PyTraceDirectory_Reserve(_PyTraceDirectory *directory)
{
    lock(directory);
    int res = _PyTraceTable_Reserve(&directory->table);
    unlock(directory);
    return res;
}

void
_PyTraceDirectory_Unreserve(_PyTraceDirectory *directory)
{
    lock(directory);
    _PyTraceTable_Unreserve(&directory->table);
    unlock(directory);
}

void
_PyTraceDirectory_Put(_PyTraceDirectory *directory, _PyTraceBooks *books,
                      unsigned int domain, uintptr_t ptr)
{
    lock(directory);
    _PyTraceTable *table = &directory->table;
    _PyTrace *found = _PyTraceTable_Find(table, domain, ptr);
    if (found != NULL) {
        // Two interpreters have tracked the block at the same moment.
        set_owner(found, books);
        _PyTraceTable_Unreserve(table);
    }
    else {
        _PyTrace entry = {
            .ptr = ptr,
            .traceback = _PyTraceback_UNKNOWN,
            .domain = domain,
        };
        set_owner(&entry, books);
        _PyTraceTable_Put(table, &entry);
        count(directory, domain, ptr, 1);
    }
    unlock(directory);
}

_PyTraceBooks *
_PyTraceDirectory_Find(_PyTraceDirectory *directory, unsigned int domain,
                       uintptr_t ptr)
{
    lock(directory);
    const _PyTrace *entry = _PyTraceTable_Find(&directory->table, domain, ptr);
    _PyTraceBooks *books = entry == NULL ? NULL : get_owner(entry);
    unlock(directory);
    return books;
}

static bool
remove_entry(_PyTraceDirectory *directory, _PyTraceBooks *books,
             unsigned int domain, uintptr_t ptr, bool keep_room)
{
    _PyTraceTable *table = &directory->table;
    _PyTrace *entry = _PyTraceTable_Find(table, domain, ptr);
    if (entry == NULL || get_owner(entry) != books) {
        // See _PyTraceDirectory_Put().
        return false;
    }
    count(directory, domain, ptr, (uint32_t)-1);
    _PyTraceTable_Remove(table, entry, keep_room);
    return keep_room;
}

bool
_PyTraceDirectory_Remove(_PyTraceDirectory *directory, _PyTraceBooks *books,
                         unsigned int domain, uintptr_t ptr, bool keep_room)
{
    lock(directory);
    bool kept = remove_entry(directory, books, domain, ptr, keep_room);
    unlock(directory);
    return kept;
}

void
_PyTraceDirectory_RemoveAll(_PyTraceDirectory *directory, _PyTraceBooks *books,
                            const _PyTraceTable *shared)
{
    lock(directory);
    const _PyTrace *trace = NULL;
    while ((trace = _PyTraceTable_Next(shared, trace)) != NULL) {
        remove_entry(directory, books, trace->domain, trace->ptr, false);
    }
    unlock(directory);
}

size_t
_PyTraceDirectory_Memory(_PyTraceDirectory *directory, size_t nentries)
{
    lock(directory);
    const _PyTraceTable *table = &directory->table;
    double part = table->used == 0 ? 0.0 : (double)nentries / table->used;
    size_t size = (size_t)(part * _PyTraceTable_Memory(table));
    unlock(directory);
    return size;
}
