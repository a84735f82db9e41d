/* A block of positions, from its targets to its results: the entry points of one storage type on one instruction set. */

static Lanes lanes_of(const FxCall *call, FxScratch *s) {
    return (Lanes){.max = (R *)s->max,
                   .rest = (R *)s->rest,
                   .gap = (R *)s->gap,
                   .dot = (R *)s->dot,
                   .mass = (R *)s->mass,
                   .top = (R *)s->top,
                   .factor = (R *)s->factor,
                   .spread = (R *)s->spread,
                   .value = (R *)s->value,
                   .loss = (R *)s->loss,
                   .lower = (R *)s->lower,
                   .at = (R *)s->at,
                   .met = (R *)s->met,
                   .count = (R *)s->count,
                   .sample = call->operand[FX_WEIGHT].data ? (R *)s->sample_r : NULL,
                   .upstream = upstream_is_uniform(call) ? NULL : (R *)s->upstream_r};
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
static void fill_given(const FxCall *call, const FxScratch *s, Lanes a, int n) {
    if (call->class_weight && !call->targets_are_probs)
        for (int i = 0; i < n; i++) a.top[i] = (R)(s->target[i] >= 0 ? call->class_weight[s->target[i]] : 1);
    if (a.sample)
        for (int i = 0; i < n; i++) a.sample[i] = (R)s->sample[i];
    if (a.upstream)
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

/* The first run->valid entries of s->target are the valid positions here and in tiles_run: see close_up. */
static void rows_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    const int kind = coefficient_kind(call), logarithm = call->operation == FX_OP_LOG_SOFTMAX;
    const int softmax = call->operation >= FX_OP_LOSS_SOFTMAX,
              indexed = call->operation <= FX_OP_LOSS_SOFTMAX && !call->targets_are_probs;
    const FxOperand *x = &call->operand[FX_X];
    const int direct = x->class_stride == SIZE && x->dtype == STORAGE && !x->swapped && !call->transform;
    /* The next row's maximum is found before this row's sum: no row waits for its own. */
    const int peek = direct && !call->saved && call->classes <= FX_BLOCK && run->valid;
    R first = 0, second = 0;
    /* Exponentials that the cache holds are multiplied, not made again; whatever the layouts, so that bits do not tell. */
    const int keep =
        wants_output && !call->saved && !call->transform && !logarithm && call->classes <= V_KEEPS / (int64_t)sizeof(R);
    if (peek) second = row_peek(call, at_position(run, FX_X, place(run, 0)));
    for (int k = 0; k < run->valid; k++) {
        int64_t i = place(run, k), at = softmax ? -1 : s->target[k];
        const char *next = row_after(run, k);
        first = second;
        if (peek && next) second = row_peek(call, next);
        Row row = {.call = call,
                   .scratch = s,
                   .direct = direct,
                   .x = at_position(run, FX_X, i),
                   .next = peek && next ? row_after(run, k + 1) : next,
                   .peeked = peek,
                   .first = first,
                   .kept = keep ? (R *)s->kept : NULL};
        if (call->targets_are_probs) row.q = at_position(run, FX_Y, i + call->shift);
        if (call->saved) {
            read_saved(call, run->first + i, &a.max[k], &a.rest[k]);
        } else {
            RowStats stats;
            row_forward(&row, kind, &stats);
            a.max[k] = stats.max;
            a.rest[k] = (R)stats.rest;
            a.dot[k] = (R)stats.dot;
            a.mass[k] = (R)stats.weight;
            if (call->targets_are_probs && !softmax && wants_output) {
                at = row_argmax(&row, &stats);
                a.top[k] = at >= 0 ? row_coefficients(&row, at, 1)[0] : 0;
            }
        }
        a.gap[k] = indexed ? read_logit(call, row.x, s->target[k]) : 0;
        if (!wants_output) continue;
        if (call->focal) focal_slopes(call, a, k, 1);
        terms_at(call, a, k);
        RowWrite w = {.max = a.max[k],
                      .factor = logarithm ? (call->transform ? 1 : call->logit_scale) : a.factor[k],
                      .spread = a.spread[k],
                      .shift = a.factor[k],
                      .value = a.value[k],
                      .at = at,
                      .kind = softmax ? NONE : kind,
                      .logarithm = logarithm};
        row_write(&row, &w, at_position(run, FX_OUT, i));
    }
}

/* The class of the maximum of one lane, and its coefficient: the term that must not cancel. */
static int64_t find_top(const FxCall *call, FxScratch *s, const char *x, const char *q, R max, R *top) {
    Row row = {.call = call, .scratch = s, .x = x, .q = q};
    for (int64_t c = 0; c < call->classes; c++)
        if (read_logit(call, x, c) == max) {
            *top = row_coefficients(&row, c, 1)[0];
            return c;
        }
    *top = 0;
    return -1;
}

/* A panel whose positions are target[0 … width - 1], at place(run, first + j) in the run. */
static FX_INLINE void panel_run(FxCall *call, const Run *run, Panel *panel, Lanes a, int first, int kind,
                                int wants_output) {
    FxScratch *s = panel->scratch;
    const int width = panel->width, softmax = call->operation >= FX_OP_LOSS_SOFTMAX;
    const int indexed = call->operation <= FX_OP_LOSS_SOFTMAX && !call->targets_are_probs;
    const FxOperand *x = &call->operand[FX_X];
    const int64_t *target = s->target + first, *at = target;
    int64_t tops[LANES];
    if (call->saved) {
        for (int j = 0; j < width; j++) read_saved(call, run->first + place(run, first + j), &a.max[j], &a.rest[j]);
        for (int j = width; j % LANES; j++) a.max[j] = a.rest[j] = 0;
    } else if (panel->columns) {
        column_forward(panel, a, kind);
    } else {
        panel_max(panel, a);
    }
    if (indexed && panel->packed_from == 0 && call->classes <= FX_TILE_CLASSES) {
        const R *tile = (const R *)s->tile; /* all of the panel's logits */
        for (int j = 0; j < width; j++) a.gap[j] = tile[target[j] * LANES + j];
    } else if (indexed && x->dtype == STORAGE && !x->swapped && !call->transform) {
        for (int j = 0; j < width; j++) {
            int64_t t = target[j] < 0 ? 0 : target[j];
            a.gap[j] = load_one(at_position(run, FX_X, place(run, first + j)) + t * x->class_stride);
        }
    } else if (indexed) {
        for (int j = 0; j < width; j++)
            a.gap[j] = read_logit(call, at_position(run, FX_X, place(run, first + j)), target[j] < 0 ? 0 : target[j]);
    }
    if (!call->saved && !panel->columns) panel_sum_kind(panel, a, kind);
    if (!wants_output) return;
    for (int j = width; j % LANES; j++) a.gap[j] = 0;
    if (!softmax && call->targets_are_probs) {
        for (int j = 0; j < width; j++) tops[j] = find_top(call, s, panel->row[j], panel->q[j], a.max[j], &a.top[j]);
        at = tops;
    }
    if (call->focal) focal_slopes(call, a, 0, width);
    for (int j = 0; j < width; j += LANES) terms_at(call, a, j);
    if (panel->columns)
        for (int j = 0; j < width; j++)
            if (target[j] < 0) a.factor[j] = a.spread[j] = 0;
    if (panel->columns && panel->kept) column_write(panel, a, softmax ? NULL : at, softmax ? NONE : kind);
    else panel_write(panel, a, softmax ? NULL : at, softmax ? NONE : kind, call->operation == FX_OP_LOG_SOFTMAX);
}

static void columns_clear(const FxCall *call, const Run *run, const Panel *panel, Lanes a, int wants_output) {
    const size_t n = sizeof(R) * (size_t)panel->width;
    memset(a.max, 0, n);
    memset(a.rest, 0, n);
    memset(a.gap, 0, n);
    memset(a.dot, 0, n);
    memset(a.mass, 0, n);
    if (!wants_output) return;
    for (int l = 0; panel->gathered && l < panel->width; l++)
        write_zeros(call, at_position(run, FX_OUT, panel->first + l));
    for (int64_t c = 0; !panel->gathered && c < call->classes; c++)
        memset(panel->out_lines + c * call->operand[FX_OUT].class_stride + panel->skip * SIZE, 0,
               (size_t)(panel->width - panel->skip) * SIZE);
}

static void columns_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    const int kept = column_kept_width(call), past = columns_past(call, run), n = run->reach + past;
    const int parts = kept && run->reach > kept ? (n + kept - 1) / kept : 1;
    const int width = ((n + parts - 1) / parts + 15) / 16 * 16;
    for (int first = 0; first < run->reach;) {
        Panel panel = column_open(call, s, run, first, first ? width : width - past, wants_output);
        panel.keep = kept > 0;
        int valid = 0;
        for (int j = first; j < first + panel.width; j++) valid |= s->target[j] >= 0;
        if (valid) panel_run(call, run, &panel, lanes_from(a, first), first, coefficient_kind(call), wants_output);
        else columns_clear(call, run, &panel, lanes_from(a, first), wants_output);
        first += panel.width;
    }
}

