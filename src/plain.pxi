# The commonest call: a loss of float logits and class indices, with a mean or a sum and hardly an option. To judge it
# takes longer in Python than to compute a small batch, so it is recognised here, and done without a plan.
#
# Nothing is refused here. What is not recognised, a bad argument among it, goes the long way through
# ``fastxent/_arguments.py``, which says what is wrong with it.

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewLikeArray(cnp.ndarray prototype, cnp.NPY_ORDER order, void *descr, int subok)
    object PyArray_Scalar(void *data, cnp.dtype descr, object base)

# The arguments of a call, in the order of `loss_plan`.
LOSS_ARGUMENTS = (
    "operation", "logits", "targets", "axis", "class_weight", "sample_weight", "mask", "lengths", "ignore_index",
    "shift", "label_smoothing", "z_loss", "logit_scale", "softcap", "reduction", "normalizer", "empty_value",
    "num_threads", "out", "return_saved", "upstream", "saved", "output",
)

cdef cnp.dtype FLOAT64 = np.dtype(np.float64)
cdef int FEW = 4096  # positions, of which class indices are counted in less time than a block takes to set up
cdef int MOST_THREADS = 1024  # who asks for more goes the long way, and gets as many


cdef inline bint is_float(object value, double number):
    return type(value) is float and <double>value == number


cdef bint without_options(tuple given, Py_ssize_t count):
    """Whether options that are seldom given are not: those of the forward pass, and what stands behind them."""
    cdef Py_ssize_t i
    for i in range(4, 8):  # what describes positions and classes
        if given[i] is not None:
            return False
    if given[13] is not None or given[15] is not None or given[18] is not None or given[19] is not False:
        return False
    for i in range(20, min(count, 22)):
        if given[i] is not None:
            return False
    return (
        type(given[9]) is int and given[9] == 0 and is_float(given[11], 0.0) and is_float(given[12], 1.0)
        and type(given[10]) is float and 0.0 <= <double>given[10] <= 1.0 and type(given[16]) is float
    )


cdef bint set_ignored(FxCall *c, object index, cnp.ndarray targets):
    """The class index that does not count, if the targets can hold it; False: not recognised."""
    cdef int overflow = 0, bits = 8 * <int>cnp.PyArray_ITEMSIZE(targets)
    cdef int64_t value
    if index is None:
        return True
    if type(index) is not int:
        return False
    value = PyLong_AsLongLongAndOverflow(index, &overflow)
    if overflow:
        return False
    if cnp.PyTypeNum_ISUNSIGNED(cnp.PyArray_TYPE(targets)):
        c.has_ignore = value >= 0 and (bits == 64 or value >> bits == 0)
    else:
        c.has_ignore = bits == 64 or value >> (bits - 1) == 0 or value >> (bits - 1) == -1
    c.ignore = value
    return True


cdef bint set_scores(FxCall *c, int operation, cnp.ndarray x, object class_axis, cnp.ndarray targets):
    """Logits of a floating-point dtype and the class indices of their positions; False: not recognised."""
    cdef int d, k = 0, nd = cnp.PyArray_NDIM(x), kind = cnp.PyArray_TYPE(x), axis
    if type(class_axis) is not int or not -nd <= class_axis < nd:
        return False
    if not (cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(targets)) and cnp.PyArray_ISNOTSWAPPED(targets)):
        return False
    if kind != cnp.NPY_FLOAT32 and kind != cnp.NPY_FLOAT64 and kind != cnp.NPY_FLOAT16 and kind != _bfloat16:
        return False
    axis = class_axis
    axis = axis + nd if axis < 0 else axis
    if not cnp.PyArray_ISNOTSWAPPED(x) or cnp.PyArray_NDIM(targets) != nd - 1 or cnp.PyArray_DIM(x, axis) == 0:
        return False
    for d in range(nd):
        if d != axis:
            if cnp.PyArray_DIM(x, d) != cnp.PyArray_DIM(targets, k):
                return False
            k += 1
    begin(c, operation, x, axis)
    c.sequence_length = cnp.PyArray_DIM(targets, nd - 2) if nd > 2 else 1
    describe(&c.operand[FX_Y], targets, -1)
    return True


