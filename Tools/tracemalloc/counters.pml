/* The counters of tracemalloc: a model for SPIN (https://spinroot.com).

   get_traced_memory() returns a pair that belongs to the whole process: the
   sum of the sizes of all traces of all interpreters, and the largest that
   this sum has been.  Both have to be exact, and still an allocation that
   makes no new peak should not need the global mutex.  So every interpreter
   has an account with a credit: as many bytes as it may add on its own
   (P. O'Neil, "The Escrow Transactional Method", 1986).  The sum and all
   credits together are never more than the peak; therefore what is added from
   a credit can never make a new peak.

   What is modelled
   ----------------
   Guarded by the global mutex:

     committed    the sum of all traces, and of the credits of open accounts
     peak         the largest sum so far
     open[i]      account i is in the list of the open accounts
     tracing[i]   interpreter i traces (changed under its books' mutex, too)

   For each interpreter, also changed without the global mutex:

     credit[i]    the atomic word of the account: a credit, or CLOSED.  While
                  it is CLOSED, only the owner of the global mutex changes it.
     traced[i]    the size of the traces of the interpreter, an atomic word
     books[i]     the mutex of its books.  Lock order: global mutex, books.

   With SHARES=1 there is no traced[i], and one atomic instruction less for
   each block.  Instead the global mutex also guards

     share[i]     the part of committed that is account i's: the traces of the
                  interpreter, and its credit while the account is open.  What
                  needs no mutex moves bytes from one to the other, so it does
                  not change.  A closed account's share is its traces.

   Each interpreter has a thread that holds its GIL.  It counts without the
   books' mutex (LOCKED=1: with it), frees what another interpreter has
   traced, reads the counters, resets the peak, clears, stops, ends the
   interpreter, makes a new one in its place, starts again, and forks.  As
   many interpreters as DETACHED says also have a thread that counts raw
   memory without the GIL, under the books' mutex.  All threads run forever.
   Only the memory of the process is bounded, and with it all numbers: so what
   is found to hold, holds for any number of operations in any order.

   A step of the model (one statement, d_step or atomic) is one atomic
   instruction on a word that is shared without a mutex, or the locking or
   unlocking of a mutex.  What only the owner of the global mutex can see
   (asserted wherever it is used) is joined to such a step; FINE=1 makes steps
   of its own of that.

   What is claimed
   ---------------
   true_sum and true_peak are what the counters have to be.  They change where
   an operation takes effect:

     add from the credit       the successful compare-exchange of the credit
     add below the peak        the addition to committed
     add that makes a peak     the assignment to peak (all are closed then)
     remove, account open      the successful compare-exchange of the credit
     remove, account closed    the store that opens the account
     clear, stop, end          the subtraction from committed
     reset of the peak         the assignment to peak (all are closed then)
     read                      reading the pair (all are closed then)

   In every state:

     committed == true_sum + the credits of all open accounts
     true_sum <= peak and committed <= peak
     peak == true_peak

   (with FINE=1 the first only while nobody has the global mutex).  Also:

     the pair that is read is (true_sum, true_peak);
     the pair is (0, 0) when nothing traces;
     traced[i] (or the share) is the size of the traces in the table, where
     it is used;
     the open accounts are those in the list when nobody has the mutex;
     nobody but the owner of the global mutex changes a closed account;
     nobody touches the account of an interpreter whose memory is gone: the
     mutex is held while it stops, not while its memory is freed;
     who takes the global mutex did not find enough credit;
     a child gets the right sum;
     there is no deadlock, and (check_model.sh: "progress") no endless retry.

   What is left out
   ----------------
   Weak memory: a step takes effect for all threads at once.  The C code has
   sequentially consistent read-modify-write operations on credit[].
   The table of the traces: owned[i] says how much is in it.
   Failures to store a trace: they come before it is counted, never after.
   realloc(): counts the difference of the sizes, as one add or one remove.
   Blocks that clear or stop has forgotten: here they are free at once.
   The amount of credit: here any that is possible, half of it in the C code.

   How to run it
   -------------
   Python/tracemalloc_counters.c is SHARES=1 LOCKED=1; the other variants claim
   more than it needs.
   ./check_model.sh runs everything: the correct model in several shapes, and
   each BUG below, which has to be found.  To see how something goes wrong:

     spin -DINTERPRETERS=2 -DBUG=3 -a counters.pml
     cc -O2 -DSAFETY -DBFS -o pan pan.c
     ./pan
     spin -DINTERPRETERS=2 -DBUG=3 -t -p -g counters.pml
*/

