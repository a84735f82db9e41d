/* The handler that XLA calls for fastxent.jax: takes the frame apart, and counts. What is passed has been judged by
 * fastxent/jax/, except what only the values tell (xla_call.c does): class indices and lengths.
 *
 * Arguments, those whose bit is in `present`, in the order of xla_job.h, are dense in row-major order. Under vmap each
 * has the same number of axes more in front (`batch`), of length 1 where it is the same for all: those have stride 0.
 * An argument of the positions may have axes of length 1 elsewhere too, and so may the logits of losses without gradient.
 * Results have all axes in full: of a reduced loss the value of each batch index, or else the losses; with a gradient that
 * comes second. Activations have one.
 *
 * Any number of threads may be in here at once, none of them holds Python's lock, and the gradient may lie where the
 * logits do. Nothing is kept from call to call. */
#include "xla_ffi.h"

#include <stdatomic.h>
#include <string.h>

#include "xla_job.h"

static _Atomic int isa_in_use;

void fx_xla_use_isa(int isa) { atomic_store(&isa_in_use, isa); }

static int code_of(FxXlaDtype dtype) {
    switch (dtype) {
    case FX_XLA_F32: return FX_F32;
    case FX_XLA_F64: return FX_F64;
    case FX_XLA_F16: return FX_F16;
    case FX_XLA_BF16: return FX_BF16;
    case FX_XLA_S8: return FX_I8;
    case FX_XLA_S16: return FX_I16;
    case FX_XLA_S32: return FX_I32;
    case FX_XLA_S64: return FX_I64;
    case FX_XLA_PRED:
    case FX_XLA_U8: return FX_U8;
    case FX_XLA_U16: return FX_U16;
    case FX_XLA_U32: return FX_U32;
    case FX_XLA_U64: return FX_U64;
    default: return -1;
    }
}

int64_t fx_xla_size(int code) {
    static const int8_t sizes[FX_DTYPES] = {4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8};
    return sizes[code];
}

int64_t fx_xla_product(const int64_t *dims, int n) {
    int64_t result = 1;
    for (int d = 0; d < n; d++) result *= dims[d];
    return result;
}

/* The strides of dense memory; 0 where the axis is of length 1. */
void fx_xla_lay_out(FxXlaView *view) {
    int64_t step = fx_xla_size(view->dtype);
    for (int d = view->nd - 1; d >= 0; d--) {
        view->stride[d] = view->dims[d] == 1 ? 0 : step;
        step *= view->dims[d];
    }
}

static char nothing[1]; /* where an empty buffer lies: NULL means that there is none */

static int view_of(FxXlaView *view, const FxXlaBuffer *buffer) {
    if (buffer->rank > FX_MAX_DIMS || code_of(buffer->dtype) < 0) return 0;
    view->data = buffer->data ? buffer->data : nothing;
    view->dtype = code_of(buffer->dtype);
    view->nd = (int)buffer->rank;
    for (int d = 0; d < view->nd; d++) view->dims[d] = buffer->dims[d];
    fx_xla_lay_out(view);
    return 1;
}

/* Index `flat` of the first n axes of `shape`, and those axes gone. */
static void select_index(FxXlaView *view, const int64_t *shape, int n, int64_t flat) {
    if (!view->data) return;
    for (int d = n - 1; d >= 0; d--) {
        view->data += flat % shape[d] * view->stride[d];
        flat /= shape[d];
    }
    view->nd -= n;
    for (int d = 0; d < view->nd; d++) {
        view->dims[d] = view->dims[d + n];
        view->stride[d] = view->stride[d + n];
    }
}

static const FxXlaArray *attribute(const FxXlaFrame *frame, const char *name, FxXlaDtype dtype, size_t count) {
    const FxXlaAttributes *all = &frame->attributes;
    for (int64_t i = 0; i < all->count; i++) {
        const FxXlaArray *array = all->items[i];
        if (all->names[i]->length == strlen(name) && !memcmp(all->names[i]->text, name, strlen(name)))
            return all->types[i] == FX_XLA_ARRAY && array->dtype == dtype && array->count == count ? array : NULL;
    }
    return NULL;
}

