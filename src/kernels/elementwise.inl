/* Losses and activations of single elements: binary cross-entropy, squared and absolute differences, sigmoids.
 *
 * An element is a position without classes. A line of neighbouring elements is taken in chunks that stay in L1: values of
 * the compute type (in place where the memory holds just these), then loss and slope by one loop over the vocabulary that
 * differs in `element_at` alone, then weights and masks where there are any, then the results. All of a chunk is computed
 * before any of it is written, so results may replace their inputs. */

typedef struct {
    const char *x, *y; /* of the compute type; perhaps the caller's own memory */
    const R *positive; /* the factor of a target's share of 1 */
    R *loss, *slope;   /* results; a last vector may be written in full */
    int n;
    V parameter, scale; /* of the slope */
} Chunk;

/* log(1 + e) for 0 <= e <= 1, from w = e/(2 + e): 2·artanh w = w·(2 + w²·q(w²)), to 1e-9 or 3e-18. */
#if FX_REAL_BITS == 32
static const R artanh_poly[] = {0x1.555556p-1f, 0x1.9998d4p-2f, 0x1.24c926p-2f, 0x1.bc8cf8p-3f, 0x1.dba26p-3f};
#else
static const R artanh_poly[] = {0x1.5555555555555p-1, 0x1.9999999999944p-2, 0x1.2492492499d46p-2, 0x1.c71c71bedea97p-3,
                                0x1.745d19937b1fcp-3, 0x1.3b13515f6f9efp-3, 0x1.111abdc8abe16p-3, 0x1.e0a2d581ab68fp-4,
                                0x1.bc37f0140c19ep-4, 0x1.32e0d25c9c761p-4, 0x1.401d3e65cdc48p-3};
#endif
enum { ARTANH_TERMS = sizeof artanh_poly / sizeof(R) };

static FX_INLINE V log1p_of_ratio(V w) {
    V z = v_mul(w, w), q = v_set1(artanh_poly[ARTANH_TERMS - 1]);
    FX_UNROLL
    for (int i = ARTANH_TERMS - 2; i >= 0; i--) q = v_fma(q, z, v_set1(artanh_poly[i]));
    return v_fma(v_mul(w, z), q, v_add(w, w));
}

/* The two sides of a logit, each to its last digits: sigmoid(x) and sigmoid(-x), log(1 + exp x) and log(1 + exp -x). */
typedef struct {
    V on, off, softplus_on, softplus_off;
} Logistic;

static FX_INLINE Logistic logistic(V x, ExpScale k) {
    const V zero = v_set1(0), one = v_set1(1);
    V e = v_exp(v_sub(zero, v_abs(x)), k), a = v_add(one, e), b = v_add(a, one), over = v_div(one, v_mul(a, b));
    V high = v_mul(over, b), low = v_mul(e, high), l = log1p_of_ratio(v_mul(e, v_mul(a, over)));
    M negative = v_lt(x, zero);
    return (Logistic){.on = v_select(negative, low, high),
                      .off = v_select(negative, high, low),
                      .softplus_on = v_add(v_select(negative, zero, x), l),
                      .softplus_off = v_add(v_select(negative, v_sub(zero, x), zero), l)};
}

/* log(u) + rounding for 0 <= u <= 1, at least -100; NaN stays. */
static FX_INLINE V log_from_100(V u, V rounding) {
    const V floor = v_set1(-100);
    M low = v_lt(u, v_set1(FX_REAL_BITS == 32 ? (R)0x1p-126 : (R)0x1p-1022));
    V e, m = v_frexp(v_select(low, v_mul(u, v_set1((R)0x1p60)), u), &e);
    V y = log_sum(m, v_sub(e, v_keep(low, v_set1(60))), rounding);
    return v_select(v_lt(v_set1(0), u), v_max(floor, y), v_add(u, floor));
}

