/* Positions: which are valid, with which target and weight. A block is cut into runs: neighbours on one line of the
 * innermost axis, so that every operand is a base address and a step. Index and validity are read once, checked, and used
 * from a private copy: an array that another thread changes meanwhile cannot lead outside memory. */

typedef struct {
    int64_t first;         /* flat index of the run's first position */
    int n, valid;          /* positions, and how many of them are valid */
    int64_t before, after; /* positions of the same line before and after them */
    int skip, reach;       /* columns write positions skip … reach - 1 instead of 0 … n - 1: see columns_reach */
    int leading;           /* whether these are known to be the first ones, as lengths leave them */
    const int32_t *index;  /* the valid ones, in order; NULL: all of them, or not closed up */
    char *base[FX_OPERANDS];
    int64_t step[FX_OPERANDS];
} Run;

/* The place in the run of valid position number k. */
static FX_INLINE int64_t place(const Run *run, int k) { return run->index ? run->index[k] : k; }

/* Where an operand's position i of the run is; NULL for an absent operand. */
static FX_INLINE char *at_position(const Run *run, int operand, int64_t i) {
    return run->base[operand] ? run->base[operand] + i * run->step[operand] : NULL;
}

/* The row of logits that is read after that of valid position number k. */
static FX_INLINE const char *row_after(const Run *run, int k) {
    return k + 1 < run->valid ? at_position(run, FX_X, place(run, k + 1)) : NULL;
}

/* The run that starts at flat position `first` and ends at `end` at the latest. */
static void run_at(const FxCall *call, int64_t first, int64_t end, Run *run) {
    const int last = call->nd - 1;
    int64_t outer = first, inner = 0, line = 1;
    run->first = first;
    run->index = NULL;
    for (int o = 0; o < FX_OPERANDS; o++) {
        run->base[o] = call->operand[o].data;
        run->step[o] = last >= 0 ? call->operand[o].stride[last] : 0;
    }
    for (int d = last; d >= 0; d--) {
        int64_t i = outer % call->shape[d];
        outer /= call->shape[d];
        if (d == last) {
            inner = i;
            line = call->shape[d];
        }
        if (i)
            for (int o = 0; o < FX_OPERANDS; o++)
                if (run->base[o]) run->base[o] += i * call->operand[o].stride[d];
    }
    int64_t n = line - inner < end - first ? line - inner : end - first;
    run->n = run->reach = (int)n;
    run->skip = 0;
    run->before = inner;
    run->after = line - inner - n;
}

#define READ_INDICES(TYPE)                                                                                             \
    for (int i = 0; i < n; i++) {                                                                                      \
        TYPE v;                                                                                                        \
        memcpy(&v, p + i * step, sizeof v);                                                                            \
        to[i] = (int64_t)v;                                                                                            \
    }

static void read_indices(int64_t *to, const char *p, int dtype, int64_t step, int n) {
    switch (dtype) {
    case FX_I8: READ_INDICES(int8_t) break;
    case FX_I16: READ_INDICES(int16_t) break;
    case FX_I32: READ_INDICES(int32_t) break;
    case FX_I64:
        if (step == 8) {
            memcpy(to, p, 8 * (size_t)n);
            for (int i = 0; i < n; i += 8) FX_PREFETCH(p + (n + i) * 8); /* likely the next run's */
        } else {
            READ_INDICES(int64_t)
        }
        break;
    case FX_U8: READ_INDICES(uint8_t) break;
    case FX_U16: READ_INDICES(uint16_t) break;
    case FX_U32: READ_INDICES(uint32_t) break;
    default: READ_INDICES(uint64_t) break;
    }
}

static void report_bad(FxCall *call, int64_t position) {
    int64_t seen = atomic_load(&call->bad_position);
    while ((seen < 0 || position < seen) && !atomic_compare_exchange_weak(&call->bad_position, &seen, position)) {
    }
}

/* The same gradient scale for every position: then it is not written out. */
static int upstream_is_uniform(const FxCall *call) {
    return !call->focal && !call->sequence_scale && !call->operand[FX_UPSTREAM].data && !call->operand[FX_WEIGHT].data;
}

/* Closes up what read_positions left, to the valid positions alone. Without branches: which are valid is anyone's guess. */
static void close_up(FxCall *call, FxScratch *s, Run *run) {
    const int weighted = call->operand[FX_WEIGHT].data != NULL, uniform = upstream_is_uniform(call);
    int k = 0;
    for (int i = 0; i < run->n; i++) {
        const int64_t target = s->target[i];
        s->valid[k] = i;
        s->target[k] = target;
        if (weighted) s->sample[k] = s->sample[i];
        if (!uniform) s->upstream[k] = s->upstream[i];
        k += target >= 0;
    }
    run->index = s->valid;
}

