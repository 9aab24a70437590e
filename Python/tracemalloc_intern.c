// Filenames and tracebacks, each kept once and named by a small id.
//
// Who adds an item locks.  Who knows an id reads its item without a lock: an
// item and the place of its address stay what they are until the last
// reference to the container is dropped.  So a query needs no copies.

#include "Python.h"
#include "pycore_bitutils.h"      // _Py_bit_length()
#include "pycore_pyhash.h"        // _Py_HashBytes()
#include "pycore_tracemalloc_data.h"  // tracemalloc_intern

#include <stddef.h>               // offsetof()

#define FIRST_ID (_PyTraceMalloc_UNKNOWN + 1)

#define CHUNK_BITS 6              // of the number of items in the first chunk
#define FIRST_CHUNK (UINT32_C(1) << CHUNK_BITS)

#define HEADER_SIZE offsetof(tracemalloc_item, frames)


/* --- Items -------------------------------------------------------------- */

static size_t
item_size(const tracemalloc_item *item)
{
    return HEADER_SIZE + (size_t)item->length * item->unit;
}

// With FNV, the high bytes of a word have no effect on low bits.
static uint32_t
mix_hash(Py_hash_t hash)
{
    uint64_t mixed = (Py_uhash_t)hash;
    mixed = (mixed ^ mixed >> 32) * UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)(mixed >> 32);
}

// Is the item what the key says, with this content?
static bool
is_equal(const tracemalloc_item *item, const tracemalloc_item *key,
         const void *content)
{
    return item->hash == key->hash && item->length == key->length
           && item->unit == key->unit
           && item->total_nframe == key->total_nframe
           && memcmp(item->frames, content, item_size(key) - HEADER_SIZE) == 0;
}

tracemalloc_item *
_PyTraceMalloc_NewItem(const tracemalloc_intern *intern, size_t length,
                       size_t unit, size_t total_nframe)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    tracemalloc_item *item = allocator->malloc(allocator->ctx,
                                               HEADER_SIZE + length * unit);
    if (item != NULL) {
        item->length = (uint32_t)length;
        item->unit = (uint16_t)unit;
        item->total_nframe = (uint16_t)Py_MIN(total_nframe, UINT16_MAX);
    }
    return item;
}

void
_PyTraceMalloc_FreeItem(const tracemalloc_intern *intern,
                        tracemalloc_item *item)
{
    intern->allocator->free(intern->allocator->ctx, item);
}


/* --- Ids ---------------------------------------------------------------- */

// Each chunk has twice the items of the one before.
static inline int
chunk_of(uint32_t id)
{
    return _Py_bit_length(id + FIRST_CHUNK) - (CHUNK_BITS + 1);
}

static inline tracemalloc_item **
item_entry(const tracemalloc_intern *intern, uint32_t id)
{
    int k = chunk_of(id);
    return &intern->chunks[k][id + FIRST_CHUNK - (FIRST_CHUNK << k)];
}

const tracemalloc_item *
_PyTraceMalloc_GetItem(const tracemalloc_intern *intern, uint32_t id)
{
    // It needs no memory: blocks have it when there is none, too.
    static const tracemalloc_item unknown = {
        .length = 1, .unit = sizeof(tracemalloc_frame), .total_nframe = 1,
    };
    if (id == _PyTraceMalloc_UNKNOWN) {
        return &unknown;
    }
    assert(id >= FIRST_ID);
    return *item_entry(intern, id);
}

// Where in the index the id of an equal item is, or is to be put.
static uint32_t *
find_entry(const tracemalloc_intern *intern, const tracemalloc_item *key,
           const void *content)
{
    uint32_t i = key->hash;
    while (true) {
        uint32_t *entry = &intern->index[i & (intern->index_size - 1)];
        if (*entry == 0
            || is_equal(*item_entry(intern, *entry), key, content))
        {
            return entry;
        }
        i++;
    }
}

static int
resize_index(tracemalloc_intern *intern, uint32_t size)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    uint32_t *index = allocator->calloc(allocator->ctx, size,
                                        sizeof(uint32_t));
    if (index == NULL) {
        return -1;
    }
    if (intern->index != NULL) {
        allocator->free(allocator->ctx, intern->index);
    }
    intern->memory += (size - intern->index_size) * sizeof(uint32_t);
    intern->index = index;
    intern->index_size = size;
    for (uint32_t id = FIRST_ID; id <= intern->last_id; id++) {
        const tracemalloc_item *item = *item_entry(intern, id);
        *find_entry(intern, item, item->frames) = id;
    }
    return 0;
}

