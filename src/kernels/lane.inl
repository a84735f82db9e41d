/* Lanes: vector lanes along the positions, classes one after the other.
 *
 * A panel is a set of lines, one a class, of `width` positions each: in place, where the logits' positions are neighbours
 * in memory, or gathered (FX_COLUMNS, see column.inl), or a transposed tile of LANES positions in L1 (FX_TILES). Every lane
 * does the same operations in the same order, whatever its neighbours hold. In a tile: first the maximum over all classes,
 * then the sum of exp(x - max) over those below the maximum, and a count of those that equal it: one of them is left out,
 * exactly. */

/* Bytes by which tiles are asked for before they are needed: some hundred nanoseconds' worth. */
enum { TILE_AHEAD = 3072 };
enum { LINES = 32 }; /* classes summed plainly before their sum is added, with compensation, to the total */

enum { COLUMN_CLASSES = 128 }; /* about as many make a chunk of columns, which is read from memory once */

/* Numbers from one line of scratch->kept to the next. */
static FX_INLINE int column_line(int width) { return (width + LANES - 1) / LANES * LANES; }

static FX_INLINE int64_t column_chunks(int64_t classes) { return (classes + COLUMN_CLASSES - 1) / COLUMN_CLASSES; }
static FX_INLINE int64_t column_step(int64_t classes) {
    const int64_t chunks = column_chunks(classes);
    return (classes / (chunks ? chunks : 1) + LINES) / LINES * LINES;
}

/* One number a position, in arrays. */
typedef struct {
    R *max, *rest, *gap, *dot, *mass;  /* results */
    R *top;                            /* given: the class weight of the target, or the coefficient at the maximum */
    R *sample, *upstream;              /* given, or NULL: 1, and the call's scale */
    R *factor, *spread, *value, *loss; /* made by finish.inl */
    R *lower, *at, *met, *count;       /* used by order.inl */
} Lanes;

/* The same arrays from their j-th position on. */
static FX_INLINE Lanes lanes_from(Lanes a, int j) {
    return (Lanes){.max = a.max + j,
                   .rest = a.rest + j,
                   .gap = a.gap + j,
                   .dot = a.dot + j,
                   .mass = a.mass + j,
                   .top = a.top + j,
                   .sample = a.sample ? a.sample + j : NULL,
                   .upstream = a.upstream ? a.upstream + j : NULL,
                   .factor = a.factor + j,
                   .spread = a.spread + j,
                   .value = a.value + j,
                   .loss = a.loss + j,
                   .lower = a.lower + j,
                   .at = a.at + j,
                   .met = a.met + j,
                   .count = a.count + j};
}

typedef struct {
    const FxCall *call;
    FxScratch *scratch;
    const char *row[FX_MAX_LANES], *q[FX_MAX_LANES]; /* FX_TILES: the lanes' rows */
    char *out[FX_MAX_LANES];
    const char *lines; /* FX_COLUMNS: class 0's line */
    char *out_lines;
    const char *ahead;   /* FX_TILES: what is read later, as large as the tile's own memory */
    int64_t packed_from; /* FX_TILES: the class the tile starts with now, or -1 */
    ExpScale k;          /* panel_scale */
    int width, columns;
    int first, skip; /* FX_COLUMNS: the panel's first position in the run; how many of its own it does not write */
    int gathered;    /* FX_COLUMNS: the positions are not neighbours; their lines are made in scratch->tile */
    int64_t apart, out_apart; /* bytes from one of them to the next */
    int keep; /* FX_TILES: whether exponentials are to take the logits' place in a tile of all classes, */
    int kept; /* and have. FX_COLUMNS: whether they are to stand in scratch->kept, and do */
} Panel;

static FX_INLINE ExpScale panel_scale(const FxCall *call) { return exp_scale(call->transform ? 1 : call->logit_scale); }

static FX_INLINE int tile_is_plain(const FxCall *call, const FxOperand *a) {
    return a->class_stride == SIZE && a->dtype == STORAGE && !a->swapped && !call->transform;
}

