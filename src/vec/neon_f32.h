/* NEON on 64-bit Arm, float32 arithmetic: 4 lanes. See README.md for the names. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef float R;
typedef float32x4_t V;
typedef uint32x4_t M;
enum { LANES = 4 };

#define EXP_LOWEST     (-87.336f)
#define V_BRANCHES     0
#define V_KEEPS        (1 << 20)
#define V_SPLITS       0
#define EXP_TABLE_BITS 0
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 1 };

static inline V v_set1(R a) { return vdupq_n_f32(a); }
static inline V v_loadr(const void *p) { return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p)); }
static inline void v_storer(void *p, V a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_f32(a)); }
static inline V v_iota(void) {
    const float i[4] = {0, 1, 2, 3};
    return vld1q_f32(i);
}

static inline V v_add(V a, V b) { return vaddq_f32(a, b); }
static inline V v_sub(V a, V b) { return vsubq_f32(a, b); }
static inline V v_mul(V a, V b) { return vmulq_f32(a, b); }
static inline V v_div(V a, V b) { return vdivq_f32(a, b); }
static inline V v_abs(V a) { return vabsq_f32(a); }
static inline V v_round(V a) { return vrndnq_f32(a); }
static inline V v_fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
static inline V v_fms(V a, V b, V c) { return vfmaq_f32(vnegq_f32(c), a, b); }
static inline V v_fnma(V a, V b, V c) { return vfmsq_f32(c, a, b); }
/* A comparison, because the instruction for the maximum has another rule for NaN. */
static inline V v_inverse(V a) { return v_div(v_set1(1), a); }
static inline V v_max(V a, V b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

static inline M v_lt(V a, V b) { return vcltq_f32(a, b); }
static inline M v_eq(V a, V b) { return vceqq_f32(a, b); }
static inline M v_ne(V a, V b) { return vmvnq_u32(vceqq_f32(a, b)); }
static inline V v_select(M k, V a, V b) { return vbslq_f32(k, a, b); }
static inline V v_keep(M k, V a) { return vreinterpretq_f32_u32(vandq_u32(k, vreinterpretq_u32_f32(a))); }
static inline V v_drop(M k, V a) { return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), k)); }
static inline V v_flush(V p, V x, V lowest) { return v_drop(v_lt(x, lowest), p); }
static inline V v_count(V n, M k) { return v_add(n, v_keep(k, v_set1(1))); }
typedef V N;
static inline N v_none(void) { return v_set1(0); }
static inline N v_tally(N n, M k) { return v_count(n, k); }
static inline V v_tallied(N n) { return n; }
static inline int v_any(M k) { return vmaxvq_u32(k) != 0; }
static inline unsigned v_bits(M k) {
    const uint32_t bit[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(k, vld1q_u32(bit)));
}
static inline M v_first(int n) { return v_lt(v_iota(), v_set1((R)n)); }

static inline V v_scale2(V p, V n) {
    int32x4_t k = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(p, vreinterpretq_f32_s32(k));
}
static inline V v_exp2(V y, V n, V r) {
    (void)y;
    return v_scale2(v_add(v_set1(1), r), n);
}
static inline V v_frexp(V x, V *e) {
    int32x4_t u = vsubq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x3f400000));
    *e = vcvtq_f32_s32(vshrq_n_s32(u, 23));
    return vreinterpretq_f32_s32(vaddq_s32(vandq_s32(u, vdupq_n_s32(0x007fffff)), vdupq_n_s32(0x3f400000)));
}

static inline R v_hmax(V a) {
    float v[4];
    vst1q_f32(v, a);
    float p = v[0] > v[1] ? v[0] : v[1], q = v[2] > v[3] ? v[2] : v[3];
    return p > q ? p : q;
}
static inline double v_hsum(V a) { return vaddvq_f64(vaddq_f64(vcvt_f64_f32(vget_low_f32(a)), vcvt_high_f64_f32(a))); }

static inline void v_transpose(V r[4]) {
    V a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]), c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
    r[1] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
    r[2] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
    r[3] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
}

/* Tails pass through a small buffer: NEON masks no memory access. */
static inline void v_copy_bytes(void *to, const void *from, int n) {
    for (int i = 0; i < n; i++) ((char *)to)[i] = ((const char *)from)[i];
}

static inline V v_load_f32(const char *p) { return v_loadr(p); }
static inline V v_load_tail_f32(const char *p, int n, V fill) {
    char b[16] = {0};
    v_copy_bytes(b, p, 4 * n);
    return v_select(v_first(n), v_loadr(b), fill);
}
static inline void v_store_f32(char *p, V a) { v_storer(p, a); }
static inline void v_store_tail_f32(char *p, V a, int n) {
    char b[16];
    v_storer(b, a);
    v_copy_bytes(p, b, 4 * n);
}
#define v_stream_f32      v_store_f32
#define v_stream_tail_f32 v_store_tail_f32

static inline uint16x4_t v_get_halves(const void *p) { return vreinterpret_u16_u8(vld1_u8((const uint8_t *)p)); }
static inline void v_put_halves(void *p, uint16x4_t h) { vst1_u8((uint8_t *)p, vreinterpret_u8_u16(h)); }

static inline V v_load_bf16(const char *p) { return vreinterpretq_f32_u32(vshll_n_u16(v_get_halves(p), 16)); }
static inline V v_load_tail_bf16(const char *p, int n, V fill) {
    char b[8] = {0};
    v_copy_bytes(b, p, 2 * n);
    return v_select(v_first(n), v_load_bf16(b), fill);
}
static inline void v_store_bf16(char *p, V a) {
    uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd);
    r = vbslq_u32(vceqq_f32(a, a), r, vdupq_n_u32(0x7fc00000));
    v_put_halves(p, vshrn_n_u32(r, 16));
}
static inline void v_store_tail_bf16(char *p, V a, int n) {
    char b[8];
    v_store_bf16(b, a);
    v_copy_bytes(p, b, 2 * n);
}
#define v_stream_bf16      v_store_bf16
#define v_stream_tail_bf16 v_store_tail_bf16

static inline V v_load_f16(const char *p) { return vcvt_f32_f16(vreinterpret_f16_u16(v_get_halves(p))); }
static inline V v_load_tail_f16(const char *p, int n, V fill) {
    char b[8] = {0};
    v_copy_bytes(b, p, 2 * n);
    return v_select(v_first(n), v_load_f16(b), fill);
}
static inline void v_store_f16(char *p, V a) { v_put_halves(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
static inline void v_store_tail_f16(char *p, V a, int n) {
    char b[8];
    v_store_f16(b, a);
    v_copy_bytes(p, b, 2 * n);
}
#define v_stream_f16      v_store_f16
#define v_stream_tail_f16 v_store_tail_f16