#ifndef INTERPRETERS
#define INTERPRETERS    3       /* 1 to 3 */
#endif
#ifndef MEMORY
#define MEMORY          2       /* units of memory; a block has 1 or 2 */
#endif
#ifndef DETACHED
#define DETACHED        0       /* how many have a thread without the GIL */
#endif
#ifndef LOCKED
#define LOCKED          0       /* 1: the GIL alone does not guard books */
#endif
#ifndef ENDING
#define ENDING          1       /* 0: no interpreter ends */
#endif
#ifndef FORKING
#define FORKING         1       /* 0: the process does not fork */
#endif
#ifndef SHARES
#define SHARES          0       /* 1: share[] instead of traced[] */
#endif
#ifndef FRUGAL
#define FRUGAL          0       /* 1: close no more accounts than needed */
#endif
#ifndef FINE
#define FINE            0       /* 1: smaller steps */
#endif
#ifndef BUG
#define BUG             0
#endif

#define PEAK_WITHOUT_CLOSING    (BUG == 1)
#define CLOSE_BY_LOAD_AND_STORE (BUG == 2)
#define RESET_WITHOUT_CLOSING   (BUG == 3)
#define GRANT_TOO_MUCH          (BUG == 4)
#define CLEAR_WITHOUT_CLOSING   (BUG == 5)
#define READ_WITHOUT_CLOSING    (BUG == 6)
#define FOREIGN_WITHOUT_MUTEX   (BUG == 7)      /* with LOCKED=1 */
#define REMOVE_WITHOUT_LOOKING  (BUG == 8)
#define TRACED_NOT_ATOMIC       (BUG == 9)      /* with DETACHED=1 */
#define STOP_WITHOUT_CLOSING    (BUG == 10)
#define TRACING_NOT_ASKED_AGAIN (BUG == 11)     /* with DETACHED=1 */
#define ADD_BY_LOAD_AND_STORE   (BUG == 12)
#define BOOKS_BEFORE_MUTEX      (BUG == 13)     /* with LOCKED=1 */
#define OWN_CREDIT_FORGOTTEN    (BUG == 14)
#define PEAK_OUTLIVES_TRACING   (BUG == 15)
#define START_AS_ALLOCATED      (BUG == 16)
#define CLEAR_WITHOUT_BOOKS     (BUG == 17)     /* with DETACHED=1 */
#define END_WITHOUT_STOP        (BUG == 18)
#define FORK_BY_SUBTRACTION     (BUG == 19)

#define CLOSED          255
#define NOBODY          255


/* --- State -------------------------------------------------------------- */

byte mutex = NOBODY;
byte committed, peak;
bit open[INTERPRETERS];
bit tracing[INTERPRETERS];

byte credit[INTERPRETERS];
#if SHARES
byte share[INTERPRETERS];
#else
byte traced[INTERPRETERS];
#endif
byte books[INTERPRETERS] = NOBODY;

/* Not in the C code. */
byte true_sum, true_peak;
byte memory = MEMORY;           /* what malloc() still has */
byte owned[INTERPRETERS];       /* the size of all traces in the table */
bit alive[INTERPRETERS] = 1;    /* the interpreter's own memory exists */
bit busy[INTERPRETERS];         /* its thread without the GIL works */
bit ending[INTERPRETERS];       /* and may not begin again */

#define CREDIT(k)       (credit[k] == CLOSED -> 0 : credit[k])
#if INTERPRETERS == 1
#define ALL_CREDIT      CREDIT(0)
#define ANY_OPEN        open[0]
#define ANY_TRACING     tracing[0]
#elif INTERPRETERS == 2
#define ALL_CREDIT      (CREDIT(0) + CREDIT(1))
#define ANY_OPEN        (open[0] || open[1])
#define ANY_TRACING     (tracing[0] || tracing[1])
#else
#define ALL_CREDIT      (CREDIT(0) + CREDIT(1) + CREDIT(2))
#define ANY_OPEN        (open[0] || open[1] || open[2])
#define ANY_TRACING     (tracing[0] || tracing[1] || tracing[2])
#endif

/* In each step that changes one of these: so it holds in every state. */
#define CHECK \
    assert((FINE && mutex != NOBODY) || committed == true_sum + ALL_CREDIT); \
    assert(true_sum <= peak && committed <= peak); \
    assert(peak == true_peak)

