// Filenames and tracebacks, each kept once and named by a small id.  A plain
// container: the caller locks.
//
// Everything is in a few growing arrays, so that a query can copy it in one go
// while the lock is held, and make Python objects of the copy afterwards.

#include "Python.h"
#include "pycore_pyhash.h"        // _Py_HashBytes()
#include "pycore_tracemalloc_data.h"  // tracemalloc_intern

#define MIN_ITEMS 64

// Multiplier of the MMIX linear congruential generator (Knuth): odd, and
// without a visible pattern in its bits.
#define HASH_MULTIPLIER UINT64_C(6364136223846793005)

#define FIRST_TRACEBACK (_PyTraceMalloc_UNKNOWN + 1)


/* --- Arrays ------------------------------------------------------------- */

// Make room for `extra` more items behind the first `length` ones.
static int
array_reserve(const PyMemAllocatorEx *allocator, tracemalloc_array *array,
              size_t length, size_t extra, size_t item_size)
{
    // `length` may exceed the capacity, since text is aligned.
    if (length <= array->capacity && extra <= array->capacity - length) {
        return 0;
    }
    if (extra > (size_t)PY_SSIZE_T_MAX - length) {
        return -1;
    }
    size_t capacity = Py_MAX(array->capacity, MIN_ITEMS);
    while (capacity < length + extra) {
        capacity += capacity / 2;
    }
    if (capacity > (size_t)PY_SSIZE_T_MAX / item_size) {
        return -1;
    }
    void *items = allocator->realloc(allocator->ctx, array->items,
                                     capacity * item_size);
    if (items == NULL) {
        return -1;
    }
    array->items = items;
    array->capacity = capacity;
    return 0;
}

static void
array_free(const PyMemAllocatorEx *allocator, tracemalloc_array *array)
{
    if (array->items != NULL) {
        allocator->free(allocator->ctx, array->items);
    }
    *array = (tracemalloc_array){0};
}

static int
array_copy(const PyMemAllocatorEx *allocator, const tracemalloc_array *array,
           tracemalloc_array *copy, size_t item_size)
{
    size_t size = array->length * item_size;
    *copy = (tracemalloc_array){0};
    if (size == 0) {
        return 0;
    }
    copy->items = allocator->malloc(allocator->ctx, size);
    if (copy->items == NULL) {
        return -1;
    }
    memcpy(copy->items, array->items, size);
    copy->length = copy->capacity = array->length;
    return 0;
}


/* --- Hash index --------------------------------------------------------- */

typedef uint64_t (*hash_of_id)(const tracemalloc_intern *intern, uint32_t id);

// Put an id, which is not in the index, where there is room for it.
static void
index_put(tracemalloc_index *index, uint64_t hash, uint32_t id)
{
    size_t i = (size_t)hash & index->mask;
    while (index->slots[i] != 0) {
        i = (i + 1) & index->mask;
    }
    index->slots[i] = id;
}

// Make room for one more id.
static int
index_reserve(const tracemalloc_intern *intern, tracemalloc_index *index,
              hash_of_id hash_of)
{
    if (index->slots != NULL && index->used < (index->mask + 1) / 2) {
        return 0;
    }
    const PyMemAllocatorEx *allocator = intern->allocator;
    size_t nslots = index->slots == NULL ? MIN_ITEMS : (index->mask + 1) * 2;
    uint32_t *slots = allocator->calloc(allocator->ctx,
                                        nslots, sizeof(uint32_t));
    if (slots == NULL) {
        return -1;
    }
    tracemalloc_index old = *index;
    index->slots = slots;
    index->mask = nslots - 1;
    for (size_t i = 0; old.slots != NULL && i <= old.mask; i++) {
        uint32_t id = old.slots[i];
        if (id != 0) {
            index_put(index, hash_of(intern, id), id);
        }
    }
    if (old.slots != NULL) {
        allocator->free(allocator->ctx, old.slots);
    }
    return 0;
}

static void
index_free(const PyMemAllocatorEx *allocator, tracemalloc_index *index)
{
    if (index->slots != NULL) {
        allocator->free(allocator->ctx, index->slots);
    }
    *index = (tracemalloc_index){0};
}