/* Cross-entropy of a probability. Targets are mostly 0 or 1: then one logarithm is enough. */
static FX_INLINE V binary_loss(V p, V y) {
    const V zero = v_set1(0), one = v_set1(1);
    V other = v_sub(one, p), lost = v_sub(v_sub(one, other), p); /* 1 - p, and what its rounding took */
    V share = v_div(lost, v_select(v_lt(zero, other), other, one));
    M on = v_eq(y, one), off = v_eq(y, zero);
    if ((v_bits(on) | v_bits(off)) == v_bits(v_eq(zero, zero)))
        return v_sub(zero, log_from_100(v_select(on, p, other), v_drop(on, share)));
    return v_sub(zero, v_fma(y, log_from_100(p, zero), v_mul(v_sub(one, y), log_from_100(other, share))));
}

/* share·value, but 0 for a share of 0 whatever the value is. */
static FX_INLINE V share_of(V share, V value) { return v_drop(v_eq(share, v_set1(0)), v_mul(share, value)); }

/* Loss and slope of one vector. Every sum is of terms that are not negative, so nothing cancels. */
static FX_INLINE void element_at(const int operation, V x, V y, V positive, V parameter, ExpScale k, V *loss,
                                 V *slope) {
    const V zero = v_set1(0), half = v_set1((R)0.5), one = v_set1(1);
    V d = v_sub(x, y), size = v_abs(d), off = v_sub(one, y);
    V sign = v_select(v_lt(zero, d), one, v_select(v_lt(d, zero), v_set1(-1), v_add(d, zero))); /* 0 and NaN stay */
    M near = v_lt(size, parameter);
    switch (operation) {
    case FX_OP_BINARY_PROBS:
        *loss = binary_loss(x, y);
        *slope = v_div(d, v_max(v_set1((R)1e-12), v_mul(v_sub(one, x), x)));
        break;
    case FX_OP_BINARY_LOGITS: {
        Logistic side = logistic(x, k);
        V on = v_mul(positive, y), sum = v_add(share_of(on, side.softplus_off), share_of(off, side.softplus_on));
        *loss = v_select(v_eq(x, x), sum, x);
        *slope = v_fms(off, side.on, v_mul(on, side.off));
        break;
    }
    case FX_OP_SQUARED:
        *loss = v_mul(d, d);
        *slope = v_add(d, d);
        break;
    case FX_OP_ABSOLUTE:
        *loss = size;
        *slope = sign;
        break;
    case FX_OP_HUBER:
        *loss = v_select(near, v_mul(half, v_mul(d, d)), v_mul(parameter, v_fnma(half, parameter, size)));
        *slope = v_select(near, d, v_mul(parameter, sign));
        break;
    case FX_OP_SMOOTH_L1: {
        V part = v_div(d, parameter);
        *loss = v_select(near, v_mul(half, v_mul(d, part)), v_fnma(half, parameter, size));
        *slope = v_select(near, part, sign);
        break;
    }
    case FX_OP_SIGMOID: {
        V e = v_exp(v_sub(zero, v_abs(x)), k), high = v_div(one, v_add(one, e));
        *slope = v_select(v_lt(x, zero), v_mul(e, high), high);
        break;
    }
    default: { /* FX_OP_LOG_SIGMOID: min(x, 0) - log(1 + exp -|x|) */
        V e = v_exp(v_sub(zero, v_abs(x)), k), l = log1p_of_ratio(v_div(e, v_add(v_add(one, one), e)));
        *slope = v_sub(v_select(v_lt(x, zero), x, zero), l);
    }
    }
}

static FX_INLINE void element_loop(const int operation, const Chunk *c, const int gradient) {
    const V zero = v_set1(0), parameter = c->parameter, scale = c->scale;
    const ExpScale k = exp_scale(1);
    for (int i = 0; i < c->n; i += LANES) {
        const char *xp = c->x + i * (int)sizeof(R), *yp = c->y + i * (int)sizeof(R);
        const int left = c->n - i;
        V x, y, loss = zero, slope = zero;
        if (left >= LANES) {
            x = v_loadr(xp);
            y = v_loadr(yp);
        } else {
            x = v_load_tail_r(xp, left, zero);
            y = v_load_tail_r(yp, left, zero);
        }
        V positive = operation == FX_OP_BINARY_LOGITS ? v_loadr(c->positive + i) : zero;
        element_at(operation, x, y, positive, parameter, k, &loss, &slope);
        if (operation >= FX_OP_SIGMOID) {
            v_storer(c->slope + i, slope);
            continue;
        }
        v_storer(c->loss + i, v_add(loss, zero)); /* + 0: never -0.0 */
        if (gradient) v_storer(c->slope + i, v_mul(slope, scale));
    }
}

