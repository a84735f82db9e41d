/* Rows: lanes along the classes.
 *
 * Forward, by even blocks of up to FX_BLOCK classes. Once a maximum is known, one sweep adds up exp(x - r) and watches for
 * a larger logit; from there on, as in the first block, the rest of the block is swept twice: for its maximum, and for the
 * sum over those below it and a count of those that equal it. One of these is left out, exactly: p -> 1 keeps every digit.
 * r, the reference, is the first block's maximum and follows the running maximum only once that is more than 1/scale above
 * it: so a row rescales its sum a few times at most, whatever its order. Memory is asked for a block ahead. */

enum { GROUP = 4 * LANES };

typedef struct {
    R max;         /* of the logits before logit_scale (of z, if transformed) */
    double rest;   /* sum of exp(z - max z) without one maximum */
    int64_t block; /* where the block begins that has that maximum */
    double dot;    /* sum of coefficients × (max - x), before logit_scale */
    double weight; /* sum of the coefficients */
} RowStats;

/* What a row's sweeps add up, relative to the reference. */
typedef struct {
    double total, lost; /* of exp(scale·(x - reference)) but for `equal` maxima, and what its additions lost */
    double equal;
    double dot, weight; /* of coefficient × (reference - x), and of the coefficients */
} RowSums;

/* The rank of a row's target, counted with ENTROPY: a class comes before the target if it is larger or, less than `at`
 * classes into the block, equal, that is larger than the next lower number. One comparison each. And where the maximum is. */
typedef struct {
    R limit[2]; /* the target's logit, the next lower number */
    int64_t at; /* whole groups */
    double before;
    int64_t met; /* the first group of the block with the maximum, once that is known; or -1 */
} RowOrder;

/* How a block is summed: all of it; but for those that equal the maximum; or up to a group with a larger one. */
enum { WHOLE, BELOW, WATCH };

/* How the coefficients of the classes are given; ENTROPY: they are the exponentials themselves. */
enum { NONE, UNIFORM, ARRAY, ENTROPY };

/* One row of logits as the kernels see it: `direct` in memory, or fetched block by block. */
typedef struct {
    const FxCall *call;
    FxScratch *scratch;
    const char *x;    /* first class */
    const char *q;    /* class probabilities, or NULL */
    int direct;       /* contiguous, native, aligned or not, no transform */
    const char *next; /* the row to ask memory for meanwhile, or NULL */
    int peeked;       /* whether the first block's maximum is known: */
    R first;
    R *kept; /* where exponentials are kept for row_write, or NULL */
} Row;

/* The kept exponentials from class c on are relative to this reference; -inf: there is no maximum yet, and all are 0. */
static FX_INLINE void row_part(FxScratch *s, int64_t c, R reference) {
    s->kept_from[s->kept_parts] = c;
    s->kept_reference[s->kept_parts++] = (double)reference;
}

/* z of a block into scratch->fetch, and dz/dx into scratch->slope when asked for. */
static FX_NOINLINE void row_transform(const FxCall *call, FxScratch *s, int64_t n, int with_slope) {
    R *z = (R *)s->fetch, *slope = (R *)s->slope;
    for (int64_t i = n; i < n + LANES && i < FX_BLOCK; i++) z[i] = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        V d, y = transform(call, v_loadr(z + i), &d);
        v_storer(z + i, y);
        if (with_slope) v_storer(slope + i, d);
    }
}

static FX_INLINE const char *row_block(const Row *row, int64_t c0, int64_t n, int with_slope) {
    const FxOperand *x = &row->call->operand[FX_X];
    if (row->direct) return row->x + c0 * SIZE;
    FETCH((R *)row->scratch->fetch, row->x + c0 * x->class_stride, x->dtype, x->swapped, x->class_stride, n);
    if (row->call->transform) row_transform(row->call, row->scratch, n, with_slope);
    return (const char *)row->scratch->fetch;
}

/* Coefficients of a block of classes: class weights for smoothing, or w·((1-e)·q + e/C). */
static FX_NOINLINE const R *row_coefficients(const Row *row, int64_t c0, int64_t n) {
    const FxCall *call = row->call;
    const R *w = call->class_weight ? (const R *)call->class_weight_r + c0 : NULL;
    if (!row->q) return w;
    R *c = (R *)row->scratch->coefficient;
    const FxOperand *y = &call->operand[FX_Y];
    FETCH(c, row->q + c0 * y->class_stride, y->dtype, y->swapped, y->class_stride, n);
    const R keep = (R)(1 - call->smoothing), spread = (R)(call->smoothing / (double)call->classes);
    /* Two loops: in one, GCC makes a masked load of a NULL w, which faults and is suppressed at two hundred cycles each. */
    if (call->smoothing != 0)
        for (int64_t i = 0; i < n; i++) c[i] = keep * c[i] + spread;
    if (w)
        for (int64_t i = 0; i < n; i++) c[i] *= w[i];
    return c;
}

