/* Statistics of a position in the sweeps of the loss: how likely the target is, its rank, the largest logit's class, and
 * the entropy; with no target, the k largest (top.inl).
 *
 * Which logit is larger is asked of the logits as they are given: logit_scale and softcap change no order, but their
 * rounding could. The rank is counted in the sweep that sums, see RowOrder. The entropy is log1p(rest) + sum of e·(max - z) / (1 + rest), every term at least 0: nothing cancels, also where
 * p -> 1. */

typedef struct {
    R max;         /* as RowStats */
    double rest;   /* sum of exp(z - max) without one maximum */
    double moment; /* sum of exp(z - max)·(max - z) */
    int64_t argmax;
    double rank;
} Score;

/* A block of the row's logits as given, into scratch->fetch unless they can be read in place. */
static FX_INLINE const char *score_block(const Row *row, int64_t c0, int64_t n) {
    const FxOperand *x = &row->call->operand[FX_X];
    if (row->direct) return row->x + c0 * SIZE;
    FETCH((R *)row->scratch->fetch, row->x + c0 * x->class_stride, x->dtype, x->swapped, x->class_stride, n);
    return (const char *)row->scratch->fetch;
}

/* How many of the group of vectors that holds the target, class `at` of a block, equal it and come before it. */
static FX_INLINE double score_earlier(const char *p, int64_t n, R value, int64_t at, int direct) {
    V v[4], earlier = v_set1(0);
    row_group(v, p, at - at % GROUP, n, direct, 0);
    FX_UNROLL
    for (int u = 0; u < 4; u++) {
        M before = v_lt(v_iota(), v_set1((R)(at % GROUP - u * LANES)));
        earlier = v_add(earlier, v_keep(before, v_keep(v_eq(v[u], v_set1(value)), v_set1(1))));
    }
    return v_hsum(earlier);
}

/* What row_sum counts, of a block whose logits as given are not those that are summed. */
static FX_NOINLINE void score_fetched(RowOrder *order, const R *p, int64_t n) {
    for (int64_t i = 0; i < n; i++) order->before += p[i] > order->limit[i < order->at];
}

/* The first class of the group at i that has the value. */
static FX_INLINE int64_t score_in_group(R value, const char *p, int64_t i, int64_t n, int direct) {
    V v[4];
    uint64_t bits = 0; /* of up to 64 lanes */
    row_group(v, p, i, n, direct, 0);
    FX_UNROLL
    for (int u = 0; u < 4; u++) bits |= (uint64_t)v_bits(v_eq(v[u], v_set1(value))) << u * LANES;
    return bits ? i + FX_CTZ(bits) : -1;
}

/* The first class of a block from class i on, whose groups' maxima are known, that has the value. */
static FX_INLINE int64_t score_first(const V groups[], R value, const char *p, int64_t i, int64_t n, int direct) {
    const V wanted = v_set1(value);
    int64_t g = i / GROUP;
    while (g * GROUP < n) {
        V m = v_max(v_max(groups[g], groups[g + 1]), v_max(groups[g + 2], groups[g + 3]));
        if (v_any(v_eq(m, wanted))) break;
        g += 4;
    }
    for (; g * GROUP < n; g++)
        if (v_any(v_eq(groups[g], wanted))) return score_in_group(value, p, g * GROUP, n, direct);
    return -1;
}