static size_t
index_memory(const tracemalloc_index *index)
{
    return index->slots == NULL ? 0 : (index->mask + 1) * sizeof(uint32_t);
}


/* --- Filenames ---------------------------------------------------------- */

static inline tracemalloc_filename *
filename_item(const tracemalloc_intern *intern, uint32_t id)
{
    assert(1 <= id && id <= intern->filenames.length);
    return (tracemalloc_filename *)intern->filenames.items + (id - 1);
}

static uint64_t
filename_hash(const tracemalloc_intern *intern, uint32_t id)
{
    return (uint64_t)filename_item(intern, id)->hash;
}

static inline const char *
text_at(const tracemalloc_intern *intern, size_t offset)
{
    // There is no array at all if all filenames are empty.
    const char *text = intern->text.items;
    return text != NULL ? text + offset : NULL;
}

static uint32_t
add_filename(tracemalloc_intern *intern, const tracemalloc_filename *name,
             const void *text)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    // Code points are aligned by their size, which is 1, 2 or 4.
    size_t offset = _Py_SIZE_ROUND_UP(intern->text.length, 4);
    size_t size = name->length * (size_t)name->kind;
    if (intern->filenames.length >= UINT32_MAX - 1
        || index_reserve(intern, &intern->filename_index, filename_hash) < 0
        || array_reserve(allocator, &intern->text, offset, size, 1) < 0
        || array_reserve(allocator, &intern->filenames,
                         intern->filenames.length, 1,
                         sizeof(tracemalloc_filename)) < 0)
    {
        return 0;
    }
    if (size > 0) {
        memcpy((char *)intern->text.items + offset, text, size);
        intern->text.length = offset + size;
    }
    uint32_t id = (uint32_t)++intern->filenames.length;
    tracemalloc_filename *item = filename_item(intern, id);
    *item = *name;
    item->offset = size > 0 ? offset : 0;
    index_put(&intern->filename_index, name->hash, id);
    intern->filename_index.used++;
    return id;
}

// 0 if it is not there.
static uint32_t
find_filename(const tracemalloc_intern *intern,
              const tracemalloc_filename *name, const void *text)
{
    const tracemalloc_index *index = &intern->filename_index;
    size_t size = name->length * (size_t)name->kind;
    if (index->slots == NULL) {
        return 0;
    }
    for (size_t i = (size_t)name->hash & index->mask; ;
         i = (i + 1) & index->mask)
    {
        uint32_t id = index->slots[i];
        if (id == 0) {
            return 0;
        }
        const tracemalloc_filename *item = filename_item(intern, id);
        if (item->hash == name->hash && item->kind == name->kind
            && item->length == name->length
            && (size == 0
                || memcmp(text_at(intern, item->offset), text, size) == 0))
        {
            return id;
        }
    }
}

static int
intern_text(tracemalloc_intern *intern, const tracemalloc_filename *name,
            const void *text, uint32_t *id)
{
    *id = find_filename(intern, name, text);
    if (*id == 0) {
        *id = add_filename(intern, name, text);
    }
    return *id != 0 ? 0 : -1;
}

int
_PyTraceMalloc_InternFilename(tracemalloc_intern *intern, PyObject *filename,
                              uint32_t *id)
{
    if (filename == NULL || !PyUnicode_Check(filename)) {
        *id = 0;
        return 0;
    }
    const void *text = PyUnicode_DATA(filename);
    tracemalloc_filename name = {
        .length = (size_t)PyUnicode_GET_LENGTH(filename),
        .kind = (int)PyUnicode_KIND(filename),
    };
    // Mostly it has been computed before.  It is not stored here: a detached
    // thread must not write to a shared object.
    Py_hash_t hash = _Py_atomic_load_ssize_relaxed(
        &((PyASCIIObject *)filename)->hash);
    if (hash == -1) {
        hash = _Py_HashBytes(text, (Py_ssize_t)name.length * name.kind);
    }
    name.hash = (Py_uhash_t)hash;
    return intern_text(intern, &name, text, id);
}

