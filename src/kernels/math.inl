/* exp, log1p and tanh over the vocabulary.
 *
 * exp(k·x) for x <= about 1/k: n = round(x·k·log2 e), f = x·k·log2 e - n by two fused products (k·log2 e is split in a
 * high and a low part, so a scale costs nothing), 2^f by a minimax polynomial, fitted for |f| <= 1/2 with value 1 at 0:
 * worst relative error 2e-9 (degree 6, float32) and 3.4e-18 (degree 11, float64), then 2^n. -inf gives exactly 0, 0 gives
 * exactly 1, NaN stays. log1p(s) for s >= 0: u = 1 + s, log u + (s - (u - 1))/u, where log u = e·ln 2 + log m and
 * log m = f - (f²/2 - w·(f²/2 + R(w²))), f = m - 1, w = f/(2 + f); R is fitted for |w| <= 0.2 to 3e-11 and 2e-17. */

#if FX_REAL_BITS == 32
static const R exp2_poly[] = {0x1.62e430af23730p-1f, 0x1.ebfbdc3c250d6p-3f,  0x1.c6aee88ec9b69p-5f,
                              0x1.3b2d4cef7c20bp-7f, 0x1.5f3e5369c55f6p-10f, 0x1.41fbc1ca0d261p-13f};
static const R log_poly[] = {0x1.555554737fb2bp-1f, 0x1.999b88b28b440p-2f, 0x1.23f6542e4f080p-2f, 0x1.ec5887c3512f4p-3f};
static const R ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
#else
static const R exp2_poly[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5a4p-3,  0x1.c6b08d7049fe8p-5,  0x1.3b2ab6fba011ap-7,
                              0x1.5d87fe78cd711p-10, 0x1.4309130ed8c73p-13, 0x1.ffcbfba96f4f3p-17, 0x1.62bfc79d4fc9cp-20,
                              0x1.b5267d00ef850p-24, 0x1.e61b4fa510fe6p-28, 0x1.e79b8a6429c12p-32};
static const R log_poly[] = {0x1.5555555555618p-1, 0x1.9999999938519p-2, 0x1.249249896f43cp-2, 0x1.c71c173929bbcp-3,
                             0x1.7471e07d971a6p-3, 0x1.3887a4d8e16d8p-3, 0x1.3950e3ada2c48p-3};
static const R ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
#endif
enum { EXP_DEGREE = sizeof exp2_poly / sizeof(R), LOG_TERMS = sizeof log_poly / sizeof(R) };

/* a·b - product, exactly, without a fused multiply (Dekker). */
static inline double product_error(double a, double b, double product) {
    double p = a * 134217729.0, q = b * 134217729.0;
    double ah = p - (p - a), bh = q - (q - b), al = a - ah, bl = b - bh;
    return ((ah * bh - product) + ah * bl + al * bh) + al * bl;
}

/* The constants of exp(scale·x). */
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
    return (ExpScale){v_set1(high), v_set1((R)low), v_set1((R)(EXP_LOWEST / scale))};
}

/* 2^f - 1 = f·p(f) and n, for x already clamped. */
static FX_INLINE V exp_reduced(V x, ExpScale k, V *n, V *f) {
    *n = v_round(v_mul(x, k.high));
    *f = v_fma(x, k.low, v_fms(x, k.high, *n));
    V p = v_set1(exp2_poly[EXP_DEGREE - 1]);
    FX_UNROLL for (int i = EXP_DEGREE - 2; i >= 0; i--) p = v_fma(p, *f, v_set1(exp2_poly[i]));
    return p;
}

static FX_INLINE V v_exp(V x, ExpScale k) {
    V n, f, p = exp_reduced(v_max(k.lowest, x), k, &n, &f);
    V e = v_scale2(v_fma(p, f, v_set1(1)), n);
    return EXP_FLUSHES ? v_drop(v_lt(x, k.lowest), e) : e;
}

