# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
"""The compiled engine: from a Plan to the C structs of fastxent.h, and the GIL released. Nothing else happens here.

The plan has been checked by ``fastxent/_arguments.py``; its fields come by position, in the order of ``PLAN_FIELDS``.
The commonest call of a loss needs no plan: see ``plain.pxi``.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

import numpy as np

cimport numpy as cnp

cnp.import_array()


include "interface.pxi"


PLAN_FIELDS = (
    "operation", "logits", "axis", "targets", "class_weight", "sample_weight", "mask", "lengths", "ignore_index",
    "shift", "label_smoothing", "z_loss", "logit_scale", "softcap", "upstream", "saved", "losses", "saved_out",
    "output", "sequence_length", "per_sequence", "num_threads", "statistics",
)
ELEMENT_FIELDS = (
    "operation", "input", "axis", "target", "sample_weight", "mask", "lengths", "upstream", "positive_weight",
    "parameter", "losses", "output", "sequence_length", "per_sequence", "num_threads",
)

TILE_FIELDS = (
    "operation", "tile", "first", "targets", "bias", "class_weight", "coefficients", "logit_scale", "softcap", "state",
    "top", "terms", "num_threads",
)

cdef int _isa = 0
for _candidate in range(FX_ISA_COUNT):
    if fx_available_isas() >> <unsigned>_candidate & 1:
        _isa = _candidate
fx_xla_use_isa(_isa)

cdef int _bfloat16 = -1  # the number that NumPy gave the type, once a plan had it

# How long a call may stay away from Python before it looks for Ctrl-C.
cdef double PATIENCE = 0.1


cdef int dtype_code(cnp.ndarray a):
    cdef int n = cnp.PyArray_TYPE(a)
    cdef int size = <int>cnp.PyArray_ITEMSIZE(a)
    if n == cnp.NPY_FLOAT32:
        return FX_F32
    if n == cnp.NPY_FLOAT64:
        return FX_F64
    if n == cnp.NPY_FLOAT16:
        return FX_F16
    if cnp.PyTypeNum_ISSIGNED(n):
        return FX_I8 if size == 1 else FX_I16 if size == 2 else FX_I32 if size == 4 else FX_I64
    if cnp.PyTypeNum_ISUNSIGNED(n):
        return FX_U8 if size == 1 else FX_U16 if size == 2 else FX_U32 if size == 4 else FX_U64
    return FX_BF16  # a registered type: the plan lets no other pass


cdef void describe(FxOperand *o, object thing, int axis):
    """One array: `axis` is its class axis, -1 if it has none. None leaves the operand absent."""
    cdef int d, k = 0, nd
    cdef cnp.ndarray a
    if thing is None:
        o.data = NULL
        return
    a = <cnp.ndarray>thing
    nd = cnp.PyArray_NDIM(a)
    o.data = cnp.PyArray_BYTES(a)
    o.dtype = dtype_code(a)
    o.swapped = not cnp.PyArray_ISNOTSWAPPED(a)
    o.class_stride = 0
    for d in range(nd):
        if d == axis:
            o.class_stride = cnp.PyArray_STRIDE(a, d)
        else:
            o.stride[k] = cnp.PyArray_STRIDE(a, d)
            k += 1


cdef void begin(FxCall *c, int operation, cnp.ndarray x, int axis):
    """An empty call's operation, logits and positions; `axis` is the class axis, -1 if there is none."""
    global _bfloat16
    cdef int d, k = 0
    c.operation = operation
    c.isa = _isa
    c.positions = c.classes = 1
    for d in range(cnp.PyArray_NDIM(x)):
        if d == axis:
            c.classes = cnp.PyArray_DIM(x, d)
        else:
            c.shape[k] = cnp.PyArray_DIM(x, d)
            c.positions *= c.shape[k]
            k += 1
    c.nd = k
    c.class_weight_sum = <double>c.classes
    c.logit_scale = c.scale = 1.0
    describe(&c.operand[FX_X], x, axis)
    c.storage = c.operand[FX_X].dtype if c.operand[FX_X].dtype < FX_I8 else FX_F64
    if c.storage == FX_BF16:
        _bfloat16 = cnp.PyArray_TYPE(x)


