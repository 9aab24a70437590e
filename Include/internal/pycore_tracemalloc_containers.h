// What tracemalloc keeps its data in: tables of traces, and sets of interned
// filenames and tracebacks.  Plain containers: they know no lock, interpreter
// or Python object, and are used by one thread at a time.  Memory comes from
// the allocator that they are given.

#ifndef Py_INTERNAL_TRACEMALLOC_CONTAINERS_H
#define Py_INTERNAL_TRACEMALLOC_CONTAINERS_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "this header requires Py_BUILD_CORE define"
#endif

#include <stdbool.h>
#include "pycore_obmalloc.h"      // POOL_SIZE


/* --- Table: (domain, address) to (size, traceback id) ------------------- */

// Id of an interned traceback; 0 is never a traceback.
typedef uint32_t _PyTraceback_Id;
#define _PyTraceback_NONE 0
// "<unknown>:0", a single frame; exists without being stored.
#define _PyTraceback_UNKNOWN 1

typedef struct {
    uintptr_t ptr;                // address of the block
    size_t size;                  // in bytes, as requested
    _PyTraceback_Id traceback;    // _PyTraceback_NONE: a free slot
    unsigned int domain;
} _PyTrace;

// Open addressing with linear probing.  Slots follow the order of the hashes
// and their number need not be a power of two.
//
// Invariant: used + reserved <= limit < capacity, or all of them are 0.
typedef struct {
    const PyMemAllocatorEx *allocator;
    _PyTrace *slots;
    size_t capacity;              // number of slots
    size_t limit;                 // the most slots that may be taken
    size_t used;                  // number of traces
    size_t reserved;              // slots promised by _PyTraceTable_Reserve()
} _PyTraceTable;

// Multiplicative (Knuth, The Art of Computer Programming, volume 3, section
// 6.4), twice: after one multiplication blocks at some strides, and pools at
// some distances, still lie on top of each other.  Only the high bits of a
// product are good.
static inline uint32_t
_PyTraceTable_Hash(unsigned int domain, uintptr_t ptr)
{
    // 2**64 divided by the golden ratio.
    const uint64_t multiplier = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t hash = (uint64_t)ptr + ((uint64_t)domain << 32) + domain;
    hash *= multiplier;
    hash ^= hash >> 32;
    hash *= multiplier;
    return (uint32_t)(hash >> 32);
}

// Does the probe for an entry whose home is `home` pass over slot `hole` on
// its way to slot `i`?  Cyclically: home <= hole < i.
static inline bool
_PyTraceTable_ProbePasses(size_t home, size_t hole, size_t i)
{
    if (hole < i) {
        return home <= hole || home > i;
    }
    return home <= hole && home > i;
}

// The functions of this header are exported for '_testinternalcapi' shared
// extension.

PyAPI_FUNC(void) _PyTraceTable_Init(
    _PyTraceTable *table, const PyMemAllocatorEx *allocator);

// Free the memory and forget everything, reservations included.
PyAPI_FUNC(void) _PyTraceTable_Clear(_PyTraceTable *table);

// Promise room for one more trace; -1 if there is no memory for it.  The
// promise is kept by _PyTraceTable_Put() or returned by _Unreserve().
PyAPI_FUNC(int) _PyTraceTable_Reserve(_PyTraceTable *table);
PyAPI_FUNC(void) _PyTraceTable_Unreserve(_PyTraceTable *table);

// Use up one reservation for a trace whose key is not in the table.
PyAPI_FUNC(void) _PyTraceTable_Put(
    _PyTraceTable *table, const _PyTrace *trace);

// The trace of a block or NULL.  It may be changed (but for its key) and is
// valid until the table is changed.
PyAPI_FUNC(_PyTrace *) _PyTraceTable_Find(
    const _PyTraceTable *table, unsigned int domain, uintptr_t ptr);

// Remove a trace that _PyTraceTable_Find() has returned, and perhaps reserve
// the room that it had.
PyAPI_FUNC(void) _PyTraceTable_Remove(
    _PyTraceTable *table, _PyTrace *trace, bool keep_room);

