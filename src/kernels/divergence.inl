/* Kullback-Leibler divergence of two rows of logits, sum of p·(log p - log q), p of the target's row and q of the other.
 *
 * First both rows' maximum and sum, by the sweeps of row.inl; then, with d = log p_c - log q_c, the sum of p·d - p + q: the
 * same total, since p and q sum to 1, but of terms that are not negative. Where |d| < 1/2 a term is p·d²·b(d) and the
 * gradient q - p is p·(d²·b(d) - d), b(d) = (exp(-d) - 1 + d)/d² by a polynomial: so rows that nearly agree keep their
 * digits (an error e of the two normalisers moves the sum by e²/2 only, and not by e), and where four vectors of classes
 * are that near, q is not computed. Groups are never paired: a row has the same bits in any layout, with and without
 * the gradient. b is a minimax polynomial, with a relative error of 1.2e-9 (float32), 2.3e-17. */

#if FX_REAL_BITS == 32
static const R near_poly[] = {0x1p-1f,         -0x1.555556p-3f,  0x1.555554p-5f, -0x1.110fcep-7f,
                              0x1.6c17c6p-10f, -0x1.a2a1f0p-13f, 0x1.a0c630p-16f};
#else
static const R near_poly[] = {0x1p-1,
                              -0x1.5555555555555p-3,
                              0x1.555555555558ep-5,
                              -0x1.1111111111067p-7,
                              0x1.6c16c16c02247p-10,
                              -0x1.a01a01a04fb75p-13,
                              0x1.a01a01f83ea37p-16,
                              -0x1.71de39f065612p-19,
                              0x1.27e4513728241p-22,
                              -0x1.ae64c934fb665p-26,
                              0x1.201c7af04aa2fp-29,
                              -0x1.618fd6bede563p-33};
#endif
enum { NEAR_TERMS = sizeof near_poly / sizeof(R) };

enum { FEW = 4 * GROUP };
enum { SUM_GROUPS = 8 }; /* that are added in the compute type: a row of equal terms rounds one way every time */

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

/* What a sweep over both rows needs of them. */
typedef struct {
    V top_p, top_q, over_p, over_q, apart, factor;
    ExpScale k;
} Between;

static int side_direct(const Side *side) {
    const FxOperand *o = side->operand;
    return o->dtype == STORAGE && !o->swapped && o->class_stride == SIZE;
}

/* A block of classes: where it is if `direct`, else as the compute type. */
static FX_INLINE const char *side_block(Side *side, int64_t classes, int64_t c0, int n, int direct) {
    int64_t stride = side->operand->class_stride;
    if (direct) return side->p + c0 * SIZE;
    if (side->held) return side->held;
    const char *values = values_of(side->operand, side->p + c0 * stride, stride, n, side->buffer);
    if (n == classes) side->held = values;
    return values;
}

static FX_INLINE RowSum side_sum_as(Side *side, int64_t classes, int direct) {
    const ExpScale k = exp_scale(1);
    R max = -(R)INFINITY, reference = max;
    RowSums sums = {0};
    for (int64_t c0 = 0; c0 < classes; c0 += FX_BLOCK) {
        const int64_t n = classes - c0 < FX_BLOCK ? classes - c0 : FX_BLOCK;
        const char *p = side_block(side, classes, c0, (int)n, direct), *ahead = p + n * SIZE;
        int64_t i = 0;
        if (max > -(R)INFINITY)
            i = row_sum(&sums, p, 0, n, reference, max, k, direct, 0, NONE, WATCH, NULL, ahead, NULL, NULL);
        if (i == n) continue;
        R top = row_max(p, i, n, direct, 0);
        if (top > max) row_raise(&sums, &max, &reference, top, 1, NONE);
        R r = reference > -(R)INFINITY ? reference : 0;
        row_sum(&sums, p, i, n, r, max, k, direct, 0, NONE, BELOW, NULL, ahead, NULL, NULL);
    }
    double total = sums.total + sums.lost;
    if (max > reference) total *= fx_exp((double)reference - (double)max);
    return (RowSum){max, max > -(R)INFINITY && max < (R)INFINITY ? total + (sums.equal - 1) : (double)NAN};
}

