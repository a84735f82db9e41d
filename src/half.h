/* float16 and bfloat16 in portable C: for the scalar vocabulary and for packing. Rounding is to nearest even, subnormals
 * included; every NaN becomes the quiet one. memcpy, because the addresses need not be aligned. */
#ifndef FX_HALF_H
#define FX_HALF_H
#include <stdint.h>
#include <string.h>

static inline float fx_bits_to_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t fx_float_to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static inline float fx_bf16_to_float(uint16_t h) { return fx_bits_to_float((uint32_t)h << 16); }
static inline uint16_t fx_float_to_bf16(float f) {
    uint32_t u = fx_float_to_bits(f);
    if (f != f) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float fx_f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return fx_bits_to_float(sign | 0x7f800000u | (magnitude << 13));
    /* Moving the exponent by a product with 2^112 is exact and makes subnormals normal. */
    float f = fx_bits_to_float(magnitude << 13) * 0x1p112f;
    return fx_bits_to_float(sign | fx_float_to_bits(f));
}
static inline uint16_t fx_float_to_f16(float f) {
    uint32_t u = fx_float_to_bits(f), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and up round to infinity */
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves the half's bits, rounded once, at the end of the float's mantissa. */
        float t = fx_bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (fx_float_to_bits(t) - 0x3f000000u));
    }
    uint32_t r = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((r - 0x38000000u) >> 13));
}

static inline uint16_t fx_get16(const char *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

/* One element of each storage type, unaligned. */
static inline float load_one_bf16(const char *p) { return fx_bf16_to_float(fx_get16(p)); }
static inline float load_one_f16(const char *p) { return fx_f16_to_float(fx_get16(p)); }
static inline float load_one_f32(const char *p) {
    float v;
    memcpy(&v, p, 4);
    return v;
}
static inline double load_one_f64(const char *p) {
    double v;
    memcpy(&v, p, 8);
    return v;
}
static inline void store_one_bf16(char *p, float v) {
    uint16_t h = fx_float_to_bf16(v);
    memcpy(p, &h, 2);
}
static inline void store_one_f16(char *p, float v) {
    uint16_t h = fx_float_to_f16(v);
    memcpy(p, &h, 2);
}
static inline void store_one_f32(char *p, float v) { memcpy(p, &v, 4); }
static inline void store_one_f64(char *p, double v) { memcpy(p, &v, 8); }
#endif
