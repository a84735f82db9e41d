/* LANES rows of few classes, one behind the other: a tile that never leaves the registers. Operation for operation what
 * panel_max, panel_sum and panel_write do, so a position's bits do not tell which of the two it went through. */

#if V_SPLITS || V_QUADS > 1
enum { FEW_CLASSES_MOST = V_SPLITS ? V_SPLITS : 8 };
#define FEW_ROWS 1

/* The lines of LANES rows at p. Fewer than four classes are read with what lies behind them, up to the next row's end. */
static FX_INLINE void few_lines(V x[], const char *p, const int classes) {
    FX_UNROLL
    for (int c = 0; c < classes; c++) FX_PREFETCH(p + TILE_AHEAD + c * LANES * SIZE);
#if V_SPLITS
    V r[V_SPLITS];
    FX_UNROLL
    for (int c = 0; c < classes; c++) r[c] = v_load(p + c * LANES * SIZE);
    FX_UNROLL
    for (int c = 0; c < classes; c++) x[c] = v_split(r, classes, c);
#else
    const char *row[LANES];
    V r[4];
    FX_UNROLL
    for (int l = 0; l < LANES; l++) row[l] = p + l * classes * SIZE;
    v_load_quads(row, 0, r);
    const int first = classes < 4 ? classes : 4;
    FX_UNROLL
    for (int c = 0; c < first; c++) x[c] = r[c];
    if (classes <= 4) return;
    v_load_quads(row, (classes - 4) * SIZE, r);
    FX_UNROLL
    for (int c = 4; c < classes; c++) x[c] = r[c - classes + 4];
#endif
}

/* The reverse. */
static FX_INLINE void few_store(char *to, V x[], const int classes) {
#if V_SPLITS
    FX_UNROLL
    for (int c = 0; c < classes; c++) v_store(to + c * LANES * SIZE, v_merge(x, classes, c));
#else
    char *row[LANES], quads[LANES][4 * SIZE];
    V r[4];
    FX_UNROLL
    for (int l = 0; l < LANES; l++) row[l] = classes < 4 ? quads[l] : to + l * classes * SIZE;
    FX_UNROLL
    for (int c = 0; c < 4; c++) r[c] = x[c < classes ? c : 0];
    v_store_quads(row, 0, r);
    if (classes > 4) v_store_quads(row, (classes - 4) * SIZE, x + classes - 4);
    if (classes >= 4) return;
    FX_UNROLL
    for (int l = 0; l < LANES; l++) memcpy(to + l * classes * SIZE, quads[l], (size_t)(classes * SIZE));
#endif
}

static FX_INLINE void few_run(const FxCall *call, ExpScale k, const char *p, char *to, const int64_t *target, Lanes a,
                              const int classes) {
    const V zero = v_set1(0), one = v_set1(1);
    const int indexed = call->operation <= FX_OP_LOSS_SOFTMAX, logarithm = call->operation == FX_OP_LOG_SOFTMAX;
    V x[FEW_CLASSES_MOST], e[FEW_CLASSES_MOST], sum[4] = {zero, zero, zero, zero}, max = v_set1(-(R)INFINITY), equal;
    few_lines(x, p, classes);
    FX_UNROLL
    for (int c = 0; c < classes; c++) max = v_max(x[c], max);
    if (classes == 2) { /* as below, but the exponential of 0 is known */
        M both = v_eq(x[0], x[1]), first = v_eq(x[0], max);
        V below = v_drop(both, v_exp(v_sub(v_select(first, x[1], x[0]), max), k));
        e[0] = v_select(first, one, below);
        e[1] = v_select(both, one, v_select(first, below, one));
        sum[0] = below;
        equal = v_keep(both, one);
    } else {
        N tops = v_none();
        FX_UNROLL
        for (int c = 0; c < classes; c++) {
            M top = v_eq(x[c], max);
            e[c] = v_exp(v_sub(x[c], max), k);
            sum[c & 3] = v_add(sum[c & 3], v_drop(top, e[c]));
            tops = v_tally(tops, top);
        }
        equal = v_sub(v_tallied(tops), one);
    }
    v_storer(a.max, max);
    v_storer(a.rest, v_add(equal, v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]))));
    V t = zero, gap = zero;
    if (indexed) {
        t = v_indices(target);
        FX_UNROLL
        for (int c = 0; c < classes; c++) gap = v_select(v_eq(t, v_set1((R)c)), x[c], gap);
        v_storer(a.gap, gap);
    }
    if (!to) return;
    if (call->focal) focal_slopes(call, a, 0, LANES);
    terms_at(call, a, 0);
    const V factor = v_loadr(a.factor), value = v_loadr(a.value), scale = v_set1((R)call->logit_scale);
    const M nothing = v_eq(factor, zero);
    FX_UNROLL
    for (int c = 0; c < classes; c++) {
        if (logarithm) x[c] = v_fms(v_sub(x[c], max), scale, factor);
        else x[c] = v_drop(nothing, v_mul(factor, e[c]));
        if (call->operation <= FX_OP_GRAD) x[c] = v_select(v_eq(t, v_set1((R)c)), value, x[c]);
    }
    few_store(to, x, classes);
}

static FX_NOINLINE void few_rows(const FxCall *call, const FxScratch *s, const Run *run, Lanes a, int n) {
    const char *p = run->base[FX_X];
    char *to = run->base[FX_OUT];
    const int64_t panel = call->classes * LANES * SIZE;
    const ExpScale scale = exp_scale(call->logit_scale);
    for (int k = 0; k < n; k += LANES, p += panel, to = to ? to + panel : NULL) {
        const int64_t *t = s->target + k;
        Lanes here = lanes_from(a, k);
        switch (call->classes) {
        case 2: few_run(call, scale, p, to, t, here, 2); break;
        case 3: few_run(call, scale, p, to, t, here, 3); break;
        case 4: few_run(call, scale, p, to, t, here, 4); break;
        case 5: few_run(call, scale, p, to, t, here, 5); break;
        case 6: few_run(call, scale, p, to, t, here, 6); break;
        case 7: few_run(call, scale, p, to, t, here, 7); break;
        default: few_run(call, scale, p, to, t, here, 8); break;
        }
    }
}

/* How many positions of the run few_rows can take: whole panels of a run without gaps. */
static int few_fit(const FxCall *call, const Run *run, int kind) {
    const FxOperand *x = &call->operand[FX_X], *out = &call->operand[FX_OUT];
    const int64_t row = call->classes * SIZE;
    if (call->classes < 2 || call->classes > FEW_CLASSES_MOST || kind != NONE || call->saved || run->index) return 0;
    if (call->targets_are_probs || !tile_is_plain(call, x) || run->step[FX_X] != row) return 0;
    if (out->data && (out->class_stride != SIZE || out->dtype != STORAGE || run->step[FX_OUT] != row)) return 0;
    const int spare = !V_SPLITS && call->classes < 4; /* few_lines reads into the next row */
    return run->valid > spare ? (run->valid - spare) / LANES * LANES : 0;
}
#else
#define FEW_ROWS 0
#endif
