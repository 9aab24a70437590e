/* The counters of tracemalloc: a model for SPIN (https://spinroot.com).

   get_traced_memory() returns the sum of the sizes of all traces, and the
   largest that this sum has been since the peak was reset.  Both have to be
   exact, though a thread with open credit adds as much as that on its own.

   What is modelled
   ----------------
   Python/tracemalloc_counters.c, and the inline functions that use credit in
   pycore_tracemalloc.h:

     committed, n,   the shared word: the sum and all open credit, the number
       growing, tag  of open credits, whether the sum is its peak and only
                     grows, and what is changed by a reset
     peak, peak_tag  the largest sum, and the tag of the word it belongs to;
                     also one word; behind while the sum only grows
     mutex           the mutex of the runtime
     inside[i]       thread i is using its credit
     open[i]         it may do so
     listed[i]       its credit is in the list of the open ones
     available[i]    what is left of the credit
     only_adds[i]    nothing may be freed with it (`limit` is 0)

   A step (one statement, d_step or atomic) has at most one access to what
   others write at the same time, or is one compare-and-swap.  Joined to it is
   what the mutex guards, and the owner's read of `available` to its write.

   Each thread adds and removes 1 or 2 units, with its credit or without, and
   adds without credit while it holds the mutex (as a detached thread does).
   Thread 0 also reads the counters, resets the peak, and closes its own
   credit.  All threads run forever.  Only the memory is bounded, and the
   number of resets, since a tag that came round to the same value would not be
   noticed.

   Memory model: the owner's store of 1 to `inside` may wait in its write
   buffer (delayed[i]) while it loads `open` and goes on: until the owner does
   a compare-and-swap, or stores to `inside` again, or another thread's barrier
   makes it visible.  All other stores and loads that matter have their order:
   they are atomic with release or acquire, or guarded by `inside`.

   What is claimed
   ---------------
   true_sum and true_peak are what the counters have to be.  They change at one
   step of each operation: where `available` is written, or where the word is
   changed by a compare-and-swap.  A reset happens where it changes the tag.

     (1) While nobody is in an operation:
             committed == true_sum + all credit
             the larger of peak and committed == true_peak; but while any
             credit is open, true_sum if it is growing, or else just peak,
             and committed <= peak
     (2) The sum that is read is true_sum.  The peak that is read was
         true_peak at some time while it was read, and is not below what was
         read before.
     (3) No credit is used or changed by its owner after it was taken.
     (4) There is no deadlock, and (check_model.sh: "progress") no endless wait
         or retry while no operation ends.

   What is left out
   ----------------
   MAX_GRANT, MIN_GRANT, `limit` but for 0, and `rest`: here any credit is given
   out or back that is possible, up to EXTRA where all is possible, and is
   opened, or not, after any operation without.
   Sizes from HUGE_SIZE on: they are counted under the mutex.

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
#ifndef RESETS
#define RESETS          1       /* how often the peak may be reset */
#endif
#ifndef BY_MUTEX
#define BY_MUTEX        1       /* adds with the mutex, without credit */
#endif
#ifndef BUG
#define BUG             0
#endif

#define NO_BARRIER              (BUG == 1)
#define OPEN_BEFORE_INSIDE      (BUG == 2)
#define NO_WAIT_FOR_INSIDE      (BUG == 3)
#define OPEN_NOT_CLEARED        (BUG == 4)
#define LEAVE_TOO_EARLY         (BUG == 5)
#define PEAK_WITHOUT_CLOSING    (BUG == 6)
#define REFILL_AMONG_OTHERS     (BUG == 7)
#define REFILL_UNNOTICED        (BUG == 8)
#define REMOVE_WITHOUT_PEAK     (BUG == 9)
#define ADD_FORGETS_NUMBER      (BUG == 10)
#define GRANT_TOO_MUCH          (BUG == 11)
#define OPEN_WITHOUT_MUTEX      (BUG == 12)
#define READ_WITHOUT_CLOSING    (BUG == 13)
#define READ_PEAK_ALONE         (BUG == 14)
#define RESET_WITHOUT_CLOSING   (BUG == 15)
#define RESET_BY_STORE          (BUG == 16)
#define TAG_NOT_IN_WORD         (BUG == 17)
#define TAG_NOT_IN_PEAK         (BUG == 18)
#define TAG_BEFORE_PEAK         (BUG == 19)
#define PEAK_BY_STORE           (BUG == 20)
#define LOCKS_WHILE_INSIDE      (BUG == 21)
#define NUMBER_BEFORE_CREDIT    (BUG == 22)
#define REFILL_NOT_INSIDE       (BUG == 23)
#define OPEN_TWICE              (BUG == 24)
#define ADD_FORGETS_TAG         (BUG == 25)
#define OPEN_WITHOUT_PEAK       (BUG == 26)
#define REMOVE_BY_SUBTRACTION   (BUG == 27)
#define REMOVE_WHILE_GROWING    (BUG == 28)
#define REMOVE_LEAVES_GROWING   (BUG == 29)
#define END_AMONG_OTHERS        (BUG == 30)
#define END_WITHOUT_PEAK        (BUG == 31)
#define END_LEAVES_GROWING      (BUG == 32)
#define REFILL_MAY_RETURN       (BUG == 33)
#define OPEN_MAY_RETURN         (BUG == 34)
#define GROWING_IS_ABOVE_PEAK   (BUG == 35)

