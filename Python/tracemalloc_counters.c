// The process-wide counters: the sum of all traced sizes, and its peak.
//
// Threads change the sum all the time, and the peak has to be the largest sum
// that ever was.  To spare them the runtime's mutex, part of the distance from
// the sum to the peak is handed out as credit, as in the escrow method of
// O'Neil (ACM TODS 11(4), 1986).  Who has credit may add that much: it cannot
// make a new peak, whatever the others do.  What is freed becomes credit.
//
//   committed == the sum of all traced sizes + all open credit
//   committed <= peak while credit is open, but for the two kinds below
//
// While the sum is at its peak and only grows, it is the peak, and any credit
// may be handed out.  Nobody may free with such credit: its `limit` is 0.
//
// Whatever cannot be done with open credit is done with the mutex held, after
// the thread has given back its own credit.  Who would make a new peak, or
// frees while the sum is growing, closes the credit of all others first; then
// the sum is known.
//
// A thread that has been the only one for long gets more credit than it can
// use (`limit` is SOLE_LIMIT), and may do anything with it.  `lowest` is what
// it had left when the sum was largest.  Whoever comes next closes this credit
// first.
//
// To close a credit, clear `open`, make sure that its owner sees it, wait
// until the owner is not inside, and take what is left.  On Linux membarrier()
// makes sure; elsewhere the owner needs a fence each time that it uses its
// credit.  A credit that was closed by others stays so for a while, or two
// threads would close each other's credit all the time.
//
// Tools/tracemalloc/counters.pml is a model of this for the SPIN model
// checker.

#include "Python.h"
#include "pycore_lock.h"          // _Py_yield()
#include "pycore_semaphore.h"     // _PySemaphore_Wait()
#include "pycore_tracemalloc_shared.h"  // lock_mutex()

#ifdef __linux__
#  include <sys/syscall.h>        // SYS_membarrier
#  include <unistd.h>             // syscall()
#endif

// Operations with the mutex before a credit that others closed is opened
// again; and how many in a row make a thread the only one.
#define REST 256
#define SOLE_AFTER 512

// Credit is handed out in pieces: at most of the first size, and not less than
// the second if there is as much.
#define MAX_GRANT 65536
#define MIN_GRANT 256

// Of a thread that is the only one.
#define SOLE_GRANT (INT64_MAX / 2)
#define SOLE_LIMIT INT64_MAX

// From <linux/membarrier.h>, which may be older than the kernel.
#define BARRIER 8
#define REGISTER_BARRIER 16

// How long to wait for the other processors where the barrier is refused, in
// nanoseconds, and at most how often, for the clock may be refused as well.
// Their write buffers are empty long before.
#define BLIND_WAIT 1000000
#define MAX_YIELDS 100000

// How often to ask whether an owner is still inside its credit before it gets
// the processor for so many nanoseconds: it may have a lower priority.
#define MAX_POLLS 1000
#define NAP 50000

#define COUNTERS (&RUNTIME->counters)


/* --- Barrier ------------------------------------------------------------ */

// Returns whether it worked.
static bool
membarrier(int command)
{
    // Android may kill a process for a system call that it does not allow, and
    // ThreadSanitizer would not notice the barrier.
#if defined(__linux__) && defined(SYS_membarrier) \
    && !defined(__ANDROID__) && !defined(_Py_THREAD_SANITIZER)
    return syscall(SYS_membarrier, command, 0, 0) == 0;
#else
    return false;
#endif
}

// Make sure that the owner of each credit that is being closed either sees
// that, or has made its `inside` visible.  Are all of them fenced?
static void
make_visible(bool fenced)
{
    _Py_atomic_fence_seq_cst();
    if (fenced || membarrier(BARRIER)) {
        return;
    }
    // Forbidden since they were opened.  Wait longer than any processor keeps
    // a write to itself.
    RUNTIME->has_barrier = false;
    PyTime_t start, now;
    (void)PyTime_PerfCounterRaw(&start);
    now = start;
    for (int i = 0; i < MAX_YIELDS && now - start < BLIND_WAIT; i++) {
        _Py_yield();
        (void)PyTime_PerfCounterRaw(&now);
    }
}