static FX_INLINE V row_load(const char *p, int64_t i, int direct) {
    return direct || STORAGE_IS_REAL ? v_load(p + i * SIZE) : v_loadr((const R *)p + i);
}
static FX_INLINE V row_load_tail(const char *p, int64_t i, int n, V fill, int direct) {
    if (direct || STORAGE_IS_REAL) return v_load_tail(p + i * SIZE, n, fill);
    return v_select(v_first(n), v_loadr((const R *)p + i), fill);
}

/* The group of vectors at i, a ragged one filled up with -inf. `paired`: a full group comes in another order, cheaper to
 * widen (even elements, then odd ones, of each two vectors); sums and maxima do not mind, and pair_index names the place. */
static FX_INLINE void row_group(V v[4], const char *p, int64_t i, int64_t n, int direct, int paired) {
    const V fill = v_set1(-(R)INFINITY);
    if (i + GROUP <= n && paired) {
        v_load_pair(p + i * SIZE, &v[0], &v[1]);
        v_load_pair(p + (i + 2 * LANES) * SIZE, &v[2], &v[3]);
    } else if (i + GROUP <= n) {
        FX_UNROLL
        for (int u = 0; u < 4; u++) v[u] = row_load(p, i + u * LANES, direct);
    } else {
        FX_UNROLL
        for (int u = 0; u < 4; u++) {
            int64_t left = n - i - u * LANES;
            v[u] = left >= LANES ? row_load(p, i + u * LANES, direct)
                   : left > 0    ? row_load_tail(p, i + u * LANES, (int)left, fill, direct)
                                 : fill;
        }
    }
}

/* Where element q of a paired group is. */
static FX_INLINE int64_t pair_index(int64_t q) {
    int64_t r = q % (2 * LANES);
    return q - r + (r & 1) * LANES + r / 2;
}

#if V_HALVES
/* The largest of the full groups from class i on, lane by lane, in half as many instructions, and where they end; back to
 * i where a NaN may have hidden it. */
static FX_INLINE int64_t row_max_halves(V *best, const char *p, int64_t i, int64_t n) {
    W most[2] = {w_least(), w_least()};
    int16_t lane[2 * LANES];
    int64_t end = i;
    for (; end + GROUP <= n; end += GROUP)
        for (int u = 0; u < 2; u++) most[u] = w_max(most[u], w_load(p + (end + u * 2 * LANES) * SIZE));
    w_store(lane, w_max(most[0], most[1]));
    V a = v_load((const char *)lane), b = v_load((const char *)(lane + LANES));
    if (end == i || v_bits(v_eq(a, a)) != v_bits(v_first(LANES)) || v_bits(v_eq(b, b)) != v_bits(v_first(LANES)))
        return i;
    *best = v_max(a, b);
    return end;
}
#endif

/* The largest of a block from class i on. NaN is passed over: the sum will show it. */
static FX_INLINE R row_max(const char *p, int64_t i, int64_t n, int direct, int paired) {
    V best = v_set1(-(R)INFINITY), v[4];
#if V_HALVES
    if (direct) i = row_max_halves(&best, p, i, n);
#endif
    for (; i + GROUP <= n; i += GROUP) {
        row_group(v, p, i, n, direct, paired);
        best = v_max(v_max(v_max(v[0], v[1]), v_max(v[2], v[3])), best);
    }
    if (i < n) {
        row_group(v, p, i, n, direct, paired);
        best = v_max(v_max(v_max(v[0], v[1]), v_max(v[2], v[3])), best);
    }
    return v_hmax(best);
}

/* The maximum of a row of one block, before its turn. */
static FX_INLINE R row_peek(const FxCall *call, const char *x) {
    const int paired = V_PAIRS;
    return row_max(x, 0, call->classes, 1, paired);
}

/* What a sweep holds in registers. */
typedef struct {
    V even, odd, total, lost, moment[2], mass;
    N equal, before;
} RowSweep;

