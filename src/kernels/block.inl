/* A block of positions, from its targets to its results: the entry points of one storage type on one instruction set. */

static Lanes lanes_of(FxCall *call, FxScratch *s) {
    R *l[8];
    for (int i = 0; i < 8; i++) l[i] = (R *)s->lane[i];
    return (Lanes){.max = (R *)s->max, .rest = (R *)s->rest, .gap = (R *)s->gap, .dot = (R *)s->dot,
                   .mass = (R *)s->weight, .target_weight = l[0], .top = l[1], .factor = l[2], .spread = l[3],
                   .value = l[4], .sum = l[2], .lost = l[3], .equal = l[4], .moment = l[5], .upstream = l[6],
                   .sample = call->operand[FX_WEIGHT].data ? l[7] : NULL, .loss = (R *)s->loss};
}

/* The logit (z, if transformed) of one class of one position. */
static FX_INLINE R read_logit(const FxCall *call, const char *row, int64_t c) {
    const FxOperand *x = &call->operand[FX_X];
    const char *p = row + c * x->class_stride;
    if (x->dtype == STORAGE && !x->swapped && !call->transform) return load_one(p);
    R v, z[LANES];
    FETCH(&v, p, x->dtype, x->swapped, x->class_stride, 1);
    if (!call->transform) return v;
    V slope;
    v_storer(z, transform(call, v_set1(v), &slope));
    return z[0];
}

/* What finish.inl wants of each position, in the compute type. */
static void fill_given(const FxCall *call, const FxScratch *s, Lanes a, int n, int gradient) {
    const double keep = 1 - call->smoothing;
    if (!call->targets_are_probs)
        for (int i = 0; i < n; i++) {
            double w = call->class_weight && s->target[i] >= 0 ? call->class_weight[s->target[i]] : 1;
            a.target_weight[i] = (R)(keep * w);
            a.top[i] = (R)w;
        }
    if (a.sample)
        for (int i = 0; i < n; i++) a.sample[i] = (R)s->sample[i];
    if (gradient)
        for (int i = 0; i < n; i++) a.upstream[i] = (R)s->upstream[i];
}

static int coefficient_kind(const FxCall *call) {
    if (call->operation > FX_OP_LOSS_SOFTMAX) return NONE;
    if (call->targets_are_probs) return ARRAY;
    return call->smoothing == 0 ? NONE : call->class_weight ? ARRAY : UNIFORM;
}

static void read_saved(const FxCall *call, int64_t position, R *max, R *rest) {
    const R *p = (const R *)call->saved + 2 * position;
    *max = p[0];
    *rest = p[1];
}

/* The coefficient of class c of a row, as row_coefficients makes it. */
static R one_coefficient(const Row *row, int64_t c) {
    return row_coefficients(row, c, 1)[0];
}

static void rows_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    const int kind = coefficient_kind(call), losses = call->operation <= FX_OP_LOSS_SOFTMAX;
    const int logarithm = call->operation == FX_OP_LOG_SOFTMAX, softmax = call->operation >= FX_OP_LOSS_SOFTMAX;
    const FxOperand *x = &call->operand[FX_X];
    const int direct = x->class_stride == SIZE && x->dtype == STORAGE && !x->swapped && !call->transform;
    for (int i = 0; i < run->n; i++) {
        int64_t t = s->target[i], at = losses && !softmax ? t : -1;
        if (t < 0) {
            a.max[i] = a.rest[i] = a.gap[i] = a.dot[i] = a.mass[i] = 0;
            if (wants_output) write_zeros(call, at_position(run, FX_OUT, i));
            continue;
        }
        Row row = {.call = call, .scratch = s, .direct = direct, .x = at_position(run, FX_X, i)};
        if (call->targets_are_probs) row.q = at_position(run, FX_Y, i + call->shift);
        if (call->saved) {
            read_saved(call, run->first + i, &a.max[i], &a.rest[i]);
        } else {
            RowStats stats;
            row_forward(&row, kind, &stats);
            a.max[i] = stats.max;
            a.rest[i] = (R)stats.rest;
            a.dot[i] = (R)stats.dot;
            a.mass[i] = (R)stats.weight;
            if (call->targets_are_probs) {
                if (at >= 0) at = stats.argmax;
                a.top[i] = at >= 0 ? one_coefficient(&row, at) : 0;
            }
        }
        if (losses && !call->targets_are_probs) a.gap[i] = read_logit(call, row.x, t);
        if (!wants_output) continue;
        V equal = v_set1(0);
        if (losses && !softmax && !call->targets_are_probs) {
            R target = a.gap[i];
            finish_gaps(call, a, i, &equal);
            finish_terms(call, a, i, equal);
            a.gap[i] = target;
        } else {
            finish_terms(call, a, i, equal);
        }
        RowWrite w = {.max = a.max[i], .factor = logarithm ? (call->transform ? 1 : call->logit_scale) : a.factor[i],
                      .spread = a.spread[i], .shift = a.factor[i], .value = a.value[i], .at = at,
                      .kind = softmax ? NONE : kind, .logarithm = logarithm};
        row_write(&row, &w, at_position(run, FX_OUT, i));
    }
}

