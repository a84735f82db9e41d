/* Sums over blocks and over sequences, in float64, compensated, in the order of the positions: the same for any number
 * of threads. */
#include "fastxent.h"

typedef struct {
    double sum, lost;
} Sum;

static void add(Sum *s, double v) {
    double next = s->sum + v, a = s->sum < 0 ? -s->sum : s->sum, b = v < 0 ? -v : v;
    s->lost += a >= b ? (s->sum - next) + v : (v - next) + s->sum;
    s->sum = next;
}
/* Infinities leave NaN in `lost`: then the plain sum is the answer. */
static double value(Sum s) {
    double v = s.sum + s.lost;
    return v == v ? v : s.sum;
}

void fx_total(const FxCall *call, double *total, double *divisor) {
    Sum t = {0, 0}, d = {0, 0};
    for (int64_t b = 0; b < call->blocks; b++) {
        add(&t, call->partial[b][0]);
        add(&d, call->partial[b][1]);
    }
    *total = value(t);
    *divisor = value(d);
}

void fx_sequences(const FxCall *call, int64_t sequences, double *sums, double *divisors) {
    const int64_t length = sequences ? call->positions / sequences : 0;
    const int is_double = call->storage == FX_F64;
    for (int64_t b = 0; b < sequences; b++) {
        Sum t = {0, 0}, d = {0, 0};
        for (int64_t i = b * length; i < (b + 1) * length; i++) {
            if (call->position_loss)
                add(&t, is_double ? ((const double *)call->position_loss)[i]
                                  : (double)((const float *)call->position_loss)[i]);
            add(&d, call->position_weight[i]);
        }
        if (sums) sums[b] = value(t);
        divisors[b] = value(d);
    }
}
