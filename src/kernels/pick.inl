/* Losses that need no sum over exponentials: of given log-probabilities (x: -x) or probabilities (-log x), at the target's
 * class or weighted over the classes, and the plain masked sum of given losses (x itself). A coefficient of 0 skips its
 * term, whatever it multiplies. */

enum { IDENTITY, NEGATIVE, NEGATIVE_LOG };

static FX_INLINE V pick_value(V x, int form) {
    return form == IDENTITY ? x : form == NEGATIVE ? v_sub(v_set1(0), x) : v_sub(v_set1(0), v_log(x));
}

/* sum of coefficient · value over the classes of one row, and of the coefficients. */
static double pick_dot(const Row *row, int form) {
    const FxCall *call = row->call;
    const FxOperand *x = &call->operand[FX_X];
    double sum = 0, rounded = 0;
    R *p = (R *)row->scratch->fetch;
    for (int64_t c0 = 0; c0 < call->classes; c0 += FX_BLOCK) {
        int64_t n = call->classes - c0 < FX_BLOCK ? call->classes - c0 : FX_BLOCK;
        FETCH(p, row->x + c0 * x->class_stride, x->dtype, x->swapped, x->class_stride, n);
        const R *c = row_coefficients(row, c0, n);
        V total = v_set1(0), lost = total, part = total;
        for (int64_t i = 0; i < n; i += LANES) {
            int m = n - i < LANES ? (int)(n - i) : LANES;
            V w = v_load_tail_r(c + i, m, v_set1(0)), v = pick_value(v_load_tail_r(p + i, m, v_set1(1)), form);
            part = v_add(part, v_drop(v_eq(w, v_set1(0)), v_mul(w, v)));
            if (i / LANES % 8 != 7) continue;
            add_exactly(&total, &lost, part); /* no long chain: equal terms err the same way each time */
            part = v_set1(0);
        }
        add_exactly(&total, &lost, part);
        const double add = v_hsum(with_lost(total, lost)), all = sum + add, own = all - sum;
        rounded += (sum - (all - own)) + (add - own);
        sum = all;
    }
    return rounded == rounded ? sum + rounded : sum;
}

/* The gradient of one row: upstream · coefficient · slope, for probabilities as targets. */
static void pick_write(const Row *row, int form, double upstream, char *to) {
    const FxCall *call = row->call;
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    R *p = (R *)row->scratch->fetch, *y = (R *)row->scratch->emit;
    for (int64_t c0 = 0; c0 < call->classes; c0 += FX_BLOCK) {
        int64_t n = call->classes - c0 < FX_BLOCK ? call->classes - c0 : FX_BLOCK;
        FETCH(p, row->x + c0 * x->class_stride, x->dtype, x->swapped, x->class_stride, n);
        const R *c = row_coefficients(row, c0, n);
        for (int64_t i = 0; i < n; i += LANES) {
            int m = n - i < LANES ? (int)(n - i) : LANES;
            V w = v_load_tail_r(c + i, m, v_set1(0)), v = v_load_tail_r(p + i, m, v_set1(1));
            V g = v_mul(v_set1(-(R)upstream), w);
            if (form == NEGATIVE_LOG) g = v_div(g, v); /* the quotient last: 1/p of a tiny p may overflow */
            v_storer(y + i, v_drop(v_eq(w, v_set1(0)), g));
        }
        EMIT(to + c0 * out->class_stride, out->dtype, out->class_stride, y, n);
    }
}

static void write_zeros(const FxCall *call, char *to) {
    const FxOperand *out = &call->operand[FX_OUT];
    int size = out->dtype == FX_F64 ? 8 : out->dtype == FX_F32 ? 4 : 2;
    if (out->class_stride == size) {
        int64_t bytes = size * call->classes, i = 0;
        if (call->stream && (uintptr_t)to % SIZE == 0 && size == SIZE) {
            int64_t head = (int64_t)((uintptr_t)-(uintptr_t)to % (LANES * SIZE));
            if (head > bytes) head = bytes;
            memset(to, 0, (size_t)head);
            for (i = head; i + LANES * SIZE <= bytes; i += LANES * SIZE) v_stream(to + i, v_set1(0));
        }
        memset(to + i, 0, (size_t)(bytes - i));
        return;
    }
    for (int64_t c = 0; c < call->classes; c++) memset(to + c * out->class_stride, 0, (size_t)size);
}