#define HAVE_MUTEX      assert(mutex == _pid)
#define TOUCH(k)        assert(alive[k])

#define GROW(n) \
    true_sum = true_sum + n; \
    true_peak = (true_sum > true_peak -> true_sum : true_peak)

/* What follows is guarded by the mutex. */
#if FINE
#define NEXT            }; d_step {
#else
#define NEXT
#endif


/* --- Mutexes ------------------------------------------------------------ */

inline lock_mutex()
{
    d_step { mutex == NOBODY -> mutex = _pid; }
}

inline unlock_mutex()
{
    d_step {
        HAVE_MUTEX;
        mutex = NOBODY;
        for (k : 0 .. INTERPRETERS - 1) {
            if
            :: tracing[k] -> assert(open[k] == (credit[k] != CLOSED));
            :: else -> assert(!open[k]);
            fi
        }
        k = 0;
        CHECK;
    }
}

inline lock_books(i)
{
    d_step { books[i] == NOBODY -> TOUCH(i); books[i] = _pid; }
}

inline unlock_books(i)
{
    d_step { TOUCH(i); assert(books[i] == _pid); books[i] = NOBODY; }
}

/* For the thread with the GIL, where nobody else counts for interpreter i. */
#if LOCKED
#define LOCK_OWN_BOOKS(i)       lock_books(i)
#define UNLOCK_OWN_BOOKS(i)     unlock_books(i)
#else
#define LOCK_OWN_BOOKS(i)       skip
#define UNLOCK_OWN_BOOKS(i)     skip
#endif

/* To exclude whoever counts under the books' mutex, if there is anybody. */
#if LOCKED || DETACHED
#define LOCK_BOOKS(i)           lock_books(i)
#define UNLOCK_BOOKS(i)         unlock_books(i)
#else
#define LOCK_BOOKS(i)           skip
#define UNLOCK_BOOKS(i)         skip
#endif


/* --- Accounts ----------------------------------------------------------- */

/* Take back its credit: an atomic exchange. */
inline close_account(i)
{
#if CLOSE_BY_LOAD_AND_STORE
    had = credit[i];
#endif
    d_step {
        HAVE_MUTEX;
        TOUCH(i);
#if !CLOSE_BY_LOAD_AND_STORE
        had = credit[i];
#endif
        credit[i] = CLOSED;
        NEXT
        if
        :: had != CLOSED ->
            committed = committed - had;
#if SHARES
            share[i] = share[i] - had;
#endif
            open[i] = 0;
        :: else
        fi;
        had = 0;
        CHECK;
    }
}

/* The list may have any order. */
inline close_all_accounts()
{
    do
    :: open[0] -> close_account(0);
#if INTERPRETERS >= 2
    :: open[1] -> close_account(1);
#endif
#if INTERPRETERS >= 3
    :: open[2] -> close_account(2);
#endif
    :: !ANY_OPEN -> break;
    od;
    skip        /* the loop cannot lead to a d_step */
}

inline close_accounts_for(n)
{
#if FRUGAL
    do
    :: peak - committed < n && open[0] -> close_account(0);
#if INTERPRETERS >= 2
    :: peak - committed < n && open[1] -> close_account(1);
#endif
#if INTERPRETERS >= 3
    :: peak - committed < n && open[2] -> close_account(2);
#endif
    :: peak - committed >= n || !ANY_OPEN -> break;
    od
#else
    if
    :: peak - committed < n -> close_all_accounts();
    :: else
    fi
#endif
}

/* Any credit, as long as it makes no new peak. */
inline open_account(i)
{
    atomic {
        HAVE_MUTEX;
        TOUCH(i);
        assert(credit[i] == CLOSED || OWN_CREDIT_FORGOTTEN);
        do
        :: had < peak - committed -> had++;
        :: break;
        od;
        had = had + GRANT_TOO_MUCH;
        committed = committed + had;
#if SHARES
        share[i] = share[i] + had;
#endif
        open[i] = 1;
#if FINE
    }
    atomic {
#endif
        credit[i] = had;
        had = 0;
        CHECK;
    }
}

/* Sets "done", or "c" to why it could not be done. */
inline add_from_credit(i, n)
{
    d_step { TOUCH(i); c = credit[i]; }
    do
    :: !done && c != CLOSED && c >= n ->
        /* An atomic compare-exchange. */
        d_step {
            TOUCH(i);
            if
            :: credit[i] == c || ADD_BY_LOAD_AND_STORE ->
                assert(credit[i] != CLOSED || mutex == _pid);
                credit[i] = c - n;
                GROW(n);
                CHECK;
                done = 1;
            :: else ->
                c = credit[i];
            fi
        }
    :: else -> break;
    od
}

