/* NEON on 64-bit Arm, float64 arithmetic: 2 lanes. See README.md for the names. */
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

typedef double R;
typedef float64x2_t V;
typedef uint64x2_t M;
enum { LANES = 2 };

#define EXP_LOWEST     (-708.39)
#define V_BRANCHES     0
#define V_KEEPS        (1 << 20)
#define V_SPLITS       0
#define EXP_TABLE_BITS 0
enum { EXP_FUSED = 1 };
enum { EXP_CLAMPS = 1 };

static inline V v_set1(R a) { return vdupq_n_f64(a); }
static inline V v_loadr(const void *p) { return vreinterpretq_f64_u8(vld1q_u8((const uint8_t *)p)); }
static inline void v_storer(void *p, V a) { vst1q_u8((uint8_t *)p, vreinterpretq_u8_f64(a)); }
static inline V v_iota(void) { return vcombine_f64(vdup_n_f64(0), vdup_n_f64(1)); }

static inline V v_add(V a, V b) { return vaddq_f64(a, b); }
static inline V v_sub(V a, V b) { return vsubq_f64(a, b); }
static inline V v_mul(V a, V b) { return vmulq_f64(a, b); }
static inline V v_div(V a, V b) { return vdivq_f64(a, b); }
static inline V v_abs(V a) { return vabsq_f64(a); }
static inline V v_round(V a) { return vrndnq_f64(a); }
static inline V v_fma(V a, V b, V c) { return vfmaq_f64(c, a, b); }
static inline V v_fms(V a, V b, V c) { return vfmaq_f64(vnegq_f64(c), a, b); }
static inline V v_fnma(V a, V b, V c) { return vfmsq_f64(c, a, b); }
/* A comparison, as in neon_f32.h. */
static inline V v_inverse(V a) { return v_div(v_set1(1), a); }
static inline V v_max(V a, V b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }

static inline M v_lt(V a, V b) { return vcltq_f64(a, b); }
static inline M v_eq(V a, V b) { return vceqq_f64(a, b); }
static inline M v_ne(V a, V b) { return vreinterpretq_u64_u32(vmvnq_u32(vreinterpretq_u32_u64(vceqq_f64(a, b)))); }
static inline V v_select(M k, V a, V b) { return vbslq_f64(k, a, b); }
static inline V v_keep(M k, V a) { return vreinterpretq_f64_u64(vandq_u64(k, vreinterpretq_u64_f64(a))); }
static inline V v_drop(M k, V a) { return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(a), k)); }
static inline unsigned v_bits(M k) { return (unsigned)((vgetq_lane_u64(k, 0) & 1) | (vgetq_lane_u64(k, 1) & 2)); }
static inline V v_flush(V p, V x, V lowest) { return v_drop(v_lt(x, lowest), p); }
static inline V v_count(V n, M k) { return v_add(n, v_keep(k, v_set1(1))); }
typedef V N;
static inline N v_none(void) { return v_set1(0); }
static inline N v_tally(N n, M k) { return v_count(n, k); }
static inline V v_tallied(N n) { return n; }
static inline int v_any(M k) { return v_bits(k) != 0; }
static inline M v_first(int n) { return v_lt(v_iota(), v_set1((R)n)); }

static inline V v_scale2(V p, V n) {
    int64x2_t k = vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n), vdupq_n_s64(1023)), 52);
    return vmulq_f64(p, vreinterpretq_f64_s64(k));
}
static inline V v_exp2(V y, V n, V r) {
    (void)y;
    return v_scale2(v_add(v_set1(1), r), n);
}
static inline V v_frexp(V x, V *e) {
    const int64x2_t low = vdupq_n_s64(0x3fe8000000000000);
    int64x2_t u = vsubq_s64(vreinterpretq_s64_f64(x), low);
    *e = vcvtq_f64_s64(vshrq_n_s64(u, 52));
    return vreinterpretq_f64_s64(vaddq_s64(vandq_s64(u, vdupq_n_s64(0x000fffffffffffff)), low));
}

static inline R v_hmax(V a) {
    R p = vgetq_lane_f64(a, 0), q = vgetq_lane_f64(a, 1);
    return p > q ? p : q;
}
static inline double v_hsum(V a) { return vaddvq_f64(a); }
static inline void v_transpose(V r[2]) {
    V a = vtrn1q_f64(r[0], r[1]), b = vtrn2q_f64(r[0], r[1]);
    r[0] = a;
    r[1] = b;
}

static inline V v_load_f64(const char *p) { return v_loadr(p); }
static inline void v_store_f64(char *p, V a) { v_storer(p, a); }
/* A tail of two lanes has one element, or none. */
static inline V v_load_tail_f64(const char *p, int n, V fill) {
    double v;
    if (n == 0) return fill;
    if (n == 2) return v_loadr(p);
    memcpy(&v, p, sizeof v);
    return vsetq_lane_f64(v, fill, 0);
}
static inline void v_store_tail_f64(char *p, V a, int n) {
    double v = vgetq_lane_f64(a, 0);
    if (n == 2) v_storer(p, a);
    else if (n) memcpy(p, &v, sizeof v);
}
#define v_stream_f64      v_store_f64
#define v_stream_tail_f64 v_store_tail_f64
