/* Between memory of any dtype, stride and byte order and contiguous values of the compute type. Not the fast way: what
 * the kernels can read in place they do; this serves odd strides, swapped bytes, integers and other dtypes, a block at a
 * time. memcpy, because nothing says that an address is aligned. */
#include "fastxent.h"
#include "half.h"

static inline uint16_t swap16(uint16_t v) { return (uint16_t)(v << 8 | v >> 8); }
static inline uint32_t swap32(uint32_t v) { return (uint32_t)swap16((uint16_t)v) << 16 | swap16((uint16_t)(v >> 16)); }
static inline uint64_t swap64(uint64_t v) { return (uint64_t)swap32((uint32_t)v) << 32 | swap32((uint32_t)(v >> 32)); }

/* Each reads one value of BITS bits at p, swapped or not, and leaves it in v as TYPE. */
#define LOOP(BITS, TYPE, VALUE)                                                                                        \
    for (int64_t i = 0; i < n; i++, p += stride) {                                                                     \
        uint##BITS##_t u;                                                                                              \
        TYPE v;                                                                                                        \
        memcpy(&u, p, sizeof u);                                                                                       \
        if (swapped) u = swap##BITS(u);                                                                                \
        memcpy(&v, &u, sizeof v);                                                                                      \
        to[i] = VALUE;                                                                                                 \
    }
static inline uint8_t swap8(uint8_t v) { return v; }

#define FETCH_BODY(REAL)                                                                                               \
    switch (dtype) {                                                                                                   \
    case FX_F32: LOOP(32, float, (REAL)v) break;                                                                       \
    case FX_F64: LOOP(64, double, (REAL)v) break;                                                                      \
    case FX_F16: LOOP(16, uint16_t, (REAL)fx_f16_to_float(v)) break;                                                   \
    case FX_BF16: LOOP(16, uint16_t, (REAL)fx_bf16_to_float(v)) break;                                                 \
    case FX_I8: LOOP(8, int8_t, (REAL)v) break;                                                                        \
    case FX_I16: LOOP(16, int16_t, (REAL)v) break;                                                                     \
    case FX_I32: LOOP(32, int32_t, (REAL)v) break;                                                                     \
    case FX_I64: LOOP(64, int64_t, (REAL)v) break;                                                                     \
    case FX_U8: LOOP(8, uint8_t, (REAL)v) break;                                                                       \
    case FX_U16: LOOP(16, uint16_t, (REAL)v) break;                                                                    \
    case FX_U32: LOOP(32, uint32_t, (REAL)v) break;                                                                    \
    default: LOOP(64, uint64_t, (REAL)v) break;                                                                        \
    }

void fx_fetch_f32(float *to, const char *p, int dtype, int swapped, int64_t stride, int64_t n) {
    if (dtype == FX_F32 && !swapped && stride == 4) memcpy(to, p, 4 * (size_t)n);
    else FETCH_BODY(float)
}
void fx_fetch_f64(double *to, const char *p, int dtype, int swapped, int64_t stride, int64_t n) {
    if (dtype == FX_F64 && !swapped && stride == 8) memcpy(to, p, 8 * (size_t)n);
    else FETCH_BODY(double)
}

void fx_emit_f32(char *p, int dtype, int64_t stride, const float *from, int64_t n) {
    if (dtype == FX_F32 && stride == 4) memcpy(p, from, 4 * (size_t)n);
    else if (dtype == FX_F32)
        for (int64_t i = 0; i < n; i++) store_one_f32(p + i * stride, from[i]);
    else if (dtype == FX_F64)
        for (int64_t i = 0; i < n; i++) store_one_f64(p + i * stride, (double)from[i]);
    else if (dtype == FX_F16)
        for (int64_t i = 0; i < n; i++) store_one_f16(p + i * stride, from[i]);
    else
        for (int64_t i = 0; i < n; i++) store_one_bf16(p + i * stride, from[i]);
}
void fx_emit_f64(char *p, int dtype, int64_t stride, const double *from, int64_t n) {
    (void)dtype; /* float64 results are stored as float64 */
    if (stride == 8) memcpy(p, from, 8 * (size_t)n);
    else
        for (int64_t i = 0; i < n; i++) store_one_f64(p + i * stride, from[i]);
}
