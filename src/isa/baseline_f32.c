/* float32 on any processor. */
#define FX_STORAGE f32
#include "../kernels/storage.h"
#include "../vec/baseline.h"
#include "../kernels/kernels.inl"
