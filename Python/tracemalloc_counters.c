// The process-wide counters: the sum of all traced sizes, and its peak.
//
// Threads change the sum all the time, and the peak has to be the largest sum
// that ever was.  To spare them the shared counters, part of the distance from
// the sum to the peak is handed out as credit, as in the escrow method of
// O'Neil (ACM TODS 11(4), 1986).  Who has credit may add that much: it cannot
// make a new peak, whatever the others do.  What is freed becomes credit.
//
//   committed == the sum of all traced sizes + all open credit
//   committed <= peak while any credit is open and the sum is not GROWING
//
// While the sum is at its peak and only grows, it is the peak, and any credit
// may be handed out.  This is what GROWING says: nobody may free with such
// credit.  Who frees closes all credits first, unless its own is the only one.
//
// The shared word has `committed`, GROWING, and the number of open credits, so
// that one compare-and-swap checks all.  It also has a tag that each reset of
// the peak changes, so that nothing from before a reset raises the peak after
// it.
//
// A thread without open credit changes the word itself.  The first one that
// makes a new peak closes all credits, since the sum would not be known.  Only
// if the one open credit is the thread's own is that not needed.  While nobody
// has credit the peak is the larger of `peak` and the word.  So who adds need
// not write `peak`; who makes the word smaller, or opens credit, raises it
// first.
//
// To close a credit, clear `open`, make sure that its owner sees it
// (membarrier() on Linux), wait until the owner is not inside, and take what
// is left.  A credit that was closed stays so for a while, or two threads
// would close each other's credit all the time.  Where the system has no such
// barrier no credit is ever opened: each operation is a compare-and-swap.
//
// Tools/tracemalloc/counters.pml is a model of this for the SPIN model
// checker.

#include "Python.h"
#include "pycore_lock.h"          // _Py_yield()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_tracemalloc.h"   // tracemalloc_counters

#ifdef __linux__
#  include <sys/syscall.h>        // SYS_membarrier
#  include <unistd.h>             // syscall()
#endif

#define ONE_OPEN (UINT64_C(1) << 48)
#define GROWING (UINT64_C(1) << 55)
#define ONE_TAG (UINT64_C(1) << 56)
#define COMMITTED(word) ((word) & MAX_COMMITTED)
#define NUM_OPEN(word) (((word) / ONE_OPEN) & MAX_OPEN)
#define TAG(word) ((word) / ONE_TAG)
#define MAX_COMMITTED ((UINT64_C(1) << 48) - 1)
#define MAX_OPEN UINT64_C(0x7F)

// Sizes from here on are counted apart: `word` has 48 bits, and
// PyTraceMalloc_Track() takes any size.
#define HUGE_SIZE (UINT64_C(1) << 38)

// From here on, part of what is in `word` is moved to where they are counted.
#define MAX_WORD (UINT64_C(1) << 47)
#define MOVED (MAX_WORD / 2)

// Operations until a closed credit is opened again.
#define REST 1024

// Credit is handed out in pieces: at most of the first size, and not less than
// the second while others have credit.
#define MAX_GRANT 65536
#define MIN_GRANT 1024

// From <linux/membarrier.h>, which may be older than the kernel.
#define BARRIER 8
#define REGISTER_BARRIER 16

// How long to wait for the other processors where the barrier was refused, in
// nanoseconds.  Their write buffers are empty long before.
#define BLIND_WAIT 1000000

#define COUNTERS (&_PyRuntime.tracemalloc.counters)


static void
lock(bool locked)
{
    if (!locked) {
        PyMutex_LockFlags(&_PyRuntime.tracemalloc.mutex,
                          _Py_LOCK_DONT_DETACH);
    }
}

static void
unlock(bool locked)
{
    if (!locked) {
        PyMutex_Unlock(&_PyRuntime.tracemalloc.mutex);
    }
}


/* --- Barrier ------------------------------------------------------------ */

// Announce that make_visible() will be called.  Returns whether it will work.
static bool
register_barrier(void)
{
#if defined(_Py_THREAD_SANITIZER)
    // EnterCredit() has a barrier itself.
    return true;
#elif defined(__linux__) && defined(SYS_membarrier) && !defined(__ANDROID__)
    // Android may kill a process for a system call that it does not allow.
    return syscall(SYS_membarrier, REGISTER_BARRIER, 0, 0) == 0;
#else
    return false;
#endif
}

// Make sure that each thread either sees what this one has written, or that
// this one sees what the other has written.
static void
make_visible(void)
{
    _Py_atomic_fence_seq_cst();
#if !defined(_Py_THREAD_SANITIZER) && defined(__linux__) \
    && defined(SYS_membarrier)
    if (syscall(SYS_membarrier, BARRIER, 0, 0) == 0) {
        return;
    }
    // Forbidden since: never open a credit again.  For those that are open,
    // wait longer than any processor keeps a write to itself.
    _PyRuntime.tracemalloc.has_barrier = false;
    PyTime_t start, now;
    (void)PyTime_PerfCounterRaw(&start);
    do {
        _Py_yield();
        (void)PyTime_PerfCounterRaw(&now);
    } while (now - start < BLIND_WAIT);
#endif
}