#define NOBODY          255

/* --- State -------------------------------------------------------------- */

byte mutex = NOBODY;
byte committed, n, tag;
bit growing;
byte peak, peak_tag;
bit inside[THREADS], open[THREADS], listed[THREADS], only_adds[THREADS];
byte available[THREADS];

/* Not in the C code. */
bit delayed[THREADS];           /* the store to `inside` is not visible yet */
bit held[THREADS];              /* the word has this thread's credit */
byte true_sum, true_peak;
byte seen;                      /* the peak that was read last */
byte memory = MEMORY;           /* what malloc() still has */
byte live;                      /* size of all blocks that may be freed */
byte busy;                      /* number of threads in an operation */
byte resets = RESETS;

#if THREADS == 2
#define ALL_CREDIT      (available[0] + available[1])
#define ANY_LISTED      (listed[0] || listed[1])
#else
#define ALL_CREDIT      (available[0] + available[1] + available[2])
#define ANY_LISTED      (listed[0] || listed[1] || listed[2])
#endif

#define MAX(a, b)       (a > b -> a : b)
#define ROOM            (p > c -> p - c : 0)
#define HAVE_MUTEX      assert(mutex == _pid)
#define USE             assert(held[i])         /* before it is changed */

#define GROW(x) \
    true_sum = true_sum + x; \
    true_peak = MAX(true_sum, true_peak)

/* A locked instruction of thread i. */
#define DRAIN(i) \
    inside[i] = inside[i] || delayed[i]; \
    delayed[i] = 0

/* Each thread has a copy of the word in c, k, w and t, and of the peak in p. */
#define UNCHANGED       (committed == c && n == k && growing == w && tag == t)
#define LOAD_WORD       c = committed; k = n; w = growing; t = tag

inline lock_mutex()
{
    d_step { mutex == NOBODY -> mutex = i; DRAIN(i); }
}

