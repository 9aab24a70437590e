// Fuzz target: the interned filenames and tracebacks
// (Python/tracemalloc_intern.c), compared with arrays that are searched from
// the start.

#include "fuzz.h"

#define MAX_NAMES 1024
#define MAX_NAME_LENGTH 256       // in code points
#define MAX_TEXT (1 << 17)        // in bytes
#define MAX_TRACEBACKS 2048
#define MAX_FRAMES (1 << 17)
#define WORK 20000                // items checked after every operation

typedef struct {
    int kind;
    size_t length;
    size_t offset;                // in the text of the model
    Py_uhash_t hash;
} model_name;

typedef struct {
    size_t nframe;
    size_t total_nframe;
    size_t first;                 // in the frames of the model
} model_traceback;

// An intern and what should be in it.  Name i has the id i + 1, traceback i
// the id i + 2.
typedef struct {
    _PyTraceIntern intern;
    size_t nname;
    size_t text_size;
    size_t ntraceback;
    size_t nframe;
    model_name names[MAX_NAMES];
    unsigned char text[MAX_TEXT];
    model_traceback tracebacks[MAX_TRACEBACKS];
    _PyTraceFrame frames[MAX_FRAMES];
} fuzz_set;

typedef struct {
    fuzz_input input;
    fuzz_heap heap;
    fuzz_set main;
    fuzz_set copy;                // by _PyTraceIntern_Copy()
    fuzz_set single;              // by _PyTraceIntern_CopyTraceback()
    bool building;                // is a traceback begun in `main`?
    _PyTraceFrame pending[UINT16_MAX];
    size_t npending;
    Py_uhash_t hash_mask;
    Py_uhash_t hash_flip;
    size_t work;
} fuzz_state;

static fuzz_state state;


/* --- The model ---------------------------------------------------------- */

static void
set_init(fuzz_set *set, const PyMemAllocatorEx *allocator)
{
    _PyTraceIntern_Init(&set->intern, allocator);
    set->nname = set->text_size = set->ntraceback = set->nframe = 0;
}

static void
set_clear(fuzz_set *set)
{
    _PyTraceIntern_Clear(&set->intern);
    set->nname = set->text_size = set->ntraceback = set->nframe = 0;
    CHECK(_PyTraceIntern_Memory(&set->intern) == 0,
          "memory is left after clearing");
}

static size_t
name_size(const model_name *name)
{
    return name->length * (size_t)name->kind;
}

// 0 if it is not there.
static uint32_t
model_find_name(const fuzz_set *set, const model_name *name, const void *text)
{
    for (size_t i = 0; i < set->nname; i++) {
        const model_name *item = &set->names[i];
        if (item->kind == name->kind && item->length == name->length
            && memcmp(set->text + item->offset, text, name_size(name)) == 0)
        {
            return (uint32_t)i + 1;
        }
    }
    return 0;
}

static uint32_t
model_add_name(fuzz_set *set, const model_name *name, const void *text)
{
    model_name *item = &set->names[set->nname++];
    *item = *name;
    item->offset = set->text_size;
    memcpy(set->text + item->offset, text, name_size(name));
    set->text_size += name_size(name);
    return (uint32_t)set->nname;
}

static bool
model_has_room_for_name(const fuzz_set *set)
{
    return set->nname < MAX_NAMES
           && set->text_size + MAX_NAME_LENGTH * 4 <= MAX_TEXT;
}

// _PyTraceback_NONE if it is not there.
static _PyTraceback_Id
model_find_traceback(const fuzz_set *set, const _PyTraceFrame *frames,
                     size_t nframe, size_t total_nframe)
{
    if (nframe == 0) {
        return _PyTraceback_UNKNOWN;
    }
    for (size_t i = 0; i < set->ntraceback; i++) {
        const model_traceback *item = &set->tracebacks[i];
        if (item->nframe == nframe && item->total_nframe == total_nframe
            && memcmp(set->frames + item->first, frames,
                      nframe * sizeof(*frames)) == 0)
        {
            return _PyTraceback_UNKNOWN + 1 + (_PyTraceback_Id)i;
        }
    }
    return _PyTraceback_NONE;
}

static _PyTraceback_Id
model_add_traceback(fuzz_set *set, const _PyTraceFrame *frames, size_t nframe,
                    size_t total_nframe)
{
    set->tracebacks[set->ntraceback++] =
        (model_traceback){nframe, total_nframe, set->nframe};
    memcpy(set->frames + set->nframe, frames, nframe * sizeof(*frames));
    set->nframe += nframe;
    return _PyTraceback_UNKNOWN + (_PyTraceback_Id)set->ntraceback;
}

