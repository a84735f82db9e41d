/* Rows: what is written over the classes of a row whose sums are known: gradient, softmax, log-softmax. Exponentials
 * that row.inl kept are multiplied, part by part; others are made again, from the cache if the row fits it. */

/* What is written over the classes: factor·exp(z - max) - spread·coefficient (gradient, softmax), but `value` at the
 * class `at` (the target, or the maximum), whose accurate form is another; or (z - max) - shift (log-softmax). */
typedef struct {
    R max;
    double factor, spread, shift, value;
    int64_t at;
    int kind, logarithm;
} RowWrite;

/* From e = exp(z - max). */
static FX_INLINE V row_slope(V e, V factor, V spread, V c, int kind) {
    V y = v_mul(factor, e);
    if (kind == UNIFORM) y = v_sub(y, spread);
    if (kind == ARRAY) y = v_fnma(spread, c, y);
    return y;
}

/* n classes from p to `to`: storage type to storage type, or (packed) compute type to compute type. `kept`: p holds their
 * exponentials, in the compute type. */
static FX_INLINE void row_write_run(const RowWrite *w, ExpScale k, const char *p, char *to, int64_t n, int64_t at,
                                    const R *coefficient, int direct, int stream, int kind, int logarithm, int kept) {
    const V max = v_set1(w->max), factor = v_set1((R)w->factor), none = v_set1(0);
    const V spread = v_set1((R)(logarithm ? w->shift : w->spread)), value = v_set1((R)w->value);
    const int size = direct || STORAGE_IS_REAL ? SIZE : (int)sizeof(R);
    const int paired = V_PAIRS && direct && kind != ARRAY && !kept;
    int64_t i = 0;
    const int64_t head = stream ? stream_head(to) : 0;
    while (i < n) {
        V y[4], c = none;
        if (i >= head && i + GROUP <= n) {
            if (kept) {
                FX_UNROLL
                for (int u = 0; u < 4; u++) y[u] = v_loadr((const R *)p + i + u * LANES);
            } else {
                row_group(y, p, i, n, direct, paired);
                FX_UNROLL
                for (int u = 0; u < 4; u++) y[u] = v_sub(y[u], max);
                if (!logarithm) v_exps(y, y, 4, k);
            }
            FX_UNROLL
            for (int u = 0; u < 4; u++) {
                if (kind == ARRAY) c = v_loadr(coefficient + i + u * LANES);
                y[u] = logarithm ? v_fms(y[u], factor, spread) : row_slope(y[u], factor, spread, c, kind);
            }
            if ((uint64_t)(at - i) < GROUP) {
                int64_t place = paired ? pair_index(at - i) : at - i;
                FX_UNROLL
                for (int u = 0; u < 4; u++)
                    y[u] = v_select(v_eq(v_iota(), v_set1((R)(place - u * LANES))), value, y[u]);
            }
            FX_UNROLL
            for (int u = 0; u < 4; u++) {
                char *slot = to + (i + u * LANES) * size;
                if (paired && u % 2) continue;
                if (paired && stream) v_stream_pair(slot, y[u], y[u + 1]);
                else if (paired) v_store_pair(slot, y[u], y[u + 1]);
                else if (stream) v_stream(slot, y[u]);
                else if (direct || STORAGE_IS_REAL) v_store(slot, y[u]);
                else v_storer(slot, y[u]);
            }
            i += GROUP;
            continue;
        }
        int64_t end = i < head && head < n ? head : n;
        int m = end - i < LANES ? (int)(end - i) : LANES;
        V one;
        if (kept) one = m == LANES ? v_loadr((const R *)p + i) : v_load_tail_r((const R *)p + i, m, none);
        else one = v_sub(m == LANES ? row_load(p, i, direct) : row_load_tail(p, i, m, max, direct), max);
        if (kind == ARRAY) c = v_load_tail_r(coefficient + i, m, none);
        if (logarithm) one = v_fms(one, factor, spread);
        else one = row_slope(kept ? one : v_exp(one, k), factor, spread, c, kind);
        if ((uint64_t)(at - i) < (uint64_t)m) one = v_select(v_eq(v_iota(), v_set1((R)(at - i))), value, one);
        if (!direct && !STORAGE_IS_REAL) v_storer(to + i * size, one);
        else if (stream && (i < head || m < LANES)) v_stream_tail(to + i * size, one, m);
        else if (stream) v_stream(to + i * size, one);
        else if (m == LANES) v_store(to + i * size, one);
        else v_store_tail(to + i * size, one, m);
        i += m;
    }
}

