/* Which of a panel's logits is the first of the largest, and how many come before the target: lanes along the positions.
 *
 * A class comes before the target if it is larger or, with a lower number, equal, that is larger than the next lower
 * float: a limit for each lane, and one comparison a class. Classes are taken in groups that lie on one side of the targets
 * of all lanes, but for the few that do not. */

/* Classes compared at once, in place and in a tile; up to how many of all it is cheaper to know each maximum's place in its
 * group than to look for the last one's. */
enum { COLUMN_LINES = 8, TILE_LINES = 4, FEW_CLASSES = 128 };

/* Of LANES positions: the maximum of these classes so far, where it was met (or its group began; -1: not here), and how
 * many come before the target. */
typedef struct {
    V best, met, count;
} Order;

/* And what they are compared with: the targets' logits, the next lower numbers, the targets' places. */
typedef struct {
    V target, lower, at;
} OrderLimits;

/* `lines` classes from c on, the first line's vector at p. exact: `met` is the place of the maximum, else of its group. */
static FX_INLINE void order_group(Order *o, const char *p, int64_t d, int j, int width, const int lines, int c,
                                  OrderLimits t, int columns, int exact) {
    const V half = v_set1((R)(lines / 2)), middle = v_set1((R)(c + lines / 2)), formerly = o->best;
    const int within =
        lines > 1 && v_any(v_lt(v_abs(v_sub(t.at, middle)), half)); /* some lane's target is one of these */
    V limit = v_select(v_lt(v_set1((R)c), t.at), t.lower, t.target);
    N count = v_none();
    FX_UNROLL
    for (int u = 0; u < lines; u++) {
        V v = line_load_last(p + u * d, j, width, columns);
        if (within) limit = v_select(v_lt(v_set1((R)(c + u)), t.at), t.lower, t.target);
        if (exact) o->met = v_select(v_lt(o->best, v), v_set1((R)(c + u)), o->met);
        o->best = v_max(v, o->best);
        count = v_tally(count, v_lt(limit, v));
    }
    if (!exact) o->met = v_select(v_lt(formerly, o->best), v_set1((R)c), o->met);
    o->count = v_add(o->count, v_tallied(count));
}

/* The same, of the positions of a panel in place from j on. ragged: the last of them, which are fewer than a vector. */
static FX_INLINE void order_columns(const char *p, int64_t d, int c, const int lines, int j, int width, Lanes a,
                                    int exact, int ragged) {
    for (; ragged ? j < width : j + LANES <= width; j += LANES) {
        const OrderLimits t = {v_loadr(a.top + j), v_loadr(a.lower + j), v_loadr(a.at + j)};
        Order o = {v_loadr(a.loss + j), v_loadr(a.met + j), v_loadr(a.count + j)};
        order_group(&o, p, d, j, ragged ? width : j + LANES, lines, c, t, 1, exact);
        v_storer(a.loss + j, o.best);
        v_storer(a.met + j, o.met);
        v_storer(a.count + j, o.count);
    }
}

static FX_INLINE void order_tile(const char *p, int64_t d, int n, Lanes a) {
    const OrderLimits t = {v_loadr(a.top), v_loadr(a.lower), v_loadr(a.at)};
    Order o = {v_loadr(a.loss), v_loadr(a.met), v_loadr(a.count)};
    int c = 0;
    for (; c + TILE_LINES <= n; c += TILE_LINES) order_group(&o, p + c * d, d, 0, LANES, TILE_LINES, c, t, 0, 1);
    for (; c < n; c++) order_group(&o, p + c * d, d, 0, LANES, 1, c, t, 0, 1);
    v_storer(a.loss, o.best);
    v_storer(a.met, o.met);
    v_storer(a.count, o.count);
}

/* Before the first class: top holds the targets' logits. */
static FX_INLINE void order_begin(const Panel *panel, Lanes a, double *argmax, double *rank, const int64_t *target) {
    for (int j = 0; j < panel->width; j++) {
        argmax[j] = 0;
        rank[j] = a.top[j] == -(R)INFINITY ? (double)target[j] : 0; /* nothing is lower: none before it is counted */
        a.lower[j] = next_lower(a.top[j]);
    }
    for (int j = panel->width; j % LANES; j++) a.lower[j] = a.at[j] = 0;
}

/* The n classes from c0 on, whose lines begin at p: their rank and argmax; loss becomes the larger of max and theirs. */
static FX_INLINE void order_classes(const Panel *panel, const char *p, int64_t d, int64_t c0, int n, Lanes a,
                                    double *argmax, double *rank, const int64_t *target, int columns) {
    const int width = panel->width, few = !columns || panel->call->classes <= FEW_CLASSES;
    int c = 0;
    for (int j = 0; j < width; j++) a.at[j] = (R)(target[j] - c0);
    for (int j = 0; j < width; j += LANES) {
        v_storer(a.loss + j, v_loadr(a.max + j));
        v_storer(a.met + j, v_set1(-1));
        v_storer(a.count + j, v_set1(0));
    }
    if (!columns) order_tile(p, d, n, a);
    for (; columns && c + COLUMN_LINES <= n; c += COLUMN_LINES) {
        if (few) order_columns(p + c * d, d, c, COLUMN_LINES, 0, width, a, 1, 0);
        else order_columns(p + c * d, d, c, COLUMN_LINES, 0, width, a, 0, 0);
    }
    for (; columns && c + TILE_LINES <= n; c += TILE_LINES)
        order_columns(p + c * d, d, c, TILE_LINES, 0, width, a, 1, 0);
    for (; columns && c < n; c++) order_columns(p + c * d, d, c, 1, 0, width, a, 1, 0);
    const int ragged = columns && width % LANES != 0;
    for (c = 0; ragged && c < n; c++) order_columns(p + c * d, d, c, 1, width - width % LANES, width, a, 1, 1);
    for (int j = 0; j < width; j++) {
        rank[j] += (double)a.count[j];
        if (!(a.met[j] >= 0)) continue;
        int met = (int)a.met[j];
        if (!few)
            while (met + 1 < n && load_one(p + met * d + (int64_t)j * SIZE) != a.loss[j]) met++;
        argmax[j] = (double)(c0 + met);
    }
}

/* All of it, of a tile; max becomes known. */
static FX_INLINE void order_tiles(Panel *panel, Lanes a, double *argmax, double *rank, const int64_t *target) {
    const int64_t classes = panel->call->classes;
    order_begin(panel, a, argmax, rank, target);
    v_storer(a.max, v_set1(-(R)INFINITY));
    for (int64_t c0 = 0; c0 < classes; c0 += FX_TILE_CLASSES) {
        const int n = (int)(classes - c0 < FX_TILE_CLASSES ? classes - c0 : FX_TILE_CLASSES);
        int64_t d;
        const char *p = panel_lines(panel, c0, n, &d, 0);
        order_classes(panel, p, d, c0, n, a, argmax, rank, target, 0);
        v_storer(a.max, v_loadr(a.loss));
    }
}
