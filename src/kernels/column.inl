/* The forward pass of FX_COLUMNS, by chunks of classes that stay in L2 between their two sweeps: logits are read from
 * memory once, however many classes there are. As with rows, sums are relative to a reference that follows the maximum only
 * once that is more than 1/scale above it, and maxima are counted apart. The second sweep asks for the next chunk.
 *
 * Both sweeps take four lines at a time from end to end, the way memory likes; what they add up stands in arrays. */

enum { COLUMN_MANY = 256 };

/* How wide a panel may be whose exponentials fit scratch->kept, with a line of references for each chunk behind them; 0 if
 * none are wanted, or lines would be so short that to make the exponentials again costs no more. */
static int column_kept_width(const FxCall *call) {
    if (!call->operand[FX_OUT].data || call->saved || call->operation == FX_OP_LOG_SOFTMAX) return 0;
    const int64_t lines = call->classes ? call->classes + column_chunks(call->classes) : 1;
    const int64_t width = FX_KEPT * 8 / (int)sizeof(R) / lines / 16 * 16;
    return width * (int)sizeof(R) >= 512 ? (int)(width < FX_MAX_REACH ? width : FX_MAX_REACH) : 0;
}

/* The running sums of LANES positions, in arrays that are used later; the reference stands in a.mass (there are no class
 * probabilities), a.loss and a.rest hold what is not yet added to the total and the dot product. */
static FX_INLINE Sums sums_load(Lanes a, int j, int kind) {
    const V zero = v_set1(0);
    Sums s = {v_loadr(a.factor + j), v_loadr(a.spread + j), v_loadr(a.value + j), zero, zero, zero, zero};
    if (kind != NONE) s.dot = v_loadr(a.dot + j);
    if (kind != NONE) s.dot_lost = v_loadr(a.gap + j);
    return s;
}
static FX_INLINE void sums_store(Lanes a, int j, int kind, const Sums *s) {
    v_storer(a.factor + j, s->total);
    v_storer(a.spread + j, s->lost);
    v_storer(a.value + j, s->equal);
    if (kind != NONE) v_storer(a.dot + j, s->dot);
    if (kind != NONE) v_storer(a.gap + j, s->dot_lost);
}

/* a.loss gets the maxima of n classes of the lines at p. */
static FX_INLINE void column_max(const char *p, int64_t d, int n, int width, Lanes a) {
    int c = 0;
    for (; c + 4 <= n; c += 4, p += 4 * d)
        for (int j = 0; j < width; j += LANES) {
            V v0 = line_load_last(p, j, width, 1), v1 = line_load_last(p + d, j, width, 1);
            V v2 = line_load_last(p + 2 * d, j, width, 1), v3 = line_load_last(p + 3 * d, j, width, 1);
            V m = v_max(v_max(v0, v1), v_max(v2, v3));
            v_storer(a.loss + j, c ? v_max(m, v_loadr(a.loss + j)) : m);
        }
    for (; c < n; c++, p += d)
        for (int j = 0; j < width; j += LANES) {
            V m = v_max(line_load_last(p, j, width, 1), c ? v_loadr(a.loss + j) : v_set1(-(R)INFINITY));
            v_storer(a.loss + j, m);
        }
}

/* LANES positions through up to four classes; `fold`: what waits in a.loss and a.rest is added to the sums. `many`: so many
 * classes that four seldom hold a maximum. keep: where exponentials are kept, line by line, or NULL. */
