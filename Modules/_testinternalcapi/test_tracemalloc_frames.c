// Frames and thread states that others handle, for the tests of tracemalloc:
// evaluators, modules that were compiled to C, a thread that runs with the
// thread state of another one.

#include "parts.h"
#include "pycore_ceval.h"         // _PyEval_EvalFrameDefault()
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_interp.h"        // PyInterpreterState
#include "test_tracemalloc.h"


// The mark is in what was padding: extensions know where the locals are.
static_assert(sizeof(void *) != 8
              || (offsetof(_PyInterpreterFrame, owner) == 70
                  && offsetof(_PyInterpreterFrame, localsplus) == 72),
              "the layout of frames is that of 3.13.5");


/* --- An evaluator ------------------------------------------------------- */

// What is called in the frames of a code object, if that is not NULL.
static struct {
    PyObject *code, *func;
} evaluated;

// Call it in this frame, as from a loop of the evaluator's own.  Returns -1 if
// it fails.
static int
call_evaluated(PyThreadState *tstate, _PyInterpreterFrame *frame)
{
    PyCodeObject *code = (PyCodeObject *)evaluated.code;
    _Py_CODEUNIT *start = frame->instr_ptr;
    frame->instr_ptr = _PyCode_CODE(code) + code->_co_firsttraceable + 1;
    frame->previous = tstate->current_frame;
    tstate->current_frame = frame;
    PyObject *result = PyObject_CallNoArgs(evaluated.func);
    tstate->current_frame = frame->previous;
    frame->instr_ptr = start;
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

// Pushes frames as an extension does that was compiled with the headers of
// 3.13.5: the mark of a frame is whatever was there before.
static PyObject *
evaluate(PyThreadState *tstate, _PyInterpreterFrame *frame, int throwflag)
{
    frame->callers_known = 1;
    if (evaluated.code != NULL && frame->f_executable == evaluated.code
        && call_evaluated(tstate, frame) < 0)
    {
        throwflag = 1;
    }
    return _PyEval_EvalFrameDefault(tstate, frame, throwflag);
}

PyDoc_STRVAR(set_evaluator_doc,
"tracemalloc_set_evaluator(new, code=None, func=None)\n"
"--\n\n"
"Set an evaluator of frames that does not know tracemalloc, or the default.\n"
"The new one calls func() in each frame of this code before it is executed.");

static PyObject *
tracemalloc_set_evaluator(PyObject *self, PyObject *args)
{
    int new;
    PyObject *code = NULL, *func = NULL;
    if (!PyArg_ParseTuple(args, "p|O!O", &new, &PyCode_Type, &code, &func)) {
        return NULL;
    }
    Py_XSETREF(evaluated.code, Py_XNewRef(code));
    Py_XSETREF(evaluated.func, Py_XNewRef(func));
    _PyInterpreterState_SetEvalFrameFunc(
        PyInterpreterState_Get(),
        new ? evaluate : _PyEval_EvalFrameDefault);
    Py_RETURN_NONE;
}


/* --- Compiled modules --------------------------------------------------- */

PyDoc_STRVAR(call_in_frame_doc,
"tracemalloc_call_in_frame(code, func, ignored=None)\n"
"--\n\n"
"Call a function in a frame for this code, as modules do whose functions were\n"
"compiled to C.  It is the same frame each time, and nobody resets its mark.");

static PyObject *
tracemalloc_call_in_frame(PyObject *self, PyObject *args)
{
    static _PyInterpreterFrame frame;
    PyObject *code, *func, *ignored = NULL;
    if (!PyArg_ParseTuple(args, "O!O|O", &PyCode_Type, &code, &func,
                          &ignored))
    {
        return NULL;
    }
    PyThreadState *tstate = PyThreadState_Get();
    frame.f_executable = code;
    frame.instr_ptr = _PyCode_CODE((PyCodeObject *)code) + 1;
    frame.owner = FRAME_OWNED_BY_GENERATOR;
    frame.stacktop = -1;
    frame.previous = tstate->current_frame;
    tstate->current_frame = &frame;
    PyObject *result = PyObject_CallNoArgs(func);
    tstate->current_frame = frame.previous;
    return result;
}

PyDoc_STRVAR(call_in_new_frame_doc,
"tracemalloc_call_in_new_frame(func)\n"
"--\n\n"
"Call a Python function without arguments, in a frame that was pushed by a\n"
"module which knows no mark.");

static PyObject *
tracemalloc_call_in_new_frame(PyObject *self, PyObject *func)
{
    if (!PyFunction_Check(func)) {
        PyErr_SetString(PyExc_TypeError, "not a Python function");
        return NULL;
    }
    PyThreadState *tstate = PyThreadState_Get();
    PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(func);
    if (!_PyThreadState_HasStackSpace(tstate, code->co_framesize)) {
        return PyErr_NoMemory();
    }
    _PyInterpreterFrame *frame = _PyFrame_PushUnchecked(
        tstate, (PyFunctionObject *)Py_NewRef(func), 0);
    frame->callers_known = 1;
    return _PyEval_EvalFrameDefault(tstate, frame, 0);
}

static _PyInterpreterFrame *
generator_frame(PyObject *gens, Py_ssize_t i)
{
    PyGenObject *gen = (PyGenObject *)PyTuple_GET_ITEM(gens, i);
    return (_PyInterpreterFrame *)gen->gi_iframe;
}

PyDoc_STRVAR(resume_doc,
"tracemalloc_resume(*generators)\n"
"--\n\n"
"Resume the last of these suspended generators, without resetting a mark.  If\n"
"there are others, they are linked as its callers, the first one outermost,\n"
"and it gets a KeyError: so does throw() of the first one if each of them\n"
"waits for the next.");

static PyObject *
tracemalloc_resume(PyObject *self, PyObject *gens)
{
    PyThreadState *tstate = PyThreadState_Get();
    _PyInterpreterFrame *current = tstate->current_frame;
    Py_ssize_t last = PyTuple_GET_SIZE(gens) - 1;
    for (Py_ssize_t i = 0; i <= last; i++) {
        if (!PyGen_CheckExact(PyTuple_GET_ITEM(gens, i))) {
            PyErr_SetString(PyExc_TypeError, "not a generator");
            return NULL;
        }
    }
    for (Py_ssize_t i = 0; i < last; i++) {
        generator_frame(gens, i)->previous = tstate->current_frame;
        tstate->current_frame = generator_frame(gens, i);
    }
    PyGenObject *gen = (PyGenObject *)PyTuple_GET_ITEM(gens, last);
    _PyInterpreterFrame *frame = generator_frame(gens, last);
    if (last > 0) {
        PyErr_SetNone(PyExc_KeyError);
    }
    _PyFrame_StackPush(frame, Py_NewRef(Py_None));
    gen->gi_exc_state.previous_item = tstate->exc_info;
    tstate->exc_info = &gen->gi_exc_state;
    gen->gi_frame_state = FRAME_EXECUTING;
    PyObject *result = _PyEval_EvalFrame(tstate, frame, last > 0);
    for (Py_ssize_t i = 0; i < last; i++) {
        generator_frame(gens, i)->previous = NULL;
    }
    tstate->current_frame = current;
    return result;
}


/* --- A thread state that is lent ---------------------------------------- */

static struct {
    PyThreadState *tstate;
    void *ptr;
    PyEvent ready, asked, done, returned;
} lender;

// Becomes the owner of a thread state, which another thread uses then.
static void
lend(void *interp)
{
    lender.tstate = PyThreadState_New((PyInterpreterState *)interp);
    PyEval_AcquireThread(lender.tstate);
    PyEval_ReleaseThread(lender.tstate);
    _PyEvent_Notify(&lender.ready);
    PyEvent_Wait(&lender.asked);
    lender.ptr = PyMem_RawMalloc(100);
    _PyEvent_Notify(&lender.done);
    PyEvent_Wait(&lender.returned);
    PyEval_AcquireThread(lender.tstate);
    PyThreadState_Clear(lender.tstate);
    PyThreadState_DeleteCurrent();
}

PyDoc_STRVAR(call_in_lent_state_doc,
"tracemalloc_call_in_lent_state(func)\n"
"--\n\n"
"Call a function with the thread state of another thread.  Only once.");

static PyObject *
tracemalloc_call_in_lent_state(PyObject *self, PyObject *func)
{
    PyThreadState *tstate = PyThreadState_Get();
    if (PyThread_start_new_thread(lend, tstate->interp)
        == PYTHREAD_INVALID_THREAD_ID)
    {
        PyErr_SetString(PyExc_RuntimeError, "cannot start a thread");
        return NULL;
    }
    if (_PyTestTracemalloc_Wait(&lender.ready, DEFAULT_TIMEOUT, 1) < 0) {
        return NULL;
    }
    PyThreadState_Swap(lender.tstate);
    PyObject *result = PyObject_CallNoArgs(func);
    PyThreadState_Swap(tstate);
    _PyEvent_Notify(&lender.returned);
    return result;
}

PyDoc_STRVAR(raw_malloc_in_lender_doc,
"tracemalloc_raw_malloc_in_lender()\n"
"--\n\n"
"The address of a block that the thread allocates whose thread state is used.");

static PyObject *
tracemalloc_raw_malloc_in_lender(PyObject *self, PyObject *Py_UNUSED(args))
{
    _PyEvent_Notify(&lender.asked);
    if (_PyTestTracemalloc_Wait(&lender.done, DEFAULT_TIMEOUT, 0) < 0) {
        return NULL;
    }
    return PyLong_FromVoidPtr(lender.ptr);
}


/* --- The functions ------------------------------------------------------ */

static PyMethodDef test_methods[] = {
    {"tracemalloc_set_evaluator", tracemalloc_set_evaluator, METH_VARARGS,
     set_evaluator_doc},
    {"tracemalloc_call_in_frame", tracemalloc_call_in_frame, METH_VARARGS,
     call_in_frame_doc},
    {"tracemalloc_call_in_new_frame", tracemalloc_call_in_new_frame, METH_O,
     call_in_new_frame_doc},
    {"tracemalloc_resume", tracemalloc_resume, METH_VARARGS, resume_doc},
    {"tracemalloc_call_in_lent_state", tracemalloc_call_in_lent_state, METH_O,
     call_in_lent_state_doc},
    {"tracemalloc_raw_malloc_in_lender", tracemalloc_raw_malloc_in_lender,
     METH_NOARGS, raw_malloc_in_lender_doc},
    {NULL},
};

int
_PyTestInternalCapi_Init_TracemallocFrames(PyObject *module)
{
    return PyModule_AddFunctions(module, test_methods);
}
