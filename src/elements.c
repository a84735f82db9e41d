/* Calls of single elements, whose result does not depend on the order in which they are taken. */
#include "fastxent.h"

static int64_t size_of(int64_t stride) { return stride < 0 ? -stride : stride; }

static void swap_axes(FxCall *call, int a, int b) {
    int64_t n = call->shape[a];
    call->shape[a] = call->shape[b];
    call->shape[b] = n;
    for (int o = 0; o < FX_OPERANDS; o++) {
        int64_t *stride = call->operand[o].stride, kept = stride[a];
        stride[a] = stride[b];
        stride[b] = kept;
    }
}

void fx_sort_axes(FxCall *call) {
    const FxOperand *x = &call->operand[FX_X];
    for (int d = 0; d < call->nd; d++) {
        if (x->stride[d] >= 0 || call->positions == 0) continue;
        for (int o = 0; o < FX_OPERANDS; o++) {
            FxOperand *a = &call->operand[o];
            if (!a->data) continue;
            a->data += a->stride[d] * (call->shape[d] - 1);
            a->stride[d] = -a->stride[d];
        }
    }
    for (int i = 1; i < call->nd; i++)
        for (int d = i; d > 0 && size_of(x->stride[d - 1]) < size_of(x->stride[d]); d--) swap_axes(call, d - 1, d);
}
