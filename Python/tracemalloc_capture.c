// From the frames that a thread is executing to the id of a traceback.
//
// Runs inside allocator hooks, on attached and on detached threads, and so
// takes no reference, makes no object and waits for nothing.  That is safe
// because a thread looks at its own frames only: nobody else pops them, each
// frame keeps its code object alive, and the code object its filename and line
// table.
//
// A walk ends at the first frame that is remembered.  It leaves a mark in the
// frames that it remembers (`callers_known`, which is zero in a new activation
// and in a suspended one).  While the mark is there the frame is the same
// activation, so its callers and the places where they wait for it are the
// same as well.  What a thread remembers may be forgotten at any time, but is
// never wrong; it is void when the epoch of the interpreter changes.  It needs
// no lock.
//
//   activations: frame -> callers, version of the code (direct-mapped)
//   nodes:       (callers, instruction) -> node, with a traceback if a trace
//                has used it
//
// "Callers" are what a traceback depends on besides its own instruction: the
// number of frames if one frame is kept, else the node of the caller.  A node
// is a place in the tree of all calls, so equal nodes are equal stacks.  An
// anonymous node is equal to no other: it stands for callers of which some are
// not remembered, or have code without a version.  Nodes are few and forgotten
// when there are too many; only the tracebacks of traces are interned, by
// walking over the frames to be kept.
//
// An instruction is an address together with the version of its code object,
// which no two code objects of an interpreter have in common, whenever they
// live; 0 is no version.
//
// Others push frames without resetting the mark.  While there is an evaluator
// that was set by _PyInterpreterState_SetEvalFrameFunc(), each capture walks
// over all frames, as it does where throw() has put a suspended generator
// among them: nobody has to reset a mark of that when it is taken out again.
// Compiled extension modules push frames of their own, which have no function:
// nothing is remembered of them.

#include "Python.h"
#include "pycore_frame.h"         // _PyFrame_GetFirstComplete()
#include "pycore_interp.h"        // PyInterpreterState.eval_frame
#include "pycore_tracemalloc_shared.h"  // thread_of()
#include "pycore_tstate.h"        // _PyThreadStateImpl

typedef struct _tracemalloc_capture tracemalloc_capture;

// Nodes that a capture has room for: grows by need, so that a thread spends
// from 3 to 330 kilobytes.
#define MIN_NODES 64
#define MAX_NODES 8192
#define GROWTH 2

// Bytes that the captures of an interpreter may take besides as many as its
// slots and tracebacks take.
#define FREE_MEMORY (2 << 20)

// A walk remembers this number of frames, the nearest ones; and of the older
// ones those at a distance of this number times a power of 2: at most 32.  An
// empty capture has room for their nodes.
#define NUM_RECENT 24
#define MAX_REMEMBERED (NUM_RECENT + 32)

typedef struct {
    _PyInterpreterFrame *frame;
    uint32_t callers;
    uint32_t version;             // of the code
} activation;

typedef struct {
    const _Py_CODEUNIT *instr;
    uint32_t version;
    uint32_t callers;
    uint32_t depth;               // frames, with this one
    uint32_t traceback;           // NO_TRACEBACK if not interned
} call_node;

// Belongs to a thread.  One piece of memory, which has all the arrays.
struct _tracemalloc_capture {
    size_t nnodes;
    size_t max_nodes;             // a power of 2
    call_node *nodes;             // the id of a node is its index + 1
    activation *activations;      // max_nodes / 2
    uint32_t *index;              // hash table of node ids: max_nodes * 2
};


/* --- Memory ------------------------------------------------------------- */

static size_t
capture_memory(size_t max_nodes)
{
    return sizeof(tracemalloc_capture)
           + max_nodes * (sizeof(call_node) + 2 * sizeof(uint32_t))
           + max_nodes / 2 * sizeof(activation);
}

static void
forget(tracemalloc_capture *capture)
{
    memset(capture->activations, 0,
           capture->max_nodes / 2 * sizeof(activation));
    memset(capture->index, 0, 2 * capture->max_nodes * sizeof(uint32_t));
    capture->nnodes = 0;
}

