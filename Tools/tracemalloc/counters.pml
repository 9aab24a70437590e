/* The counters of tracemalloc: a model for SPIN (https://spinroot.com).

   get_traced_memory() returns a pair that belongs to the whole process: the
   sum of the sizes of all traces of all interpreters, and the largest that
   this sum has been.  Both have to be exact, and still most allocations should
   not need the mutex of the runtime.  So every interpreter has an account with
   a credit: as many bytes as it may add on its own (P. O'Neil, "The Escrow
   Transactional Method", 1986).  The sum and all credits together are never
   more than the peak; therefore what is added from a credit can never make a
   new peak.  The exception is an account that is the only one open, the sole
   one.  It may have any credit: the largest sum was where that was the least.

   What is modelled
   ----------------
   Python/tracemalloc_counters.c, and how Python/tracemalloc_books.c uses it.
   Guarded by the mutex of the runtime:

     committed    the sum of all traces, and of the credits of open accounts
     peak         the largest sum so far, but for what the sole account added
     sole         the account that may exceed the peak, or NOBODY
     open[i]      account i is in the list of the open accounts
     share[i]     the part of committed that is account i's
     tracing[i]   interpreter i traces

   Guarded by books[i], the lock of the books of interpreter i:

     credit[i]    or CLOSED; from and to this with the mutex held, too
     lowest[i]    the least credit since the account was opened

   Lock order: mutex, books; and other books with the mutex only.

   Each interpreter has a thread that holds its GIL: it adds, removes, frees
   what another interpreter has traced, reads the counters, resets the peak,
   clears, stops, ends the interpreter, makes a new one in its place, starts
   again, and forks.  As many interpreters as SECOND says also have a thread
   that adds and removes at the same time: detached, with the mutex; or
   attached, as in a free-threaded build, where the world is stopped to start
   and to stop.  All threads run forever.  Only the memory of the process is
   bounded, and with it all numbers: so what is found to hold, holds for any
   number of operations in any order.

   A step of the model (one statement, d_step or atomic) is to lock or unlock
   something, to read what is guarded by the books, or to write it.  What is
   guarded by the mutex alone is joined to such a step.

   What is claimed
   ---------------
   true_sum and true_peak are what the counters have to be.  They change where
   the credit is written, or committed for a closed account, or the peak to
   reset it.  In every state:

     committed == true_sum + the credits of all open accounts
     without a sole account: committed <= peak and peak == true_peak
     with one, unless its books are locked:
         max(peak, committed - lowest) == true_peak

   Also:

     the pair that is read is (true_sum, true_peak);
     nothing is committed, and no account is open, when nothing traces;
     the share of a closed account is the size of the traces in the books;
     open accounts are those in the list, and no other than the sole one;
     a closed account is opened with the mutex held;
     nobody touches the account of an interpreter whose memory is gone: the
     mutex is held while it stops, not while its memory is freed;
     a child gets the right pair;
     there is no deadlock, and (check_model.sh: "progress") no endless retry.

   What is left out
   ----------------
   How books are locked: that is in lock.pml.  Here it is a mutex.
   The books: owned[i] says how much is in them.
   Failures to store a trace: they come before it is counted, never after.
   realloc(): counts the difference of the sizes, as one add or one remove.
   Blocks that clear or stop has forgotten: here they are free at once.
   The amount of credit: here any that is possible.
   When an account becomes the sole one: here whenever no other is open.
   The look at the credit without a lock, to take the mutex at once: here who
   adds may do so anyway.

   How to run it
   -------------
   ./check_model.sh runs everything: the correct model in several shapes, and
   each BUG below, which has to be found.  To see how something goes wrong:

     spin -DINTERPRETERS=2 -DBUG=3 -a counters.pml
     cc -O2 -DSAFETY -DBFS -o pan pan.c
     ./pan
     spin -DINTERPRETERS=2 -DBUG=3 -t -p -g counters.pml
*/

#ifndef INTERPRETERS
#define INTERPRETERS    3       /* 2 or 3 */
#endif
#ifndef MEMORY
#define MEMORY          2       /* units of memory; a block has 1 or 2 */
#endif
#ifndef SECOND
#define SECOND          0       /* how many have a second thread */
#endif
#ifndef ENDING
#define ENDING          1       /* 0: no interpreter ends */
#endif
#ifndef BUG
#define BUG             0
#endif

