// The process-wide counters: the sum of all traced sizes, and its peak.
//
// Every interpreter adds to the sum and takes from it all the time, and the
// peak has to be the largest value that the sum ever had.  The way to do that
// without asking for a lock each time is escrow (O'Neil, "The Escrow
// Transactional Method", ACM TODS 11(4), 1986): the distance between the sum
// and the peak is handed out to the interpreters' accounts as credit, and with
// credit an account can add that much without making a new peak, whatever the
// others do meanwhile.  What is freed becomes credit.
//
// At any time, whoever holds the runtime's mutex may rely on this:
//
//   share     == what was added through the account and not taken from it,
//                + its credit if it is open
//   committed == sum of all shares
//   committed <= peak, unless there is a sole account (see below)
//
// so that no use of credit makes a new peak.  What is added without the mutex
// turns credit into something added, and leaves the shares as they are.  To
// learn the sum itself, or to raise the peak, all accounts are closed first:
// their credit is taken away, and whoever wants to change a closed account has
// to come here, under the mutex.  So the sum stands still at that moment.
//
// While only one account is in use it may have any credit, and raise the peak
// without coming here: the sum changes with its credit alone, so that the
// largest sum was where its credit was the least.  The peak is brought up to
// date when this account is closed, before any other is opened.
//
// Credits are guarded by the locks of the books.  A thread that holds the
// runtime's mutex and some books may lock other books, too: no other does
// that, and none waits for the mutex with books locked.
//
// An account is opened by its next operation and so pays for its closing;
// accounts at rest stay closed and cost nothing.
//
// Tools/tracemalloc/counters.pml is a model of this for the SPIN model
// checker.

#include "Python.h"
#include "pycore_tracemalloc.h"   // _PyTraceCounters


// Operations of an account, no other coming in between, until it is taken for
// the only one in use.  If it is not after all, then the next one has to lock
// its books.
#ifdef Py_DEBUG
#  define SOLE_AFTER 4            // try both more often
#else
#  define SOLE_AFTER 100
#endif


void
_PyTraceCounters_Init(_PyTraceCounters *counters)
{
    *counters = (_PyTraceCounters){0};
    llist_init(&counters->open);
}

static void
set_credit(_PyTraceAccount *account, Py_ssize_t credit)
{
    _Py_atomic_store_ssize_relaxed(&account->credit, credit);
    account->lowest = credit;
}

void
_PyTraceAccount_Init(_PyTraceAccount *account, _PyTraceLock *lock)
{
    set_credit(account, _PyTraceAccount_CLOSED);
    account->share = 0;
    account->lock = lock;
}

// Take the credit of an account, whose books are locked, away.
static void
close_account(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    if (account->credit == _PyTraceAccount_CLOSED) {
        return;
    }
    size_t credit = (size_t)account->credit;
    size_t lowest = (size_t)account->lowest;
    assert(lowest <= credit && credit <= account->share);
    assert(account->share <= counters->committed);
    if (counters->sole == account) {
        counters->peak = Py_MAX(counters->peak, counters->committed - lowest);
        counters->sole = NULL;
    }
    set_credit(account, _PyTraceAccount_CLOSED);
    account->share -= credit;
    counters->committed -= credit;
    llist_remove(&account->open);
}

static void
lock_and_close(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    // It is in the list, so its books are there.
    _PyTraceLock_Lock(account->lock);
    close_account(counters, account);
    _PyTraceLock_Unlock(account->lock);
}

// Close all accounts, none of which may have its books locked.
static void
close_all(_PyTraceCounters *counters)
{
    struct llist_node *node;
    llist_for_each_safe(node, &counters->open) {
        lock_and_close(counters, llist_data(node, _PyTraceAccount, open));
    }
    // Now committed is the sum.
}

// The sum is about to be changed, but for the credit of the sole account, on
// behalf of this one.
static void
end_sole(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    if (counters->sole != NULL && counters->sole != account) {
        lock_and_close(counters, counters->sole);
    }
}

// An account is about to be used.
static void
begin_use(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    end_sole(counters, account);
    if (counters->last == account) {
        counters->run++;
    }
    else {
        counters->last = account;
        counters->run = 0;
    }
}

// `credit` is in the account's share already.
static void
open_account(_PyTraceCounters *counters, _PyTraceAccount *account,
             size_t credit)
{
    assert(counters->sole == account
           || counters->committed <= counters->peak);
    llist_insert_tail(&counters->open, &account->open);
    set_credit(account, (Py_ssize_t)credit);
}

int
_PyTraceCounters_Add(_PyTraceCounters *counters, _PyTraceAccount *account,
                     size_t size)
{
    begin_use(counters, account);
    close_account(counters, account);
    if (counters->peak - counters->committed < size) {
        close_all(counters);
        if (size > (size_t)PY_SSIZE_T_MAX - counters->committed) {
            return -1;
        }
    }
    counters->committed += size;
    if (counters->peak < counters->committed) {
        counters->peak = counters->committed;
    }
    size_t credit;
    if (counters->run >= SOLE_AFTER && llist_empty(&counters->open)) {
        counters->sole = account;
        credit = (size_t)PY_SSIZE_T_MAX - counters->committed;
    }
    else {
        // Half of what is left: the others will want some, too, and who wants
        // more comes again a logarithmic number of times.
        credit = (counters->peak - counters->committed) / 2;
    }
    counters->committed += credit;
    account->share += size + credit;
    open_account(counters, account, credit);
    return 0;
}

void
_PyTraceCounters_Remove(_PyTraceCounters *counters, _PyTraceAccount *account,
                        size_t size)
{
    begin_use(counters, account);
    if (!_PyTraceAccount_TryRemove(account, size)) {
        // What was added becomes credit, so the share stays.
        assert(size <= account->share);
        open_account(counters, account, size);
    }
}

void
_PyTraceCounters_RemoveAccount(_PyTraceCounters *counters,
                               _PyTraceAccount *account)
{
    end_sole(counters, account);
    close_account(counters, account);
    assert(account->share <= counters->committed);
    counters->committed -= account->share;
    account->share = 0;
    counters->last = NULL;
}

size_t
_PyTraceCounters_Sum(_PyTraceCounters *counters)
{
    close_all(counters);
    return counters->committed;
}

void
_PyTraceCounters_ResetPeak(_PyTraceCounters *counters)
{
    close_all(counters);
    counters->peak = counters->committed;
}