/* --- The word ----------------------------------------------------------- */

static uint64_t
load_peak(void)
{
    return COMMITTED(_Py_atomic_load_uint64(&COUNTERS->peak));
}

// How much may be added, or handed out, without a new peak?
static uint64_t
room_below_peak(uint64_t word)
{
    uint64_t peak = load_peak();
    return peak > COMMITTED(word) ? peak - COMMITTED(word) : 0;
}

// This was the sum, when the word had this tag.
static void
raise_peak(uint64_t tag, uint64_t sum)
{
    uint64_t peak = _Py_atomic_load_uint64(&COUNTERS->peak);
    uint64_t wanted = tag * ONE_TAG + sum;
    // With another tag the peak was reset since.
    while (TAG(peak) == tag && peak < wanted
           && !_Py_atomic_compare_exchange_uint64(&COUNTERS->peak,
                                                  &peak, wanted))
    {
    }
}

// If nobody has credit then the word has the sum.
static void
raise_peak_to_word(uint64_t word)
{
    if (NUM_OPEN(word) == 0) {
        raise_peak(TAG(word), COMMITTED(word));
    }
}


/* --- Credit ------------------------------------------------------------- */

// Wait until the owner of a closed credit is not inside, and take the credit.
static void
take_credit(tracemalloc_credit *credit, int rest)
{
    while (_Py_atomic_load_int_acquire(&credit->inside)) {
        _Py_yield();
    }
    _Py_atomic_add_uint64(&COUNTERS->word,
                          -(ONE_OPEN + (uint64_t)credit->available));
    credit->available = credit->limit = 0;
    _Py_atomic_store_int_relaxed(&credit->rest, rest);
    llist_remove(&credit->node);
}

// With the runtime's mutex held.  The calling thread is not inside.
static void
close_credits(int rest)
{
    struct llist_node *node;
    if (llist_empty(&COUNTERS->open)) {
        return;
    }
    llist_for_each(node, &COUNTERS->open) {
        tracemalloc_credit *credit = llist_data(node, tracemalloc_credit,
                                                node);
        _Py_atomic_store_int(&credit->open, 0);
    }
    // Pairs with the compiler fence in EnterCredit().
    make_visible();
    llist_for_each_safe(node, &COUNTERS->open) {
        take_credit(llist_data(node, tracemalloc_credit, node), rest);
    }
}

static void
lock_and_close_credits(bool locked)
{
    lock(locked);
    close_credits(REST);
    unlock(locked);
}

void
_PyTraceMalloc_CloseCredit(tracemalloc_credit *credit, bool own)
{
    if (_Py_atomic_load_int_relaxed(&credit->open)) {
        _Py_atomic_store_int(&credit->open, 0);
        if (!own) {
            make_visible();
        }
        take_credit(credit, own ? 0 : REST);
    }
}

// Move part of the word to the huge sizes, or back; with the mutex held.
static void
move_to_huge(bool back)
{
    uint64_t units = MOVED / HUGE_SIZE;
    assert(!back || COUNTERS->huge_units >= units);
    _Py_atomic_add_uint64(&COUNTERS->word, back ? MOVED : -MOVED);
    _Py_atomic_add_uint64(&COUNTERS->huge_units, back ? -units : units);
}

static void
remove_from_word(size_t size, bool locked)
{
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    for (;;) {
        if (COMMITTED(word) < size) {
            lock(locked);
            if (COMMITTED(_Py_atomic_load_uint64(&COUNTERS->word)) < size) {
                move_to_huge(true);
            }
            unlock(locked);
            word = _Py_atomic_load_uint64(&COUNTERS->word);
            continue;
        }
        if (NUM_OPEN(word) > 0 && (word & GROWING)) {
            lock_and_close_credits(locked);
            word = _Py_atomic_load_uint64(&COUNTERS->word);
            continue;
        }
        raise_peak_to_word(word);
        if (_Py_atomic_compare_exchange_uint64(&COUNTERS->word, &word,
                                               (word & ~GROWING) - size))
        {
            return;
        }
    }
}


/* --- Huge sizes --------------------------------------------------------- */

// While there are any, nobody has credit and each change is made with the
// mutex held: the counters need not be fast then.

static bool
has_huge(void)
{
    return _Py_atomic_load_uint64_relaxed(&COUNTERS->huge_units) > 0;
}

static bool
is_among_huge(size_t size)
{
    return size >= HUGE_SIZE || has_huge()
           || COMMITTED(_Py_atomic_load_uint64(&COUNTERS->word)) >= MAX_WORD;
}

