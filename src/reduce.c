/* Sums over blocks and over sequences, in float64, compensated, in the order of the positions: the same for any number
 * of threads. */
#include "fastxent.h"
#include "sum.h"

void fx_total(const FxCall *call, double *total, double *divisor) {
    FxSum t = {0, 0}, d = {0, 0};
    for (int64_t b = 0; b < call->blocks; b++) {
        fx_add(&t, call->partial[b][0]);
        fx_add(&d, call->partial[b][1]);
    }
    *total = fx_sum(t);
    *divisor = fx_sum(d);
}

void fx_sequences(const FxCall *call, int64_t sequences, double *sums, double *divisors) {
    const int64_t length = sequences ? call->positions / sequences : 0;
    const int is_double = call->storage == FX_F64;
    for (int64_t b = 0; b < sequences; b++) {
        FxSum t = {0, 0}, d = {0, 0};
        for (int64_t i = b * length; i < (b + 1) * length; i++) {
            if (call->position_loss)
                fx_add(&t, is_double ? ((const double *)call->position_loss)[i]
                                     : (double)((const float *)call->position_loss)[i]);
            fx_add(&d, call->position_weight[i]);
        }
        if (sums) sums[b] = fx_sum(t);
        divisors[b] = fx_sum(d);
    }
}