/* --- The sum ------------------------------------------------------------ */

static void
add_to_committed(uint64_t size)
{
    COUNTERS->committed += size;
    COUNTERS->carries += COUNTERS->committed < size;
}

static void
take_from_committed(uint64_t size)
{
    COUNTERS->carries -= COUNTERS->committed < size;
    COUNTERS->committed -= size;
}

// If nobody has credit then this is the sum.
static void
raise_peak(void)
{
    if (llist_empty(&COUNTERS->open)) {
        COUNTERS->peak = COUNTERS->carries > 0 ? UINT64_MAX
                         : Py_MAX(COUNTERS->peak, COUNTERS->committed);
    }
}

// How much may be added, or handed out, without a new peak?
static uint64_t
room_below_peak(void)
{
    return COUNTERS->peak > COUNTERS->committed
           ? COUNTERS->peak - COUNTERS->committed : 0;
}


/* --- Credit ------------------------------------------------------------- */

static inline tracemalloc_credit *
credit_of(struct llist_node *node)
{
    return llist_data(node, tracemalloc_credit, node);
}

// Is there open credit of this kind?  Then all that is open is so.
static bool
has_limit(int64_t limit)
{
    return !llist_empty(&COUNTERS->open)
           && credit_of(COUNTERS->open.next)->limit == limit;
}

static void
nap(void)
{
    _PySemaphore never;
    _PySemaphore_Init(&never);
    (void)_PySemaphore_Wait(&never, NAP, 0);
    _PySemaphore_Destroy(&never);
}

// Wait until the owner of a closed credit is not inside, and take the credit.
static void
take_credit(tracemalloc_credit *credit, bool rests)
{
    for (int i = 0; _Py_atomic_load_int_acquire(&credit->inside); i++) {
        if (i < MAX_POLLS) {
            _Py_yield();
        }
        else {
            nap();
        }
    }
    llist_remove(&credit->node);
    int64_t lowest = Py_MIN(credit->lowest, credit->available);
    take_from_committed((uint64_t)lowest);
    raise_peak();
    take_from_committed((uint64_t)(credit->available - lowest));
    credit->available = credit->limit = 0;
    if (rests) {
        credit->rest = REST;
        credit->alone = 0;
    }
}

// Its owner does not see it yet.  Returns whether it is fenced.
static bool
close_credit(tracemalloc_credit *credit)
{
    return _Py_atomic_exchange_int(&credit->open, _PyTraceMalloc_CLOSED)
           == _PyTraceMalloc_FENCED;
}

static void
close_credits(bool rests)
{
    struct llist_node *node;
    bool fenced = true;
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL) {
        // The caller's own needs no barrier.
        _PyTraceMalloc_CloseCredit(own_credit(tstate), true);
    }
    llist_for_each(node, &COUNTERS->open) {
        fenced = close_credit(credit_of(node)) && fenced;
    }
    // Pairs with EnterCredit().
    make_visible(fenced);
    llist_for_each_safe(node, &COUNTERS->open) {
        take_credit(credit_of(node), rests);
    }
}

void
_PyTraceMalloc_CloseCredit(tracemalloc_credit *credit, bool own)
{
    if (_Py_atomic_load_int_relaxed(&credit->open) == _PyTraceMalloc_CLOSED) {
        return;
    }
    bool fenced = close_credit(credit);
    if (!own) {
        make_visible(fenced);
    }
    take_credit(credit, !own);
}