/* n classes from c0 of LANES rows into a tile, one line a class. */
static FX_INLINE void tile_transpose(R *tile, const char *const row[], int64_t c0, int n) {
    int c = 0;
    for (; V_QUADS > 1 && c + 4 <= n; c += 4) {
        V r[4];
        v_load_quads(row, (c0 + c) * SIZE, r);
        FX_UNROLL
        for (int u = 0; u < 4; u++) v_storer(tile + (c + u) * LANES, r[u]);
    }
    for (; c + LANES <= n; c += LANES) {
        V r[LANES];
        FX_UNROLL
        for (int l = 0; l < LANES; l++) r[l] = v_load(row[l] + (c0 + c) * SIZE);
        v_transpose(r);
        FX_UNROLL
        for (int l = 0; l < LANES; l++) v_storer(tile + (c + l) * LANES, r[l]);
    }
    if (V_QUADS && c < n && n - c <= 4 && n >= 4) { /* the last four, of which some may be there already */
        V r[4];
        v_load_quads(row, (c0 + n - 4) * SIZE, r);
        FX_UNROLL
        for (int u = 0; u < 4; u++) v_storer(tile + (n - 4 + u) * LANES, r[u]);
    } else if (n - c <= LANES / 4) {
        for (; c < n; c++) {
            FX_UNROLL
            for (int l = 0; l < LANES; l++) tile[c * LANES + l] = load_one(row[l] + (c0 + c) * SIZE);
        }
    } else if (c < n) {
        V r[LANES];
        FX_UNROLL
        for (int l = 0; l < LANES; l++) r[l] = v_load_tail(row[l] + (c0 + c) * SIZE, n - c, v_set1(0));
        v_transpose(r);
        FX_UNROLL
        for (int l = 0; l < LANES; l++) v_storer(tile + (c + l) * LANES, r[l]);
    }
}

static FX_NOINLINE void tile_gather(const Panel *panel, R *tile, const FxOperand *a, const char *const row[],
                                    int64_t c0, int n) {
    R *line = (R *)panel->scratch->fetch;
    for (int l = 0; l < LANES; l++) {
        FETCH(line, row[l] + c0 * a->class_stride, a->dtype, a->swapped, a->class_stride, n);
        for (int c = 0; c < n; c++) tile[c * LANES + l] = line[c];
    }
}

/* n classes from c0 on of columns that are not neighbours, as lines, the given distance apart: a vector's positions at a
 * time, so that many classes are waited for at once. */
static FX_NOINLINE const char *column_gather(const Panel *panel, int64_t c0, int n, int64_t distance) {
    const int64_t d = panel->call->operand[FX_X].class_stride, apart = panel->apart;
    char *tile = (char *)panel->scratch->tile;
    for (int j = 0; j < panel->width; j += LANES) {
        const int lanes = panel->width - j < LANES ? panel->width - j : LANES;
        const char *p = panel->lines + c0 * d + j * apart;
        char *to = tile + j * SIZE;
        for (int c = 0; c < n; c++, p += d, to += distance)
            for (int l = 0; l < lanes; l++) memcpy(to + l * SIZE, p + l * apart, SIZE);
    }
    return tile;
}

/* The reverse: class c, whose line was written to scratch->target_tile. */
static FX_NOINLINE void column_scatter(const Panel *panel, int64_t c) {
    const char *line = (const char *)panel->scratch->target_tile;
    char *to = panel->out_lines + c * panel->call->operand[FX_OUT].class_stride;
    for (int j = 0; j < panel->width; j++, to += panel->out_apart) memcpy(to, line + j * SIZE, SIZE);
}

/* Makes classes c0 … c0 + n - 1 available as lines; returns the first, and the lines' distance. */
static FX_INLINE const char *panel_lines(Panel *panel, int64_t c0, int n, int64_t *distance, int columns) {
    const FxCall *call = panel->call;
    const FxOperand *x = &call->operand[FX_X];
    if (columns && panel->gathered) {
        *distance = column_line(panel->width) * SIZE;
        return column_gather(panel, c0, n, *distance);
    }
    if (columns) {
        *distance = x->class_stride;
        return panel->lines + c0 * x->class_stride;
    }
    R *tile = (R *)panel->scratch->tile;
    *distance = LANES * sizeof(R);
    if (panel->packed_from == c0) return (const char *)tile;
    panel->packed_from = c0;
    if (tile_is_plain(call, x)) tile_transpose(tile, panel->row, c0, n);
    else tile_gather(panel, tile, x, panel->row, c0, n);
    if (call->transform) {
        R *slope = (R *)panel->scratch->slope_tile;
        for (int i = 0; i < n * LANES; i += LANES) {
            V d, z = transform(call, v_loadr(tile + i), &d);
            v_storer(tile + i, z);
            v_storer(slope + i, d);
        }
    }
    return (const char *)tile;
}