#define PEAK_WITHOUT_CLOSING    (BUG == 1)
#define CLOSE_WITHOUT_BOOKS     (BUG == 2)
#define RESET_WITHOUT_CLOSING   (BUG == 3)
#define GRANT_TOO_MUCH          (BUG == 4)
#define CLEAR_WITHOUT_CLOSING   (BUG == 5)
#define READ_WITHOUT_CLOSING    (BUG == 6)
#define FOREIGN_WITHOUT_MUTEX   (BUG == 7)
#define REMOVE_WITHOUT_LOOKING  (BUG == 8)
#define STOP_WITHOUT_CLOSING    (BUG == 9)
#define ASKED_BEFORE_MUTEX      (BUG == 10)     /* with SECOND=1 */
#define BOOKS_BEFORE_MUTEX      (BUG == 11)
#define OWN_ACCOUNT_OPEN        (BUG == 12)
#define PEAK_OUTLIVES_TRACING   (BUG == 13)
#define START_AS_ALLOCATED      (BUG == 14)
#define CLEAR_WITHOUT_BOOKS     (BUG == 15)     /* with SECOND=1 */
#define END_WITHOUT_STOP        (BUG == 16)
#define FORK_WITHOUT_BOOKS      (BUG == 17)
#define READ_WITH_BOOKS         (BUG == 18)
#define SOLE_AMONG_OTHERS       (BUG == 19)
#define ADD_BESIDES_SOLE        (BUG == 20)
#define REMOVE_BESIDES_SOLE     (BUG == 21)
#define STOP_BESIDES_SOLE       (BUG == 22)     /* with MEMORY=3 */
#define LOWEST_FORGOTTEN        (BUG == 23)
#define GROWTH_FORGOTTEN        (BUG == 24)
#define SOLE_OUTLIVES_CLOSING   (BUG == 25)
#define FORK_FORGETS_GROWTH     (BUG == 26)

#define CLOSED          255
#define NOBODY          255


/* --- State -------------------------------------------------------------- */

byte mutex = NOBODY;
byte committed, peak;
byte sole = NOBODY;
bit open[INTERPRETERS];
byte share[INTERPRETERS];
bit tracing[INTERPRETERS];

byte books[INTERPRETERS] = NOBODY;
byte credit[INTERPRETERS];
byte lowest[INTERPRETERS];

/* Not in the C code. */
byte true_sum, true_peak;
byte memory = MEMORY;           /* what malloc() still has */
byte owned[INTERPRETERS];       /* the size of all traces in the books */
bit alive[INTERPRETERS] = 1;    /* the interpreter's own memory exists */
bit busy[INTERPRETERS];         /* its second thread is in a hook, attached */
bit stopping[INTERPRETERS];     /* and has to wait before the next */

#define CREDIT(k)       (credit[k] == CLOSED -> 0 : credit[k])
#define ALL_CREDIT_2    (CREDIT(0) + CREDIT(1))
#define ANY_OPEN_2      (open[0] || open[1])
#define ANY_TRACING_2   (tracing[0] || tracing[1])
#if INTERPRETERS == 2
#define ALL_CREDIT      ALL_CREDIT_2
#define ANY_OPEN        ANY_OPEN_2
#define ANY_TRACING     ANY_TRACING_2
#else
#define ALL_CREDIT      (ALL_CREDIT_2 + CREDIT(2))
#define ANY_OPEN        (ANY_OPEN_2 || open[2])
#define ANY_TRACING     (ANY_TRACING_2 || tracing[2])
#endif

#define MAX(a, b)       (a > b -> a : b)

/* In each step that changes one of these: so it holds in every state. */
#define CHECK \
    assert(committed == true_sum + ALL_CREDIT); \
    if \
    :: sole == NOBODY -> \
        assert(committed <= peak); \
        assert(peak == true_peak); \
    :: else -> \
        assert(books[sole] != NOBODY \
               || MAX(peak, committed - lowest[sole]) == true_peak); \
    fi

#define HAVE_MUTEX      assert(mutex == _pid)
#define TOUCH(k)        assert(alive[k])

#define GROW(n) \
    true_sum = true_sum + n; \
    true_peak = MAX(true_sum, true_peak)


/* --- Locks -------------------------------------------------------------- */

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
            fi;
            assert(sole == NOBODY || open[k] == (k == sole));
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
    d_step {
        TOUCH(i);
        assert(books[i] == _pid);
        books[i] = NOBODY;
        CHECK;
    }
}


/* --- Accounts ----------------------------------------------------------- */

