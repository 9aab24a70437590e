// Allocators of other people, for the tests of tracemalloc.
//
// Python code cannot set an allocator, count what goes through it, damage a
// block or look at errno.  The functions here do that through the public C
// API.  They know nothing of how tracemalloc works.
//
// What is kept here comes from the C library's malloc(), so that it is in no
// trace.

#include "parts.h"
#include "test_tracemalloc.h"

#include <errno.h>                // errno
#include <stdbool.h>              // bool
#include <stddef.h>               // offsetof()
#include <stdlib.h>               // malloc(), calloc()

#if defined(__linux__) && defined(__x86_64__) && defined(__has_include)
#  if __has_include(<linux/seccomp.h>)
#    include <linux/filter.h>     // struct sock_filter
#    include <linux/seccomp.h>    // SECCOMP_RET_ERRNO
#    include <sys/prctl.h>        // prctl()
#    include <sys/syscall.h>      // SYS_membarrier
#  endif
#endif
#if defined(SYS_membarrier) && defined(SECCOMP_RET_KILL_PROCESS)
#  define CAN_FORBID_MEMBARRIER
#endif
#ifdef HAVE_FORK
#  include <pthread.h>            // pthread_atfork()
#endif


/* --- Get, set, put one on top ------------------------------------------- */

static int
domain_converter(PyObject *arg, void *out)
{
    const domain_functions *functions;
    if (!_PyTestTracemalloc_DomainConverter(arg, &functions)) {
        return 0;
    }
    *(PyMemAllocatorDomain *)out =
        (PyMemAllocatorDomain)(functions - _PyTestTracemalloc_Domains);
    return 1;
}

#define ALLOCATOR_CAPSULE "_testinternalcapi.tracemalloc_allocator"

// Never freed: another thread may be in it at any time.
static PyMemAllocatorEx *
new_allocator(void)
{
    PyMemAllocatorEx *alloc = (PyMemAllocatorEx *)calloc(1, sizeof(*alloc));
    if (alloc == NULL) {
        PyErr_NoMemory();
    }
    return alloc;
}

static int
allocator_converter(PyObject *arg, void *out)
{
    *(void **)out = PyCapsule_GetPointer(arg, ALLOCATOR_CAPSULE);
    return *(void **)out != NULL;
}

PyDoc_STRVAR(get_allocator_doc,
"tracemalloc_get_allocator(domain)\n"
"--\n\n"
"What PyMem_GetAllocator() says of the domain 'raw', 'mem' or 'obj'.");

static PyObject *
tracemalloc_get_allocator(PyObject *self, PyObject *args)
{
    PyMemAllocatorDomain domain;
    if (!PyArg_ParseTuple(args, "O&", domain_converter, &domain)) {
        return NULL;
    }
    PyMemAllocatorEx *alloc = new_allocator();
    if (alloc == NULL) {
        return NULL;
    }
    PyMem_GetAllocator(domain, alloc);
    return PyCapsule_New(alloc, ALLOCATOR_CAPSULE, NULL);
}

PyDoc_STRVAR(set_allocator_doc,
"tracemalloc_set_allocator(domain, allocator)\n"
"--\n\n"
"Give PyMem_SetAllocator() what tracemalloc_get_allocator() has returned.");

static PyObject *
tracemalloc_set_allocator(PyObject *self, PyObject *args)
{
    PyMemAllocatorDomain domain;
    PyMemAllocatorEx *alloc;
    if (!PyArg_ParseTuple(args, "O&O&", domain_converter, &domain,
                          allocator_converter, &alloc))
    {
        return NULL;
    }
    PyMem_SetAllocator(domain, alloc);
    Py_RETURN_NONE;
}

static void *
top_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *alloc = (PyMemAllocatorEx *)ctx;
    return alloc->malloc(alloc->ctx, size);
}

static void *
top_calloc(void *ctx, size_t nelem, size_t elsize)
{
    PyMemAllocatorEx *alloc = (PyMemAllocatorEx *)ctx;
    return alloc->calloc(alloc->ctx, nelem, elsize);
}

static void *
top_realloc(void *ctx, void *ptr, size_t size)
{
    PyMemAllocatorEx *alloc = (PyMemAllocatorEx *)ctx;
    return alloc->realloc(alloc->ctx, ptr, size);
}

static void
top_free(void *ctx, void *ptr)
{
    PyMemAllocatorEx *alloc = (PyMemAllocatorEx *)ctx;
    alloc->free(alloc->ctx, ptr);
}