inline remove_to_credit(i, n)
{
    d_step { TOUCH(i); c = credit[i]; }
    do
    :: !done && c != CLOSED ->
        /* An atomic compare-exchange. */
        d_step {
            TOUCH(i);
            if
            :: credit[i] == c ->
                assert(credit[i] != CLOSED || mutex == _pid);
                credit[i] = c + n;
                true_sum = true_sum - n;
                CHECK;
                done = 1;
            :: else ->
                c = credit[i];
            fi
        }
    :: else -> break;
    od
}

/* An atomic addition to traced[i].  From now on the block can be freed. */
inline count_added(i, n)
{
#if TRACED_NOT_ATOMIC
    c = traced[i];
#endif
    d_step {
        TOUCH(i);
#if TRACED_NOT_ATOMIC
        traced[i] = c + n;
#elif !SHARES
        traced[i] = traced[i] + n;
#endif
        owned[i] = owned[i] + n;
        c = 0;
        done = 0;
    }
}

/* An atomic subtraction.  From now on the memory can be allocated. */
inline count_removed(i, n)
{
    d_step {
        TOUCH(i);
#if !SHARES
        traced[i] = traced[i] - n;
#endif
        memory = memory + n;
        c = 0;
        done = 0;
    }
}

inline add_with_mutex(i, n)
{
    add_from_credit(i, n);
    if
    :: done
    :: else ->
#if !OWN_CREDIT_FORGOTTEN
        close_account(i);
#endif
#if !PEAK_WITHOUT_CLOSING
        close_accounts_for(n);
#endif
        if
        :: d_step {
                peak - committed < n ->
                /* All accounts are closed: committed is the sum. */
                HAVE_MUTEX;
                assert(!ANY_OPEN || PEAK_WITHOUT_CLOSING
                       || OWN_CREDIT_FORGOTTEN);
                peak = committed + n;
                GROW(n);
                NEXT
                committed = committed + n;
                CHECK;
            }
        :: d_step {
                peak - committed >= n ->
                HAVE_MUTEX;
                committed = committed + n;
                GROW(n);
                CHECK;
            }
        fi;
#if SHARES
        share[i] = share[i] + n;
#endif
        open_account(i);
    fi;
    count_added(i, n);
}

inline remove_with_mutex(i, n)
{
#if !REMOVE_WITHOUT_LOOKING
    /* Another thread can have opened the account. */
    remove_to_credit(i, n);
#endif
    if
    :: done
    :: else ->
        d_step {
            HAVE_MUTEX;
            TOUCH(i);
            assert(credit[i] == CLOSED || REMOVE_WITHOUT_LOOKING);
            open[i] = 1;
            credit[i] = n;
            true_sum = true_sum - n;
            CHECK;
        }
    fi;
    count_removed(i, n);
}


/* --- Operations of the thread that has the GIL of interpreter i ---------- */

inline allocate()
{
    if
    :: n = 1;
    :: memory >= 2 -> n = 2;
    fi;
    memory = memory - n;
}

inline take_trace(i)
{
    if
    :: n = 1;
    :: owned[i] >= 2 -> n = 2;
    fi;
    owned[i] = owned[i] - n;
}

inline add()
{
    LOCK_OWN_BOOKS(i);
    add_from_credit(i, n);
    if
    :: done ->
        count_added(i, n);
        UNLOCK_OWN_BOOKS(i);
    :: else ->
        assert(c == CLOSED || c < n);
#if BOOKS_BEFORE_MUTEX
        lock_mutex();
#else
        UNLOCK_OWN_BOOKS(i);
        lock_mutex();
        LOCK_OWN_BOOKS(i);
#endif
        add_with_mutex(i, n);
        UNLOCK_OWN_BOOKS(i);
        unlock_mutex();
    fi
}

inline remove()
{
    LOCK_OWN_BOOKS(i);
    remove_to_credit(i, n);
    if
    :: done ->
        count_removed(i, n);
        UNLOCK_OWN_BOOKS(i);
    :: else ->
        assert(c == CLOSED);
        UNLOCK_OWN_BOOKS(i);
        lock_mutex();
        LOCK_OWN_BOOKS(i);
        remove_with_mutex(i, n);
        UNLOCK_OWN_BOOKS(i);
        unlock_mutex();
    fi
}

