/* All kernels of one storage type on one instruction set. Included last, after storage.h and a vocabulary; the only names
 * that leave the file are the two entry points, fx_block_bf16_avx512 and its like. */
#define KERNEL(name) FX_CAT(FX_CAT(FX_CAT(fx_, name), FX_CAT(_, FX_STORAGE)), FX_CAT(_, FX_ISA))

#define v_load        FX_CAT(v_load_, FX_STORAGE)
#define v_load_tail   FX_CAT(v_load_tail_, FX_STORAGE)
#define v_store       FX_CAT(v_store_, FX_STORAGE)
#define v_store_tail  FX_CAT(v_store_tail_, FX_STORAGE)
#define v_stream      FX_CAT(v_stream_, FX_STORAGE)
#define v_stream_tail FX_CAT(v_stream_tail_, FX_STORAGE)
#if FX_CAT(V_PAIRS_, FX_STORAGE)
#define V_PAIRS       1
#define v_load_pair   FX_CAT(v_load_pair_, FX_STORAGE)
#define v_store_pair  FX_CAT(v_store_pair_, FX_STORAGE)
#define v_stream_pair FX_CAT(v_stream_pair_, FX_STORAGE)
#define v_storer_pair FX_CAT(v_storer_pair_, FX_STORAGE)
#else
#define V_PAIRS                0
#define v_load_pair(p, a, b)   ((void)0)
#define v_store_pair(p, a, b)  ((void)0)
#define v_stream_pair(p, a, b) ((void)0)
#define v_storer_pair(p, a, b) ((void)0)
#endif
#if FX_CAT(V_QUADS_, FX_STORAGE)
#define V_QUADS      FX_CAT(V_QUADS_, FX_STORAGE)
#define v_load_quads FX_CAT(v_load_quads_, FX_STORAGE)
#if V_QUADS > 1
#define v_store_quads FX_CAT(v_store_quads_, FX_STORAGE)
#else
#define v_store_quads(rows, offset, r) ((void)(r))
#endif
#else
#define V_QUADS                        0
#define v_load_quads(rows, offset, r)  ((void)0)
#define v_store_quads(rows, offset, r) ((void)(r))
#endif
#define V_HALVES                  FX_CAT(V_HALVES_, FX_STORAGE) /* 0 where it is not defined */
#define v_load_tail_r(p, n, fill) FX_CAT(v_load_tail_, FX_REAL_NAME)((const char *)(p), n, fill)
#define FETCH                     FX_CAT(fx_fetch_, FX_REAL_NAME)
#define EMIT                      FX_CAT(fx_emit_, FX_REAL_NAME)

void KERNEL(block)(FxCall *call, FxScratch *s, int64_t block);
void KERNEL(prepare)(FxCall *call, FxScratch *s, int64_t block);
void KERNEL(divergence)(FxCall *call, FxScratch *s, int64_t block);
void KERNEL(elements)(FxCall *call, FxScratch *s, int64_t block);
void KERNEL(elements_prepare)(FxCall *call, FxScratch *s, int64_t block);
void KERNEL(linear)(FxCall *call, FxScratch *s, int64_t block);

#include "../half.h"
#include "math.inl"
#include "transform.inl"
#include "values.inl"
#include "row.inl"
#include "write.inl"
#include "lane.inl"
#include "order.inl"
#include "column.inl"
#include "finish.inl"
#include "focal.inl"
#include "positions.inl"
#include "tile.inl"
#include "pick.inl"
#include "top.inl"
#include "statistics.inl"
#include "few.inl"
#include "block.inl"
#include "divergence.inl"
#include "elementwise.inl"
#include "linear.inl"

#ifdef FX_CLANG_PUSHED /* vec/avx512.h, vec/avx2.h */
#pragma clang attribute pop
#endif
