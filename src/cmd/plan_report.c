/* What a plan looks like to people and programs. */
#include "cmd/plan_report.h"
#include "base/alloc.h"
#include "cmd/common.h"
#include "cmd/plot.h"
#include "cmd/terminal.h"
#include "io/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double megabytes(double bytes) {
    return bytes / 1e6;
}

/* "50 % lut4", "lut4" */
static const char *item_name(char buf[48], const struct plan_item *item) {
    const char *values = mdcsr_values_name(item->values);
    if (item->sparsity > 0)
        snprintf(buf, 48, "%g%% %s", 100 * item->sparsity, values);
    else
        snprintf(buf, 48, "%s", values);
    return buf;
}

/* ---- tables ---------------------------------------------------------------------------- */

static void print_menu(const struct plan_result *r) {
    printf("All matrices of the layers alike:\n");
    printf("%-12s %10s %10s %9s %9s %9s %8s", "", "size", "KL", "ppl ratio", "same top", "tok/s",
           "GB/s");
    printf(r->bandwidth > 0 ? " %6s\n" : "\n", "share");
    for (size_t i = 0; i < r->n_items; i++) {
        const struct plan_item *item = &r->items[i];
        char name[48];
        double rate = (double)item->token_bytes / item->speed.token;
        printf("%-12s %7.2f MB %10.5f %9.4f %7.2f %% %9.1f %8.2f", item_name(name, item),
               megabytes((double)item->file_bytes), item->kl, item->perplexity_ratio,
               100 * item->same_top, 1 / item->speed.token, rate / 1e9);
        if (r->bandwidth > 0) printf(" %4.0f %%", 100 * rate / r->bandwidth);
        putchar('\n');
    }
}

/* Layers down, roles across. */
static void print_choice_map(const struct plan_result *r) {
    char name[48];
    if (r->uniform >= 0) {
        printf("\nChosen: %s in all layers\n", item_name(name, &r->items[r->uniform]));
        return;
    }
    printf("\nChosen:\n%-8s", "layers");
    for (size_t i = 0; i < TENSOR_N_LAYER_MATRICES; i++)
        printf(" %-10s", tensor_role_name(tensor_layer_matrices[i]));
    putchar('\n');
    for (size_t first = 0; first < r->n_groups; first += TENSOR_N_LAYER_MATRICES) {
        const struct plan_group *group = &r->groups[first];
        char layers[32];
        snprintf(layers, sizeof layers, group->n_layers > 1 ? "%u-%u" : "%u", group->first_layer,
                 group->first_layer + group->n_layers - 1);
        printf("%-8s", layers);
        /* Groups stand in the order of the roles. */
        for (size_t i = 0; i < TENSOR_N_LAYER_MATRICES; i++)
            printf(" %-10s", item_name(name, &r->items[r->chosen.choice[first + i]]));
        putchar('\n');
    }
}

static void print_numbers(const struct plan_names *names, const struct plan_result *r) {
    const struct plan_point *c = &r->chosen;
    printf("\n%-12s %12s %12s\n", "", "predicted", "measured");
    if (r->has_applied) {
        const struct plan_applied *a = &r->applied;
        printf("%-12s %9.3f MB %9.3f MB  (%s)\n", "size", megabytes(c->bytes),
               megabytes((double)a->file_bytes), names->apply);
        printf("%-12s %12.1f %12.1f\n", "tokens/s", 1 / c->seconds, a->tokens_per_second);
        printf("%-12s %12.5f %12.5f\n", "KL", c->loss, a->kl);
        printf("%-12s %12s %12.4f  (%.4f times that of the uncompressed model)\n", "perplexity", "",
               a->perplexity, a->perplexity_ratio);
        printf("%-12s %12s %10.2f %%\n", "same top", "", 100 * a->same_top);
        return;
    }
    printf("%-12s %9.3f MB\n", "size", megabytes(c->bytes));
    printf("%-12s %12.1f\n", "tokens/s", 1 / c->seconds);
    printf("%-12s %12.5f %12.5f\n", "KL", c->loss, c->measured);
}

static void print_front(const struct plan_result *r) {
    if (r->n_front == 0) return;
    printf("\nBest mixtures by size:\n%10s %9s %9s %12s %12s\n", "size", "zeros", "tok/s",
           "KL predicted", "KL measured");
    for (size_t i = 0; i < r->n_front; i++) {
        const struct plan_point *p = &r->front[i];
        printf("%7.2f MB %7.1f %% %9.1f %12.5f %12.5f\n", megabytes(p->bytes),
               100 * plan_point_zeros(r, p), 1 / p->seconds, p->loss, p->measured);
    }
}

/* ---- what to think of it --------------------------------------------------------------- */