// Nobody will come for what was promised.
PyAPI_FUNC(void) _PyTraceTable_ForgetReservations(_PyTraceTable *table);

// Walk all traces: the next one, or the first after NULL; NULL after the last.
// The table must not change meanwhile.
PyAPI_FUNC(const _PyTrace *) _PyTraceTable_Next(
    const _PyTraceTable *table, const _PyTrace *trace);

// Write all traces, in no particular order, to an array of `used` elements.
PyAPI_FUNC(void) _PyTraceTable_Copy(const _PyTraceTable *table, _PyTrace *out);

// Bytes of memory held.
PyAPI_FUNC(size_t) _PyTraceTable_Memory(const _PyTraceTable *table);

// Walk the whole table: is every trace where it can be found?  For tests and
// assertions.
PyAPI_FUNC(bool) _PyTraceTable_IsValid(const _PyTraceTable *table);


/* --- Map: address to (size, traceback id) ------------------------------- */

// For blocks of less than 4 GiB in domain 0, which are nearly all: a trace
// takes 16 bytes and some room, instead of 24, and is found with less work.

typedef struct {
    uintptr_t ptr;                // 0: a free slot
    uint32_t size;
    _PyTraceback_Id traceback;
} _PyTraceBlock;

// What the map can hold.  A slot without a block has an address below these.
#define _PyTraceBlock_MAX_SIZE UINT32_MAX
#define _PyTraceBlock_MIN_PTR 2

// Like the table, but it grows by a third, so that it is at least half full
// then, and the contents of the slots are moved bit by bit.
//
// Invariant: limit < capacity, or both are 0.  used + reserved < capacity, or
// all are 0, and <= limit but for _PyTraceMap_ReserveAnyway().
typedef struct {
    const PyMemAllocatorEx *allocator;
    _PyTraceBlock *slots;
    size_t capacity;              // number of slots
    size_t limit;                 // the most slots that should be taken
    size_t low;                   // with fewer taken the map is to shrink
    size_t used;                  // number of traces, old ones included
    size_t reserved;              // slots promised by _PyTraceMap_Reserve()

    // Slots of before the last change of the capacity: from `moved` on they
    // still have to be moved.  NULL if there are none.
    _PyTraceBlock *old;
    size_t old_capacity;
    size_t moved;
} _PyTraceMap;

PyAPI_FUNC(void) _PyTraceMap_Init(
    _PyTraceMap *map, const PyMemAllocatorEx *allocator);

// Free the memory and forget everything, reservations included.
PyAPI_FUNC(void) _PyTraceMap_Clear(_PyTraceMap *map);

// What the functions below leave to others.
PyAPI_FUNC(int) _PyTraceMap_ReserveSlowly(_PyTraceMap *map);
PyAPI_FUNC(_PyTraceBlock *) _PyTraceMap_FindOld(
    const _PyTraceMap *map, uintptr_t ptr);
PyAPI_FUNC(void) _PyTraceMap_RemoveSlowly(
    _PyTraceMap *map, _PyTraceBlock *block);
PyAPI_FUNC(void) _PyTraceMap_Shrink(_PyTraceMap *map);

static inline size_t
_PyTraceMap_Home(uintptr_t ptr, size_t capacity)
{
    // 32 bits are enough for any map that fits into memory, which has at most
    // a few billion slots.
    return (size_t)(((uint64_t)_PyTraceTable_Hash(0, ptr) * capacity) >> 32);
}

static inline size_t
_PyTraceMap_NextSlot(size_t i, size_t capacity)
{
    return i + 1 < capacity ? i + 1 : 0;
}

// Can a trace be added without changing the capacity or moving anything?
static inline bool
_PyTraceMap_HasRoom(const _PyTraceMap *map)
{
    return map->used + map->reserved < map->limit && map->old == NULL;
}