static bool
model_has_room_for_traceback(const fuzz_set *set, size_t nframe)
{
    return set->ntraceback < MAX_TRACEBACKS
           && set->nframe + nframe <= MAX_FRAMES;
}


/* --- Checks ------------------------------------------------------------- */

static void
check_counts(const fuzz_state *f)
{
    const fuzz_set *sets[] = {&f->main, &f->copy, &f->single};
    size_t memory = 0;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(sets); i++) {
        const _PyTraceIntern *intern = &sets[i]->intern;
        memory += _PyTraceIntern_Memory(intern);
        CHECK(intern->filenames.length == sets[i]->nname,
              "%zu filenames, not %zu",
              intern->filenames.length, sets[i]->nname);
        CHECK(intern->tracebacks.length == sets[i]->ntraceback,
              "%zu tracebacks, not %zu",
              intern->tracebacks.length, sets[i]->ntraceback);
        CHECK(intern->frames.length == sets[i]->nframe,
              "%zu frames, not %zu", intern->frames.length, sets[i]->nframe);
    }
    CHECK(memory == f->heap.bytes, "%zu bytes are held, but %zu reported",
          f->heap.bytes, memory);
}

static void
check_name(const fuzz_set *set, size_t i)
{
    const model_name *name = &set->names[i];
    const void *text = NULL;
    const _PyTraceFilename *item =
        _PyTraceIntern_GetFilename(&set->intern, (uint32_t)i + 1, &text);
    CHECK(item != NULL && item->kind == name->kind
          && item->length == name->length && item->hash == name->hash,
          "filename %zu is wrong", i);
    if (item->length > 0) {
        CHECK((uintptr_t)text % (size_t)item->kind == 0,
              "the text of filename %zu is not aligned", i);
        CHECK(memcmp(text, set->text + name->offset, name_size(name)) == 0,
              "the text of filename %zu is wrong", i);
    }
}

static void
check_traceback(const fuzz_set *set, size_t i)
{
    const model_traceback *traceback = &set->tracebacks[i];
    const _PyTraceFrame *frames;
    const _PyTraceback *item = _PyTraceIntern_GetTraceback(
        &set->intern, _PyTraceback_UNKNOWN + 1 + (_PyTraceback_Id)i, &frames);
    CHECK(item->nframe == traceback->nframe
          && item->total_nframe == traceback->total_nframe,
          "traceback %zu has %d of %d frames, not %zu of %zu", i,
          item->nframe, item->total_nframe,
          traceback->nframe, traceback->total_nframe);
    CHECK(memcmp(frames, set->frames + traceback->first,
                 item->nframe * sizeof(*frames)) == 0,
          "the frames of traceback %zu are wrong", i);
}

static void
check_fixed_ids(const fuzz_set *set)
{
    const void *text;
    CHECK(_PyTraceIntern_GetFilename(&set->intern, 0, &text) == NULL,
          "filename 0 is stored");
    const _PyTraceFrame *frames;
    const _PyTraceback *item = _PyTraceIntern_GetTraceback(
        &set->intern, _PyTraceback_UNKNOWN, &frames);
    CHECK(item->nframe == 1 && item->total_nframe == 1
          && frames[0].filename == 0 && frames[0].lineno == 0,
          "the unknown traceback is wrong");
    CHECK(_PyTraceIntern_GetTraceback(
            &set->intern, _PyTraceback_UNKNOWN, NULL) == item,
          "the unknown traceback is not always the same");
}

static void
check_set(const fuzz_set *set)
{
    CHECK(_PyTraceIntern_IsValid(&set->intern), "the intern is not valid");
    check_fixed_ids(set);
    for (size_t i = 0; i < set->nname; i++) {
        check_name(set, i);
    }
    for (size_t i = 0; i < set->ntraceback; i++) {
        check_traceback(set, i);
    }
}

static void
check_all(const fuzz_state *f)
{
    size_t calls = f->heap.calls;
    check_counts(f);
    check_set(&f->main);
    check_set(&f->copy);
    check_set(&f->single);
    CHECK(f->heap.calls == calls, "looking allocates memory");
}

// Does a function return -1 just if it had no memory?
static void
check_result(const fuzz_state *f, int result, size_t failures)
{
    CHECK((result < 0) == (f->heap.failures > failures),
          "%zu allocations failed, and %d was returned",
          f->heap.failures - failures, result);
}