const tracemalloc_filename *
_PyTraceMalloc_GetFilename(const tracemalloc_intern *intern, uint32_t id,
                           const void **text)
{
    if (id == 0) {
        return NULL;
    }
    const tracemalloc_filename *item = filename_item(intern, id);
    *text = text_at(intern, item->offset);
    return item;
}


/* --- Tracebacks --------------------------------------------------------- */

static inline tracemalloc_traceback *
traceback_item(const tracemalloc_intern *intern, uint32_t id)
{
    assert(id >= FIRST_TRACEBACK);
    assert(id - FIRST_TRACEBACK < intern->tracebacks.length);
    return (tracemalloc_traceback *)intern->tracebacks.items
           + (id - FIRST_TRACEBACK);
}

static uint64_t
traceback_hash(const tracemalloc_intern *intern, uint32_t id)
{
    return traceback_item(intern, id)->hash;
}

static inline tracemalloc_frame *
frame_at(const tracemalloc_intern *intern, size_t i)
{
    return (tracemalloc_frame *)intern->frames.items + i;
}

static uint32_t
hash_frames(const tracemalloc_frame *frames, size_t nframe,
            size_t total_nframe)
{
    uint64_t hash = total_nframe * HASH_MULTIPLIER;
    for (size_t i = 0; i < nframe; i++) {
        hash ^= (uint64_t)frames[i].filename << 32 | frames[i].lineno;
        hash *= HASH_MULTIPLIER;
        // Multiplying moves bits up only; they are needed below, by the next
        // frame as well as by the index.
        hash ^= hash >> 32;
    }
    return (uint32_t)hash;
}

// NO_TRACEBACK if it is not there.
static uint32_t
find_traceback(const tracemalloc_intern *intern,
               const tracemalloc_traceback *traceback,
               const tracemalloc_frame *frames)
{
    const tracemalloc_index *index = &intern->traceback_index;
    if (index->slots == NULL) {
        return _PyTraceMalloc_NO_TRACEBACK;
    }
    for (size_t i = traceback->hash & index->mask; ;
         i = (i + 1) & index->mask)
    {
        uint32_t id = index->slots[i];
        if (id == _PyTraceMalloc_NO_TRACEBACK) {
            return id;
        }
        const tracemalloc_traceback *item = traceback_item(intern, id);
        if (item->hash == traceback->hash
            && item->nframe == traceback->nframe
            && item->total_nframe == traceback->total_nframe
            && memcmp(frame_at(intern, item->first), frames,
                      item->nframe * sizeof(tracemalloc_frame)) == 0)
        {
            return id;
        }
    }
}

static uint32_t
add_traceback(tracemalloc_intern *intern,
              const tracemalloc_traceback *traceback)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    size_t length = intern->tracebacks.length;
    if (length + FIRST_TRACEBACK >= _PyTraceMalloc_MAX_ID
        || index_reserve(intern, &intern->traceback_index,
                         traceback_hash) < 0
        || array_reserve(allocator, &intern->tracebacks, length, 1,
                         sizeof(tracemalloc_traceback)) < 0)
    {
        return _PyTraceMalloc_NO_TRACEBACK;
    }
    intern->frames.length += traceback->nframe;
    intern->tracebacks.length++;
    uint32_t id = (uint32_t)length + FIRST_TRACEBACK;
    tracemalloc_traceback *item = traceback_item(intern, id);
    *item = *traceback;
    index_put(&intern->traceback_index, traceback->hash, id);
    intern->traceback_index.used++;
    return id;
}

tracemalloc_frame *
_PyTraceMalloc_InternNewFrames(tracemalloc_intern *intern, size_t nframe)
{
    size_t length = intern->frames.length;
    if (array_reserve(intern->allocator, &intern->frames, length, nframe,
                      sizeof(tracemalloc_frame)) < 0)
    {
        return NULL;
    }
    return frame_at(intern, length);
}