cdef int run_blocks(FxCall *c, bint prepare, int threads, double *total, double *divisor) except -1:
    """Runs all blocks; `c.bad_position` is -1 afterwards, or that of a bad class index."""
    cdef int64_t block = 0
    cdef double few[8][2]
    c.bad_position = -1
    c.partial = few
    if c.blocks > 8:
        c.partial = <double (*)[2]>PyMem_Malloc(c.blocks * 2 * sizeof(double))
        if c.partial == NULL:
            raise MemoryError
    try:
        while block < c.blocks:
            with nogil:
                block = fx_run(c, prepare, block, threads, PATIENCE)
            if block < 0:
                raise MemoryError
            if block < c.blocks:
                PyErr_CheckSignals()
        fx_total(c, total, divisor)
    finally:
        if c.partial != few:
            PyMem_Free(c.partial)
        c.partial = NULL
    return 0


@cython.final
@cython.no_gc_clear
cdef class Call:
    """One plan, ready to run: see ``fastxent/_backends``."""

    cdef FxCall c
    cdef object plan
    cdef object class_weight_r
    cdef object sequence_scale
    cdef int threads
    cdef bint per_sequence
    cdef int64_t sequences
    cdef public object sequence_sums
    cdef public object sequence_divisors

    def __cinit__(self, fields):
        cdef tuple plan = <tuple>fields  # a NamedTuple: a cast, since Cython's own check wants the very type
        cdef FxCall *c = &self.c
        cdef cnp.ndarray x = <cnp.ndarray>plan[1]
        cdef int axis = plan[2], d, nd = cnp.PyArray_NDIM(x)
        cdef object targets = plan[3], weight = plan[4], lengths = plan[7], ignore = plan[8], saved = plan[15]
        cdef cnp.ndarray w
        self.plan = fields
        if <int>plan[0] >= FX_OP_DIVERGENCE:
            self._open_elements(plan)
            return
        self.threads = plan[21]
        self.per_sequence = plan[20]
        begin(c, plan[0], x, axis)
        c.targets_are_probs = (
            targets is not None and cnp.PyArray_NDIM(<cnp.ndarray>targets) == nd and c.operation < FX_OP_REDUCE
        )
        describe(&c.operand[FX_Y], targets,
                 axis if c.targets_are_probs or FX_OP_SOFTMAX_GRAD <= c.operation < FX_OP_STATISTICS else -1)
        if FX_OP_SOFTMAX_GRAD <= c.operation < FX_OP_STATISTICS:
            c.targets_are_probs = 1
        describe(&c.operand[FX_MASK], plan[6], -1)
        describe(&c.operand[FX_WEIGHT], plan[5], -1)
        describe(&c.operand[FX_UPSTREAM], plan[14], -1)
        describe(&c.operand[FX_LOSSES], plan[16], -1)
        describe(&c.operand[FX_OUT], plan[18], axis)
        if weight is not None:
            w = <cnp.ndarray>weight
            c.class_weight = <const double *>cnp.PyArray_DATA(w)
            c.class_weight_r = cnp.PyArray_DATA(w)
            c.class_weight_sum = w.sum()
            if c.storage != FX_F64:
                self.class_weight_r = w.astype(np.float32)
                c.class_weight_r = cnp.PyArray_DATA(<cnp.ndarray>self.class_weight_r)
        c.lengths = NULL if lengths is None else <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>lengths)
        c.has_ignore = ignore is not None
        if c.has_ignore:
            # An uint64 above int64's range keeps its bits, and so does the index it is compared with.
            c.ignore = <int64_t><uint64_t>ignore if ignore >= 0 else <int64_t>ignore
        c.shift = plan[9]
        c.smoothing = plan[10]
        c.z_loss = plan[11]
        c.logit_scale = plan[12]
        c.softcap = plan[13]
        c.saved = NULL if saved is None else cnp.PyArray_BYTES(<cnp.ndarray>saved)
        c.saved_out = NULL if plan[17] is None else cnp.PyArray_BYTES(<cnp.ndarray>plan[17])
        c.sequence_length = plan[19]
        if plan[22] is not None:
            for d, result in enumerate(plan[22]):
                c.statistics[d] = NULL if result is None else cnp.PyArray_DATA(<cnp.ndarray>result)
            if c.operation == FX_OP_TOP_K:
                c.top_k = cnp.PyArray_DIM(<cnp.ndarray>plan[22][0], nd - 1)
        self.sequences = c.positions
        if c.sequence_length != 1:
            self.sequences = c.positions // c.sequence_length if c.sequence_length else 0
        fx_plan_call(c, c.lengths != NULL or c.shift != 0 or self.per_sequence)

    cdef _open_elements(self, tuple plan):
        """An ElementPlan: operands of one shape, of which at most the first two have a class axis."""
        cdef FxCall *c = &self.c
        cdef cnp.ndarray x = <cnp.ndarray>plan[1]
        cdef object lengths = plan[6]
        cdef int axis = plan[2]
        begin(c, plan[0], x, axis)
        c.targets_are_probs = 1
        describe(&c.operand[FX_Y], plan[3], axis)
        describe(&c.operand[FX_WEIGHT], plan[4], -1)
        describe(&c.operand[FX_MASK], plan[5], -1)
        c.lengths = NULL if lengths is None else <const int64_t *>cnp.PyArray_DATA(<cnp.ndarray>lengths)
        describe(&c.operand[FX_UPSTREAM], plan[7], -1)
        describe(&c.operand[FX_POSITIVE], plan[8], -1)
        c.parameter = plan[9]
        describe(&c.operand[FX_LOSSES], plan[10], -1)
        describe(&c.operand[FX_OUT], plan[11], axis)
        c.sequence_length = plan[12]
        self.per_sequence = plan[13]
        self.threads = plan[14]
        self.sequences = c.positions
        if c.sequence_length != 1:
            self.sequences = c.positions // c.sequence_length if c.sequence_length else 0
        fx_plan_call(c, c.lengths != NULL or self.per_sequence)

    def focus(self, double gamma):
        """Make cross-entropy focal loss: weighted by (1 - p)**gamma, and class weights leave the divisor alone."""
        self.c.focal = 1
        self.c.gamma = gamma

    cdef _go(self, bint prepare):
        """Runs all blocks; returns (total, divisor, bad_position)."""
        cdef double total = 0, divisor = 0
        run_blocks(&self.c, prepare, self.threads, &total, &divisor)
        return total, divisor, self.c.bad_position

    cdef _go_by_sequence(self, bint prepare):
        """The same, with what each position adds kept, and summed by sequence."""
        cdef FxCall *c = &self.c
        weights = np.empty(c.positions)
        losses = None if prepare else np.empty(c.positions, np.float64 if c.storage == FX_F64 else np.float32)
        sums, divisors = np.zeros(self.sequences), np.zeros(self.sequences)
        cdef double *s = <double *>cnp.PyArray_DATA(<cnp.ndarray>sums)
        cdef double *d = <double *>cnp.PyArray_DATA(<cnp.ndarray>divisors)
        c.position_weight = <double *>cnp.PyArray_DATA(<cnp.ndarray>weights)
        c.position_loss = NULL if prepare else cnp.PyArray_DATA(<cnp.ndarray>losses)
        try:
            result = self._go(prepare)
            if self.sequences:
                with nogil:
                    fx_sequences(c, self.sequences, s, d)
        finally:
            c.position_weight = NULL
            c.position_loss = NULL
        self.sequence_divisors = divisors
        if not prepare:
            self.sequence_sums = sums
        return result

    def prepare(self):
        """Read only what describes targets: (divisor, flat position of the first bad class index or -1)."""
        _total, divisor, bad = self._go_by_sequence(True) if self.per_sequence else self._go(True)
        return divisor, bad

    def run(self, double scale=1.0, sequence_scale=None):
        """Do the work: (sum of the losses, divisor, bad position or -1)."""
        self.c.scale = scale
        if sequence_scale is not None:
            self.sequence_scale = sequence_scale
            self.c.sequence_scale = <const double *>cnp.PyArray_DATA(<cnp.ndarray>sequence_scale)
        return self._go_by_sequence(False) if self.per_sequence else self._go(False)


