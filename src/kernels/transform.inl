/* Single elements, and z from x where that cannot be left to the exponential. */

static FX_INLINE R load_one(const char *p) { return FX_CAT(load_one_, FX_STORAGE)(p); }
static FX_INLINE void store_one(char *p, R v) { FX_CAT(store_one_, FX_STORAGE)(p, v); }

/* z = softcap·tanh(scale·x/softcap), or scale·x for a scale so small that differences times it would vanish, and dz/dx.
 * An infinite logit stays infinite (a removed class stays removed), with the slope of the middle. */
static FX_INLINE V transform(const FxCall *call, V x, V *slope) {
    const V scale = v_set1((R)call->logit_scale);
    M finite = v_lt(v_abs(x), v_set1((R)INFINITY));
    if (call->softcap <= 0) {
        *slope = scale;
        return v_select(finite, v_mul(x, scale), x);
    }
    const double ratio = call->logit_scale / call->softcap;
    V bend, t = v_tanh(v_mul(x, v_set1((R)(ratio < 1e37 ? ratio : 1e37))), &bend);
    *slope = v_select(finite, v_mul(scale, bend), scale);
    return v_select(finite, v_mul(v_set1((R)call->softcap), t), x);
}