// Promise room for one more trace; -1 if there is no memory for it.  The
// promise is kept by _PyTraceMap_Put() or returned by _Unreserve().
static inline int
_PyTraceMap_Reserve(_PyTraceMap *map)
{
    if (!_PyTraceMap_HasRoom(map)) {
        return _PyTraceMap_ReserveSlowly(map);
    }
    map->reserved++;
    return 0;
}

// For a trace that must not be lost.  Without memory the map becomes fuller
// than it should be, up to fifteen sixteenths.
extern int _PyTraceMap_ReserveAnyway(_PyTraceMap *map);

static inline void
_PyTraceMap_Unreserve(_PyTraceMap *map)
{
    assert(map->reserved > 0);
    map->reserved--;
}

// The slot of a block, but for the old ones; or the free one that it is to
// have.  With a capacity.
static inline _PyTraceBlock *
_PyTraceMap_Probe(const _PyTraceMap *map, uintptr_t ptr)
{
    size_t i = _PyTraceMap_Home(ptr, map->capacity);
    while (map->slots[i].ptr != ptr && map->slots[i].ptr != 0) {
        i = _PyTraceMap_NextSlot(i, map->capacity);
    }
    return &map->slots[i];
}

// The trace of a block or NULL.  It may be changed (but for its address) and
// is valid until the map is changed.
static inline _PyTraceBlock *
_PyTraceMap_Find(const _PyTraceMap *map, uintptr_t ptr)
{
    if (map->used == 0 || ptr < _PyTraceBlock_MIN_PTR) {
        return NULL;
    }
    _PyTraceBlock *slot = _PyTraceMap_Probe(map, ptr);
    if (slot->ptr == ptr) {
        return slot;
    }
    return map->old != NULL ? _PyTraceMap_FindOld(map, ptr) : NULL;
}

// Add a block that is not in the map to one that has room, at the slot which
// _PyTraceMap_Probe() has found.
static inline void
_PyTraceMap_AddAt(_PyTraceMap *map, _PyTraceBlock *slot, _PyTraceBlock block)
{
    assert(block.ptr >= _PyTraceBlock_MIN_PTR);
    assert(block.traceback != _PyTraceback_NONE);
    assert(_PyTraceMap_Find(map, block.ptr) == NULL);
    assert(slot == _PyTraceMap_Probe(map, block.ptr));
    assert(map->used + map->reserved + 1 < map->capacity);
    map->used++;
    *slot = block;
}

// Use up one reservation for a block that is not in the map.
static inline void
_PyTraceMap_Put(_PyTraceMap *map, _PyTraceBlock block)
{
    assert(map->reserved > 0);
    map->reserved--;
    _PyTraceMap_AddAt(map, _PyTraceMap_Probe(map, block.ptr), block);
}

// Empty a slot that is not an old one.
static inline void
_PyTraceMap_Empty(_PyTraceMap *map, size_t hole)
{
    size_t i = hole;
    // Knuth's Algorithm 6.4R: fill the hole with the next one of the cluster
    // that may be there, which leaves a hole in turn.
    for (;;) {
        i = _PyTraceMap_NextSlot(i, map->capacity);
        uintptr_t ptr = map->slots[i].ptr;
        if (ptr == 0) {
            break;
        }
        size_t home = _PyTraceMap_Home(ptr, map->capacity);
        if (_PyTraceTable_ProbePasses(home, hole, i)) {
            map->slots[hole] = map->slots[i];
            hole = i;
        }
    }
    map->slots[hole].ptr = 0;
}

// Remove a trace that _PyTraceMap_Find() has returned, and perhaps reserve the
// room that it had.
static inline void
_PyTraceMap_Remove(_PyTraceMap *map, _PyTraceBlock *block, bool keep_room)
{
    map->used--;
    map->reserved += keep_room;
    if (map->old != NULL) {
        _PyTraceMap_RemoveSlowly(map, block);
        return;
    }
    _PyTraceMap_Empty(map, (size_t)(block - map->slots));
    if (map->used + map->reserved < map->low) {
        _PyTraceMap_Shrink(map);
    }
}

// Nobody will come for what was promised.
PyAPI_FUNC(void) _PyTraceMap_ForgetReservations(_PyTraceMap *map, size_t kept);

