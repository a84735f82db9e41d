/* What follows from the storage type that the including file has named: FX_STORAGE is f32, f64, f16 or bf16. */
#include <math.h> /* INFINITY and NAN alone: no function of libm is called */
#include <string.h>

#include "../fastxent.h"
#include "../sum.h"

#define FX_CAT_(a, b) a##b
#define FX_CAT(a, b)  FX_CAT_(a, b)

#define FX_SIZE_f32  4
#define FX_SIZE_f64  8
#define FX_SIZE_f16  2
#define FX_SIZE_bf16 2
#define FX_CODE_f32  FX_F32
#define FX_CODE_f64  FX_F64
#define FX_CODE_f16  FX_F16
#define FX_CODE_bf16 FX_BF16

#define SIZE    FX_CAT(FX_SIZE_, FX_STORAGE)
#define STORAGE FX_CAT(FX_CODE_, FX_STORAGE)
#if SIZE == 8
#define FX_REAL      double
#define FX_REAL_BITS 64
#define FX_REAL_NAME f64
#else
#define FX_REAL      float
#define FX_REAL_BITS 32
#define FX_REAL_NAME f32
#endif
/* Storage and compute type are the same: packed and direct memory then look alike. */
#define STORAGE_IS_REAL (SIZE * 8 == FX_REAL_BITS)

#if defined(_MSC_VER) && !defined(__clang__)
#define FX_INLINE   __forceinline
#define FX_NOINLINE __declspec(noinline)
#define FX_UNROLL
#define FX_PREFETCH(p) ((void)(p))
#define FX_FORGET(p)   ((void)(p))
static __forceinline int FX_CTZ(uint64_t bits) {
    int n = 0;
    while (!(bits >> n & 1)) n++;
    return n;
}
#else
#define FX_INLINE      inline __attribute__((always_inline))
#define FX_NOINLINE    __attribute__((noinline))
#define FX_UNROLL      _Pragma("GCC unroll 16")
#define FX_PREFETCH(p) __builtin_prefetch(p)
#define FX_CTZ         __builtin_ctzll
#define FX_FORGET(p)   __asm__("" : "+r"(p)) /* what was read through p is not known to be there still */
#endif
