/* The C interface: what Python hands down (FxCall), what each worker gets (FxScratch), and who does what.
 *
 * A call is a set of operands over the same positions (the logits' axes without the class axis, in C order). driver.c
 * divides the positions into blocks; a block's kernel (kernels/block.inl, compiled once per storage type and instruction
 * set) reads its targets and masks, computes, writes its results and leaves two partial sums. Blocks depend on shapes
 * alone, so the order of every sum is the same for any number of threads. */
#ifndef FASTXENT_H
#define FASTXENT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu.h"

enum { FX_MAX_DIMS = 64 };

/* The codes of fastxent/_options.py; a test compares them. */
typedef enum {
    FX_OP_LOSS,
    FX_OP_LOSS_GRAD,
    FX_OP_GRAD,
    FX_OP_LOSS_SOFTMAX,
    FX_OP_SOFTMAX,
    FX_OP_LOG_SOFTMAX,
    FX_OP_LOGSUMEXP,
    FX_OP_NLL,
    FX_OP_NLL_GRAD,
    FX_OP_PROBS,
    FX_OP_PROBS_GRAD,
    FX_OP_REDUCE,
    FX_OP_SOFTMAX_GRAD,
    FX_OP_LOG_SOFTMAX_GRAD,
    FX_OP_STATISTICS,
    FX_OP_PARTIALS,
    FX_OP_TOP_K,
    /* The calls of ElementPlan; from the second on of elements, without classes. */
    FX_OP_DIVERGENCE = 30,
    FX_OP_BINARY_PROBS,
    FX_OP_BINARY_LOGITS,
    FX_OP_SQUARED,
    FX_OP_ABSOLUTE,
    FX_OP_HUBER,
    FX_OP_SMOOTH_L1,
    FX_OP_SIGMOID,
    FX_OP_LOG_SIGMOID,
} FxOperation;

/* The first four are storage types, with kernels of their own; integers are packed to float64. */
typedef enum {
    FX_F32,
    FX_F64,
    FX_F16,
    FX_BF16,
    FX_STORAGES,
    FX_I8 = FX_STORAGES,
    FX_I16,
    FX_I32,
    FX_I64,
    FX_U8,
    FX_U16,
    FX_U32,
    FX_U64,
    FX_DTYPES,
} FxDtype;

/* One array over the positions, perhaps with a class axis. Strides are in bytes. */
typedef struct {
    char *data; /* NULL: absent */
    int64_t class_stride;
    int dtype;
    int swapped;
    int64_t stride[FX_MAX_DIMS];
} FxOperand;

enum { FX_X, FX_Y, FX_MASK, FX_WEIGHT, FX_UPSTREAM, FX_LOSSES, FX_OUT, FX_POSITIVE, FX_OPERANDS };

/* FX_ROWS: lanes along contiguous classes. FX_COLUMNS: lanes along positions, in place where these are neighbours.
 * FX_TILES: lanes along positions, through a transposed tile. */
typedef enum { FX_ROWS, FX_COLUMNS, FX_TILES } FxFamily;

/* A tile of logits of a linear layer: fastxent/_linear_tiles.py says what each thing is. */
enum { FX_LINEAR_SUMS, FX_LINEAR_SCORES, FX_LINEAR_GRADIENT };
enum { FX_COEFFICIENTS_NONE, FX_COEFFICIENTS_ONE, FX_COEFFICIENTS_CLASS_WEIGHT };
enum {
    FX_LINEAR_MAX,
    FX_LINEAR_REST,
    FX_LINEAR_TARGET,
    FX_LINEAR_DOT,  /* or the moment */
    FX_LINEAR_MASS, /* or the rank */
    FX_LINEAR_ARGMAX,
    FX_LINEAR_GIVEN_MAX,
    FX_LINEAR_GIVEN_TARGET,
    FX_LINEAR_STATE
};
typedef struct {
    int operation, coefficients;
    int64_t stride, first; /* bytes from row to row; the first column's class */
    const int64_t *targets;
    const void *bias;
    double *state, *top;
    const void *terms;
} FxLinear;

typedef struct FxCall {
    int operation, isa, storage, family;
    int targets_are_probs; /* FX_Y holds class probabilities, not indices */
    int stream;            /* store past the caches */
    int transform;         /* z is computed on loading (softcap, or a scale too small to multiply differences) */
    int has_ignore;
    int64_t ignore;
    int nd;
    int64_t shape[FX_MAX_DIMS];
    int64_t positions, classes;
    FxOperand operand[FX_OPERANDS];

    int64_t sequence_length, shift;
    const int64_t *lengths;
    const double *class_weight; /* NULL: all 1 */
    const void *class_weight_r; /* the same in the compute type */
    double class_weight_sum;
    double smoothing, z_loss, logit_scale, softcap;
    double unit;                  /* a power of two in which the gradient's terms are formed: see finish.inl */
    double scale;                 /* of the gradient */
    const double *sequence_scale; /* NULL: all 1 */
    int focal;                    /* losses count (1 - p)^gamma; class weights leave the divisor alone */
    double gamma;                 /* see focal.inl */
    double parameter;             /* of FX_OP_HUBER and FX_OP_SMOOTH_L1 */
    const char *saved;            /* positions × (m, s) in the compute type, or NULL */
    char *saved_out;

    double *position_weight; /* each position's share of the divisor, or NULL */
    void *position_loss;     /* each position's loss in the compute type, or NULL */

    /* Of each position, in a row: log_prob, logsumexp, argmax, rank, entropy, largest probability, or NULL (argmax and
     * rank in int64, the others in the compute type); the five partials in float64; or top_k values and their classes. */
    void *statistics[6];
    int64_t top_k;
    const FxLinear *linear; /* not NULL: this, in place of the operation */

    /* How the positions are divided (driver.c). */
    int64_t piece, pieces; /* positions of a piece, and pieces of one line of the innermost axis */
    int64_t lines;         /* whole lines in a block, if a line is one piece */
    int64_t blocks;
    double (*partial)[2]; /* per block: sum of losses, divisor */
    _Atomic int64_t bad_position;
} FxCall;