/* --- Filenames ---------------------------------------------------------- */

// Often the same for different texts, and for one text in several kinds.
static Py_uhash_t
hash_text(const fuzz_state *f, const uint32_t *chars, size_t length)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (size_t i = 0; i < length; i++) {
        hash = (hash ^ chars[i]) * UINT64_C(1099511628211);
    }
    return (Py_uhash_t)((hash ^ hash >> 32) & f->hash_mask) ^ f->hash_flip;
}

static void
op_filename(fuzz_state *f, int kind, const uint32_t *chars, size_t length)
{
    union {
        uint8_t one[MAX_NAME_LENGTH];
        uint16_t two[MAX_NAME_LENGTH];
        uint32_t four[MAX_NAME_LENGTH];
    } text;
    for (size_t i = 0; i < length; i++) {
        switch (kind) {
        case 1:
            text.one[i] = (uint8_t)chars[i];
            break;
        case 2:
            text.two[i] = (uint16_t)chars[i];
            break;
        default:
            text.four[i] = chars[i];
        }
    }
    fuzz_set *set = &f->main;
    model_name name = {
        .kind = kind,
        .length = length,
        .hash = hash_text(f, chars, length),
    };
    uint32_t expected = model_find_name(set, &name, &text);
    if (expected == 0 && !model_has_room_for_name(set)) {
        return;
    }
    _PyTraceFilename argument = {
        .kind = kind, .length = length, .hash = name.hash,
        .offset = SIZE_MAX,       // not to be used
    };
    size_t calls = f->heap.calls, failures = f->heap.failures;
    uint32_t id;
    int result = _PyTraceIntern_Filename(&set->intern, &argument, &text, &id);
    check_result(f, result, failures);
    if (expected != 0) {
        CHECK(result == 0 && f->heap.calls == calls,
              "to find a filename allocates memory");
    }
    else if (result == 0) {
        expected = model_add_name(set, &name, &text);
    }
    CHECK(result < 0 || id == expected, "filename %u is %u", expected, id);
}

// `count` filenames, which differ in their first code point.
static void
do_filenames(fuzz_state *f, unsigned int flags, size_t count)
{
    static const int kinds[] = {1, 2, 4, 1};
    fuzz_input *input = &f->input;
    uint32_t chars[MAX_NAME_LENGTH];
    int kind = kinds[flags & 3];
    size_t length = next_byte(input);
    uint32_t base = next_byte(input);
    uint32_t mask = kind == 4 ? 0x10FFFF : kind == 2 ? 0xFFFF : 0xFF;
    if (flags & 4) {
        // A multiple for the wide kinds.
        base *= 0x101;
    }
    for (size_t i = 0; i < Py_MAX(length, 1); i++) {
        chars[i] = (base + (uint32_t)i) & mask;
    }
    for (size_t i = 0; i < count; i++) {
        op_filename(f, kind, chars, length);
        chars[0] = (chars[0] + 1) & mask;
    }
}


/* --- Tracebacks --------------------------------------------------------- */

static void
op_begin(fuzz_state *f)
{
    _PyTraceIntern_BeginTraceback(&f->main.intern);
    f->building = true;
    f->npending = 0;
}

static void
op_add_frame(fuzz_state *f, uint32_t filename, unsigned int lineno)
{
    if (!f->building || f->npending == UINT16_MAX) {
        return;
    }
    _PyTraceFrame frame = {
        (uint32_t)(filename % (f->main.nname + 1)), lineno};
    size_t failures = f->heap.failures;
    int result = _PyTraceIntern_AddFrame(&f->main.intern, frame);
    check_result(f, result, failures);
    if (result < 0) {
        f->building = false;
    }
    else {
        f->pending[f->npending++] = frame;
    }
}

static void
op_add_frames_of(fuzz_state *f, size_t i, size_t max_nframe)
{
    fuzz_set *set = &f->main;
    if (!f->building || set->ntraceback == 0) {
        return;
    }
    i %= set->ntraceback;
    const model_traceback *item = &set->tracebacks[i];
    size_t n = Py_MIN(item->nframe, max_nframe);
    if (f->npending + n > UINT16_MAX) {
        return;
    }
    size_t failures = f->heap.failures;
    int result = _PyTraceIntern_AddFramesOf(
        &set->intern, _PyTraceback_UNKNOWN + 1 + (_PyTraceback_Id)i,
        max_nframe);
    check_result(f, result, failures);
    if (result < 0) {
        f->building = false;
    }
    else {
        memcpy(f->pending + f->npending, set->frames + item->first,
               n * sizeof(_PyTraceFrame));
        f->npending += n;
    }
}