/* The coefficients of n classes from c0 when they differ from lane to lane (class probabilities). */
static FX_NOINLINE const R *panel_coefficients(Panel *panel, int64_t c0, int n) {
    const FxCall *call = panel->call;
    R *tile = (R *)panel->scratch->target_tile;
    tile_gather(panel, tile, &call->operand[FX_Y], panel->q, c0, n);
    const R keep = (R)(1 - call->smoothing), spread = (R)(call->smoothing / (double)call->classes);
    const R *w = call->class_weight ? (const R *)call->class_weight_r + c0 : NULL;
    for (int c = 0; c < n; c++) {
        V a = v_loadr(tile + c * LANES);
        if (call->smoothing != 0) a = v_add(v_mul(v_set1(keep), a), v_set1(spread));
        if (w) a = v_mul(a, v_set1(w[c]));
        v_storer(tile + c * LANES, a);
    }
    return tile;
}

static FX_INLINE V line_load(const char *p, int j, int columns) {
    return columns ? v_load(p + (int64_t)j * SIZE) : v_loadr((const R *)p + j);
}
/* The last vector of a panel's line: no lane beyond the width is read. */
static FX_INLINE V line_load_last(const char *p, int j, int width, int columns) {
    if (!columns || j + LANES <= width) return line_load(p, j, columns);
    return v_load_tail(p + (int64_t)j * SIZE, width - j, v_set1(0));
}

static FX_INLINE void panel_max(Panel *panel, Lanes a) {
    V best = v_set1(-(R)INFINITY);
    for (int64_t c0 = 0; c0 < panel->call->classes; c0 += FX_TILE_CLASSES) {
        int64_t left = panel->call->classes - c0, d;
        const int n = left < FX_TILE_CLASSES ? (int)left : FX_TILE_CLASSES;
        const char *p = panel_lines(panel, c0, n, &d, 0);
        int c = 0;
        for (; c + 4 <= n; c += 4, p += 4 * d) {
            V v0 = line_load(p, 0, 0), v1 = line_load(p + d, 0, 0);
            V v2 = line_load(p + 2 * d, 0, 0), v3 = line_load(p + 3 * d, 0, 0);
            best = v_max(v_max(v0, v1), v_max(v_max(v2, v3), best));
        }
        for (; c < n; c++, p += d) best = v_max(line_load(p, 0, 0), best);
    }
    v_storer(a.max, best);
}

/* The running sums of LANES positions: of exponentials, what its additions lost, how often the maximum was met (less one),
 * the coefficients' dot product and their sum. */
typedef struct {
    V total, lost, equal, dot, dot_lost, mass, mass_lost;
} Sums;

/* What a stretch of classes adds up. */
typedef struct {
    V sum[4], moment, mass;
    N equal;
} Stretch;

/* `count` classes from c on of a tile's LANES positions, side by side, into sums `at` and on. */
static FX_INLINE void panel_add(Stretch *s, V max, R *p, int c, const int at, const int count, ExpScale k, int kind,
                                const R *coefficient, int per_lane, int keep) {
    V x[4], y[4], e[4];
    FX_UNROLL
    for (int u = 0; u < count; u++) x[u] = v_loadr(p + (c + u) * LANES);
    FX_UNROLL
    for (int u = 0; u < count; u++) y[u] = v_sub(x[u], max);
    v_exps(e, y, count, k);
    if (keep) {
        FX_UNROLL
        for (int u = 0; u < count; u++) v_storer(p + (c + u) * LANES, e[u]);
    }
    FX_UNROLL
    for (int u = 0; u < count; u++) {
        M top = v_eq(x[u], max);
        e[u] = v_drop(top, e[u]);
        s->sum[at + u] = v_add(s->sum[at + u], e[u]);
        s->equal = v_tally(s->equal, top);
        if (kind == ARRAY) {
            V w = per_lane ? v_loadr(coefficient + (c + u) * LANES) : v_set1(coefficient[c + u]);
            s->mass = v_add(s->mass, w);
            s->moment = v_fnma(w, v_drop(v_eq(w, v_set1(0)), y[u]), s->moment);
        } else if (kind == UNIFORM) {
            s->moment = v_sub(s->moment, y[u]);
        } else if (kind == ENTROPY) { /* -inf: e is 0, and so must be the product */
            s->moment = v_fnma(e[u], v_max(k.lowest, y[u]), s->moment);
        }
    }
}