/* One group of vectors, at class i, joins the sweep. `left` counts the classes from i on, or is GROUP: all are there.
 * most: the largest logit of each four. */
static FX_INLINE void row_add_group(RowSweep *w, const V x[4], V most, const char *p, int64_t i, int64_t n, int direct,
                                    int paired, V r, V top, ExpScale k, int kind, int how, const R *coefficient,
                                    int64_t left, R *kept, RowOrder *order) {
    const V zero = v_set1(0), one = v_set1(1);
    const int asks = V_BRANCHES || kind == ENTROPY;
    V v[4], e[4];
    if (kind == ENTROPY) {
        const V limit = v_set1(order->limit[i < order->at]);
        for (int u = 0; u < 4; u++) w->before = v_tally(w->before, v_lt(limit, x[u]));
    }
    FX_UNROLL
    for (int u = 0; u < 4; u++) v[u] = v_sub(x[u], r);
    if (kind == ENTROPY && V_BRANCHES && STORAGE_IS_REAL && FX_REAL_BITS == 32) { /* what 16 registers hold; measured */
        v_exps(e, v, 2, k);
        v_exps(e + 2, v + 2, 2, k);
    } else {
        v_exps(e, v, 4, k);
    }
    if (kept && paired && left >= GROUP) {
        v_storer_pair(kept, e[0], e[1]);
        v_storer_pair(kept + 2 * LANES, e[2], e[3]);
    } else if (kept) {
        FX_UNROLL
        for (int u = 0; u < 4; u++) v_storer(kept + u * LANES, e[u]);
    }
    /* Where masks are not free, the few groups that have the maximum are worth a branch. */
    if (how == BELOW && (!asks || v_any(v_eq(most, top)))) {
        V again[4];
        if (kind == ENTROPY && order->met < 0) order->met = i;
        if (V_BRANCHES) { /* read again, rather than kept all the while */
            FX_FORGET(p);
            row_group(again, p, i, n, direct, paired);
        }
        FX_UNROLL
        for (int u = 0; u < 4; u++) {
            M equal = v_eq(V_BRANCHES ? again[u] : x[u], top);
            e[u] = v_drop(equal, e[u]);
            w->equal = v_tally(w->equal, equal);
        }
    }
    V next = v_add(w->even, v_add(v_add(e[0], e[1]), v_add(e[2], e[3])));
    if (kind == ENTROPY) { /* few registers: one sum of each kind. -inf: e is 0, and so must be the product */
        V moment = v_mul(e[0], v_max(k.lowest, v[0]));
        FX_UNROLL
        for (int u = 1; u < 4; u++) moment = v_fma(e[u], v_max(k.lowest, v[u]), moment);
        w->even = w->odd;
        w->odd = next;
        w->moment[0] = v_add(w->moment[0], moment);
        return;
    }
    /* Two sums in turn: half as many roundings in each. */
    w->even = w->odd;
    w->odd = next;
    if (kind == NONE) return;
    FX_UNROLL
    for (int u = 0; u < 4; u++) {
        int64_t here = left - u * LANES;
        V c = one, d = v[u];
        if (kind == ARRAY) {
            c = here >= LANES ? v_loadr(coefficient + u * LANES)
                : here > 0    ? v_load_tail_r(coefficient + u * LANES, (int)here, zero)
                              : zero;
            w->mass = v_add(w->mass, c);
            d = v_drop(v_eq(c, zero), d); /* a coefficient of 0 makes 0 of anything */
        } else if (here < LANES) {
            d = here > 0 ? v_keep(v_first((int)here), d) : zero;
        }
        w->moment[u & 1] = v_fnma(c, d, w->moment[u & 1]);
    }
}

/* Eight additions in a chain are enough: equal terms err the same way each time. No long chain of moments either. */
static FX_INLINE void row_settle(RowSweep *w, RowSums *sums, int kind) {
    const V zero = v_set1(0);
    add_exactly(&w->total, &w->lost, v_add(w->even, w->odd));
    w->even = w->odd = zero;
    if (kind == NONE) return;
    if (kind == ENTROPY) {
        w->moment[1] = v_add(w->moment[1], w->moment[0]);
        w->moment[0] = zero;
        return;
    }
    sums->dot += v_hsum(v_add(w->moment[0], w->moment[1]));
    w->moment[0] = w->moment[1] = zero;
    if (kind == ARRAY) sums->weight += v_hsum(w->mass);
    w->mass = zero;
}

