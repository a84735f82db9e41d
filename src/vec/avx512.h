/* Everything after this is compiled for AVX-512: the pragma must stand before GCC's vector types are used, and after
 * immintrin.h for Clang. */
#define FX_ISA avx512
#if defined(__clang__)
#define FX_CLANG_PUSHED
#include <immintrin.h>
#pragma clang attribute push(                                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))),        \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#endif
#if FX_REAL_BITS == 32
#include "avx512_f32.h"
#else
#include "avx512_f64.h"
#endif
