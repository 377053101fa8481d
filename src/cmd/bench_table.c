#include "cmd/bench_table.h"

#include <string.h>

#define MOST_COLUMNS 16
#define MOST_ROWS_WIDTH 96

/* A table in Markdown whose columns are as wide as their longest cell. */
struct table {
    FILE *f;
    size_t n_columns;
    bool right[MOST_COLUMNS]; /* numbers */
    size_t width[MOST_COLUMNS];
};

static void print_cells(const struct table *t, char cells[][MOST_ROWS_WIDTH]) {
    for (size_t i = 0; i < t->n_columns; i++)
        fprintf(t->f, t->right[i] ? "| %*s " : "| %-*s ", (int)t->width[i], cells[i]);
    fputs("|\n", t->f);
}

static void print_rule(const struct table *t) {
    for (size_t i = 0; i < t->n_columns; i++) {
        fputs("| ", t->f);
        for (size_t k = 0; k + 1 < t->width[i]; k++) fputc('-', t->f);
        fputs(t->right[i] ? ": " : "- ", t->f);
    }
    fputs("|\n", t->f);
}

/* Which cells a table of rows has. */
struct shown {
    bool modes, generation;
};

static size_t add(char cells[][MOST_ROWS_WIDTH], bool *right, size_t n, bool number,
                  const char *text) {
    snprintf(cells[n], MOST_ROWS_WIDTH, "%s", text);
    right[n] = number;
    return n + 1;
}

/* "1.10 B", "135.00 M": as llama-bench counts parameters. */
static void format_weights(char *buf, size_t size, uint64_t n) {
    double x = (double)n;
    if (x >= 1e9)
        snprintf(buf, size, "%.2f B", x / 1e9);
    else
        snprintf(buf, size, "%.2f M", x / 1e6);
}

/* "1.10 GiB", "24.50 MiB": likewise. */
static void format_bytes(char *buf, size_t size, uint64_t n) {
    double x = (double)n / (1 << 20);
    if (x >= 1024)
        snprintf(buf, size, "%.2f GiB", x / 1024);
    else
        snprintf(buf, size, "%.2f MiB", x);
}

/* The cells of a row, or with row NULL the header. Returns their number. */
static size_t row_cells(const struct bench_result *r, const struct bench_row *row,
                        const struct shown *s, char cells[][MOST_ROWS_WIDTH], bool *right) {
    const struct bench_model_info *m = row ? &r->models[row->model] : NULL;
    bool tg = row && row->test.n_prompt == 0;
    char buf[MOST_ROWS_WIDTH], name[48];
    size_t n = 0;
    n = add(cells, right, n, false, m ? m->name : "model");
    if (m) format_bytes(buf, sizeof buf, m->info.stored_bytes);
    n = add(cells, right, n, true, m ? buf : "size");
    if (m) format_weights(buf, sizeof buf, m->info.n_weights);
    n = add(cells, right, n, true, m ? buf : "params");
    if (m) snprintf(buf, sizeof buf, "%.2f", m->bits_per_weight);
    n = add(cells, right, n, true, m ? buf : "bits/w");
    n = add(cells, right, n, false, row ? row->backend : "backend");
    if (s->modes) {
        n = add(cells, right, n, false, row ? bench_way_name(row) : "mode");
        if (row) snprintf(buf, sizeof buf, "%.4g", row->dispatches);
        n = add(cells, right, n, true, row ? (tg ? buf : "") : "dispatches/token");
    }
    n = add(cells, right, n, true, row ? bench_test_name(name, &row->test) : "test");
    if (row) {
        struct bench_stats t = bench_stats_of(row->samples, row->n_samples);
        snprintf(buf, sizeof buf, "%.2f ± %.2f", t.mean, t.deviation);
    }
    n = add(cells, right, n, true, row ? buf : "t/s");
    if (!s->generation) return n;
    if (tg) snprintf(buf, sizeof buf, "%.1f", row->token_bytes / 1e6);
    n = add(cells, right, n, true, row ? (tg ? buf : "") : "MB/token");
    if (tg) snprintf(buf, sizeof buf, "%.1f", bench_row_rate(row) / 1e9);
    n = add(cells, right, n, true, row ? (tg ? buf : "") : "GB/s");
    double bandwidth_share = tg ? bench_row_share(row) : 0;
    if (bandwidth_share > 0) snprintf(buf, sizeof buf, "%.0f %%", 100 * bandwidth_share);
    return add(cells, right, n, true, row ? (bandwidth_share > 0 ? buf : "") : "of bandwidth");
}

