/* NEON is part of every 64-bit Arm processor: no pragma. */
#define FX_ISA neon
#if FX_REAL_BITS == 32
#include "neon_f32.h"
#else
#include "neon_f64.h"
#endif