/* The positions from `j`, as many as `panel` holds, whose indices in the run are index[]. */
static void panel_run(FxCall *call, const Run *run, Panel *panel, Lanes a, const int32_t index[], int64_t at[],
                      int kind, int wants_output) {
    FxScratch *s = panel->scratch;
    const int width = panel->width, losses = call->operation <= FX_OP_LOSS_SOFTMAX;
    const int softmax = call->operation >= FX_OP_LOSS_SOFTMAX, logarithm = call->operation == FX_OP_LOG_SOFTMAX;
    if (call->saved) {
        for (int j = 0; j < width; j++)
            read_saved(call, run->first + (index ? index[j] : j), &a.max[j], &a.rest[j]);
        for (int j = width; j % LANES; j++) a.max[j] = a.rest[j] = 0;
    } else {
        panel_forward(panel, a, kind);
    }
    for (int j = 0; j < width; j++) {
        int i = index ? index[j] : j;
        int64_t t = s->target[i];
        const char *row = at_position(run, FX_X, i);
        at[j] = softmax ? -1 : t;
        if (losses && !call->targets_are_probs) a.gap[j] = t >= 0 ? read_logit(call, row, t) : 0;
        if (!wants_output || !call->targets_are_probs || softmax) continue;
        /* The class of the maximum: its coefficient belongs to the term that must not cancel. */
        Row one = {.call = call, .scratch = s, .x = row, .q = at_position(run, FX_Y, i + call->shift)};
        at[j] = -1;
        for (int64_t c = 0; c < call->classes && at[j] < 0; c++)
            if (read_logit(call, row, c) == a.max[j]) at[j] = c;
        a.top[j] = at[j] >= 0 ? one_coefficient(&one, at[j]) : 0;
    }
    if (!wants_output) return;
    for (int j = 0; j < width; j += LANES) {
        V equal = v_set1(0);
        if (losses && !softmax && !call->targets_are_probs) {
            V target = v_loadr(a.gap + j);
            finish_gaps(call, a, j, &equal);
            finish_terms(call, a, j, equal);
            v_storer(a.gap + j, target);
        } else {
            finish_terms(call, a, j, equal);
        }
    }
    if (panel->columns)
        for (int j = 0; j < width; j++)
            if (at[j] < 0 && s->target[j] < 0) a.factor[j] = a.spread[j] = 0;
    panel_write(panel, a, at, softmax ? NONE : kind, logarithm);
}

static void columns_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    int64_t at[FX_MAX_WIDTH];
    Panel panel = {.call = call, .scratch = s, .lines = run->base[FX_X], .out_lines = run->base[FX_OUT],
                   .width = run->n, .columns = 1};
    if (run->valid) {
        panel_run(call, run, &panel, a, NULL, at, coefficient_kind(call), wants_output);
        return;
    }
    for (int i = 0; i < run->n; i++) a.max[i] = a.rest[i] = a.gap[i] = a.dot[i] = a.mass[i] = 0;
    if (!wants_output) return;
    for (int64_t c = 0; c < call->classes; c++)
        memset(panel.out_lines + c * call->operand[FX_OUT].class_stride, 0, (size_t)run->n * SIZE);
}