// An allocator that passes all calls on to this one.
static PyMemAllocatorEx
top_of(PyMemAllocatorEx *alloc)
{
    return (PyMemAllocatorEx){
        .ctx = alloc,
        .malloc = top_malloc,
        .calloc = top_calloc,
        .realloc = top_realloc,
        .free = top_free,
    };
}

PyDoc_STRVAR(set_on_top_doc,
"tracemalloc_set_on_top(domain, allocator)\n"
"--\n\n"
"Set an allocator that passes all calls on to the one that is given.\n\n"
"That need not be the one which is set now: then it is left out.");

static PyObject *
tracemalloc_set_on_top(PyObject *self, PyObject *args)
{
    PyMemAllocatorDomain domain;
    PyMemAllocatorEx *alloc;
    if (!PyArg_ParseTuple(args, "O&O&", domain_converter, &domain,
                          allocator_converter, &alloc))
    {
        return NULL;
    }
    PyMemAllocatorEx top = top_of(alloc);
    PyMem_SetAllocator(domain, &top);
    Py_RETURN_NONE;
}


// One block of one byte does not come from the allocator below.
static struct {
    union {
        long double any;
        void *pointer;
    } block;
    bool used;
} cache;

static void *
caching_malloc(void *ctx, size_t size)
{
    if (size == 1 && !cache.used) {
        cache.used = true;
        return &cache.block;
    }
    return top_malloc(ctx, size);
}

static void *
caching_realloc(void *ctx, void *ptr, size_t size)
{
    if (ptr != &cache.block) {
        return top_realloc(ctx, ptr, size);
    }
    void *ptr2 = top_malloc(ctx, size);
    if (ptr2 != NULL) {
        memcpy(ptr2, ptr, size > 0 ? 1 : 0);
        cache.used = false;
    }
    return ptr2;
}

static void
caching_free(void *ctx, void *ptr)
{
    if (ptr == &cache.block) {
        cache.used = false;
    }
    else {
        top_free(ctx, ptr);
    }
}

PyDoc_STRVAR(set_caching_doc,
"tracemalloc_set_caching()\n"
"--\n\n"
"Put an allocator on top of the raw one that does not pass all calls on.");

static PyObject *
tracemalloc_set_caching(PyObject *self, PyObject *Py_UNUSED(args))
{
    PyMemAllocatorEx *alloc = new_allocator();
    if (alloc == NULL) {
        return NULL;
    }
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, alloc);
    PyMemAllocatorEx top = top_of(alloc);
    top.malloc = caching_malloc;
    top.realloc = caching_realloc;
    top.free = caching_free;
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &top);
    Py_RETURN_NONE;
}


/* --- An allocator that counts ------------------------------------------- */

// The sizes of its blocks are in a hash table: linear probing, and deletion
// that moves later entries back.  It is never full: when 7 of 8 slots are
// used, new blocks are not counted any more.  Blocks that it does not know
// were there before it.

#define COUNTED_BITS 20
#define COUNTED_SLOTS ((size_t)1 << COUNTED_BITS)

static struct {
    PyThread_type_lock lock;
    PyMemAllocatorEx wrapped;
    struct {
        uintptr_t ptr;            // 0: a free slot
        size_t size;
    } *slots;
    size_t used;
    size_t total;                 // of all sizes
    size_t lost;                  // blocks that were not counted
} counted;

static size_t
counted_home(uintptr_t ptr)
{
    uint64_t hash = (uint64_t)ptr * UINT64_C(0x9E3779B97F4A7C15);
    return (size_t)(hash >> (64 - COUNTED_BITS));
}

static size_t
counted_next(size_t i)
{
    return (i + 1) & (COUNTED_SLOTS - 1);
}

static void
count_block(void *ptr, size_t size)
{
    if (ptr == NULL) {
        return;
    }
    PyThread_acquire_lock(counted.lock, WAIT_LOCK);
    if (counted.used >= COUNTED_SLOTS / 8 * 7) {
        counted.lost++;
    }
    else {
        size_t i = counted_home((uintptr_t)ptr);
        while (counted.slots[i].ptr != 0) {
            i = counted_next(i);
        }
        counted.slots[i].ptr = (uintptr_t)ptr;
        counted.slots[i].size = size;
        counted.used++;
        counted.total += size;
    }
    PyThread_release_lock(counted.lock);
}

