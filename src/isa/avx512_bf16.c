/* bfloat16 on AVX-512. */
#define FX_STORAGE bf16
#include "../kernels/storage.h"
#if FX_X86_KERNELS
#include "../vec/avx512.h"
#include "../kernels/kernels.inl"
#endif
