/* Everything after this is compiled for AVX2 with FMA and F16C (see avx512.h for the pragmas' places). */
#define FX_ISA avx2
#if defined(__clang__)
#define FX_CLANG_PUSHED
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#endif
#if FX_REAL_BITS == 32
#include "avx2_f32.h"
#else
#include "avx2_f64.h"
#endif
