/* Detection by CPUID and XGETBV themselves rather than __builtin_cpu_supports: that needs libgcc's constructor, is
 * missing from MSVC, and in older compilers does not ask the operating system about the opmask and zmm registers.
 *
 * "avx2" stands for what x86-64-v3 has of use here (AVX2, FMA, F16C, BMI1, BMI2, LZCNT), "avx512" for that and
 * F, BW, DQ, VL, CD (x86-64-v4). A processor with a part of a set gets the next lower one. */
#include "cpu.h"

#include <stddef.h>

#if defined(__x86_64__) || defined(_M_X64) || defined(__i386__) || defined(_M_IX86)
#define FX_X86 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#if defined(__SSE2__) || defined(_M_X64)
#define FX_MXCSR 1
#include <xmmintrin.h>
#endif

#ifdef FX_X86

typedef struct {
    uint32_t a, b, c, d;
} Registers;

static Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r = {0, 0, 0, 0};
#if defined(_MSC_VER) && !defined(__clang__)
    int v[4];
    __cpuidex(v, (int)leaf, (int)subleaf);
    r.a = (uint32_t)v[0], r.b = (uint32_t)v[1], r.c = (uint32_t)v[2], r.d = (uint32_t)v[3];
#else
    __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
#endif
    return r;
}

/* XCR0: which registers the operating system saves when it switches threads. Only after CPUID said OSXSAVE. */
static uint64_t enabled_registers(void) {
#if defined(_MSC_VER) && !defined(__clang__)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
#endif
}

static int has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

#define BIT(n) (UINT32_C(1) << (n))

static unsigned x86_isas(void) {
    if (cpuid(0, 0).a < 7) {
        return 0;
    }
    const uint32_t basic = BIT(12) | BIT(27) | BIT(28) | BIT(29); /* FMA, OSXSAVE, AVX, F16C */
    if (!has(cpuid(1, 0).c, basic)) {
        return 0;
    }
    const uint64_t saved = enabled_registers();
    const Registers extended = cpuid(7, 0);
    const uint32_t v3 = BIT(3) | BIT(5) | BIT(8); /* BMI1, AVX2, BMI2 */
    const int lzcnt =
        cpuid(UINT32_C(0x80000000), 0).a > UINT32_C(0x80000000) && has(cpuid(UINT32_C(0x80000001), 0).c, BIT(5));
    if ((saved & 0x06) != 0x06 || !has(extended.b, v3) || !lzcnt) { /* xmm and ymm state */
        return 0;
    }
    const uint32_t v4 = BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31); /* F, DQ, CD, BW, VL */
    if ((saved & 0xe6) != 0xe6 || !has(extended.b, v4)) {                /* and opmask, zmm0-15, zmm16-31 */
        return 1u << FX_ISA_AVX2;
    }
    return (1u << FX_ISA_AVX2) | (1u << FX_ISA_AVX512);
}

#endif

unsigned fx_cpu_isas(void) {
    unsigned isas = 1u << FX_ISA_BASELINE;
#ifdef FX_X86
    isas |= x86_isas();
#elif defined(__aarch64__) || defined(_M_ARM64)
    isas |= 1u << FX_ISA_NEON; /* part of the architecture */
#endif
    return isas;
}

const char *fx_isa_name(FxIsa isa) {
    static const char *const names[FX_ISA_COUNT] = {"baseline", "avx2", "avx512", "neon"};
    return (unsigned)isa < (unsigned)FX_ISA_COUNT ? names[isa] : NULL;
}

#if defined(FX_MXCSR)

#define MXCSR_FLAGS    0x3fu   /* the sticky exception flags: of no influence */
#define MXCSR_STANDARD 0x1f80u /* all exceptions masked, round to nearest even, subnormals kept */

uint64_t fx_float_state_enter(void) {
    const unsigned found = _mm_getcsr();
    if ((found & ~MXCSR_FLAGS) != MXCSR_STANDARD) {
        _mm_setcsr(MXCSR_STANDARD);
    }
    return found;
}

void fx_float_state_leave(uint64_t saved) { _mm_setcsr((unsigned)saved); }

#elif defined(__aarch64__) && defined(__GNUC__)

uint64_t fx_float_state_enter(void) {
    uint64_t found;
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    if (found != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"(UINT64_C(0)));
    }
    return found;
}

void fx_float_state_leave(uint64_t saved) {
    if (saved != 0) {
        __asm__ volatile("msr fpcr, %0" : : "r"(saved));
    }
}

#else

uint64_t fx_float_state_enter(void) { return 0; }

void fx_float_state_leave(uint64_t saved) { (void)saved; }

#endif
