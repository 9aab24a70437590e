// Slots of the blocks in a page: making them, and ending them with the page.
//
// Slots for all blocks of a page cost 8 bytes a block, which is little if most
// blocks will have a trace, as in a page that fills up.  But where tracing
// begins in a process whose heap is full, a page may get a single new block.
// So a page with few free blocks is marked as sparse, and the traces of its
// blocks go to the hash table.  Each of them saves up for an array: when there
// is enough for the slots of a page, that page gets them.  So a trace costs
// what it does in the hash table and SAVED bytes more, in the worst case.

#include "Python.h"
#include "pycore_tracemalloc_shared.h"  // lock_mutex()

// Slots are made at once if one block of so many is free.
#define FREE_PART 8

// Bytes that a trace in a sparse page saves up.
#define SAVED 16


// What the allocator knows of a page.
typedef struct {
    uintptr_t start;              // of the first block
    size_t block_size;
    size_t nblocks;
    size_t nfree;
} page_layout;

// With the GIL, whoever has it owns all pages of the interpreter.  Without, a
// block may be in a page of another thread: one that was reallocated in place,
// or that an allocator below the hooks has kept.
static bool
is_own_page(uintptr_t ptr)
{
#ifdef Py_GIL_DISABLED
    mi_segment_t *segment = _mi_ptr_segment((void *)ptr);
    return mi_atomic_load_relaxed(&segment->thread_id) == _mi_thread_id();
#else
    return true;
#endif
}

static page_layout
get_layout(uintptr_t ptr)
{
#if defined(Py_GIL_DISABLED)
    mi_segment_t *segment = _mi_ptr_segment((void *)ptr);
    mi_page_t *page = _mi_segment_page_of(segment, (void *)ptr);
    return (page_layout){
        .start = (uintptr_t)_mi_page_start(segment, page, NULL),
        .block_size = mi_page_block_size(page),
        .nblocks = page->reserved,
        .nfree = page->reserved - page->used,
    };
#elif defined(WITH_PYMALLOC)
    struct pool_header *pool = (struct pool_header *)_Py_ALIGN_DOWN(
        ptr, POOL_SIZE);
    size_t block_size = (size_t)INDEX2SIZE(pool->szidx);
    size_t nblocks = (POOL_SIZE - POOL_OVERHEAD) / block_size;
    return (page_layout){
        .start = (uintptr_t)pool + POOL_OVERHEAD,
        .block_size = block_size,
        .nblocks = nblocks,
        .nfree = nblocks - pool->ref.count,
    };
#else
    return (page_layout){0};
#endif
}

static size_t
page_size(const tracemalloc_page *page)
{
    return sizeof(*page) + page->nslots * sizeof(tracemalloc_slot);
}

// Do slots pay?
static bool
is_worth_it(struct _tracemalloc_interp_state *tm, const page_layout *layout)
{
    if (layout->nfree + 1 >= layout->nblocks / FREE_PART) {
        return true;
    }
    size_t price = layout->nblocks * sizeof(tracemalloc_slot);
    tm->page_budget += SAVED;
    if (tm->page_budget < price) {
        return false;
    }
    tm->page_budget -= price;
    return true;
}

// With the GIL, move what the hash table has of these blocks; there may be
// traces of blocks that were freed behind the hooks.  Without, another thread
// may be about to look one up.
static void
move_from_table(struct _tracemalloc_interp_state *tm, tracemalloc_page *page)
{
    for (size_t i = 0; i < page->nslots; i++) {
        tracemalloc_trace *trace = _PyTraceMalloc_TableFind(
            &tm->table, 0, page->start + i * page->block_size);
        if (trace != NULL && !trace->listed) {
            page->slots[i] = (tracemalloc_slot){
                .traceback = trace->traceback, .size = (uint32_t)trace->size,
            };
            _PyTraceMalloc_TableRemove(&tm->table, trace);
        }
    }
}

tracemalloc_page *
_PyTraceMalloc_MakePage(PyInterpreterState *interp, tracemalloc_page **link,
                        uintptr_t ptr)
{
    struct _tracemalloc_interp_state *tm = &interp->tracemalloc;
    const PyMemAllocatorEx *allocator = tm->table.allocator;
    if (!is_own_page(ptr)) {
        return NULL;
    }
    page_layout layout = get_layout(ptr);
    tracemalloc_page *page = NULL;
    if (layout.nblocks > 0 && is_worth_it(tm, &layout)) {
        page = allocator->calloc(
            allocator->ctx, 1,
            sizeof(*page) + layout.nblocks * sizeof(tracemalloc_slot));
    }
    if (page == NULL) {
        return NULL;
    }
    page->owner = tm;
    page->link = link;
    // An allocator on top, such as the debug hooks, may move all blocks.
    page->start = layout.start + (ptr - layout.start) % layout.block_size;
    page->nslots = (uint32_t)layout.nblocks;
    if (layout.nblocks > 1) {
        uint64_t units = layout.block_size / _PyTraceMalloc_UNIT;
        page->block_size = (uint32_t)layout.block_size;
        page->reciprocal = (uint32_t)(((UINT64_C(1) << 31) + units - 1)
                                      / units);
    }
    llist_insert_tail(&tm->pages, &page->node);
    tm->page_memory += page_size(page);
    void *before = _PyTraceMalloc_LoadPage(link);
    if (WITH_GIL && before == _PyTraceMalloc_SPARSE) {
        move_from_table(tm, page);
    }
    // Pairs with the acquire in _PyTraceMalloc_LoadPage().  Another thread may
    // mark the page as sparse right now.
    do {
        assert(!_PyTraceMalloc_HasSlots(before));
        page->tabled = !WITH_GIL && before == _PyTraceMalloc_SPARSE;
    } while (!_Py_atomic_compare_exchange_ptr(link, &before, page));
    return page;
}

size_t
_PyTraceMalloc_SumSlots(const tracemalloc_page *page)
{
    size_t sum = 0;
    for (size_t i = 0; i < page->nslots; i++) {
        const tracemalloc_slot *slot = &page->slots[i];
        sum += slot->traceback != _PyTraceMalloc_NO_TRACEBACK ? slot->size : 0;
    }
    return sum;
}

// The mark remains where the hash table may have traces of these blocks, but
// mimalloc clears it when the page ends.
static void
free_page(tracemalloc_page *page)
{
    page->owner->page_memory -= page_size(page);
    llist_remove(&page->node);
    _Py_atomic_store_ptr_release(
        page->link, page->tabled ? _PyTraceMalloc_SPARSE : NULL);
    const PyMemAllocatorEx *allocator = page->owner->table.allocator;
    allocator->free(allocator->ctx, page);
}

void
_PyTraceMalloc_FreePages(struct _tracemalloc_interp_state *tm)
{
    struct llist_node *node;
    llist_for_each_safe(node, &tm->pages) {
        free_page(llist_data(node, tracemalloc_page, node));
    }
    tm->page_budget = 0;
}

// The owner is still there: it frees its pages before it ends, while no thread
// can be here that uses its object allocator.
void
_PyTraceMalloc_PageEnds(tracemalloc_page *page)
{
    if (!_PyTraceMalloc_HasSlots(page)) {
        return;
    }
    // Blocks that were freed behind the hooks have left traces.
    size_t size = _PyTraceMalloc_SumSlots(page);
    int saved_errno = errno;      // free() must not change it
    if (size > 0) {
        _PyTraceMalloc_ChangeSum(NULL, size, false, false);
    }
    PyMutex *mutex = &page->owner->mutex;
    lock_mutex(mutex);
    free_page(page);
    unlock_mutex(mutex);
    errno = saved_errno;
}
