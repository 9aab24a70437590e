// An allocator below tracemalloc's hooks that fails or waits when it is told
// to, for the tests of tracemalloc.

#include "parts.h"
#include "test_tracemalloc.h"

#include <errno.h>                // errno

#define domain_converter _PyTestTracemalloc_DomainConverter
#define address_converter _PyTestTracemalloc_AddressConverter


/* --- An allocator below the hooks --------------------------------------- */

// Installed before tracing starts, so that tracemalloc wraps it and gets its
// own memory from it as well.  It does one of two things when it is told to:
// it has no memory for some requests of one thread, or it holds one thread up
// in the middle of a request.

#define NO_THREAD 0u
// What debug allocators may add to the size of a block.
#define DEBUG_EXTRA 64

static struct {
    int installed;
    PyMemAllocatorEx wrapped[3];        // by PyMemAllocatorDomain

    unsigned long thread;               // atomic: whose requests fail
    // The rest is for that thread alone.
    Py_ssize_t start;                   // the first request that fails
    Py_ssize_t stop;                    // the first after it that does not
    size_t spare;                       // blocks of this size never fail
    Py_ssize_t count;                   // requests so far
    Py_ssize_t failed;                  // requests that failed
    void *spared;                       // a block of that size, if not freed

    uintptr_t keep;                     // atomic: a block that is not freed
    size_t keep_size;                   // set before
    uintptr_t kept;                     // atomic: the same block, once it is
    void *kept_ctx;                     // of that allocator; set before

    void *free_with;                    // when this block is freed ...
    void *also_freed;                   // ... then so is this raw block

    uintptr_t gate;                     // atomic: a size, or an address
    int gate_detaches;                  // set before the gate
    uintptr_t gate_after;               // atomic: a block; whoever moves it ...
    unsigned long gate_thread;          // atomic: ... waits at the next request
    PyEvent gate_reached;
    PyEvent gate_open;
} below;

static int
is_failing_thread(void)
{
    unsigned long thread = _Py_atomic_load_ulong(&below.thread);
    return thread != NO_THREAD && thread == PyThread_get_thread_ident();
}

static int
is_spared(size_t size)
{
    return below.spare != 0
           && size >= below.spare && size - below.spare <= DEBUG_EXTRA;
}

static int
has_no_memory(size_t size)
{
    if (!is_failing_thread() || is_spared(size)) {
        return 0;
    }
    Py_ssize_t i = below.count++;
    if (i < below.start || i >= below.stop) {
        return 0;
    }
    below.failed++;
    errno = ENOMEM;
    return 1;
}

static void
note_block(void *ptr, size_t size)
{
    if (ptr != NULL && is_failing_thread() && size == below.spare) {
        below.spared = ptr;
    }
}

// Is this the block that shall not be given back when it is freed?
static int
keep_block(void *ctx, uintptr_t ptr)
{
    if (ptr == 0
        || !_Py_atomic_compare_exchange_uintptr(&below.keep, &ptr, 0))
    {
        return 0;
    }
    below.kept_ctx = ctx;
    _Py_atomic_store_uintptr(&below.kept, ptr);
    return 1;
}

// The block that was kept, if that is what is wanted, or NULL.
static void *
reuse_block(void *ctx, size_t size)
{
    uintptr_t ptr = _Py_atomic_load_uintptr(&below.kept);
    if (ptr != 0 && size == below.keep_size && ctx == below.kept_ctx
        && _Py_atomic_compare_exchange_uintptr(&below.kept, &ptr, 0))
    {
        return (void *)ptr;
    }
    return NULL;
}

// A block that shall be kept is moved by realloc(); this is the new one.
static void *
move_block(PyMemAllocatorEx *wrapped, void *ptr, size_t size)
{
    void *moved = wrapped->malloc(wrapped->ctx, size);
    if (moved == NULL) {
        Py_FatalError("no memory for the test");
    }
    memcpy(moved, ptr, Py_MIN(size, below.keep_size));
    return moved;
}