static void
op_end(fuzz_state *f, size_t total_nframe)
{
    fuzz_set *set = &f->main;
    size_t nframe = f->npending;
    if (!f->building || !model_has_room_for_traceback(set, nframe)) {
        return;
    }
    f->building = false;
    size_t kept = Py_MIN(total_nframe, UINT16_MAX);
    _PyTraceback_Id expected =
        model_find_traceback(set, f->pending, nframe, kept);
    size_t calls = f->heap.calls, failures = f->heap.failures;
    _PyTraceback_Id id;
    int result =
        _PyTraceIntern_EndTraceback(&set->intern, total_nframe, &id);
    check_result(f, result, failures);
    if (expected != _PyTraceback_NONE) {
        CHECK(result == 0 && f->heap.calls == calls,
              "to find a traceback allocates memory");
    }
    else if (result == 0) {
        expected = model_add_traceback(set, f->pending, nframe, kept);
    }
    CHECK(result < 0 || id == expected, "traceback %u is %u", expected, id);
}

// The number of frames there were.
static size_t
next_total(fuzz_state *f)
{
    unsigned int byte = next_byte(&f->input);
    switch (byte) {
    case 255:
        return SIZE_MAX;
    case 254:
        return UINT16_MAX + 1;
    case 253:
        return UINT16_MAX;
    default:
        return f->npending + byte % 16;
    }
}

static void
do_frames(fuzz_state *f, size_t count)
{
    unsigned int filename = next_byte(&f->input);
    unsigned int lineno = next_byte(&f->input);
    if (lineno >= 240) {
        lineno += UINT_MAX - 255;
    }
    for (size_t i = 0; i < count; i++) {
        op_add_frame(f, filename, lineno + (unsigned int)i);
    }
}

// `count` tracebacks that continue one another, or one of them.
static void
do_callers(fuzz_state *f, unsigned int flags, size_t count)
{
    fuzz_input *input = &f->input;
    size_t i = next_byte(input);
    unsigned int lineno = next_byte(input);
    size_t max_nframe = next_byte(input);
    fuzz_input total = *input;
    for (size_t j = 0; j < count; j++) {
        *input = total;
        op_begin(f);
        op_add_frame(f, (uint32_t)i, lineno + (unsigned int)j);
        if (flags & 4 && f->main.ntraceback > 0) {
            i = f->main.ntraceback - 1;
        }
        op_add_frames_of(f, i, flags & 2 ? SIZE_MAX : max_nframe);
        op_end(f, Py_MAX(next_total(f), f->npending));
    }
}

// `count` tracebacks, which differ in one frame.
static void
do_tracebacks(fuzz_state *f, unsigned int flags, size_t count)
{
    unsigned int filename = next_byte(&f->input);
    unsigned int lineno = next_byte(&f->input);
    unsigned int nframe = flags & 3;
    for (size_t i = 0; i < count; i++) {
        op_begin(f);
        op_add_frame(f, filename, lineno + (unsigned int)i);
        for (unsigned int j = 0; j < nframe; j++) {
            op_add_frame(f, filename + j, lineno);
        }
        op_end(f, f->npending + (flags >> 2 & 1));
    }
}


/* --- Tracebacks whose hashes are equal ---------------------------------- */

#define SAME_LINES (1 << 18)
#define TRIES 16

typedef struct {
    uint32_t hash;
    unsigned int lineno;
    size_t total_nframe;
} hashed;

static hashed hashes[SAME_LINES];
static size_t nhash;
static hashed pairs[32];
static size_t npair;              // twice as many elements

static int
compare_hashes(const void *a, const void *b)
{
    uint32_t x = ((const hashed *)a)->hash, y = ((const hashed *)b)->hash;
    return (x > y) - (x < y);
}

static void
note_hash(_PyTraceIntern *intern, unsigned int lineno, size_t total_nframe)
{
    _PyTraceback_Id id;
    _PyTraceIntern_BeginTraceback(intern);
    if (_PyTraceIntern_AddFrame(intern, (_PyTraceFrame){0, lineno}) < 0
        || _PyTraceIntern_EndTraceback(intern, total_nframe, &id) < 0)
    {
        CHECK(false, "no memory, though no allocation failed");
    }
    hashes[nhash++] = (hashed){
        _PyTraceIntern_GetTraceback(intern, id, NULL)->hash,
        lineno, total_nframe};
}

