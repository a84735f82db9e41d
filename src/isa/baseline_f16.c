/* float16 on any processor. */
#define FX_STORAGE f16
#include "../kernels/storage.h"
#include "../vec/baseline.h"
#include "../kernels/kernels.inl"