/* The exponentials of `count` vectors join the sum but for those of the maximum, which are counted. */
static FX_INLINE void side_add(V *sum, V *equal, const V x[], const int count, V top, ExpScale k) {
    V v[4], e[4];
    FX_UNROLL
    for (int u = 0; u < count; u++) v[u] = v_sub(x[u], top);
    v_exps(e, v, count, k);
    FX_UNROLL
    for (int u = 0; u < count; u++) {
        M at = v_eq(x[u], top);
        *sum = v_add(*sum, v_drop(at, e[u]));
        *equal = v_count(*equal, at);
    }
}

/* A row of a few vectors: none that is empty is worked on. */
static FX_NOINLINE RowSum side_sum_few(Side *side, int n) {
    const char *p = side_block(side, n, 0, n, 0);
    const ExpScale k = exp_scale(1);
    const V low = v_set1(-(R)INFINITY);
    V best = low, sum = v_set1(0), equal = sum, v[FEW / LANES];
    int count = 0, u = 0;
    for (int i = 0; i < n; i += LANES, count++) {
        v[count] = n - i < LANES ? row_load_tail(p, i, n - i, low, 0) : row_load(p, i, 0);
        best = v_max(v[count], best);
    }
    const R max = v_hmax(best);
    const V top = v_set1(max > -(R)INFINITY ? max : 0);
    for (; u + 4 <= count; u += 4) side_add(&sum, &equal, v + u, 4, top, k);
    for (; u < count; u++) side_add(&sum, &equal, v + u, 1, top, k);
    return (RowSum){max, max > -(R)INFINITY && max < (R)INFINITY ? v_hsum(sum) + (v_hsum(equal) - 1) : (double)NAN};
}

static FX_NOINLINE RowSum side_sum(Side *side, int64_t classes) {
    if (classes <= FEW) return side_sum_few(side, (int)classes);
    return side_direct(side) ? side_sum_as(side, classes, 1) : side_sum_as(side, classes, 0);
}

/* The sum of `count` vectors of terms; `slope`, if not NULL, gets the gradient. d is taken of a log p that is no lower than
 * where exp is 0, so that p = 0 makes 0 of any d but inf. */
static FX_INLINE V divergence_terms(const V y[], const V x[], const int count, const Between *w, R *slope) {
    const V zero = v_set1(0), low = v_set1(-(R)INFINITY), quarter = v_set1((R)0.25);
    V a[4], b[4], d[4], square[4], p[4], q[4], bend[4], furthest = zero, term[4] = {zero, zero, zero, zero};
    FX_UNROLL
    for (int u = 0; u < count; u++) {
        a[u] = v_sub(y[u], w->top_p);
        b[u] = v_sub(x[u], w->top_q);
        d[u] = v_sub(v_sub(v_max(w->k.lowest, a[u]), b[u]), w->apart);
        square[u] = v_mul(d[u], d[u]);
        furthest = v_max(square[u], furthest);
        bend[u] = v_set1(near_poly[NEAR_TERMS - 1]);
    }
    FX_UNROLL
    for (int t = NEAR_TERMS - 2; t >= 0; t--) {
        FX_UNROLL
        for (int u = 0; u < count; u++) bend[u] = v_fma(bend[u], d[u], v_set1(near_poly[t]));
    }
    FX_UNROLL
    for (int u = 0; u < count; u++) bend[u] = v_mul(square[u], bend[u]);
    v_exps(p, a, count, w->k);
    FX_UNROLL
    for (int u = 0; u < count; u++) {
        p[u] = v_mul(w->over_p, p[u]);
        term[u] = v_mul(p[u], bend[u]);
        if (slope) bend[u] = v_mul(p[u], v_sub(bend[u], d[u]));
    }
    if (v_any(v_lt(quarter, furthest))) {
        V lowest = zero;
        v_exps(q, b, count, w->k);
        FX_UNROLL
        for (int u = 0; u < count; u++) {
            M far = v_lt(quarter, square[u]);
            term[u] = v_select(far, v_fma(q[u], w->over_q, v_fms(p[u], d[u], p[u])), term[u]);
            if (slope) bend[u] = v_select(far, v_fms(q[u], w->over_q, p[u]), bend[u]);
            lowest = v_add(b[u], lowest);
        }
        if (v_any(v_eq(lowest, low))) { /* q = 0: inf, also of a p that underflowed, or 0 of p = 0 */
            FX_UNROLL
            for (int u = 0; u < count; u++)
                term[u] = v_select(v_eq(b[u], low), v_drop(v_eq(a[u], low), v_sub(zero, low)), term[u]);
        }
    }
    if (slope) {
        FX_UNROLL
        for (int u = 0; u < count; u++) v_storer(slope + u * LANES, v_mul(w->factor, bend[u]));
    }
    return v_add(v_add(term[0], term[1]), v_add(term[2], term[3]));
}

