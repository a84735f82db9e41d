/* Focal loss, from what cross-entropy has found of a position: -log p of the target is made (1 - p)^gamma as large, and
 * since d(1 - p)/dz_c = p·(p_c - [c = t]), the gradient is cross-entropy's times
 *     (1 - p)^gamma · (1 + gamma·p·(-log p)/(1 - p)).
 * 1 - p is formed from the other classes where the target is the maximum, and p is at most 1/2 elsewhere, so it keeps its
 * digits; -log p and 1 - p go to 0 together, and their ratio to 1. */

#define v_store_tail_r(p, a, n) FX_CAT(v_store_tail_, FX_REAL_NAME)((char *)(p), a, n)

/* The factors of losses and of slopes. gap: the maximum less the target's logit. */
static FX_INLINE void focus(double gamma, V gap, V rest, V *loss, V *slope) {
    const V zero = v_set1(0), one = v_set1(1), exponent = v_set1((R)gamma);
    const ExpScale k = exp_scale(1);
    M first = v_eq(gap, zero);
    V top = v_div(one, v_add(one, rest)), p = v_mul(top, v_select(first, one, v_exp(v_sub(zero, gap), k)));
    V other = v_select(first, v_mul(rest, top), v_sub(one, p)), power = v_mul(other, other);
    if (gamma != 2) {
        V odds = v_div(v_select(first, one, p), v_select(first, rest, other)); /* log(1 - p) = -log1p(p/(1 - p)) */
        power = v_exp(v_sub(zero, v_mul(exponent, v_log1p(odds))), k);
    }
    V ratio = v_drop(v_eq(p, zero), v_div(v_mul(p, v_add(gap, v_log1p(rest))), other));
    M sure = v_eq(other, zero);
    *loss = v_drop(sure, power);
    *slope = v_drop(sure, v_mul(power, v_fma(exponent, ratio, one)));
}

/* The incoming gradient of n positions from j on, whose targets' logits stand in gap. */
static FX_NOINLINE void focal_slopes(const FxCall *call, Lanes a, int j, int n) {
    if (call->gamma == 0) return;
    for (const int end = j + n; j < end; j += LANES) {
        V loss, slope, gap = v_sub(v_loadr(a.max + j), v_loadr(a.gap + j));
        focus(call->gamma, gap, v_loadr(a.rest + j), &loss, &slope);
        slope = v_mul(slope, v_loadr(a.upstream + j));
        if (end - j < LANES) v_store_tail_r(a.upstream + j, slope, end - j); /* the next are not ready yet */
        else v_storer(a.upstream + j, slope);
    }
}

/* The losses of n positions, once finish_loss has made them cross-entropy's. */
static FX_NOINLINE void focal_losses(const FxCall *call, Lanes a, int n) {
    if (call->gamma == 0) return;
    for (int j = 0; j < n; j += LANES) {
        V factor, slope;
        focus(call->gamma, v_loadr(a.gap + j), v_loadr(a.rest + j), &factor, &slope);
        v_storer(a.loss + j, v_mul(v_loadr(a.loss + j), factor));
    }
}
