/* The counters of tracemalloc: a model for SPIN (https://spinroot.com).

   get_traced_memory() returns the sum of the sizes of all traces, and the
   largest that this sum has been since the peak was reset.  Both have to be
   exact, though a thread with open credit adds as much as that on its own.

   What is modelled
   ----------------
   Python/tracemalloc_counters.c, and the inline functions that use credit in
   pycore_tracemalloc_data.h:

     committed       the sum and all open credit
     peak            the largest sum; behind while the sum is growing
     mutex           the mutex of the runtime
     inside[i]       thread i is using its credit
     open[i]         it may do so
     listed[i]       its credit is in the list of the open ones
     available[i]    what is left of the credit
     only_adds[i]    nothing may be freed with it (`limit` is 0); the sum is
                     growing if that is so of any credit in the list
     sole[i]         the thread is the only one, and may go beyond the peak
     lowest[i]       what was available at least when something was freed

   A step (one statement, d_step or atomic) has at most one access to what
   others write at the same time.  Joined to it is what the mutex guards, and
   the owner's read of `available` to its write.

   Each thread adds and removes 1 or 2 units, and does so with its credit if it
   can.  Thread 0 also reads the counters, resets the peak, and closes its own
   credit or that of thread 1.  All threads run forever; only the memory is
   bounded.

   Memory model: the owner's store of 1 to `inside` may wait in its write
   buffer (delayed[i]) while it loads `open` and goes on: until the owner locks
   a mutex, or stores to `inside` again, or another thread's barrier makes it
   visible.  All other stores and loads that matter have their order: they are
   atomic with release or acquire, or guarded by the mutex or by `inside`.

   What is claimed
   ---------------
   true_sum and true_peak are what the counters have to be.  They change at one
   step of each operation: where `available` is written, or where `committed`
   is changed with the mutex held.

     (1) Whenever the mutex is unlocked:
             committed == true_sum + all open credit
             if the sum is growing:   true_sum == true_peak
             if a thread is the only one:  the larger of peak and
                 committed - what was lowest == true_peak
             otherwise:               peak == true_peak
             and then, if any credit is open:  committed <= peak
     (2) The sum and the peak that are read are true_sum and true_peak.
     (3) No credit is used or changed by its owner after it was taken.
     (4) There is no deadlock, and (check_model.sh: "progress") no endless wait
         while no operation ends.

   What is left out
   ----------------
   MAX_GRANT, MIN_GRANT, `limit` but for 0, and `rest`: here any credit is given
   out that is possible, up to EXTRA where all is possible, and is opened, or
   not, after any operation with the mutex; also that of the only thread.  A
   step with open credit that is possible may be refused.  Sums that pass 2**64.

   How to run it
   -------------
   ./check_model.sh runs everything.  To see how a BUG below goes wrong:

     spin -DBUG=3 -a counters.pml
     cc -O2 -DSAFETY -DBFS -o pan pan.c && ./pan
     spin -DBUG=3 -t -p -g counters.pml
*/

#ifndef THREADS
#define THREADS         2       /* 2 or 3 */
#endif
#ifndef MEMORY
#define MEMORY          2       /* units of memory; a block has 1 or 2 */
#endif
#ifndef EXTRA
#define EXTRA           1       /* credit beyond the peak, at most */
#endif
#ifndef BUG
#define BUG             0
#endif

#define NO_BARRIER              (BUG == 1)
#define OPEN_BEFORE_INSIDE      (BUG == 2)
#define NO_WAIT_FOR_INSIDE      (BUG == 3)
#define OPEN_NOT_CLEARED        (BUG == 4)
#define LEAVE_TOO_EARLY         (BUG == 5)
#define LOCKS_WHILE_INSIDE      (BUG == 6)
#define PEAK_AMONG_OTHERS       (BUG == 7)
#define REMOVE_WHILE_GROWING    (BUG == 8)
#define ADD_WITHOUT_PEAK        (BUG == 9)
#define TAKE_WITHOUT_PEAK       (BUG == 10)
#define OPEN_TOO_MUCH           (BUG == 11)
#define OPEN_WITHOUT_MUTEX      (BUG == 12)
#define OPEN_TWICE              (BUG == 13)
#define OPEN_BELOW_PEAK         (BUG == 14)
#define OPEN_AMONG_OTHERS       (BUG == 15)
#define OPEN_MAY_RETURN         (BUG == 16)
#define READ_WITHOUT_CLOSING    (BUG == 17)
#define RESET_WITHOUT_CLOSING   (BUG == 18)
#define OTHER_WITHOUT_BARRIER   (BUG == 19)
#define TAKE_LEAVES_CREDIT      (BUG == 20)
#define SOLE_REMAINS_OPEN       (BUG == 21)
#define SOLE_AMONG_OTHERS       (BUG == 22)
#define LOWEST_NOT_NOTED        (BUG == 23)
#define LOWEST_NOT_TAKEN        (BUG == 24)

