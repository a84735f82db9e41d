/* bfloat16 on NEON. */
#define FX_STORAGE bf16
#include "../kernels/storage.h"
#if FX_NEON_KERNELS
#include "../vec/neon.h"
#include "../kernels/kernels.inl"
#endif
