#include "compress/select.h"

/*
 * The limit is found digit by digit from the top, each time counting the keys that share the
 * digits found so far: 11, 11, 11, 11, 10 and 9 bits make the 63 bits of a key.
 */
#define N_DIGITS 6
static const int digit_bits[N_DIGITS] = {11, 11, 11, 11, 10, 9};
/* A float's digits after these are 0: its double has 11 bits of exponent and 23 of fraction. */
#define N_FLOAT_DIGITS 4

/* Elements per piece of a parallel loop. */
#define PIECE ((int64_t)1 << 15)

struct search {
    uint64_t prefix; /* the digits found so far */
    int shift;       /* of the digit to be found now */
    int bits;        /* of that digit */
    int64_t rest;    /* how many keys with this prefix are wanted */
    int64_t same;    /* how many there are */
};

static inline uint64_t key_at(struct select_values x, int64_t i) {
    return select_key(x.f ? (double)x.f[i] : x.d[i]);
}

static int count_of_digits(struct select_values x) {
    return x.f ? N_FLOAT_DIGITS : N_DIGITS;
}

static struct select_values values_from(struct select_values x, int64_t i) {
    if (x.f)
        x.f += i;
    else
        x.d += i;
    return x;
}

static void add_digits(const struct search *s, struct select_values x, int64_t n,
                       int64_t *counters) {
    uint64_t mask = ((uint64_t)1 << s->bits) - 1;
    for (int64_t i = 0; i < n; i++) {
        uint64_t key = key_at(x, i) >> s->shift;
        if (key >> s->bits == s->prefix) counters[key & mask]++;
    }
}

static void take_digit(struct search *s, const int64_t *counters) {
    uint64_t digit = 0;
    while (counters[digit] < s->rest) s->rest -= counters[digit++];
    s->prefix = s->prefix << s->bits | digit;
    s->same = counters[digit];
}

struct select_end select_row(struct select_values x, int64_t n, int64_t k, int64_t *counters) {
    struct search s = {.shift = 63, .rest = k, .same = n};
    if (k <= 0) return (struct select_end){0};
    for (int d = 0; d < count_of_digits(x); d++) {
        s.bits = digit_bits[d];
        s.shift -= s.bits;
        memset(counters, 0, SELECT_COUNTERS * sizeof *counters);
        add_digits(&s, x, n, counters);
        take_digit(&s, counters);
        /* All keys with these digits are wanted: the next larger digits are the limit. */
        if (s.rest == s.same) return (struct select_end){.limit = (s.prefix + 1) << s.shift};
    }
    return (struct select_end){.limit = s.prefix << s.shift, .ties = s.rest};
}

struct matrix {
    struct select_values x;
    int64_t cols, stride;
    int64_t *counters;
    struct select_end *ends;
    struct search search;
};

static void count_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct matrix *m = arg;
    for (int64_t r = begin; r < end; r++)
        add_digits(&m->search, values_from(m->x, r * m->stride), m->cols,
                   m->counters + (int64_t)worker * SELECT_COUNTERS);
}

static void count_ties(void *arg, int64_t begin, int64_t end, int worker) {
    const struct matrix *m = arg;
    (void)worker;
    for (int64_t r = begin; r < end; r++) {
        m->ends[r] = (struct select_end){.limit = m->search.prefix << m->search.shift};
        for (int64_t c = 0; c < m->cols; c++)
            m->ends[r].ties += key_at(m->x, r * m->stride + c) == m->ends[r].limit;
    }
}

void select_matrix(struct select_values x, int64_t rows, int64_t cols, int64_t stride, int64_t k,
                   struct pd_threads *threads, int64_t *counters, struct select_end *ends) {
    struct matrix m = {.x = x, .cols = cols, .stride = stride, .counters = counters, .ends = ends};
    m.search = (struct search){.shift = 63, .rest = k, .same = rows * cols};
    int64_t n_counters = (int64_t)pd_threads_count(threads) * SELECT_COUNTERS;
    uint64_t limit = 0;
    int n_digits = count_of_digits(x), d = k > 0 ? 0 : n_digits + 1;
    for (; d < n_digits; d++) {
        m.search.bits = digit_bits[d];
        m.search.shift -= m.search.bits;
        memset(counters, 0, (size_t)n_counters * sizeof *counters);
        pd_threads_for(threads, rows, PIECE / cols + 1, count_rows, &m);
        for (int64_t i = SELECT_COUNTERS; i < n_counters; i++)
            counters[i % SELECT_COUNTERS] += counters[i];
        take_digit(&m.search, counters);
        if (m.search.rest == m.search.same) {
            limit = (m.search.prefix + 1) << m.search.shift;
            break;
        }
    }
    if (d != n_digits) {
        for (int64_t r = 0; r < rows; r++) ends[r] = (struct select_end){.limit = limit};
        return;
    }
    pd_threads_for(threads, rows, PIECE / cols + 1, count_ties, &m);
    for (int64_t r = 0, rest = m.search.rest; r < rows; r++) {
        ends[r].ties = ends[r].ties < rest ? ends[r].ties : rest;
        rest -= ends[r].ties;
    }
}
