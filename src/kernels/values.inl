/* Runs of elements between the caller's memory and arrays of the compute type: in place, by vectors, or packed. */

/* n elements as the compute type: where they are, if they are that already, else in the buffer. */
static const char *values_of(const FxOperand *o, const char *p, int64_t step, int n, R *buffer) {
    if (o->dtype != STORAGE || o->swapped || step != SIZE) {
        FETCH(buffer, p, o->dtype, o->swapped, step, n);
        return (const char *)buffer;
    }
    if (STORAGE_IS_REAL) return p;
    int i = 0;
    for (; i + LANES <= n; i += LANES) v_storer(buffer + i, v_load(p + i * SIZE));
    if (i < n) v_storer(buffer + i, v_load_tail(p + i * SIZE, n - i, v_set1(0)));
    return (const char *)buffer;
}

/* Elements from `to` to the first whole cache line. A line that is written half by streams and half by ordinary stores
 * costs more than streaming gains, so what lies before is streamed too, in smaller parts: most of such a line is complete
 * before it leaves the processor. */
static FX_INLINE int64_t stream_head(const char *to) { return (int64_t)((uintptr_t)-(uintptr_t)to % 64) / SIZE; }

/* A vector of a run of neighbours, from the j-th on: how many lanes of it are written, and whether by a whole stream. */
typedef struct {
    int j, lanes, whole;
} RunPart;

static FX_INLINE RunPart run_part(const char *to, int j, int n, int stream) {
    const int lead = stream ? (int)stream_head(to) : 0, end = j < lead && lead < n ? lead : n;
    const int lanes = end - j < LANES ? end - j : LANES;
    return (RunPart){j, lanes, j >= lead && lanes == LANES};
}

static FX_INLINE void run_put(char *to, RunPart part, V y, int stream) {
    to += (int64_t)part.j * SIZE;
    if (stream && part.whole) v_stream(to, y);
    else if (stream) v_stream_tail(to, y, part.lanes);
    else if (part.whole) v_store(to, y);
    else v_store_tail(to, y, part.lanes);
}

/* n results to an output of the storage type. */
static void put_values(const FxCall *call, const FxOperand *o, char *to, int64_t step, const R *from, int n) {
    if (o->dtype != STORAGE || step != SIZE) {
        EMIT(to, o->dtype, step, from, n);
        return;
    }
    const int stream = call->stream && (uintptr_t)to % SIZE == 0;
    for (int i = 0; i < n;) {
        const RunPart part = run_part(to, i, n, stream);
        run_put(to, part, v_loadr(from + i), stream);
        i += part.lanes;
    }
}