static uint64_t
total(void)
{
    uint64_t rest = COMMITTED(_Py_atomic_load_uint64(&COUNTERS->word))
                    + COUNTERS->huge_rest;
    uint64_t units = COUNTERS->huge_units;
    uint64_t max_units = (uint64_t)PY_SSIZE_T_MAX / HUGE_SIZE;
    if (units + rest / HUGE_SIZE > max_units) {
        return (uint64_t)PY_SSIZE_T_MAX;
    }
    return Py_MIN(units * HUGE_SIZE + rest, (uint64_t)PY_SSIZE_T_MAX);
}

static void
count_among_huge(size_t size, bool add, bool locked)
{
    uint64_t units = size / HUGE_SIZE;
    uint64_t rest = units > 0 ? size % HUGE_SIZE : 0;
    lock(locked);
    close_credits(0);
    uint64_t word = COMMITTED(_Py_atomic_load_uint64(&COUNTERS->word));
    if (units == 0 && add) {
        _Py_atomic_add_uint64(&COUNTERS->word, size);
        if (word + size >= MAX_WORD) {
            move_to_huge(false);
        }
    }
    else if (units == 0) {
        remove_from_word(size, true);
    }
    COUNTERS->huge_rest += add ? rest : -rest;
    _Py_atomic_add_uint64(&COUNTERS->huge_units, add ? units : -units);
    if (has_huge()) {
        COUNTERS->huge_peak = Py_MAX(COUNTERS->huge_peak, total());
    }
    unlock(locked);
}


/* --- Opening credit ----------------------------------------------------- */

// Does nothing if another thread has the mutex.
static void
open_credit(tracemalloc_credit *credit, bool locked)
{
    _Py_atomic_store_int_relaxed(&credit->rest, REST);
    if (!locked
        && _PyMutex_LockTimed(&_PyRuntime.tracemalloc.mutex, 0,
                              _Py_LOCK_DONT_DETACH) != PY_LOCK_ACQUIRED)
    {
        return;
    }
    assert(!_Py_atomic_load_int_relaxed(&credit->open));
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    while (_PyRuntime.tracemalloc.has_barrier && !has_huge()
           && NUM_OPEN(word) < MAX_OPEN)
    {
        bool grows = word & GROWING;
        uint64_t grant = MAX_GRANT;
        if (!grows) {
            raise_peak_to_word(word);
            grant = Py_MIN(room_below_peak(word) / 4, MAX_GRANT);
        }
        if (NUM_OPEN(word) > 0 && grant < MIN_GRANT) {
            break;
        }
        if (_Py_atomic_compare_exchange_uint64(&COUNTERS->word, &word,
                                               word + ONE_OPEN + grant))
        {
            credit->available = (int64_t)grant;
            credit->limit = grows ? 0 : (int64_t)Py_MAX(4 * grant, MIN_GRANT);
            llist_insert_tail(&COUNTERS->open, &credit->node);
            _Py_atomic_store_int_release(&credit->open, 1);
            break;
        }
    }
    unlock(locked);
}

// After an operation without credit: is it time to open it?
static void
end_rest(tracemalloc_credit *credit, bool locked)
{
    if (credit == NULL || _Py_atomic_load_int_relaxed(&credit->open)) {
        return;
    }
    int rest = _Py_atomic_load_int_relaxed(&credit->rest);
    if (rest > 0) {
        _Py_atomic_store_int_relaxed(&credit->rest, rest - 1);
    }
    else {
        open_credit(credit, locked);
    }
}

// Add with open credit, of which there is too little, but more may be had.
// The owner is inside.  Returns false if others have to be asked.
static bool
refill_credit(tracemalloc_credit *credit, size_t size)
{
    uint64_t need = size - (uint64_t)credit->available;
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    for (;;) {
        uint64_t room = room_below_peak(word);
        bool grows = need > room;
        uint64_t extra = MAX_GRANT;
        if (!grows) {
            extra = Py_MIN((room - need) / 4, MAX_GRANT);
        }
        else if (NUM_OPEN(word) != 1 && !(word & GROWING)) {
            return false;
        }
        uint64_t changed = word + need + extra;
        if (_Py_atomic_compare_exchange_uint64(
                &COUNTERS->word, &word, grows ? changed | GROWING : changed))
        {
            credit->available = (int64_t)extra;
            credit->limit = grows ? 0 : Py_MAX(credit->limit,
                                               4 * credit->available);
            return true;
        }
    }
}


/* --- Add and remove ----------------------------------------------------- */