/* With its books locked. */
inline close_account(i)
{
    d_step { TOUCH(i); had = credit[i]; low = lowest[i]; }
    d_step {
        HAVE_MUTEX;
        TOUCH(i);
        if
        :: had != CLOSED ->
            if
            :: sole == i ->
#if !GROWTH_FORGOTTEN
                peak = MAX(peak, committed - low);
#endif
#if !SOLE_OUTLIVES_CLOSING
                sole = NOBODY;
#endif
            :: else
            fi;
            credit[i] = CLOSED;
            lowest[i] = CLOSED;
            share[i] = share[i] - had;
            committed = committed - had;
            open[i] = 0;
        :: else
        fi;
        had = 0;
        low = 0;
        CHECK;
    }
}

inline lock_and_close(i)
{
#if CLOSE_WITHOUT_BOOKS
    close_account(i);
#else
    lock_books(i);
    close_account(i);
    unlock_books(i);
#endif
}

/* The list may have any order. */
inline close_all()
{
    do
    :: open[0] -> lock_and_close(0);
    :: open[1] -> lock_and_close(1);
#if INTERPRETERS >= 3
    :: open[2] -> lock_and_close(2);
#endif
    :: !ANY_OPEN -> break;
    od;
    skip        /* the loop cannot lead to a d_step */
}

/* Before account i changes. */
inline end_sole(i)
{
    if
    :: sole == NOBODY || sole == i;
    :: sole == 0 && i != 0 -> lock_and_close(0);
    :: sole == 1 && i != 1 -> lock_and_close(1);
#if INTERPRETERS >= 3
    :: sole == 2 && i != 2 -> lock_and_close(2);
#endif
    fi
}

/* Sets "done" if it could be done. */
inline try_add(i, n)
{
    d_step { TOUCH(i); c = credit[i]; }
    if
    :: c != CLOSED && c >= n ->
        d_step {
            TOUCH(i);
            c = c - n;
            credit[i] = c;
            GROW(n);
            CHECK;
            done = 1;
        }
        d_step {
            TOUCH(i);
            if
            :: c < lowest[i] && !LOWEST_FORGOTTEN -> lowest[i] = c;
            :: else
            fi
        }
    :: else
    fi
}

inline try_remove(i, n)
{
    d_step { TOUCH(i); c = credit[i]; }
    if
    :: c != CLOSED ->
        d_step {
            TOUCH(i);
            credit[i] = c + n;
            true_sum = true_sum - n;
            CHECK;
            done = 1;
        }
    :: else
    fi
}

/* From now on the block can be freed. */
inline put_trace(i, n)
{
    d_step { TOUCH(i); owned[i] = owned[i] + n; c = 0; done = 0; }
}

/* From now on the memory can be allocated. */
inline drop_trace(n)
{
    d_step { memory = memory + n; c = 0; done = 0; }
}

/* Any credit: of the sole account up to all that there is, otherwise as long
   as it makes no new peak. */
inline open_account(i)
{
    atomic {
        HAVE_MUTEX;
        TOUCH(i);
        if
        :: !ANY_OPEN || SOLE_AMONG_OTHERS ->
            sole = i;
            do
            :: had < MEMORY - committed -> had++;
            :: break;
            od;
        :: true ->
            do
            :: had < peak - committed -> had++;
            :: break;
            od;
            had = had + GRANT_TOO_MUCH;
        fi;
        committed = committed + had;
        share[i] = share[i] + had;
        open[i] = 1;
        credit[i] = had;
        lowest[i] = had;
        had = 0;
        CHECK;
    }
}

/* With the mutex held and the books locked. */
inline add_with_mutex(i, n)
{
    try_add(i, n);
    if
    :: done
    :: else ->
#if !ADD_BESIDES_SOLE
        end_sole(i);
#endif
#if !OWN_ACCOUNT_OPEN
        close_account(i);
#endif
        if
        :: peak - committed < n && !PEAK_WITHOUT_CLOSING -> close_all();
        :: else
        fi;
        d_step {
            HAVE_MUTEX;
            committed = committed + n;
            share[i] = share[i] + n;
            peak = MAX(peak, committed);
            GROW(n);
            CHECK;
        }
        open_account(i);
    fi;
    put_trace(i, n);
}

inline remove_with_mutex(i, n)
{
#if !REMOVE_WITHOUT_LOOKING
    /* Another thread can have opened the account. */
    try_remove(i, n);
#endif
    if
    :: done
    :: else ->
#if !REMOVE_BESIDES_SOLE
        end_sole(i);
#endif
        d_step {
            HAVE_MUTEX;
            TOUCH(i);
            open[i] = 1;
            credit[i] = n;
            lowest[i] = n;
            true_sum = true_sum - n;
            CHECK;
        }
    fi;
    drop_trace(n);
}