// A slot is free.  Move entries there that are not in their place.
static void
close_gap(size_t gap)
{
    for (size_t i = counted_next(gap); counted.slots[i].ptr != 0;
         i = counted_next(i))
    {
        size_t home = counted_home(counted.slots[i].ptr);
        size_t mask = COUNTED_SLOTS - 1;
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            counted.slots[gap] = counted.slots[i];
            gap = i;
        }
    }
    counted.slots[gap].ptr = 0;
}

// Returns the size of the block, or 0.
static size_t
uncount_block(void *ptr)
{
    size_t size = 0;
    PyThread_acquire_lock(counted.lock, WAIT_LOCK);
    size_t i = counted_home((uintptr_t)ptr);
    while (counted.slots[i].ptr != 0
           && counted.slots[i].ptr != (uintptr_t)ptr)
    {
        i = counted_next(i);
    }
    if (ptr != NULL && counted.slots[i].ptr != 0) {
        size = counted.slots[i].size;
        counted.used--;
        counted.total -= size;
        close_gap(i);
    }
    PyThread_release_lock(counted.lock);
    return size;
}

static void *
counted_malloc(void *ctx, size_t size)
{
    void *ptr = counted.wrapped.malloc(counted.wrapped.ctx, size);
    count_block(ptr, size);
    return ptr;
}

static void *
counted_calloc(void *ctx, size_t nelem, size_t elsize)
{
    void *ptr = counted.wrapped.calloc(counted.wrapped.ctx, nelem, elsize);
    count_block(ptr, nelem * elsize);
    return ptr;
}

static void *
counted_realloc(void *ctx, void *ptr, size_t size)
{
    size_t old = uncount_block(ptr);
    void *ptr2 = counted.wrapped.realloc(counted.wrapped.ctx, ptr, size);
    if (ptr2 != NULL) {
        count_block(ptr2, size);
    }
    else if (old != 0) {
        count_block(ptr, old);
    }
    return ptr2;
}

static void
counted_free(void *ctx, void *ptr)
{
    uncount_block(ptr);
    counted.wrapped.free(counted.wrapped.ctx, ptr);
}

PyDoc_STRVAR(count_raw_doc,
"tracemalloc_count_raw()\n"
"--\n\n"
"From now on, count the memory that the raw allocator has given.");

static PyObject *
tracemalloc_count_raw(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (counted.slots != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "it is counted already");
        return NULL;
    }
    counted.lock = PyThread_allocate_lock();
    counted.slots = calloc(COUNTED_SLOTS, sizeof(*counted.slots));
    if (counted.lock == NULL || counted.slots == NULL) {
        return PyErr_NoMemory();
    }
    PyMem_GetAllocator(PYMEM_DOMAIN_RAW, &counted.wrapped);
    PyMemAllocatorEx alloc = {
        .malloc = counted_malloc,
        .calloc = counted_calloc,
        .realloc = counted_realloc,
        .free = counted_free,
    };
    PyMem_SetAllocator(PYMEM_DOMAIN_RAW, &alloc);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(counted_raw_doc,
"tracemalloc_counted_raw()\n"
"--\n\n"
"How many bytes of those that were counted are not freed yet.");

static PyObject *
tracemalloc_counted_raw(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (counted.slots == NULL || counted.lost != 0) {
        PyErr_SetString(PyExc_RuntimeError, "not all blocks are counted");
        return NULL;
    }
    PyThread_acquire_lock(counted.lock, WAIT_LOCK);
    size_t total = counted.total;
    PyThread_release_lock(counted.lock);
    return PyLong_FromSize_t(total);
}


/* --- Blocks ------------------------------------------------------------- */

PyDoc_STRVAR(damage_doc,
"tracemalloc_damage(address, size)\n"
"--\n\n"
"Change the byte that follows a block of this size.");

static PyObject *
tracemalloc_damage(PyObject *self, PyObject *args)
{
    char *ptr;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "O&n", _PyTestTracemalloc_AddressConverter,
                          &ptr, &size))
    {
        return NULL;
    }
    ptr[size] ^= 1;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(report_doc,
"tracemalloc_report(address)\n"
"--\n\n"
"Abort with a fatal error that is about the object at this address.");

static PyObject *
tracemalloc_report(PyObject *self, PyObject *arg)
{
    void *ptr;
    if (!_PyTestTracemalloc_AddressConverter(arg, &ptr)) {
        return NULL;
    }
    _PyObject_AssertFailed((PyObject *)ptr, NULL, "reported for a test",
                           __FILE__, __LINE__, __func__);
}