cdef void *data_of(object array):
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


def tile(fields):
    """Do a TilePlan of ``fastxent/_linear_tiles.py``."""
    cdef tuple plan = <tuple>fields
    cdef cnp.ndarray x = <cnp.ndarray>plan[1]
    cdef FxCall c
    cdef FxLinear t
    cdef int threads = plan[12]
    cdef int64_t block = 0
    memset(&c, 0, sizeof(c))
    t.operation = plan[0]
    t.stride = cnp.PyArray_STRIDE(x, 0)
    t.first = plan[2]
    t.targets = <const int64_t *>data_of(plan[3])
    t.bias = data_of(plan[4])
    t.coefficients = plan[6]
    t.state = <double *>data_of(plan[9])
    t.top = <double *>data_of(plan[10])
    t.terms = data_of(plan[11])
    c.linear = &t
    c.isa = _isa
    c.operation = FX_OP_GRAD if t.operation == FX_LINEAR_GRADIENT else FX_OP_LOSS
    c.nd = 1
    c.shape[0] = c.positions = cnp.PyArray_DIM(x, 0)
    c.classes = cnp.PyArray_DIM(x, 1)
    describe(&c.operand[FX_X], x, 1)
    if t.operation == FX_LINEAR_GRADIENT:
        c.operand[FX_OUT] = c.operand[FX_X]
    c.storage = c.operand[FX_X].dtype
    c.class_weight_r = data_of(plan[5])
    c.class_weight = <const double *>c.class_weight_r  # says that there are some; nothing of a tile reads it
    c.logit_scale = plan[7]
    c.softcap = plan[8]
    fx_plan_call(&c, 0)
    while block < c.blocks:
        with nogil:
            block = fx_run(&c, 0, block, threads, PATIENCE)
        if block < 0:
            raise MemoryError
        if block < c.blocks:
            PyErr_CheckSignals()


