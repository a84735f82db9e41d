/* AVX2 with FMA and F16C, float32 arithmetic: 8 lanes. See README.md for the names. */
#include <immintrin.h>
#include <stdint.h>

#include "x86_stream.h"

typedef float R;
typedef __m256 V;
typedef __m256 M; /* all ones or all zeros in each lane */
enum { LANES = 8 };

/* -127·ln 2: there 2^n is 127 - 127 in the exponent and nothing below it, that is 0, and so is what lies lower. Powers between
 * 2^-127 and 2^-126 come out as some subnormal number. */
#define EXP_LOWEST     (-88.029692f)
#define V_BRANCHES     1
#define V_KEEPS        (1 << 20)
#define V_SPLITS       0
#define V_QUADS_f32    2
#define V_QUADS_f16    2
#define V_QUADS_bf16   2
#define V_PAIRS_bf16   1
#define V_HALVES_f16   1
#define EXP_TABLE_BITS 3
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 1 };

static inline V v_set1(R a) { return _mm256_set1_ps(a); }
static inline V v_loadr(const void *p) { return _mm256_loadu_ps(p); }
static inline void v_storer(void *p, V a) { _mm256_storeu_ps(p, a); }
static inline V v_iota(void) { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

static inline V v_add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V v_div(V a, V b) { return _mm256_div_ps(a, b); }
static inline V v_abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline V v_round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
static inline V v_fms(V a, V b, V c) { return _mm256_fmsub_ps(a, b, c); }
static inline V v_fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
static inline V v_inverse(V a) { return v_div(v_set1(1), a); }
static inline V v_max(V a, V b) { return _mm256_max_ps(a, b); }

static inline M v_lt(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline M v_eq(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline M v_ne(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
static inline V v_select(M k, V a, V b) { return _mm256_blendv_ps(b, a, k); }
static inline V v_keep(M k, V a) { return _mm256_and_ps(k, a); }
static inline V v_drop(M k, V a) { return _mm256_andnot_ps(k, a); }
/* What v_exp2 makes of the lowest is 0. */
static inline V v_flush(V p, V x, V lowest) {
    (void)x, (void)lowest;
    return p;
}
static inline V v_count(V n, M k) { return v_add(n, v_keep(k, v_set1(1))); }
typedef __m256i N; /* a true mask is -1 */
static inline N v_none(void) { return _mm256_setzero_si256(); }
static inline N v_tally(N n, M k) { return _mm256_sub_epi32(n, _mm256_castps_si256(k)); }
static inline V v_tallied(N n) { return _mm256_cvtepi32_ps(n); }
static inline int v_any(M k) { return _mm256_movemask_ps(k) != 0; }
static inline unsigned v_bits(M k) { return (unsigned)_mm256_movemask_ps(k); }
static inline M v_first(int n) { return v_lt(v_iota(), v_set1((R)n)); }

/* n in eighths, moved so that whole ones are exponents, and a table of 2^(i/8), looked up by a permutation (which looks at
 * the last three bits), that takes back what the eighths add to the mantissa: i·2^20. */
static inline V v_exp2(V y, V n, V r) {
    const __m256i powers = _mm256_setr_epi32(0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a,
                                             0x3f7744fd, 0x3f7ac0c7);
    __m256i i = _mm256_castps_si256(y), t = _mm256_permutevar8x32_epi32(powers, i);
    V s = _mm256_castsi256_ps(_mm256_add_epi32(t, _mm256_slli_epi32(i, 20)));
    (void)n;
    return v_fma(s, r, s);
}
static inline V v_scale2(V p, V n) {
    __m256i k = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(k));
}
static inline V v_frexp(V x, V *e) {
    /* Exponents counted from 0.75 rather than from 1: within [0.75, 1.5). */
    __m256i u = _mm256_sub_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x3f400000));
    *e = _mm256_cvtepi32_ps(_mm256_srai_epi32(u, 23));
    u = _mm256_add_epi32(_mm256_and_si256(u, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x3f400000));
    return _mm256_castsi256_ps(u);
}

static inline R v_hmax(V a) {
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
static inline double v_hsum(V a) {
    __m256d b = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

static inline void v_transpose(V r[8]) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
        t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
    }
    for (int j = 0; j < 8; j++) r[j] = t[j];
}

static inline __m256i v_tail_mask(int n) { return _mm256_castps_si256(v_first(n)); }
/* q[j]: four elements of row j below those of row j + 4. */
static inline void v_quads(const __m256 q[4], V r[4]) {
    __m256d t[4];
    for (int j = 0; j < 4; j += 2) {
        t[j] = _mm256_castps_pd(_mm256_unpacklo_ps(q[j], q[j + 1]));
        t[j + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(q[j], q[j + 1]));
    }
    for (int j = 0; j < 2; j++) {
        r[2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(t[j], t[j + 2]));
        r[2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(t[j], t[j + 2]));
    }
}
static inline void v_load_quads_f32(const char *const row[], int64_t offset, V r[4]) {
    __m256 q[4];
    for (int j = 0; j < 4; j++) {
        q[j] = _mm256_castps128_ps256(_mm_loadu_ps((const float *)(row[j] + offset)));
        q[j] = _mm256_insertf128_ps(q[j], _mm_loadu_ps((const float *)(row[j + 4] + offset)), 1);
    }
    v_quads(q, r);
}

/* The reverse of v_quads: rows 0 … 3 are the low halves of q. */
static inline void v_unquads(const V r[4], __m256 q[4]) {
    for (int i = 0; i < 2; i++) {
        __m256 a = i ? _mm256_unpackhi_ps(r[0], r[1]) : _mm256_unpacklo_ps(r[0], r[1]);
        __m256 b = i ? _mm256_unpackhi_ps(r[2], r[3]) : _mm256_unpacklo_ps(r[2], r[3]);
        q[2 * i] = _mm256_shuffle_ps(a, b, 0x44);
        q[2 * i + 1] = _mm256_shuffle_ps(a, b, 0xee);
    }
}
static inline void v_store_quads_f32(char *const row[], int64_t offset, const V r[4]) {
    __m256 q[4];
    v_unquads(r, q);
    for (int j = 0; j < 4; j++) {
        _mm_storeu_ps((float *)(row[j] + offset), _mm256_castps256_ps128(q[j]));
        _mm_storeu_ps((float *)(row[j + 4] + offset), _mm256_extractf128_ps(q[j], 1));
    }
}
/* Numbers below 2^31. */
static inline V v_indices(const int64_t *p) {
    __m256 a = _mm256_loadu_ps((const float *)p), b = _mm256_loadu_ps((const float *)(p + 4));
    __m256i low = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
    return _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(low, 0xd8));
}