/* --- Operations of a thread of interpreter i ----------------------------- */

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
    if
    :: lock_books(i);
        try_add(i, n);
        if
        :: done ->
            put_trace(i, n);
        :: else ->
            again = 1;
#if BOOKS_BEFORE_MUTEX
            lock_mutex();
            unlock_mutex();
#endif
        fi;
        unlock_books(i);
    :: again = 1;
    fi;
    if
    :: again ->
        again = 0;
        lock_mutex();
        lock_books(i);
        add_with_mutex(i, n);
        unlock_books(i);
        unlock_mutex();
    :: else
    fi
}

inline remove()
{
    lock_books(i);
    try_remove(i, n);
    if
    :: done ->
        drop_trace(n);
        unlock_books(i);
    :: else ->
        unlock_books(i);
        lock_mutex();
        lock_books(i);
        remove_with_mutex(i, n);
        unlock_books(i);
        unlock_mutex();
    fi
}

/* The traces of interpreter j, and itself, can be gone by now. */
inline remove_foreign(j)
{
#if FOREIGN_WITHOUT_MUTEX
    if
    :: tracing[j] -> lock_books(j); unlock_books(j);
    :: else
    fi;
#endif
    lock_mutex();
    if
    :: tracing[j] ->
        lock_books(j);
        if
        :: atomic { owned[j] >= 1 -> take_trace(j); }
            remove_with_mutex(j, n);
        :: d_step { owned[j] == 0; }
        fi;
        unlock_books(j);
    :: else
    fi;
    unlock_mutex();
}

inline read_counters()
{
    lock_mutex();
#if READ_WITH_BOOKS
    lock_books(i);
#endif
#if !READ_WITHOUT_CLOSING
    close_all();
#endif
    d_step {
        HAVE_MUTEX;
        assert(committed == true_sum && peak == true_peak);
    }
#if READ_WITH_BOOKS
    unlock_books(i);
#endif
    unlock_mutex();
}

inline set_peak()
{
    d_step {
        HAVE_MUTEX;
        peak = committed;
        true_peak = true_sum;
        CHECK;
    }
}

/* With the mutex held. */
inline reset_peak()
{
#if !RESET_WITHOUT_CLOSING
    close_all();
#endif
    set_peak();
}

/* With the mutex held and the books locked. */
inline forget()
{
#if !STOP_BESIDES_SOLE
    end_sole(i);
#endif
#if !STOP_WITHOUT_CLOSING
    close_account(i);
#endif
    d_step {
        HAVE_MUTEX;
        TOUCH(i);
        assert(share[i] == owned[i]);
        committed = committed - share[i];
        share[i] = 0;
        true_sum = true_sum - owned[i];
        memory = memory + owned[i];
        owned[i] = 0;
        CHECK;
    }
}

inline clear()
{
    lock_mutex();
#if CLEAR_WITHOUT_BOOKS
    forget();
#else
    lock_books(i);
    forget();
    unlock_books(i);
#endif
#if CLEAR_WITHOUT_CLOSING
    set_peak();
#else
    reset_peak();
#endif
    unlock_mutex();
}

/* Until "stopping" is cleared. */
inline stop_world()
{
    d_step { !busy[i] -> stopping[i] = 1; }
}

inline stop()
{
    stop_world();
    lock_mutex();
    lock_books(i);
    forget();
    d_step { tracing[i] = 0; }
    unlock_books(i);
    unlock_mutex();
    stopping[i] = 0;
}

inline start()
{
    stop_world();
    lock_mutex();
    d_step {
        HAVE_MUTEX;
        if
        :: !ANY_TRACING ->
            assert(committed == 0 && sole == NOBODY);
#if !PEAK_OUTLIVES_TRACING
            peak = 0;
#endif
            true_peak = 0;
        :: else
        fi;
        CHECK;
    }
    lock_books(i);
    d_step {
        HAVE_MUTEX;
        TOUCH(i);
#if !START_AS_ALLOCATED
        credit[i] = CLOSED;
        lowest[i] = CLOSED;
#endif
        share[i] = 0;
        tracing[i] = 1;
    }
    unlock_books(i);
    unlock_mutex();
    stopping[i] = 0;
}

/* No attached thread of the interpreter is left.  Its memory is freed without
   the mutex, and a new interpreter's memory is all zero. */
inline end_interpreter()
{
#if !END_WITHOUT_STOP
    if
    :: tracing[i] -> stop();
    :: else
    fi;
#endif
    stop_world();
    d_step { alive[i] = 0; credit[i] = 0; lowest[i] = 0; stopping[i] = 0; }
}

/* In the child nobody goes on but the thread that forks, and no traces are
   left but those of its interpreter. */
