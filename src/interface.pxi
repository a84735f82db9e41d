# What the C headers declare, for Cython.

cdef extern from "fastxent.h" nogil:
    enum:
        FX_MAX_DIMS
    enum:
        FX_OP_LOSS, FX_OP_LOSS_GRAD, FX_OP_GRAD, FX_OP_LOSS_SOFTMAX, FX_OP_SOFTMAX, FX_OP_LOG_SOFTMAX, FX_OP_LOGSUMEXP
        FX_OP_NLL, FX_OP_NLL_GRAD, FX_OP_PROBS, FX_OP_PROBS_GRAD, FX_OP_REDUCE, FX_OP_SOFTMAX_GRAD
        FX_OP_LOG_SOFTMAX_GRAD, FX_OP_STATISTICS, FX_OP_PARTIALS, FX_OP_TOP_K
        FX_OP_DIVERGENCE, FX_OP_BINARY_PROBS, FX_OP_BINARY_LOGITS, FX_OP_SQUARED, FX_OP_ABSOLUTE, FX_OP_HUBER
        FX_OP_SMOOTH_L1, FX_OP_SIGMOID, FX_OP_LOG_SIGMOID
    enum:
        FX_X, FX_Y, FX_MASK, FX_WEIGHT, FX_UPSTREAM, FX_LOSSES, FX_OUT, FX_POSITIVE, FX_OPERANDS
    enum:
        FX_F32, FX_F64, FX_F16, FX_BF16, FX_I8, FX_I16, FX_I32, FX_I64, FX_U8, FX_U16, FX_U32, FX_U64
    enum:
        FX_ISA_COUNT
    enum:
        FX_LINEAR_SUMS, FX_LINEAR_SCORES, FX_LINEAR_GRADIENT
    enum:
        FX_COEFFICIENTS_NONE, FX_COEFFICIENTS_ONE, FX_COEFFICIENTS_CLASS_WEIGHT
    enum:
        FX_LINEAR_STATE

    ctypedef struct FxLinear:
        int operation, coefficients
        int64_t stride, first
        const int64_t *targets
        const void *bias
        double *state
        double *top
        const void *terms

    ctypedef struct FxOperand:
        char *data
        int64_t class_stride
        int dtype
        int swapped
        int64_t stride[64]

    ctypedef struct FxCall:
        int operation, isa, storage, targets_are_probs, has_ignore, nd
        int64_t ignore, positions, classes, sequence_length, shift, blocks
        int64_t shape[64]
        FxOperand operand[8]
        const int64_t *lengths
        const double *class_weight
        const void *class_weight_r
        double class_weight_sum, smoothing, z_loss, logit_scale, softcap, scale
        const double *sequence_scale
        int focal
        double gamma, parameter
        const char *saved
        char *saved_out
        double *position_weight
        void *position_loss
        void *statistics[6]
        int64_t top_k
        const FxLinear *linear
        double (*partial)[2]
        int64_t bad_position

    unsigned fx_available_isas()
    const char *fx_isa_name(int isa)
    const char *fx_compiler()
    void fx_plan_call(FxCall *call, int keep_time)
    int64_t fx_run(FxCall *call, int prepare, int64_t first_block, int threads, double seconds)
    void fx_total(const FxCall *call, double *total, double *divisor)
    void fx_sequences(const FxCall *call, int64_t sequences, double *sums, double *divisors)


cdef extern from "xla_ffi.h" nogil:
    ctypedef struct FxXlaFrame:
        pass
    ctypedef struct FxXlaError:
        pass
    FxXlaError *fx_xla_handler(FxXlaFrame *frame)
    void fx_xla_use_isa(int isa)
