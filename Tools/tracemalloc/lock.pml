/* The lock of tracemalloc's books: a model for SPIN (https://spinroot.com).

   The books of an interpreter are mostly locked by threads that hold its GIL.
   So their lock is a mutex that can be reserved for these threads (K.
   Kawachiya, A. Koseki, T. Onodera, "Lock Reservation", OOPSLA 2002).  While
   it is, they only say that they are inside, with plain loads and stores;
   whoever else wants the lock takes the reservation away, with the mutex and a
   barrier on all processors.

   What is modelled
   ----------------
   Python/tracemalloc_lock.c, on processors that delay stores:

     mutex        the mutex, which is PyMutex
     gil          the GIL that the lock may be reserved for
     INSIDE       a holder of the GIL is inside, or about to see whether it is
     RESERVED     holders of the GIL may do without the mutex
     DATA         what the lock guards: a counter that everybody increments,
                  by a load and a store

   The last three are in memory[].  Each thread has a buffer of its latest
   stores, up to PENDING of them, which it sees itself and others do not.  They
   get to memory one by one, in order, at any time; all at once where the
   thread locks or unlocks the mutex, or takes or drops the GIL; and those of
   all threads where one executes membarrier().  This is what x86-64 does
   (P. Sewell et al., "x86-TSO", CACM 53(7), 2010).

   Two threads share the GIL.  They lock by _LockOwn() and by _LockMutex().
   FOREIGN others do without the GIL: _LockMutex(), and _TryLockMutex(),
   which gives up at any time.  All of them run forever.

   What is claimed
   ---------------
   Two threads never have the lock at the same time.
   No increment is lost: who has the lock sees those of all others.
   Who has it by _LockMutex() finds it not reserved: so a child, forked under
   it, has nothing to do but to make the mutex and INSIDE new.
   There is no deadlock.
   With FAIR=1, each call of the thread that WATCH says comes back: if every
   thread goes on, every store gets to memory some day, and mutex and GIL go to
   who has waited for the longest (check_model.sh: "thread 0", "thread 2").

   What is left out
   ----------------
   Processors that reorder more than a store and a later load.  For them the C
   code clears INSIDE with release order; the barrier does the rest.
   What compilers reorder: that is some of the BUGs.
   How often the mutex is taken until it is reserved again: here any number.
   Opening and closing of books: under _LockMutex(), with the GIL.

   How to run it
   -------------
   ./check_model.sh runs everything: the correct model in several shapes, and
   each BUG below, which has to be found.  To see how something goes wrong:

     spin -DBUG=1 -a lock.pml
     cc -O2 -DSAFETY -DBFS -o pan pan.c
     ./pan
     spin -DBUG=1 -t -p -g lock.pml
*/

#ifndef FOREIGN
#define FOREIGN         1       /* threads without the GIL */
#endif
#ifndef PENDING
#define PENDING         2       /* stores in a thread's buffer */
#endif
#ifndef FAIR
#define FAIR            0       /* 1: mutex and GIL are fair */
#endif
#ifndef WATCH
#define WATCH           0       /* whose calls come back; with FAIR=1 */
#endif
#ifndef BUG
#define BUG             0
#endif

#define NO_BARRIER              (BUG == 1)
#define LOAD_BEFORE_STORE       (BUG == 2)
#define NOT_WAITING             (BUG == 3)
#define RESERVED_NOT_CLEARED    (BUG == 4)
#define RESERVE_WITHOUT_MUTEX   (BUG == 5)
#define UNLOCK_BEFORE_INSIDE    (BUG == 6)
#define WAIT_INSIDE             (BUG == 7)
#define GIVE_UP_UNRESERVED      (BUG == 8)
#define WRITE_AFTER_UNLOCK      (BUG == 9)
#define OWN_WITHOUT_GIL         (BUG == 10)
#define DETACH_INSIDE           (BUG == 11)

#define THREADS         (2 + FOREIGN)
#define NOBODY          255


/* --- State -------------------------------------------------------------- */

#define INSIDE          0
#define RESERVED        1
#define DATA            2
byte memory[3];

typedef stores {
    byte n;
    byte where[PENDING];        /* the oldest first */
    byte what[PENDING];
}
stores pending[THREADS];

byte mutex = NOBODY;
byte gil = NOBODY;

/* Not in the C code. */
byte users;                     /* how many have the lock */
byte count;                     /* what DATA has to be */

#if FAIR
chan waiting = [THREADS] of { byte };   /* for the mutex */
byte last = NOBODY;                     /* who had the GIL */
#endif


/* --- Memory ------------------------------------------------------------- */

/* In a d_step. */
inline flush_one(t)
{
    memory[pending[t].where[0]] = pending[t].what[0];
    pending[t].n--;
    for (m : 1 .. PENDING - 1) {
        pending[t].where[m - 1] = pending[t].where[m];
        pending[t].what[m - 1] = pending[t].what[m];
    }
    pending[t].where[PENDING - 1] = 0;
    pending[t].what[PENDING - 1] = 0;
    m = 0;
}

inline flush(t)
{
    do
    :: pending[t].n > 0 -> flush_one(t);
    :: else -> break;
    od
}

inline store(v, value)
{
    d_step {
        pending[_pid].n < PENDING ->
        pending[_pid].where[pending[_pid].n] = v;
        pending[_pid].what[pending[_pid].n] = value;
        pending[_pid].n++;
    }
}