static FX_INLINE void column_sum_at(const char *p, int64_t d, const int lines, int j, int width, Lanes a, ExpScale k,
                                    int kind, const R *coefficient, int fresh, int fold, int many, R *keep,
                                    const char *ahead) {
    const V max = v_loadr(a.max + j), reference = v_loadr(a.mass + j), zero = v_set1(0);
    V x[4], y[4], e[4] = {zero, zero, zero, zero}, moment = zero;
    FX_UNROLL
    for (int u = 0; u < lines; u++) {
        x[u] = line_load_last(p + u * d, j, width, 1);
        if (j * SIZE % 64 == 0) FX_PREFETCH(ahead + u * d + j * SIZE);
    }
    const int met = !V_BRANCHES || !many || lines < 4 || v_any(v_eq(v_max(v_max(x[0], x[1]), v_max(x[2], x[3])), max));
    FX_UNROLL
    for (int u = 0; u < lines; u++) {
        y[u] = v_sub(x[u], reference);
        e[u] = v_exp(y[u], k);
    }
    if (keep) {
        const int line = column_line(width);
        FX_UNROLL
        for (int u = 0; u < lines; u++) v_storer(keep + u * line + j, e[u]);
    }
    if (met) {
        V equal = v_loadr(a.value + j);
        FX_UNROLL
        for (int u = 0; u < lines; u++) {
            M top = v_eq(x[u], max);
            e[u] = v_drop(top, e[u]);
            equal = v_count(equal, top);
        }
        v_storer(a.value + j, equal);
    }
    FX_UNROLL
    for (int u = 0; u < lines; u++) {
        if (kind == ARRAY) {
            V w = v_set1(coefficient[u]);
            moment = v_fnma(w, v_drop(v_eq(w, zero), y[u]), moment);
        } else if (kind == UNIFORM) {
            moment = v_sub(moment, y[u]);
        } else if (kind == ENTROPY) { /* -inf: e is 0, and so must be the product */
            moment = v_fnma(e[u], v_max(k.lowest, y[u]), moment);
        }
    }
    V sum = v_add(v_add(e[0], e[1]), v_add(e[2], e[3]));
    if (!fresh) sum = v_add(sum, v_loadr(a.loss + j));
    if (!fresh && kind != NONE) moment = v_add(moment, v_loadr(a.rest + j));
    if (!fold) {
        v_storer(a.loss + j, sum);
        if (kind != NONE) v_storer(a.rest + j, moment);
        return;
    }
    V total = v_loadr(a.factor + j), lost = v_loadr(a.spread + j);
    add_exactly(&total, &lost, sum);
    v_storer(a.factor + j, total);
    v_storer(a.spread + j, lost);
    if (kind == NONE) return;
    total = v_loadr(a.dot + j), lost = v_loadr(a.gap + j);
    add_exactly(&total, &lost, moment);
    v_storer(a.dot + j, total);
    v_storer(a.gap + j, lost);
}

/* Adds n classes of the lines at p to the sums. `ahead`: what is read after them. */
static FX_INLINE void column_sum(const char *p, int64_t d, int n, int width, Lanes a, ExpScale k, int kind,
                                 const R *coefficient, int many, R *keep, const char *ahead) {
    const int line = column_line(width);
    int c = 0;
    for (; c + 4 <= n; c += 4) {
        const int fresh = c % LINES == 0, fold = (c + 4) % LINES == 0 || c + 4 == n;
        for (int j = 0; j < width; j += LANES)
            column_sum_at(p + c * d, d, 4, j, width, a, k, kind, coefficient ? coefficient + c : NULL, fresh, fold,
                          many, keep ? keep + c * line : NULL, ahead + c * d);
    }
    for (; c < n; c++)
        for (int j = 0; j < width; j += LANES)
            column_sum_at(p + c * d, d, 1, j, width, a, k, kind, coefficient ? coefficient + c : NULL, c % LINES == 0,
                          c + 1 == n, many, keep ? keep + c * line : NULL, ahead + c * d);
}

/* a·shrink, with what was lost. */
static FX_INLINE void shrink_exactly(V *sum, V *lost, V shrink) {
    V shrunk = v_mul(*sum, shrink);
    *lost = v_fma(*lost, shrink, EXP_FUSED ? v_fms(*sum, shrink, shrunk) : v_set1(0));
    *sum = shrunk;
}

/* The sums relative to a reference that is higher by `up`; shrink: exp(-up). before: the coefficients' sum so far. */
static FX_INLINE void column_move(Sums *s, V up, V shrink, int kind, double before) {
    if (kind == ENTROPY) {
        add_exactly(&s->dot, &s->dot_lost, v_mul(up, v_add(s->total, s->lost)));
        shrink_exactly(&s->dot, &s->dot_lost, shrink);
    } else if (kind != NONE) {
        add_exactly(&s->dot, &s->dot_lost, v_mul(up, v_set1((R)before)));
    }
    shrink_exactly(&s->total, &s->lost, shrink);
}

