/* exp, log, log1p and tanh over the vocabulary.
 *
 * exp(k·x) for x <= about 1/k: with y = x·k·log2 e, n = y rounded to a multiple of 2^-EXP_TABLE_BITS and f = y - n from a
 * fused product (so that only k·log2 e and x were rounded), 2^n·(1 + f·q(f)). Instruction sets that can look up a table in a
 * register keep the powers 2^(i/8) or 2^(i/16) there, and q is short. q is a minimax polynomial: the worst relative error
 * of 1 + f·q(f) is 2e-9, 2.6e-8, 1.6e-9 (float32 with 0, 3, 4 bits) and 3.4e-18, 7e-18 (float64 with 0, 4 bits). -inf gives
 * exactly 0, 0 gives exactly 1, NaN stays.
 * log1p(s) for s >= 0: u = 1 + s, log u + (s - (u - 1))/u, where log u = e·ln 2 + log m and
 * log m = f - (f²/2 - w·(f²/2 + R(w²))), f = m - 1, w = f/(2 + f); R is fitted for |w| <= 0.2 to 3e-11 and 2e-17. */

#if FX_REAL_BITS == 32
static const R exp2_poly[] = {0x1.62e430af23730p-1f, 0x1.ebfbdc3c250d6p-3f,  0x1.c6aee88ec9b69p-5f,
                              0x1.3b2d4cef7c20bp-7f, 0x1.5f3e5369c55f6p-10f, 0x1.41fbc1ca0d261p-13f};
static const R log_poly[] = {0x1.555554737fb2bp-1f, 0x1.999b88b28b440p-2f, 0x1.23f6542e4f080p-2f,
                             0x1.ec5887c3512f4p-3f};
#if EXP_TABLE_BITS == 4
static const R exp_poly[] = {0x1.62e430p-1f, 0x1.ebfff4p-3f, 0x1.c6ac6ap-5f};
#elif EXP_TABLE_BITS == 3
static const R exp_poly[] = {0x1.62e432p-1f, 0x1.ec0c32p-3f, 0x1.c6a004p-5f};
#endif
static const R exp_magic = 0x1.8p23f / (1 << EXP_TABLE_BITS);
static const R ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
#else
static const R exp2_poly[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5a4p-3,  0x1.c6b08d7049fe8p-5,
                              0x1.3b2ab6fba011ap-7,  0x1.5d87fe78cd711p-10, 0x1.4309130ed8c73p-13,
                              0x1.ffcbfba96f4f3p-17, 0x1.62bfc79d4fc9cp-20, 0x1.b5267d00ef850p-24,
                              0x1.e61b4fa510fe6p-28, 0x1.e79b8a6429c12p-32};
static const R log_poly[] = {0x1.5555555555618p-1, 0x1.9999999938519p-2, 0x1.249249896f43cp-2, 0x1.c71c173929bbcp-3,
                             0x1.7471e07d971a6p-3, 0x1.3887a4d8e16d8p-3, 0x1.3950e3ada2c48p-3};
#if EXP_TABLE_BITS == 4
static const R exp_poly[] = {0x1.62e42fefa39fdp-1, 0x1.ebfbdff82c554p-3,  0x1.c6b08d6e8b71cp-5,
                             0x1.3b2ab6fe22366p-7, 0x1.5d89bde47cc7ep-10, 0x1.43081c16ef6fdp-13};
#endif
static const R exp_magic = 0x1.8p52 / (1 << EXP_TABLE_BITS);
static const R ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
#endif
#if EXP_TABLE_BITS == 0
#define exp_poly exp2_poly
#endif
enum {
    EXP_TERMS = sizeof exp_poly / sizeof(R),
    EXP2_TERMS = sizeof exp2_poly / sizeof(R),
    LOG_TERMS = sizeof log_poly / sizeof(R),
};

/* a·b - product, exactly, without a fused multiply (Dekker). */
static inline double product_error(double a, double b, double product) {
    double p = a * 134217729.0, q = b * 134217729.0;
    double ah = p - (p - a), bh = q - (q - b), al = a - ah, bl = b - bh;
    return ((ah * bh - product) + ah * bl + al * bh) + al * bl;
}

/* The constants of exp(scale·x); low is what high lacks, for those who cannot fuse. */
typedef struct {
    V high, low, lowest;
} ExpScale;

