/* Kullback-Leibler divergence of two rows of logits, sum of p·(log p - log q), p of the target's row and q of the other.
 *
 * First both rows' maximum and sum, as in cross-entropy; then, with d = log p_c - log q_c, the sum of p·d - p + q: the same
 * total, since p and q sum to 1, but of terms that are not negative. Where |d| is small a term is p·(d - 1 + exp(-d)) by its
 * series, d²/2 and on, and the gradient q - p is p·(exp(-d) - 1): so rows that nearly agree keep their digits (an error e
 * of the two normalisers moves the sum by e²/2 only, and not by e). */

#if FX_REAL_BITS == 32
enum { NEAR_TERMS = 8 };
#else
enum { NEAR_TERMS = 15 };
#endif

enum { SUM_VECTORS = 32 }; /* that are added in the compute type: a row of equal terms rounds one way every time */

typedef struct {
    R max;       /* NaN and infinities are seen by `rest` */
    double rest; /* sum of exp(z - max) without one maximum; NaN if max is not finite */
} RowSum;

/* A row of one of the two sides. */
typedef struct {
    const FxOperand *operand;
    const char *p;
    R *buffer;
    const char *held; /* the values, if the row is one block */
} Side;

static const char *side_block(Side *side, int64_t classes, int64_t c0, int n) {
    if (side->held) return side->held;
    int64_t stride = side->operand->class_stride;
    const char *values = values_of(side->operand, side->p + c0 * stride, stride, n, side->buffer);
    if (n == classes) side->held = values;
    return values;
}

static FX_INLINE V side_load(const char *p, int i, int n, V fill) {
    const char *at = p + i * (int)sizeof(R);
    return n - i >= LANES ? v_loadr(at) : v_load_tail_r(at, n - i, fill);
}

static FX_NOINLINE RowSum side_sum(Side *side, int64_t classes) {
    const V low = v_set1(-(R)INFINITY);
    const ExpScale k = exp_scale(1);
    R max = -(R)INFINITY;
    double rest = 0, equal = 0; /* below the maximum, and at it */
    for (int64_t c0 = 0; c0 < classes; c0 += FX_BLOCK) {
        const int n = classes - c0 < FX_BLOCK ? (int)(classes - c0) : FX_BLOCK;
        const char *p = side_block(side, classes, c0, n);
        V best = low, even = v_set1(0), odd = even, count = even;
        for (int i = 0; i < n; i += LANES) best = v_max(side_load(p, i, n, low), best);
        R top = v_hmax(best);
        if (top > max) {
            rest = (rest + equal) * fx_exp((double)max - (double)top);
            equal = 0;
            max = top;
        }
        const V r = v_set1(max > -(R)INFINITY ? max : 0);
        for (int i = 0; i < n; i += LANES) {
            V x = side_load(p, i, n, low), e = v_exp(v_sub(x, r), k);
            M at = v_eq(x, r);
            V next = v_add(even, v_drop(at, e)); /* two sums in turn: half as many roundings in each */
            even = odd;
            odd = next;
            count = v_count(count, at);
            if (i / LANES % SUM_VECTORS < SUM_VECTORS - 1) continue;
            rest += v_hsum(v_add(even, odd));
            even = odd = v_set1(0);
        }
        rest += v_hsum(v_add(even, odd));
        equal += v_hsum(count);
    }
    return (RowSum){max, max > -(R)INFINITY && max < (R)INFINITY ? rest + (equal - 1) : (double)NAN};
}