static void print_verdict(const struct plan_result *r) {
    const struct plan_point *c = &r->chosen;
    char name[48];
    double zeros = plan_point_zeros(r, c);
    putchar('\n');
    if (zeros == 0 && r->uniform >= 0)
        printf("Dense %s is better here: no mixture with zeros that keeps the limit has less "
               "damage.\n",
               item_name(name, &r->items[r->uniform]));
    else if (zeros == 0)
        printf("Dense codings are better here: the best mixture has no zeros.\n");
    else
        printf("The best mixture has %.1f %% zeros in the layers.\n", 100 * zeros);
    if (r->best_dense >= 0 && r->best_dense != r->uniform) {
        const struct plan_item *d = &r->items[r->best_dense];
        printf("For comparison, dense %s throughout: %.2f MB, %.1f tokens/s, KL %.5f.\n",
               item_name(name, d), megabytes((double)d->file_bytes), 1 / d->speed.token, d->kl);
    } else if (r->best_dense < 0) {
        printf("No dense coding of the menu keeps the limit.\n");
    }
    printf("Sums of single damages were corrected by KL = %.3g * sum^%.3g.\n", r->factor,
           r->exponent);
}

/* ---- plots ----------------------------------------------------------------------------- */

enum { SERIES_SPARSE, SERIES_DENSE, SERIES_FRONT, SERIES_CHOSEN, N_SERIES };

/* The points of both panels: x of the first, x of the second, y. */
struct points {
    double *bytes[N_SERIES], *speed[N_SERIES], *kl[N_SERIES];
    size_t n[N_SERIES];
};

static void add_point(struct points *p, int series, double bytes, double speed, double kl) {
    size_t i = p->n[series]++;
    p->bytes[series][i] = megabytes(bytes);
    p->speed[series][i] = speed;
    p->kl[series][i] = kl;
}

static void free_points(struct points *p) {
    for (int s = 0; s < N_SERIES; s++) {
        free(p->bytes[s]);
        free(p->speed[s]);
        free(p->kl[s]);
    }
}

static pdvm_status make_points(const struct plan_result *r, struct points *p, pdvm_error *err) {
    size_t most = r->n_items + r->n_front + 1;
    *p = (struct points){.n = {0}};
    for (int s = 0; s < N_SERIES; s++) {
        PD_TRY(pd_calloc(&p->bytes[s], most, sizeof(double), "a plot", err));
        PD_TRY(pd_calloc(&p->speed[s], most, sizeof(double), "a plot", err));
        PD_TRY(pd_calloc(&p->kl[s], most, sizeof(double), "a plot", err));
    }
    for (size_t i = 0; i < r->n_items; i++) {
        const struct plan_item *item = &r->items[i];
        add_point(p, item->sparsity > 0 ? SERIES_SPARSE : SERIES_DENSE, (double)item->file_bytes,
                  1 / item->speed.token, item->kl);
    }
    for (size_t i = 0; i < r->n_front; i++)
        add_point(p, SERIES_FRONT, r->front[i].bytes, 1 / r->front[i].seconds,
                  r->front[i].measured);
    add_point(p, SERIES_CHOSEN, r->chosen.bytes, 1 / r->chosen.seconds, r->chosen.measured);
    return PDVM_OK;
}

static void make_panels(const struct points *p, struct plot_series series[2][N_SERIES],
                        struct plot panels[2]) {
    static const struct plot_series kinds[N_SERIES] = {
        {.name = "sparse, all alike", .color = "#d08030", .mark = '+'},
        {.name = "dense, all alike", .color = "#3070c0", .mark = 'x'},
        {.name = "best mixtures", .color = "#208040", .mark = 'o', .line = true},
        {.name = "chosen", .color = "#c02040", .mark = '@'}};
    for (int panel = 0; panel < 2; panel++) {
        for (int s = 0; s < N_SERIES; s++) {
            series[panel][s] = kinds[s];
            series[panel][s].x = panel ? p->speed[s] : p->bytes[s];
            series[panel][s].y = p->kl[s];
            series[panel][s].n = p->n[s];
        }
        panels[panel] =
            (struct plot){.title = panel ? "damage against speed" : "damage against size",
                          .x_label = panel ? "tokens/s" : "MB",
                          .y_label = "KL",
                          .series = series[panel],
                          .n_series = N_SERIES};
    }
}

static void print_plots(const struct plan_result *r) {
    struct points points;
    struct plot_series series[2][N_SERIES];
    struct plot panels[2];
    int width = terminal_width(stdout);
    if (make_points(r, &points, NULL) == PDVM_OK) {
        make_panels(&points, series, panels);
        for (int i = 0; i < 2; i++) {
            putchar('\n');
            plot_print(stdout, &panels[i], width);
        }
    }
    free_points(&points);
}

pdvm_status plan_write_svg(const char *path, const struct plan_result *r, pdvm_error *err) {
    struct points points;
    struct plot_series series[2][N_SERIES];
    struct plot panels[2];
    pdvm_status status = make_points(r, &points, err);
    if (status == PDVM_OK) {
        make_panels(&points, series, panels);
        status = plot_write_svg(path, panels, 2, err);
    }
    free_points(&points);
    return status;
}