/* The new maxima, in a.loss, of LANES positions: the former ones join the sums, which are brought to the new reference.
 * Products are compensated, so that a row which keeps rising loses little. */
static FX_INLINE void column_raise(Lanes a, int j, ExpScale k, V slack, int kind, double before) {
    const V low = v_set1(-(R)INFINITY), one = v_set1(1), zero = v_set1(0);
    V max = v_loadr(a.max + j), reference = v_loadr(a.mass + j), top = v_loadr(a.loss + j);
    M up = v_lt(max, top);
    if (!v_any(up)) return;
    Sums s = sums_load(a, j, kind);
    M none = v_eq(max, low), far = v_lt(v_select(none, zero, slack), v_sub(top, v_select(none, low, reference)));
    V formerly = v_mul(v_add(s.equal, one), v_exp(v_sub(max, reference), k));
    formerly = v_drop(none, v_keep(up, formerly));
    add_exactly(&s.total, &s.lost, formerly);
    if (kind == ENTROPY) add_exactly(&s.dot, &s.dot_lost, v_drop(none, v_mul(formerly, v_sub(reference, max))));
    s.equal = v_select(up, v_set1(-1), s.equal);
    V shrink = v_select(far, v_drop(none, v_exp(v_sub(reference, top), k)), one);
    column_move(&s, v_keep(far, v_sub(top, reference)), shrink, kind, before);
    v_storer(a.mass + j, v_select(far, top, reference));
    v_storer(a.max + j, v_select(up, top, max));
    sums_store(a, j, kind, &s);
}

/* The results of sums that are relative to the reference. */
static FX_INLINE void column_finish(Lanes a, int j, ExpScale k, int kind, double before) {
    const V one = v_set1(1);
    Sums s = sums_load(a, j, kind);
    V max = v_loadr(a.max + j), reference = v_loadr(a.mass + j);
    M higher = v_lt(reference, max);
    V shrink = v_select(higher, v_exp(v_sub(reference, max), k), one);
    column_move(&s, v_keep(higher, v_sub(max, reference)), shrink, kind, before);
    v_storer(a.rest + j, v_add(s.equal, v_add(s.total, s.lost)));
    if (kind != NONE) v_storer(a.dot + j, with_lost(s.dot, s.dot_lost));
}

/* With ENTROPY argmax and rank are found too, see order.inl. */
static FX_INLINE void column_forward_as(Panel *panel, Lanes a, int kind) {
    FxScratch *s = panel->scratch;
    const FxCall *call = panel->call;
    const int width = panel->width;
    const ExpScale k = panel->k;
    const V zero = v_set1(0), low = v_set1(-(R)INFINITY), slack = v_set1((R)(1 / call->logit_scale));
    const Sums nothing = {zero, zero, v_set1(-1), zero, zero, zero, zero};
    const int64_t step = column_step(call->classes);
    const int line = column_line(width), keep = kind != ENTROPY && panel->keep;
    R *kept = keep ? (R *)s->kept : NULL, *references = (R *)s->kept + call->classes * line;
    double before = 0, lost = 0, *argmax = s->argmax + panel->first, *rank = s->rank + panel->first;
    const int64_t *target = s->target + panel->first;
    for (int j = 0; j < width; j += LANES) {
        sums_store(a, j, kind, &nothing);
        v_storer(a.max + j, low);
        v_storer(a.mass + j, zero); /* the reference, until there is a maximum */
    }
    if (kind == ENTROPY) order_begin(panel, a, argmax, rank, target);
    for (int64_t c0 = 0; c0 < call->classes; c0 += step) {
        const int n = (int)(call->classes - c0 < step ? call->classes - c0 : step);
        int64_t d;
        const char *p = panel_lines(panel, c0, n, &d, 1), *ahead = p + step * d;
        const R *w = kind == ARRAY ? (const R *)call->class_weight_r + c0 : NULL;
        if (c0 + step >= call->classes) ahead = panel->lines + width * SIZE; /* likely the next panel */
        if (kind == ENTROPY) order_classes(panel, p, d, c0, n, a, argmax, rank, target, 1);
        else column_max(p, d, n, width, a);
        for (int j = 0; j < width; j += LANES) column_raise(a, j, k, slack, kind, before + lost);
        column_sum(p, d, n, width, a, k, kind, w, call->classes >= COLUMN_MANY, kept, ahead);
        if (keep) {
            memcpy(references, a.mass, sizeof(R) * (size_t)line);
            kept += step * line, references += line;
        }
        if (kind != ARRAY) before += n;
        for (int c = 0; kind == ARRAY && c < n; c++) { /* equal weights would err the same way each time */
            const double sum = before + (double)w[c], part = sum - before;
            lost += (before - (sum - part)) + ((double)w[c] - part);
            before = sum;
        }
    }
    for (int j = 0; j < width; j += LANES) column_finish(a, j, k, kind, before + lost);
    panel->kept = keep;
}