/* Returns the divergence; `to`, if not NULL, gets upstream·(q - p). */
static FX_NOINLINE double divergence(const FxCall *call, Side *x, Side *y, char *to, R upstream, R *slope) {
    const FxOperand *out = &call->operand[FX_OUT];
    const RowSum q = side_sum(x, call->classes), p = side_sum(y, call->classes);
    const V low = v_set1(-(R)INFINITY), high = v_set1((R)INFINITY), zero = v_set1(0), one = v_set1(1);
    const V top_p = v_set1(p.max), top_q = v_set1(q.max), factor = v_set1(upstream);
    const V over_p = v_set1((R)(1 / (1 + p.rest))), over_q = v_set1((R)(1 / (1 + q.rest)));
    const V apart = v_set1((R)(fx_log1p(p.rest) - fx_log1p(q.rest)));
    const ExpScale k = exp_scale(1);
    R series[NEAR_TERMS];
    double next = 0.5;
    FxSum total = {0, 0};
    for (int i = 0; i < NEAR_TERMS; i++, next /= -(i + 2)) series[i] = (R)next;
    for (int64_t c0 = 0; c0 < call->classes; c0 += FX_BLOCK) {
        const int n = call->classes - c0 < FX_BLOCK ? (int)(call->classes - c0) : FX_BLOCK;
        const char *xp = side_block(x, call->classes, c0, n), *yp = side_block(y, call->classes, c0, n);
        V sum = zero;
        for (int i = 0; i < n; i += LANES) {
            V a = v_sub(side_load(yp, i, n, low), top_p), b = v_sub(side_load(xp, i, n, low), top_q);
            V pc = v_mul(over_p, v_exp(a, k)), qc = v_mul(over_q, v_exp(b, k));
            V d = v_select(v_eq(a, low), low, v_sub(v_sub(a, b), apart)); /* of two classes without weight: p = 0 */
            V poly = v_set1(series[NEAR_TERMS - 1]);
            FX_UNROLL
            for (int t = NEAR_TERMS - 2; t >= 0; t--) poly = v_fma(poly, d, v_set1(series[t]));
            V bend = v_mul(v_mul(d, d), poly);
            V term = v_add(qc, v_drop(v_eq(pc, zero), v_mul(pc, v_sub(d, one))));
            M near = v_lt(v_abs(d), v_set1((R)0.5));
            term = v_select(near, v_mul(pc, bend), v_select(v_eq(d, high), high, term));
            sum = v_add(sum, term);
            if (i / LANES % SUM_VECTORS == SUM_VECTORS - 1) {
                fx_add(&total, v_hsum(sum));
                sum = zero;
            }
            if (!to) continue;
            V change = v_select(near, v_mul(pc, v_sub(bend, d)), v_sub(qc, pc));
            v_storer(slope + i, v_mul(factor, change));
        }
        fx_add(&total, v_hsum(sum));
        if (to) put_values(call, out, to + c0 * out->class_stride, out->class_stride, slope, n);
    }
    return p.rest + q.rest == p.rest + q.rest ? fx_sum(total) : (double)NAN;
}

static void divergence_run(FxCall *call, FxScratch *s, const Run *run, Lanes a) {
    for (int k = 0; k < run->valid; k++) {
        const int64_t i = place(run, k);
        Side x = {.operand = &call->operand[FX_X], .p = at_position(run, FX_X, i), .buffer = (R *)s->fetch};
        Side y = {.operand = &call->operand[FX_Y], .p = at_position(run, FX_Y, i), .buffer = (R *)s->coefficient};
        R upstream = a.upstream ? a.upstream[k] : (R)call->scale;
        double value = divergence(call, &x, &y, at_position(run, FX_OUT, i), upstream, (R *)s->emit);
        a.loss[k] = (R)(a.sample ? s->sample[k] * value : value) + 0;
    }
}

void KERNEL(divergence)(FxCall *call, FxScratch *s, int64_t block) {
    int64_t first, n;
    FxSum total = {0, 0}, divisor = {0, 0};
    Lanes a = lanes_of(call, s);
    fx_block_range(call, block, &first, &n);
    for (int64_t end = first + n; first < end;) {
        Run run;
        run_at(call, first, end, &run);
        fx_add(&divisor, read_positions(call, s, &run, 1));
        if (run.valid < run.n) {
            if (run.base[FX_OUT]) clear_invalid(call, s, &run);
            close_up(call, s, &run);
        }
        fill_given(call, s, a, run.valid);
        divergence_run(call, s, &run, a);
        if (run.index) open_up(&run, a.loss, a.factor);
        fx_add(&total, put_losses(call, &run, a.loss));
        first += run.n;
    }
    call->partial[block][0] = fx_sum(total);
    call->partial[block][1] = fx_sum(divisor);
}
