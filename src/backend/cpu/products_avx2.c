/* Products with integer activations for AVX2. */
#include "backend/cpu/avx2.h"

#define NAME(X) avx2_##X
#define ADD_PAIRS(ACC, W, X) _mm256_add_epi32(ACC, _mm256_madd_epi16(W, X))
#include "backend/cpu/products_avx2.h"

void avx2_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                 int8_t *out) {
    if (m->kind == CPU_SELL) {
        cpu_sell_expand(m, tile, block0, block1, out);
        return;
    }
    const __m256i c128 = _mm256_set1_epi8((char)0x80);
    struct cursor c = tile_cursor(m, tile);
    const bool dense = !c.masks;
    const __m256i table = byte_table(m, dense);
    for (int64_t i = 0; i < block0 * BLOCK_MICROS; i++)
        c.next[m->kind == CPU_LUT4 && i % 2] += dense ? 64 : _mm_popcnt_u64(c.masks[i]);
    for (int64_t i = block0 * BLOCK_MICROS; i < block1 * BLOCK_MICROS; i += 2) {
        for (int j = 0; j < 2; j++, out += 64) {
            struct rows w = m->kind == CPU_LUT4 ? next_codes(&c, CPU_LUT4, dense, j, i + j, table)
                                                : next_codes(&c, CPU_INT8, dense, j, i + j, table);
            for (int h = 0; h < 2; h++) /* signed again */
                store32(out + 32 * h, _mm256_xor_si256(w.half[h], c128));
        }
    }
}
