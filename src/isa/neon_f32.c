/* float32 on NEON. */
#define FX_STORAGE f32
#include "../kernels/storage.h"
#if FX_NEON_KERNELS
#include "../vec/neon.h"
#include "../kernels/kernels.inl"
#endif