// The first thread that comes with this size or address waits.
static void
wait_at_gate(uintptr_t key)
{
    if (key != 0
        && _Py_atomic_compare_exchange_uintptr(&below.gate, &key, 0))
    {
        _PyEvent_Notify(&below.gate_reached);
        while (!PyEvent_WaitTimed(&below.gate_open, 1000 * 1000 * 1000,
                                  below.gate_detaches)) {
        }
    }
}

// A thread that has reallocated a certain block waits at its next request.
static void
wait_after_realloc(void)
{
    unsigned long thread = _Py_atomic_load_ulong(&below.gate_thread);
    if (thread != NO_THREAD && thread == PyThread_get_thread_ident()) {
        _Py_atomic_store_ulong(&below.gate_thread, NO_THREAD);
        _Py_atomic_store_uintptr(&below.gate, (uintptr_t)&below);
        wait_at_gate((uintptr_t)&below);
    }
}

static void *
below_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(size)) {
        return NULL;
    }
    wait_at_gate(size);
    wait_after_realloc();
    void *ptr = reuse_block(ctx, size);
    if (ptr == NULL) {
        ptr = wrapped->malloc(wrapped->ctx, size);
    }
    note_block(ptr, size);
    return ptr;
}

static void *
below_calloc(void *ctx, size_t nelem, size_t elsize)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(nelem * elsize)) {
        return NULL;
    }
    wait_at_gate(nelem * elsize);
    wait_after_realloc();
    void *ptr = wrapped->calloc(wrapped->ctx, nelem, elsize);
    note_block(ptr, nelem * elsize);
    return ptr;
}

static void *
below_realloc(void *ctx, void *ptr, size_t size)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    if (has_no_memory(size)) {
        return NULL;
    }
    uintptr_t old = (uintptr_t)ptr;
    if (old != 0
        && _Py_atomic_compare_exchange_uintptr(&below.gate_after, &old, 0))
    {
        _Py_atomic_store_ulong(&below.gate_thread,
                               PyThread_get_thread_ident());
    }
    // Waits when the old block is given back.
    if (keep_block(ctx, (uintptr_t)ptr)) {
        ptr = move_block(wrapped, ptr, size);
        wait_at_gate(size);
    }
    else {
        wait_at_gate(size);
        ptr = wrapped->realloc(wrapped->ctx, ptr, size);
    }
    note_block(ptr, size);
    return ptr;
}

static void
below_free(void *ctx, void *ptr)
{
    PyMemAllocatorEx *wrapped = (PyMemAllocatorEx *)ctx;
    int kept = keep_block(ctx, (uintptr_t)ptr);
    wait_at_gate((uintptr_t)ptr);
    if (is_failing_thread() && ptr == below.spared) {
        below.spared = NULL;
    }
    if (ptr != NULL && ptr == below.free_with) {
        below.free_with = NULL;
        PyMem_RawFree(below.also_freed);
    }
    if (!kept) {
        wrapped->free(wrapped->ctx, ptr);
    }
}

PyDoc_STRVAR(below_install_doc,
"tracemalloc_below_install()\n"
"--\n\n"
"Wrap the allocators, so that they can be made to fail or to wait.");

