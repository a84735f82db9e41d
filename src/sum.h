/* A sum in float64 that keeps what each addition loses (Neumaier): plain ones drift when many equal weights are added. */
#ifndef FASTXENT_SUM_H
#define FASTXENT_SUM_H

typedef struct {
    double sum, lost;
} FxSum;

static inline void fx_add(FxSum *s, double v) {
    double next = s->sum + v, a = s->sum < 0 ? -s->sum : s->sum, b = v < 0 ? -v : v;
    s->lost += a >= b ? (s->sum - next) + v : (v - next) + s->sum;
    s->sum = next;
}

/* Infinities leave NaN in `lost`: then the plain sum is the answer. */
static inline double fx_sum(FxSum s) {
    double v = s.sum + s.lost;
    return v == v ? v : s.sum;
}

#endif