/* The sweeps of row_forward_as, for the statistics of a target at class `at`, or for the largest of the row. */
static FX_INLINE void score_row_as(const Row *row, R value, int64_t at, Top *top, Score *out, int direct, int largest) {
    const FxCall *call = row->call;
    const double scale = call->transform ? 1 : call->logit_scale;
    const int64_t classes = call->classes, step = row_step(classes);
    const ExpScale k = exp_scale(scale);
    const int paired = V_PAIRS && direct, bent = !direct && call->transform, kind = largest ? NONE : ENTROPY;
    V groups[FX_BLOCK / GROUP + 3];
    R max = -(R)INFINITY, reference = max, given_max = max;
    RowOrder order = {.limit = {value, next_lower(value)}}, none = {.limit = {(R)NAN, (R)NAN}};
    RowSums sums = {0};
    int64_t argmax = 0;
    for (int64_t c0 = 0; c0 < classes; c0 += step) {
        int64_t n = classes - c0 < step ? classes - c0 : step, i = 0;
        const char *p = score_block(row, c0, n), *ahead = row_ahead(row, p, c0, step);
        if (!largest) {
            order.at = at < c0 ? 0 : at - c0 - (at - c0) % GROUP;
            if (at >= c0 && at - c0 < n) {
                order.before += score_earlier(p, n, value, at - c0, direct);
                if (value == -(R)INFINITY) order.before += (double)(c0 + order.at); /* nothing is lower: none counted */
            }
            if (bent) score_fetched(&order, (const R *)p, n);
            else if (max > -(R)INFINITY)
                i = row_sum(&sums, p, 0, n, reference, max, k, direct, paired, kind, WATCH, NULL, ahead, NULL, &order);
            if (i == n) continue;
        }
        R best = largest || bent ? top_max(groups, p, i, n, direct, paired) : row_max(p, i, n, direct, paired);
        if (largest) top_scan(top, groups, p, c0, n, direct);
        if (bent && best > given_max) {
            int64_t first = score_first(groups, best, p, i, n, direct);
            argmax = first >= 0 ? c0 + first : 0;
            given_max = best;
        }
        if (bent) {
            row_transform(call, row->scratch, n, 0);
            best = row_max(p, 0, n, 0, 0);
        }
        const int higher = best > max;
        if (higher) row_raise(&sums, &max, &reference, best, scale, kind);
        R r = reference > -(R)INFINITY ? reference : 0;
        order.met = -1;
        if (higher || max == -(R)INFINITY)
            row_sum(&sums, p, i, n, r, max, k, direct, paired, kind, BELOW, NULL, ahead, NULL, bent ? &none : &order);
        else row_sum(&sums, p, i, n, r, max, k, direct, paired, kind, WHOLE, NULL, ahead, NULL, bent ? &none : &order);
        /* Beside a NaN a maximum may be met by row_max alone. */
        if (!bent && higher && order.met >= 0) argmax = c0 + score_in_group(max, p, order.met, n, direct);
    }
    double rest = row_rest(row, &sums, max, reference, scale, kind);
    *out = (Score){.max = max, .rest = rest, .moment = scale * sums.dot, .argmax = argmax, .rank = order.before};
}

static void score_rows(FxCall *call, FxScratch *s, const Run *run, Lanes a, int direct) {
    for (int k = 0; k < run->valid; k++) {
        Row row = {.call = call,
                   .scratch = s,
                   .direct = direct,
                   .x = at_position(run, FX_X, place(run, k)),
                   .next = row_after(run, k)};
        if (row.next) FX_PREFETCH(row.next + s->target[k + 1] * call->operand[FX_X].class_stride);
        const R given = score_logit(call, row.x, s->target[k]);
        Score score;
        if (direct) score_row_as(&row, given, s->target[k], NULL, &score, 1, 0);
        else score_row_as(&row, given, s->target[k], NULL, &score, 0, 0);
        a.max[k] = score.max;
        a.rest[k] = (R)score.rest;
        a.dot[k] = (R)score.moment;
        a.top[k] = score_z(call, given);
        s->argmax[k] = (double)score.argmax;
        s->rank[k] = score.rank;
    }
}

static void score_tops(FxCall *call, FxScratch *s, const Run *run, int direct) {
    for (int k = 0; k < run->valid; k++) {
        const int64_t i = place(run, k), at = (run->first + i) * call->top_k;
        Row row = {
            .call = call, .scratch = s, .direct = direct, .x = at_position(run, FX_X, i), .next = row_after(run, k)};
        Top top = {
            .value = (R *)call->statistics[0] + at, .class = (int64_t *)call->statistics[1] + at, .size = call->top_k};
        Score score;
        if (direct) score_row_as(&row, 0, 0, &top, &score, 1, 1);
        else score_row_as(&row, 0, 0, &top, &score, 0, 1);
        top_sort(&top);
        top_finish(call, &top, score.max, score.rest);
    }
}

/* A panel whose positions are target[0 … width - 1], at place(run, first + j) in the run. */
static FX_INLINE void score_panel(FxCall *call, const Run *run, Panel *panel, Lanes a, int first, int columns) {
    FxScratch *s = panel->scratch;
    const int64_t *target = s->target + first;
    if (!columns && call->classes <= FX_TILE_CLASSES) {
        int64_t d;
        const R *tile = (const R *)panel_lines(panel, 0, (int)call->classes, &d, 0);
        for (int j = 0; j < panel->width; j++) a.top[j] = tile[target[j] * LANES + j];
    } else {
        for (int j = 0; j < panel->width; j++)
            a.top[j] = score_logit(call, at_position(run, FX_X, place(run, first + j)), target[j] < 0 ? 0 : target[j]);
    }
    for (int j = panel->width; j % LANES; j++) a.top[j] = 0;
    if (columns) {
        column_forward_as(panel, a, ENTROPY);
    } else {
        order_tiles(panel, a, s->argmax + first, s->rank + first, target);
        panel_sum(panel, a, ENTROPY, 0);
    }
    for (int j = 0; j < panel->width; j += LANES)
        v_storer(a.dot + j, v_mul(v_set1((R)call->logit_scale), v_loadr(a.dot + j)));
}

static void score_columns(FxCall *call, FxScratch *s, const Run *run, Lanes a) {
    for (int first = 0; run->valid && first < run->n;) {
        Panel panel = column_open(call, s, run, first, FX_MAX_WIDTH, 0);
        score_panel(call, run, &panel, lanes_from(a, first), first, 1);
        first += panel.width;
    }
}

