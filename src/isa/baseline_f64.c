/* float64 on any processor. */
#define FX_STORAGE f64
#include "../kernels/storage.h"
#include "../vec/baseline.h"
#include "../kernels/kernels.inl"