// Write all traces, in no particular order, to an array of `used` elements.
PyAPI_FUNC(void) _PyTraceMap_Copy(const _PyTraceMap *map, _PyTrace *out);

// Bytes of memory held.
PyAPI_FUNC(size_t) _PyTraceMap_Memory(const _PyTraceMap *map);

// Walk the whole map: is every trace where it can be found?  For tests and
// assertions.
PyAPI_FUNC(bool) _PyTraceMap_IsValid(const _PyTraceMap *map);


/* --- Pools: block of pymalloc to (size, traceback id) ------------------- */

// For blocks in pools of pymalloc, which are nearly all where there are any: a
// trace takes 8 bytes, found without probing, and those of neighbours, which
// are mostly used together, are in the same cache line.

// Of which block it is follows from where it stands.
typedef struct {
    _PyTraceback_Id traceback;    // _PyTraceback_NONE: a free slot
    uint16_t size;
    uint16_t offset;              // from the start of the block to its address
} _PyTracePooled;

typedef struct {
    uintptr_t address;
    uint32_t reciprocal;          // of the block size in units of ALIGNMENT
    uint16_t block_size;          // in bytes
    uint16_t used;                // number of traces
    _PyTracePooled traces[];
} _PyTracePool;

// Invariant: 2 * npools <= capacity.
typedef struct {
    const PyMemAllocatorEx *allocator;
    _PyTracePool **slots;         // hashed by address
    size_t capacity;              // number of slots, a power of two or 0
    size_t npools;
    size_t nempty;                // pools without traces
    size_t used;                  // number of traces
    size_t memory;                // bytes held by the pools
} _PyTracePools;

// Where a trace is, or can be put.
typedef struct {
    _PyTracePool *pool;
    _PyTracePooled *trace;        // NULL: nowhere
} _PyTracePoolPlace;

PyAPI_FUNC(void) _PyTracePools_Init(
    _PyTracePools *pools, const PyMemAllocatorEx *allocator);

// Free the memory and forget everything.
PyAPI_FUNC(void) _PyTracePools_Clear(_PyTracePools *pools);

// The slot of a pool, or the free one where it would be put.  With a capacity.
static inline _PyTracePool **
_PyTracePools_Probe(const _PyTracePools *pools, uintptr_t address)
{
    uint64_t hash = (address >> POOL_BITS) * UINT64_C(0x9E3779B97F4A7C15);
    size_t i = (size_t)(hash >> 32);
    for (;; i++) {
        _PyTracePool **slot = &pools->slots[i & (pools->capacity - 1)];
        if (*slot == NULL || (*slot)->address == address) {
            return slot;
        }
    }
}

// Number of the block with this offset from the first one of its pool: a
// division, done by multiplication.
static inline size_t
_PyTracePool_Index(const _PyTracePool *pool, size_t offset)
{
    return ((offset >> ALIGNMENT_SHIFT) * pool->reciprocal) >> 16;
}

// The place for the trace of a block of a pool, free or not.
static inline _PyTracePooled *
_PyTracePool_Slot(_PyTracePool *pool, uintptr_t ptr)
{
    size_t offset = ptr - pool->address - POOL_OVERHEAD;
    return &pool->traces[_PyTracePool_Index(pool, offset)];
}

// The address of the block that a trace is of.
static inline uintptr_t
_PyTracePool_Address(const _PyTracePool *pool, const _PyTracePooled *trace)
{
    return pool->address + POOL_OVERHEAD
           + (size_t)(trace - pool->traces) * pool->block_size
           + trace->offset;
}

// The pool of a block, or NULL.
static inline _PyTracePool *
_PyTracePools_Pool(const _PyTracePools *pools, uintptr_t ptr)
{
    if (pools->npools == 0 || (ptr & POOL_SIZE_MASK) < POOL_OVERHEAD) {
        return NULL;
    }
    return *_PyTracePools_Probe(pools, ptr & ~(uintptr_t)POOL_SIZE_MASK);
}