static void
add_to_word(size_t size, bool locked)
{
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    for (;;) {
        if (NUM_OPEN(word) > 0 && !(word & GROWING)
            && size > room_below_peak(word))
        {
            lock_and_close_credits(locked);
            word = _Py_atomic_load_uint64(&COUNTERS->word);
        }
        else if (_Py_atomic_compare_exchange_uint64(&COUNTERS->word, &word,
                                                    word + size))
        {
            break;
        }
    }
    if (has_huge()) {
        // They came meanwhile.
        count_among_huge(0, true, locked);
    }
}

void
_PyTraceMalloc_AddToSum(tracemalloc_credit *credit, size_t size, bool locked)
{
    if (is_among_huge(size)) {
        count_among_huge(size, true, locked);
        return;
    }
    if (credit != NULL && _PyTraceMalloc_EnterCredit(credit)) {
        bool done = refill_credit(credit, size);
        _PyTraceMalloc_LeaveCredit(credit);
        if (done) {
            return;
        }
    }
    add_to_word(size, locked);
    end_rest(credit, locked);
}

// The first that is freed while the sum is GROWING, with the only open credit.
// The owner is inside.  Returns false if others have credit, too.
static bool
end_growing(tracemalloc_credit *credit, size_t size)
{
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    uint64_t available = (uint64_t)credit->available;
    while (NUM_OPEN(word) == 1) {
        assert(word & GROWING);
        raise_peak(TAG(word), COMMITTED(word) - available);
        if (_Py_atomic_compare_exchange_uint64(
                &COUNTERS->word, &word, (word & ~GROWING) - available))
        {
            credit->available = (int64_t)size;
            credit->limit = (int64_t)Py_MAX(4 * size, MIN_GRANT);
            return true;
        }
    }
    return false;
}

// With open credit.  The owner is inside.
static void
return_to_credit(tracemalloc_credit *credit, size_t size)
{
    // Others would have to do without what this thread hoards; one that is
    // alone may have any credit.
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    uint64_t limit = HUGE_SIZE;
    if (NUM_OPEN(word) > 1) {
        limit = Py_MIN(load_peak() / 16, 4 * MAX_GRANT);
    }
    credit->available += (int64_t)size;
    credit->limit = (int64_t)Py_MAX(limit, MIN_GRANT);
    int64_t extra = credit->available - credit->limit / 2;
    if (extra > 0) {
        _Py_atomic_add_uint64(&COUNTERS->word, -(uint64_t)extra);
        credit->available -= extra;
    }
}

void
_PyTraceMalloc_TakeFromSum(tracemalloc_credit *credit, size_t size,
                           bool locked)
{
    if (is_among_huge(size)) {
        count_among_huge(size, false, locked);
        return;
    }
    if (credit != NULL && _PyTraceMalloc_EnterCredit(credit)) {
        bool done = true;
        if (credit->limit == 0) {
            done = end_growing(credit, size);
        }
        else {
            return_to_credit(credit, size);
        }
        _PyTraceMalloc_LeaveCredit(credit);
        if (done) {
            return;
        }
    }
    remove_from_word(size, locked);
    end_rest(credit, locked);
}


/* --- The whole ---------------------------------------------------------- */

// For the first interpreter that traces.  What is left in the sum belongs to
// blocks that are just being reallocated.
void
_PyTraceMalloc_CountersInit(tracemalloc_counters *counters)
{
    if (counters->open.next == NULL) {
        llist_init(&counters->open);
    }
    _PyRuntime.tracemalloc.has_barrier = register_barrier();
    _PyTraceMalloc_ResetCounterPeak();
}

void
_PyTraceMalloc_CountersGet(size_t *sum, size_t *peak)
{
    close_credits(0);
    *sum = (size_t)total();
    uint64_t highest = Py_MAX(load_peak(), COUNTERS->huge_peak);
    *peak = Py_MAX((size_t)highest, *sum);
}

void
_PyTraceMalloc_ResetCounterPeak(void)
{
    close_credits(0);
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    uint64_t changed;
    do {
        changed = (word & ~GROWING) + ONE_TAG;
        _Py_atomic_store_uint64(&COUNTERS->peak, changed);
        // From here on the new peak is raised, by none from before.
    } while (!_Py_atomic_compare_exchange_uint64(&COUNTERS->word, &word,
                                                 changed));
    COUNTERS->huge_peak = has_huge() ? total() : 0;
}

// The threads that had credit are gone, but for this one, whose credit is the
// only one to be used again.
void
_PyTraceMalloc_CountersAfterFork(void)
{
    struct llist_node *node;
    llist_for_each_safe(node, &COUNTERS->open) {
        tracemalloc_credit *credit = llist_data(node, tracemalloc_credit,
                                                node);
        llist_remove(node);
        *credit = (tracemalloc_credit){0};
    }
    uint64_t word = _Py_atomic_load_uint64(&COUNTERS->word);
    _Py_atomic_store_uint64(&COUNTERS->word, TAG(word) * ONE_TAG);
    COUNTERS->huge_units = COUNTERS->huge_rest = 0;
}