static inline V v_load_f32(const char *p) { return _mm256_loadu_ps((const float *)p); }
static inline V v_load_tail_f32(const char *p, int n, V fill) {
    return v_select(v_first(n), _mm256_maskload_ps((const float *)p, v_tail_mask(n)), fill);
}
static inline void v_store_f32(char *p, V a) { _mm256_storeu_ps((float *)p, a); }
static inline void v_store_tail_f32(char *p, V a, int n) { _mm256_maskstore_ps((float *)p, v_tail_mask(n), a); }
static inline void v_stream_f32(char *p, V a) { _mm256_stream_ps((float *)p, a); }
static inline void v_stream_tail_f32(char *p, V a, int n) {
    V b = a;
    v_stream_bytes(p, &b, n * 4);
}

/* Tails of the half types pass through a small buffer: AVX2 masks no 16-bit lanes. */
static inline __m128i v_tail_halves(const char *p, int n) {
    char b[16] = {0};
    for (int i = 0; i < 2 * n; i++) b[i] = p[i];
    return _mm_loadu_si128((const __m128i *)b);
}
static inline void v_put_halves(char *p, __m128i h, int n) {
    char b[16];
    _mm_storeu_si128((__m128i *)b, h);
    for (int i = 0; i < 2 * n; i++) p[i] = b[i];
}

/* 16-bit floats as integers in the same order: the magnitude's bits of negative ones turned over. */
typedef __m256i W;
static inline W w_least(void) { return _mm256_set1_epi16(-0x8000); }
static inline W w_turn(W a) { return _mm256_xor_si256(a, _mm256_srli_epi16(_mm256_srai_epi16(a, 15), 1)); }
static inline W w_load(const char *p) { return w_turn(_mm256_loadu_si256((const __m256i *)p)); }
static inline W w_max(W a, W b) { return _mm256_max_epi16(a, b); }
static inline void w_store(int16_t *p, W a) { _mm256_storeu_si256((__m256i *)p, w_turn(a)); }