#define NOBODY          255

/* --- State -------------------------------------------------------------- */

byte mutex = NOBODY;
byte committed, peak;
bit inside[THREADS], open[THREADS], listed[THREADS], only_adds[THREADS];
bit sole[THREADS];
byte available[THREADS], lowest[THREADS];

/* Not in the C code. */
bit delayed[THREADS];           /* the store to `inside` is not visible yet */
bit held[THREADS];              /* `committed` has this thread's credit */
byte true_sum, true_peak;
byte memory = MEMORY;           /* what malloc() still has */
byte live;                      /* size of all blocks that may be freed */

#if THREADS == 2
#define ALL_CREDIT      (available[0] + available[1])
#define ANY_LISTED      (listed[0] || listed[1])
#define GROWING         (only_adds[0] || only_adds[1])
#define SOLE            (sole[0] || sole[1])
#define HIGHEST         (sole[0] -> committed - LOWEST(0) \
                         : committed - LOWEST(1))
#else
#define ALL_CREDIT      (available[0] + available[1] + available[2])
#define ANY_LISTED      (listed[0] || listed[1] || listed[2])
#define GROWING         (only_adds[0] || only_adds[1] || only_adds[2])
#define SOLE            (sole[0] || sole[1] || sole[2])
#define HIGHEST         (sole[0] -> committed - LOWEST(0) \
                         : (sole[1] -> committed - LOWEST(1) \
                            : committed - LOWEST(2)))
#endif

#define MAX(a, b)       (a > b -> a : b)
#define LOWEST(j)       (lowest[j] < available[j] -> lowest[j] : available[j])
#define ROOM            (peak > committed -> peak - committed : 0)
#define HAVE_MUTEX      assert(mutex == _pid)
#define USE             assert(held[i])         /* before it is changed */

#define GROW(x) \
    true_sum = true_sum + x; \
    true_peak = MAX(true_sum, true_peak)

/* A locked instruction of thread i. */
#define DRAIN(i) \
    inside[i] = inside[i] || delayed[i]; \
    delayed[i] = 0

inline lock_mutex()
{
    d_step { mutex == NOBODY -> mutex = i; DRAIN(i); }
}

inline unlock_mutex()
{
    d_step {
        HAVE_MUTEX;
        assert(committed == true_sum + ALL_CREDIT);
        assert((GROWING -> true_sum : (SOLE -> MAX(peak, HIGHEST) : peak))
               == true_peak);
        assert(!ANY_LISTED || GROWING || SOLE || committed <= peak);
        mutex = NOBODY;
    }
}

/* --- Credit ------------------------------------------------------------- */

/* Sets `ok` if the credit is open. */
inline enter()
{
#if OPEN_BEFORE_INSIDE
    ok = open[i]; inside[i] = 1;
#else
    if
    :: inside[i] = 1;
    :: delayed[i] = 1;
    fi;
    ok = open[i];
#endif
    if
    :: ok
    :: else -> leave();
    fi
}

inline leave()
{
    d_step { inside[i] = 0; delayed[i] = 0; }
}

inline clear_open(j)
{
    d_step {
        HAVE_MUTEX;
        open[j] = open[j] && OPEN_NOT_CLEARED;
    }
}

inline raise_peak()
{
    peak = (ANY_LISTED -> peak : MAX(peak, committed))
}

inline take(j)
{
#if !NO_WAIT_FOR_INSIDE
    inside[j] == 0;
#endif
    d_step {
        HAVE_MUTEX;
        listed[j] = 0;
#if !LOWEST_NOT_TAKEN
        lowest[j] = LOWEST(j);
#else
        lowest[j] = available[j];
#endif
        committed = committed - lowest[j];
#if !TAKE_WITHOUT_PEAK
        raise_peak();
#endif
        committed = committed - (available[j] - lowest[j]);
        available[j] = (TAKE_LEAVES_CREDIT -> available[j] : 0);
        lowest[j] = 0;
        only_adds[j] = 0;
        sole[j] = 0;
        held[j] = 0;
    }
}

inline barrier()
{
#if !NO_BARRIER
    d_step {
        DRAIN(0);
        DRAIN(1);
#if THREADS >= 3
        DRAIN(2);
#endif
    }
#endif
    skip
}