static FX_NOINLINE void element_compute(int operation, const Chunk *c, int gradient) {
#define ELEMENTS(op)                                                                                                   \
    case op: gradient ? element_loop(op, c, 1) : element_loop(op, c, 0); break;
    switch (operation) {
        ELEMENTS(FX_OP_BINARY_PROBS)
        ELEMENTS(FX_OP_BINARY_LOGITS)
        ELEMENTS(FX_OP_SQUARED)
        ELEMENTS(FX_OP_ABSOLUTE)
        ELEMENTS(FX_OP_HUBER)
        ELEMENTS(FX_OP_SMOOTH_L1)
    case FX_OP_SIGMOID: element_loop(FX_OP_SIGMOID, c, 1); break;
    default: element_loop(FX_OP_LOG_SIGMOID, c, 1);
    }
#undef ELEMENTS
}

/* Reports the first valid probability that is outside [0, 1]. NaN is not. */
static FX_NOINLINE void element_check(FxCall *call, const char *x, const int64_t *target, int64_t first, int n) {
    const V zero = v_set1(0), one = v_set1(1);
    for (int i = 0; i < n; i += LANES) {
        const char *p = x + i * (int)sizeof(R);
        const int left = n - i;
        V v = left >= LANES ? v_loadr(p) : v_load_tail_r(p, left, zero);
        unsigned bits = v_bits(v_lt(v, zero)) | v_bits(v_lt(one, v));
        for (; bits; bits &= bits - 1) {
            int at = i + FX_CTZ(bits);
            if (target && target[at] < 0) continue;
            report_bad(call, first + at);
            return;
        }
    }
}

/* What mask and weights leave: read_positions has filled scratch->target, ->sample and ->upstream. */
static FX_NOINLINE void element_weigh(const FxCall *call, const FxScratch *s, R *loss, R *slope, int n) {
    const int64_t *target = s->target;
    if (call->operand[FX_WEIGHT].data)
        for (int i = 0; i < n; i++) loss[i] *= (R)s->sample[i];
    for (int i = 0; i < n; i++) loss[i] = target[i] < 0 ? 0 : loss[i];
    if (!call->operand[FX_OUT].data) return;
    if (!upstream_is_uniform(call))
        for (int i = 0; i < n; i++) slope[i] *= (R)s->upstream[i];
    for (int i = 0; i < n; i++) slope[i] = target[i] < 0 ? 0 : slope[i];
}