/* Through tiles: the valid positions closed up, LANES at a time. */
static void tiles_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    int32_t *index = s->valid;
    int valid = 0;
    for (int i = 0; i < run->n; i++) {
        if (s->target[i] >= 0) {
            index[valid++] = i;
            continue;
        }
        a.max[i] = a.rest[i] = a.gap[i] = a.dot[i] = a.mass[i] = 0;
        if (wants_output) write_zeros(call, at_position(run, FX_OUT, i));
    }
    int kind = coefficient_kind(call);
    for (int j = 0; j < valid; j += LANES) {
        R hold[11][LANES];
        Lanes one = {.max = hold[0], .rest = hold[1], .gap = hold[2], .dot = hold[3], .mass = hold[4],
                     .target_weight = hold[5], .top = hold[6], .upstream = hold[7], .factor = hold[8],
                     .spread = hold[9], .value = hold[10], .sum = hold[8], .lost = hold[9], .equal = hold[10]};
        Panel panel = {.call = call, .scratch = s, .packed_from = -1,
                       .width = valid - j < LANES ? valid - j : LANES};
        int64_t at[LANES];
        for (int l = 0; l < LANES; l++) {
            int i = index[j + (l < panel.width ? l : 0)];
            panel.row[l] = at_position(run, FX_X, i);
            panel.q[l] = at_position(run, FX_Y, i + call->shift);
            panel.out[l] = at_position(run, FX_OUT, i);
            one.target_weight[l] = a.target_weight[i];
            one.top[l] = a.top[i];
            one.upstream[l] = a.upstream[i];
            one.gap[l] = 0;
        }
        panel_run(call, run, &panel, one, index + j, at, kind, wants_output);
        for (int l = 0; l < panel.width; l++) {
            int i = index[j + l];
            a.max[i] = one.max[l];
            a.rest[i] = one.rest[l];
            a.gap[i] = one.gap[l];
            a.dot[i] = one.dot[l];
            a.mass[i] = one.mass[l];
        }
    }
}

/* Losses of a run, from its stats; for log-sum-exp the result itself. */
static void losses_run(const FxCall *call, const FxScratch *s, const Run *run, Lanes a) {
    for (int j = 0; j < run->n; j += LANES) {
        if (call->operation == FX_OP_LOGSUMEXP) {
            v_storer(a.loss + j, finish_logsumexp(call, a, j, v_log1p(v_loadr(a.rest + j))));
            continue;
        }
        V equal;
        if (!call->targets_are_probs) finish_gaps(call, a, j, &equal);
        finish_loss(call, a, j);
    }
    if (run->valid < run->n)
        for (int i = 0; i < run->n; i++)
            if (s->target[i] < 0) a.loss[i] = 0;
}

static void save_run(const FxCall *call, const FxScratch *s, const Run *run, Lanes a) {
    R *to = (R *)call->saved_out + 2 * run->first;
    for (int i = 0; i < run->n; i++) {
        if (s->target[i] < 0) a.max[i] = a.rest[i] = 0;
        to[2 * i] = call->transform ? a.max[i] : (R)(call->logit_scale * (double)a.max[i]);
        to[2 * i + 1] = a.rest[i];
    }
}

static double put_losses(const FxCall *call, const Run *run, const R *loss) {
    if (run->base[FX_LOSSES])
        EMIT(run->base[FX_LOSSES], call->operand[FX_LOSSES].dtype, run->step[FX_LOSSES], loss, run->n);
    if (call->position_loss) memcpy((R *)call->position_loss + run->first, loss, sizeof(R) * (size_t)run->n);
    double sum = 0;
    int i = 0;
    for (; i + LANES <= run->n; i += LANES) sum += v_hsum(v_loadr(loss + i));
    for (; i < run->n; i++) sum += (double)loss[i];
    return sum;
}

static double block_run(FxCall *call, FxScratch *s, Run *run, double *divisor) {
    const int op = call->operation, wants_output = call->operand[FX_OUT].data != NULL;
    const int wants_loss = op != FX_OP_GRAD && op != FX_OP_SOFTMAX && op != FX_OP_LOG_SOFTMAX;
    const int gradient = op == FX_OP_LOSS_GRAD || op == FX_OP_GRAD || op == FX_OP_NLL_GRAD || op == FX_OP_PROBS_GRAD;
    Lanes a = lanes_of(call, s);
    *divisor = read_positions(call, s, run, gradient);
    if (op >= FX_OP_SOFTMAX_GRAD) {
        activation_grad_run(call, s, run);
        return 0;
    }
    fill_given(call, s, a, run->n, gradient);
    if (op >= FX_OP_NLL) {
        pick_run(call, s, run, a);
        return put_losses(call, run, a.loss);
    }
    if (call->family == FX_ROWS) rows_run(call, s, run, a, wants_output);
    else if (call->family == FX_COLUMNS) columns_run(call, s, run, a, wants_output);
    else tiles_run(call, s, run, a, wants_output);
    if (call->saved_out) save_run(call, s, run, a);
    if (!wants_loss) return 0;
    losses_run(call, s, run, a);
    return put_losses(call, run, a.loss);
}

void KERNEL(block)(FxCall *call, FxScratch *s, int64_t block) {
    int64_t first, n;
    double total = 0, divisor = 0;
    fx_block_range(call, block, &first, &n);
    for (int64_t end = first + n; first < end;) {
        Run run;
        double share;
        run_at(call, first, end, &run);
        total += block_run(call, s, &run, &share);
        divisor += share;
        first += run.n;
    }
    call->partial[block][0] = total;
    call->partial[block][1] = divisor;
}