static PyObject *
tracemalloc_below_install(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "installed already");
        return NULL;
    }
    below.installed = 1;
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(below.wrapped); i++) {
        PyMemAllocatorDomain domain = (PyMemAllocatorDomain)i;
        PyMem_GetAllocator(domain, &below.wrapped[i]);
        PyMemAllocatorEx alloc = {
            .ctx = &below.wrapped[i],
            .malloc = below_malloc,
            .calloc = below_calloc,
            .realloc = below_realloc,
            .free = below_free,
        };
        PyMem_SetAllocator(domain, &alloc);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(below_remove_doc,
"tracemalloc_below_remove()\n"
"--\n\n"
"Set the allocators that tracemalloc_below_install() has found.");

static PyObject *
tracemalloc_below_remove(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (!below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "not installed");
        return NULL;
    }
    for (int i = 0; i < (int)Py_ARRAY_LENGTH(below.wrapped); i++) {
        PyMem_SetAllocator((PyMemAllocatorDomain)i, &below.wrapped[i]);
    }
    below.installed = 0;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(free_with_doc,
"tracemalloc_free_with(address, other)\n"
"--\n\n"
"Make the allocator free another block, one of the raw domain, while it\n"
"frees the first one.");

static PyObject *
tracemalloc_free_with(PyObject *self, PyObject *args)
{
    if (!PyArg_ParseTuple(args, "O&O&", address_converter, &below.free_with,
                          address_converter, &below.also_freed))
    {
        return NULL;
    }
    Py_RETURN_NONE;
}

// From here on requests of this thread fail.
static int
begin_failing(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t spare)
{
    if (!below.installed) {
        PyErr_SetString(PyExc_RuntimeError, "not installed");
        return -1;
    }
    below.start = start;
    below.stop = stop;
    below.spare = (size_t)spare;
    below.count = below.failed = 0;
    below.spared = NULL;
    _Py_atomic_store_ulong(&below.thread, PyThread_get_thread_ident());
    return 0;
}

static void
end_failing(void)
{
    _Py_atomic_store_ulong(&below.thread, NO_THREAD);
}

PyDoc_STRVAR(call_failing_doc,
"tracemalloc_call_failing(func, start, stop)\n"
"--\n\n"
"Call func() without memory for the requests from 'start' up to 'stop'.\n\n"
"Return (exception or None, number of requests that failed).");

static PyObject *
tracemalloc_call_failing(PyObject *self, PyObject *args)
{
    PyObject *func;
    Py_ssize_t start, stop;
    if (!PyArg_ParseTuple(args, "Onn", &func, &start, &stop)
        || begin_failing(start, stop, 0) < 0)
    {
        return NULL;
    }
    PyObject *res = PyObject_CallNoArgs(func);
    PyObject *exc = PyErr_GetRaisedException();
    end_failing();
    Py_XDECREF(res);
    if (exc == NULL) {
        exc = Py_NewRef(Py_None);
    }
    return Py_BuildValue("Nn", exc, below.failed);
}

PyDoc_STRVAR(realloc_failing_doc,
"tracemalloc_realloc_failing(domain, address, size, start, stop, spare,\n"
"                            detached=False)\n"
"--\n\n"
"Reallocate a block in the domain 'raw', 'mem' or 'obj', or allocate one if\n"
"the address is 0, without memory for the requests from 'start' to 'stop'.\n\n"
"If 'spare' is true then the block itself does not fail nor count.  Return\n"
"(address or None, number of requests that failed, is a block lost?).  If\n"
"'detached' is true then the thread is detached meanwhile.");

static PyObject *
tracemalloc_realloc_failing(PyObject *self, PyObject *args)
{
    const domain_functions *domain;
    void *ptr;
    Py_ssize_t size, start, stop;
    int spare, detached = 0;
    if (!PyArg_ParseTuple(args, "O&O&nnnp|p", domain_converter, &domain,
                          address_converter, &ptr, &size,
                          &start, &stop, &spare, &detached)
        || begin_failing(start, stop, spare ? size : 0) < 0)
    {
        return NULL;
    }
    PyThreadState *tstate = detached ? PyEval_SaveThread() : NULL;
    errno = 0;
    ptr = ptr ? domain->realloc(ptr, (size_t)size)
              : domain->malloc((size_t)size);
    int wrong_errno = detached && ptr != NULL && errno == ENOMEM;
    if (tstate != NULL) {
        PyEval_RestoreThread(tstate);
    }
    end_failing();
    if (wrong_errno) {
        PyErr_SetString(PyExc_AssertionError, "errno is that of a failure");
        return NULL;
    }
    int lost = ptr == NULL && below.spared != NULL;
    PyObject *addr = ptr == NULL ? Py_NewRef(Py_None)
                     : PyLong_FromVoidPtr(ptr);
    return Py_BuildValue("Nni", addr, below.failed, lost);
}

PyDoc_STRVAR(domain_free_doc,
"tracemalloc_domain_free(domain, address)\n"
"--\n\n"
"Free a block of the domain 'raw', 'mem' or 'obj'.");

static PyObject *
tracemalloc_domain_free(PyObject *self, PyObject *args)
{
    const domain_functions *domain;
    void *ptr;
    if (!PyArg_ParseTuple(args, "O&O&", domain_converter, &domain,
                          address_converter, &ptr))
    {
        return NULL;
    }
    domain->free(ptr);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(keep_doc,
"tracemalloc_keep(address, size)\n"
"--\n\n"
"Do not give the block at this address back when it is freed, or moved by\n"
"realloc().  Who asks the same allocator next for a block of this size gets it.");

static PyObject *
tracemalloc_keep(PyObject *self, PyObject *args)
{
    void *ptr;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "O&n", address_converter, &ptr, &size)) {
        return NULL;
    }
    below.keep_size = (size_t)size;
    _Py_atomic_store_uintptr(&below.keep, (uintptr_t)ptr);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_close_doc,
"tracemalloc_gate_close(key, detach=False, after=False)\n"
"--\n\n"
"Hold up the first thread that asks the allocators for a block of this size,\n"
"or frees the block at this address; with 'detach' without the GIL.  With\n"
"'after', the thread that reallocates the block at this address is held up\n"
"by its next request.");