// Where the trace of a block is.  It may be changed and is valid until another
// is added or removed.
static inline _PyTracePoolPlace
_PyTracePools_Find(const _PyTracePools *pools, uintptr_t ptr)
{
    _PyTracePoolPlace place = {_PyTracePools_Pool(pools, ptr), NULL};
    if (place.pool != NULL) {
        _PyTracePooled *trace = _PyTracePool_Slot(place.pool, ptr);
        if (trace->traceback != _PyTraceback_NONE
            && _PyTracePool_Address(place.pool, trace) == ptr)
        {
            place.trace = trace;
        }
    }
    return place;
}

// What a block needs before it gets its place: make the pool known, with
// blocks of this size in bytes.  It has no traces.  NULL if there is no
// memory.
PyAPI_FUNC(_PyTracePool *) _PyTracePools_Prepare(
    _PyTracePools *pools, uintptr_t ptr, size_t block_size);

// Where to put the trace of a block of a pool; nowhere if another is there.
static inline _PyTracePoolPlace
_PyTracePool_FreePlace(_PyTracePool *pool, uintptr_t ptr)
{
    _PyTracePooled *slot = _PyTracePool_Slot(pool, ptr);
    bool is_free = slot->traceback == _PyTraceback_NONE;
    return (_PyTracePoolPlace){pool, is_free ? slot : NULL};
}

// Add the trace of a block, of at most UINT16_MAX bytes, there.
static inline void
_PyTracePools_AddAt(_PyTracePools *pools, _PyTracePoolPlace place,
                    uintptr_t ptr, size_t size, _PyTraceback_Id traceback)
{
    assert(place.trace == _PyTracePool_Slot(place.pool, ptr));
    assert(place.trace->traceback == _PyTraceback_NONE);
    assert(traceback != _PyTraceback_NONE && size <= UINT16_MAX);
    pools->nempty -= place.pool->used == 0;
    pools->used++;
    place.pool->used++;
    *place.trace = (_PyTracePooled){traceback, (uint16_t)size, 0};
    place.trace->offset = (uint16_t)(
        ptr - _PyTracePool_Address(place.pool, place.trace));
}

// Pools without traces are kept, to be used again, until they are more than
// the others and this.
#define _PyTracePools_KEEP_EMPTY 64

PyAPI_FUNC(void) _PyTracePools_DropEmpty(_PyTracePools *pools);

// Remove a trace that _PyTracePools_Find() has found.
static inline void
_PyTracePools_Remove(_PyTracePools *pools, _PyTracePoolPlace place)
{
    place.trace->traceback = _PyTraceback_NONE;
    pools->used--;
    if (--place.pool->used == 0
        && ++pools->nempty > Py_MAX(pools->npools / 2,
                                    _PyTracePools_KEEP_EMPTY))
    {
        _PyTracePools_DropEmpty(pools);
    }
}

// Write all traces, in no particular order, to an array of `used` elements.
PyAPI_FUNC(void) _PyTracePools_Copy(const _PyTracePools *pools, _PyTrace *out);

// Bytes of memory held.
PyAPI_FUNC(size_t) _PyTracePools_Memory(const _PyTracePools *pools);

// Walk all pools: is every trace where it can be found?  For tests and
// assertions.
PyAPI_FUNC(bool) _PyTracePools_IsValid(const _PyTracePools *pools);


/* --- Interning: filenames and tracebacks to ids and back ---------------- */

// A filename, as text: `length` code points of `kind` bytes each.
typedef struct {
    Py_uhash_t hash;
    size_t length;
    size_t offset;                // of the first byte in the `text` array
    int kind;                     // PyUnicode_1BYTE_KIND, ...
} _PyTraceFilename;

typedef struct {
    uint32_t filename;            // 0 is "<unknown>"
    unsigned int lineno;          // 0 if unknown
} _PyTraceFrame;

typedef struct {
    size_t first;                 // index of its most recent frame
    uint32_t hash;
    uint16_t nframe;              // frames kept
    uint16_t total_nframe;        // frames there were, at most UINT16_MAX
} _PyTraceback;

