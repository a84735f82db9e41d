/* AVX-512, float64 arithmetic: 8 lanes. See README.md for the names. */
#include <immintrin.h>
#include <stdint.h>

#include "x86_stream.h"

typedef double R;
typedef __m512d V;
typedef __mmask8 M;
enum { LANES = 8 };

#define EXP_LOWEST     (-708.39)
#define V_BRANCHES     0
#define V_KEEPS        (1 << 14)
#define V_SPLITS       0
#define EXP_TABLE_BITS 4
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 0 };

static inline V v_set1(R a) { return _mm512_set1_pd(a); }
static inline V v_loadr(const void *p) { return _mm512_loadu_pd(p); }
static inline void v_storer(void *p, V a) { _mm512_storeu_pd(p, a); }
static inline V v_iota(void) { return _mm512_setr_pd(0, 1, 2, 3, 4, 5, 6, 7); }

static inline V v_add(V a, V b) { return _mm512_add_pd(a, b); }
static inline V v_sub(V a, V b) { return _mm512_sub_pd(a, b); }
static inline V v_mul(V a, V b) { return _mm512_mul_pd(a, b); }
static inline V v_div(V a, V b) { return _mm512_div_pd(a, b); }
static inline V v_abs(V a) { return _mm512_abs_pd(a); }
static inline V v_round(V a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
static inline V v_fms(V a, V b, V c) { return _mm512_fmsub_pd(a, b, c); }
static inline V v_fnma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
static inline V v_inverse(V a) { return v_div(v_set1(1), a); }
static inline V v_max(V a, V b) { return _mm512_max_pd(a, b); }

static inline M v_lt(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
static inline M v_eq(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static inline M v_ne(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_NEQ_UQ); }
static inline V v_select(M k, V a, V b) { return _mm512_mask_blend_pd(k, b, a); }
static inline V v_keep(M k, V a) { return _mm512_maskz_mov_pd(k, a); }
static inline V v_drop(M k, V a) { return _mm512_maskz_mov_pd((M)~k, a); }
/* The mask joins the instruction that made p. */
static inline V v_flush(V p, V x, V lowest) {
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, lowest, _CMP_NLT_UQ), p);
}
static inline V v_count(V n, M k) { return _mm512_mask_add_pd(n, k, n, v_set1(1)); }
typedef V N;
static inline N v_none(void) { return v_set1(0); }
static inline N v_tally(N n, M k) { return v_count(n, k); }
static inline V v_tallied(N n) { return n; }
static inline int v_any(M k) { return k != 0; }
static inline unsigned v_bits(M k) { return k; }
static inline M v_first(int n) { return (M)((1u << n) - 1u); }

/* Two registers of powers: a permutation of both looks at the last four bits of each index. */
static inline V v_exp2(V y, V n, V r) {
    const V low =
        _mm512_setr_pd(0x1p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0, 0x1.306fe0a31b715p+0,
                       0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0);
    const V high =
        _mm512_setr_pd(0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
                       0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0);
    V t = _mm512_permutex2var_pd(low, _mm512_castpd_si512(y), high);
    return _mm512_scalef_pd(v_fma(t, r, t), n);
}
static inline V v_scale2(V p, V n) { return _mm512_scalef_pd(p, n); }
static inline V v_frexp(V x, V *e) {
    V m = _mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src); /* in [0.75, 1.5), as in avx512_f32.h */
    V b = _mm512_getexp_pd(x);
    *e = _mm512_mask_add_pd(b, _mm512_cmp_pd_mask(m, v_set1(1), _CMP_LT_OQ), b, v_set1(1));
    return m;
}

static inline R v_hmax(V a) {
    __m256d b = _mm256_max_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d c = _mm_max_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_max_sd(c, _mm_unpackhi_pd(c, c)));
}
static inline double v_hsum(V a) {
    __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

static inline void v_transpose(V r[8]) {
    __m512d t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + j] = _mm512_shuffle_f64x2(t[i + j], t[i + 2 + j], 0x88);
            r[i + 2 + j] = _mm512_shuffle_f64x2(t[i + j], t[i + 2 + j], 0xdd);
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_f64x2(r[j], r[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_f64x2(r[j], r[4 + j], 0xdd);
    }
    for (int j = 0; j < 8; j++) r[j] = t[j];
}

static inline V v_load_f64(const char *p) { return _mm512_loadu_pd(p); }
static inline V v_load_tail_f64(const char *p, int n, V fill) { return _mm512_mask_loadu_pd(fill, v_first(n), p); }
static inline void v_store_f64(char *p, V a) { _mm512_storeu_pd(p, a); }
static inline void v_store_tail_f64(char *p, V a, int n) { _mm512_mask_storeu_pd(p, v_first(n), a); }
static inline void v_stream_f64(char *p, V a) { _mm512_stream_pd((double *)p, a); }
static inline void v_stream_tail_f64(char *p, V a, int n) {
    V b = a;
    v_stream_bytes(p, &b, n * 8);
}
