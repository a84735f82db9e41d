/* One lane of portable C11, for both compute types: the file that includes this has defined FX_REAL (float or double) and FX_REAL_BITS.
 * No fma(): without hardware it is a library call, and nothing here relies on its exactness. See README.md. */
#include <stdint.h>
#include <string.h>

#include "../half.h"

typedef FX_REAL R;
typedef FX_REAL V;
typedef int M;
enum { LANES = 1 };

#define EXP_LOWEST     (sizeof(R) == 4 ? (R) - 87.336 : (R) - 708.39)
#define V_BRANCHES     0
#define V_KEEPS        (1 << 20)
#define V_SPLITS       0
#define EXP_TABLE_BITS 0
enum { EXP_FUSED = 0 };
enum { EXP_CLAMPS = 1 };

static inline V v_set1(R a) { return a; }
static inline V v_loadr(const void *p) {
    V a;
    memcpy(&a, p, sizeof a);
    return a;
}
static inline void v_storer(void *p, V a) { memcpy(p, &a, sizeof a); }
static inline V v_iota(void) { return 0; }

static inline V v_add(V a, V b) { return a + b; }
static inline V v_sub(V a, V b) { return a - b; }
static inline V v_mul(V a, V b) { return a * b; }
static inline V v_div(V a, V b) { return a / b; }
static inline V v_inverse(V a) { return 1 / a; }
static inline V v_abs(V a) { return a < 0 ? -a : a + 0; }
static inline V v_round(V a) {
    /* Adding and taking away 1.5·2^(mantissa bits) rounds to nearest even; larger values are integers already. */
    const V big = sizeof(R) == 4 ? (V)12582912.0 : (V)6755399441055744.0;
    V t = a + big;
    return v_abs(a) < big / 4 ? t - big : a;
}
static inline V v_fma(V a, V b, V c) { return a * b + c; }
static inline V v_fms(V a, V b, V c) { return a * b - c; }
static inline V v_fnma(V a, V b, V c) { return c - a * b; }
static inline V v_max(V a, V b) { return a > b ? a : b; }

static inline M v_lt(V a, V b) { return a < b; }
static inline M v_eq(V a, V b) { return a == b; }
static inline M v_ne(V a, V b) { return !(a == b); }
static inline V v_select(M k, V a, V b) { return k ? a : b; }
static inline V v_keep(M k, V a) { return k ? a : 0; }
static inline V v_drop(M k, V a) { return k ? 0 : a; }
static inline V v_flush(V p, V x, V lowest) { return v_drop(v_lt(x, lowest), p); }
static inline V v_count(V n, M k) { return v_add(n, v_keep(k, v_set1(1))); }
typedef V N;
static inline N v_none(void) { return 0; }
static inline N v_tally(N n, M k) { return v_count(n, k); }
static inline V v_tallied(N n) { return n; }
static inline int v_any(M k) { return k; }
static inline unsigned v_bits(M k) { return (unsigned)k; }
static inline M v_first(int n) { return n > 0; }

/* NaN and infinity, which no integer can hold, come with a p that is NaN. */
#if FX_REAL_BITS == 32
static inline V v_scale2(V p, V n) {
    uint32_t k = (uint32_t)((v_abs(n) < 4096 ? (int32_t)n : 0) + 127) << 23;
    return p * v_loadr(&k);
}
static inline V v_frexp(V x, V *e) {
    uint32_t u; /* a number below 0 has no logarithm, and goes through here all the same */
    memcpy(&u, &x, 4);
    u -= 0x3f400000;
    *e = (V)((int32_t)u >> 23);
    u = (u & 0x007fffff) + 0x3f400000;
    return v_loadr(&u);
}
#else
static inline V v_scale2(V p, V n) {
    uint64_t k = (uint64_t)((v_abs(n) < 4096 ? (int64_t)n : 0) + 1023) << 52;
    return p * v_loadr(&k);
}
static inline V v_frexp(V x, V *e) {
    uint64_t u;
    memcpy(&u, &x, 8);
    u -= 0x3fe8000000000000;
    *e = (V)((int64_t)u >> 52);
    u = (u & 0x000fffffffffffff) + 0x3fe8000000000000;
    return v_loadr(&u);
}
#endif
static inline V v_exp2(V y, V n, V r) {
    (void)y;
    return v_scale2(v_add(v_set1(1), r), n);
}
static inline R v_hmax(V a) { return a; }
static inline double v_hsum(V a) { return (double)a; }
static inline void v_transpose(V *r) { (void)r; }

/* A tail has fewer elements than lanes: with one lane there is none, so the tail forms are the plain ones. */
#define v_load_tail_f32(p, n, fill)  ((void)(n), (void)(fill), v_load_f32(p))
#define v_load_tail_f64(p, n, fill)  ((void)(n), (void)(fill), v_load_f64(p))
#define v_load_tail_bf16(p, n, fill) ((void)(n), (void)(fill), v_load_bf16(p))
#define v_load_tail_f16(p, n, fill)  ((void)(n), (void)(fill), v_load_f16(p))
#define v_store_tail_f32(p, a, n)    ((void)(n), v_store_f32(p, a))
#define v_store_tail_f64(p, a, n)    ((void)(n), v_store_f64(p, a))
#define v_store_tail_bf16(p, a, n)   ((void)(n), v_store_bf16(p, a))
#define v_store_tail_f16(p, a, n)    ((void)(n), v_store_f16(p, a))
#define v_stream_f32                 v_store_f32
#define v_stream_tail_f32            v_store_tail_f32
#define v_stream_f64                 v_store_f64
#define v_stream_tail_f64            v_store_tail_f64
#define v_stream_bf16                v_store_bf16
#define v_stream_tail_bf16           v_store_tail_bf16
#define v_stream_f16                 v_store_f16
#define v_stream_tail_f16            v_store_tail_f16

#if FX_REAL_BITS == 32
static inline V v_load_f32(const char *p) { return v_loadr(p); }
static inline void v_store_f32(char *p, V a) { v_storer(p, a); }
static inline V v_load_bf16(const char *p) { return load_one_bf16(p); }
static inline void v_store_bf16(char *p, V a) { store_one_bf16(p, a); }
static inline V v_load_f16(const char *p) { return load_one_f16(p); }
static inline void v_store_f16(char *p, V a) { store_one_f16(p, a); }
#else
static inline V v_load_f64(const char *p) { return v_loadr(p); }
static inline void v_store_f64(char *p, V a) { v_storer(p, a); }
#endif