cdef bint apart(cnp.ndarray one, cnp.ndarray other):
    """Whether two arrays without gaps have no byte in common."""
    cdef char *a = <char *>cnp.PyArray_DATA(one)
    cdef char *b = <char *>cnp.PyArray_DATA(other)
    if not (cnp.PyArray_ISCARRAY_RO(one) and cnp.PyArray_ISCARRAY_RO(other)):
        return False
    return a + cnp.PyArray_NBYTES(one) <= b or b + cnp.PyArray_NBYTES(other) <= a


cdef bint takes_gradient(object given, cnp.ndarray logits, cnp.ndarray targets):
    """Whether a caller's array is one for the gradient: the logits, or an array of their kind apart from all."""
    cdef cnp.ndarray array
    if not cnp.PyArray_CheckExact(given):
        return False
    array = given
    if not (cnp.PyArray_ISCARRAY(array) and cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(logits)):
        return False
    return cnp.PyArray_SAMESHAPE(array, logits) and apart(array, targets) and (array is logits or apart(array, logits))


cdef int64_t count_valid(const FxCall *c, const int64_t *targets):
    """How many positions count, by their class indices alone; -1: a class index is out of range."""
    cdef int64_t i, valid = 0, bad = 0
    cdef bint outside, ignored
    for i in range(c.positions):
        outside = <uint64_t>targets[i] >= <uint64_t>c.classes
        ignored = c.has_ignore and targets[i] == c.ignore
        valid += not (outside or ignored)
        bad += outside and not ignored
    return -1 if bad else valid


cdef double divisor_before(FxCall *c, cnp.ndarray targets, int threads) except? -1:
    """The divisor of a mean, before the pass that needs it; -1: a class index is out of range."""
    cdef double total = 0, divisor = 0
    if c.positions <= FEW and cnp.PyArray_TYPE(targets) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(targets):
        return <double>count_valid(c, <const int64_t *>cnp.PyArray_DATA(targets))
    run_blocks(c, 1, threads, &total, &divisor)
    return divisor if c.bad_position < 0 else -1


def plain(tuple given, int default_threads):
    """A call of `LOSS_ARGUMENTS`, less perhaps the last: its value, value and gradient, or None (not recognised)."""
    cdef FxCall c
    cdef int operation = given[0], axis, threads = default_threads
    cdef object logits = given[1], targets = given[2], reduction = given[14]
    cdef object output = given[22] if len(given) > 22 else None
    cdef double total = 0, divisor = 0
    cdef bint mean
    if not (cnp.PyArray_CheckExact(logits) and cnp.PyArray_CheckExact(targets) and type(reduction) is str):
        return None
    mean = <str>reduction == "mean"
    if not (mean or <str>reduction == "sum") or not without_options(given, len(given)):
        return None
    if given[17] is not None:
        if type(given[17]) is not int or not 1 <= given[17] <= MOST_THREADS:
            return None
        threads = given[17]
    memset(&c, 0, sizeof(c))
    if threads < 1 or not set_scores(&c, operation, logits, given[3], targets):
        return None
    if not set_ignored(&c, given[8], targets):
        return None
    c.smoothing = given[10]
    if operation == FX_OP_LOSS_GRAD:
        if output is None:
            output = PyArray_NewLikeArray(logits, cnp.NPY_KEEPORDER, NULL, 0)
        elif not takes_gradient(output, logits, targets):
            return None
        axis = given[3]
        describe(&c.operand[FX_OUT], output, axis + cnp.PyArray_NDIM(<cnp.ndarray>logits) if axis < 0 else axis)
    fx_plan_call(&c, 0)
    if output is not None:
        divisor = divisor_before(&c, targets, threads)
        if divisor < 0 or (mean and divisor == 0):
            return None
        c.scale = 1.0 / divisor if mean else 1.0
    run_blocks(&c, 0, threads, &total, &divisor)
    if c.bad_position >= 0 or (mean and divisor == 0):
        return None
    if mean:
        total /= divisor
    value = PyArray_Scalar(&total, FLOAT64, None)
    return value if output is None else (value, output)
