/* The k largest of a row, in the order of their values, equal ones by their class.
 *
 * They are kept where the results will be, as a heap whose root goes first: the smallest value, of equal ones the largest
 * class. The sweep for the maximum leaves each group's largest behind; only groups that hold something above the root are
 * looked at again. So a row in any order costs little more than its sweep, unless it ascends. Classes come in ascending
 * order, and one that only equals the root comes too late. */

/* The logit of one class of one position as given, and z of it. */
static FX_INLINE R score_logit(const FxCall *call, const char *row, int64_t c) {
    const FxOperand *x = &call->operand[FX_X];
    const char *p = row + c * x->class_stride;
    if (x->dtype == STORAGE && !x->swapped) return load_one(p);
    R v;
    FETCH(&v, p, x->dtype, x->swapped, x->class_stride, 1);
    return v;
}
static FX_INLINE R score_z(const FxCall *call, R x) {
    R z[LANES];
    V slope;
    if (!call->transform) return x;
    v_storer(z, transform(call, v_set1(x), &slope));
    return z[0];
}

typedef struct {
    R *value;
    int64_t *class;
    int64_t size, have;
} Top;

/* Without branches: which of two comes first is anyone's guess. */
static FX_INLINE int top_after(R a, int64_t i, R b, int64_t j) { return (a < b) | ((a == b) & (i > j)); }

/* Puts (v, i) into the heap of n, from the free place `at` downwards. */
static FX_INLINE void top_sift(Top *top, int64_t n, int64_t at, R v, int64_t i) {
    R *value = top->value;
    int64_t *class = top->class;
    for (int64_t c = 2 * at + 1; c < n; c = 2 * at + 1) {
        const int64_t d = c + (c + 1 < n); /* the other child, if there is one */
        c += top_after(value[d], class[d], value[c], class[c]);
        if (!top_after(value[c], class[c], v, i)) break;
        value[at] = value[c];
        class[at] = class[c];
        at = c;
    }
    value[at] = v;
    class[at] = i;
}

static FX_NOINLINE void top_heapify(Top *top) {
    for (int64_t at = top->size / 2 - 1; at >= 0; at--) top_sift(top, top->size, at, top->value[at], top->class[at]);
}

/* row_max, and each group's largest; -inf for up to three groups after the last. */
static FX_INLINE R top_max(V groups[], const char *p, int64_t i, int64_t n, int direct, int paired) {
    const V low = v_set1(-(R)INFINITY);
    V best = low, v[4], *most = groups + i / GROUP;
    for (; i + GROUP <= n; i += GROUP, most++) {
        row_group(v, p, i, n, direct, paired);
        *most = v_max(v_max(v[0], v[1]), v_max(v[2], v[3]));
        best = v_max(*most, best);
    }
    if (i < n) {
        row_group(v, p, i, n, direct, paired);
        *most = v_max(v_max(v[0], v[1]), v_max(v[2], v[3]));
        best = v_max(*most++, best);
    }
    for (int u = 0; u < 3; u++) most[u] = low;
    return v_hmax(best);
}

/* Takes what belongs to the largest from the n classes at p, the first of them being class c0. */
static FX_INLINE void top_scan(Top *top, const V groups[], const char *p, int64_t c0, int64_t n, int direct) {
    const int plain = direct || STORAGE_IS_REAL;
    int64_t i = 0;
    for (; top->have < top->size && i < n; i++) {
        top->value[top->have] = plain ? load_one(p + i * SIZE) : ((const R *)p)[i];
        top->class[top->have++] = c0 + i;
        if (top->have == top->size) top_heapify(top);
    }
    if (top->have < top->size) return;
    for (int64_t g = i / GROUP; g * GROUP < n; g++) {
        V v[4];
        if (!v_any(v_lt(v_set1(top->value[0]), groups[g]))) continue;
        row_group(v, p, g * GROUP, n, direct, 0);
        for (int u = 0; u < 4; u++) {
            R lane[LANES];
            unsigned bits = v_bits(v_lt(v_set1(top->value[0]), v[u]));
            if (!bits) continue;
            v_storer(lane, v[u]);
            for (; bits; bits &= bits - 1) {
                int64_t l = FX_CTZ(bits), at = g * GROUP + u * LANES + l;
                if (at >= i && lane[l] > top->value[0]) top_sift(top, top->size, 0, lane[l], c0 + at);
            }
        }
    }
}

/* The heap in order, the largest first. */
static FX_NOINLINE void top_sort(Top *top) {
    for (int64_t n = top->have - 1; n > 0; n--) {
        R v = top->value[n];
        int64_t i = top->class[n];
        top->value[n] = top->value[0];
        top->class[n] = top->class[0];
        top_sift(top, n, 0, v, i);
    }
}

/* From the largest logits, in order, to their log-probabilities. */
static FX_NOINLINE void top_finish(const FxCall *call, Top *top, R max, double rest) {
    const double scale = call->transform ? 1 : call->logit_scale, log_rest = fx_log1p(rest);
    const int defined = max - max == 0 && rest == rest;
    for (int64_t i = 0; i < top->have; i++) {
        double below = scale * ((double)max - (double)score_z(call, top->value[i])) + log_rest;
        top->value[i] = defined ? (R)(0 - below) : (R)NAN;
        if (rest != rest) top->class[i] = -1;
    }
}