// A growing array; `items` is NULL if `capacity` is 0.
typedef struct {
    void *items;
    size_t length;                // in items
    size_t capacity;              // in items
} _PyTraceArray;

// A hash set of ids, power-of-two sized, at most half full; 0 is a free slot.
typedef struct {
    uint32_t *slots;
    size_t mask;                  // number of slots - 1
    size_t used;
} _PyTraceIndex;

// Filename i and traceback i+1 are items i-1 of their arrays: filename 0 and
// traceback 1 are known without being stored.
//
// Frames of the traceback under construction stand behind the last interned
// frame; they become interned by raising frames.length.
typedef struct {
    const PyMemAllocatorEx *allocator;
    _PyTraceArray filenames;      // of _PyTraceFilename
    _PyTraceArray text;           // of bytes
    _PyTraceArray tracebacks;     // of _PyTraceback
    _PyTraceArray frames;         // of _PyTraceFrame
    _PyTraceIndex filename_index;
    _PyTraceIndex traceback_index;
    size_t pending;               // frames of the traceback being built
} _PyTraceIntern;

PyAPI_FUNC(void) _PyTraceIntern_Init(
    _PyTraceIntern *intern, const PyMemAllocatorEx *allocator);

// Free the memory; all ids but the two fixed ones become invalid.
PyAPI_FUNC(void) _PyTraceIntern_Clear(_PyTraceIntern *intern);

// Id of a filename, interned if need be.  -1 if there is no memory.
PyAPI_FUNC(int) _PyTraceIntern_Filename(
    _PyTraceIntern *intern, const _PyTraceFilename *name, const void *text,
    uint32_t *id);

// Build a traceback: begin, add frames from the most recent one on, end.
// Each returns -1 if there is no memory; the traceback is abandoned then, or
// by beginning another.  One without frames is _PyTraceback_UNKNOWN.
PyAPI_FUNC(void) _PyTraceIntern_BeginTraceback(_PyTraceIntern *intern);
PyAPI_FUNC(int) _PyTraceIntern_AddFrame(
    _PyTraceIntern *intern, _PyTraceFrame frame);
// The most recent frames of an interned traceback, at most so many.
PyAPI_FUNC(int) _PyTraceIntern_AddFramesOf(
    _PyTraceIntern *intern, _PyTraceback_Id id, size_t max_nframe);
PyAPI_FUNC(int) _PyTraceIntern_EndTraceback(
    _PyTraceIntern *intern, size_t total_nframe, _PyTraceback_Id *id);

// Look up ids; what is returned is valid until anything is interned.  `frames`
// may be NULL.
PyAPI_FUNC(const _PyTraceback *) _PyTraceIntern_GetTraceback(
    const _PyTraceIntern *intern, _PyTraceback_Id id,
    const _PyTraceFrame **frames);
// NULL for filename 0.
PyAPI_FUNC(const _PyTraceFilename *) _PyTraceIntern_GetFilename(
    const _PyTraceIntern *intern, uint32_t id, const void **text);

// Make `copy` a copy that can be looked up, but not added to.  -1 if there is
// no memory; nothing is left in `copy` then.
PyAPI_FUNC(int) _PyTraceIntern_Copy(
    const _PyTraceIntern *intern, _PyTraceIntern *copy);

// Copy a single traceback.  -1 if there is no memory.
PyAPI_FUNC(int) _PyTraceIntern_CopyTraceback(
    const _PyTraceIntern *intern, _PyTraceback_Id id,
    _PyTraceIntern *copy, _PyTraceback_Id *copy_id);

// Bytes of memory held.
PyAPI_FUNC(size_t) _PyTraceIntern_Memory(const _PyTraceIntern *intern);

// Walk everything: does each filename and traceback stand where it may, and is
// it found through its index, once?  A copy has no indexes.  For tests and
// assertions.
PyAPI_FUNC(bool) _PyTraceIntern_IsValid(const _PyTraceIntern *intern);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_TRACEMALLOC_CONTAINERS_H