static void tiles_run(FxCall *call, FxScratch *s, const Run *run, Lanes a, int wants_output) {
    const int kind = coefficient_kind(call);
    int done = 0;
#if FEW_ROWS
    done = few_fit(call, run, kind);
    if (done) few_rows(call, s, run, a, done);
#endif
    Panel panel = {.call = call,
                   .scratch = s,
                   .k = panel_scale(call),
                   .keep = wants_output && call->operation != FX_OP_LOG_SOFTMAX && call->classes <= FX_TILE_CLASSES};
    for (int k = done; k < run->valid; k += LANES) {
        tile_open(&panel, run, k);
        panel_run(call, run, &panel, lanes_from(a, k), k, kind, wants_output);
    }
}

/* Losses from the stats of n positions; for log-sum-exp the result itself. */
static void losses_run(const FxCall *call, Lanes a, int n) {
    for (int j = 0; j < n; j += LANES) {
        if (call->operation == FX_OP_LOGSUMEXP) {
            v_storer(a.loss + j, finish_logsumexp(call, a, j, v_log1p(v_loadr(a.rest + j))));
            continue;
        }
        V equal;
        if (!call->targets_are_probs) finish_gaps(call, a, j, &equal);
        finish_loss(call, a, j);
    }
    if (call->focal) focal_losses(call, a, n);
}

