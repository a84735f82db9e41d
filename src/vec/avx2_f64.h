/* AVX2 with FMA, float64 arithmetic: 4 lanes. See README.md for the names. */
#include <immintrin.h>
#include <stdint.h>

#include "x86_stream.h"

typedef double R;
typedef __m256d V;
typedef __m256d M;
enum { LANES = 4 };

#define EXP_LOWEST     (-708.39)
#define V_BRANCHES     1
#define V_KEEPS        (1 << 20)
#define V_SPLITS       0
#define V_QUADS_f64    2
#define EXP_TABLE_BITS 0
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 0 };

static inline V v_set1(R a) { return _mm256_set1_pd(a); }
static inline V v_loadr(const void *p) { return _mm256_loadu_pd(p); }
static inline void v_storer(void *p, V a) { _mm256_storeu_pd(p, a); }
static inline V v_iota(void) { return _mm256_setr_pd(0, 1, 2, 3); }

static inline V v_add(V a, V b) { return _mm256_add_pd(a, b); }
static inline V v_sub(V a, V b) { return _mm256_sub_pd(a, b); }
static inline V v_mul(V a, V b) { return _mm256_mul_pd(a, b); }
static inline V v_div(V a, V b) { return _mm256_div_pd(a, b); }
static inline V v_inverse(V a) { return v_div(v_set1(1), a); }
static inline V v_abs(V a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
static inline V v_round(V a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
static inline V v_fms(V a, V b, V c) { return _mm256_fmsub_pd(a, b, c); }
static inline V v_fnma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
static inline V v_max(V a, V b) { return _mm256_max_pd(a, b); }

static inline M v_lt(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
static inline M v_eq(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
static inline M v_ne(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_NEQ_UQ); }
static inline V v_select(M k, V a, V b) { return _mm256_blendv_pd(b, a, k); }
static inline V v_keep(M k, V a) { return _mm256_and_pd(k, a); }
static inline V v_drop(M k, V a) { return _mm256_andnot_pd(k, a); }
static inline V v_flush(V p, V x, V lowest) { return v_drop(v_lt(x, lowest), p); }
static inline V v_count(V n, M k) { return v_add(n, v_keep(k, v_set1(1))); }
typedef __m256i N; /* a true mask is -1 */
static inline N v_none(void) { return _mm256_setzero_si256(); }
static inline N v_tally(N n, M k) { return _mm256_sub_epi64(n, _mm256_castpd_si256(k)); }
static inline V v_tallied(N n) { /* behind the point of 2^52 */
    const V magic = _mm256_set1_pd(0x1p52);
    return _mm256_sub_pd(_mm256_or_pd(_mm256_castsi256_pd(n), magic), magic);
}
static inline int v_any(M k) { return _mm256_movemask_pd(k) != 0; }
static inline unsigned v_bits(M k) { return (unsigned)_mm256_movemask_pd(k); }
static inline M v_first(int n) { return v_lt(v_iota(), v_set1((R)n)); }

static inline V v_scale2(V p, V n) {
    __m256i k = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
    k = _mm256_slli_epi64(_mm256_add_epi64(k, _mm256_set1_epi64x(1023)), 52);
    return _mm256_mul_pd(p, _mm256_castsi256_pd(k));
}
static inline V v_exp2(V y, V n, V r) {
    (void)y;
    return v_scale2(v_add(v_set1(1), r), n);
}
static inline V v_frexp(V x, V *e) {
    const __m256i three_quarters = _mm256_set1_epi64x(0x3fe8000000000000);
    __m256i u = _mm256_sub_epi64(_mm256_castpd_si256(x), three_quarters);
    /* The exponent, in the high half of each lane, to a 32-bit integer and on to double. */
    __m256i high = _mm256_srai_epi32(_mm256_shuffle_epi32(u, 0xf5), 20);
    __m256i low = _mm256_permutevar8x32_epi32(high, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    *e = _mm256_cvtepi32_pd(_mm256_castsi256_si128(low));
    u = _mm256_add_epi64(_mm256_and_si256(u, _mm256_set1_epi64x(0x000fffffffffffff)), three_quarters);
    return _mm256_castsi256_pd(u);
}

static inline R v_hmax(V a) {
    __m128d c = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(c, _mm_unpackhi_pd(c, c)));
}
static inline double v_hsum(V a) {
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

static inline void v_transpose(V r[4]) {
    V a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    V c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

static inline __m256i v_tail_mask(int n) { return _mm256_castpd_si256(v_first(n)); }
static inline void v_load_quads_f64(const char *const row[], int64_t offset, V r[4]) {
    for (int j = 0; j < 4; j += 2) { /* elements j and j + 1: rows 0 and 2 in a, rows 1 and 3 in b */
        const int64_t at = offset + 8 * j;
        __m256d a = _mm256_castpd128_pd256(_mm_loadu_pd((const double *)(row[0] + at)));
        __m256d b = _mm256_castpd128_pd256(_mm_loadu_pd((const double *)(row[1] + at)));
        a = _mm256_insertf128_pd(a, _mm_loadu_pd((const double *)(row[2] + at)), 1);
        b = _mm256_insertf128_pd(b, _mm_loadu_pd((const double *)(row[3] + at)), 1);
        r[j] = _mm256_unpacklo_pd(a, b);
        r[j + 1] = _mm256_unpackhi_pd(a, b);
    }
}
static inline void v_store_quads_f64(char *const row[], int64_t offset, const V r[4]) {
    for (int j = 0; j < 4; j += 2) {
        const int64_t at = offset + 8 * j;
        __m256d a = _mm256_unpacklo_pd(r[j], r[j + 1]), b = _mm256_unpackhi_pd(r[j], r[j + 1]);
        _mm_storeu_pd((double *)(row[0] + at), _mm256_castpd256_pd128(a));
        _mm_storeu_pd((double *)(row[1] + at), _mm256_castpd256_pd128(b));
        _mm_storeu_pd((double *)(row[2] + at), _mm256_extractf128_pd(a, 1));
        _mm_storeu_pd((double *)(row[3] + at), _mm256_extractf128_pd(b, 1));
    }
}
static inline V v_indices(const int64_t *p) {
    __m256i low =
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)p), _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    return _mm256_cvtepi32_pd(_mm256_castsi256_si128(low));
}
static inline V v_load_f64(const char *p) { return _mm256_loadu_pd((const double *)p); }
static inline V v_load_tail_f64(const char *p, int n, V fill) {
    return v_select(v_first(n), _mm256_maskload_pd((const double *)p, v_tail_mask(n)), fill);
}
static inline void v_store_f64(char *p, V a) { _mm256_storeu_pd((double *)p, a); }
static inline void v_store_tail_f64(char *p, V a, int n) { _mm256_maskstore_pd((double *)p, v_tail_mask(n), a); }
static inline void v_stream_f64(char *p, V a) { _mm256_stream_pd((double *)p, a); }
static inline void v_stream_tail_f64(char *p, V a, int n) {
    V b = a;
    v_stream_bytes(p, &b, n * 8);
}