/* Fills the job but for what differs between batch indices; returns 0 if the frame is not one of ours. */
static int decode(const FxXlaFrame *frame, FxXlaJob *job) {
    const FxXlaArray *integers = attribute(frame, "integers", FX_XLA_S64, FX_XLA_INTEGERS);
    const FxXlaArray *numbers = attribute(frame, "numbers", FX_XLA_F64, FX_XLA_NUMBERS);
    if (!integers || !numbers) return 0;
    job->integers = integers->data;
    job->numbers = numbers->data;
    int64_t given = 0;
    for (int a = 0; a < FX_XLA_ARGUMENTS; a++) {
        if (!(job->integers[FX_XLA_PRESENT] >> a & 1)) continue;
        if (given == frame->arguments.count || frame->arguments.types[given] != FX_XLA_BUFFER) return 0;
        if (!view_of(&job->in[a], frame->arguments.items[given++])) return 0;
    }
    if (given != frame->arguments.count || !job->in[FX_XLA_X].data) return 0;
    if (frame->results.count < 1 || frame->results.count > FX_XLA_RESULTS) return 0;
    for (int64_t r = 0; r < frame->results.count; r++)
        if (frame->results.types[r] != FX_XLA_BUFFER || !view_of(&job->out[r], frame->results.items[r])) return 0;
    job->own = (int)job->integers[FX_XLA_OWN_AXES];
    job->batch = job->in[FX_XLA_X].nd - job->own - 1;
    if (job->own < 0 || job->batch < 0 || job->batch > job->out[0].nd) return 0;
    const int nd = job->batch + job->own;
    for (int d = 0; d < job->batch; d++) job->shape[d] = job->out[0].dims[d];
    for (int d = 0, k = job->batch; d <= job->own; d++)
        if (d != job->integers[FX_XLA_CLASS_AXIS]) job->shape[k++] = job->in[FX_XLA_X].dims[job->batch + d];
    if (job->out[0].nd == nd) /* losses: then even the logits may be the same for several positions */
        for (int d = 0; d < nd; d++) job->shape[d] = job->out[0].dims[d];
    return 1;
}

/* Counts what the shape is made of, once it is settled. */
static void count(FxXlaJob *job) {
    const int nd = job->batch + job->own;
    job->positions = fx_xla_product(job->shape, nd);
    job->groups = fx_xla_product(job->shape, job->batch);
    job->steps = job->own > 1 ? job->shape[nd - 1] : 1;
    job->sequences = fx_xla_product(job->shape, job->own > 1 ? nd - 1 : nd);
}

/* Class weights are one row to the kernels: where each batch index has its own, each is a call. */
static FxXlaError *call_each(const FxXlaJob *all) {
    const int n = all->batch;
    for (int64_t b = 0; b < all->groups; b++) {
        FxXlaJob job = *all;
        for (int a = 0; a < FX_XLA_ARGUMENTS; a++) select_index(&job.in[a], all->shape, n, b);
        for (int r = 0; r < FX_XLA_RESULTS; r++) select_index(&job.out[r], all->shape, n, b);
        for (int d = 0; d < all->own; d++) job.shape[d] = all->shape[d + n];
        job.batch = 0;
        count(&job);
        FxXlaError *failed = fx_xla_call(&job);
        if (failed) return failed;
    }
    return NULL;
}

FxXlaError *fx_xla_handler(FxXlaFrame *frame) {
    if (frame->extension && frame->extension->type == FX_XLA_METADATA) {
        FxXlaMetadata *metadata = ((FxXlaMetadataExtension *)frame->extension)->metadata;
        metadata->version.major = FX_XLA_MAJOR;
        metadata->version.minor = FX_XLA_MINOR;
        metadata->traits = 0;
        return NULL;
    }
    FxXlaJob job;
    memset(&job, 0, sizeof job);
    job.api = frame->api;
    job.isa = atomic_load(&isa_in_use);
    if (frame->stage != FX_XLA_EXECUTE) return NULL;
    if (!decode(frame, &job)) {
        FxXlaErrorArguments why = {sizeof why, NULL, "not a call of fastxent.jax", FX_XLA_INVALID_ARGUMENT};
        return frame->api->create_error(&why);
    }
    count(&job);
    const FxXlaView *weight = &job.in[FX_XLA_CLASS_WEIGHT];
    if (weight->data && fx_xla_product(weight->dims, weight->nd - 1) > 1) return call_each(&job);
    return fx_xla_call(&job);
}