/* Up to LINES classes. */
static FX_INLINE void panel_sum_lines(Sums *s, N *equal, V max, R *p, int n, ExpScale k, int kind, const R *coefficient,
                                      int per_lane, const char *ahead, int keep) {
    const V zero = v_set1(0);
    Stretch t = {{zero, zero, zero, zero}, zero, zero, *equal};
    int c = 0;
    for (; c + 4 <= n; c += 4) {
        FX_UNROLL
        for (int b = 0; b < 4 * LANES * SIZE; b += 64) FX_PREFETCH(ahead + c * LANES * SIZE + b);
        panel_add(&t, max, p, c, 0, 4, k, kind, coefficient, per_lane, keep);
    }
    for (int b = c * LANES * SIZE; b < n * LANES * SIZE; b += 64) FX_PREFETCH(ahead + b);
    if (c < n) panel_add(&t, max, p, c, 0, 1, k, kind, coefficient, per_lane, keep);
    if (c + 1 < n) panel_add(&t, max, p, c + 1, 1, 1, k, kind, coefficient, per_lane, keep);
    if (c + 2 < n) panel_add(&t, max, p, c + 2, 2, 1, k, kind, coefficient, per_lane, keep);
    *equal = t.equal;
    add_exactly(&s->total, &s->lost, v_add(v_add(t.sum[0], t.sum[1]), v_add(t.sum[2], t.sum[3])));
    if (kind != NONE) add_exactly(&s->dot, &s->dot_lost, t.moment);
    if (kind == ARRAY) add_exactly(&s->mass, &s->mass_lost, t.mass);
}

static FX_INLINE void panel_sum(Panel *panel, Lanes a, int kind, int keep) {
    const FxCall *call = panel->call;
    const int per_lane = call->targets_are_probs;
    const ExpScale k = panel->k;
    const V zero = v_set1(0), max = v_loadr(a.max);
    Sums s = {zero, zero, zero, zero, zero, zero, zero};
    N equal = v_none();
    for (int64_t c0 = 0; c0 < call->classes; c0 += FX_TILE_CLASSES) {
        int n = call->classes - c0 < FX_TILE_CLASSES ? (int)(call->classes - c0) : FX_TILE_CLASSES;
        int64_t d;
        R *p = (R *)panel_lines(panel, c0, n, &d, 0); /* the tile */
        const R *w = NULL;
        if (kind == ARRAY) w = per_lane ? panel_coefficients(panel, c0, n) : (const R *)call->class_weight_r + c0;
        for (int c = 0; c < n; c += LINES)
            panel_sum_lines(&s, &equal, max, p + c * LANES, n - c < LINES ? n - c : LINES, k, kind,
                            kind == ARRAY ? w + (per_lane ? c * LANES : c) : NULL, per_lane,
                            panel->ahead + (c0 + c) * LANES * SIZE, keep);
    }
    panel->kept = keep;
    /* The sum over those below the maximum, and of those that equal it all but one. */
    if (kind != NONE) v_storer(a.dot, with_lost(s.dot, s.dot_lost));
    if (kind == ARRAY) v_storer(a.mass, with_lost(s.mass, s.mass_lost));
    s.equal = v_sub(v_tallied(equal), v_set1(1));
    v_storer(a.rest, v_add(s.equal, v_add(s.total, s.lost)));
}

/* Each in a function of its own, whose registers are not shared with the others. */
static FX_NOINLINE void panel_sum_none(Panel *panel, Lanes a) {
    if (panel->keep) panel_sum(panel, a, NONE, 1);
    else panel_sum(panel, a, NONE, 0);
}
static FX_NOINLINE void panel_sum_uniform(Panel *panel, Lanes a) { panel_sum(panel, a, UNIFORM, panel->keep); }
static FX_NOINLINE void panel_sum_array(Panel *panel, Lanes a) { panel_sum(panel, a, ARRAY, panel->keep); }

static FX_INLINE void panel_sum_kind(Panel *panel, Lanes a, int kind) {
    if (kind == NONE) panel_sum_none(panel, a);
    else if (kind == UNIFORM) panel_sum_uniform(panel, a);
    else panel_sum_array(panel, a);
}