// Not inline: the fast path has no locked instruction.
bool
_PyTraceMalloc_EnterFenced(tracemalloc_credit *credit)
{
    if (_Py_atomic_load_int(&credit->open) == _PyTraceMalloc_FENCED) {
        (void)_Py_atomic_exchange_int(&credit->inside, 1);
        if (_Py_atomic_load_int(&credit->open) == _PyTraceMalloc_FENCED) {
            return true;
        }
    }
    _Py_atomic_store_int_release(&credit->inside, 0);
    return false;
}

// Unless it rests.
static void
open_credit(tracemalloc_credit *credit)
{
    if (credit->rest > 0) {
        credit->rest--;
        return;
    }
    bool alone = llist_empty(&COUNTERS->open);
    credit->alone = alone ? Py_MIN(credit->alone + 1, SOLE_AFTER) : 0;
    uint64_t grant = MAX_GRANT;
    if (credit->alone == SOLE_AFTER) {
        grant = SOLE_GRANT;
        credit->limit = SOLE_LIMIT;
    }
    else if (alone ? COUNTERS->committed == COUNTERS->peak : has_limit(0)) {
        credit->limit = 0;
    }
    else {
        uint64_t room = room_below_peak();
        grant = Py_MIN(Py_MAX(room / 4, Py_MIN(room, MIN_GRANT)), MAX_GRANT);
        // Others would have to do without what this thread hoards.
        credit->limit = (int64_t)Py_MAX(4 * grant, MIN_GRANT);
    }
    add_to_committed(grant);
    credit->available = credit->lowest = (int64_t)grant;
    llist_insert_tail(&COUNTERS->open, &credit->node);
    _Py_atomic_store_int_release(
        &credit->open, RUNTIME->has_barrier ? _PyTraceMalloc_OPEN
                                            : _PyTraceMalloc_FENCED);
}


/* --- Add and remove ----------------------------------------------------- */

void
_PyTraceMalloc_ChangeSum(tracemalloc_credit *credit, size_t size, bool add,
                         bool locked)
{
    if (!locked) {
        lock_mutex(&RUNTIME->mutex);
    }
    if (credit != NULL) {
        _PyTraceMalloc_CloseCredit(credit, true);
    }
    if (has_limit(SOLE_LIMIT)
        || (has_limit(0) ? !add : add && size > room_below_peak()))
    {
        close_credits(true);
    }
    if (add) {
        add_to_committed(size);
    }
    else {
        take_from_committed(size);
    }
    raise_peak();
    if (credit != NULL) {
        open_credit(credit);
    }
    if (!locked) {
        unlock_mutex(&RUNTIME->mutex);
    }
}


/* --- The whole ---------------------------------------------------------- */

// For the first interpreter that traces.  What is left in the sum belongs to
// blocks that are just being reallocated.
void
_PyTraceMalloc_CountersInit(void)
{
    // Once is enough, and by now the system may forbid it.
    if (!RUNTIME->has_barrier) {
        RUNTIME->has_barrier = membarrier(REGISTER_BARRIER);
    }
    _PyTraceMalloc_ResetCounterPeak();
}

void
_PyTraceMalloc_CloseCredits(void)
{
    close_credits(false);
}

void
_PyTraceMalloc_GetTracedMemory(size_t *current, size_t *peak)
{
    *current = *peak = 0;
    lock_mutex(&RUNTIME->mutex);
    if (!is_idle()) {
        close_credits(false);
        uint64_t max = (uint64_t)PY_SSIZE_T_MAX;
        *current = (size_t)(COUNTERS->carries > 0 ? max
                            : Py_MIN(COUNTERS->committed, max));
        *peak = (size_t)Py_MIN(COUNTERS->peak, max);
    }
    unlock_mutex(&RUNTIME->mutex);
}

void
_PyTraceMalloc_ResetCounterPeak(void)
{
    close_credits(false);
    COUNTERS->peak = 0;
    raise_peak();
}

// The peak remains; the sum is added up anew.
void
_PyTraceMalloc_CountersAfterFork(void)
{
    COUNTERS->committed = 0;
    COUNTERS->carries = 0;
}