static tracemalloc_capture *
new_capture(interp_state *tm, size_t max_nodes)
{
    const PyMemAllocatorEx *allocator = tm->table.allocator;
    size_t size = capture_memory(max_nodes);
    tracemalloc_capture *capture = allocator->calloc(allocator->ctx, 1, size);
    if (capture == NULL) {
        return NULL;
    }
    capture->max_nodes = max_nodes;
    capture->nodes = (call_node *)(capture + 1);
    capture->activations = (activation *)(capture->nodes + max_nodes);
    capture->index = (uint32_t *)(capture->activations + max_nodes / 2);
    _Py_atomic_add_ssize(&tm->capture_memory, (Py_ssize_t)size);
    return capture;
}

static void
free_capture(interp_state *tm, tracemalloc_capture *capture)
{
    size_t size = capture_memory(capture->max_nodes);
    const PyMemAllocatorEx *allocator = tm->table.allocator;
    _Py_atomic_add_ssize(&tm->capture_memory, -(Py_ssize_t)size);
    allocator->free(allocator->ctx, capture);
}

void
_PyTraceMalloc_CaptureFree(PyInterpreterState *interp, thread_state *ts)
{
    llist_remove(&ts->node);
    free_capture(&interp->tracemalloc, ts->capture);
    ts->capture = NULL;
}

// May captures take so many bytes more?  Many threads with deep stacks may
// have few traces.
static bool
is_affordable(interp_state *tm, size_t size)
{
    size += (size_t)_Py_atomic_load_ssize_relaxed(&tm->capture_memory);
    lock_mutex(&tm->mutex);
    size_t limit = FREE_MEMORY + tm->page_memory
                   + (tm->intern != NULL ? tm->intern->memory : 0);
    unlock_mutex(&tm->mutex);
    return size <= limit;
}

// Replace a capture by a larger one, which remembers nothing.  Returns false,
// with nothing changed, if that is too large or there is no memory.
static bool
grow_capture(interp_state *tm, thread_state *ts)
{
    tracemalloc_capture *old = ts->capture;
    size_t max_nodes = old->max_nodes * GROWTH;
    if (max_nodes > MAX_NODES
        || !is_affordable(tm, capture_memory(max_nodes)))
    {
        return false;
    }
    tracemalloc_capture *grown = new_capture(tm, max_nodes);
    if (grown == NULL) {
        return false;
    }
    ts->capture = grown;
    free_capture(tm, old);
    return true;
}


/* --- Nodes -------------------------------------------------------------- */

static call_node *
get_node(tracemalloc_capture *capture, uint32_t id)
{
    assert(1 <= id && id <= capture->nnodes);
    return &capture->nodes[id - 1];
}

// There is room for it.  One that is not indexed is anonymous.
static uint32_t
add_node(tracemalloc_capture *capture, const call_node *node)
{
    assert(capture->nnodes < capture->max_nodes);
    capture->nodes[capture->nnodes++] = *node;
    return (uint32_t)capture->nnodes;
}

static uint32_t
add_anonymous_node(tracemalloc_capture *capture, size_t depth)
{
    return add_node(capture, &(call_node){.depth = (uint32_t)depth});
}

// The node of a frame with these callers.  There is room for it.
static uint32_t
find_node(tracemalloc_capture *capture, _PyInterpreterFrame *frame,
          uint32_t callers, size_t depth)
{
    const _Py_CODEUNIT *instr = frame->instr_ptr;
    uint32_t version = _PyFrame_GetCode(frame)->co_version;
    if (version == 0) {
        return add_anonymous_node(capture, depth);
    }
    size_t size = 2 * capture->max_nodes;
    size_t i = hash_key(instr, (uint64_t)version << 32 | callers, size);
    for (; capture->index[i] != 0; i = (i + 1) & (size - 1)) {
        const call_node *node = get_node(capture, capture->index[i]);
        if (node->instr == instr && node->version == version
            && node->callers == callers)
        {
            return capture->index[i];
        }
    }
    capture->index[i] = add_node(capture, &(call_node){
        .instr = instr, .version = version, .callers = callers,
        .depth = (uint32_t)depth,
    });
    return capture->index[i];
}

// Number of frames that "callers" stand for.
static inline size_t
depth_of(tracemalloc_capture *capture, bool by_depth, uint32_t callers)
{
    if (by_depth || callers == 0) {
        return callers;
    }
    return get_node(capture, callers)->depth;
}


/* --- Activations -------------------------------------------------------- */

