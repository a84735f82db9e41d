/* bfloat16 on AVX2. */
#define FX_STORAGE bf16
#include "../kernels/storage.h"
#if FX_X86_KERNELS
#include "../vec/avx2.h"
#include "../kernels/kernels.inl"
#endif