PyDoc_STRVAR(free_and_errno_doc,
"tracemalloc_free_and_errno(domain, addresses)\n"
"--\n\n"
"Free a list of blocks.  Return how many of the calls have changed errno.");

static PyObject *
tracemalloc_free_and_errno(PyObject *self, PyObject *args)
{
    const domain_functions *domain;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "O&O!", _PyTestTracemalloc_DomainConverter,
                          &domain, &PyList_Type, &list))
    {
        return NULL;
    }
    Py_ssize_t changed = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        void *ptr = PyLong_AsVoidPtr(PyList_GET_ITEM(list, i));
        if (ptr == NULL) {
            return NULL;
        }
        errno = EDOM;
        domain->free(ptr);
        changed += errno != EDOM;
    }
    return PyLong_FromSsize_t(changed);
}


/* --- A system call that is refused -------------------------------------- */

PyDoc_STRVAR(forbid_membarrier_doc,
"tracemalloc_forbid_membarrier(kill)\n"
"--\n\n"
"Let all calls of membarrier() in this process fail from now on, or kill the\n"
"process.\n\n"
"Return False if that is not possible here.");

static PyObject *
tracemalloc_forbid_membarrier(PyObject *self, PyObject *kill)
{
#ifdef CAN_FORBID_MEMBARRIER
    unsigned int action = Py_IsTrue(kill) ? SECCOMP_RET_KILL_PROCESS
                                          : SECCOMP_RET_ERRNO | EPERM;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {
        .len = (unsigned short)Py_ARRAY_LENGTH(code),
        .filter = code,
    };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0)
    {
        Py_RETURN_TRUE;
    }
#endif
    Py_RETURN_FALSE;
}


/* --- Python code inside fork() ------------------------------------------ */

#ifdef HAVE_FORK
static PyObject *at_fork;

static void
call_at_fork(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallNoArgs(at_fork);
    if (result == NULL) {
        PyErr_WriteUnraisable(at_fork);
    }
    Py_XDECREF(result);
    PyGILState_Release(state);
}
#endif

PyDoc_STRVAR(call_at_fork_doc,
"tracemalloc_call_at_fork(func, in_child)\n"
"--\n\n"
"Let the C library call a function just before and just after each fork(), in\n"
"the parent and, if asked, in the child.  There it waits for ever for a thread\n"
"that wants to have the GIL at the fork.");

static PyObject *
tracemalloc_call_at_fork(PyObject *self, PyObject *args)
{
    PyObject *func;
    int in_child;
    if (!PyArg_ParseTuple(args, "Op:tracemalloc_call_at_fork", &func,
                          &in_child))
    {
        return NULL;
    }
#ifdef HAVE_FORK
    at_fork = Py_NewRef(func);
    if (pthread_atfork(call_at_fork, call_at_fork,
                       in_child ? call_at_fork : NULL) != 0)
    {
        return PyErr_NoMemory();
    }
#endif
    Py_RETURN_NONE;
}


/* --- The functions ------------------------------------------------------ */

static PyMethodDef test_methods[] = {
    {"tracemalloc_get_allocator", tracemalloc_get_allocator, METH_VARARGS,
     get_allocator_doc},
    {"tracemalloc_set_allocator", tracemalloc_set_allocator, METH_VARARGS,
     set_allocator_doc},
    {"tracemalloc_set_caching", tracemalloc_set_caching, METH_NOARGS,
     set_caching_doc},
    {"tracemalloc_set_on_top", tracemalloc_set_on_top, METH_VARARGS,
     set_on_top_doc},
    {"tracemalloc_count_raw", tracemalloc_count_raw, METH_NOARGS,
     count_raw_doc},
    {"tracemalloc_counted_raw", tracemalloc_counted_raw, METH_NOARGS,
     counted_raw_doc},
    {"tracemalloc_damage", tracemalloc_damage, METH_VARARGS, damage_doc},
    {"tracemalloc_report", tracemalloc_report, METH_O, report_doc},
    {"tracemalloc_free_and_errno", tracemalloc_free_and_errno, METH_VARARGS,
     free_and_errno_doc},
    {"tracemalloc_forbid_membarrier", tracemalloc_forbid_membarrier,
     METH_O, forbid_membarrier_doc},
    {"tracemalloc_call_at_fork", tracemalloc_call_at_fork, METH_VARARGS,
     call_at_fork_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocAllocators(PyObject *module)
{
    return PyModule_AddFunctions(module, test_methods);
}