static inline bool
is_pushed_by_core(const _PyInterpreterFrame *frame)
{
    return frame->f_funcobj != NULL;
}

static inline activation *
activation_slot(tracemalloc_capture *capture,
                const _PyInterpreterFrame *frame)
{
    return &capture->activations[hash_key(frame, 0, capture->max_nodes / 2)];
}

// What is remembered of a frame, or NULL.
static inline activation *
find_activation(tracemalloc_capture *capture,
                const _PyInterpreterFrame *frame)
{
    if (!frame->callers_known || !is_pushed_by_core(frame)) {
        return NULL;
    }
    activation *found = activation_slot(capture, frame);
    return found->frame == frame ? found : NULL;
}

// Forget the sites of former activations at the place of a frame.
static void
forget_sites(thread_state *ts, const _PyInterpreterFrame *frame)
{
    for (size_t i = 0; i < _PyTraceMalloc_NUM_SITES; i++) {
        if (ts->sites[i].frame == frame) {
            ts->sites[i].frame = NULL;
        }
    }
}

// The sites of a former activation remain if it was of the same code and had
// the same callers.
static void
remember(thread_state *ts, _PyInterpreterFrame *frame, uint32_t callers)
{
    if (!is_pushed_by_core(frame)) {
        return;
    }
    activation *slot = activation_slot(ts->capture, frame);
    uint32_t version = _PyFrame_GetCode(frame)->co_version;
    if (!frame->callers_known
        && (slot->frame != frame || slot->callers != callers
            || slot->version != version || version == 0))
    {
        forget_sites(ts, frame);
    }
    *slot = (activation){frame, callers, version};
    frame->callers_known = 1;
}

// The first complete frame from this one on.  If others are skipped, `*in_c`
// tells whether it waits for C code rather than for a Python function.
static inline _PyInterpreterFrame *
first_complete(_PyInterpreterFrame *frame, bool *in_c)
{
    for (; frame != NULL && _PyFrame_IsIncomplete(frame);
         frame = frame->previous)
    {
        *in_c = frame->owner == FRAME_OWNED_BY_CSTACK;
    }
    return frame;
}

// Is the frame there only because throw() goes on below it?  A frame that
// executes C code mostly has its stack pointer elsewhere; where it has not, as
// under a trace function, the capture walks over all frames without need.
static inline bool
is_suspended(const _PyInterpreterFrame *frame, bool in_c)
{
    return in_c && frame->owner == FRAME_OWNED_BY_GENERATOR
           && frame->stacktop >= 0 && is_pushed_by_core(frame);
}

static size_t
count_frames(_PyInterpreterFrame *frame)
{
    size_t n = 0;
    for (; frame != NULL; n++) {
        frame = _PyFrame_GetFirstComplete(frame->previous);
    }
    return n;
}

// The distance, in frames, of the i-th frame that a walk remembers.
static inline size_t
distance_of(size_t i)
{
    return i < NUM_RECENT ? i : (size_t)NUM_RECENT << (i - NUM_RECENT);
}

// Remember n frames of a walk that has ended at this distance: at a frame that
// is known, or at the end of the stack.  There is room for n nodes.  Returns
// the callers of the first frame.
static uint32_t
remember_frames(thread_state *ts, bool by_depth, _PyInterpreterFrame **frames,
                size_t n, size_t distance, const activation *known)
{
    tracemalloc_capture *capture = ts->capture;
    _PyInterpreterFrame *frame = NULL;
    uint32_t callers = 0;
    size_t depth = distance;      // of the whole stack
    if (known != NULL) {
        frame = known->frame;
        callers = known->callers;
        depth += depth_of(capture, by_depth, callers) + 1;
    }
    while (n > 0) {
        size_t nearer = distance_of(--n);
        size_t ncallers = depth - nearer - 1;
        if (by_depth) {
            callers = (uint32_t)ncallers;
        }
        else if (distance > nearer + 1) {
            // The frames between them are not remembered.
            callers = add_anonymous_node(capture, ncallers);
        }
        else if (frame != NULL) {
            callers = find_node(capture, frame, callers, ncallers);
        }
        distance = nearer;
        frame = frames[n];
        remember(ts, frame, callers);
    }
    return callers;
}