static inline V v_widen_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
static inline __m256i v_round_bf16(V a) {
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan);
}
static inline __m128i v_narrow_bf16(V a) {
    __m256i r = _mm256_srli_epi32(v_round_bf16(a), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
static inline __m128i v_two_quads(const char *a, const char *b) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)a), _mm_loadl_epi64((const __m128i *)b));
}
static inline void v_load_quads_bf16(const char *const row[], int64_t offset, V r[4]) {
    __m256 q[4];
    for (int j = 0; j < 4; j++) q[j] = v_widen_bf16(v_two_quads(row[j] + offset, row[j + 4] + offset));
    v_quads(q, r);
}
static inline void v_load_quads_f16(const char *const row[], int64_t offset, V r[4]) {
    __m256 q[4];
    for (int j = 0; j < 4; j++) q[j] = _mm256_cvtph_ps(v_two_quads(row[j] + offset, row[j + 4] + offset));
    v_quads(q, r);
}
static inline void v_store_two_quads(char *a, char *b, __m128i h) {
    _mm_storel_epi64((__m128i *)a, h);
    _mm_storel_epi64((__m128i *)b, _mm_unpackhi_epi64(h, h));
}
static inline void v_store_quads_bf16(char *const row[], int64_t offset, const V r[4]) {
    __m256 q[4];
    v_unquads(r, q);
    for (int j = 0; j < 4; j++) v_store_two_quads(row[j] + offset, row[j + 4] + offset, v_narrow_bf16(q[j]));
}
/* 16 elements: the even ones in a, the odd ones in b. */
static inline void v_load_pair_bf16(const char *p, V *a, V *b) {
    __m256i u = _mm256_loadu_si256((const __m256i *)p);
    *a = _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
    *b = _mm256_castsi256_ps(_mm256_and_si256(u, _mm256_set1_epi32((int)0xffff0000)));
}
static inline __m256i v_pair_bf16(V a, V b) {
    return _mm256_blend_epi16(_mm256_srli_epi32(v_round_bf16(a), 16), v_round_bf16(b), 0xaa);
}
static inline void v_storer_pair_bf16(void *to, V a, V b) {
    __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    float *p = (float *)to;
    _mm_storeu_ps(p, _mm256_castps256_ps128(low));
    _mm_storeu_ps(p + 4, _mm256_castps256_ps128(high));
    _mm_storeu_ps(p + 8, _mm256_extractf128_ps(low, 1));
    _mm_storeu_ps(p + 12, _mm256_extractf128_ps(high, 1));
}
static inline void v_store_pair_bf16(char *p, V a, V b) { _mm256_storeu_si256((__m256i *)p, v_pair_bf16(a, b)); }
static inline void v_stream_pair_bf16(char *p, V a, V b) { _mm256_stream_si256((__m256i *)p, v_pair_bf16(a, b)); }
static inline V v_load_bf16(const char *p) { return v_widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
static inline V v_load_tail_bf16(const char *p, int n, V fill) {
    return v_select(v_first(n), v_widen_bf16(v_tail_halves(p, n)), fill);
}
static inline void v_store_bf16(char *p, V a) { _mm_storeu_si128((__m128i *)p, v_narrow_bf16(a)); }
static inline void v_store_tail_bf16(char *p, V a, int n) { v_put_halves(p, v_narrow_bf16(a), n); }
static inline void v_stream_bf16(char *p, V a) { _mm_stream_si128((__m128i *)p, v_narrow_bf16(a)); }
static inline void v_stream_tail_bf16(char *p, V a, int n) {
    __m128i b = v_narrow_bf16(a);
    v_stream_bytes(p, &b, n * 2);
}

static inline __m128i v_narrow_f16(V a) { return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline void v_store_quads_f16(char *const row[], int64_t offset, const V r[4]) {
    __m256 q[4];
    v_unquads(r, q);
    for (int j = 0; j < 4; j++) v_store_two_quads(row[j] + offset, row[j + 4] + offset, v_narrow_f16(q[j]));
}
static inline V v_load_f16(const char *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline V v_load_tail_f16(const char *p, int n, V fill) {
    return v_select(v_first(n), _mm256_cvtph_ps(v_tail_halves(p, n)), fill);
}
static inline void v_store_f16(char *p, V a) { _mm_storeu_si128((__m128i *)p, v_narrow_f16(a)); }
static inline void v_store_tail_f16(char *p, V a, int n) { v_put_halves(p, v_narrow_f16(a), n); }
static inline void v_stream_f16(char *p, V a) { _mm_stream_si128((__m128i *)p, v_narrow_f16(a)); }
static inline void v_stream_tail_f16(char *p, V a, int n) {
    __m128i b = v_narrow_f16(a);
    v_stream_bytes(p, &b, n * 2);
}
