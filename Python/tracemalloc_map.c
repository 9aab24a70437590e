// The traces of an interpreter's own blocks: an open-addressing hash table
// keyed by address.  A plain container: the caller locks.
//
// What the hot path needs is in the header.  Here is what changes the
// capacity: the old slots stay, and each call from then on moves a few of
// them, so that no call takes long.  An old slot whose trace is removed keeps
// a mark, for the probes that pass over it.

#include "Python.h"
#include "pycore_tracemalloc_containers.h"  // _PyTraceMap

#define MIN_CAPACITY 64

// Load is at most 3/4; linear probing needs 8.5 slots for a miss then, and 2.5
// at the half that is the least after growing.
#define CAPACITY_LIMIT(capacity) ((capacity) / 4 * 3)

// The load without memory, for what must not be lost.
#define LAST_LIMIT(capacity) ((capacity) / 16 * 15)

// Old slots moved by a call: all c of them until the new capacity is used up.
// That takes c/4 calls, or c/16 - 3 where the last limit had been reached.
// From c = 96 on these are at least c/32, and below no fewer than 3.
#define MOVES 32

#define REMOVED 1


void
_PyTraceMap_Init(_PyTraceMap *map, const PyMemAllocatorEx *allocator)
{
    *map = (_PyTraceMap){.allocator = allocator};
}

static void
free_slots(_PyTraceMap *map, _PyTraceBlock *slots)
{
    if (slots != NULL) {
        map->allocator->free(map->allocator->ctx, slots);
    }
}

void
_PyTraceMap_Clear(_PyTraceMap *map)
{
    free_slots(map, map->slots);
    free_slots(map, map->old);
    _PyTraceMap_Init(map, map->allocator);
}

// Move what is in some of the old slots.
static void
move(_PyTraceMap *map, size_t count)
{
    size_t end = map->moved + Py_MIN(count, map->old_capacity - map->moved);
    for (; map->moved < end; map->moved++) {
        if (map->old[map->moved].ptr > REMOVED) {
            *_PyTraceMap_Probe(map, map->old[map->moved].ptr) =
                map->old[map->moved];
        }
    }
    if (map->moved == map->old_capacity) {
        free_slots(map, map->old);
        map->old = NULL;
    }
}

static int
resize(_PyTraceMap *map, size_t capacity)
{
    assert(map->old == NULL);
    assert(map->used + map->reserved <= CAPACITY_LIMIT(capacity));
    if (capacity > UINT32_MAX) {
        return -1;
    }
    _PyTraceBlock *slots = map->allocator->calloc(
        map->allocator->ctx, capacity, sizeof(_PyTraceBlock));
    if (slots == NULL) {
        return -1;
    }
    if (map->used == 0) {
        free_slots(map, map->slots);
    }
    else {
        map->old = map->slots;
        map->old_capacity = map->capacity;
        map->moved = 0;
    }
    map->slots = slots;
    map->capacity = capacity;
    map->limit = CAPACITY_LIMIT(capacity);
    map->low = capacity == MIN_CAPACITY ? 0 : map->limit / 4;
    return 0;
}

int
_PyTraceMap_ReserveSlowly(_PyTraceMap *map)
{
    if (map->old != NULL) {
        move(map, MOVES);
    }
    if (map->used + map->reserved >= map->limit) {
        // MOVES sees to it that there are no old slots.
        size_t capacity = map->capacity + map->capacity / 3;
        if (resize(map, Py_MAX(capacity, MIN_CAPACITY)) < 0) {
            return -1;
        }
    }
    map->reserved++;
    return 0;
}

int
_PyTraceMap_ReserveAnyway(_PyTraceMap *map)
{
    if (_PyTraceMap_Reserve(map) == 0) {
        return 0;
    }
    if (map->used + map->reserved >= LAST_LIMIT(map->capacity)) {
        return -1;
    }
    map->reserved++;
    return 0;
}

// Give memory back after a peak; the map is then less than half full.
void
_PyTraceMap_Shrink(_PyTraceMap *map)
{
    // Failing is harmless: the map is only larger than it need be.
    (void)resize(map, Py_MAX(map->capacity / 2, MIN_CAPACITY));
}

_PyTraceBlock *
_PyTraceMap_FindOld(const _PyTraceMap *map, uintptr_t ptr)
{
    // Slots before `moved` were passed over, if they were on the way.
    size_t home = _PyTraceMap_Home(ptr, map->old_capacity);
    size_t first = Py_MAX(home, map->moved);
    size_t i = first;
    do {
        if (map->old[i].ptr == ptr) {
            return &map->old[i];
        }
        if (map->old[i].ptr == 0) {
            return NULL;
        }
        i = i + 1 < map->old_capacity ? i + 1 : map->moved;
    } while (i != first);
    return NULL;
}

// The rest of _PyTraceMap_Remove() while there are old slots.
void
_PyTraceMap_RemoveSlowly(_PyTraceMap *map, _PyTraceBlock *block)
{
    if (map->old <= block && block < map->old + map->old_capacity) {
        block->ptr = REMOVED;
    }
    else {
        _PyTraceMap_Empty(map, (size_t)(block - map->slots));
    }
    move(map, MOVES);
}

void
_PyTraceMap_ForgetReservations(_PyTraceMap *map, size_t kept)
{
    assert(kept <= map->reserved);
    map->reserved = kept;
}

static size_t
copy_slots(const _PyTraceBlock *slots, size_t i, size_t capacity,
           _PyTrace *out)
{
    size_t n = 0;
    for (; i < capacity; i++) {
        if (slots[i].ptr > REMOVED) {
            out[n++] = (_PyTrace){
                .ptr = slots[i].ptr,
                .size = slots[i].size,
                .traceback = slots[i].traceback,
            };
        }
    }
    return n;
}

void
_PyTraceMap_Copy(const _PyTraceMap *map, _PyTrace *out)
{
    out += copy_slots(map->slots, 0, map->capacity, out);
    if (map->old != NULL) {
        (void)copy_slots(map->old, map->moved, map->old_capacity, out);
    }
}

size_t
_PyTraceMap_Memory(const _PyTraceMap *map)
{
    size_t nslots = map->capacity;
    if (map->old != NULL) {
        nslots += map->old_capacity;
    }
    return nslots * sizeof(_PyTraceBlock);
}

static bool
are_found(const _PyTraceMap *map, _PyTraceBlock *slots, size_t i,
          size_t capacity, size_t *used)
{
    for (; i < capacity; i++) {
        if (slots[i].ptr > REMOVED) {
            ++*used;
            if (_PyTraceMap_Find(map, slots[i].ptr) != &slots[i]) {
                return false;
            }
        }
    }
    return true;
}

bool
_PyTraceMap_IsValid(const _PyTraceMap *map)
{
    size_t used = 0;
    return are_found(map, map->slots, 0, map->capacity, &used)
           && (map->old == NULL
               || are_found(map, map->old, map->moved, map->old_capacity,
                            &used))
           && used == map->used
           && used + map->reserved <= LAST_LIMIT(map->capacity)
           && (map->limit < map->capacity || map->capacity == 0);
}
