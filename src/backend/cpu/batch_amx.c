/*
 * Batch kernels for AMX (Intel Sapphire Rapids and later): tiles of 16 x 64 bytes in registers,
 * 16384 products of bytes by one instruction.
 */
#include "backend/cpu/batch_avx512.h"
#include "base/amx.h"

bool cpu_amx_supported(void) {
    return pd_amx_supported(PD_AMX_INT8);
}

/* Tiles 0 to 3 are sums of 16 tokens x 16 rows, 4 and 5 activations, 6 and 7 weights. */
static void configure(int columns) {
    struct pd_amx_config config = pd_amx_whole_tiles();
    config.row_bytes[4] = config.row_bytes[5] = (uint16_t)columns;
    config.rows[6] = config.rows[7] = (uint8_t)(columns / 4);
    pd_amx_configure(&config);
}

/* Each step of `columns` (64, or 32) multiplies one or two digits with two times 16 rows. */
ALWAYS_INLINE void dots_by(int64_t columns, int digits, const struct cpu_panel *panel, int64_t row,
                           const struct cpu_token_tile *tokens, int64_t begin, int64_t end,
                           struct batch_sums *sums) {
    const int64_t steps = (panel->rows + PANEL_STEP - 1) / PANEL_STEP, step = row / PANEL_STEP;
    const int64_t bytes = columns * 16 * digits; /* of activations for these columns */
    const int64_t fetch0 = bytes * step / steps, fetch1 = bytes * (step + 1) / steps;
    const char *next = tokens->next;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t column = begin; column < end; column += columns) {
        /* The next 16 tokens' activations may be far: each step over the rows fetches its part. */
        for (int64_t i = fetch0; next && i < fetch1; i += 64)
            _mm_prefetch(next + column * 16 * digits + i, _MM_HINT_T1);
        const int8_t *x = batch_digits(tokens, column);
        _tile_loadd(4, x, 64);
        _tile_loadd(6, batch_codes(panel, row, column), 64);
        _tile_loadd(7, batch_codes(panel, row + 16, column), 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (digits > 1) {
            _tile_loadd(5, x + 1024, 64);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, sums->c[0][0], 64);
    _tile_stored(1, sums->c[0][1], 64);
    if (digits > 1) {
        _tile_stored(2, sums->c[1][0], 64);
        _tile_stored(3, sums->c[1][1], 64);
    }
}

#define DOTS(NAME, COLUMNS, DIGITS)                                                                \
    static void NAME(const struct cpu_panel *panel, int64_t row,                                   \
                     const struct cpu_token_tile *tokens, int64_t begin, int64_t end,              \
                     struct batch_sums *sums) {                                                    \
        dots_by(COLUMNS, DIGITS, panel, row, tokens, begin, end, sums);                            \
    }
DOTS(dots_64_1, 64, 1)
DOTS(dots_64_2, 64, 2)
DOTS(dots_32_1, 32, 1)
DOTS(dots_32_2, 32, 2)

static void integers(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                     int64_t stride) {
    const uint32_t group = panel->m->group;
    configure(group == 32 ? 32 : 64);
    for (int64_t row = 0; row < panel->rows; row += PANEL_STEP) {
        if (group == 0)
            batch_row_scaled(panel, row, tokens, tokens->digits > 1 ? dots_64_2 : dots_64_1, out,
                             stride);
        else if (group == 32)
            batch_grouped(panel, row, tokens, tokens->digits > 1 ? dots_32_2 : dots_32_1, out,
                          stride);
        else
            batch_grouped(panel, row, tokens, tokens->digits > 1 ? dots_64_2 : dots_64_1, out,
                          stride);
    }
    _tile_release(); /* tiles in use make every switch of tasks slower */
}

const struct cpu_batch_kernels cpu_batch_amx = {
    .min_tokens = 4,
    .pack = batch_pack_avx512,
    .integers = integers,
    .floats = batch_floats_avx512,
};
