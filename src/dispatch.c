/* Which kernels this process can run, from kernels.def and the processor. Filled at compile time; the processor is asked
 * once. */
#include "fastxent.h"

#define FX_KERNELS(storage, isa)                                                                                       \
    void fx_block_##storage##_##isa(FxCall *, FxScratch *, int64_t);                                                   \
    void fx_prepare_##storage##_##isa(FxCall *, FxScratch *, int64_t);                                                 \
    void fx_divergence_##storage##_##isa(FxCall *, FxScratch *, int64_t);                                              \
    void fx_elements_##storage##_##isa(FxCall *, FxScratch *, int64_t);                                                \
    void fx_elements_prepare_##storage##_##isa(FxCall *, FxScratch *, int64_t);                                        \
    void fx_linear_##storage##_##isa(FxCall *, FxScratch *, int64_t);
#include "kernels.def"
#undef FX_KERNELS

enum {
    FX_CODE_f32 = FX_F32,
    FX_CODE_f64 = FX_F64,
    FX_CODE_f16 = FX_F16,
    FX_CODE_bf16 = FX_BF16,
    FX_CODE_baseline = FX_ISA_BASELINE,
    FX_CODE_avx2 = FX_ISA_AVX2,
    FX_CODE_avx512 = FX_ISA_AVX512,
    FX_CODE_neon = FX_ISA_NEON,
};

static const FxKernels table[FX_ISA_COUNT][FX_STORAGES] = {
#define FX_KERNELS(storage, isa)                                                                                       \
    [FX_CODE_##isa][FX_CODE_##storage] = {                                                                             \
        fx_block_##storage##_##isa,    fx_prepare_##storage##_##isa,          fx_divergence_##storage##_##isa,         \
        fx_elements_##storage##_##isa, fx_elements_prepare_##storage##_##isa, fx_linear_##storage##_##isa},
#include "kernels.def"
#undef FX_KERNELS
};

const FxKernels *fx_kernels(int isa, int storage) { return &table[isa][storage]; }

unsigned fx_available_isas(void) {
    static _Atomic unsigned known; /* the baseline's bit is always set, so 0 means: not asked yet */
    unsigned isas = atomic_load(&known);
    if (isas) return isas;
    unsigned have = fx_cpu_isas();
    for (int isa = 0; isa < FX_ISA_COUNT; isa++)
        if ((have >> isa & 1u) && table[isa][FX_F32].block) isas |= 1u << isa;
    atomic_store(&known, isas);
    return isas;
}

const char *fx_compiler(void) {
#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " TEXT(_MSC_VER);
#else
    return "unknown";
#endif
}