// Keep the pairs that are in `hashes`; were there any?
static bool
keep_pairs(size_t most)
{
    size_t before = npair;
    qsort(hashes, nhash, sizeof(hashes[0]), compare_hashes);
    for (size_t i = 1; i < nhash && npair < most; i++) {
        if (hashes[i - 1].hash == hashes[i].hash) {
            pairs[2 * npair] = hashes[i - 1];
            pairs[2 * npair + 1] = hashes[i];
            npair++;
        }
    }
    nhash = 0;
    return npair > before;
}

// The hash has 32 bits and the birthday paradox helps: first one frame that
// differs, then frames that do not and another total.
static void
find_pairs(void)
{
    const size_t most = Py_ARRAY_LENGTH(pairs) / 2;
    fuzz_heap *heap = &state.heap;
    _PyTraceIntern intern;
    heap_init(heap);
    _PyTraceIntern_Init(&intern, &heap->allocator);
    for (unsigned int lineno = 0; lineno < SAME_LINES; lineno++) {
        note_hash(&intern, lineno, 1);
    }
    (void)keep_pairs(most / 2);
    bool found = false;
    for (unsigned int lineno = 1; !found && lineno <= TRIES; lineno++) {
        for (size_t total = 1; total <= UINT16_MAX; total++) {
            note_hash(&intern, lineno, total);
        }
        found = keep_pairs(most);
    }
    _PyTraceIntern_Clear(&intern);
}

static void
do_pair(fuzz_state *f)
{
    size_t i = next_byte(&f->input);
    for (size_t j = 0; npair > 0 && j < 2; j++) {
        const hashed *item = &pairs[2 * (i % npair) + j];
        op_begin(f);
        op_add_frame(f, 0, item->lineno);
        op_end(f, item->total_nframe);
    }
}


/* --- Copies ------------------------------------------------------------- */

static void
op_copy(fuzz_state *f)
{
    const fuzz_set *set = &f->main;
    fuzz_set *copy = &f->copy;
    set_clear(copy);
    size_t bytes = f->heap.bytes, failures = f->heap.failures;
    memset(&copy->intern, 0xDB, sizeof(copy->intern));
    int result = _PyTraceIntern_Copy(&set->intern, &copy->intern);
    check_result(f, result, failures);
    if (result < 0) {
        CHECK(f->heap.bytes == bytes
              && _PyTraceIntern_Memory(&copy->intern) == 0,
              "something is left of a copy that failed");
        return;
    }
    copy->nname = set->nname;
    copy->text_size = set->text_size;
    copy->ntraceback = set->ntraceback;
    copy->nframe = set->nframe;
    memcpy(copy->names, set->names, set->nname * sizeof(set->names[0]));
    memcpy(copy->text, set->text, set->text_size);
    memcpy(copy->tracebacks, set->tracebacks,
           set->ntraceback * sizeof(set->tracebacks[0]));
    memcpy(copy->frames, set->frames, set->nframe * sizeof(set->frames[0]));
}

// Filename of `set` to that of f->single.
static uint32_t
model_copy_name(fuzz_state *f, const fuzz_set *set, uint32_t id)
{
    if (id == 0) {
        return 0;
    }
    const model_name *name = &set->names[id - 1];
    const unsigned char *text = set->text + name->offset;
    uint32_t copy_id = model_find_name(&f->single, name, text);
    return copy_id != 0 ? copy_id
                        : model_add_name(&f->single, name, text);
}

// Without memory some of the filenames have been copied.
static void
model_drop_names(fuzz_set *set, size_t nname)
{
    CHECK(nname <= set->nname, "more filenames were copied than there are");
    while (set->nname > nname) {
        set->text_size = set->names[--set->nname].offset;
    }
}