/* The traces of interpreter j, and itself, can be gone by now. */
inline remove_foreign()
{
#if FOREIGN_WITHOUT_MUTEX
    if
    :: tracing[j] ->
        LOCK_BOOKS(j);
        if
        :: atomic { owned[j] >= 1 -> take_trace(j); }
            remove_to_credit(j, n);
            if
            :: done -> count_removed(j, n);
            :: else -> owned[j] = owned[j] + n;
            fi
        :: d_step { owned[j] == 0; }
        fi;
        UNLOCK_BOOKS(j);
    :: else
    fi
#else
    lock_mutex();
    if
    :: tracing[j] ->
        LOCK_BOOKS(j);
        if
        :: atomic { owned[j] >= 1 -> take_trace(j); }
            remove_with_mutex(j, n);
        :: d_step { owned[j] == 0; }
        fi;
        UNLOCK_BOOKS(j);
    :: else
    fi;
    unlock_mutex();
#endif
}

inline read_counters()
{
    lock_mutex();
#if !READ_WITHOUT_CLOSING
    close_all_accounts();
#endif
    d_step {
        HAVE_MUTEX;
        assert(committed == true_sum && peak == true_peak);
        assert(ANY_TRACING || (committed == 0 && peak == 0));
    }
    unlock_mutex();
}

inline reset_peak()
{
    lock_mutex();
#if !RESET_WITHOUT_CLOSING
    close_all_accounts();
#endif
    d_step {
        HAVE_MUTEX;
        peak = committed;
        true_peak = true_sum;
        CHECK;
    }
    unlock_mutex();
}

/* With the GIL, the mutex and the books' mutex: nobody counts for i. */
inline forget_traces()
{
    HAVE_MUTEX;
    TOUCH(i);
#if SHARES
    assert(share[i] == owned[i]);
    committed = committed - share[i];
    share[i] = 0;
#else
    assert(traced[i] == owned[i]);
    committed = committed - traced[i];
    traced[i] = 0;
#endif
    true_sum = true_sum - owned[i];
    memory = memory + owned[i];
    owned[i] = 0;
}

inline clear()
{
    lock_mutex();
#if !CLEAR_WITHOUT_BOOKS
    LOCK_BOOKS(i);
#endif
#if !CLEAR_WITHOUT_CLOSING
    close_all_accounts();
#endif
    d_step {
        forget_traces();
        NEXT
        peak = committed;
        true_peak = true_sum;
        CHECK;
    }
#if !CLEAR_WITHOUT_BOOKS
    UNLOCK_BOOKS(i);
#endif
    unlock_mutex();
}

inline stop()
{
    lock_mutex();
    LOCK_BOOKS(i);
#if !STOP_WITHOUT_CLOSING
    close_account(i);
#endif
    d_step {
        forget_traces();
        NEXT
        tracing[i] = 0;
        if
        :: !ANY_TRACING ->
            assert(committed == 0 || STOP_WITHOUT_CLOSING);
#if !PEAK_OUTLIVES_TRACING
            peak = 0;
#endif
            true_peak = 0;
        :: else
        fi;
        CHECK;
    }
    UNLOCK_BOOKS(i);
    unlock_mutex();
}

inline start()
{
    lock_mutex();
    LOCK_BOOKS(i);
    d_step {
        HAVE_MUTEX;
        TOUCH(i);
#if !START_AS_ALLOCATED
        credit[i] = CLOSED;
#endif
#if SHARES
        share[i] = 0;
#else
        traced[i] = 0;
#endif
        tracing[i] = 1;
        CHECK;
    }
    UNLOCK_BOOKS(i);
    unlock_mutex();
}

/* No other thread of the interpreter is left.  Its memory is freed without
   the mutex, and a new interpreter's memory is all zero. */
inline end_interpreter()
{
#if !END_WITHOUT_STOP
    if
    :: tracing[i] -> stop();
    :: else
    fi;
#endif
    d_step {
        alive[i] = 0;
        credit[i] = 0;
        ending[i] = 0;
    }
}

/* In the child nobody goes on but the thread that forks, and no traces are
   left but those of its interpreter.  The others can be subtracted if they
   have shares; but not with traced[]: who counts without a mutex may have
   changed credit[] and not yet traced[]. */