static FX_INLINE V v_log1p(V s) {
    V u = v_add(v_set1(1), s), e, m = v_frexp(u, &e);
    V f = v_sub(m, v_set1(1)), w = v_div(f, v_add(v_set1(2), f)), z = v_mul(w, w);
    V r = v_set1(log_poly[LOG_TERMS - 1]);
    FX_UNROLL for (int i = LOG_TERMS - 2; i >= 0; i--) r = v_fma(r, z, v_set1(log_poly[i]));
    V half = v_mul(v_set1((R)0.5), v_mul(f, f));
    V rounding = v_div(v_sub(s, v_sub(u, v_set1(1))), u);
    /* Small parts first: this order is what keeps the last digit. */
    V small = v_fma(w, v_fma(r, z, half), v_fma(e, v_set1(ln2_low), rounding));
    return v_fma(e, v_set1(ln2_high), v_add(f, v_sub(small, half)));
}

/* log x for any x >= 0, subnormals too: 0 gives -inf, inf gives inf, NaN and negative values NaN. */
static FX_INLINE V v_log(V x) {
    const R inf = (R)INFINITY, tiny = FX_REAL_BITS == 32 ? (R)0x1p-126 : (R)0x1p-1022;
    const R lift = FX_REAL_BITS == 32 ? (R)0x1p30 : (R)0x1p60, lifted = FX_REAL_BITS == 32 ? 30 : 60;
    M low = v_lt(x, v_set1(tiny));
    V e, m = v_frexp(v_select(low, v_mul(x, v_set1(lift)), x), &e);
    e = v_sub(e, v_keep(low, v_set1(lifted)));
    V f = v_sub(m, v_set1(1)), w = v_div(f, v_add(v_set1(2), f)), z = v_mul(w, w);
    V r = v_set1(log_poly[LOG_TERMS - 1]);
    FX_UNROLL for (int i = LOG_TERMS - 2; i >= 0; i--) r = v_fma(r, z, v_set1(log_poly[i]));
    V half = v_mul(v_set1((R)0.5), v_mul(f, f));
    V small = v_fma(w, v_fma(r, z, half), v_mul(e, v_set1(ln2_low)));
    V y = v_fma(e, v_set1(ln2_high), v_add(f, v_sub(small, half)));
    y = v_select(v_eq(x, v_set1(0)), v_set1(-inf), v_select(v_eq(x, v_set1(inf)), x, y));
    /* x != x or x < 0: adding x - x would not make a negative NaN. */
    M ordinary = v_lt(v_set1((R)-1e-45), x);
    return v_select(v_lt(x, v_set1(0)), v_set1((R)NAN), v_select(ordinary, y, v_add(x, v_set1((R)0))));
}

/* tanh u and 1 - tanh² u, each to a few ULP everywhere: t = e^(-2|u|) - 1 without cancellation, tanh = -t/(2 + t). */
static FX_INLINE V v_tanh(V u, V *slope) {
    ExpScale one = exp_scale(1);
    V a = v_mul(v_set1((R)-2), v_abs(u)), x = v_max(one.lowest, a), n, f;
    V p = exp_reduced(x, one, &n, &f), two_n = v_scale2(v_set1(1), n);
    V t = v_fma(two_n, v_mul(f, p), v_sub(two_n, v_set1(1)));
    V below = v_add(v_set1(2), t), e = v_add(v_set1(1), t);
    V small = v_exp(a, one);
    e = v_select(v_lt(a, v_set1((R)-1)), small, e);
    *slope = v_div(v_mul(v_set1(4), e), v_mul(below, below));
    V y = v_div(t, below);
    return v_select(v_lt(u, v_set1(0)), y, v_sub(v_set1(0), y));
}

/* Scalars that a row needs once: in double, to about an ULP of double; x <= 0 in fx_exp (or NaN), s >= 0 in fx_log1p. */
static inline double fx_two(int64_t n) {
    int64_t u = (n + 1023) << 52;
    double d;
    memcpy(&d, &u, 8);
    return d;
}
static inline double fx_exp(double x) {
    static const double c[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c5a4p-3,  0x1.c6b08d7049fe8p-5,  0x1.3b2ab6fba011ap-7,
                               0x1.5d87fe78cd711p-10, 0x1.4309130ed8c73p-13, 0x1.ffcbfba96f4f3p-17, 0x1.62bfc79d4fc9cp-20,
                               0x1.b5267d00ef850p-24, 0x1.e61b4fa510fe6p-28, 0x1.e79b8a6429c12p-32};
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
