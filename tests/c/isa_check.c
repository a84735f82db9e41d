/* Every instruction set of this machine against the portable kernels: losses and gradients of the same logits, by rows,
 * tiles and columns, in every storage type. Needs no Python, so it also runs under an emulator of another processor.
 * Prints one line for each instruction set and exits 1 if any strays by more than a few units in the last place. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../src/fastxent.h"
#include "../../src/half.h"

enum { POSITIONS = 37 };

static uint64_t state = 88172645463325252u;
static double uniform(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

static int size_of(int storage) { return storage == FX_F64 ? 8 : storage == FX_F32 ? 4 : 2; }
static double get(const char *p, int storage) {
    return storage == FX_F64   ? load_one_f64(p)
           : storage == FX_F32 ? load_one_f32(p)
           : storage == FX_F16 ? load_one_f16(p)
                               : load_one_bf16(p);
}
static void put(char *p, int storage, double v) {
    if (storage == FX_F64) store_one_f64(p, v);
    else if (storage == FX_F32) store_one_f32(p, (float)v);
    else if (storage == FX_F16) store_one_f16(p, (float)v);
    else store_one_bf16(p, (float)v);
}

/* One call; `columns`: the positions are neighbours in memory, not the classes. */
static void compute(int isa, int storage, int columns, int classes, char *x, char *grad, double *loss, int64_t *target,
                    double smoothing, double softcap) {
    static double partial[POSITIONS][2];
    static char losses[POSITIONS * 8];
    static FxCall call;
    const int size = size_of(storage);
    call = (FxCall){.operation = FX_OP_LOSS_GRAD,
                    .isa = isa,
                    .storage = storage,
                    .nd = 1,
                    .shape = {POSITIONS},
                    .positions = POSITIONS,
                    .classes = classes,
                    .sequence_length = 1,
                    .smoothing = smoothing,
                    .softcap = softcap,
                    .logit_scale = 1,
                    .scale = 1,
                    .class_weight_sum = classes};
    call.operand[FX_X] = (FxOperand){.data = x,
                                     .dtype = storage,
                                     .class_stride = columns ? size * POSITIONS : size,
                                     .stride = {columns ? size : size * classes}};
    call.operand[FX_OUT] = call.operand[FX_X];
    call.operand[FX_OUT].data = grad;
    call.operand[FX_Y] = (FxOperand){.data = (char *)target, .dtype = FX_I64, .stride = {8}};
    call.operand[FX_LOSSES] = (FxOperand){
        .data = losses, .dtype = storage == FX_F64 ? FX_F64 : FX_F32, .stride = {storage == FX_F64 ? 8 : 4}};
    call.partial = partial;
    atomic_init(&call.bad_position, -1);
    fx_plan_call(&call, 0);
    if (fx_run(&call, 0, 0, 1, 0) != call.blocks) exit(2);
    for (int i = 0; i < POSITIONS; i++)
        loss[i] = storage == FX_F64 ? load_one_f64(losses + 8 * i) : load_one_f32(losses + 4 * i);
}

static double strays(double a, double b) { return a == b || (a != a && b != b) ? 0 : fabs(a - b) / (fabs(b) + 1e-30); }

int main(void) {
    static const int sizes[] = {1, 2, 3, 5, 8, 9, 17, 33, 64, 95, 100, 255, 257, 1000, 1025, 2100};
    static const double unit[] = {[FX_F32] = 0x1p-23, [FX_F64] = 0x1p-52, [FX_F16] = 0x1p-10, [FX_BF16] = 0x1p-7};
    static int64_t target[POSITIONS];
    static double expected[POSITIONS], found[POSITIONS];
    const size_t room = (size_t)2100 * POSITIONS * 8;
    char *x = malloc(room), *plain = malloc(room), *grad = malloc(room);
    int failed = !x || !plain || !grad;
    for (int isa = 1; isa < FX_ISA_COUNT && !failed; isa++) {
        if (!(fx_available_isas() >> isa & 1)) continue;
        double worst_loss = 0, worst_grad = 0;
        for (int storage = 0; storage < FX_STORAGES; storage++)
            for (int option = 0; option < 6; option++)
                for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
                    const int classes = sizes[k], size = size_of(storage), columns = option % 2;
                    const double real = storage == FX_F64 ? 0x1p-52 : 0x1p-23;
                    const double smoothing = option / 2 == 1 ? 0.1 : 0, softcap = option / 2 == 2 ? 5 : 0;
                    for (int64_t i = 0; i < (int64_t)classes * POSITIONS; i++)
                        put(x + i * size, storage, uniform() < 0.01 && classes > 2 ? -INFINITY : 12 * uniform() - 6);
                    for (int i = 0; i < POSITIONS; i++) target[i] = (int64_t)(uniform() * classes);
                    compute(FX_ISA_BASELINE, storage, columns, classes, x, plain, expected, target, smoothing, softcap);
                    compute(isa, storage, columns, classes, x, grad, found, target, smoothing, softcap);
                    for (int i = 0; i < POSITIONS; i++)
                        worst_loss = fmax(worst_loss, strays(found[i], expected[i]) / real);
                    for (int64_t i = 0; i < (int64_t)classes * POSITIONS; i++) {
                        double a = get(grad + i * size, storage), b = get(plain + i * size, storage);
                        double bound = (unit[storage] + 64 * real) * (fabs(b) + 0.01);
                        worst_grad = fmax(worst_grad, a == b ? 0 : fabs(a - b) / bound);
                    }
                }
        printf("%s: losses within %.1f units in the last place, gradients within %.2f of the bound\n",
               fx_isa_name((FxIsa)isa), worst_loss, worst_grad);
        failed |= !(worst_loss < 32) || !(worst_grad < 1.5);
    }
    free(x);
    free(plain);
    free(grad);
    return failed;
}