static FX_INLINE ExpScale exp_scale(double scale) {
    const double log2e = 0x1.71547652b82fep+0, log2e_low = 0x1.777d0ffda0d24p-56;
    const double largest = FX_REAL_BITS == 32 ? 1e37 : 1e280;
    double s = scale < largest ? scale : largest, k = s * log2e;
    R high = (R)k;
    /* In float64 high is the rounded product itself, and what it lost is computed. */
    double low = FX_REAL_BITS == 32 ? k - (double)high : product_error(s, log2e, k) + s * log2e_low;
    return (ExpScale){v_set1(high), v_set1((R)low), v_set1((R)(EXP_LOWEST / s))};
}

/* The next lower number; of -inf it is NaN, which nothing is larger than. */
static FX_INLINE R next_lower(R x) {
#if FX_REAL_BITS == 32
    int32_t bits;
#else
    int64_t bits;
#endif
    if (x == 0) x = -(R)0;
    memcpy(&bits, &x, sizeof(x));
    bits += bits < 0 ? 1 : -1;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

/* exp of `count` vectors, step by step for all of them: a processor sees more independent work in the same window. */
static FX_INLINE void v_exps(V e[], const V x[], const int count, ExpScale k) {
    const V magic = v_set1(exp_magic);
    V inside[4], y[4], n[4], f[4], q[4];
    FX_UNROLL
    for (int u = 0; u < count; u++) inside[u] = EXP_CLAMPS ? v_max(k.lowest, x[u]) : x[u];
    FX_UNROLL
    for (int u = 0; u < count; u++) y[u] = v_fma(inside[u], k.high, magic);
    FX_UNROLL
    for (int u = 0; u < count; u++) n[u] = v_sub(y[u], magic);
    FX_UNROLL
    for (int u = 0; u < count; u++) f[u] = v_fms(inside[u], k.high, n[u]);
    if (!EXP_FUSED) {
        FX_UNROLL
        for (int u = 0; u < count; u++) f[u] = v_add(f[u], v_mul(inside[u], k.low));
    }
    FX_UNROLL
    for (int u = 0; u < count; u++) q[u] = v_set1(exp_poly[EXP_TERMS - 1]);
    FX_UNROLL
    for (int i = EXP_TERMS - 2; i >= 0; i--) {
        FX_UNROLL
        for (int u = 0; u < count; u++) q[u] = v_fma(q[u], f[u], v_set1(exp_poly[i]));
    }
    FX_UNROLL
    for (int u = 0; u < count; u++) e[u] = v_flush(v_exp2(y[u], n[u], v_mul(f[u], q[u])), x[u], k.lowest);
}

static FX_INLINE V v_exp(V x, ExpScale k) {
    V e;
    v_exps(&e, &x, 1, k);
    return e;
}

/* log(2^e·m) + rounding, for m in [0.75, 1.5]. Small parts first: the order keeps the last digit. */
static FX_INLINE V log_sum(V m, V e, V rounding) {
    V f = v_sub(m, v_set1(1)), w = v_div(f, v_add(v_set1(2), f)), z = v_mul(w, w);
    V r = v_set1(log_poly[LOG_TERMS - 1]), half = v_mul(v_set1((R)0.5), v_mul(f, f));
    FX_UNROLL
    for (int i = LOG_TERMS - 2; i >= 0; i--) r = v_fma(r, z, v_set1(log_poly[i]));
    V small = v_fma(w, v_fma(r, z, half), v_fma(e, v_set1(ln2_low), rounding));
    return v_fma(e, v_set1(ln2_high), v_add(f, v_sub(small, half)));
}

static FX_INLINE V v_log1p(V s) {
    V u = v_add(v_set1(1), s), e, m = v_frexp(u, &e);
    return v_select(v_lt(u, v_set1((R)INFINITY)), log_sum(m, e, v_mul(v_sub(s, v_sub(u, v_set1(1))), v_inverse(u))), u);
}

/* log x for any x: of 0 it is -inf, of inf inf, of subnormals as of others, of negative numbers and NaN NaN. */
static FX_INLINE V v_log(V x) {
    const V zero = v_set1(0), inf = v_set1((R)INFINITY), nan = v_set1((R)NAN);
    M low = v_lt(x, v_set1(FX_REAL_BITS == 32 ? (R)0x1p-126 : (R)0x1p-1022));
    V e, m = v_frexp(v_select(low, v_mul(x, v_set1((R)0x1p60)), x), &e);
    V y = log_sum(m, v_sub(e, v_keep(low, v_set1(60))), zero);
    y = v_select(v_eq(x, zero), v_sub(zero, inf), v_select(v_eq(x, inf), inf, y));
    return v_select(v_lt(x, zero), nan, v_select(v_eq(x, x), y, nan));
}

/* tanh u and 1 - tanh² u, each to a few ULP everywhere: t = e^(-2|u|) - 1 = 2^n·(2^f - 1) + (2^n - 1) loses nothing for
 * small u; tanh |u| = -t/(2 + t). */
static FX_INLINE V v_tanh(V u, V *slope) {
    const ExpScale one = exp_scale(1);
    const V two = v_set1(2);
    V a = v_mul(v_set1(-2), v_abs(u)), x = v_max(one.lowest, a), n = v_round(v_mul(x, one.high));
    V f = v_add(v_fms(x, one.high, n), v_mul(x, one.low)), q = v_set1(exp2_poly[EXP2_TERMS - 1]);
    FX_UNROLL
    for (int i = EXP2_TERMS - 2; i >= 0; i--) q = v_fma(q, f, v_set1(exp2_poly[i]));
    V power = v_scale2(v_set1(1), n), t = v_fma(power, v_mul(f, q), v_sub(power, v_set1(1)));
    V e = v_select(v_lt(a, v_set1(-1)), v_exp(a, one), v_add(v_set1(1), t)), below = v_add(two, t);
    *slope = v_div(v_mul(v_set1(4), e), v_mul(below, below));
    V y = v_div(t, below);
    return v_select(v_lt(u, v_set1(0)), y, v_sub(v_set1(0), y));
}

/* total + term, with what the addition loses kept apart (two-sum). */
static FX_INLINE void add_exactly(V *total, V *lost, V term) {
    V next = v_add(*total, term), part = v_sub(next, *total);
    *lost = v_add(*lost, v_add(v_sub(*total, v_sub(next, part)), v_sub(term, part)));
    *total = next;
}

/* Both together; an infinite term left NaN in `lost`, and the plain sum is right. */
static FX_INLINE V with_lost(V total, V lost) {
    V v = v_add(total, lost);
    return v_select(v_eq(v, v), v, total);
}

/* Scalars that a row needs once: in double, to about an ULP of double; x <= 0 in fx_exp (or NaN), s >= 0 in fx_log1p. */
static inline double fx_two(int64_t n) {
    int64_t u = (n + 1023) << 52;
    double d;
    memcpy(&d, &u, 8);
    return d;
}
static inline double fx_exp(double x) {
    static const double c[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5a4p-3,  0x1.c6b08d7049fe8p-5,
                               0x1.3b2ab6fba011ap-7,  0x1.5d87fe78cd711p-10, 0x1.4309130ed8c73p-13,
                               0x1.ffcbfba96f4f3p-17, 0x1.62bfc79d4fc9cp-20, 0x1.b5267d00ef850p-24,
                               0x1.e61b4fa510fe6p-28, 0x1.e79b8a6429c12p-32};
    if (!(x > -708)) return x == x ? 0 : x;
    double y = x * 0x1.71547652b82fep+0;
    double n = (y + 6755399441055744.0) - 6755399441055744.0;
    double hi = n * 0x1.62e42fee00000p-1, f = ((x - hi) - n * 0x1.a39ef35793c76p-33) * 0x1.71547652b82fep+0;
    double p = c[10];
    for (int i = 9; i >= 0; i--) p = p * f + c[i];
    return (1 + p * f) * fx_two((int64_t)n);
}
static inline double fx_log1p(double s) {
    static const double c[] = {0x1.5555555555618p-1, 0x1.9999999938519p-2, 0x1.249249896f43cp-2, 0x1.c71c173929bbcp-3,
                               0x1.7471e07d971a6p-3, 0x1.3887a4d8e16d8p-3, 0x1.3950e3ada2c48p-3};
    double u = 1 + s;
    if (!(u < INFINITY)) return u;
    int64_t bits, e;
    memcpy(&bits, &u, 8);
    bits -= 0x3fe8000000000000;
    e = bits >> 52;
    bits = (bits & 0x000fffffffffffff) + 0x3fe8000000000000;
    double m, r = c[6];
    memcpy(&m, &bits, 8);
    double f = m - 1, w = f / (2 + f), z = w * w, half = 0.5 * f * f;
    for (int i = 5; i >= 0; i--) r = r * z + c[i];
    double small = w * (r * z + half) + ((double)e * 0x1.a39ef35793c76p-33 + (s - (u - 1)) / u);
    return (double)e * 0x1.62e42fee00000p-1 + (f + (small - half));
}