static PyObject *
tracemalloc_gate_close(PyObject *self, PyObject *args)
{
    void *key;
    int detach = 0, after = 0;
    if (!PyArg_ParseTuple(args, "O&|pp", address_converter, &key, &detach,
                          &after))
    {
        return NULL;
    }
    below.gate_reached = below.gate_open = (PyEvent){0};
    below.gate_detaches = detach;
    _Py_atomic_store_uintptr(after ? &below.gate_after : &below.gate,
                             (uintptr_t)key);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_wait_doc,
"tracemalloc_gate_wait(timeout=60.0)\n"
"--\n\n"
"Wait, without the GIL, until a thread stands at the gate.");

static PyObject *
tracemalloc_gate_wait(PyObject *self, PyObject *args)
{
    double timeout = DEFAULT_TIMEOUT;
    if (!PyArg_ParseTuple(args, "|d", &timeout)
        || _PyTestTracemalloc_Wait(&below.gate_reached, timeout, 1) < 0)
    {
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gate_open_doc,
"tracemalloc_gate_open()\n"
"--\n\n"
"Let the thread at the gate go on.");

static PyObject *
tracemalloc_gate_open(PyObject *self, PyObject *Py_UNUSED(args))
{
    _Py_atomic_store_uintptr(&below.gate, 0);
    _Py_atomic_store_uintptr(&below.gate_after, 0);
    _Py_atomic_store_ulong(&below.gate_thread, NO_THREAD);
    _PyEvent_Notify(&below.gate_open);
    Py_RETURN_NONE;
}


/* --- The functions ------------------------------------------------------ */

static PyMethodDef test_methods[] = {
    {"tracemalloc_below_install", tracemalloc_below_install, METH_NOARGS,
     below_install_doc},
    {"tracemalloc_below_remove", tracemalloc_below_remove, METH_NOARGS,
     below_remove_doc},
    {"tracemalloc_free_with", tracemalloc_free_with, METH_VARARGS,
     free_with_doc},
    {"tracemalloc_call_failing", tracemalloc_call_failing, METH_VARARGS,
     call_failing_doc},
    {"tracemalloc_realloc_failing", tracemalloc_realloc_failing,
     METH_VARARGS, realloc_failing_doc},
    {"tracemalloc_domain_free", tracemalloc_domain_free, METH_VARARGS,
     domain_free_doc},
    {"tracemalloc_keep", tracemalloc_keep, METH_VARARGS, keep_doc},
    {"tracemalloc_gate_close", tracemalloc_gate_close, METH_VARARGS,
     gate_close_doc},
    {"tracemalloc_gate_wait", tracemalloc_gate_wait, METH_VARARGS,
     gate_wait_doc},
    {"tracemalloc_gate_open", tracemalloc_gate_open, METH_NOARGS,
     gate_open_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocBelow(PyObject *module)
{
    return PyModule_AddFunctions(module, test_methods);
}
