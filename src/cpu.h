/* What this processor can run, and the floating-point state that the kernels count on. */
#ifndef FASTXENT_CPU_H
#define FASTXENT_CPU_H

#include <stdint.h>

typedef enum { FX_ISA_BASELINE, FX_ISA_AVX2, FX_ISA_AVX512, FX_ISA_NEON, FX_ISA_COUNT } FxIsa;

/* Bit (1u << isa) for each instruction set that the processor *and* the operating system support. The baseline's is
 * always set. Costs a few hundred cycles (CPUID traps in a virtual machine: microseconds): ask once and keep it. */
unsigned fx_cpu_isas(void);

/* "baseline", "avx2", "avx512", "neon"; NULL for any other number. */
const char *fx_isa_name(FxIsa isa);

/* The control register of SIMD arithmetic (MXCSR, FPCR). A caller may have set flush-to-zero, denormals-are-zero or
 * another rounding (torch.set_flush_denormal does, for one thread only): then results would depend on which thread
 * ran a block. fx_float_state_enter sets what IEEE 754 and the kernels expect and returns what was there;
 * fx_float_state_leave puts that back, sticky exception flags included. fx_parallel calls both around its tasks. */
uint64_t fx_float_state_enter(void);
void fx_float_state_leave(uint64_t saved);

#endif