static FX_INLINE void row_write_kind(const RowWrite *w, ExpScale k, const char *p, char *to, int64_t n, int64_t at,
                                     const R *c, int direct, int stream, int kept) {
    if (w->logarithm && !kept) row_write_run(w, k, p, to, n, at, c, direct, stream, NONE, 1, 0);
    else if (w->kind == NONE) row_write_run(w, k, p, to, n, at, c, direct, stream, NONE, 0, kept);
    else if (w->kind == UNIFORM) row_write_run(w, k, p, to, n, at, c, direct, stream, UNIFORM, 0, kept);
    else row_write_run(w, k, p, to, n, at, c, direct, stream, ARRAY, 0, kept);
}

/* dy/dx = dy/dz · dz/dx for a block of transformed logits, in place. */
static FX_NOINLINE void row_chain(R *y, const R *slope, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] *= slope[i];
}

/* Part by part, since each is relative to a reference of its own. `contiguous`: into storage-type neighbours. */
static FX_INLINE void row_write_kept(const Row *row, const RowWrite *w, ExpScale k, char *to, int contiguous,
                                     int stream) {
    const FxScratch *s = row->scratch;
    const FxOperand *out = &row->call->operand[FX_OUT];
    const int by_blocks = !contiguous || w->kind == ARRAY;
    for (int64_t part = 0; part < s->kept_parts; part++) {
        const int64_t end = part + 1 < s->kept_parts ? s->kept_from[part + 1] : row->call->classes;
        const double up = s->kept_reference[part] - (double)w->max;
        RowWrite own = *w;
        if (up < 0) own.factor *= fx_exp(row->call->logit_scale * up);
        for (int64_t c0 = s->kept_from[part], n; c0 < end; c0 += n) {
            n = by_blocks && end - c0 > FX_BLOCK ? FX_BLOCK : end - c0;
            const R *c = w->kind == ARRAY ? row_coefficients(row, c0, n) : NULL;
            const char *e = (const char *)(row->kept + c0);
            if (!contiguous) row_write_kind(&own, k, e, (char *)s->emit, n, w->at - c0, c, 0, 0, 1);
            else if (stream) row_write_kind(&own, k, e, to + c0 * SIZE, n, w->at - c0, c, 1, 1, 1);
            else row_write_kind(&own, k, e, to + c0 * SIZE, n, w->at - c0, c, 1, 0, 1);
            if (!contiguous) EMIT(to + c0 * out->class_stride, out->dtype, out->class_stride, (const R *)s->emit, n);
        }
    }
}

static void row_write(const Row *row, const RowWrite *w, char *to) {
    const FxCall *call = row->call;
    const FxOperand *out = &call->operand[FX_OUT];
    const ExpScale k = exp_scale(call->transform ? 1 : call->logit_scale);
    const int64_t classes = call->classes;
    const int contiguous = out->class_stride == SIZE && out->dtype == STORAGE;
    const int stream = call->stream && (uintptr_t)to % SIZE == 0;
    if (row->kept) {
        row_write_kept(row, w, k, to, contiguous, stream);
        return;
    }
    if (row->direct && contiguous) {
        int64_t step = w->kind == ARRAY && row->q ? FX_BLOCK : classes;
        for (int64_t c0 = 0; c0 < classes; c0 += step) {
            int64_t n = classes - c0 < step ? classes - c0 : step;
            const R *c = w->kind == ARRAY ? row_coefficients(row, c0, n) : NULL;
            if (stream) row_write_kind(w, k, row->x + c0 * SIZE, to + c0 * SIZE, n, w->at - c0, c, 1, 1, 0);
            else row_write_kind(w, k, row->x + c0 * SIZE, to + c0 * SIZE, n, w->at - c0, c, 1, 0, 0);
        }
        return;
    }
    const int chain = call->transform && call->operation <= FX_OP_GRAD;
    for (int64_t c0 = 0; c0 < classes; c0 += FX_BLOCK) {
        int64_t n = classes - c0 < FX_BLOCK ? classes - c0 : FX_BLOCK;
        R *y = (R *)row->scratch->emit;
        const char *p = row_block(row, c0, n, chain);
        if (row->direct && !STORAGE_IS_REAL) {
            FETCH((R *)row->scratch->fetch, p, STORAGE, 0, SIZE, n);
            p = (const char *)row->scratch->fetch;
        }
        const R *c = w->kind == ARRAY ? row_coefficients(row, c0, n) : NULL;
        row_write_kind(w, k, p, (char *)y, n, w->at - c0, c, 0, 0, 0);
        if (chain) row_chain(y, (const R *)row->scratch->slope, n);
        EMIT(to + c0 * out->class_stride, out->dtype, out->class_stride, y, n);
    }
}
