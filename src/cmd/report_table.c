/* Tables and pictures of what became of a model's weights. */
#include "cmd/report_table.h"
#include "cmd/terminal.h"

#include <math.h>

/* ---- the table ------------------------------------------------------------------------- */

/* "13.4 G", "25.1 M", "8.2 k", "640" */
static const char *format_count(char buf[32], int64_t n) {
    static const char units[] = " kMGT";
    double x = (double)n;
    int unit = 0;
    while (x >= 999.5 && unit < 4) {
        x /= 1000;
        unit++;
    }
    if (unit == 0)
        snprintf(buf, 32, "%d", (int)n);
    else
        snprintf(buf, 32, "%.*f %c", x < 9.995 ? 2 : x < 99.95 ? 1 : 0, x, units[unit]);
    return buf;
}

static const char *format_share(char buf[32], int64_t part, int64_t whole) {
    if (part < 0 || whole <= 0)
        snprintf(buf, 32, "-");
    else
        snprintf(buf, 32, "%.1f %%", 100.0 * (double)part / (double)whole);
    return buf;
}

static const char *format_error(char buf[32], double error) {
    if (!isfinite(error))
        snprintf(buf, 32, "-");
    else if (error == 0)
        snprintf(buf, 32, "0");
    else
        snprintf(buf, 32, error < 1e-3 ? "%.1e" : "%.4f", error);
    return buf;
}

/* With pruning, where zeros and errors come from; with calibration, what the outputs lost. */
static void print_line(FILE *f, const char *name, const struct report_sum *s, bool pruned,
                       bool calibrated) {
    char a[32], b[32], c[32], d[32], e[32], g[32], h[32];
    fprintf(f, "%-6s %8s %8s", name, format_count(a, s->n_weights),
            format_share(b, s->n_zeros, s->n_weights));
    if (pruned) fprintf(f, " %8s", format_share(c, s->source_zeros, s->n_weights));
    fprintf(f, " %6.2f %9s %8s", report_bits(s->bytes, s->n_weights), terminal_size(d, s->bytes),
            format_error(e, s->error));
    if (pruned)
        fprintf(f, " %8s %8s", format_error(g, s->pruning_error),
                format_error(h, s->rounding_error));
    if (calibrated) fprintf(f, " %8s", format_error(a, s->output_error));
    fprintf(f, "%s%s\n", s->coding[0] ? "  " : "", s->coding);
}

void print_report_table(FILE *f, const struct report *r) {
    struct report_sum s;
    report_sum(r, REPORT_TOTAL, &s);
    bool calibrated = isfinite(s.output_error);
    fprintf(f, "%-6s %8s %8s", "", "weights", "zeros");
    if (r->pruned) fprintf(f, " %8s", "before");
    fprintf(f, " %6s %9s %8s", "bits/w", "size", "error");
    if (r->pruned) fprintf(f, " %8s %8s", "pruning", "rounding");
    if (calibrated) fprintf(f, " %8s", "output");
    fprintf(f, "  coding\n");
    for (int i = 0; i < REPORT_N_LINES; i++) {
        report_sum(r, (enum report_line)i, &s);
        if (s.n_tensors)
            print_line(f, report_line_name((enum report_line)i), &s, r->pruned, calibrated);
    }
}

/* ---- the picture ----------------------------------------------------------------------- */

/* Five shades of a fifth each; colours of the 256-colour palette from grey-blue to yellow. */
static const char *const shades[] = {" ", "░", "▒", "▓", "█"};
static const char ascii_shades[] = " .:+#";
static const int shade_colors[] = {240, 60, 67, 114, 221};
#define N_SHADES 5

static int shade_of(double zeros) {
    int shade = (int)(zeros * N_SHADES);
    return shade < 0 ? 0 : shade >= N_SHADES ? N_SHADES - 1 : shade;
}

static void print_shade(FILE *f, int shade, const struct picture_style *style) {
    if (style->colors) fprintf(f, "\033[38;5;%dm", shade_colors[shade]);
    for (int i = 0; i < 3; i++) {
        if (style->ascii)
            fputc(ascii_shades[shade], f);
        else
            fputs(shades[shade], f);
    }
    if (style->colors) fputs("\033[0m", f);
}

static const struct report_tensor *find_tensor(const struct report *r, enum tensor_role role,
                                               uint32_t layer) {
    for (size_t i = 0; i < r->n; i++) {
        const struct report_tensor *t = &r->tensors[i];
        if (t->tensor.role == role && t->tensor.layer == layer) return t;
    }
    return NULL;
}

void print_sparsity_picture(FILE *f, const struct report *r, uint32_t n_layers,
                            const struct picture_style *style) {
    fputs("layer ", f);
    for (size_t i = 0; i < TENSOR_N_LAYER_MATRICES; i++)
        fprintf(f, "  %6s", tensor_role_name(tensor_layer_matrices[i]));
    fputs("   zeros in %\n", f);
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        fprintf(f, "%5u ", layer);
        for (size_t i = 0; i < TENSOR_N_LAYER_MATRICES; i++) {
            const struct report_tensor *t = find_tensor(r, tensor_layer_matrices[i], layer);
            if (!t) continue;
            double zeros = (double)t->n_zeros / ((double)t->tensor.rows * (double)t->tensor.cols);
            fputs("  ", f);
            print_shade(f, shade_of(zeros), style);
            fprintf(f, "%3.0f", 100 * zeros);
        }
        fputc('\n', f);
    }
    fputs("shades:", f);
    for (int i = 0; i < N_SHADES; i++) {
        fputc(' ', f);
        print_shade(f, i, style);
        fprintf(f, " %d-%d%s", 100 * i / N_SHADES, 100 * (i + 1) / N_SHADES,
                i + 1 < N_SHADES ? "," : "\n");
    }
}