/* Columns that a text takes, not bytes: "±" is one. */
static size_t columns_of(const char *text) {
    size_t n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* printf pads by bytes: widens the field by the bytes that take no column. */
static void pad(const struct table *t, char cells[][MOST_ROWS_WIDTH]) {
    for (size_t i = 0; i < t->n_columns; i++) {
        size_t shown = columns_of(cells[i]), length = strlen(cells[i]);
        if (shown == length || shown >= t->width[i]) continue;
        size_t missing = t->width[i] - shown;
        if (length + missing >= MOST_ROWS_WIDTH) continue;
        if (t->right[i]) {
            memmove(cells[i] + missing, cells[i], length + 1);
            memset(cells[i], ' ', missing);
        } else {
            memset(cells[i] + length, ' ', missing);
            cells[i][length + missing] = '\0';
        }
    }
}

static void measure(struct table *t, char cells[][MOST_ROWS_WIDTH]) {
    for (size_t i = 0; i < t->n_columns; i++) {
        size_t n = columns_of(cells[i]);
        if (n > t->width[i]) t->width[i] = n;
    }
}

static void print_rows(FILE *f, const struct bench_result *r) {
    struct shown s = {0};
    for (size_t i = 0; i < r->n_rows; i++) {
        s.modes |= r->rows[i].mode != r->rows[0].mode || r->rows[i].mode != PDVM_MODE_TOKEN;
        s.modes |= r->rows[i].on_device;
        s.generation |= r->rows[i].test.n_prompt == 0;
    }
    char cells[MOST_COLUMNS][MOST_ROWS_WIDTH];
    struct table t = {.f = f};
    t.n_columns = row_cells(r, NULL, &s, cells, t.right);
    measure(&t, cells);
    for (size_t i = 0; i < r->n_rows; i++) {
        row_cells(r, &r->rows[i], &s, cells, t.right);
        measure(&t, cells);
    }
    row_cells(r, NULL, &s, cells, t.right);
    print_cells(&t, cells);
    print_rule(&t);
    for (size_t i = 0; i < r->n_rows; i++) {
        row_cells(r, &r->rows[i], &s, cells, t.right);
        pad(&t, cells);
        print_cells(&t, cells);
    }
}

static void print_phases(FILE *f, const struct bench_result *r, const struct bench_row *row) {
    char name[48];
    double total = 0;
    for (int k = 0; k < BENCH_N_PHASES; k++) total += row->phases[k].seconds;
    fprintf(f, "\nTime per token of %s, %s, mode %s, %s:\n\n", r->models[row->model].name,
            row->backend, bench_way_name(row), bench_test_name(name, &row->test));
    fprintf(f, "| %-7s | %9s | %6s | %9s | %6s |\n", "phase", "us/token", "share", "MB/token",
            "GB/s");
    fprintf(f, "| ------- | --------: | -----: | --------: | -----: |\n");
    for (int k = 0; k < BENCH_N_PHASES; k++) {
        const struct bench_phase *p = &row->phases[k];
        fprintf(f, "| %-7s | %9.1f | %4.1f %% | %9.3f | %6.1f |\n",
                bench_phase_name((enum phase_kind)k), 1e6 * p->seconds,
                total > 0 ? 100 * p->seconds / total : 0, p->bytes / 1e6,
                p->seconds > 0 ? p->bytes / p->seconds / 1e9 : 0);
    }
    if (row->barrier > 0)
        fprintf(f, "\nA barrier: %.2f us from the last arrival until one goes on.\n",
                1e6 * row->barrier);
}

void print_bench_markdown(FILE *f, const struct bench_result *r, const struct bench_context *c) {
    print_rows(f, r);
    fputc('\n', f);
    for (size_t i = 0; i < r->n_bandwidth; i++) {
        const struct bench_bandwidth *b = &r->bandwidth[i];
        struct bench_stats s = bench_stats_of(b->samples, b->n_samples);
        if (b->n_samples == 0) continue; /* only prompts */
        fprintf(f,
                "read bandwidth with %d thread%s: median %.1f GB/s, best %.1f GB/s (%zu samples)\n",
                b->threads, b->threads == 1 ? "" : "s", s.median / 1e9, s.best / 1e9, b->n_samples);
    }
    struct bench_stats d = bench_stats_of(r->device.samples, r->device.n_samples);
    if (r->device.n_samples)
        fprintf(f, "read bandwidth of %s: median %.1f GB/s, best %.1f GB/s (%zu samples)\n",
                r->device_name, d.median / 1e9, d.best / 1e9, r->device.n_samples);
    fprintf(f, "machine: %s, %d processor%s, %.1f GiB of memory, last-level cache %.1f MiB\n",
            r->machine.cpu, r->machine.n_cpus, r->machine.n_cpus == 1 ? "" : "s",
            (double)r->machine.memory / (1 << 30), (double)r->machine.cache / (1 << 20));
    fprintf(f, "build: pdvm %s (%s)\n", c->version, c->commit);
    for (size_t i = 0; i < r->n_rows; i++)
        if (r->rows[i].has_phases) print_phases(f, r, &r->rows[i]);
    for (size_t i = 0; i < r->n_notes; i++) fprintf(f, "%snote: %s\n", i ? "" : "\n", r->notes[i]);
}

/* ---- the PDVM document's table -------------------------------------------------------------- */

void print_pdvm_table(FILE *f, const struct pdvm_table *t, const struct bench_context *c) {
    static const char *const names[PDVM_TABLE_N_WAYS] = {
        "Python reference, one layer x layers",    "CPU, one thread", "CPU, all threads",
        "GPU, unfused, a wait after every launch", "GPU, unfused",    "GPU, one launch per layer",
        "GPU, one launch for many tokens"};
    double base = t->rows[PDVM_TABLE_GPU_WAITS].seconds;
    fprintf(f, "%s: %u layers of width %u, %u heads, MLP of %u, %.2f bits per weight\n\n",
            t->model.name, t->model.info.n_layers, t->model.info.hidden_size, t->model.info.n_heads,
            t->model.info.intermediate_size, t->model.bits_per_weight);
    fprintf(f, "| %-40s | %-30s | %9s | %9s | %16s | %13s |\n", "", "backend", "ms/token", "t/s",
            "dispatches/token", "x with waits");
    fprintf(f, "| %.40s | %.30s | --------: | --------: | ---------------: | ------------: |\n",
            "----------------------------------------", "------------------------------");
    for (int i = 0; i < PDVM_TABLE_N_WAYS; i++) {
        const struct pdvm_table_row *row = &t->rows[i];
        char dispatches[24] = "", ratio[24] = "";
        if (row->seconds <= 0) continue;
        if (row->dispatches > 0) snprintf(dispatches, sizeof dispatches, "%.4g", row->dispatches);
        if (base > 0) snprintf(ratio, sizeof ratio, "%.2f", base / row->seconds);
        fprintf(f, "| %-40s | %-30s | %9.3f | %9.2f | %16s | %13s |\n", names[i], row->backend,
                1e3 * row->seconds, 1 / row->seconds, dispatches, ratio);
    }
    fprintf(f, "\nmachine: %s, %d processor%s\nbuild: pdvm %s (%s)\n", t->machine.cpu,
            t->machine.n_cpus, t->machine.n_cpus == 1 ? "" : "s", c->version, c->commit);
    for (int i = 0; i < PDVM_TABLE_N_WAYS; i++)
        if (t->rows[i].seconds <= 0)
            fprintf(f, "note: %s: not measured: %s\n", names[i], t->rows[i].why);
}

/* ---- CSV ------------------------------------------------------------------------------- */

/* RFC 4180: quoted, quotes doubled. */
static void print_quoted(FILE *f, const char *text) {
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"') fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

void print_bench_csv(FILE *f, const struct bench_result *r, const struct bench_context *c) {
    fputs("commit,cpu,model,model_bytes,n_weights,n_nonzeros,bits_per_weight,backend,threads,mode,"
          "test,n_prompt,n_gen,depth,repetitions,mean_ts,deviation_ts,median_ts,best_ts,"
          "dispatches_per_token,bytes_per_token,bytes_per_second,bandwidth_median,bandwidth_share",
          f);
    for (int k = 0; k < BENCH_N_PHASES; k++)
        fprintf(f, ",%s_seconds", bench_phase_name((enum phase_kind)k));
    fputc('\n', f);
    for (size_t i = 0; i < r->n_rows; i++) {
        const struct bench_row *row = &r->rows[i];
        const struct bench_model_info *m = &r->models[row->model];
        const struct bench_bandwidth *b = bench_row_bandwidth(r, row);
        struct bench_stats s = bench_stats_of(row->samples, row->n_samples);
        char name[48];
        print_quoted(f, c->commit);
        fputc(',', f);
        print_quoted(f, r->machine.cpu);
        fputc(',', f);
        print_quoted(f, m->name);
        fprintf(f, ",%llu,%llu,%llu,%.4f,", (unsigned long long)m->info.stored_bytes,
                (unsigned long long)m->info.n_weights, (unsigned long long)m->info.n_nonzeros,
                m->bits_per_weight);
        print_quoted(f, row->backend);
        fprintf(f, ",%d,%s,", r->bandwidth[row->threads].threads, bench_way_name(row));
        print_quoted(f, bench_test_name(name, &row->test));
        fprintf(f, ",%u,%u,%u,%zu,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.4f", row->test.n_prompt,
                row->test.n_gen, row->test.depth, row->n_samples, s.mean, s.deviation, s.median,
                s.best, row->dispatches, row->token_bytes, bench_row_rate(row),
                bench_stats_of(b->samples, b->n_samples).median, bench_row_share(row));
        for (int k = 0; k < BENCH_N_PHASES; k++) {
            if (row->has_phases)
                fprintf(f, ",%.6g", row->phases[k].seconds);
            else
                fputc(',', f);
        }
        fputc('\n', f);
    }
}

/* ---- comparison ------------------------------------------------------------------------ */

void print_bench_comparison(FILE *f, const struct bench_comparison *c, const char *path) {
    static const char *const header[] = {"model",  "threads", "mode", "test",
                                         "before", "now",     "ratio"};
    char cells[MOST_COLUMNS][MOST_ROWS_WIDTH];
    struct table t = {
        .f = f, .n_columns = 7, .right = {false, true, false, true, true, true, true}};
    fprintf(f, "\nCompared with %s (medians, t/s):\n\n", path);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < t.n_columns; i++)
            snprintf(cells[i], MOST_ROWS_WIDTH, "%s", header[i]);
        measure(&t, cells);
        if (pass) {
            print_cells(&t, cells);
            print_rule(&t);
        }
        for (size_t i = 0; i < c->n_changes; i++) {
            const struct bench_change *d = &c->changes[i];
            snprintf(cells[0], MOST_ROWS_WIDTH, "%s", d->model);
            snprintf(cells[1], MOST_ROWS_WIDTH, "%d", d->threads);
            snprintf(cells[2], MOST_ROWS_WIDTH, "%s", d->mode);
            snprintf(cells[3], MOST_ROWS_WIDTH, "%s", d->test);
            snprintf(cells[4], MOST_ROWS_WIDTH, "%.2f", d->before);
            snprintf(cells[5], MOST_ROWS_WIDTH, "%.2f", d->now);
            if (d->before > 0)
                snprintf(cells[6], MOST_ROWS_WIDTH, "%.3f", d->now / d->before);
            else
                snprintf(cells[6], MOST_ROWS_WIDTH, "-");
            measure(&t, cells);
            pad(&t, cells);
            if (pass) print_cells(&t, cells);
        }
    }
    if (c->n_new)
        fprintf(f, "\n%zu row%s not in %s\n", c->n_new, c->n_new == 1 ? " is" : "s are", path);
    if (c->n_missing)
        fprintf(f, "\n%zu row%s only in %s\n", c->n_missing, c->n_missing == 1 ? " is" : "s are",
                path);
    for (size_t i = 0; i < c->n_warnings; i++)
        fprintf(f, "%swarning: %s\n", i ? "" : "\n", c->warnings[i]);
}
