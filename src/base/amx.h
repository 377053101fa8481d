/** Intel's AMX: tiles of 16 x 64 bytes in registers, of Sapphire Rapids and later. */
#ifndef PDVM_BASE_AMX_H
#define PDVM_BASE_AMX_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__AMX_TILE__) || defined(__AMXTILE__)
#include <immintrin.h>
#endif

/** Kinds of products; the values are their bits in CPUID 7, register D. */
enum pd_amx_kind { PD_AMX_BF16 = 22, PD_AMX_INT8 = 25 };

/**
 * Whether this processor forms such products and this system saves the tiles. Linux wants to be
 * asked for them, which this does; false on any other system.
 */
bool pd_amx_supported(enum pd_amx_kind kind);

/** What LDTILECFG reads: the shapes of the tiles. */
struct pd_amx_config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/** Eight whole tiles. */
static inline struct pd_amx_config pd_amx_whole_tiles(void) {
    struct pd_amx_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    return config;
}

#if defined(__AMX_TILE__) || defined(__AMXTILE__)
/** Gives the thread's tiles these shapes. For files compiled for AMX. */
static inline void pd_amx_configure(const struct pd_amx_config *config) {
    __asm__ volatile("" : : "r"(config) : "memory"); /* the intrinsic does not say that it reads */
    _tile_loadconfig(config);
}
#endif

#endif