/* One class for all positions of a panel, written over `to` (storage type for columns, else compute type). own: the class,
 * whose positions in a.mass take a.value here and now, if lines are streamed; else -1. kept: exponentials stand at p.
 * ahead: a later line of columns, each of which may lie on a page of its own, where no processor asks for it by itself. */
static FX_INLINE void panel_write_line(const char *p, char *to, int width, Lanes a, ExpScale k, V scale, int kind,
                                       const R *coefficient, int per_lane, const R *slope, int logarithm, int columns,
                                       int64_t own, int stream, int kept, const char *ahead) {
    for (int j = 0; j < width;) {
        const RunPart part = run_part(to, j, width, stream);
        if (columns && j * SIZE % 64 < LANES * SIZE) FX_PREFETCH(ahead + j * SIZE);
        V x = line_load_last(p, j, width, columns), d = v_sub(x, v_loadr(a.max + j)), y;
        if (logarithm) {
            y = v_fms(d, scale, v_loadr(a.factor + j));
        } else {
            V factor = v_loadr(a.factor + j);
            /* An invalid position (factor 0) is 0 whatever its logits hold; a valid one may be NaN. */
            y = v_drop(v_eq(factor, v_set1(0)), v_mul(factor, kept ? x : v_exp(d, k)));
            if (kind == UNIFORM) y = v_sub(y, v_loadr(a.spread + j));
            if (kind == ARRAY) {
                V w = per_lane ? v_loadr(coefficient + j) : v_set1(coefficient[0]);
                y = v_fnma(v_loadr(a.spread + j), w, y);
            }
            if (slope) y = v_mul(y, v_loadr(slope + j));
        }
        if (columns && own >= 0) y = v_select(v_eq(v_loadr(a.mass + j), v_set1((R)own)), v_loadr(a.value + j), y);
        if (!columns) v_storer((R *)to + j, y);
        else run_put(to, part, y, stream);
        j += columns ? part.lanes : LANES;
    }
}

/* Whether a panel's lines can go past the caches: classes that R can count, and whole vectors or, where exponentials are
 * kept, no more than vectors that begin elsewhere (where they are made again that costs more than it gains). */
static int column_streams(const Panel *panel) {
    const FxCall *call = panel->call;
    const int64_t unit = panel->kept ? SIZE : LANES * SIZE;
    return call->stream && !panel->gathered && (panel->kept ? panel->width * SIZE >= 256 : panel->width % LANES == 0) &&
           call->classes < 1 << 24 && (int64_t)((uintptr_t)panel->out_lines % (uintptr_t)unit) == 0 &&
           call->operand[FX_OUT].class_stride % unit == 0;
}

/* A tile of results (in scratch->emit's place: the tile itself is overwritten) to the lanes' rows. */
static FX_NOINLINE void tile_emit(Panel *panel, R *tile, int64_t c0, int n) {
    const FxOperand *out = &panel->call->operand[FX_OUT];
    if (out->class_stride == SIZE && out->dtype == STORAGE) {
        const int fours = V_QUADS > 1 && panel->width == LANES && n >= 4;
        for (int c = 0; fours && c < n; c += 4) {
            const int at = c + 4 <= n ? c : n - 4; /* the last four, of which some are there already */
            V r[4];
            FX_UNROLL
            for (int u = 0; u < 4; u++) r[u] = v_loadr(tile + (at + u) * LANES);
            v_store_quads(panel->out, (c0 + at) * SIZE, r);
        }
        for (int c = 0; !fours && c < n; c += LANES) {
            V r[LANES];
            FX_UNROLL
            for (int l = 0; l < LANES; l++) r[l] = v_loadr(tile + (c + l) * LANES);
            v_transpose(r);
            int m = n - c < LANES ? n - c : LANES;
            for (int l = 0; l < panel->width; l++) {
                char *to = panel->out[l] + (c0 + c) * SIZE;
                if (m == LANES) v_store(to, r[l]);
                else v_store_tail(to, r[l], m);
            }
        }
        return;
    }
    R *line = (R *)panel->scratch->emit;
    for (int l = 0; l < panel->width; l++) {
        for (int c = 0; c < n; c++) line[c] = tile[c * LANES + l];
        EMIT(panel->out[l] + c0 * out->class_stride, out->dtype, out->class_stride, line, n);
    }
}