enum {
    FX_BLOCK = 1024,       /* classes that a row kernel takes at once, twice through L1 */
    FX_MAX_WIDTH = 512,    /* positions that a block may hold, */
    FX_MAX_REACH = 576,    /* with those of the cache lines in which it begins and ends (Run.reach) */
    FX_TILE_CLASSES = 256, /* up to here a whole transposed tile stays in L1 */
    FX_KEPT = 140 << 10,   /* float64 numbers: exponentials kept for the gradient, a megabyte */
    /* A row's exponentials have another reference from some place on, in each block at most once. */
    FX_KEPT_PARTS = FX_KEPT * 2 / FX_BLOCK + 2,
    FX_ELEMENTS = 1 << 14, /* elements that a block may hold: a number a position, taken by FX_MAX_WIDTH */
    FX_MAX_LANES = 16,
    FX_ROWS_FROM_F32 = 256,
    FX_ROWS_FROM_F64 = 96,
    FX_CLEAR_BYTES = 512,           /* rows up to this size are cleared with their neighbours */
    FX_STREAM_BYTES = 1 << 22,      /* outputs larger than this go past the caches */
    FX_PARALLEL_ELEMENTS = 1 << 15, /* smaller calls stay on the calling thread */
};

/* Compilers that can be told an instruction set within a file. */
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define FX_X86_KERNELS 1
#endif
#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define FX_NEON_KERNELS 1
#endif

/* A worker's memory, aligned to 64 bytes; sizes are for float64. */
typedef struct {
    double fetch[FX_BLOCK], slope[FX_BLOCK], emit[FX_BLOCK], coefficient[FX_BLOCK];
    double tile[FX_TILE_CLASSES * FX_MAX_LANES], target_tile[FX_TILE_CLASSES * FX_MAX_LANES];
    double slope_tile[FX_TILE_CLASSES * FX_MAX_LANES];
    double max[FX_MAX_REACH], rest[FX_MAX_REACH], gap[FX_MAX_REACH], dot[FX_MAX_REACH], mass[FX_MAX_REACH];
    double top[FX_MAX_REACH], factor[FX_MAX_REACH], spread[FX_MAX_REACH], value[FX_MAX_REACH], loss[FX_MAX_REACH];
    double sample[FX_MAX_REACH], upstream[FX_MAX_REACH], sample_r[FX_MAX_REACH], upstream_r[FX_MAX_REACH];
    double argmax[FX_MAX_REACH], rank[FX_MAX_REACH];
    double lower[FX_MAX_REACH], at[FX_MAX_REACH], met[FX_MAX_REACH], count[FX_MAX_REACH];
    double kept[FX_KEPT];
    double kept_reference[FX_KEPT_PARTS];
    int64_t kept_from[FX_KEPT_PARTS], kept_parts;
    int64_t target[FX_MAX_REACH];
    int32_t valid[FX_MAX_REACH];
    double slack[FX_MAX_LANES]; /* what a vector may write past the last position */
} FxScratch;

typedef void (*FxBlockFn)(FxCall *call, FxScratch *scratch, int64_t block);
typedef struct {
    FxBlockFn block;   /* every operation, one block of positions */
    FxBlockFn prepare; /* reads only what describes targets: checks indices, sums the divisor */
    FxBlockFn divergence, elements, elements_prepare; /* the same for the operations from FX_OP_DIVERGENCE on */
    FxBlockFn linear;                                 /* the calls with a FxLinear */
} FxKernels;

/* dispatch.c */
const FxKernels *fx_kernels(int isa, int storage);
unsigned fx_available_isas(void);
const char *fx_compiler(void);

/* pack.c: between strided, swapped memory of any dtype and contiguous compute-type values */
void fx_fetch_f32(float *to, const char *from, int dtype, int swapped, int64_t stride, int64_t n);
void fx_fetch_f64(double *to, const char *from, int dtype, int swapped, int64_t stride, int64_t n);
void fx_emit_f32(char *to, int dtype, int64_t stride, const float *from, int64_t n);
void fx_emit_f64(char *to, int dtype, int64_t stride, const double *from, int64_t n);

/* driver.c */
/* Completes a call whose operands are described: family, merged axes, blocks. keep_time: the last axis stays apart. */
void fx_plan_call(FxCall *call, int keep_time);
void fx_block_range(const FxCall *call, int64_t block, int64_t *first, int64_t *n);
/* Runs blocks from first_block on for about `seconds`; returns the first block not run, or -1 without memory. */
int64_t fx_run(FxCall *call, int prepare, int64_t first_block, int threads, double seconds);

/* elements.c */
/* Elements have no order of their own: puts the axes in the order of the logits' memory, before they are merged. */
void fx_sort_axes(FxCall *call);

/* reduce.c */
void fx_total(const FxCall *call, double *total, double *divisor);
void fx_sequences(const FxCall *call, int64_t sequences, double *sums, double *divisors);

#endif