include "plain.pxi"


def codes():
    """The C interface's operation codes, by the names of ``fastxent/_options.py``."""
    return {
        "OP_LOSS": FX_OP_LOSS, "OP_LOSS_GRAD": FX_OP_LOSS_GRAD, "OP_GRAD": FX_OP_GRAD,
        "OP_LOSS_SOFTMAX": FX_OP_LOSS_SOFTMAX, "OP_SOFTMAX": FX_OP_SOFTMAX, "OP_LOG_SOFTMAX": FX_OP_LOG_SOFTMAX,
        "OP_LOGSUMEXP": FX_OP_LOGSUMEXP, "OP_NLL": FX_OP_NLL, "OP_NLL_GRAD": FX_OP_NLL_GRAD, "OP_PROBS": FX_OP_PROBS,
        "OP_PROBS_GRAD": FX_OP_PROBS_GRAD, "OP_REDUCE": FX_OP_REDUCE, "OP_SOFTMAX_GRAD": FX_OP_SOFTMAX_GRAD,
        "OP_LOG_SOFTMAX_GRAD": FX_OP_LOG_SOFTMAX_GRAD, "OP_STATISTICS": FX_OP_STATISTICS,
        "OP_PARTIALS": FX_OP_PARTIALS, "OP_TOP_K": FX_OP_TOP_K, "OP_DIVERGENCE": FX_OP_DIVERGENCE,
        "OP_BINARY_PROBS": FX_OP_BINARY_PROBS, "OP_BINARY_LOGITS": FX_OP_BINARY_LOGITS, "OP_SQUARED": FX_OP_SQUARED,
        "OP_ABSOLUTE": FX_OP_ABSOLUTE, "OP_HUBER": FX_OP_HUBER, "OP_SMOOTH_L1": FX_OP_SMOOTH_L1,
        "OP_SIGMOID": FX_OP_SIGMOID, "OP_LOG_SIGMOID": FX_OP_LOG_SIGMOID, "TILE_SUMS": FX_LINEAR_SUMS,
        "TILE_SCORES": FX_LINEAR_SCORES, "TILE_GRADIENT": FX_LINEAR_GRADIENT, "COEFFICIENTS_NONE": FX_COEFFICIENTS_NONE,
        "COEFFICIENTS_ONE": FX_COEFFICIENTS_ONE, "COEFFICIENTS_CLASS_WEIGHT": FX_COEFFICIENTS_CLASS_WEIGHT,
    }


def available_isas():
    """The instruction sets that this build has kernels for and this machine can run."""
    return tuple(
        fx_isa_name(i).decode() for i in range(FX_ISA_COUNT) if fx_available_isas() >> <unsigned>i & 1
    )


def isa():
    """The instruction set in use."""
    return fx_isa_name(_isa).decode()


def set_isa(str name):
    """Use another instruction set from the next call on: for tests and measurements."""
    global _isa
    for i in range(FX_ISA_COUNT):
        if fx_isa_name(i) == name.encode() and fx_available_isas() >> <unsigned>i & 1:
            _isa = i
            fx_xla_use_isa(i)
            return
    raise ValueError(f"no instruction set {name!r}: there are {', '.join(available_isas())}")


def xla_handler():
    """What ``jax.ffi.register_ffi_target`` takes: the function of ``xla_ffi.h``, in a capsule of the name it wants."""
    return PyCapsule_New(<void *>fx_xla_handler, "xla._CUSTOM_CALL_TARGET", NULL)


def compiler():
    """Name and version of the compiler that built this module."""
    return fx_compiler().decode()