static void save_run(const FxCall *call, const FxScratch *s, const Run *run, Lanes a, int closed_up) {
    R *to = (R *)call->saved_out + 2 * run->first;
    if (run->valid < run->n) memset(to, 0, 2 * sizeof(R) * (size_t)run->n);
    for (int k = 0; k < (closed_up ? run->valid : run->n); k++) {
        int64_t i = place(run, k);
        if (s->target[k] < 0) continue;
        to[2 * i] = call->transform ? a.max[k] : (R)(call->logit_scale * (double)a.max[k]);
        to[2 * i + 1] = a.rest[k];
    }
}

/* From the valid positions' losses to all positions'. */
static void open_up(const Run *run, R *loss, R *spare) {
    memcpy(spare, loss, sizeof(R) * (size_t)run->valid);
    memset(loss, 0, sizeof(R) * (size_t)run->n);
    for (int k = 0; k < run->valid; k++) loss[run->index[k]] = spare[k];
}

/* The output of the invalid positions. */
static void clear_invalid(const FxCall *call, const FxScratch *s, const Run *run) {
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    const int64_t row = call->classes * SIZE;
    const int together = out->class_stride == SIZE && out->dtype == STORAGE && run->step[FX_OUT] == row;
    if (together && row <= FX_CLEAR_BYTES && out->data != x->data) { /* cheaper than to tell them apart */
        memset(run->base[FX_OUT], 0, (size_t)(run->n * row));
        return;
    }
    for (int i = 0; i < run->n; i++)
        if (s->target[i] < 0) write_zeros(call, at_position(run, FX_OUT, i));
}

