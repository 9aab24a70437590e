/* Foreign allocators (PEP 445) for the storms of 'make proof': layers that
   count calls and pass them on.  A layer that is installed before tracing
   begins lies below the hooks of tracemalloc, one that is installed later
   above them.  Layers stay until the process ends. */

#include "Python.h"

#define MAX_LAYERS 4
#define NDOMAINS 3

typedef struct {
    PyMemAllocatorEx next;
    long calls;                 // atomic
} layer_t;

static layer_t layers[MAX_LAYERS][NDOMAINS];
static int nlayers;

static PyMemAllocatorEx *
pass(void *ctx)
{
    layer_t *layer = (layer_t *)ctx;
    (void)__atomic_fetch_add(&layer->calls, 1, __ATOMIC_RELAXED);
    return &layer->next;
}

static void *
layer_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *next = pass(ctx);
    return next->malloc(next->ctx, size);
}

static void *
layer_calloc(void *ctx, size_t nelem, size_t elsize)
{
    PyMemAllocatorEx *next = pass(ctx);
    return next->calloc(next->ctx, nelem, elsize);
}

static void *
layer_realloc(void *ctx, void *ptr, size_t size)
{
    PyMemAllocatorEx *next = pass(ctx);
    return next->realloc(next->ctx, ptr, size);
}

static void
layer_free(void *ctx, void *ptr)
{
    PyMemAllocatorEx *next = pass(ctx);
    next->free(next->ctx, ptr);
}

static PyObject *
install(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    if (nlayers == MAX_LAYERS) {
        PyErr_SetString(PyExc_RuntimeError, "too many layers");
        return NULL;
    }
    layer_t *layer = layers[nlayers];
    for (int i = 0; i < NDOMAINS; i++) {
        PyMemAllocatorDomain domain = (PyMemAllocatorDomain)i;
        PyMem_GetAllocator(domain, &layer[i].next);
        PyMemAllocatorEx alloc = {
            &layer[i], layer_malloc, layer_calloc, layer_realloc, layer_free,
        };
        PyMem_SetAllocator(domain, &alloc);
    }
    return PyLong_FromLong(nlayers++);
}

static PyObject *
calls(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < nlayers * NDOMAINS; i++) {
        layer_t *layer = &layers[i / NDOMAINS][i % NDOMAINS];
        PyObject *item = PyLong_FromLong(
            __atomic_load_n(&layer->calls, __ATOMIC_RELAXED));
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyMethodDef methods[] = {
    {"install", install, METH_NOARGS,
     "Put one more layer on top; return its number."},
    {"calls", calls, METH_NOARGS,
     "Calls so far, of each layer for raw, mem and obj."},
    {NULL, NULL, 0, NULL}
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL}
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "proof_hooks",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit_proof_hooks(void)
{
    return PyModuleDef_Init(&module);
}
