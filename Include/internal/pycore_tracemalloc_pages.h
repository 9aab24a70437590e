// Slots of the blocks in pages of the object allocator: how tracemalloc finds
// the trace of a block from its address.
//
// A page is a pool of pymalloc or, without the GIL, a page of mimalloc.  Its
// header points to the slots.  With pymalloc, only threads that hold the GIL
// of the interpreter get here; but for PyTraceMalloc_Track() and
// PyTraceMalloc_Untrack() of any block in domain 0: they look into the arenas
// of all interpreters that trace.  The caller owns the block, and so keeps its
// page alive.

#ifndef Py_INTERNAL_TRACEMALLOC_PAGES_H
#define Py_INTERNAL_TRACEMALLOC_PAGES_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#ifdef Py_GIL_DISABLED
#  include "pycore_mimalloc.h"    // _mi_segment_page_of()
#endif
#include "pycore_interp.h"        // PyInterpreterState.obmalloc
#include "pycore_obmalloc.h"      // _PyObject_IsInArena()
#include "pycore_tracemalloc.h"   // tracemalloc_page

// Blocks of both allocators have sizes that are multiples of this.
#define _PyTraceMalloc_UNIT SIZEOF_VOID_P

// Where the page of a block points to its slots; NULL if the block is in no
// page of the interpreter.
static inline tracemalloc_page **
_PyTraceMalloc_PageLink(PyInterpreterState *interp, uintptr_t ptr)
{
#if defined(Py_GIL_DISABLED)
    void *segment = (void *)(ptr & ~(uintptr_t)MI_SEGMENT_MASK);
    if (!_mi_segment_map_contains(segment)) {
        return NULL;
    }
    mi_page_t *page = _mi_segment_page_of(segment, (void *)ptr);
    return (tracemalloc_page **)&page->traces;
#elif defined(WITH_PYMALLOC) && WITH_PYMALLOC_RADIX_TREE
    if (!_PyObject_IsInArena(interp->obmalloc, ptr)) {
        return NULL;
    }
    return &((struct pool_header *)_Py_ALIGN_DOWN(ptr, POOL_SIZE))->traces;
#else
    return NULL;
#endif
}

static inline tracemalloc_page *
_PyTraceMalloc_LoadPage(tracemalloc_page **link)
{
    if (link == NULL) {
        return NULL;
    }
    return (tracemalloc_page *)_Py_atomic_load_ptr_acquire(link);
}

static inline bool
_PyTraceMalloc_HasSlots(const tracemalloc_page *page)
{
    return (uintptr_t)page > (uintptr_t)_PyTraceMalloc_SPARSE;
}

// The slot of a block; NULL if the address is not the start of a block.
static inline tracemalloc_slot *
_PyTraceMalloc_SlotAt(tracemalloc_page *page, uintptr_t ptr)
{
    uint64_t offset = ptr - page->start;
    uint64_t i = (offset / _PyTraceMalloc_UNIT * page->reciprocal) >> 31;
    if (i >= page->nslots || i * page->block_size != offset) {
        return NULL;
    }
    return &page->slots[i];
}

// The slot of a block in this page, if the interpreter has the slots; or NULL.
static inline tracemalloc_slot *
_PyTraceMalloc_OwnSlot(PyInterpreterState *interp, tracemalloc_page *page,
                       uintptr_t ptr)
{
    if (!_PyTraceMalloc_HasSlots(page) || page->owner != &interp->tracemalloc)
    {
        return NULL;
    }
    return _PyTraceMalloc_SlotAt(page, ptr);
}

static inline tracemalloc_slot *
_PyTraceMalloc_FindSlot(PyInterpreterState *interp, uintptr_t ptr)
{
    tracemalloc_page **link = _PyTraceMalloc_PageLink(interp, ptr);
    return _PyTraceMalloc_OwnSlot(interp, _PyTraceMalloc_LoadPage(link), ptr);
}

// The trace of a block in this page goes to the hash table.
static inline void
_PyTraceMalloc_NoteTabled(tracemalloc_page **link)
{
    void *before = NULL;
    (void)_Py_atomic_compare_exchange_ptr(link, &before,
                                          _PyTraceMalloc_SPARSE);
    tracemalloc_page *page = (tracemalloc_page *)before;
    if (_PyTraceMalloc_HasSlots(page)) {
        _Py_atomic_store_int_relaxed(&page->tabled, 1);
    }
}

// Make the slots of the page of a block, if the calling thread owns the page
// and it is worth it.  With the mutex of the interpreter held.  Returns NULL
// if the trace is to go to the hash table.
extern tracemalloc_page *_PyTraceMalloc_MakePage(
    PyInterpreterState *interp, tracemalloc_page **link, uintptr_t ptr);

// Bytes of all blocks that have a trace.
extern size_t _PyTraceMalloc_SumSlots(const tracemalloc_page *page);

// With the mutex of the interpreter held, and no other thread attached.
extern void _PyTraceMalloc_FreePages(struct _tracemalloc_interp_state *tm);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_PAGES_H
