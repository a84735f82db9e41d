/* float64 on AVX-512. */
#define FX_STORAGE f64
#include "../kernels/storage.h"
#if FX_X86_KERNELS
#include "../vec/avx512.h"
#include "../kernels/kernels.inl"
#endif