/* The gradient, softmax or log-softmax of a panel. at[j]: the class that takes value[j], or -1; NULL: none does. */
static FX_INLINE void panel_write_as(Panel *panel, Lanes a, const int64_t at[], int kind, int logarithm, int columns,
                                     int stream, int kept) {
    const FxCall *call = panel->call;
    const FxOperand *out = &call->operand[FX_OUT];
    const int width = columns ? panel->width : LANES, per_lane = call->targets_are_probs;
    const int gathered = columns && panel->gathered;
    const int64_t step = gathered ? column_step(call->classes) : columns ? call->classes : FX_TILE_CLASSES;
    const double scale = call->transform ? 1 : call->logit_scale;
    const ExpScale k = panel->k;
    const int chain = call->transform && call->operation <= FX_OP_GRAD;
    if (stream && at) /* columns have no class probabilities, whose mass it would be */
        for (int j = 0; j < width; j++) a.mass[j] = (R)at[j];
    for (int64_t c0 = 0; c0 < call->classes; c0 += step) {
        int64_t n = call->classes - c0 < step ? call->classes - c0 : step, d, od;
        const char *p = panel_lines(panel, c0, (int)n, &d, columns);
        char *to = columns ? panel->out_lines + c0 * out->class_stride : (char *)panel->scratch->tile;
        od = columns ? out->class_stride : d;
        if (gathered) to = (char *)panel->scratch->target_tile, od = 0;
        const R *w = NULL, *slope = chain ? (const R *)panel->scratch->slope_tile : NULL;
        if (kind == ARRAY) w = per_lane ? panel_coefficients(panel, c0, (int)n) : (const R *)call->class_weight_r + c0;
        for (int64_t c = 0; c < n; c++) {
            panel_write_line(p + c * d, to + c * od, width, a, k, v_set1((R)scale), kind,
                             w ? w + (per_lane ? c * LANES : c) : NULL, per_lane, slope ? slope + c * LANES : NULL,
                             logarithm, columns, stream && at ? c : -1, stream, kept, p + (c + 4) * d);
            if (gathered) column_scatter(panel, c0 + c);
        }
        if (at && !stream)
            for (int j = 0; j < panel->width; j++) {
                if ((uint64_t)(at[j] - c0) >= (uint64_t)n) continue;
                char *slot = to + (at[j] - c0) * od;
                if (gathered)
                    store_one(panel->out_lines + at[j] * out->class_stride + j * panel->out_apart, a.value[j]);
                else if (columns) store_one(slot + (int64_t)j * SIZE, a.value[j]);
                else ((R *)slot)[j] = slope ? a.value[j] * slope[(at[j] - c0) * LANES + j] : a.value[j];
            }
        if (columns) continue;
        tile_emit(panel, (R *)panel->scratch->tile, c0, (int)n);
        panel->packed_from = -1; /* the results stand where the logits stood */
        panel->kept = 0;
    }
}

/* By kind of coefficients; the other numbers are known when it is compiled. */
static FX_INLINE void panel_write_kind(Panel *panel, Lanes a, const int64_t at[], int kind, int columns, int stream,
                                       int kept) {
    if (kind == NONE) panel_write_as(panel, a, at, NONE, 0, columns, stream, kept);
    else if (kind == UNIFORM) panel_write_as(panel, a, at, UNIFORM, 0, columns, stream, kept);
    else panel_write_as(panel, a, at, ARRAY, 0, columns, stream, kept);
}

static FX_INLINE void panel_write(Panel *panel, Lanes a, const int64_t at[], int kind, int logarithm) {
    const int stream = panel->columns && column_streams(panel);
    if (logarithm && stream) panel_write_as(panel, a, at, NONE, 1, 1, 1, 0);
    else if (logarithm && panel->columns) panel_write_as(panel, a, at, NONE, 1, 1, 0, 0);
    else if (logarithm) panel_write_as(panel, a, at, NONE, 1, 0, 0, 0);
    else if (stream) panel_write_kind(panel, a, at, kind, 1, 1, 0);
    else if (panel->columns) panel_write_kind(panel, a, at, kind, 1, 0, 0);
    else if (panel->kept) panel_write_kind(panel, a, at, kind, 0, 0, 1);
    else panel_write_kind(panel, a, at, kind, 0, 0, 0);
}