static void
op_copy_traceback(fuzz_state *f, const fuzz_set *set, size_t i)
{
    // Traceback i - 1, or the unknown one.
    i %= set->ntraceback + 1;
    size_t nframe = i > 0 ? set->tracebacks[i - 1].nframe : 0;
    fuzz_set *copy = &f->single;
    if (!model_has_room_for_traceback(copy, nframe)
        || set->nname + copy->nname > MAX_NAMES
        || set->text_size + copy->text_size > MAX_TEXT)
    {
        return;
    }
    static _PyTraceFrame frames[UINT16_MAX];
    size_t nname = copy->nname;
    for (size_t j = 0; j < nframe; j++) {
        frames[j] = set->frames[set->tracebacks[i - 1].first + j];
        frames[j].filename = model_copy_name(f, set, frames[j].filename);
    }
    size_t total_nframe = i > 0 ? set->tracebacks[i - 1].total_nframe : 0;
    _PyTraceback_Id expected =
        model_find_traceback(copy, frames, nframe, total_nframe);

    size_t failures = f->heap.failures;
    _PyTraceback_Id id;
    int result = _PyTraceIntern_CopyTraceback(
        &set->intern, _PyTraceback_UNKNOWN + (_PyTraceback_Id)i,
        &copy->intern, &id);
    check_result(f, result, failures);
    if (result < 0) {
        CHECK(copy->intern.filenames.length >= nname, "lost a filename");
        model_drop_names(copy, copy->intern.filenames.length);
        return;
    }
    if (expected == _PyTraceback_NONE) {
        expected = model_add_traceback(copy, frames, nframe, total_nframe);
    }
    CHECK(id == expected, "the copy of a traceback is %u, not %u",
          id, expected);
}


/* --- Input -------------------------------------------------------------- */

static void
op_clear(fuzz_state *f)
{
    set_clear(&f->main);
    f->building = false;
}

static void
do_frames_of(fuzz_state *f, unsigned int flags, size_t count)
{
    size_t i = next_byte(&f->input);
    if (flags & 4) {
        // The last one.
        i = f->main.ntraceback - 1;
    }
    op_add_frames_of(f, i, flags & 8 ? count - 1 : SIZE_MAX);
}

static void
do_copies(fuzz_state *f, unsigned int flags, size_t count)
{
    size_t i = next_byte(&f->input);
    const fuzz_set *set = flags & 4 ? &f->copy : &f->main;
    for (; count > 0; count--) {
        op_copy_traceback(f, set, i++);
    }
}

static void
step(fuzz_state *f)
{
    fuzz_input *input = &f->input;
    fuzz_step what = next_step(input);
    unsigned int flags = what.flags;
    size_t count = what.count;

    switch (what.op) {
    case 0: case 1:
        do_filenames(f, flags, count);
        break;
    case 2:
        do_tracebacks(f, flags, count);
        break;
    case 3:
        do_callers(f, flags, count);
        break;
    case 4:
        op_begin(f);
        break;
    case 5: case 6:
        do_frames(f, count);
        break;
    case 7:
        do_frames_of(f, flags, count);
        break;
    case 8:
        op_end(f, Py_MAX(next_total(f), f->npending));
        break;
    case 9:
        op_copy(f);
        break;
    case 10: case 11:
        do_copies(f, flags, count);
        break;
    case 12:
        do_pair(f);
        break;
    case 13:
        next_failure(input, &f->heap);
        break;
    case 14:
        f->heap.fail_in = 0;
        break;
    default:
        // Rarely, since it undoes what took many bytes.
        if (flags == 7) {
            op_clear(f);
        }
        else if (flags == 6) {
            set_clear(&f->single);
        }
        break;
    }
}

static size_t
set_work(const fuzz_set *set)
{
    return set->nname + set->ntraceback + set->nframe / 4;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const Py_uhash_t masks[] = {0, 1, 7, SIZE_MAX};
    static bool ready;
    fuzz_state *f = &state;
    if (!ready) {
        find_pairs();
        ready = true;
    }
    heap_init(&f->heap);
    f->input = (fuzz_input){data, size};
    set_init(&f->main, &f->heap.allocator);
    set_init(&f->copy, &f->heap.allocator);
    set_init(&f->single, &f->heap.allocator);
    f->building = false;
    f->npending = 0;
    f->work = 0;
    unsigned int byte = next_byte(&f->input);
    f->hash_mask = masks[byte & 3];
    f->hash_flip = byte & 4 ? SIZE_MAX : 0;

    check_all(f);
    for (size_t i = 0; f->input.size > 0; i++) {
        step(f);
        check_counts(f);
        // Long inputs are not to take for ever.
        f->work += 1 + set_work(&f->main) + set_work(&f->copy)
                   + set_work(&f->single);
        if (f->work < WORK || i % 32 == 0) {
            check_all(f);
        }
    }
    check_all(f);
    op_clear(f);
    set_clear(&f->copy);
    set_clear(&f->single);
    CHECK(f->heap.live == 0 && f->heap.bytes == 0, "%zu blocks are leaked",
          f->heap.live);
    return 0;
}