/* Adds classes i … n - 1 of the block at p to the sums; returns n, or where it stopped: a group with a logit above max.
 * `ahead`: what is read after this block, as much again. */
static FX_INLINE int64_t row_sum(RowSums *sums, const char *p, int64_t i, int64_t n, R reference, R max, ExpScale k,
                                 int direct, int paired, int kind, int how, const R *coefficient, const char *ahead,
                                 R *kept, RowOrder *order) {
    const V r = v_set1(reference), top = v_set1(max), zero = v_set1(0);
    RowSweep w = {zero, zero, zero, zero, {zero, zero}, zero, v_none(), v_none()};
    const int64_t first = i, full = n - GROUP, chain = (kind == NONE || kind == ENTROPY ? 16 : 8) * GROUP;
    V v[4];
    int above = 0;
    while (i <= full && !above) {
        int64_t stop = full < i + chain - GROUP ? full : i + chain - GROUP;
        for (; i <= stop; i += GROUP) {
            if (direct)
                for (int b = 0; b < GROUP * SIZE; b += 64) FX_PREFETCH(ahead + i * SIZE + b);
            row_group(v, p, i, n, direct, paired);
            const V most = v_max(v_max(v[0], v[1]), v_max(v[2], v[3]));
            if (how == WATCH && v_any(v_lt(top, most))) {
                above = 1;
                break;
            }
            row_add_group(&w, v, most, p, i, n, direct, paired, r, top, k, kind, how,
                          kind == ARRAY ? coefficient + i : NULL, GROUP, kept ? kept + i : NULL, order);
        }
        row_settle(&w, sums, kind);
    }
    if (i < n && !above) {
        row_group(v, p, i, n, direct, paired);
        const V most = v_max(v_max(v[0], v[1]), v_max(v[2], v[3]));
        above = how == WATCH && v_any(v_lt(top, most));
        if (!above) {
            row_add_group(&w, v, most, p, i, n, direct, paired, r, top, k, kind, how,
                          kind == ARRAY ? coefficient + i : NULL, n - i, kept ? kept + i : NULL, order);
            row_settle(&w, sums, kind);
            i = n;
        }
    }
    if (kind != NONE && kind != ARRAY) sums->weight += (double)(i - first);
    if (how == BELOW) sums->equal += v_hsum(v_tallied(w.equal));
    if (kind == ENTROPY) {
        order->before += v_hsum(v_tallied(w.before));
        sums->dot -= v_hsum(w.moment[1]);
    }
    double add = v_hsum(with_lost(w.total, w.lost)), all = sums->total + add;
    sums->lost += sums->total > add ? (sums->total - all) + add : (add - all) + sums->total; /* Neumaier */
    sums->total = all;
    return i;
}

/* Even blocks: a short last one would leave too little time to ask for the next row. */
static FX_INLINE int64_t row_step(int64_t classes) {
    const int64_t blocks = (classes + FX_BLOCK - 1) / FX_BLOCK, even = blocks ? (classes + blocks - 1) / blocks : 1;
    return (even + GROUP - 1) / GROUP * GROUP;
}

/* What is read after the block of classes c0 and on, at p. */
static FX_INLINE const char *row_ahead(const Row *row, const char *p, int64_t c0, int64_t step) {
    return c0 + step < row->call->classes || !row->next ? p + step * SIZE : row->next;
}

/* A new maximum: the former ones join the rest. */
static FX_INLINE void row_raise(RowSums *sums, R *max, R *reference, R top, double scale, int kind) {
    if (*max > -(R)INFINITY) {
        double below = (double)*reference - (double)*max, e = sums->equal * fx_exp(-scale * below);
        sums->total += e;
        if (kind == ENTROPY) sums->dot += e * below;
    }
    sums->equal = 0;
    if (!(top - *reference <= (R)(1 / scale))) {
        if (*reference > -(R)INFINITY) {
            double up = (double)top - (double)*reference, shrink = fx_exp(-scale * up);
            if (kind == ENTROPY) sums->dot = shrink * (sums->dot + up * (sums->total + sums->lost));
            else if (kind != NONE) sums->dot += up * sums->weight;
            sums->total *= shrink;
            sums->lost *= shrink;
        }
        *reference = top;
    }
    *max = top;
}

static FX_NOINLINE int row_has_nan(const Row *row) {
    const FxOperand *x = &row->call->operand[FX_X];
    R v;
    for (int64_t c = 0; c < row->call->classes; c++) {
        FETCH(&v, row->x + c * x->class_stride, x->dtype, x->swapped, x->class_stride, 1);
        if (v != v) return 1;
    }
    return 0;
}