int
_PyTraceMalloc_InternTraceback(tracemalloc_intern *intern, size_t nframe,
                               size_t total_nframe, uint32_t *id)
{
    assert(0 < nframe && nframe <= total_nframe && nframe <= UINT16_MAX);
    total_nframe = Py_MIN(total_nframe, UINT16_MAX);
    const tracemalloc_frame *frames = frame_at(intern, intern->frames.length);
    tracemalloc_traceback traceback = {
        .first = intern->frames.length,
        .hash = hash_frames(frames, nframe, total_nframe),
        .nframe = (uint16_t)nframe,
        .total_nframe = (uint16_t)total_nframe,
    };
    *id = find_traceback(intern, &traceback, frames);
    if (*id == _PyTraceMalloc_NO_TRACEBACK) {
        *id = add_traceback(intern, &traceback);
    }
    return *id != _PyTraceMalloc_NO_TRACEBACK ? 0 : -1;
}

const tracemalloc_traceback *
_PyTraceMalloc_GetFrames(const tracemalloc_intern *intern, uint32_t id,
                         const tracemalloc_frame **frames)
{
    static const tracemalloc_frame unknown_frame = {0, 0};
    static const tracemalloc_traceback unknown = {
        .nframe = 1, .total_nframe = 1,
    };
    if (id == _PyTraceMalloc_UNKNOWN) {
        *frames = &unknown_frame;
        return &unknown;
    }
    const tracemalloc_traceback *item = traceback_item(intern, id);
    *frames = frame_at(intern, item->first);
    return item;
}


/* --- The whole ---------------------------------------------------------- */

void
_PyTraceMalloc_InternInit(tracemalloc_intern *intern,
                          const PyMemAllocatorEx *allocator)
{
    *intern = (tracemalloc_intern){.allocator = allocator};
}

void
_PyTraceMalloc_InternFree(tracemalloc_intern *intern)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    array_free(allocator, &intern->filenames);
    array_free(allocator, &intern->text);
    array_free(allocator, &intern->tracebacks);
    array_free(allocator, &intern->frames);
    index_free(allocator, &intern->filename_index);
    index_free(allocator, &intern->traceback_index);
}

int
_PyTraceMalloc_InternCopy(const tracemalloc_intern *intern,
                          tracemalloc_intern *copy)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    if (array_copy(allocator, &intern->filenames, &copy->filenames,
                   sizeof(tracemalloc_filename)) < 0
        || array_copy(allocator, &intern->text, &copy->text, 1) < 0
        || array_copy(allocator, &intern->tracebacks, &copy->tracebacks,
                      sizeof(tracemalloc_traceback)) < 0
        || array_copy(allocator, &intern->frames, &copy->frames,
                      sizeof(tracemalloc_frame)) < 0)
    {
        _PyTraceMalloc_InternFree(copy);
        return -1;
    }
    return 0;
}

int
_PyTraceMalloc_InternCopyTraceback(const tracemalloc_intern *intern,
                                   uint32_t id, tracemalloc_intern *copy,
                                   uint32_t *copy_id)
{
    *copy_id = id;
    if (id == _PyTraceMalloc_UNKNOWN) {
        return 0;
    }
    const tracemalloc_frame *frames;
    const tracemalloc_traceback *traceback =
        _PyTraceMalloc_GetFrames(intern, id, &frames);
    tracemalloc_frame *copies = _PyTraceMalloc_InternNewFrames(
        copy, traceback->nframe);
    if (copies == NULL) {
        return -1;
    }
    for (size_t i = 0; i < traceback->nframe; i++) {
        const void *text;
        const tracemalloc_filename *name = _PyTraceMalloc_GetFilename(
            intern, frames[i].filename, &text);
        copies[i] = frames[i];
        if (name != NULL
            && intern_text(copy, name, text, &copies[i].filename) < 0)
        {
            return -1;
        }
    }
    return _PyTraceMalloc_InternTraceback(copy, traceback->nframe,
                                          traceback->total_nframe, copy_id);
}

size_t
_PyTraceMalloc_InternMemory(const tracemalloc_intern *intern)
{
    return intern->filenames.capacity * sizeof(tracemalloc_filename)
           + intern->text.capacity
           + intern->tracebacks.capacity * sizeof(tracemalloc_traceback)
           + intern->frames.capacity * sizeof(tracemalloc_frame)
           + index_memory(&intern->filename_index)
           + index_memory(&intern->traceback_index);
}
