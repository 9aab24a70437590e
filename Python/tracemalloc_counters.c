// The process-wide counters: the sum of all traced sizes, and its peak.
//
// Every interpreter adds to the sum and takes from it all the time, and the
// peak has to be the largest value that the sum ever had.  The way to do that
// without asking for a lock each time is escrow (O'Neil, "The Escrow
// Transactional Method", ACM TODS 11(4), 1986): the distance between the sum
// and the peak is handed out to the interpreters' accounts as credit, and who
// has credit can add that much without making a new peak, whatever the others
// do meanwhile.  What is freed becomes credit.
//
// At any time, whoever holds the lock may rely on this:
//
//   share     == what was added through the account and not taken from it,
//                + its credit if it is open
//   committed == sum of all shares
//   committed <= peak
//
// so that the sum is never above the peak.  What is added without the lock
// turns credit into something added, and leaves the shares as they are.  To
// learn the sum itself, or to raise the peak, all accounts are closed first:
// their credit is taken away, and whoever wants to change a closed account has
// to come here, under the lock.  So the sum stands still at that moment.
//
// Closing is an atomic exchange of the credit, adding and removing are atomic
// compare-and-exchanges.  An account is opened by its next operation and so
// pays for its closing; accounts at rest stay closed and cost nothing.
//
// Tools/tracemalloc/counters.pml is a model of this for the SPIN model
// checker.

#include "Python.h"
#include "pycore_tracemalloc.h"   // _PyTraceCounters


void
_PyTraceCounters_Init(_PyTraceCounters *counters)
{
    counters->committed = 0;
    counters->peak = 0;
    llist_init(&counters->open);
}

void
_PyTraceAccount_Init(_PyTraceAccount *account)
{
    _Py_atomic_store_ssize(&account->credit, _PyTraceAccount_CLOSED);
    account->share = 0;
}

// Take the credit of an account away.
static void
close_account(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    Py_ssize_t credit = _Py_atomic_exchange_ssize(&account->credit,
                                                  _PyTraceAccount_CLOSED);
    if (credit == _PyTraceAccount_CLOSED) {
        return;
    }
    assert((size_t)credit <= account->share);
    assert(account->share <= counters->committed);
    account->share -= (size_t)credit;
    counters->committed -= (size_t)credit;
    llist_remove(&account->open);
}

static void
close_all(_PyTraceCounters *counters)
{
    struct llist_node *node;
    llist_for_each_safe(node, &counters->open) {
        close_account(counters, llist_data(node, _PyTraceAccount, open));
    }
    // Now committed is the sum.
}

// `credit` is in the account's share already.
static void
open_account(_PyTraceCounters *counters, _PyTraceAccount *account,
             size_t credit)
{
    assert(counters->committed <= counters->peak);
    llist_insert_tail(&counters->open, &account->open);
    _Py_atomic_store_ssize(&account->credit, (Py_ssize_t)credit);
}

int
_PyTraceCounters_Add(_PyTraceCounters *counters, _PyTraceAccount *account,
                     size_t size)
{
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
    // Half of what is left: the others will want some, too, and who wants
    // more comes again a logarithmic number of times.
    size_t credit = (counters->peak - counters->committed) / 2;
    counters->committed += credit;
    account->share += size + credit;
    open_account(counters, account, credit);
    return 0;
}

void
_PyTraceCounters_Remove(_PyTraceCounters *counters, _PyTraceAccount *account,
                        size_t size)
{
    if (!_PyTraceAccount_TryRemove(account, size)) {
        // What was added becomes credit, so the share stays.
        assert(size <= account->share);
        open_account(counters, account, size);
    }
}

void
_PyTraceCounters_Forget(_PyTraceCounters *counters, _PyTraceAccount *account)
{
    close_account(counters, account);
    assert(account->share <= counters->committed);
    counters->committed -= account->share;
    account->share = 0;
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