void plan_print(const struct plan_names *names, const struct plan_result *r) {
    printf("%s (%.2f MB) on %s: %llu tokens in %llu windows of %u, perplexity %.4f uncompressed\n",
           names->source, megabytes((double)r->reference_bytes), names->text,
           (unsigned long long)r->reference.n_scored, (unsigned long long)r->reference.n_windows,
           r->windows.n_ctx, r->reference.perplexity);
    printf("method %s, %zu groups of matrices, %llu evaluations", names->method, r->n_groups,
           (unsigned long long)r->n_evaluations);
    if (r->bandwidth > 0) printf(", this machine reads %.1f GB/s", r->bandwidth / 1e9);
    printf("\n\n");
    print_menu(r);
    print_front(r);
    print_plots(r);
    print_choice_map(r);
    print_numbers(names, r);
    print_verdict(r);
}

/* ---- JSON ------------------------------------------------------------------------------ */

static json_t *items_json(const struct plan_result *r) {
    json_t *items = json_array();
    for (size_t i = 0; i < r->n_items; i++) {
        const struct plan_item *item = &r->items[i];
        json_array_append_new(
            items, json_pack("{s:f, s:s, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "sparsity",
                             item->sparsity, "values", mdcsr_values_name(item->values),
                             "file_bytes", (json_int_t)item->file_bytes, "kl",
                             pd_json_real(item->kl), "perplexity", pd_json_real(item->perplexity),
                             "perplexity_ratio", pd_json_real(item->perplexity_ratio), "same_top",
                             pd_json_real(item->same_top), "loss_sum", pd_json_real(item->loss_sum),
                             "tokens_per_second", pd_json_real(1 / item->speed.token),
                             "token_bytes", (json_int_t)item->token_bytes));
    }
    return items;
}

static json_t *doubles(const double *x, size_t n) {
    json_t *array = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(array, pd_json_real(x[i]));
    return array;
}

static json_t *groups_json(const struct plan_result *r) {
    json_t *groups = json_array();
    for (size_t g = 0; g < r->n_groups; g++) {
        const struct plan_group *group = &r->groups[g];
        json_t *measured = json_array();
        for (size_t i = 0; i < r->n_items; i++)
            json_array_append_new(measured, json_boolean(group->measured[i]));
        json_array_append_new(
            groups,
            json_pack("{s:s, s:i, s:i, s:I, s:I, s:o, s:o, s:o, s:o}", "role",
                      tensor_role_name(group->role), "first_layer", (int)group->first_layer,
                      "layers", (int)group->n_layers, "weights", (json_int_t)group->n_weights,
                      "choice", (json_int_t)r->chosen.choice[g], "kl",
                      doubles(group->loss, r->n_items), "bytes", doubles(group->bytes, r->n_items),
                      "seconds", doubles(group->seconds, r->n_items), "measured", measured));
    }
    return groups;
}

static json_t *point_json(const struct plan_result *r, const struct plan_point *p) {
    json_t *choice = json_array();
    for (size_t g = 0; g < r->n_groups; g++)
        json_array_append_new(choice, json_integer((json_int_t)p->choice[g]));
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:o, s:o}", "bytes", p->bytes, "tokens_per_second",
                     1 / p->seconds, "zeros", plan_point_zeros(r, p), "kl_sum", p->loss_sum,
                     "kl_predicted", p->loss, "kl_measured", pd_json_real(p->measured), "choice",
                     choice);
}

json_t *plan_json(const struct plan_names *names, const struct plan_result *r) {
    static const char *const goals[] = {"budget", "speed", "max_loss"};
    json_t *front = json_array(), *rules = json_array();
    for (size_t i = 0; i < r->n_front; i++)
        json_array_append_new(front, point_json(r, &r->front[i]));
    for (size_t i = 0; i < r->n_rules; i++) json_array_append_new(rules, json_string(r->rules[i]));
    json_t *value = json_pack(
        "{s:o, s:o, s:s, s:s, s:f, s:I, s:o, s:I, s:f, s:f, s:f, s:f, s:f, s:o, s:o, s:o, s:o, "
        "s:i, s:i, s:o}",
        "source", json_text(names->source, strlen(names->source)), "text",
        json_text(names->text, strlen(names->text)), "method", names->method, "goal",
        goals[names->goal], "limit", names->limit, "n_scored", (json_int_t)r->reference.n_scored,
        "reference_perplexity", pd_json_real(r->reference.perplexity), "evaluations",
        (json_int_t)r->n_evaluations, "bandwidth", r->bandwidth, "fixed_bytes", r->fixed_bytes,
        "fixed_seconds", r->fixed_seconds, "factor", r->factor, "exponent", r->exponent, "items",
        items_json(r), "groups", groups_json(r), "front", front, "chosen",
        point_json(r, &r->chosen), "uniform", r->uniform, "best_dense", r->best_dense, "rules",
        rules);
    if (value && r->has_applied)
        json_object_set_new(value, "applied",
                            json_pack("{s:o, s:I, s:f, s:f, s:f, s:f, s:f}", "file",
                                      json_text(names->apply, strlen(names->apply)), "file_bytes",
                                      (json_int_t)r->applied.file_bytes, "kl", r->applied.kl,
                                      "perplexity", r->applied.perplexity, "perplexity_ratio",
                                      r->applied.perplexity_ratio, "same_top", r->applied.same_top,
                                      "tokens_per_second", r->applied.tokens_per_second));
    return value;
}