/* With the mutex held. */
inline close_all()
{
    if
    :: ANY_LISTED ->
        clear_open(0);
        clear_open(1);
#if THREADS >= 3
        clear_open(2);
#endif
        barrier();
        do
        :: listed[0] -> take(0);
        :: !listed[0] && listed[1] -> take(1);
#if THREADS >= 3
        :: !listed[0] && !listed[1] && listed[2] -> take(2);
#endif
        :: !ANY_LISTED -> break;
        od
    :: else
    fi;
    skip
}

inline close_credit(j)
{
    if
    :: open[j] ->
        clear_open(j);
#if !OTHER_WITHOUT_BARRIER
        if
        :: j != i -> barrier();
        :: else
        fi;
#endif
        take(j);
    :: else
    fi
}

inline open_credit()
{
    atomic {
        if
        :: !ANY_LISTED || SOLE_AMONG_OTHERS -> sole[i] = 1; big = 1;
        :: big = (ANY_LISTED && !OPEN_AMONG_OTHERS
                  -> GROWING : committed == peak || OPEN_BELOW_PEAK);
        fi;
        do
        :: g < (big -> EXTRA : ROOM + OPEN_TOO_MUCH) -> g++;
        :: break;
        od;
        assert(!held[i]);
        committed = committed + g;
        available[i] = g;
        lowest[i] = g;
        only_adds[i] = big && !sole[i] && !OPEN_MAY_RETURN;
        held[i] = 1;
        listed[i] = 1;
    }
    d_step { open[i] = 1; g = 0; big = 0; }
}

/* --- Operations of thread i ---------------------------------------------- */

inline change_sum(add)
{
    lock_mutex();
#if !OPEN_TWICE
    close_credit(i);
#endif
    if
    :: ((SOLE && !SOLE_REMAINS_OPEN)
        || (GROWING -> !add && !REMOVE_WHILE_GROWING
            : add && s > ROOM && !PEAK_AMONG_OTHERS)) -> close_all();
    :: else
    fi;
    d_step {
        if
        :: add -> committed = committed + s; GROW(s);
        :: else -> committed = committed - s; true_sum = true_sum - s;
        fi;
#if !ADD_WITHOUT_PEAK
        raise_peak();
#endif
    }
#if OPEN_WITHOUT_MUTEX
    unlock_mutex();
#endif
    if
    :: open_credit();
    :: true;
    fi;
#if !OPEN_WITHOUT_MUTEX
    unlock_mutex();
#endif
}

inline add()
{
    enter();
    if
    :: ok && s <= available[i] ->
#if LEAVE_TOO_EARLY
        leave();
#endif
        d_step { USE; available[i] = available[i] - s; GROW(s); }
        leave();
    :: ok && s > available[i] ->
#if LOCKS_WHILE_INSIDE
        lock_mutex(); unlock_mutex();
#endif
        leave();
        ok = 0;
    :: else
    fi;
    if
    :: !ok -> change_sum(1);
    :: else
    fi
}

inline remove()
{
    enter();
    if
    :: ok && !only_adds[i] ->
        d_step {
            USE;
#if !LOWEST_NOT_NOTED
            lowest[i] = LOWEST(i);
#endif
            available[i] = available[i] + s;
            true_sum = true_sum - s;
        }
        leave();
    :: ok ->
        leave();
        ok = 0;
    :: else
    fi;
    if
    :: !ok -> change_sum(0);
    :: else
    fi
}

/* With the mutex held. */
inline read_counters()
{
#if !READ_WITHOUT_CLOSING
    close_all();
#endif
    d_step { assert(committed == true_sum); assert(peak == true_peak); }
}

/* With the mutex held. */
inline reset_peak()
{
#if !RESET_WITHOUT_CLOSING
    close_all();
#endif
    d_step { peak = 0; raise_peak(); true_peak = true_sum; }
}

inline choose(from)
{
    if
    :: s = 1;
    :: from >= 2 -> s = 2;
    fi;
    from = from - s;
}

active [THREADS] proctype thread()
{
    byte i = _pid;
    byte g, s;
    bit ok, big;

end:
    do
    ::  if
        :: atomic { memory >= 1 -> choose(memory); }
            add();
            live = live + s;
        :: atomic { live >= 1 -> choose(live); }
            remove();
            memory = memory + s;
        :: i == 0 -> lock_mutex(); read_counters(); unlock_mutex();
        :: i == 0 -> lock_mutex(); reset_peak(); unlock_mutex();
        :: i == 0 -> lock_mutex(); close_credit(0); unlock_mutex();
        :: i == 0 -> lock_mutex(); close_credit(1); unlock_mutex();
        fi;
progress:
        d_step { s = 0; ok = 0; }
    od
}