inline unlock_mutex()
{
    d_step { HAVE_MUTEX; mutex = NOBODY; }
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

inline raise_peak(x)
{
#if PEAK_BY_STORE
    p = peak;
    if
    :: p < x -> peak = x;
    :: else
    fi
#else
    /* As one step: each time round but the last has no effect. */
    d_step {
        if
        :: (peak_tag == t || TAG_NOT_IN_PEAK) && peak < x -> peak = x;
        :: else
        fi;
        DRAIN(i);
    }
#endif
}

/* What the word was when it was loaded may be the largest sum so far. */
inline raise_peak_to_word(forgotten)
{
    if
    :: k == 0 && c > peak && !(forgotten) -> raise_peak(c);
    :: else
    fi
}

inline take(j)
{
#if !NO_WAIT_FOR_INSIDE
    inside[j] == 0;
#endif
    d_step {
        HAVE_MUTEX;
        committed = committed - available[j];
#if !NUMBER_BEFORE_CREDIT
        n--;
#endif
        available[j] = 0;
        only_adds[j] = 0;
        held[j] = 0;
        listed[j] = 0;
    }
}

inline clear_open(j)
{
    d_step {
        HAVE_MUTEX;
        if
        :: listed[j] ->
#if !OPEN_NOT_CLEARED
            open[j] = 0;
#endif
#if NUMBER_BEFORE_CREDIT
            n--;
#endif
        :: else
        fi
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

inline close_own()
{
    lock_mutex();
    if
    :: open[i] -> clear_open(i); take(i);
    :: else
    fi;
    unlock_mutex();
}

/* If nobody has the mutex. */
inline open_credit()
{
#if !OPEN_WITHOUT_MUTEX
    if
    :: d_step { mutex == NOBODY -> mutex = i; }
#else
    if
    :: true
#endif
        do
        :: d_step { LOAD_WORD; p = 0; g = 0; }
            if
            :: !w -> raise_peak_to_word(OPEN_WITHOUT_PEAK);
            :: else
            fi;
            atomic {
                p = peak;
                do
                :: g < (w -> EXTRA : ROOM + GRANT_TOO_MUCH) -> g++;
                :: break;
                od;
                p = 0;
            }
            if
            :: d_step { UNCHANGED ->
                    committed = committed + g;
                    n++;
                    assert(!held[i]);
                    available[i] = g;
                    only_adds[i] = w && !OPEN_MAY_RETURN;
                    held[i] = 1;
                }
                d_step { listed[i] = 1; open[i] = 1; }
                break;
            :: d_step { !UNCHANGED; }
            fi
        od;
#if !OPEN_WITHOUT_MUTEX
        unlock_mutex();
    :: d_step { mutex != NOBODY; }
#endif
    fi
}

inline end_rest()
{
    if
    :: !open[i] || OPEN_TWICE -> open_credit();
    :: true;
    fi
}

/* Inside.  Clears `ok` if others have to be asked. */
inline refill()
{
    do
    :: d_step { LOAD_WORD; }
        atomic {
            p = peak;
            big = (s - available[i] > ROOM);
            do
            :: g < (big -> EXTRA : ROOM - (s - available[i])) -> g++;
            :: break;
            od;
            p = 0;
            ok = (!big || k == 1 || w || REFILL_AMONG_OTHERS);
        }
        if
        :: !ok -> break;
        :: else
        fi;
        if
        :: d_step { UNCHANGED ->
                committed = committed + s - available[i] + g;
                growing = growing || (big && !REFILL_UNNOTICED);
                GROW(s);
                DRAIN(i);
            }
            d_step {
                USE;
                available[i] = g;
                only_adds[i] = (big && !REFILL_MAY_RETURN) || only_adds[i];
            }
            break;
        :: d_step { !UNCHANGED -> g = 0; }
        fi
    od
}

/* Inside.  Clears `ok` if others have credit, too. */
inline end_growing()
{
    do
    :: d_step { LOAD_WORD; }
        if
        :: k != 1 && !END_AMONG_OTHERS -> ok = 0; break;
        :: else
        fi;
        if
        :: c - available[i] > peak && !END_WITHOUT_PEAK ->
            raise_peak(c - available[i]);
        :: else
        fi;
        if
        :: d_step { UNCHANGED ->
                assert(growing);
                committed = committed - available[i];
                growing = END_LEAVES_GROWING;
                true_sum = true_sum - s;
                DRAIN(i);
            }
            d_step { USE; available[i] = s; only_adds[i] = 0; }
            break;
        :: d_step { !UNCHANGED; }
        fi
    od
}

/* --- Operations of thread i ---------------------------------------------- */

#define SAME_WORD \
    (committed == c && (n == k || ADD_FORGETS_NUMBER) \
     && (growing == w || GROWING_IS_ABOVE_PEAK) \
     && (tag == t || (ADD_FORGETS_TAG && k > 0)))

/* Without credit.  `locked`: with the mutex held. */
inline add_to_word(locked)
{
    d_step { LOAD_WORD; }
    do
    :: if
        :: k > 0 && !PEAK_WITHOUT_CLOSING ->
#if GROWING_IS_ABOVE_PEAK
            d_step { big = (c + s > peak && c <= peak); }
#else
            big = (!w && c + s > peak);
#endif
        :: else -> big = 0;
        fi;
        if
        :: big ->
            if
            :: !locked -> lock_mutex();
            :: else
            fi;
            close_all();
            if
            :: !locked -> unlock_mutex();
            :: else
            fi;
            d_step { LOAD_WORD; }
        :: else ->
            if
            :: d_step { SAME_WORD ->
                    committed = committed + s;
                    GROW(s);
                }
                break;
            :: d_step { !SAME_WORD -> LOAD_WORD; }
            fi
        fi
    od;
    skip;
    d_step { c = 0; k = 0; w = 0; t = 0; big = 0; }
}

inline remove_from_word()
{
    do
    :: d_step { LOAD_WORD; }
        if
        :: k > 0 && w && !REMOVE_WHILE_GROWING ->
            lock_mutex();
            close_all();
            unlock_mutex();
        :: else ->
            raise_peak_to_word(REMOVE_WITHOUT_PEAK);
            if
            :: d_step { UNCHANGED || REMOVE_BY_SUBTRACTION ->
                    committed = committed - s;
                    growing = growing && REMOVE_LEAVES_GROWING;
                    true_sum = true_sum - s;
                }
                break;
            :: d_step { !(UNCHANGED || REMOVE_BY_SUBTRACTION); }
            fi
        fi
    od;
    skip;
    d_step { c = 0; k = 0; w = 0; t = 0; }
}

inline add()
{
    enter();
    if
    :: ok ->
        if
        :: s <= available[i] ->
#if LEAVE_TOO_EARLY
            leave();
#endif
            d_step { USE; available[i] = available[i] - s; GROW(s); }
        :: else ->
#if LOCKS_WHILE_INSIDE
            lock_mutex(); unlock_mutex();
#elif REFILL_NOT_INSIDE
            leave();
#endif
            refill();
        fi;
        leave();
    :: else
    fi;
    if
    :: !ok -> add_to_word(0); end_rest();
    :: else
    fi
}

/* Any of the credit may be given back. */
inline return_to_credit()
{
    d_step {
        USE;
        available[i] = available[i] + s;
        true_sum = true_sum - s;
    }
    atomic {
        do
        :: g < available[i] -> g++;
        :: break;
        od
    }
    if
    :: g > 0 ->
        d_step { committed = committed - g; DRAIN(i); }
        d_step { USE; available[i] = available[i] - g; }
    :: else
    fi
}

inline remove()
{
    enter();
    if
    :: ok ->
        if
        :: only_adds[i] -> end_growing();
        :: else -> return_to_credit();
        fi;
        leave();
    :: else
    fi;
    if
    :: !ok -> remove_from_word(); end_rest();
    :: else
    fi
}

/* With the mutex held. */
inline read_counters()
{
#if !READ_WITHOUT_CLOSING
    close_all();
#endif
    d_step { LOAD_WORD; assert(c == true_sum); g = true_peak; }
    d_step {
        p = (READ_PEAK_ALONE -> peak : MAX(peak, c));
        assert(p >= g && p <= true_peak);
        assert(p >= seen);
        seen = p;
    }
}

#define RESET_NOW       true_peak = true_sum; seen = 0

/* With the mutex held. */
inline reset_peak()
{
#if !RESET_WITHOUT_CLOSING
    close_all();
#endif
#if RESET_BY_STORE
    d_step { LOAD_WORD; }
    d_step { peak = c; RESET_NOW; }
#else
    do
    :: d_step { LOAD_WORD; }
#if TAG_BEFORE_PEAK
        if
        :: d_step { UNCHANGED -> tag++; RESET_NOW; }
            d_step { peak = c; peak_tag = t + 1; }
            break;
#else
        d_step { peak = c; peak_tag = t + 1; }
        if
        :: d_step { UNCHANGED ->
                growing = 0;
                tag = tag + !TAG_NOT_IN_WORD;
                peak_tag = tag;
                RESET_NOW;
            }
            break;
#endif
        :: d_step { !UNCHANGED; }
        fi
    od
#endif
}

inline choose(from)
{
    busy++;
    if
    :: s = 1;
    :: from >= 2 -> s = 2;
    fi;
    from = from - s;
}

inline end_operation()
{
    d_step {
        busy--;
        c = 0; k = 0; w = 0; t = 0; p = 0; g = 0; s = 0; ok = 0; big = 0;
        if
        :: busy == 0 ->
            assert(committed == true_sum + ALL_CREDIT);
            assert(true_peak == (n == 0 -> MAX(peak, committed)
                                 : (growing -> true_sum : peak)));
            assert(n == 0 || growing || committed <= peak);
        :: else
        fi
    }
}

active [THREADS] proctype thread()
{
    byte i = _pid;
    byte c, k, t, p, g, s;
    bit w, ok, big;

end:
    do
    ::  if
        :: atomic { memory >= 1 -> choose(memory); }
            add();
            live = live + s;
        :: atomic { live >= 1 -> choose(live); }
            remove();
            memory = memory + s;
#if BY_MUTEX
        :: atomic { memory >= 1 -> choose(memory); }
            lock_mutex(); add_to_word(1); unlock_mutex();
            live = live + s;
#endif
        :: i == 0 -> busy++;
            lock_mutex(); read_counters(); unlock_mutex();
        :: atomic { i == 0 && resets > 0 -> resets--; busy++; }
            lock_mutex(); reset_peak(); unlock_mutex();
        :: i == 0 -> busy++; close_own();
        fi;
progress:
        end_operation();
    od
}
