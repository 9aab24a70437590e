// Shared by the test_tracemalloc*.c files.

#ifndef Py_TESTINTERNALCAPI_TRACEMALLOC_H
#define Py_TESTINTERNALCAPI_TRACEMALLOC_H

#include "pycore_lock.h"          // PyEvent

// How long to wait for a native thread, in seconds, unless the test says it.
#define DEFAULT_TIMEOUT 60.0

// The functions of an allocator domain, by PyMemAllocatorDomain.
typedef struct {
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void (*free)(void *);
} domain_functions;

extern const domain_functions _PyTestTracemalloc_Domains[3];

// Converters for PyArg_ParseTuple(): 'raw', 'mem' or 'obj' to its functions;
// an int to an address.
extern int _PyTestTracemalloc_DomainConverter(PyObject *arg, void *out);
extern int _PyTestTracemalloc_AddressConverter(PyObject *arg, void *out);

// The index of a name.  -1 with ValueError set if it is none of them.
extern int _PyTestTracemalloc_FindName(
    const char *what, const char * const *names, int count, const char *name);

// Wait for an event of a native thread.  Without `detach` the caller keeps the
// GIL for the whole time.  -1 with TimeoutError set after so many seconds.
extern int _PyTestTracemalloc_Wait(
    PyEvent *event, double timeout, int detach);

#endif
