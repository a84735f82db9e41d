/* Streaming stores of less than a vector, for AVX2 and AVX-512 alike. */
#include <immintrin.h>
#include <string.h>

/* Words go past the caches, to any address; half a word at the end is stored. */
static inline void v_stream_bytes(char *to, const void *from, int bytes) {
    const char *p = (const char *)from;
    for (; bytes >= 4; bytes -= 4, p += 4, to += 4) {
        int word;
        memcpy(&word, p, 4);
        _mm_stream_si32((int *)(void *)to, word);
    }
    memcpy(to, p, (size_t)bytes);
}