static double put_losses(const FxCall *call, const Run *run, const R *loss) {
    if (run->base[FX_LOSSES])
        EMIT(run->base[FX_LOSSES], call->operand[FX_LOSSES].dtype, run->step[FX_LOSSES], loss, run->n);
    if (call->position_loss) memcpy((R *)call->position_loss + run->first, loss, sizeof(R) * (size_t)run->n);
    double part[8] = {0};
    const R *end = loss + run->n;
    for (; loss + 8 <= end; loss += 8) {
        FX_UNROLL
        for (int l = 0; l < 8; l++) part[l] += (double)loss[l];
    }
    for (; loss < end; loss++) part[0] += (double)*loss;
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

static double block_run(FxCall *call, FxScratch *s, Run *run, double *divisor) {
    const int op = call->operation, wants_output = call->operand[FX_OUT].data != NULL;
    const int wants_loss = op != FX_OP_GRAD && op != FX_OP_SOFTMAX && op != FX_OP_LOG_SOFTMAX;
    const int gradient = op == FX_OP_LOSS_GRAD || op == FX_OP_GRAD || op == FX_OP_NLL_GRAD || op == FX_OP_PROBS_GRAD;
    const int closing = call->family != FX_COLUMNS || op >= FX_OP_NLL;
    Lanes a = lanes_of(call, s);
    if (!closing) {
        columns_reach(call, run);
        a = lanes_from(a, columns_past(call, run)); /* so that their vectors begin where the streamed ones do */
    }
    *divisor = read_positions(call, s, run, gradient);
    if (!run->valid && !wants_output && op < FX_OP_STATISTICS && !call->saved_out && !call->position_loss &&
        !run->base[FX_LOSSES])
        return 0;
    if (op >= FX_OP_STATISTICS) {
        statistics_run(call, s, run, a);
        return 0;
    }
    if (op >= FX_OP_SOFTMAX_GRAD) {
        activation_grad_run(call, s, run);
        return 0;
    }
    if (closing && run->valid < run->n) {
        if (wants_output) clear_invalid(call, s, run);
        if (!run->leading) close_up(call, s, run);
    }
    fill_given(call, s, a, closing ? run->valid : run->reach);
    if (op >= FX_OP_NLL) pick_run(call, s, run, a);
    else if (call->family == FX_ROWS) rows_run(call, s, run, a, wants_output);
    else if (call->family == FX_COLUMNS) columns_run(call, s, run, a, wants_output);
    else tiles_run(call, s, run, a, wants_output);
    if (call->saved_out) save_run(call, s, run, a, closing);
    if (!wants_loss) return 0;
    if (op < FX_OP_NLL) losses_run(call, a, closing ? run->valid : run->n);
    if (run->index) open_up(run, a.loss, a.factor);
    else if (run->valid < run->n)
        for (int i = 0; i < run->n; i++)
            if (s->target[i] < 0) a.loss[i] = 0;
    return put_losses(call, run, a.loss);
}

void KERNEL(block)(FxCall *call, FxScratch *s, int64_t block) {
    int64_t first, n;
    FxSum total = {0, 0}, divisor = {0, 0};
    fx_block_range(call, block, &first, &n);
    for (int64_t end = first + n; first < end;) {
        Run run;
        double share;
        run_at(call, first, end, &run);
        fx_add(&total, block_run(call, s, &run, &share));
        fx_add(&divisor, share);
        first += run.n;
    }
    call->partial[block][0] = fx_sum(total);
    call->partial[block][1] = fx_sum(divisor);
}