/* Leaves what it finds in "x". */
inline load(v)
{
    d_step {
        x = memory[v];
        for (m : 0 .. PENDING - 1) {
            if
            :: m < pending[_pid].n && pending[_pid].where[m] == v ->
                x = pending[_pid].what[m];
            :: else
            fi
        }
        m = 0;
    }
}

inline membarrier()
{
    d_step {
        for (t : 0 .. THREADS - 1) {
            flush(t);
        }
        t = 0;
    }
}


/* --- Mutex and GIL ------------------------------------------------------ */

inline lock_mutex()
{
#if FAIR
    waiting ! _pid;
    d_step {
        mutex == NOBODY && waiting ? [eval(_pid)] ->
        waiting ? eval(_pid);
        flush(_pid);
        mutex = _pid;
    }
#else
    d_step { mutex == NOBODY -> flush(_pid); mutex = _pid; }
#endif
}

inline unlock_mutex()
{
    d_step { assert(mutex == _pid); flush(_pid); mutex = NOBODY; }
}

inline take_gil()
{
#if FAIR
    d_step { gil == NOBODY && last != _pid -> flush(_pid); gil = _pid; }
#else
    d_step { gil == NOBODY -> flush(_pid); gil = _pid; }
#endif
}

inline drop_gil()
{
    d_step {
        assert(gil == _pid);
        flush(_pid);
        gil = NOBODY;
#if FAIR
        last = _pid;
#endif
    }
}


/* --- The lock ----------------------------------------------------------- */

inline lock_own_slowly()
{
#if RESERVE_WITHOUT_MUTEX
    if
    :: store(INSIDE, 1);
        store(RESERVED, 1);
    :: lock_mutex();
    fi
#else
    lock_mutex();
    if
    :: true;
    :: true ->
#if UNLOCK_BEFORE_INSIDE
        store(RESERVED, 1);
        unlock_mutex();
        store(INSIDE, 1);
#else
        store(INSIDE, 1);
        store(RESERVED, 1);
        unlock_mutex();
#endif
    fi
#endif
}

inline lock_own()
{
#if LOAD_BEFORE_STORE
    load(RESERVED);
    store(INSIDE, 1);
#else
    store(INSIDE, 1);
    load(RESERVED);
#endif
    if
    :: x;
    :: else ->
#if !WAIT_INSIDE
        store(INSIDE, 0);
#endif
        lock_own_slowly();
    fi;
    x = 0
}

inline unlock_own()
{
    load(INSIDE);
    if
    :: x ->
        store(INSIDE, 0);
    :: else ->
        unlock_mutex();
    fi;
    x = 0
}

/* With the mutex held.  Leaves in "x" if somebody is inside. */
inline end_reservation(may_give_up)
{
    load(RESERVED);
    if
    :: x ->
#if !RESERVED_NOT_CLEARED
        store(RESERVED, 0);
        d_step { flush(_pid); }
#endif
#if !NO_BARRIER
        membarrier();
#endif
        if
        :: memory[INSIDE] == 0 || NOT_WAITING -> x = 0;
        :: may_give_up && memory[INSIDE] != 0;
        fi
    :: else
    fi
}

inline lock_shared()
{
    lock_mutex();
    end_reservation(false);
}

/* Leaves in "x" if it gave up. */
inline try_lock_shared()
{
    lock_mutex();
    end_reservation(true);
    if
    :: x ->
#if !GIVE_UP_UNRESERVED
        store(RESERVED, 1);
#endif
        unlock_mutex();
    :: else
    fi
}

/* What is done with the books: DATA is loaded, and a larger one stored. */
inline read()
{
    d_step { users++; assert(users == 1); }
    load(DATA);
    d_step {
        assert(x == count);
        count = (count + 1) % 3;
        data = count;
        x = 0;
    }
}

inline write()
{
    d_step { users--; }
    store(DATA, data);
    data = 0
}

inline use_unreserved()
{
    read();
    assert(!memory[RESERVED] || RESERVED_NOT_CLEARED);
    write()
}


/* --- Threads ------------------------------------------------------------ */

active [2] proctype with_gil()
{
    byte x, data, m, t;

end:
    do
    :: take_gil();
        do
        ::  if
            :: lock_own();
                read();
#if DETACH_INSIDE
                drop_gil();
                take_gil();
#endif
#if WRITE_AFTER_UNLOCK
                d_step { users--; }
                unlock_own();
                store(DATA, data);
                data = 0;
#else
                write();
                unlock_own();
#endif
            :: lock_shared();
                use_unreserved();
                unlock_mutex();
            fi;
            if
            :: _pid == WATCH ->
progress:
                skip
            :: else
            fi;
#if FAIR
            break
#endif
        :: !FAIR -> break
        od;
        drop_gil();
    od
}

active [FOREIGN] proctype foreign()
{
    byte x, data, m, t;

end:
    do
    ::  if
#if OWN_WITHOUT_GIL
        :: lock_own();
            read();
            write();
            unlock_own();
#endif
        :: lock_shared();
            use_unreserved();
            unlock_mutex();
        :: try_lock_shared();
            if
            :: x -> x = 0;
            :: else ->
                use_unreserved();
                unlock_mutex();
            fi
        fi;
        if
        :: _pid == WATCH ->
progress:
            skip
        :: else
        fi
    od
}

/* One for each thread: its stores get to memory. */
active [THREADS] proctype buffer()
{
    byte m;

end:
    do
    :: d_step {
            pending[_pid - THREADS].n > 0 ->
            flush_one(_pid - THREADS);
        }
    od
}
