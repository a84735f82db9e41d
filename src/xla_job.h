/* A call from XLA, decoded: what xla_ffi.c hands to xla_call.c. */
#ifndef FASTXENT_XLA_JOB_H
#define FASTXENT_XLA_JOB_H

#include "fastxent.h"
#include "xla_ffi.h"

enum {
    FX_XLA_X,
    FX_XLA_TARGETS,
    FX_XLA_CLASS_WEIGHT,
    FX_XLA_SAMPLE_WEIGHT,
    FX_XLA_MASK,
    FX_XLA_LENGTHS,
    FX_XLA_UPSTREAM,
    FX_XLA_ARGUMENTS
};
enum { FX_XLA_RESULTS = 2, FX_XLA_ALLOCATIONS = 12 };

/* The attributes "integers" and "numbers". */
enum {
    FX_XLA_OPERATION,  /* a FxOperation */
    FX_XLA_PRESENT,    /* a bit for each argument that is given */
    FX_XLA_OWN_AXES,   /* axes of positions, without those of vmap */
    FX_XLA_CLASS_AXIS, /* among these and itself */
    FX_XLA_REDUCTION,
    FX_XLA_SHIFT,
    FX_XLA_HAS_IGNORE,
    FX_XLA_IGNORE,
    FX_XLA_THREADS,
    FX_XLA_INTEGERS
};
enum {
    FX_XLA_SMOOTHING,
    FX_XLA_Z_LOSS,
    FX_XLA_LOGIT_SCALE,
    FX_XLA_SOFTCAP,
    FX_XLA_NORMALIZER,
    FX_XLA_EMPTY_VALUE,
    FX_XLA_NUMBERS
};

typedef struct {
    char *data; /* NULL: absent */
    int dtype, nd;
    int64_t dims[FX_MAX_DIMS], stride[FX_MAX_DIMS]; /* bytes; 0 along an axis of length 1 */
} FxXlaView;

typedef struct {
    const FxXlaApi *api;
    int isa;
    const int64_t *integers;
    const double *numbers;
    FxXlaView in[FX_XLA_ARGUMENTS], out[FX_XLA_RESULTS];
    int batch;                                   /* axes of vmap, in front */
    int own;                                     /* axes of positions behind them */
    int64_t shape[FX_MAX_DIMS];                  /* of all positions */
    int64_t positions, groups, sequences, steps; /* groups: values of a reduced loss; steps: positions of a sequence */
    void *allocated[FX_XLA_ALLOCATIONS];
    int number_allocated;
} FxXlaJob;

int64_t fx_xla_size(int dtype);
int64_t fx_xla_product(const int64_t *dims, int n);
void fx_xla_lay_out(FxXlaView *view);

/* Does the job, and leaves nothing allocated. NULL if all went well. */
FxXlaError *fx_xla_call(FxXlaJob *job);

#endif