inline fork_process()
{
    lock_mutex();
#if !FORK_WITHOUT_BOOKS
    for (k : 0 .. INTERPRETERS - 1) {
        if
        :: tracing[k] -> lock_books(k);
        :: else
        fi
    }
#endif
    skip;       /* the loop cannot lead to a d_step */
    d_step {
        HAVE_MUTEX;
        had = committed - CREDIT(i);
        for (k : 0 .. INTERPRETERS - 1) {
            if
            :: k != i -> had = had - share[k];
            :: else
            fi
        }
        assert(had == owned[i]);
        had = peak;
        if
        :: sole != NOBODY && !FORK_FORGETS_GROWTH ->
            had = MAX(peak, committed - lowest[sole]);
        :: else
        fi;
        assert(had == true_peak);
        had = 0;
        k = 0;
    }
#if !FORK_WITHOUT_BOOKS
    for (k : 0 .. INTERPRETERS - 1) {
        if
        :: tracing[k] -> unlock_books(k);
        :: else
        fi
    }
#endif
    unlock_mutex();
}

#define MAY_FREE_OF(k)  (k != i && tracing[k] && owned[k] >= 1)
#if INTERPRETERS == 2
#define MAY_FREE        (MAY_FREE_OF(0) || MAY_FREE_OF(1))
#else
#define MAY_FREE        (MAY_FREE_OF(0) || MAY_FREE_OF(1) || MAY_FREE_OF(2))
#endif

inline choose_other()
{
    if
    :: MAY_FREE_OF(0) -> j = 0;
    :: MAY_FREE_OF(1) -> j = 1;
#if INTERPRETERS >= 3
    :: MAY_FREE_OF(2) -> j = 2;
#endif
    fi
}

active [INTERPRETERS] proctype with_gil()
{
    byte i = _pid;
    byte j, n, c, had, low, k;
    bit done, again;

end:
    do
    ::  if
        :: atomic { alive[i] && tracing[i] && memory >= 1 -> allocate(); }
            add();
        :: atomic { alive[i] && tracing[i] && owned[i] >= 1 ->
                take_trace(i); }
            remove();
        :: atomic { alive[i] && MAY_FREE -> choose_other(); }
            remove_foreign(j);
        :: alive[i] && ANY_TRACING -> read_counters();
        :: alive[i] && ANY_TRACING ->
            lock_mutex();
            reset_peak();
            unlock_mutex();
        :: alive[i] && tracing[i] -> clear();
        :: alive[i] && tracing[i] -> stop();
        :: alive[i] && !tracing[i] -> start();
        :: alive[i] && tracing[i] -> fork_process();
#if ENDING
        :: alive[i] -> end_interpreter();
        :: d_step { !alive[i] -> alive[i] = 1; }
#endif
        fi;
progress:
        d_step { j = 0; n = 0; c = 0; }
    od
}


/* --- Operations of a second thread of interpreter i ---------------------- */

#if SECOND
inline add_detached()
{
#if !ASKED_BEFORE_MUTEX
    lock_mutex();
#endif
    if
    :: tracing[i] ->
#if ASKED_BEFORE_MUTEX
        lock_mutex();
#endif
        lock_books(i);
        add_with_mutex(i, n);
        unlock_books(i);
        unlock_mutex();
    :: else ->
        memory = memory + n;
#if !ASKED_BEFORE_MUTEX
        unlock_mutex();
#endif
    fi
}

/* The trace can be gone by now. */
inline remove_attached()
{
    lock_books(i);
    if
    :: atomic { owned[i] >= 1 -> take_trace(i); }
        try_remove(i, n);
        if
        :: done -> drop_trace(n);
        :: else -> owned[i] = owned[i] + n; again = 1;
        fi
    :: d_step { owned[i] == 0; }
    fi;
    unlock_books(i);
    if
    :: again -> again = 0; remove_foreign(i);
    :: else
    fi
}

#define ATTACH(i) \
    alive[i] && tracing[i] && !stopping[i] -> busy[i] = 1

active [SECOND] proctype second()
{
    byte i = _pid - INTERPRETERS;
    byte n, c, had, low, k;
    bit done, again;

end:
    do
    ::  if
        :: atomic { memory >= 1 -> allocate(); }
            add_detached();
        :: owned[i] >= 1 -> remove_foreign(i);
        :: atomic { memory >= 1 && ATTACH(i); allocate(); }
            add();
        :: d_step { owned[i] >= 1 && ATTACH(i); }
            remove_attached();
        fi;
progress:
        d_step { busy[i] = 0; n = 0; c = 0; }
    od
}
#endif