static void score_tiles(FxCall *call, FxScratch *s, const Run *run, Lanes a) {
    Panel panel = {.call = call, .scratch = s, .k = panel_scale(call)};
    for (int k = 0; k < run->valid; k += LANES) {
        tile_open(&panel, run, k);
        score_panel(call, run, &panel, lanes_from(a, k), k, 0);
    }
}

/* (m, s, the target's logit, argmax, 1) of a position, in float64; (0, 0, 0, -1, 1) of an invalid one. */
static void put_partials(const FxCall *call, const FxScratch *s, const Run *run, Lanes a, int n) {
    const double scale = call->transform ? 1 : call->logit_scale;
    double *to = (double *)call->statistics[0] + 5 * run->first;
    if (run->valid < run->n)
        for (int i = 0; i < run->n; i++) memcpy(to + 5 * i, (double[]){0, 0, 0, -1, 1}, 5 * sizeof(double));
    for (int k = 0; k < n; k++) {
        if (s->target[k] < 0) continue;
        double *p = to + 5 * place(run, k);
        const int nan = a.rest[k] != a.rest[k], finite = a.max[k] - a.max[k] == 0;
        p[0] = nan ? (double)NAN : scale * (double)a.max[k];
        p[1] = nan || finite ? (double)a.rest[k] : 0;
        p[2] = scale * (double)a.top[k];
        p[3] = nan ? -1 : s->argmax[k];
        p[4] = 1;
    }
}

static void put_real(const FxCall *call, const FxScratch *s, const Run *run, int what, const R *from, int n) {
    R *to = (R *)call->statistics[what];
    if (!to) return;
    to += run->first;
    if (run->valid == run->n) {
        memcpy(to, from, sizeof(R) * (size_t)n);
        return;
    }
    memset(to, 0, sizeof(R) * (size_t)run->n);
    for (int k = 0; k < n; k++)
        if (s->target[k] >= 0) to[place(run, k)] = from[k];
}

static void put_class(const FxCall *call, const FxScratch *s, const Run *run, int what, const double *from, Lanes a,
                      int n) {
    int64_t *to = (int64_t *)call->statistics[what];
    if (!to) return;
    to += run->first;
    if (run->valid == run->n) {
        for (int k = 0; k < n; k++) to[k] = a.rest[k] == a.rest[k] ? (int64_t)from[k] : -1;
        return;
    }
    memset(to, -1, sizeof(int64_t) * (size_t)run->n);
    for (int k = 0; k < n; k++)
        if (s->target[k] >= 0) to[place(run, k)] = a.rest[k] == a.rest[k] ? (int64_t)from[k] : -1;
}

static void put_statistics(const FxCall *call, const FxScratch *s, const Run *run, Lanes a, int n) {
    const V zero = v_set1(0), one = v_set1(1);
    for (int j = 0; j < n; j += LANES) {
        V rest = finish_rest(a, j), log_rest = v_log1p(rest), inverse = v_div(one, v_add(one, rest)), equal;
        v_storer(a.factor + j, finish_logsumexp(call, a, j, v_log1p(v_loadr(a.rest + j))));
        v_storer(a.gap + j, v_loadr(a.top + j));
        finish_gaps(call, a, j, &equal);
        v_storer(a.loss + j, v_sub(zero, v_add(v_loadr(a.gap + j), log_rest)));
        v_storer(a.spread + j, v_fma(v_loadr(a.dot + j), inverse, log_rest));
        v_storer(a.value + j, inverse);
    }
    put_real(call, s, run, 0, a.loss, n);
    put_real(call, s, run, 1, a.factor, n);
    put_class(call, s, run, 2, s->argmax, a, n);
    put_class(call, s, run, 3, s->rank, a, n);
    put_real(call, s, run, 4, a.spread, n);
    put_real(call, s, run, 5, a.value, n);
}

/* FX_OP_STATISTICS, FX_OP_PARTIALS and FX_OP_TOP_K, of a run whose positions have been read. */
static void statistics_run(FxCall *call, FxScratch *s, Run *run, Lanes a) {
    const FxOperand *x = &call->operand[FX_X];
    const int direct = x->class_stride == SIZE && x->dtype == STORAGE && !x->swapped && !call->transform;
    if (call->operation == FX_OP_TOP_K) {
        score_tops(call, s, run, direct);
        return;
    }
    if (run->valid < run->n && call->family != FX_COLUMNS) close_up(call, s, run);
    const int n = call->family == FX_COLUMNS ? run->n : run->valid;
    if (call->family == FX_ROWS) score_rows(call, s, run, a, direct);
    else if (call->family == FX_COLUMNS) score_columns(call, s, run, a);
    else score_tiles(call, s, run, a);
    if (call->operation == FX_OP_PARTIALS) put_partials(call, s, run, a, n);
    else put_statistics(call, s, run, a, n);
}
