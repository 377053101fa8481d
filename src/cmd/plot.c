#include "cmd/plot.h"
#include "base/alloc.h"
#include "base/file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LINES 16
#define MARGIN 10 /* columns for the numbers of y */

/* ---- ranges ---------------------------------------------------------------------------- */

static bool usable(const struct plot_series *s, size_t i) {
    return isfinite(s->x[i]) && isfinite(s->y[i]) && s->y[i] > 0;
}

/* What the axes cover; y as its logarithm to the base of 10. */
struct range {
    double x0, x1, y0, y1;
};

static bool find_range(const struct plot *p, struct range *out) {
    struct range r = {INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (size_t k = 0; k < p->n_series; k++) {
        const struct plot_series *s = &p->series[k];
        for (size_t i = 0; i < s->n; i++) {
            if (!usable(s, i)) continue;
            r.x0 = fmin(r.x0, s->x[i]);
            r.x1 = fmax(r.x1, s->x[i]);
            r.y0 = fmin(r.y0, log10(s->y[i]));
            r.y1 = fmax(r.y1, log10(s->y[i]));
        }
    }
    if (r.x0 > r.x1) return false;
    double dx = r.x1 > r.x0 ? 0.05 * (r.x1 - r.x0) : 0.5 * fabs(r.x0) + 1e-9;
    double dy = r.y1 > r.y0 ? 0.05 * (r.y1 - r.y0) : 0.5;
    *out = (struct range){r.x0 - dx, r.x1 + dx, r.y0 - dy, r.y1 + dy};
    return true;
}

/* ---- the terminal ---------------------------------------------------------------------- */

static void draw(const struct plot *p, const struct range *r, char *cells, int columns) {
    for (size_t k = 0; k < p->n_series; k++) {
        const struct plot_series *s = &p->series[k];
        for (size_t i = 0; i < s->n; i++) {
            if (!usable(s, i)) continue;
            int x = (int)((s->x[i] - r->x0) / (r->x1 - r->x0) * (columns - 1) + 0.5);
            int y = (int)((r->y1 - log10(s->y[i])) / (r->y1 - r->y0) * (LINES - 1) + 0.5);
            cells[y * columns + x] = s->mark;
        }
    }
}

void plot_print(FILE *f, const struct plot *p, int width) {
    struct range r;
    char *cells;
    int columns = (width < 40 ? 40 : width > 100 ? 100 : width) - MARGIN - 1;
    if (!find_range(p, &r)) return;
    if (pd_calloc(&cells, (size_t)columns * LINES, 1, "a plot", NULL) != PDVM_OK) return;
    memset(cells, ' ', (size_t)columns * LINES);
    draw(p, &r, cells, columns);
    fprintf(f, "%s\n%*s\n", p->title, MARGIN, p->y_label);
    for (int y = 0; y < LINES; y++) {
        if (y % 5 == 0)
            fprintf(f, "%*.3g |", MARGIN - 2, pow(10, r.y1 - (r.y1 - r.y0) * y / (LINES - 1)));
        else
            fprintf(f, "%*s |", MARGIN - 2, "");
        int n = columns;
        while (n > 0 && cells[y * columns + n - 1] == ' ') n--;
        fprintf(f, "%.*s\n", n, cells + y * columns);
    }
    fprintf(f, "%*s +", MARGIN - 2, "");
    for (int x = 0; x < columns; x++) fputc('-', f);
    char low[32], high[32];
    snprintf(low, sizeof low, "%.4g", r.x0);
    snprintf(high, sizeof high, "%.4g", r.x1);
    int gap = columns - (int)strlen(low) - (int)strlen(high);
    int label = (int)strlen(p->x_label), left = (gap - label) / 2;
    if (left < 1) left = 1;
    int right = gap - label - left;
    fprintf(f, "\n%*s%s%*s%s%*s%s\n%*s", MARGIN, "", low, left, "", p->x_label,
            right > 1 ? right : 1, "", high, MARGIN, "");
    for (size_t k = 0; k < p->n_series; k++)
        if (p->series[k].n > 0)
            fprintf(f, "%s%c %s", k ? "   " : "", p->series[k].mark, p->series[k].name);
    fputc('\n', f);
    free(cells);
}

/* ---- SVG ------------------------------------------------------------------------------- */

#define PANEL_WIDTH 520
#define PANEL_HEIGHT 380
#define LEFT 70
#define RIGHT 20
#define TOP 40
#define BOTTOM 90

static void put_text(FILE *f, const char *text) {
    for (; *text; text++) {
        switch (*text) {
        case '&': fputs("&amp;", f); break;
        case '<': fputs("&lt;", f); break;
        case '>': fputs("&gt;", f); break;
        case '"': fputs("&quot;", f); break;
        default:
            if ((unsigned char)*text >= 0x20) fputc(*text, f);
        }
    }
}

static void label(FILE *f, double x, double y, const char *anchor, const char *text) {
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    put_text(f, text);
    fputs("</text>\n", f);
}

static double place_x(const struct range *r, double left, double x) {
    return left + LEFT + (x - r->x0) / (r->x1 - r->x0) * (PANEL_WIDTH - LEFT - RIGHT);
}

static double place_y(const struct range *r, double log_y) {
    return TOP + (r->y1 - log_y) / (r->y1 - r->y0) * (PANEL_HEIGHT - TOP - BOTTOM);
}

static void svg_axes(FILE *f, const struct plot *p, const struct range *r, double left) {
    char text[32];
    fprintf(
        f, "<rect x=\"%.1f\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#888\"/>\n",
        left + LEFT, TOP, PANEL_WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM);
    for (int i = 0; i <= 4; i++) {
        double x = r->x0 + (r->x1 - r->x0) * i / 4, y = r->y0 + (r->y1 - r->y0) * i / 4;
        snprintf(text, sizeof text, "%.3g", x);
        label(f, place_x(r, left, x), PANEL_HEIGHT - BOTTOM + 18, "middle", text);
        snprintf(text, sizeof text, "%.2g", pow(10, y));
        label(f, left + LEFT - 6, place_y(r, y) + 4, "end", text);
    }
    label(f, left + PANEL_WIDTH / 2.0, TOP - 16, "middle", p->title);
    label(f, left + PANEL_WIDTH / 2.0, PANEL_HEIGHT - BOTTOM + 38, "middle", p->x_label);
    label(f, left + LEFT, TOP - 4, "end", p->y_label);
}

static void svg_series(FILE *f, const struct plot_series *s, const struct range *r, double left,
                       double legend) {
    bool open = false;
    for (size_t i = 0; s->line && i < s->n; i++) {
        if (!usable(s, i)) continue;
        fprintf(f, "%s%.1f,%.1f",
                open ? " " : "<polyline fill=\"none\" stroke-width=\"1.5\" points=\"",
                place_x(r, left, s->x[i]), place_y(r, log10(s->y[i])));
        open = true;
    }
    if (open) fprintf(f, "\" stroke=\"%s\"/>\n", s->color);
    for (size_t i = 0; i < s->n; i++)
        if (usable(s, i))
            fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n",
                    place_x(r, left, s->x[i]), place_y(r, log10(s->y[i])), s->color);
    fprintf(f, "<circle cx=\"%.1f\" cy=\"%d\" r=\"4\" fill=\"%s\"/>\n", left + legend,
            PANEL_HEIGHT - 22, s->color);
    label(f, left + legend + 9, PANEL_HEIGHT - 18, "start", s->name);
}

static void svg_panel(FILE *f, const struct plot *p, double left) {
    struct range r;
    if (!find_range(p, &r)) return;
    svg_axes(f, p, &r, left);
    double legend = LEFT;
    for (size_t k = 0; k < p->n_series; k++) {
        if (p->series[k].n == 0) continue;
        svg_series(f, &p->series[k], &r, left, legend);
        legend += 24 + 7 * (double)strlen(p->series[k].name);
    }
}

pdvm_status plot_write_svg(const char *path, const struct plot *panels, size_t n, pdvm_error *err) {
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return pd_fail_memory(err, 0, "a plot");
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%zu\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n"
            "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            n * PANEL_WIDTH, PANEL_HEIGHT);
    for (size_t i = 0; i < n; i++) svg_panel(f, &panels[i], (double)(i * PANEL_WIDTH));
    fputs("</svg>\n", f);
    pdvm_status status = PDVM_OK;
    if (fclose(f) != 0 || !text) status = pd_fail_memory(err, size, "a plot");
    if (status == PDVM_OK) status = pd_write_file(path, text, size, err);
    free(text);
    return status;
}