/* Writes a chunk's losses where they are wanted and returns their sum; in enough parts to keep up with memory. */
static double element_losses(const FxCall *call, const Run *part, const R *loss) {
    const int n = part->n;
    if (part->base[FX_LOSSES])
        EMIT(part->base[FX_LOSSES], call->operand[FX_LOSSES].dtype, part->step[FX_LOSSES], loss, n);
    if (call->position_loss) memcpy((R *)call->position_loss + part->first, loss, sizeof(R) * (size_t)n);
    double a[8] = {0}, b[8] = {0}, c[8] = {0}, d[8] = {0};
    int i = 0;
    for (; i + 32 <= n; i += 32) {
        for (int l = 0; l < 8; l++) a[l] += (double)loss[i + l];
        for (int l = 0; l < 8; l++) b[l] += (double)loss[i + 8 + l];
        for (int l = 0; l < 8; l++) c[l] += (double)loss[i + 16 + l];
        for (int l = 0; l < 8; l++) d[l] += (double)loss[i + 24 + l];
    }
    for (; i < n; i++) a[0] += (double)loss[i];
    for (int l = 0; l < 8; l++) a[l] += b[l] + (c[l] + d[l]);
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

/* One chunk of a line: returns the sum of its losses. */
static double element_chunk(FxCall *call, FxScratch *s, Run *part, int plain, int prepare, FxSum *divisor) {
    const int operation = call->operation, n = part->n, gradient = call->operand[FX_OUT].data != NULL;
    const FxOperand *out = &call->operand[FX_OUT], *x = &call->operand[FX_X], *y = &call->operand[FX_Y];
    const int checks = operation == FX_OP_BINARY_PROBS;
    R *loss = (R *)s->loss, *slope = (R *)s->emit;
    part->valid = n;
    fx_add(divisor, plain ? n : read_positions(call, s, part, gradient && !prepare));
    if (prepare && !checks) return 0;
    if (part->valid) {
        Chunk c = {.loss = loss,
                   .slope = slope,
                   .n = n,
                   .positive = (const R *)s->slope,
                   .parameter = v_set1((R)call->parameter),
                   .scale = v_set1(upstream_is_uniform(call) ? (R)call->scale : 1)};
        c.x = values_of(x, part->base[FX_X], part->step[FX_X], n, (R *)s->fetch);
        if (checks) element_check(call, c.x, plain ? NULL : s->target, part->first, n);
        if (prepare) return 0;
        c.y =
            y->data ? values_of(y, part->base[FX_Y], part->step[FX_Y], n, (R *)s->coefficient) : (const char *)s->tile;
        if (part->base[FX_POSITIVE])
            FETCH((R *)s->slope, part->base[FX_POSITIVE], FX_F64, 0, part->step[FX_POSITIVE], n);
        element_compute(operation, &c, gradient);
        if (!plain) element_weigh(call, s, loss, slope, n);
    } else {
        if (prepare) return 0;
        memset(loss, 0, sizeof(R) * (size_t)n);
        memset(slope, 0, sizeof(R) * (size_t)n);
    }
    if (gradient) put_values(call, out, part->base[FX_OUT], part->step[FX_OUT], slope, n);
    return operation < FX_OP_SIGMOID ? element_losses(call, part, loss) : 0;
}

static void element_block(FxCall *call, FxScratch *s, int64_t block, int prepare) {
    const FxOperand *o = call->operand;
    const int plain = !o[FX_MASK].data && !call->lengths && !call->position_weight && upstream_is_uniform(call);
    int64_t first, n;
    FxSum total = {0, 0}, divisor = {0, 0};
    fx_block_range(call, block, &first, &n);
    R *zeros = (R *)s->tile, *ones = (R *)s->slope; /* in place of absent operands */
    for (int i = 0; i < FX_MAX_WIDTH; i++) {
        zeros[i] = 0;
        ones[i] = 1;
    }
    for (int64_t end = first + n; first < end;) {
        Run run;
        run_at(call, first, end, &run);
        for (int done = 0, width; done < run.n; done += width) {
            Run part = run;
            width = run.n - done < FX_MAX_WIDTH ? run.n - done : FX_MAX_WIDTH;
            for (int k = 0; k < FX_OPERANDS; k++)
                if (part.base[k]) part.base[k] += done * part.step[k];
            /* Past the caches whole lines are written: chunks but the first start on one. */
            if (call->stream && done + width < run.n)
                width -= (int)((uintptr_t)(part.base[FX_OUT] + width * SIZE) % 64 / SIZE);
            part.first += done;
            part.n = part.reach = width;
            fx_add(&total, element_chunk(call, s, &part, plain, prepare, &divisor));
        }
        first += run.n;
    }
    call->partial[block][0] = fx_sum(total);
    call->partial[block][1] = fx_sum(divisor);
}

void KERNEL(elements)(FxCall *call, FxScratch *s, int64_t block) { element_block(call, s, block, 0); }
void KERNEL(elements_prepare)(FxCall *call, FxScratch *s, int64_t block) { element_block(call, s, block, 1); }
