/* AVX-512 (F, BW, DQ, VL, CD), float32 arithmetic: 16 lanes. See README.md for the names. */
#include <immintrin.h>
#include <stdint.h>

#include "x86_stream.h"

typedef float R;
typedef __m512 V;
typedef __mmask16 M;
enum { LANES = 16 };

/* The lowest whose exponential is a normal number: an Intel processor takes a hundred nanoseconds for a vector in which
 * scalef underflows, be it to 0. */
#define EXP_LOWEST     (-87.336f)
#define V_BRANCHES     0
#define V_KEEPS        (1 << 14)
#define V_SPLITS       8
#define V_PAIRS_bf16   1
#define V_HALVES_f16   1
#define V_QUADS_f32    1
#define EXP_TABLE_BITS 4
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 0 };

static inline V v_set1(R a) { return _mm512_set1_ps(a); }
static inline V v_loadr(const void *p) { return _mm512_loadu_ps(p); }
static inline void v_storer(void *p, V a) { _mm512_storeu_ps(p, a); }
static inline V v_iota(void) { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

static inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V v_div(V a, V b) { return _mm512_div_ps(a, b); }
static inline V v_abs(V a) { return _mm512_abs_ps(a); }
static inline V v_round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
static inline V v_fms(V a, V b, V c) { return _mm512_fmsub_ps(a, b, c); }
static inline V v_fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
static inline V v_inverse(V a) {
    V y = _mm512_rcp14_ps(a);
    return v_fma(y, v_fnma(a, y, v_set1(1)), y);
}
static inline V v_max(V a, V b) { return _mm512_max_ps(a, b); }

static inline M v_lt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline M v_eq(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline M v_ne(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline V v_select(M k, V a, V b) { return _mm512_mask_blend_ps(k, b, a); }
static inline V v_keep(M k, V a) { return _mm512_maskz_mov_ps(k, a); }
static inline V v_drop(M k, V a) { return _mm512_maskz_mov_ps((M)~k, a); }
/* The mask joins the instruction that made p. */
static inline V v_flush(V p, V x, V lowest) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), p);
}
static inline V v_count(V n, M k) { return _mm512_mask_add_ps(n, k, n, v_set1(1)); }
typedef V N;
static inline N v_none(void) { return v_set1(0); }
static inline N v_tally(N n, M k) { return v_count(n, k); }
static inline V v_tallied(N n) { return n; }
static inline int v_any(M k) { return k != 0; }
static inline unsigned v_bits(M k) { return k; }
static inline M v_first(int n) { return (M)((1u << n) - 1u); }

/* A permutation looks at the last four bits of each index, scalef at the integral part of n. */
static inline V v_exp2(V y, V n, V r) {
    const V powers = _mm512_setr_ps(0x1p0f, 0x1.0b5586p0f, 0x1.172b84p0f, 0x1.2387a6p0f, 0x1.306fe0p0f, 0x1.3dea64p0f,
                                    0x1.4bfdaep0f, 0x1.5ab07ep0f, 0x1.6a09e6p0f, 0x1.7a1148p0f, 0x1.8ace54p0f,
                                    0x1.9c4918p0f, 0x1.ae89fap0f, 0x1.c199bep0f, 0x1.d5818ep0f, 0x1.ea4afap0f);
    V t = _mm512_permutexvar_ps(_mm512_castps_si512(y), powers);
    return _mm512_scalef_ps(v_fma(t, r, t), n);
}
static inline V v_scale2(V p, V n) { return _mm512_scalef_ps(p, n); }
static inline V v_frexp(V x, V *e) {
    /* Within [0.75, 1.5), which the logarithm's polynomial allows for. */
    V m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    V b = _mm512_getexp_ps(x);
    *e = _mm512_mask_add_ps(b, _mm512_cmp_ps_mask(m, v_set1(1), _CMP_LT_OQ), b, v_set1(1));
    return m;
}

static inline R v_hmax(V a) {
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
static inline double v_hsum(V a) {
    __m512d s =
        _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)));
    __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(s), _mm512_extractf64x4_pd(s, 1));
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

static inline void v_transpose(V r[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0x88);
            t[i + 4 + j] = _mm512_shuffle_f32x4(r[i + j], r[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(t[j], t[8 + j], 0xdd);
    }
}

static inline void v_load_quads_f32(const char *const row[], int64_t offset, V r[4]) {
    __m512d t[4];
    __m512 q[4];
    for (int j = 0; j < 4; j++) { /* rows j, j + 4, j + 8, j + 12 */
        q[j] = _mm512_castps128_ps512(_mm_loadu_ps((const float *)(row[j] + offset)));
        q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps((const float *)(row[j + 4] + offset)), 1);
        q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps((const float *)(row[j + 8] + offset)), 2);
        q[j] = _mm512_insertf32x4(q[j], _mm_loadu_ps((const float *)(row[j + 12] + offset)), 3);
    }
    for (int j = 0; j < 4; j += 2) {
        t[j] = _mm512_castps_pd(_mm512_unpacklo_ps(q[j], q[j + 1]));
        t[j + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(q[j], q[j + 1]));
    }
    for (int j = 0; j < 2; j++) {
        r[2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[j], t[j + 2]));
        r[2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[j], t[j + 2]));
    }
}

