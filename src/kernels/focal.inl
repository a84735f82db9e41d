/* Focal loss, from what cross-entropy has found of a position: -log p of the target is made (1 - p)^gamma as large, and
 * since d(1 - p)/dz_c = p·(p_c - [c = t]), the gradient is cross-entropy's times
 *     (1 - p)^gamma · (1 + gamma·p·(-log p)/(1 - p)).
 * A few numbers a position: in double. 1 - p is formed from the other classes where the target is the maximum, and p is at
 * most 1/2 elsewhere, so it keeps its digits; -log p and 1 - p go to 0 together, and their ratio to 1. */

typedef struct {
    double loss, slope;
} Focus;

/* gap: the maximum less the target's logit. */
static Focus focus(double gamma, double gap, double rest) {
    const double top = 1 / (1 + rest);
    if (gamma == 0 || !(gap >= 0 && rest >= 0)) return (Focus){1, 1}; /* also where the loss is NaN already */
    double p = gap == 0 ? top : fx_exp(-gap) * top, other = gap == 0 ? rest * top : 1 - p;
    if (other == 0) return (Focus){0, 0};
    /* log(1 - p) = -log1p(p/(1 - p)) */
    double power = gamma == 2 ? other * other : fx_exp(-gamma * fx_log1p(gap == 0 ? 1 / rest : p / other));
    double ratio = p > 0 ? p * (gap + fx_log1p(rest)) / other : 0;
    return (Focus){power, power * (1 + gamma * ratio)};
}

/* The incoming gradient of n positions from j on, whose targets' logits stand in gap. */
static FX_NOINLINE void focal_slopes(const FxCall *call, Lanes a, int j, int n) {
    for (int i = j; i < j + n; i++)
        a.upstream[i] =
            (R)((double)a.upstream[i] * focus(call->gamma, (double)(a.max[i] - a.gap[i]), (double)a.rest[i]).slope);
}

/* Their losses, once finish_loss has made them cross-entropy's. */
static FX_NOINLINE void focal_losses(const FxCall *call, Lanes a, int n) {
    for (int i = 0; i < n; i++)
        a.loss[i] = (R)((double)a.loss[i] * focus(call->gamma, (double)a.gap[i], (double)a.rest[i]).loss);
}
