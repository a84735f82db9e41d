/* What the memory can do: a plain read and a copy with streaming stores, on several threads.
 *
 * Independent of the library on purpose: the limit must not depend on what is measured against it. Each thread reads its own
 * contiguous part, with four accumulators and the widest loads the compiler was told of. Threads are started for each call:
 * some 50 us against ten milliseconds. Built by bandwidth.py into a temporary folder.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { LINE = 256, MAX_THREADS = 256 };

typedef struct {
    const char *from;
    char *to;
    size_t bytes;
    uint64_t result;
} part;

#if defined(__AVX512F__)
typedef __m512i vector;
#define STREAM(p, v) _mm512_stream_si512((void *)(p), v)
#elif defined(__AVX2__)
typedef __m256i vector;
#define STREAM(p, v) _mm256_stream_si256((void *)(p), v)
#elif defined(__SSE2__)
typedef __m128i vector;
#define STREAM(p, v) _mm_stream_si128((void *)(p), v)
#else
typedef uint64_t vector __attribute__((vector_size(16)));
#define STREAM(p, v) (*(vector *)(p) = (v))
#endif

static void *read_part(void *argument) {
    part *p = argument;
    vector sum[4];
    memset(sum, 0, sizeof sum);
    for (size_t i = 0; i < p->bytes; i += LINE) {
        const vector *v = (const vector *)(p->from + i);
        for (size_t k = 0; k < LINE / sizeof(vector); k++) sum[k % 4] ^= v[k];
    }
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
    memcpy(&p->result, &sum[0], sizeof p->result);
    return NULL;
}

static void *copy_part(void *argument) {
    part *p = argument;
    for (size_t i = 0; i < p->bytes; i += LINE) {
        const vector *v = (const vector *)(p->from + i);
        for (size_t k = 0; k < LINE / sizeof(vector); k++) STREAM((vector *)(p->to + i) + k, v[k]);
    }
#if defined(__SSE2__)
    _mm_sfence();
#endif
    return NULL;
}

static uint64_t run(void *(*work)(void *), const char *from, char *to, size_t bytes, int threads) {
    pthread_t thread[MAX_THREADS];
    part parts[MAX_THREADS];
    uint64_t result = 0;
    size_t lines = bytes / LINE;
    for (int i = 0; i < threads; i++) {
        size_t begin = lines * (size_t)i / (size_t)threads * LINE,
               end = lines * (size_t)(i + 1) / (size_t)threads * LINE;
        parts[i] = (part){from + begin, to ? to + begin : NULL, end - begin, 0};
        if (i && pthread_create(&thread[i], NULL, work, &parts[i])) {
            work(&parts[i]);
            thread[i] = pthread_self();
        }
    }
    work(&parts[0]);
    for (int i = 0; i < threads; i++) {
        if (i && !pthread_equal(thread[i], pthread_self())) pthread_join(thread[i], NULL);
        result ^= parts[i].result;
    }
    return result;
}

/* Both want addresses that are multiples of 64 and read whole lines of 256 bytes; the rest is left out. */
uint64_t bench_read(const char *from, size_t bytes, int threads) { return run(read_part, from, NULL, bytes, threads); }

void bench_copy(const char *from, char *to, size_t bytes, int threads) {
    (void)run(copy_part, from, to, bytes, threads);
}