static void pick_run(FxCall *call, FxScratch *s, const Run *run, Lanes a) {
    const int op = call->operation, gradient = op == FX_OP_NLL_GRAD || op == FX_OP_PROBS_GRAD;
    const int form = op == FX_OP_REDUCE ? IDENTITY : op <= FX_OP_NLL_GRAD ? NEGATIVE : NEGATIVE_LOG;
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    for (int k = 0; k < run->valid; k++) {
        const int64_t i = place(run, k), t = s->target[k];
        char *to = at_position(run, FX_OUT, i);
        Row row = {.call = call, .scratch = s, .x = at_position(run, FX_X, i)};
        double upstream = a.upstream ? s->upstream[k] : call->scale;
        a.loss[k] = 0;
        double w = a.sample ? s->sample[k] : 1;
        if (call->targets_are_probs) {
            row.q = at_position(run, FX_Y, i + call->shift);
            a.loss[k] = (R)(w * pick_dot(&row, form)) + 0;
            if (gradient) pick_write(&row, form, upstream, to);
            continue;
        }
        double coefficient = call->class_weight ? call->class_weight[t] : 1;
        R logit, slot[LANES];
        FETCH(&logit, row.x + t * x->class_stride, x->dtype, x->swapped, x->class_stride, 1);
        v_storer(slot, pick_value(v_set1(logit), form));
        if (coefficient != 0) a.loss[k] = (R)(w * coefficient * (double)slot[0]) + 0;
        if (!gradient) continue;
        double slope = form == NEGATIVE ? -1 : -1 / (double)logit;
        slot[0] = coefficient != 0 ? (R)(upstream * coefficient * slope) : 0;
        write_zeros(call, to);
        EMIT(to + t * out->class_stride, out->dtype, out->class_stride, slot, 1);
    }
}

/* Backward of softmax, y·(g - sum g·y), and of log-softmax, g - exp(y)·sum g, from the output y and the upstream g. */
static void activation_grad_run(FxCall *call, FxScratch *s, const Run *run) {
    const FxOperand *x = &call->operand[FX_X], *u = &call->operand[FX_Y], *out = &call->operand[FX_OUT];
    const int logarithm = call->operation == FX_OP_LOG_SOFTMAX_GRAD;
    const ExpScale k = exp_scale(1);
    R *y = (R *)s->fetch, *g = (R *)s->coefficient, *to = (R *)s->emit;
    for (int i = 0; i < run->n; i++) {
        const char *xp = at_position(run, FX_X, i), *up = at_position(run, FX_Y, i);
        char *op = at_position(run, FX_OUT, i);
        double sum = 0;
        for (int pass = 0; pass < 2; pass++)
            for (int64_t c0 = 0; c0 < call->classes; c0 += FX_BLOCK) {
                int n = call->classes - c0 < FX_BLOCK ? (int)(call->classes - c0) : FX_BLOCK;
                FETCH(y, xp + c0 * x->class_stride, x->dtype, x->swapped, x->class_stride, n);
                FETCH(g, up + c0 * u->class_stride, u->dtype, u->swapped, u->class_stride, n);
                V total = v_set1(0), all = v_set1((R)sum);
                for (int j = 0; j < n; j += LANES) {
                    int m = n - j < LANES ? n - j : LANES;
                    V yv = v_load_tail_r(y + j, m, v_set1(0)), gv = v_load_tail_r(g + j, m, v_set1(0));
                    if (!pass) total = logarithm ? v_add(total, gv) : v_fma(yv, gv, total);
                    else if (logarithm) v_storer(to + j, v_fnma(v_exp(yv, k), all, gv));
                    else v_storer(to + j, v_mul(yv, v_sub(gv, all)));
                    if (!pass && j / LANES % 32 == 31) { /* no long chain of roundings */
                        sum += v_hsum(total);
                        total = v_set1(0);
                    }
                }
                if (!pass) sum += v_hsum(total);
                else EMIT(op + c0 * out->class_stride, out->dtype, out->class_stride, to, n);
            }
    }
}
