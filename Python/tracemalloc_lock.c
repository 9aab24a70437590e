// The lock of an interpreter's books: a mutex that is reserved, most of the
// time, for the threads which hold the interpreter's GIL.  As that lets one of
// them run at once, they need no more than to say that they are inside, and no
// locked instruction; others have to take the reservation away before they
// come in.  (K. Kawachiya, A. Koseki, T. Onodera, "Lock Reservation", OOPSLA
// 2002.)
//
//   holder of the GIL                 others, with the mutex
//   inside = 1                        reserved = 0
//   (for the compiler only)           membarrier()
//   reserved?  else inside = 0        wait until inside is 0
//
// One of both has to see what the other has written (T. J. Dekker's
// algorithm).  That would take a fence on either side; membarrier() executes
// one on all processors that run a thread of this process, so that the left
// side, which is run all the time, does without.
//
// Where there is no membarrier(), or no GIL, nothing is ever reserved.

#include "Python.h"
#include "pycore_interp.h"        // PyInterpreterState.ceval
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_tracemalloc.h"   // _PyTraceLock

#ifdef _Py_TRACE_LOCK_RESERVES
#  include <sched.h>              // sched_yield()
#  include <sys/syscall.h>        // SYS_membarrier
#  include <time.h>               // nanosleep()
#  include <unistd.h>             // syscall()
#endif

// Holders of the GIL that take the mutex, nobody else coming in between,
// before it is reserved for them again.  To take a reservation away costs as
// much as some hundred of them save, so that this never doubles what the mutex
// costs.
#ifdef Py_DEBUG
#  define RESERVE_AFTER 16        // try both more often
#else
#  define RESERVE_AFTER 1000
#endif

// How often to yield to a holder of the GIL that is inside, before sleeping.
#define YIELDS 1000


/* --- The barrier -------------------------------------------------------- */

#ifdef _Py_TRACE_LOCK_RESERVES

static void
pause_for(long ns)
{
    struct timespec duration = {.tv_nsec = ns};
    (void)nanosleep(&duration, NULL);
}

// As in <linux/membarrier.h>, which may be older than the kernel.
#define PRIVATE_EXPEDITED (1 << 3)
#define REGISTER_PRIVATE_EXPEDITED (1 << 4)

#ifdef _Py_THREAD_SANITIZER
// It does not know the system call.  Both sides use atomic operations that are
// sequentially consistent instead.
static bool
may_reserve(void)
{
    return true;
}

static void
barrier(void)
{
}
#elif !defined(SYS_membarrier)
static bool
may_reserve(void)
{
    return false;
}

static void
barrier(void)
{
    Py_UNREACHABLE();
}
#else
// A process has to register before it can use the barrier, and registers as
// often as it likes.
static bool
may_reserve(void)
{
    return syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
}

static void
barrier(void)
{
    int err = errno;
    while (syscall(SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) != 0) {
        if (errno != ENOMEM) {
            // A filter of system calls was installed after it was registered.
            // Not Py_FatalError(), which flushes sys.stderr: an allocation
            // there would wait for this lock.
            fputs("Fatal Python error: tracemalloc: membarrier() has worked "
                  "before, but does not any more\n", stderr);
            abort();
        }
        // The kernel needs a little memory for it.
        pause_for(1000000);
    }
    errno = err;
}
#endif

// With the mutex held.  False if a holder of the GIL did not come out in time,
// which is negative for: wait for ever.
static bool
end_reservation(_PyTraceLock *lock, PyTime_t timeout)
{
    lock->uses = 0;
    if (!lock->reserved) {
        return true;
    }
    _Py_atomic_store_int(&lock->reserved, 0);
    barrier();
    PyTime_t end = 0;
    int turns = 0;
    while (_Py_atomic_load_int(&lock->inside)) {
        if (turns < YIELDS) {
            turns++;
            sched_yield();
        }
        else {
            // Perhaps the holder of the GIL has a lower real-time priority.
            pause_for(50000);
        }
        if (timeout >= 0) {
            PyTime_t now;
            (void)PyTime_MonotonicRaw(&now);
            if (end == 0) {
                end = now + timeout;
            }
            if (now > end) {
                // The holder of the GIL is still inside.
                _Py_atomic_store_int(&lock->reserved, 1);
                return false;
            }
        }
    }
    return true;
}

#else   // !_Py_TRACE_LOCK_RESERVES

static bool
may_reserve(void)
{
    return false;
}

static bool
end_reservation(_PyTraceLock *Py_UNUSED(lock), PyTime_t Py_UNUSED(timeout))
{
    return true;
}

#endif


/* --- Lock and unlock ---------------------------------------------------- */

void
_PyTraceLock_Open(_PyTraceLock *lock, PyInterpreterState *interp)
{
    lock->gil = may_reserve() ? interp->ceval.gil : NULL;
}

void
_PyTraceLock_Close(_PyTraceLock *lock)
{
    lock->gil = NULL;
}

// Does the calling thread hold the GIL that the lock may be reserved for?
static bool
holds_gil(const _PyTraceLock *lock)
{
#ifdef _Py_TRACE_LOCK_RESERVES
    PyThreadState *tstate = _PyThreadState_GET();
    return tstate != NULL && tstate->interp->ceval.gil == lock->gil;
#else
    return false;
#endif
}

void
_PyTraceLock_LockOwnSlowly(_PyTraceLock *lock)
{
    PyMutex_LockFlags(&lock->mutex, _Py_LOCK_DONT_DETACH);
#ifdef _Py_TRACE_LOCK_RESERVES
    if (lock->gil != NULL && ++lock->uses >= RESERVE_AFTER) {
        // From now on inside, not with the mutex.
        lock->inside = 1;
        lock->reserved = 1;
        PyMutex_Unlock(&lock->mutex);
    }
#endif
}

void
_PyTraceLock_LockMutex(_PyTraceLock *lock)
{
    PyMutex_LockFlags(&lock->mutex, _Py_LOCK_DONT_DETACH);
    (void)end_reservation(lock, -1);
}

bool
_PyTraceLock_TryLockMutex(_PyTraceLock *lock, PyTime_t timeout)
{
    if (_PyMutex_LockTimed(&lock->mutex, timeout, _Py_LOCK_DONT_DETACH)
        != PY_LOCK_ACQUIRED)
    {
        return false;
    }
    if (!end_reservation(lock, timeout)) {
        PyMutex_Unlock(&lock->mutex);
        return false;
    }
    return true;
}

void
_PyTraceLock_UnlockMutex(_PyTraceLock *lock)
{
    PyMutex_Unlock(&lock->mutex);
}

void
_PyTraceLock_Lock(_PyTraceLock *lock)
{
    if (holds_gil(lock)) {
        _PyTraceLock_LockOwn(lock);
    }
    else {
        _PyTraceLock_LockMutex(lock);
    }
}

void
_PyTraceLock_Unlock(_PyTraceLock *lock)
{
    if (holds_gil(lock)) {
        _PyTraceLock_UnlockOwn(lock);
    }
    else {
        _PyTraceLock_UnlockMutex(lock);
    }
}

#ifdef HAVE_FORK
void
_PyTraceLock_AfterFork(_PyTraceLock *lock)
{
    _PyMutex_at_fork_reinit(&lock->mutex);
    // Perhaps a thread was about to see that it has to take the mutex.
    lock->inside = 0;
    lock->reserved = 0;
    if (lock->gil != NULL && !may_reserve()) {
        lock->gil = NULL;
    }
}
#endif
