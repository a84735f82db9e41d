/* A tile of logits between matrix products (fastxent/_linear_tiles.py says what is in a state, and what is asked for): its
 * rows are merged into states, or written over by their gradient. The sweeps are those of the row kernels; float32 and
 * float64 alone, since a product of halves is a float32 tile. */

static FX_INLINE void linear_add_bias(R *x, const R *bias, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) v_storer(x + i, v_add(v_loadr(x + i), v_loadr(bias + i)));
    for (; i < n; i++) x[i] += bias[i];
}

/* The tile's max, rest, dot (moment) and mass join the state's. A side of nothing but -inf adds nothing. */
static void linear_merge(double *state, const double *own, double scale, int scores) {
    const double m = state[FX_LINEAR_MAX], s = state[FX_LINEAR_REST], t = own[FX_LINEAR_MAX], r = own[FX_LINEAR_REST];
    const double infinite = (double)INFINITY, up = t > m ? t : m;
    double fall = m > -infinite ? scale * (up - m) : infinite, fall_own = t > -infinite ? scale * (up - t) : infinite;
    double keep = fx_exp(-fall), keep_own = fx_exp(-fall_own);
    state[FX_LINEAR_MAX] = up;
    if (up == infinite) state[FX_LINEAR_REST] = s + r == s + r ? 0 : (double)NAN;
    else state[FX_LINEAR_REST] = m >= t ? s + (1 + r) * keep_own : r + (1 + s) * keep;
    if (scores) {
        if (fall == infinite) fall = 0;
        if (fall_own == infinite) fall_own = 0;
        state[FX_LINEAR_DOT] =
            keep * (state[FX_LINEAR_DOT] + fall * (1 + s)) + keep_own * (own[FX_LINEAR_DOT] + fall_own * (1 + r));
        return;
    }
    double lift = (up - m) * state[FX_LINEAR_MASS], lift_own = (up - t) * own[FX_LINEAR_MASS];
    state[FX_LINEAR_DOT] += own[FX_LINEAR_DOT];
    /* Not finite: nothing was there, or -inf with a coefficient, whose dot is infinite already. */
    if (lift - lift == 0) state[FX_LINEAR_DOT] += lift;
    if (lift_own - lift_own == 0) state[FX_LINEAR_DOT] += lift_own;
    state[FX_LINEAR_MASS] += own[FX_LINEAR_MASS];
}

/* The largest number below a finite v, or below +inf. */
static R linear_below(R v) {
    const R step = FX_REAL_BITS == 32 ? (R)0x1p-24 : (R)0x1p-53,
            least = FX_REAL_BITS == 32 ? (R)0x1p-149 : (R)0x1p-1074;
    const R largest = FX_REAL_BITS == 32 ? (R)0x1.fffffep127 : (R)0x1.fffffffffffffp1023;
    if (v > largest) return largest;
    R size = (v < 0 ? -v : v) * step, lower = v - (size > least ? size : least);
    /* Half a unit may round back up to v; a whole one does not. */
    return lower < v ? lower : v - (2 * size > least ? 2 * size : least);
}

static void linear_score(const Row *row, const FxLinear *tile, R *x, int64_t at, double *state, double *own) {
    const FxCall *call = row->call;
    const int64_t classes = call->classes;
    const R given = (R)state[FX_LINEAR_GIVEN_TARGET];
    const int here = at >= 0 && at < classes;
    Score score;
    R value = given;
    int64_t counted = classes;
    (void)tile;
    if (here) {
        x[at] = given;
        state[FX_LINEAR_TARGET] = score_z(call, given);
    } else {
        /* Before a later target equal ones count as well: they are larger than the number below it. */
        if (at > 0 && given > -(R)INFINITY) value = linear_below(given);
        else if (at > 0) counted = 0;
        at = -1;
    }
    if (row->direct) score_row_as(row, value, at, NULL, &score, 1, 0);
    else score_row_as(row, value, at, NULL, &score, 0, 0);
    own[FX_LINEAR_MAX] = score.max;
    own[FX_LINEAR_REST] = score.rest;
    own[FX_LINEAR_DOT] = score.moment;
    state[FX_LINEAR_MASS] += (double)(counted ? score.rank : classes);
    if ((double)x[score.argmax] > state[FX_LINEAR_GIVEN_MAX]) {
        state[FX_LINEAR_GIVEN_MAX] = x[score.argmax];
        state[FX_LINEAR_ARGMAX] = (double)(tile->first + score.argmax);
    }
}

static void linear_sums(const Row *row, const R *x, int64_t at, int kind, double *state, double *own) {
    RowStats stats;
    row_forward(row, kind, &stats);
    own[FX_LINEAR_MAX] = stats.max;
    own[FX_LINEAR_REST] = stats.rest;
    own[FX_LINEAR_DOT] = stats.dot;
    own[FX_LINEAR_MASS] = stats.weight;
    if (at >= 0 && at < row->call->classes) state[FX_LINEAR_TARGET] = score_z(row->call, x[at]);
}

static void linear_gradient(const Row *row, const R *terms, int64_t at, int kind, char *to) {
    RowWrite w = {.max = terms[0],
                  .factor = terms[1],
                  .spread = terms[2],
                  .value = terms[3],
                  .at = at >= 0 && at < row->call->classes ? at : -1,
                  .kind = kind};
    row_write(row, &w, to);
}

void KERNEL(linear)(FxCall *call, FxScratch *s, int64_t block) {
    const FxLinear *tile = call->linear;
    const double scale = call->transform ? 1 : call->logit_scale;
    const int kind = tile->coefficients == FX_COEFFICIENTS_NONE  ? NONE
                     : tile->coefficients == FX_COEFFICIENTS_ONE ? UNIFORM
                                                                 : ARRAY;
    int64_t first, n;
    if (!STORAGE_IS_REAL) return;
    fx_block_range(call, block, &first, &n);
    for (int64_t i = first; i < first + n; i++) {
        char *p = call->operand[FX_X].data + i * tile->stride;
        R *x = (R *)p;
        Row row = {.call = call, .scratch = s, .direct = !call->transform, .x = p};
        const int64_t at = tile->targets[i] - tile->first;
        if (tile->operation == FX_LINEAR_GRADIENT) {
            linear_gradient(&row, (const R *)tile->terms + 4 * i, at, kind, p);
            continue;
        }
        double own[FX_LINEAR_STATE], *state = tile->state + FX_LINEAR_STATE * i;
        if (tile->bias) linear_add_bias(x, (const R *)tile->bias, call->classes);
        if (tile->operation == FX_LINEAR_SCORES) linear_score(&row, tile, x, at, state, own);
        else linear_sums(&row, x, at, kind, state, own);
        if (tile->top) tile->top[i] = own[FX_LINEAR_MAX];
        linear_merge(state, own, scale, tile->operation == FX_LINEAR_SCORES);
    }
}