/* The positions 0 … m - 1 one by one: target becomes -1 where invalid; returns how many are valid. */
static int check_positions(FxCall *call, FxScratch *s, const Run *run, int m, int indexed) {
    const int64_t shift = call->shift, ignore = call->ignore;
    const char *mask = run->base[FX_MASK], *weight = run->base[FX_WEIGHT];
    const int64_t mask_step = run->step[FX_MASK], weight_step = run->step[FX_WEIGHT];
    const int ignores = indexed && call->has_ignore;
    int64_t *target = s->target;
    int valid = 0;
    for (int i = 0; i < m; i++) {
        const int64_t t = target[i];
        int ok = !(ignores & (t == ignore));
        if (mask) ok &= mask[(i + shift) * mask_step] != 0;
        if (weight) {
            double w;
            memcpy(&w, weight + (i + shift) * weight_step, sizeof w);
            ok &= w != 0;
            s->sample[i] = ok ? w : 0;
        }
        if (ok & ((uint64_t)t >= (uint64_t)call->classes)) {
            report_bad(call, run->first + i);
            ok = 0;
        }
        target[i] = ok ? t : -1;
        valid += ok & (i < run->n);
    }
    return valid;
}

/* Fills scratch->target (-1: invalid), ->sample and ->upstream as far as the run reaches; returns its own share of the
 * divisor. */
static double read_positions(FxCall *call, FxScratch *s, Run *run, int with_upstream) {
    const int n = run->reach, indexed = !call->targets_are_probs && call->operand[FX_Y].data != NULL;
    const int64_t classes = call->classes, shift = call->shift;
    int64_t *target = s->target, live = n;
    if (call->lengths || shift) {
        int64_t t = run->first % call->sequence_length, length = call->sequence_length;
        int64_t b = run->first / call->sequence_length;
        if (call->lengths && call->lengths[b] < length) length = call->lengths[b];
        live = length - shift - t;
        live = live < 0 ? 0 : live > n ? n : live;
    }
    const int m = (int)live;
    char *y = run->base[FX_Y], *mask = run->base[FX_MASK], *weight = run->base[FX_WEIGHT];
    if (indexed && m) {
        read_indices(target, y + shift * run->step[FX_Y], call->operand[FX_Y].dtype, run->step[FX_Y], m);
    } else {
        for (int i = 0; i < m; i++) target[i] = 0;
    }
    memset(target + m, 0xff, sizeof *target * (size_t)(n - m));

    int plain = !mask && !weight;
    if (indexed && plain) {
        int outside = 0;
        for (int i = 0; i < m; i++)
            outside |= ((uint64_t)target[i] >= (uint64_t)classes) | (call->has_ignore & (target[i] == call->ignore));
        plain = !outside;
    }
    run->valid = plain ? (m < run->n ? m : run->n) : check_positions(call, s, run, m, indexed);
    run->leading = plain;
    if (weight)
        for (int i = m; i < n; i++) s->sample[i] = 0;
    if (with_upstream && !upstream_is_uniform(call)) {
        const char *up = run->base[FX_UPSTREAM];
        for (int i = 0; i < n; i++) {
            double u = call->scale, v;
            if (call->sequence_scale) u *= call->sequence_scale[(run->first + i) / call->sequence_length];
            if (up) {
                memcpy(&v, up + i * run->step[FX_UPSTREAM], sizeof v);
                u *= v;
            }
            s->upstream[i] = weight ? u * s->sample[i] : u;
        }
    }
    FxSum divisor = {0, 0};
    double *share = call->position_weight ? call->position_weight + run->first : NULL;
    const double *w = indexed && !call->focal ? call->class_weight : NULL;
    if (!weight && !w && !share) return (double)run->valid;
    for (int i = 0; i < run->n; i++) {
        double d = target[i] < 0 ? 0 : (weight ? s->sample[i] : 1) * (w ? w[target[i]] : 1);
        fx_add(&divisor, d);
        if (share) share[i] = d;
    }
    return fx_sum(divisor);
}

void KERNEL(prepare)(FxCall *call, FxScratch *s, int64_t block) {
    int64_t first, n;
    FxSum divisor = {0, 0};
    fx_block_range(call, block, &first, &n);
    for (int64_t end = first + n; first < end;) {
        Run run;
        run_at(call, first, end, &run);
        fx_add(&divisor, read_positions(call, s, &run, 0));
        first += run.n;
    }
    call->partial[block][0] = 0;
    call->partial[block][1] = fx_sum(divisor);
}
