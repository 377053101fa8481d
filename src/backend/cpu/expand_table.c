/* The expansion table, by preprocessor, so that it needs no set-up. */
#include "backend/cpu/expand_table.h"

#define BIT(m, i) ((m) >> (i)&1)
#define BEFORE0(m) 0
#define BEFORE1(m) (BEFORE0(m) + BIT(m, 0))
#define BEFORE2(m) (BEFORE1(m) + BIT(m, 1))
#define BEFORE3(m) (BEFORE2(m) + BIT(m, 2))
#define BEFORE4(m) (BEFORE3(m) + BIT(m, 3))
#define BEFORE5(m) (BEFORE4(m) + BIT(m, 4))
#define BEFORE6(m) (BEFORE5(m) + BIT(m, 5))
#define BEFORE7(m) (BEFORE6(m) + BIT(m, 6))
#define AT(m, i) (BIT(m, i) ? BEFORE##i(m) : EXPAND_NONE)
#define ROW(m)                                                                                     \
    { AT(m, 0), AT(m, 1), AT(m, 2), AT(m, 3), AT(m, 4), AT(m, 5), AT(m, 6), AT(m, 7) }
#define ROWS4(m) ROW(m), ROW((m) + 1), ROW((m) + 2), ROW((m) + 3)
#define ROWS16(m) ROWS4(m), ROWS4((m) + 4), ROWS4((m) + 8), ROWS4((m) + 12)
#define ROWS64(m) ROWS16(m), ROWS16((m) + 16), ROWS16((m) + 32), ROWS16((m) + 48)

const uint8_t cpu_expand_table[256][8] = {ROWS64(0), ROWS64(64), ROWS64(128), ROWS64(192)};

#define SECOND(n)                                                                                  \
    { 0, 0, 0, 0, 0, 0, 0, 0, n, n, n, n, n, n, n, n }

const uint8_t cpu_expand_second[9][16] = {SECOND(0), SECOND(1), SECOND(2), SECOND(3), SECOND(4),
                                          SECOND(5), SECOND(6), SECOND(7), SECOND(8)};