static FX_INLINE void column_forward(Panel *panel, Lanes a, int kind) {
    if (kind == NONE) column_forward_as(panel, a, NONE);
    else if (kind == UNIFORM) column_forward_as(panel, a, UNIFORM);
    else column_forward_as(panel, a, ARRAY);
}

/* The gradient or softmax of a panel whose exponentials were kept, each chunk's relative to a reference of its own.
 * at[j]: the class that takes value[j]; NULL: none does. */
static FX_INLINE void column_write_as(const Panel *panel, Lanes a, const int64_t at[], int kind, int stream) {
    const FxCall *call = panel->call;
    const int width = panel->width, line = column_line(width);
    const int64_t step = column_step(call->classes), d = call->operand[FX_OUT].class_stride;
    const V zero = v_set1(0);
    const R *e = (const R *)panel->scratch->kept, *references = e + call->classes * line;
    for (int j = 0; j < line; j++) a.mass[j] = at && j < width ? (R)at[j] : -1;
    for (int64_t c0 = 0; c0 < call->classes; c0 += step, references += line) {
        const int64_t end = call->classes - c0 < step ? call->classes : c0 + step;
        for (int j = 0; j < width; j += LANES) {
            V up = v_sub(v_loadr(references + j), v_loadr(a.max + j)); /* above 0: no maximum was known, all is 0 */
            v_storer(a.loss + j, v_mul(v_loadr(a.factor + j), v_exp(v_keep(v_lt(up, zero), up), panel->k)));
        }
        for (int64_t c = c0; c < end; c++, e += line) {
            char *to = panel->gathered ? (char *)panel->scratch->target_tile : panel->out_lines + c * d;
            const V own = v_set1((R)c), w = v_set1(kind == ARRAY ? ((const R *)call->class_weight_r)[c] : 0);
            for (int j = panel->skip; j < width;) {
                if (!stream && !panel->gathered && j * SIZE % 64 < LANES * SIZE) FX_PREFETCH(to + 4 * d + j * SIZE);
                const RunPart part = run_part(to, j, width, stream);
                V factor = v_loadr(a.loss + j), y;
                /* An invalid position (factor 0) is 0 whatever its logits hold; a valid one may be NaN. */
                y = v_drop(v_eq(factor, zero), v_mul(factor, v_loadr(e + j)));
                if (kind == UNIFORM) y = v_sub(y, v_loadr(a.spread + j));
                if (kind == ARRAY) y = v_fnma(v_loadr(a.spread + j), w, y);
                y = v_select(v_eq(v_loadr(a.mass + j), own), v_loadr(a.value + j), y);
                run_put(to, part, y, stream);
                j += part.lanes;
            }
            if (panel->gathered) column_scatter(panel, c);
        }
    }
}

static FX_INLINE void column_write_kind(const Panel *panel, Lanes a, const int64_t at[], int kind, int stream) {
    if (kind == NONE) column_write_as(panel, a, at, NONE, stream);
    else if (kind == UNIFORM) column_write_as(panel, a, at, UNIFORM, stream);
    else column_write_as(panel, a, at, ARRAY, stream);
}

static FX_NOINLINE void column_write(const Panel *panel, Lanes a, const int64_t at[], int kind) {
    if (column_streams(panel)) column_write_kind(panel, a, at, kind, 1);
    else column_write_kind(panel, a, at, kind, 0);
}