/* Every `count`-th element from `first` on of count vectors, for a count known at compile time. */
static inline __attribute__((always_inline)) V v_split(const V r[], const int count, const int first) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i at = _mm512_add_epi32(_mm512_mullo_epi32(iota, _mm512_set1_epi32(count)), _mm512_set1_epi32(first));
    V out = _mm512_permutex2var_ps(r[0], at, r[1]);
    for (int c = 2; c < count; c++) {
        __mmask16 here = 0;
        for (int l = 0; l < 16; l++) here |= (__mmask16)((l * count + first) / 16 == c) << l;
        out = _mm512_mask_permutexvar_ps(out, here, at, r[c]);
    }
    return out;
}
/* The reverse: vector number `which` of those that v_split's results came from. */
static inline __attribute__((always_inline)) V v_merge(const V line[], const int count, const int which) {
    __m512i at = _mm512_setzero_si512();
    __mmask16 from[8] = {0};
    for (int i = 0; i < 16; i++) {
        int e = 16 * which + i;
        from[e % count] |= (__mmask16)(1 << i);
        at = _mm512_mask_mov_epi32(at, (__mmask16)(1 << i), _mm512_set1_epi32(e / count));
    }
    V out = _mm512_permutexvar_ps(at, line[0]);
    for (int c = 1; c < count; c++) out = _mm512_mask_permutexvar_ps(out, from[c], at, line[c]);
    return out;
}
/* LANES indices as numbers: exact below 2^24. */
static inline V v_indices(const int64_t *p) {
    __m256 a = _mm512_cvtepi64_ps(_mm512_loadu_si512(p)), b = _mm512_cvtepi64_ps(_mm512_loadu_si512(p + 8));
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

static inline V v_load_f32(const char *p) { return _mm512_loadu_ps(p); }
static inline V v_load_tail_f32(const char *p, int n, V fill) { return _mm512_mask_loadu_ps(fill, v_first(n), p); }
static inline void v_store_f32(char *p, V a) { _mm512_storeu_ps(p, a); }
static inline void v_store_tail_f32(char *p, V a, int n) { _mm512_mask_storeu_ps(p, v_first(n), a); }
static inline void v_stream_f32(char *p, V a) { _mm512_stream_ps((float *)p, a); }
static inline void v_stream_tail_f32(char *p, V a, int n) {
    V b = a;
    v_stream_bytes(p, &b, n * 4);
}

/* 16-bit floats as integers in the same order: the magnitude's bits of negative ones turned over. */
typedef __m512i W;
static inline W w_least(void) { return _mm512_set1_epi16(-0x8000); }
static inline W w_turn(W a) {
    return _mm512_ternarylogic_epi32(a, _mm512_srai_epi16(a, 15), _mm512_set1_epi16(0x7fff), 0x78);
}
static inline W w_load(const char *p) { return w_turn(_mm512_loadu_si512(p)); }
static inline W w_max(W a, W b) { return _mm512_max_epi16(a, b); }
static inline void w_store(int16_t *p, W a) { _mm512_storeu_si512(p, w_turn(a)); }

static inline V v_widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
/* Rounded to nearest even by hand (the bf16 instruction flushes subnormals): the result in the high half of each lane. */
static inline __m512i v_round_bf16(V a) {
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
}
static inline __m256i v_narrow_bf16(V a) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(v_round_bf16(a), 16)); }
/* 32 elements: the even ones in a, the odd ones in b. */
static inline void v_load_pair_bf16(const char *p, V *a, V *b) {
    __m512i u = _mm512_loadu_si512(p);
    *a = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
    *b = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000)));
}
static inline __m512i v_pair_bf16(V a, V b) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(v_round_bf16(a), 16), v_round_bf16(b));
}
static inline void v_storer_pair_bf16(void *to, V a, V b) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    v_storer(to, _mm512_permutex2var_ps(a, low, b));
    v_storer((float *)to + LANES, _mm512_permutex2var_ps(a, high, b));
}
static inline void v_store_pair_bf16(char *p, V a, V b) { _mm512_storeu_si512(p, v_pair_bf16(a, b)); }
static inline void v_stream_pair_bf16(char *p, V a, V b) { _mm512_stream_si512((__m512i *)p, v_pair_bf16(a, b)); }
static inline V v_load_bf16(const char *p) { return v_widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static inline V v_load_tail_bf16(const char *p, int n, V fill) {
    M k = v_first(n);
    return _mm512_mask_blend_ps(k, fill, v_widen_bf16(_mm256_maskz_loadu_epi16(k, p)));
}
static inline void v_store_bf16(char *p, V a) { _mm256_storeu_si256((__m256i *)p, v_narrow_bf16(a)); }
static inline void v_store_tail_bf16(char *p, V a, int n) { _mm256_mask_storeu_epi16(p, v_first(n), v_narrow_bf16(a)); }
static inline void v_stream_bf16(char *p, V a) { _mm256_stream_si256((__m256i *)p, v_narrow_bf16(a)); }
static inline void v_stream_tail_bf16(char *p, V a, int n) {
    __m256i b = v_narrow_bf16(a);
    v_stream_bytes(p, &b, n * 2);
}

static inline __m256i v_narrow_f16(V a) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_load_f16(const char *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline V v_load_tail_f16(const char *p, int n, V fill) {
    M k = v_first(n);
    return _mm512_mask_blend_ps(k, fill, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, p)));
}
static inline void v_store_f16(char *p, V a) { _mm256_storeu_si256((__m256i *)p, v_narrow_f16(a)); }
static inline void v_store_tail_f16(char *p, V a, int n) { _mm256_mask_storeu_epi16(p, v_first(n), v_narrow_f16(a)); }
static inline void v_stream_f16(char *p, V a) { _mm256_stream_si256((__m256i *)p, v_narrow_f16(a)); }
static inline void v_stream_tail_f16(char *p, V a, int n) {
    __m256i b = v_narrow_f16(a);
    v_stream_bytes(p, &b, n * 2);
}
