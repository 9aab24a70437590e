// Filenames and tracebacks, each kept once and named by a small id.  A plain
// container: the caller locks.
//
// Everything stands in a few growing arrays, so that a query can copy it in
// one go while the lock is held and make Python objects of it afterwards.

#include "Python.h"
#include "pycore_tracemalloc_containers.h"  // _PyTraceIntern

#define MIN_ITEMS 64

// Multiplier of the MMIX linear congruential generator (Knuth), used to mix
// hashes: odd, and without visible pattern in its bits.
#define HASH_MULTIPLIER UINT64_C(6364136223846793005)


/* --- Arrays ------------------------------------------------------------- */

// Make room for `extra` more items behind the first `length` ones.
static int
array_reserve(const PyMemAllocatorEx *allocator, _PyTraceArray *array,
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
        // By a half: doubling would leave up to 50 % unused.
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
array_free(const PyMemAllocatorEx *allocator, _PyTraceArray *array)
{
    if (array->items != NULL) {
        allocator->free(allocator->ctx, array->items);
    }
    *array = (_PyTraceArray){0};
}

static int
array_copy(const PyMemAllocatorEx *allocator, const _PyTraceArray *array,
           _PyTraceArray *copy, size_t item_size)
{
    size_t size = array->length * item_size;
    *copy = (_PyTraceArray){0};
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

// Walk the slots that may hold an item with this hash; a free one ends it.
#define INDEX_PROBE(INDEX, HASH, I) \
    for (size_t I = (size_t)(HASH) & (INDEX)->mask; ; \
         I = (I + 1) & (INDEX)->mask)

typedef uint64_t (*hash_of_id)(const _PyTraceIntern *intern, uint32_t id);

// Put an id, which is not in the index, where there is room for it.
static void
index_put(_PyTraceIndex *index, uint64_t hash, uint32_t id)
{
    INDEX_PROBE(index, hash, i) {
        if (index->slots[i] == 0) {
            index->slots[i] = id;
            return;
        }
    }
}

// Make room for one more id.
static int
index_reserve(const _PyTraceIntern *intern, _PyTraceIndex *index,
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

    _PyTraceIndex old = *index;
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
index_free(const PyMemAllocatorEx *allocator, _PyTraceIndex *index)
{
    if (index->slots != NULL) {
        allocator->free(allocator->ctx, index->slots);
    }
    *index = (_PyTraceIndex){0};
}

static size_t
index_memory(const _PyTraceIndex *index)
{
    return index->slots == NULL ? 0 : (index->mask + 1) * sizeof(uint32_t);
}


/* --- Filenames ---------------------------------------------------------- */

static inline _PyTraceFilename *
filename_item(const _PyTraceIntern *intern, uint32_t id)
{
    assert(1 <= id && id <= intern->filenames.length);
    return (_PyTraceFilename *)intern->filenames.items + (id - 1);
}

static uint64_t
filename_hash(const _PyTraceIntern *intern, uint32_t id)
{
    return (uint64_t)filename_item(intern, id)->hash;
}

static inline const char *
text_at(const _PyTraceIntern *intern, size_t offset)
{
    // There is no array at all if all filenames are empty.
    const char *text = intern->text.items;
    return text != NULL ? text + offset : NULL;
}

static int
add_filename(_PyTraceIntern *intern, const _PyTraceFilename *name,
             const void *text)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    // Code points are aligned by their size, which is 1, 2 or 4.
    size_t offset = _Py_SIZE_ROUND_UP(intern->text.length, 4);
    size_t size = name->length * (size_t)name->kind;
    if (intern->filenames.length >= UINT32_MAX - 1
        || array_reserve(allocator, &intern->text, offset, size, 1) < 0
        || array_reserve(allocator, &intern->filenames,
                         intern->filenames.length, 1,
                         sizeof(_PyTraceFilename)) < 0)
    {
        return -1;
    }
    if (size > 0) {
        // There may be no array at all for an empty filename.
        memcpy((char *)intern->text.items + offset, text, size);
        intern->text.length = offset + size;
    }

    intern->filenames.length++;
    _PyTraceFilename *item =
        filename_item(intern, (uint32_t)intern->filenames.length);
    *item = *name;
    item->offset = size > 0 ? offset : 0;
    return 0;
}

// 0 if it is not there.
static uint32_t
find_filename(const _PyTraceIntern *intern, const _PyTraceFilename *name,
              const void *text)
{
    const _PyTraceIndex *index = &intern->filename_index;
    size_t size = name->length * (size_t)name->kind;
    if (index->slots == NULL) {
        return 0;
    }
    INDEX_PROBE(index, name->hash, i) {
        uint32_t id = index->slots[i];
        if (id == 0) {
            return 0;
        }
        const _PyTraceFilename *item = filename_item(intern, id);
        if (item->hash == name->hash
            && item->kind == name->kind
            && item->length == name->length
            && (size == 0
                || memcmp(text_at(intern, item->offset), text, size) == 0))
        {
            return id;
        }
    }
}

int
_PyTraceIntern_Filename(_PyTraceIntern *intern, const _PyTraceFilename *name,
                        const void *text, uint32_t *id)
{
    *id = find_filename(intern, name, text);
    if (*id != 0) {
        return 0;
    }
    _PyTraceIndex *index = &intern->filename_index;
    if (index_reserve(intern, index, filename_hash) < 0
        || add_filename(intern, name, text) < 0)
    {
        return -1;
    }
    *id = (uint32_t)intern->filenames.length;
    index_put(index, name->hash, *id);
    index->used++;
    return 0;
}

const _PyTraceFilename *
_PyTraceIntern_GetFilename(const _PyTraceIntern *intern, uint32_t id,
                           const void **text)
{
    if (id == 0) {
        return NULL;
    }
    const _PyTraceFilename *item = filename_item(intern, id);
    *text = text_at(intern, item->offset);
    return item;
}


/* --- Tracebacks --------------------------------------------------------- */

static inline _PyTraceback *
traceback_item(const _PyTraceIntern *intern, _PyTraceback_Id id)
{
    assert(id > _PyTraceback_UNKNOWN);
    assert(id - _PyTraceback_UNKNOWN <= intern->tracebacks.length);
    return (_PyTraceback *)intern->tracebacks.items
           + (id - _PyTraceback_UNKNOWN - 1);
}

static uint64_t
traceback_hash(const _PyTraceIntern *intern, uint32_t id)
{
    return traceback_item(intern, id)->hash;
}

static inline _PyTraceFrame *
frame_at(const _PyTraceIntern *intern, size_t i)
{
    return (_PyTraceFrame *)intern->frames.items + i;
}

static uint32_t
hash_frames(const _PyTraceFrame *frames, size_t nframe, size_t total_nframe)
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

void
_PyTraceIntern_BeginTraceback(_PyTraceIntern *intern)
{
    intern->pending = 0;
}

int
_PyTraceIntern_AddFrame(_PyTraceIntern *intern, _PyTraceFrame frame)
{
    size_t i = intern->frames.length + intern->pending;
    if (array_reserve(intern->allocator, &intern->frames, i, 1,
                      sizeof(_PyTraceFrame)) < 0)
    {
        return -1;
    }
    *frame_at(intern, i) = frame;
    intern->pending++;
    return 0;
}

int
_PyTraceIntern_AddFramesOf(_PyTraceIntern *intern, _PyTraceback_Id id,
                           size_t max_nframe)
{
    assert(id > _PyTraceback_UNKNOWN);
    size_t n = Py_MIN(traceback_item(intern, id)->nframe, max_nframe);
    size_t i = intern->frames.length + intern->pending;
    if (array_reserve(intern->allocator, &intern->frames, i, n,
                      sizeof(_PyTraceFrame)) < 0)
    {
        return -1;
    }
    memcpy(frame_at(intern, i),
           frame_at(intern, traceback_item(intern, id)->first),
           n * sizeof(_PyTraceFrame));
    intern->pending += n;
    return 0;
}

// One that is made of the pending frames; _PyTraceback_NONE if there is none.
static _PyTraceback_Id
find_pending(const _PyTraceIntern *intern, const _PyTraceback *traceback)
{
    const _PyTraceIndex *index = &intern->traceback_index;
    if (index->slots == NULL) {
        return _PyTraceback_NONE;
    }
    INDEX_PROBE(index, traceback->hash, i) {
        _PyTraceback_Id id = index->slots[i];
        if (id == _PyTraceback_NONE) {
            return id;
        }
        const _PyTraceback *item = traceback_item(intern, id);
        if (item->hash == traceback->hash
            && item->nframe == traceback->nframe
            && item->total_nframe == traceback->total_nframe
            && memcmp(frame_at(intern, item->first),
                      frame_at(intern, traceback->first),
                      item->nframe * sizeof(_PyTraceFrame)) == 0)
        {
            return id;
        }
    }
}

// Make the pending frames a traceback of their own.
static int
add_pending(_PyTraceIntern *intern, const _PyTraceback *traceback)
{
    if (intern->tracebacks.length >= UINT32_MAX - 2
        || array_reserve(intern->allocator, &intern->tracebacks,
                         intern->tracebacks.length, 1,
                         sizeof(_PyTraceback)) < 0)
    {
        return -1;
    }
    _PyTraceback *items = intern->tracebacks.items;
    items[intern->tracebacks.length++] = *traceback;
    intern->frames.length += intern->pending;
    return 0;
}

int
_PyTraceIntern_EndTraceback(_PyTraceIntern *intern, size_t total_nframe,
                            _PyTraceback_Id *id)
{
    size_t nframe = intern->pending;
    assert(nframe <= total_nframe && nframe <= UINT16_MAX);
    if (nframe == 0) {
        *id = _PyTraceback_UNKNOWN;
        return 0;
    }
    total_nframe = Py_MIN(total_nframe, UINT16_MAX);
    _PyTraceback traceback = {
        .first = intern->frames.length,
        .hash = hash_frames(frame_at(intern, intern->frames.length),
                            nframe, total_nframe),
        .nframe = (uint16_t)nframe,
        .total_nframe = (uint16_t)total_nframe,
    };
    *id = find_pending(intern, &traceback);
    if (*id != _PyTraceback_NONE) {
        return 0;
    }

    _PyTraceIndex *index = &intern->traceback_index;
    if (index_reserve(intern, index, traceback_hash) < 0
        || add_pending(intern, &traceback) < 0)
    {
        return -1;
    }
    *id = (uint32_t)intern->tracebacks.length + _PyTraceback_UNKNOWN;
    index_put(index, traceback.hash, *id);
    index->used++;
    return 0;
}

const _PyTraceback *
_PyTraceIntern_GetTraceback(const _PyTraceIntern *intern, _PyTraceback_Id id,
                            const _PyTraceFrame **frames)
{
    static const _PyTraceFrame unknown_frame = {0, 0};
    static const _PyTraceback unknown = {.nframe = 1, .total_nframe = 1};

    assert(id != _PyTraceback_NONE);
    bool is_known = id != _PyTraceback_UNKNOWN;
    const _PyTraceback *item = is_known ? traceback_item(intern, id)
                                        : &unknown;
    if (frames != NULL) {
        *frames = is_known ? frame_at(intern, item->first) : &unknown_frame;
    }
    return item;
}


/* --- The whole ---------------------------------------------------------- */

void
_PyTraceIntern_Init(_PyTraceIntern *intern, const PyMemAllocatorEx *allocator)
{
    *intern = (_PyTraceIntern){.allocator = allocator};
}

void
_PyTraceIntern_Clear(_PyTraceIntern *intern)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    array_free(allocator, &intern->filenames);
    array_free(allocator, &intern->text);
    array_free(allocator, &intern->tracebacks);
    array_free(allocator, &intern->frames);
    index_free(allocator, &intern->filename_index);
    index_free(allocator, &intern->traceback_index);
    intern->pending = 0;
}

int
_PyTraceIntern_Copy(const _PyTraceIntern *intern, _PyTraceIntern *copy)
{
    const PyMemAllocatorEx *allocator = intern->allocator;
    _PyTraceIntern_Init(copy, allocator);
    if (array_copy(allocator, &intern->filenames, &copy->filenames,
                   sizeof(_PyTraceFilename)) < 0
        || array_copy(allocator, &intern->text, &copy->text, 1) < 0
        || array_copy(allocator, &intern->tracebacks, &copy->tracebacks,
                      sizeof(_PyTraceback)) < 0
        || array_copy(allocator, &intern->frames, &copy->frames,
                      sizeof(_PyTraceFrame)) < 0)
    {
        _PyTraceIntern_Clear(copy);
        return -1;
    }
    return 0;
}

int
_PyTraceIntern_CopyTraceback(const _PyTraceIntern *intern, _PyTraceback_Id id,
                             _PyTraceIntern *copy, _PyTraceback_Id *copy_id)
{
    if (id == _PyTraceback_UNKNOWN) {
        *copy_id = id;
        return 0;
    }
    const _PyTraceFrame *frames;
    const _PyTraceback *traceback =
        _PyTraceIntern_GetTraceback(intern, id, &frames);
    _PyTraceIntern_BeginTraceback(copy);
    for (size_t i = 0; i < traceback->nframe; i++) {
        _PyTraceFrame frame = frames[i];
        const void *text;
        const _PyTraceFilename *name =
            _PyTraceIntern_GetFilename(intern, frame.filename, &text);
        if (name != NULL
            && _PyTraceIntern_Filename(copy, name, text, &frame.filename) < 0)
        {
            return -1;
        }
        if (_PyTraceIntern_AddFrame(copy, frame) < 0) {
            return -1;
        }
    }
    return _PyTraceIntern_EndTraceback(copy, traceback->total_nframe, copy_id);
}

size_t
_PyTraceIntern_Memory(const _PyTraceIntern *intern)
{
    return intern->filenames.capacity * sizeof(_PyTraceFilename)
           + intern->text.capacity
           + intern->tracebacks.capacity * sizeof(_PyTraceback)
           + intern->frames.capacity * sizeof(_PyTraceFrame)
           + index_memory(&intern->filename_index)
           + index_memory(&intern->traceback_index);
}


/* --- Validity ----------------------------------------------------------- */

static bool
array_is_valid(const _PyTraceArray *array)
{
    return array->length <= array->capacity
           && (array->items != NULL) == (array->capacity > 0);
}

// Are in it just the ids from `first` on, `count` of them?  That each is where
// a probe ends is found out by looking it up.
static bool
index_is_valid(const _PyTraceIndex *index, uint32_t first, size_t count)
{
    if (index->slots == NULL) {
        return index->mask == 0 && index->used == 0;
    }
    size_t used = 0;
    for (size_t i = 0; i <= index->mask; i++) {
        uint32_t id = index->slots[i];
        if (id != 0) {
            if (id < first || id - first >= count) {
                return false;
            }
            used++;
        }
    }
    // Room is left, or a probe might not end.
    return used == index->used && used == count
           && (index->mask & (index->mask + 1)) == 0
           && used <= (index->mask + 1) / 2;
}

static bool
filenames_are_valid(const _PyTraceIntern *intern)
{
    const _PyTraceIndex *index = &intern->filename_index;
    size_t nfilename = intern->filenames.length;
    if (!index_is_valid(index, 1, nfilename)) {
        return false;
    }
    size_t end = 0;     // of the text of those before
    for (uint32_t id = 1; id <= nfilename; id++) {
        const _PyTraceFilename *item = filename_item(intern, id);
        if ((item->kind != 1 && item->kind != 2 && item->kind != 4)
            || item->offset % (size_t)item->kind != 0)
        {
            return false;
        }
        if (item->length > 0) {
            if (item->offset < end || item->offset > intern->text.length
                || item->length > ((intern->text.length - item->offset)
                                   / (size_t)item->kind))
            {
                return false;
            }
            end = item->offset + item->length * (size_t)item->kind;
        }
        if (index->slots != NULL
            && find_filename(intern, item,
                             text_at(intern, item->offset)) != id)
        {
            return false;
        }
    }
    return end == intern->text.length;
}

static bool
frames_are_valid(const _PyTraceIntern *intern, const _PyTraceback *item)
{
    const _PyTraceFrame *frames = frame_at(intern, item->first);
    for (size_t i = 0; i < item->nframe; i++) {
        if (frames[i].filename > intern->filenames.length) {
            return false;
        }
    }
    return hash_frames(frames, item->nframe, item->total_nframe) == item->hash;
}

static bool
tracebacks_are_valid(const _PyTraceIntern *intern)
{
    const uint32_t first_id = _PyTraceback_UNKNOWN + 1;
    const _PyTraceIndex *index = &intern->traceback_index;
    size_t ntraceback = intern->tracebacks.length;
    if (!index_is_valid(index, first_id, ntraceback)) {
        return false;
    }
    size_t end = 0;     // of the frames of those before
    for (size_t i = 0; i < ntraceback; i++) {
        _PyTraceback_Id id = first_id + (_PyTraceback_Id)i;
        const _PyTraceback *item = traceback_item(intern, id);
        if (item->first != end
            || item->nframe == 0 || item->nframe > item->total_nframe
            || item->nframe > intern->frames.length - end
            || !frames_are_valid(intern, item)
            || (index->slots != NULL && find_pending(intern, item) != id))
        {
            return false;
        }
        end += item->nframe;
    }
    return end == intern->frames.length;
}

bool
_PyTraceIntern_IsValid(const _PyTraceIntern *intern)
{
    return array_is_valid(&intern->filenames)
           && array_is_valid(&intern->text)
           && array_is_valid(&intern->tracebacks)
           && array_is_valid(&intern->frames)
           && filenames_are_valid(intern)
           && tracebacks_are_valid(intern);
}