// Walk from the thread's current frame to the first one that is remembered,
// and find the callers of the first complete frame; there is room for one more
// node.  Returns false if nothing may be remembered.
static bool
walk_to_callers(thread_state *ts, interp_state *tm, bool by_depth,
                _PyInterpreterFrame *current, uint32_t *found)
{
    Py_BUILD_ASSERT(MAX_REMEMBERED < MIN_NODES);
    tracemalloc_capture *capture;
    _PyInterpreterFrame *frame, *frames[MAX_REMEMBERED];
    const activation *known;
    size_t distance, n;           // n: length of frames
    while (true) {
        capture = ts->capture;
        known = NULL;
        bool in_c = true;
        n = 0;
        frame = first_complete(current, &in_c);
        for (distance = 0; frame != NULL; distance++) {
            known = find_activation(capture, frame);
            if (known != NULL) {
                break;
            }
            if (is_suspended(frame, in_c)) {
                return false;
            }
            if (distance == distance_of(n)) {
                frames[n++] = frame;
            }
            // What others push has been called by C code.
            in_c = !is_pushed_by_core(frame);
            frame = first_complete(frame->previous, &in_c);
        }
        // The last one is for the traceback.
        if (capture->nnodes + n + 1 <= capture->max_nodes) {
            break;
        }
        if (!grow_capture(tm, ts)) {
            forget(capture);
        }
    }
    *found = remember_frames(ts, by_depth, frames, n, distance, known);
    return true;
}


/* --- Tracebacks --------------------------------------------------------- */

// The traceback of a complete frame with these callers.
static int
find_traceback(tracemalloc_capture *capture, interp_state *tm,
               _PyInterpreterFrame *frame, uint32_t callers, uint32_t *id)
{
    size_t depth = depth_of(capture, tm->max_nframe == 1, callers) + 1;
    call_node *node = get_node(capture,
                               find_node(capture, frame, callers, depth));
    if (node->traceback == _PyTraceMalloc_NO_TRACEBACK
        && _PyTraceMalloc_InternFrames(tm, frame, depth,
                                       &node->traceback) < 0)
    {
        return -1;
    }
    *id = node->traceback;
    return 0;
}

// Forget what is void.  -1 if this is the thread's first trace, and there is no
// memory.
static int
refresh_capture(const tracemalloc_caller *caller, thread_state *ts)
{
    interp_state *tm = caller->interp;
    if (ts->capture == NULL) {
        tracemalloc_capture *capture = new_capture(tm, MIN_NODES);
        if (capture == NULL) {
            return -1;
        }
        lock_runtime(caller);
        ts->capture = capture;
        llist_insert_tail(&tm->threads, &ts->node);
        unlock_runtime(caller);
    }
    uint64_t epoch = _Py_atomic_load_uint64_relaxed(&tm->epoch);
    if (ts->epoch != epoch) {
        forget(ts->capture);
        memset(ts->sites, 0, sizeof(ts->sites));
        ts->epoch = epoch;
    }
    return 0;
}

int
_PyTraceMalloc_Capture(const tracemalloc_caller *caller, uint32_t *id)
{
    PyThreadState *tstate = caller->tstate;
    *id = _PyTraceMalloc_UNKNOWN;
    if (tstate == NULL || thread_of(tstate)->ended) {
        return 0;
    }
    _PyInterpreterFrame *frame = _PyThreadState_GetFrame(tstate);
    if (frame == NULL) {
        return 0;
    }
    interp_state *tm = caller->interp;
    thread_state *ts = thread_of(tstate);
    if (refresh_capture(caller, ts) < 0) {
        return -1;
    }
    uint32_t callers;
    if (tstate->interp->eval_frame != NULL
        || !walk_to_callers(ts, tm, tm->max_nframe == 1,
                            tstate->current_frame, &callers))
    {
        return _PyTraceMalloc_InternFrames(tm, frame, count_frames(frame), id);
    }
    tracemalloc_site *site = site_of(ts, frame->instr_ptr);
    if (is_at_site(site, frame)) {
        // Of a former activation.
        *id = site->traceback;
    }
    else if (find_traceback(ts->capture, tm, frame, callers, id) < 0) {
        return -1;
    }
    else if (is_pushed_by_core(frame)) {
        *site = (tracemalloc_site){frame, frame->instr_ptr, *id};
    }
    assert(_PyTraceMalloc_IsExact(tm, frame, *id));
    return 0;
}