// Make room for one more id.
static int
reserve_id(tracemalloc_intern *intern)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    if (intern->last_id == _PyTraceMalloc_MAX_ID) {
        return -1;
    }
    int k = chunk_of(intern->last_id + 1);
    if (intern->chunks[k] == NULL) {
        size_t size = ((size_t)FIRST_CHUNK << k) * sizeof(tracemalloc_item *);
        intern->chunks[k] = allocator->malloc(allocator->ctx, size);
        if (intern->chunks[k] == NULL) {
            return -1;
        }
        intern->memory += size;
    }
    if (intern->last_id >= intern->index_size / 2) {
        return resize_index(intern, intern->index_size * 2);
    }
    return 0;
}

// Add an item that is not there; without memory, free it.
static int
add_item(tracemalloc_intern *intern, tracemalloc_item *item, uint32_t *id)
{
    if (reserve_id(intern) < 0) {
        _PyTraceMalloc_FreeItem(intern, item);
        return -1;
    }
    *id = ++intern->last_id;
    *item_entry(intern, *id) = item;
    *find_entry(intern, item, item->frames) = *id;
    intern->memory += item_size(item);
    return 0;
}

int
_PyTraceMalloc_InternTraceback(tracemalloc_intern *intern,
                               tracemalloc_item *traceback, uint32_t *id)
{
    size_t unhashed = offsetof(tracemalloc_item, length);
    traceback->hash = mix_hash(_Py_HashBytes(
        &traceback->length, (Py_ssize_t)(item_size(traceback) - unhashed)));
    *id = *find_entry(intern, traceback, traceback->frames);
    if (*id == 0) {
        return add_item(intern, traceback, id);
    }
    _PyTraceMalloc_FreeItem(intern, traceback);
    return 0;
}

int
_PyTraceMalloc_InternFilename(tracemalloc_intern *intern, PyObject *filename,
                              uint32_t *id)
{
    *id = 0;
    if (filename == NULL || !PyUnicode_Check(filename)) {
        return 0;
    }
    size_t length = (size_t)PyUnicode_GET_LENGTH(filename);
    size_t kind = (size_t)PyUnicode_KIND(filename);
    if (length > UINT32_MAX) {
        return -1;
    }
    const void *text = PyUnicode_DATA(filename);
    Py_hash_t hash = _Py_atomic_load_ssize_relaxed(
        &_PyASCIIObject_CAST(filename)->hash);
    if (hash == -1) {
        // That of a str object, which this one has not computed yet.
        hash = _Py_HashBytes(text, (Py_ssize_t)(length * kind));
    }
    const tracemalloc_item key = {
        .hash = mix_hash(hash), .length = (uint32_t)length,
        .unit = (uint16_t)kind,
    };
    *id = *find_entry(intern, &key, text);
    if (*id != 0) {
        return 0;
    }
    tracemalloc_item *item = _PyTraceMalloc_NewItem(intern, length, kind, 0);
    if (item == NULL) {
        return -1;
    }
    item->hash = key.hash;
    memcpy(item->frames, text, length * kind);
    return add_item(intern, item, id);
}


/* --- The whole ---------------------------------------------------------- */

tracemalloc_intern *
_PyTraceMalloc_InternNew(const PyMemAllocatorEx *allocator)
{
    tracemalloc_intern *intern = allocator->calloc(allocator->ctx, 1,
                                                   sizeof(*intern));
    if (intern == NULL) {
        return NULL;
    }
    intern->refcount = 1;
    intern->allocator = allocator;
    intern->last_id = _PyTraceMalloc_UNKNOWN;
    intern->memory = sizeof(*intern);
    if (resize_index(intern, 2 * FIRST_CHUNK) < 0) {
        allocator->free(allocator->ctx, intern);
        return NULL;
    }
    return intern;
}

void
_PyTraceMalloc_InternDecref(tracemalloc_intern *intern)
{
    if (intern == NULL || _Py_atomic_add_ssize(&intern->refcount, -1) > 1) {
        return;
    }
    const PyMemAllocatorEx *allocator = intern->allocator;
    for (uint32_t id = FIRST_ID; id <= intern->last_id; id++) {
        _PyTraceMalloc_FreeItem(intern, *item_entry(intern, id));
    }
    for (int k = 0; k < _PyTraceMalloc_NUM_CHUNKS; k++) {
        if (intern->chunks[k] != NULL) {
            allocator->free(allocator->ctx, intern->chunks[k]);
        }
    }
    allocator->free(allocator->ctx, intern->index);
    allocator->free(allocator->ctx, intern);
}
