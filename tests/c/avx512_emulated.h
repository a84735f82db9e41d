/* In place of immintrin.h: the AVX-512 kernels for a processor without AVX-512, by SIMDe's portable functions (Debian,
 * Ubuntu: apt install libsimde-dev). What SIMDe 0.7.4 lacks follows, lane by lane. */
#ifndef FX_AVX512_EMULATED_H
#define FX_AVX512_EMULATED_H
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <math.h>
#include <string.h>

#define FX_EACH(n) for (int i = 0; i < (n); i++)
#define FX_MASKED(NAME, VECTOR, MASK, TYPE, N)                                                                         \
    static inline void NAME(void *p, MASK k, VECTOR a) {                                                               \
        TYPE v[N];                                                                                                     \
        memcpy(v, &a, sizeof v);                                                                                       \
        FX_EACH(N) if (k >> i & 1) memcpy((char *)p + i * sizeof(TYPE), v + i, sizeof(TYPE));                          \
    }
#define FX_LOADED(NAME, VECTOR, MASK, TYPE, N)                                                                         \
    static inline VECTOR NAME(MASK k, const void *p) {                                                                 \
        TYPE v[N] = {0};                                                                                               \
        VECTOR a;                                                                                                      \
        FX_EACH(N) if (k >> i & 1) memcpy(v + i, (const char *)p + i * sizeof(TYPE), sizeof(TYPE));                    \
        memcpy(&a, v, sizeof a);                                                                                       \
        return a;                                                                                                      \
    }
#define FX_FILLED(NAME, VECTOR, MASK, TYPE, N)                                                                         \
    static inline VECTOR NAME(VECTOR a, MASK k, const void *p) {                                                       \
        TYPE v[N];                                                                                                     \
        memcpy(v, &a, sizeof v);                                                                                       \
        FX_EACH(N) if (k >> i & 1) memcpy(v + i, (const char *)p + i * sizeof(TYPE), sizeof(TYPE));                    \
        memcpy(&a, v, sizeof a);                                                                                       \
        return a;                                                                                                      \
    }
FX_MASKED(_mm512_mask_storeu_ps, __m512, __mmask16, float, 16)
FX_MASKED(_mm512_mask_storeu_pd, __m512d, __mmask8, double, 8)
FX_MASKED(_mm256_mask_storeu_epi16, __m256i, __mmask16, uint16_t, 16)
FX_LOADED(_mm256_maskz_loadu_epi16, __m256i, __mmask16, uint16_t, 16)
FX_FILLED(_mm512_mask_loadu_ps, __m512, __mmask16, float, 16)
FX_FILLED(_mm512_mask_loadu_pd, __m512d, __mmask8, double, 8)

#define FX_MAPPED(NAME, TO, FROM, TYPE_TO, TYPE_FROM, N, VALUE)                                                        \
    static inline TO NAME(FROM a) {                                                                                    \
        TYPE_FROM x[N];                                                                                                \
        TYPE_TO y[N];                                                                                                  \
        TO b;                                                                                                          \
        memcpy(x, &a, sizeof x);                                                                                       \
        FX_EACH(N) y[i] = VALUE;                                                                                       \
        memcpy(&b, y, sizeof b);                                                                                       \
        return b;                                                                                                      \
    }
FX_MAPPED(_mm512_cvtepi32_epi16, __m256i, __m512i, uint16_t, uint32_t, 16, (uint16_t)x[i])
FX_MAPPED(_mm512_cvtepu16_epi32, __m512i, __m256i, uint32_t, uint16_t, 16, x[i])
FX_MAPPED(_mm512_cvtepi64_ps, __m256, __m512i, float, int64_t, 8, (float)x[i])
FX_MAPPED(_mm512_cvtps_pd, __m512d, __m256, double, float, 8, (double)x[i])
FX_MAPPED(_mm512_getexp_ps, __m512, __m512, float, float, 16, logbf(x[i]))
FX_MAPPED(_mm512_getexp_pd, __m512d, __m512d, double, double, 8, logb(x[i]))
/* 14 bits of the reciprocal */
static inline float fx_rcp14(float x) {
    float y = 1 / x;
    uint32_t u;
    memcpy(&u, &y, 4);
    u = (u + 0x100) & ~UINT32_C(0x1ff);
    memcpy(&y, &u, 4);
    return x == x && y == y ? y : x;
}
FX_MAPPED(_mm512_rcp14_ps, __m512, __m512, float, float, 16, fx_rcp14(x[i]))
/* the mantissa in [0.75, 1.5) */
static inline double fx_getmant(double x) {
    if (x != x || x == 0 || isinf(x)) return x != x ? x : copysign(1, x);
    double m = x / exp2(logb(x));
    return fabs(m) >= 1.5 ? m / 2 : m;
}
FX_MAPPED(fx_getmant_ps, __m512, __m512, float, float, 16, (float)fx_getmant(x[i]))
FX_MAPPED(fx_getmant_pd, __m512d, __m512d, double, double, 8, fx_getmant(x[i]))
#define _MM_MANT_NORM_p75_1p5            0
#define _MM_MANT_SIGN_src                0
#define _mm512_getmant_ps(a, norm, sign) fx_getmant_ps(a)
#define _mm512_getmant_pd(a, norm, sign) fx_getmant_pd(a)

static inline __m256 _mm512_extractf32x8_ps(__m512 a, int i) {
    __m256 b;
    memcpy(&b, (const char *)&a + 32 * i, 32);
    return b;
}
static inline __m512 _mm512_cvtph_ps(__m256i a) {
    __m128i h[2];
    __m256 r[2];
    __m512 b;
    memcpy(h, &a, 32);
    r[0] = _mm256_cvtph_ps(h[0]), r[1] = _mm256_cvtph_ps(h[1]);
    memcpy(&b, r, 64);
    return b;
}
static inline __m256i fx_cvtps_ph(__m512 a) {
    __m256 r[2];
    __m128i h[2];
    __m256i b;
    memcpy(r, &a, 64);
    h[0] = _mm256_cvtps_ph(r[0], _MM_FROUND_TO_NEAREST_INT), h[1] = _mm256_cvtps_ph(r[1], _MM_FROUND_TO_NEAREST_INT);
    memcpy(&b, h, 32);
    return b;
}
#define _mm512_cvtps_ph(a, round) fx_cvtps_ph(a)
static inline void _mm512_stream_ps(float *p, __m512 a) { memcpy(p, &a, 64); }
static inline void _mm512_stream_pd(double *p, __m512d a) { memcpy(p, &a, 64); }
static inline void _mm512_stream_si512(__m512i *p, __m512i a) { memcpy(p, &a, 64); }
/* Two quarters of a, then two of b, by two bits of k each. */
#define FX_QUARTERS(NAME, VECTOR)                                                                                      \
    static inline VECTOR NAME(VECTOR a, VECTOR b, int k) {                                                             \
        VECTOR c;                                                                                                      \
        for (int q = 0; q < 4; q++)                                                                                    \
            memcpy((char *)&c + 16 * q, (const char *)(q < 2 ? &a : &b) + 16 * (k >> 2 * q & 3), 16);                  \
        return c;                                                                                                      \
    }
FX_QUARTERS(fx_shuffle_f32x4, __m512)
FX_QUARTERS(fx_shuffle_f64x2, __m512d)
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#define _mm512_shuffle_f32x4(a, b, k) fx_shuffle_f32x4(a, b, k)
#define _mm512_shuffle_f64x2(a, b, k) fx_shuffle_f64x2(a, b, k)
#endif
