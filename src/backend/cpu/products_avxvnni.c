/* Products with integer activations for AVX2 with AVX-VNNI. */
#include "backend/cpu/avx2.h"

/* As assembly, because gcc 12 copies accumulators around the intrinsic. */
ALWAYS_INLINE __m256i add_pairs(__m256i acc, __m256i w, __m256i x) {
    __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
    return acc;
}

#define NAME(X) avxvnni_##X
#define ADD_PAIRS add_pairs
#include "backend/cpu/products_avx2.h"
