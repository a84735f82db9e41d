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

/* n results to an output of the storage type. */
static void put_values(const FxCall *call, const FxOperand *o, char *to, int64_t step, const R *from, int n) {
    if (o->dtype != STORAGE || step != SIZE) {
        EMIT(to, o->dtype, step, from, n);
        return;
    }
    const int stream = call->stream && (uintptr_t)to % SIZE == 0;
    int i = 0;
    if (stream) {
        i = (int)((uintptr_t)-(uintptr_t)to % (LANES * SIZE) / SIZE);
        if (i > n) i = n;
        if (i) v_store_tail(to, v_loadr(from), i);
    }
    for (; i + LANES <= n; i += LANES) {
        if (stream) v_stream(to + i * SIZE, v_loadr(from + i));
        else v_store(to + i * SIZE, v_loadr(from + i));
    }
    if (i < n) v_store_tail(to + i * SIZE, v_loadr(from + i), n - i);
}