/* What row_raise does at the end: the sum, relative to the maximum, without one maximum. */
static FX_INLINE double row_rest(const Row *row, RowSums *sums, R max, R reference, double scale, int kind) {
    double total = sums->total + sums->lost;
    if (max == (R)INFINITY) total = row_has_nan(row) ? (double)NAN : 0; /* inf - inf was NaN as well */
    if (max > reference) {
        double up = (double)max - (double)reference, shrink = fx_exp(-scale * up);
        if (kind == ENTROPY) sums->dot = shrink * (sums->dot + up * total);
        else if (kind != NONE) sums->dot += up * sums->weight;
        total *= shrink;
    }
    return total + (sums->equal - 1);
}

static FX_INLINE void row_forward_as(const Row *row, RowStats *out, int direct, int kind, int keep) {
    const double scale = row->call->transform ? 1 : row->call->logit_scale;
    const int64_t classes = row->call->classes, step = row_step(classes);
    const ExpScale k = exp_scale(scale);
    const int paired = V_PAIRS && direct && kind != ARRAY;
    R max = -(R)INFINITY, reference = max;
    RowSums sums = {0};
    int64_t block = 0;
    if (keep) row->scratch->kept_parts = 0;
    for (int64_t c0 = 0; c0 < classes; c0 += step) {
        int64_t n = classes - c0 < step ? classes - c0 : step, i = 0;
        const char *p = row_block(row, c0, n, 0), *ahead = row_ahead(row, p, c0, step);
        const R *c = kind == ARRAY ? row_coefficients(row, c0, n) : NULL;
        if (max > -(R)INFINITY)
            i = row_sum(&sums, p, 0, n, reference, max, k, direct, paired, kind, WATCH, c, ahead,
                        keep ? row->kept + c0 : NULL, NULL);
        if (i == n) continue;
        R top = row->peeked && !c0 ? row->first : row_max(p, i, n, direct, paired);
        const R formerly = reference;
        if (top > max) {
            row_raise(&sums, &max, &reference, top, scale, kind);
            block = c0;
        }
        if (keep && (!c0 || reference > formerly)) row_part(row->scratch, c0 + i, reference);
        R r = reference > -(R)INFINITY ? reference : 0;
        row_sum(&sums, p, i, n, r, max, k, direct, paired, kind, BELOW, c, ahead, keep ? row->kept + c0 : NULL, NULL);
    }
    double rest = row_rest(row, &sums, max, reference, scale, kind);
    *out = (RowStats){.max = max, .rest = rest, .block = block, .dot = sums.dot, .weight = sums.weight};
}

/* The first class that has the row's maximum, or -1 in a row of NaN and -inf. */
static FX_NOINLINE int64_t row_argmax(const Row *row, const RowStats *stats) {
    const int64_t step = row_step(row->call->classes), left = row->call->classes - stats->block;
    const int64_t n = left < step ? left : step;
    if (!(stats->max > -(R)INFINITY)) return -1;
    const char *p = row_block(row, stats->block, n, 0);
    for (int64_t i = 0; i < n; i += GROUP) {
        V v[4];
        row_group(v, p, i, n, row->direct, 0);
        for (int u = 0; u < 4; u++) {
            unsigned bits = v_bits(v_eq(v[u], v_set1(stats->max)));
            if (bits) return stats->block + i + u * LANES + FX_CTZ(bits);
        }
    }
    return -1;
}

static FX_NOINLINE void row_forward(const Row *row, int kind, RowStats *out) {
    const int keep = row->kept != NULL;
    if (keep && row->direct) {
        if (kind == NONE) row_forward_as(row, out, 1, NONE, 1);
        else if (kind == UNIFORM) row_forward_as(row, out, 1, UNIFORM, 1);
        else row_forward_as(row, out, 1, ARRAY, 1);
    } else if (row->direct) {
        if (kind == NONE) row_forward_as(row, out, 1, NONE, 0);
        else if (kind == UNIFORM) row_forward_as(row, out, 1, UNIFORM, 0);
        else row_forward_as(row, out, 1, ARRAY, 0);
    } else {
        if (kind == NONE) row_forward_as(row, out, 0, NONE, keep);
        else if (kind == UNIFORM) row_forward_as(row, out, 0, UNIFORM, keep);
        else row_forward_as(row, out, 0, ARRAY, keep);
    }
}