/* Returns the sum of all terms; `to`, if not NULL, gets upstream·(q - p). */
static FX_INLINE double divergence_sum(const FxCall *call, Side *x, Side *y, char *to, const Between *w, R *slope,
                                       int direct) {
    const FxOperand *out = &call->operand[FX_OUT];
    const V low = v_set1(-(R)INFINITY), zero = v_set1(0);
    V xs[4], ys[4];
    FxSum total = {0, 0};
    for (int64_t c0 = 0; c0 < call->classes; c0 += FX_BLOCK) {
        const int n = call->classes - c0 < FX_BLOCK ? (int)(call->classes - c0) : FX_BLOCK;
        const char *xp = side_block(x, call->classes, c0, n, direct), *yp = side_block(y, call->classes, c0, n, direct);
        V sum = zero;
        int i = 0;
        for (; i + GROUP <= n; i += GROUP) {
            row_group(xs, xp, i, n, direct, 0);
            row_group(ys, yp, i, n, direct, 0);
            sum = v_add(sum, divergence_terms(ys, xs, 4, w, to ? slope + i : NULL));
            if (i / GROUP % SUM_GROUPS < SUM_GROUPS - 1) continue;
            fx_add(&total, v_hsum(sum));
            sum = zero;
        }
        for (; i < n; i += LANES) {
            const int left = n - i;
            xs[0] = left < LANES ? row_load_tail(xp, i, left, low, direct) : row_load(xp, i, direct);
            ys[0] = left < LANES ? row_load_tail(yp, i, left, low, direct) : row_load(yp, i, direct);
            sum = v_add(sum, divergence_terms(ys, xs, 1, w, to ? slope + i : NULL));
        }
        fx_add(&total, v_hsum(sum));
        if (to) put_values(call, out, to + c0 * out->class_stride, out->class_stride, slope, n);
    }
    return fx_sum(total);
}

static FX_NOINLINE double divergence(const FxCall *call, Side *x, Side *y, char *to, R upstream, R *slope) {
    const RowSum q = side_sum(x, call->classes), p = side_sum(y, call->classes);
    const Between w = {.top_p = v_set1(p.max),
                       .top_q = v_set1(q.max),
                       .over_p = v_set1((R)(1 / (1 + p.rest))),
                       .over_q = v_set1((R)(1 / (1 + q.rest))),
                       .apart = v_set1((R)(fx_log1p(p.rest) - fx_log1p(q.rest))),
                       .factor = v_set1(upstream),
                       .k = exp_scale(1)};
    const int direct = !to && call->classes > FEW && side_direct(x) && side_direct(y);
    double sum = direct ? divergence_sum(call, x, y, NULL, &w, slope, 1) : divergence_sum(call, x, y, to, &w, slope, 0);
    return p.rest + q.rest == p.rest + q.rest ? sum : (double)NAN;
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
