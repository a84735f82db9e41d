/* The panels of a run's positions: for FX_TILES LANES valid ones each, and what is asked of memory before it is needed. */

/* The panel of valid positions number k and on. */
static void tile_open(Panel *panel, const Run *run, int k) {
    const FxCall *call = panel->call;
    const FxOperand *x = &call->operand[FX_X];
    const int64_t row = call->classes * SIZE;
    panel->packed_from = -1;
    panel->width = run->valid - k < LANES ? run->valid - k : LANES;
    for (int l = 0; l < LANES; l++) {
        int64_t i = place(run, k + (l < panel->width ? l : 0));
        panel->row[l] = at_position(run, FX_X, i);
        panel->q[l] = call->targets_are_probs ? at_position(run, FX_Y, i + call->shift) : NULL;
        panel->out[l] = at_position(run, FX_OUT, i);
    }
    panel->ahead = panel->row[0];
    if (x->class_stride != SIZE || x->dtype != STORAGE) return;
    if (!run->index && run->step[FX_X] == row) { /* asked for line by line, see panel_sum_lines */
        panel->ahead += (TILE_AHEAD / (LANES * row) + 1) * LANES * row;
        return;
    }
    const int later = k + (int)(TILE_AHEAD / (LANES * row) + 1) * LANES;
    for (int l = later; l < run->valid && l < later + LANES; l++) {
        const char *p = at_position(run, FX_X, place(run, l));
        for (int64_t b = 0; b < row; b += 64) FX_PREFETCH(p + b);
    }
}

/* A chunk of gathered lines: a quarter of L1, which has to hold what is read for it too. */
enum { GATHER_BYTES = 1 << 13 };

/* Whether a run's lines are written in place, past the caches, and all meet cache lines at the same positions. */
static int columns_meet(const FxCall *call, const Run *run) {
    const FxOperand *out = &call->operand[FX_OUT];
    return out->data && call->stream && run->step[FX_X] == SIZE && run->step[FX_OUT] == SIZE &&
           out->class_stride % 64 == 0 && (uintptr_t)out->data % SIZE == 0;
}

/* By how many positions such lines begin past a cache line: panels end where one does. A processor waits for memory over
 * a cache line that is written in two parts, an Intel one most of all. */
static int columns_past(const FxCall *call, const Run *run) {
    return columns_meet(call, run) ? (int)((uintptr_t)run->base[FX_OUT] % 64) / SIZE : 0;
}

/* Where a line of positions was cut, the run before writes the whole cache line at the cut, and for that does the work of
 * the positions that it shares; the run behind counts their losses. */
static void columns_reach(const FxCall *call, Run *run) {
    if (!columns_meet(call, run) || !column_kept_width(call)) return;
    const int line = 64 / SIZE, past = columns_past(call, run), over = (past + run->n) % line;
    if (past && run->before) run->skip = line - past < run->n ? line - past : run->n;
    if (over && run->after) run->reach += (int)(line - over < run->after ? line - over : run->after);
}

/* The panel of a run's positions from `first` on, at most `width` of them, or as many as a chunk of gathered lines holds. */
static Panel column_open(const FxCall *call, FxScratch *s, const Run *run, int first, int width, int wants_output) {
    const int64_t few = GATHER_BYTES / (column_step(call->classes) * SIZE) / 16 * 16;
    const int most = few > 16 ? (int)few : 16;
    Panel panel = {.call = call,
                   .scratch = s,
                   .k = panel_scale(call),
                   .lines = at_position(run, FX_X, first),
                   .out_lines = wants_output ? at_position(run, FX_OUT, first) : NULL,
                   .packed_from = -1,
                   .columns = 1,
                   .first = first,
                   .skip = first ? 0 : run->skip,
                   .apart = run->step[FX_X],
                   .out_apart = run->step[FX_OUT]};
    panel.gathered = run->n > 1 && (panel.apart != SIZE || (wants_output && panel.out_apart != SIZE));
    if (panel.gathered && width > most) width = most;
    panel.width = run->reach - first < width ? run->reach - first : width;
    return panel;
}
