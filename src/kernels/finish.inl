/* From what a pass over the classes found (max, rest, …) to losses and to the terms of the gradient: the same arithmetic
 * for rows and lanes, LANES positions at a time. With L = log1p(rest), gap = scale·(max - x_t):
 *   class index:    w_t·(1-e)·(gap + L) + e/C·(dot + W·L), W the sum of the class weights
 *   probabilities:  dot + W·L, W the sum of the coefficients
 * and the gradient is A·p_c - coefficient_c with A = W + 2·z_loss·logsumexp, except where a coefficient meets the maximum:
 * there p = 1 - rest/(1 + rest), so that nothing cancels. A row without a finite maximum becomes NaN.
 * 2·z_loss·logsumexp may be beyond the compute type where the gradient, being multiplied by 1/D, is not. So A and what it
 * is added to are formed as parts of call->unit, a power of two (1 for any usual z_loss) that keeps them within. */

/* a.gap holds the target's logit before finish_gaps and the scaled gap after it. */
static FX_INLINE void finish_gaps(const FxCall *call, Lanes a, int j, V *equal) {
    V d = v_sub(v_loadr(a.max + j), v_loadr(a.gap + j));
    *equal = v_keep(v_eq(d, v_set1(0)), v_set1(1));
    V gap = call->transform ? d : v_mul(d, v_set1((R)call->logit_scale));
    v_storer(a.gap + j, gap);
}

/* w_t·(1 - smoothing) and w_t, of LANES positions from j. */
static FX_INLINE V finish_weight(const FxCall *call, Lanes a, int j) {
    const V keep = v_set1((R)(1 - call->smoothing));
    return call->class_weight ? v_mul(keep, v_loadr(a.top + j)) : keep;
}

static FX_INLINE V finish_rest(Lanes a, int j) {
    M finite = v_lt(v_abs(v_loadr(a.max + j)), v_set1((R)INFINITY));
    return v_select(finite, v_loadr(a.rest + j), v_set1((R)NAN));
}

static FX_INLINE V finish_logsumexp(const FxCall *call, Lanes a, int j, V log_rest) {
    V max = v_loadr(a.max + j);
    return call->transform ? v_add(max, log_rest) : v_fma(max, v_set1((R)call->logit_scale), log_rest);
}

static FX_INLINE void finish_loss(const FxCall *call, Lanes a, int j) {
    const V smooth = v_set1((R)(call->smoothing / (double)call->classes)), zero = v_set1(0);
    const V scale = v_set1((R)(call->transform ? 1 : call->logit_scale));
    V log_rest = v_log1p(finish_rest(a, j)), loss;
    if (call->targets_are_probs) {
        loss = v_fma(v_loadr(a.mass + j), log_rest, v_mul(scale, v_loadr(a.dot + j)));
    } else {
        V weight = finish_weight(call, a, j), gap = v_drop(v_eq(weight, zero), v_loadr(a.gap + j));
        loss = v_mul(weight, v_add(gap, log_rest));
        if (call->smoothing != 0) {
            V all = v_fma(v_set1((R)call->class_weight_sum), log_rest, v_mul(scale, v_loadr(a.dot + j)));
            loss = v_fma(smooth, all, loss);
        }
    }
    if (call->z_loss != 0) {
        V lse = finish_logsumexp(call, a, j, log_rest);
        loss = v_fma(v_mul(v_set1((R)call->z_loss), lse), lse, loss); /* lse² may be too large */
    }
    if (a.sample) loss = v_mul(loss, v_loadr(a.sample + j));
    v_storer(a.loss + j, v_add(loss, zero)); /* + 0: never -0.0 */
}

/* factor, spread and value of LANES positions, for the pass that writes. `equal`: 1 where the target is the maximum. */
static FX_INLINE void finish_terms(const FxCall *call, Lanes a, int j, V equal) {
    const V one = v_set1(1), zero = v_set1(0);
    const double scale = call->transform ? 1 : call->logit_scale, smooth = call->smoothing / (double)call->classes;
    V rest = finish_rest(a, j), inverse = v_div(one, v_add(one, rest));
    if (call->operation == FX_OP_SOFTMAX || call->operation == FX_OP_LOSS_SOFTMAX) {
        v_storer(a.factor + j, inverse);
        return;
    }
    if (call->operation == FX_OP_LOG_SOFTMAX) {
        v_storer(a.factor + j, v_log1p(rest));
        return;
    }
    V upstream = a.upstream ? v_mul(v_set1((R)scale), v_loadr(a.upstream + j)) : v_set1((R)(scale * call->scale)),
      z = zero, mass, own, other = zero;
    if (call->z_loss != 0) {
        const double twice = 2 * call->z_loss / call->unit;
        z = v_fma(v_loadr(a.max + j), v_set1((R)(twice * scale)), v_mul(v_set1((R)twice), v_log1p(rest)));
    }
    if (call->targets_are_probs) {
        mass = v_loadr(a.mass + j);
        own = v_loadr(a.top + j); /* the coefficient that meets the maximum */
        other = v_sub(mass, own);
        v_storer(a.spread + j, upstream);
    } else {
        own = finish_weight(call, a, j);
        mass = v_add(own, v_set1((R)(smooth * call->class_weight_sum)));
        if (call->smoothing != 0) {
            V full = call->class_weight ? v_loadr(a.top + j) : one; /* the target's class weight */
            other = v_mul(v_set1((R)smooth), v_sub(v_set1((R)call->class_weight_sum), full));
            own = v_fma(v_set1((R)smooth), full, own);
            v_storer(a.spread + j, v_mul(upstream, v_set1((R)smooth)));
        }
    }
    if (call->unit != 1) {
        const V part = v_set1((R)(1 / call->unit));
        mass = v_mul(mass, part), own = v_mul(own, part), other = v_mul(other, part);
    }
    V total = v_add(mass, z), factor = v_mul(upstream, v_mul(total, inverse));
    V value = v_mul(inverse, v_add(z, v_fnma(own, rest, other)));
    if (!call->targets_are_probs) {
        V p = v_mul(inverse, v_exp(v_sub(zero, v_loadr(a.gap + j)), exp_scale(1)));
        value = v_select(v_lt(zero, equal), value, v_fms(total, p, own));
    }
    value = v_mul(upstream, value);
    if (call->unit != 1) {
        const V unit = v_set1((R)call->unit);
        factor = v_mul(factor, unit), value = v_mul(value, unit);
    }
    v_storer(a.factor + j, factor);
    v_storer(a.value + j, value);
}

/* factor, spread and value of LANES positions from j on, whose targets' logits stand in gap (and stay there). */
static FX_INLINE void terms_at(const FxCall *call, Lanes a, int j) {
    V equal = v_set1(0), target = v_loadr(a.gap + j);
    if (call->operation <= FX_OP_GRAD && !call->targets_are_probs) finish_gaps(call, a, j, &equal);
    finish_terms(call, a, j, equal);
    v_storer(a.gap + j, target);
}
