/* Which of a panel's logits is the first of the largest, and how many come before the target: lanes along the positions.
 *
 * Where a target is among the classes differs from lane to lane: with a sign of -1 before it and 1 after it, one
 * comparison of both sides' products says whether a class counts, as a smaller one before or as a larger one after.
 * Classes are taken in groups that lie on one side of the targets of all lanes, but for the few that do not. */

/* Classes compared at once, in place and in a tile; classes counted in lanes of R, exactly. */
enum { COLUMN_LINES = 8, TILE_LINES = 4, FEW_CLASSES = 256, ORDER_CLASSES = 1 << 20 };

/* Of LANES positions: the maximum so far, where it was met (or its group began; -1: not here), and how many classes are
 * larger after the target less how many are smaller before it. */
typedef struct {
    V best, met, count;
} Order;

/* The largest of a group into m[0], and with `exact` where it is first into first[0]. */
static FX_INLINE void order_largest(V m[], V first[], const int lines, int c, int exact) {
    FX_UNROLL
    for (int u = 0; u < lines; u++) first[u] = v_set1((R)(c + u));
    FX_UNROLL
    for (int w = 1; w < lines; w *= 2) {
        FX_UNROLL
        for (int u = 0; u < lines; u += 2 * w) {
            if (exact) first[u] = v_select(v_lt(m[u], m[u + w]), first[u + w], first[u]);
            m[u] = v_max(m[u + w], m[u]);
        }
    }
}

static FX_INLINE void order_group(Order *o, const V v[], const int lines, int c, V target, V at, int exact) {
    const V one = v_set1(1), minus = v_set1(-1), half = v_set1((R)(lines / 2)), middle = v_set1((R)(c + lines / 2));
    V m[COLUMN_LINES], first[COLUMN_LINES], other = v_set1(0);
    FX_UNROLL
    for (int u = 0; u < lines; u++) m[u] = v[u];
    if (exact) order_largest(m, first, lines, c, 1);
    else order_largest(m, first, lines, c, 0);
    o->met = v_select(v_lt(o->best, m[0]), first[0], o->met);
    o->best = v_max(m[0], o->best);
    if (lines > 1 && v_any(v_lt(v_abs(v_sub(at, middle)), half))) { /* some lane's target is one of these */
        FX_UNROLL
        for (int u = 0; u < lines; u++) {
            V side = v_select(v_lt(v_set1((R)(c + u)), at), minus, one);
            M counts = v_lt(v_mul(target, side), v_mul(v[u], side));
            o->count = v_select(counts, v_add(o->count, side), o->count);
        }
        return;
    }
    V side = v_select(v_lt(v_set1((R)(c + lines - 1)), at), minus, one), t = v_mul(target, side);
    FX_UNROLL
    for (int u = 0; u < lines; u += 2) {
        o->count = v_select(v_lt(t, v_mul(v[u], side)), v_add(o->count, side), o->count);
        if (u + 1 < lines) other = v_select(v_lt(t, v_mul(v[u + 1], side)), v_add(other, side), other);
    }
    if (lines > 1) o->count = v_add(o->count, other);
}

/* `lines` classes of all positions of a panel in place, or of a tile (whose sums stay in registers). */
static FX_INLINE void order_columns(const char *p, int64_t d, int c, const int lines, int width, Lanes a, int exact) {
    for (int j = 0; j < width; j += LANES) {
        Order o = {v_loadr(a.max + j), v_loadr(a.factor + j), v_loadr(a.spread + j)};
        V v[COLUMN_LINES];
        FX_UNROLL
        for (int u = 0; u < lines; u++) v[u] = line_load_last(p + u * d, j, width, 1);
        order_group(&o, v, lines, c, v_loadr(a.top + j), v_loadr(a.value + j), exact);
        v_storer(a.max + j, o.best);
        v_storer(a.factor + j, o.met);
        v_storer(a.spread + j, o.count);
    }
}

static FX_INLINE void order_tile(const char *p, int64_t d, int n, Lanes a) {
    Order o = {v_loadr(a.max), v_loadr(a.factor), v_loadr(a.spread)};
    const V target = v_loadr(a.top), at = v_loadr(a.value);
    V v[TILE_LINES];
    int c = 0;
    for (; c + TILE_LINES <= n; c += TILE_LINES) {
        FX_UNROLL
        for (int u = 0; u < TILE_LINES; u++) v[u] = line_load(p + (c + u) * d, 0, 0);
        order_group(&o, v, TILE_LINES, c, target, at, 1);
    }
    for (; c < n; c++) {
        v[0] = line_load(p + c * d, 0, 0);
        order_group(&o, v, 1, c, target, at, 1);
    }
    v_storer(a.factor, o.met);
    v_storer(a.max, o.best);
    v_storer(a.spread, o.count);
}

static FX_INLINE void order_lines(const char *p, int64_t d, int n, int width, int given, Lanes a, int columns) {
    if (!columns) {
        order_tile(p, d, n, a);
        return;
    }
    /* Of few classes it is cheaper to know each maximum's place in its group, of many to look for the last one's. */
    const int few = n <= FEW_CLASSES;
    int c = 0;
    for (; c + COLUMN_LINES <= n; c += COLUMN_LINES) order_columns(p + c * d, d, c, COLUMN_LINES, width, a, few);
    for (; c < n; c++) order_columns(p + c * d, d, c, 1, width, a, 1);
    for (int j = 0; !few && j < given; j++) {
        int met = (int)a.factor[j], end = met + COLUMN_LINES < n ? met + COLUMN_LINES : n;
        while (met >= 0 && met + 1 < end && load_one(p + met * d + (int64_t)j * SIZE) != a.max[j]) met++;
        a.factor[j] = (R)met;
    }
}

/* argmax, rank and max of a panel's positions; top holds the targets' logits. */
static FX_INLINE void score_order(Panel *panel, Lanes a, double *argmax, double *rank, const int64_t *target,
                                  int columns) {
    const int64_t classes = panel->call->classes, step = columns ? ORDER_CLASSES : FX_TILE_CLASSES;
    const int width = columns ? panel->width : LANES;
    for (int j = 0; j < panel->width; j++) argmax[j] = rank[j] = 0;
    for (int j = 0; j < width; j += LANES) v_storer(a.max + j, v_set1(-(R)INFINITY));
    for (int64_t c0 = 0; c0 < classes; c0 += step) {
        const int n = (int)(classes - c0 < step ? classes - c0 : step);
        int64_t d;
        const char *p = panel_lines(panel, c0, n, &d, columns);
        for (int j = 0; j < width; j += LANES) {
            v_storer(a.factor + j, v_set1(-1));
            v_storer(a.spread + j, v_set1(0));
            v_storer(a.value + j, v_set1(0));
        }
        for (int j = 0; j < panel->width; j++) {
            int64_t at = target[j] - c0;
            a.value[j] = (R)(at < 0 ? 0 : at < n ? at : n);
        }
        order_lines(p, d, n, width, panel->width, a, columns);
        for (int j = 0; j < panel->width; j++) {
            argmax[j] = a.factor[j] >= 0 ? (double)c0 + (double)a.factor[j] : argmax[j];
            rank[j] += (double)a.value[j] + (double)a.spread[j];
        }
    }
}