inline fork_process()
{
    lock_mutex();
    for (k : 0 .. INTERPRETERS - 1) {
        if
        :: tracing[k] -> LOCK_BOOKS(k);
        :: else
        fi
    }
    skip;       /* the loop cannot lead to a d_step */
    d_step {
        HAVE_MUTEX;
#if FORK_BY_SUBTRACTION
        had = committed - CREDIT(i);
        for (k : 0 .. INTERPRETERS - 1) {
            if
            :: k != i -> had = had - CREDIT(k) - traced[k];
            :: else
            fi
        }
#elif SHARES
        had = committed - CREDIT(i);
        for (k : 0 .. INTERPRETERS - 1) {
            if
            :: k != i -> had = had - share[k];
            :: else
            fi
        }
#else
        had = traced[i];
#endif
        assert(had == owned[i]);
        had = 0;
        k = 0;
    }
    for (k : 0 .. INTERPRETERS - 1) {
        if
        :: tracing[k] -> UNLOCK_BOOKS(k);
        :: else
        fi
    }
    unlock_mutex();
}

#define FREE_OF(k) \
    d_step { alive[i] && k != i && tracing[k] && owned[k] >= 1 -> j = k; }

active [INTERPRETERS] proctype with_gil()
{
    byte i = _pid;
    byte j, n, c, had, k;
    bit done;

end:
    do
    ::  if
        :: atomic { alive[i] && tracing[i] && memory >= 1 -> allocate(); }
            add();
        :: atomic { alive[i] && tracing[i] && owned[i] >= 1 ->
                take_trace(i); }
            remove();
#if INTERPRETERS >= 2
        :: FREE_OF(0) -> remove_foreign();
        :: FREE_OF(1) -> remove_foreign();
#endif
#if INTERPRETERS >= 3
        :: FREE_OF(2) -> remove_foreign();
#endif
        :: alive[i] -> read_counters();
        :: alive[i] -> reset_peak();
        :: alive[i] && tracing[i] -> clear();
        :: alive[i] && tracing[i] -> stop();
        :: alive[i] && !tracing[i] -> start();
#if FORKING
        :: alive[i] && tracing[i] -> fork_process();
#endif
#if ENDING
        :: d_step { alive[i] && !busy[i] -> ending[i] = 1; }
            end_interpreter();
        :: d_step { !alive[i] -> alive[i] = 1; }
#endif
        fi;
progress:
        d_step { j = 0; n = 0; c = 0; }
    od
}


/* --- Operations of a thread of interpreter i without the GIL ------------- */

#if DETACHED
inline add_detached()
{
    lock_books(i);
    if
    :: tracing[i] ->
        add_from_credit(i, n);
        if
        :: done ->
            count_added(i, n);
            unlock_books(i);
        :: else ->
            assert(c == CLOSED || c < n);
            unlock_books(i);
            lock_mutex();
            lock_books(i);
            if
            :: tracing[i] || TRACING_NOT_ASKED_AGAIN ->
                add_with_mutex(i, n);
            :: else ->
                memory = memory + n;
            fi;
            unlock_books(i);
            unlock_mutex();
        fi
    :: else ->
        memory = memory + n;
        unlock_books(i);
    fi
}

inline remove_detached()
{
    lock_books(i);
    if
    :: atomic { owned[i] >= 1 -> take_trace(i); }
        remove_to_credit(i, n);
        if
        :: done ->
            count_removed(i, n);
            unlock_books(i);
        :: else ->
            assert(c == CLOSED);
            /* Leave the trace there, without the books' mutex. */
            owned[i] = owned[i] + n;
            unlock_books(i);
            lock_mutex();
            lock_books(i);
            if
            :: atomic { owned[i] >= 1 -> take_trace(i); }
                remove_with_mutex(i, n);
            :: d_step { owned[i] == 0; }
            fi;
            unlock_books(i);
            unlock_mutex();
        fi
    :: d_step { owned[i] == 0; }
        unlock_books(i);
    fi
}

active [DETACHED] proctype without_gil()
{
    byte i = _pid - INTERPRETERS;
    byte n, c, had, k;
    bit done;

end:
    do
    ::  if
        :: atomic { alive[i] && !ending[i] && memory >= 1 ->
                busy[i] = 1;
                allocate(); }
            add_detached();
        :: d_step { alive[i] && !ending[i] && owned[i] >= 1 ->
                busy[i] = 1; }
            remove_detached();
        fi;
progress:
        d_step { busy[i] = 0; n = 0; c = 0; }
    od
}
#endif
