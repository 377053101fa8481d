#include "eval/bench_json.h"

#include "base/alloc.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing --------------------------------------------------------------------------- */

static json_t *samples_json(const double *x, size_t n) {
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        if (json_array_append_new(list, json_real(x[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* Adds mean, deviation, median, best and the samples to an object. */
static json_t *with_stats(json_t *object, const double *x, size_t n) {
    struct bench_stats s = bench_stats_of(x, n);
    json_t *stats = json_pack("{s:f, s:f, s:f, s:f, s:o}", "mean", s.mean, "deviation", s.deviation,
                              "median", s.median, "best", s.best, "samples", samples_json(x, n));
    if (!object || !stats || json_object_update(object, stats) != 0) {
        json_decref(object);
        object = NULL;
    }
    json_decref(stats);
    return object;
}

static json_t *machine_json(const struct pd_machine *m) {
    return json_pack("{s:s, s:s, s:i, s:I, s:I}", "cpu", m->cpu, "system", m->system, "processors",
                     m->n_cpus, "memory", (json_int_t)m->memory, "cache", (json_int_t)m->cache);
}

static json_t *model_json(const struct bench_model_info *m) {
    const pdvm_model_info *i = &m->info;
    return json_pack("{s:s, s:s, s:s, s:b, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:I, "
                     "s:f, s:f}",
                     "name", m->name, "coding", m->coding, "architecture", m->architecture,
                     "synthetic", m->synthetic, "layers", (int)i->n_layers, "hidden_size",
                     (int)i->hidden_size, "intermediate_size", (int)i->intermediate_size, "heads",
                     (int)i->n_heads, "kv_heads", (int)i->n_kv_heads, "head_dim", (int)i->head_dim,
                     "vocabulary", (int)i->n_vocab, "weights", (json_int_t)i->n_weights, "nonzeros",
                     (json_int_t)i->n_nonzeros, "bytes", (json_int_t)i->stored_bytes, "token_bytes",
                     (json_int_t)i->token_bytes, "bits_per_weight", m->bits_per_weight,
                     "load_seconds", m->load_seconds);
}

static json_t *phases_json(const struct bench_row *row) {
    json_t *list = json_array();
    double total = 0;
    for (int k = 0; k < BENCH_N_PHASES; k++) total += row->phases[k].seconds;
    for (int k = 0; k < BENCH_N_PHASES; k++) {
        const struct bench_phase *p = &row->phases[k];
        json_t *phase =
            json_pack("{s:s, s:f, s:f, s:f, s:f}", "phase", bench_phase_name((enum phase_kind)k),
                      "seconds_per_token", p->seconds, "share", total > 0 ? p->seconds / total : 0,
                      "bytes_per_token", p->bytes, "bytes_per_second",
                      p->seconds > 0 ? p->bytes / p->seconds : 0);
        if (json_array_append_new(list, phase) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *row_json(const struct bench_result *r, const struct bench_row *row) {
    char name[48];
    json_t *value =
        json_pack("{s:s, s:s, s:i, s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f}", "model",
                  r->models[row->model].name, "backend", row->backend, "threads",
                  r->bandwidth[row->threads].threads, "mode", bench_way_name(row), "test",
                  bench_test_name(name, &row->test), "n_prompt", (int)row->test.n_prompt, "n_gen",
                  (int)row->test.n_gen, "depth", (int)row->test.depth, "dispatches_per_token",
                  row->dispatches, "bytes_per_token", row->token_bytes, "bytes_per_second",
                  bench_row_rate(row), "bandwidth_share", bench_row_share(row));
    if (value && row->has_phases && json_object_set_new(value, "phases", phases_json(row)) != 0) {
        json_decref(value);
        return NULL;
    }
    if (value && row->barrier > 0 &&
        json_object_set_new(value, "barrier_seconds", json_real(row->barrier)) != 0) {
        json_decref(value);
        return NULL;
    }
    if (value && !row->test.n_prompt &&
        json_object_set_new(value, "shares", samples_json(row->shares, row->n_samples)) != 0) {
        json_decref(value);
        return NULL;
    }
    return with_stats(value, row->samples, row->n_samples);
}

json_t *bench_to_json(const struct bench_result *r, const struct bench_context *c) {
    json_t *models = json_array(), *rows = json_array(), *bandwidth = json_array(),
           *notes = json_array();
    int failed = 0;
    for (size_t i = 0; i < r->n_models; i++)
        failed |= json_array_append_new(models, model_json(&r->models[i]));
    for (size_t i = 0; i < r->n_rows; i++)
        failed |= json_array_append_new(rows, row_json(r, &r->rows[i]));
    for (size_t i = 0; i < r->n_bandwidth; i++) {
        const struct bench_bandwidth *b = &r->bandwidth[i];
        failed |=
            json_array_append_new(bandwidth, with_stats(json_pack("{s:i}", "threads", b->threads),
                                                        b->samples, b->n_samples));
    }
    for (size_t i = 0; i < r->n_notes; i++)
        failed |= json_array_append_new(notes, json_string(r->notes[i]));
    json_t *value = json_pack(
        "{s:s, s:{s:s, s:s}, s:s, s:s, s:i, s:I, s:o, s:I, s:o, s:o, s:o, s:o}", "format",
        BENCH_JSON_FORMAT, "pdvm", "version", c->version, "commit", c->commit, "date", c->date,
        "command", c->command, "repetitions", (int)c->repetitions, "seed", (json_int_t)c->seed,
        "machine", machine_json(&r->machine), "bandwidth_buffer", (json_int_t)r->buffer_size,
        "bandwidth", bandwidth, "models", models, "rows", rows, "notes", notes);
    if (value && r->device.n_samples)
        failed |= json_object_set_new(value, "device_bandwidth",
                                      with_stats(json_pack("{s:s}", "device", r->device_name),
                                                 r->device.samples, r->device.n_samples));
    if (value && failed) {
        json_decref(value);
        value = NULL;
    }
    return value;
}

/* ---- comparing ------------------------------------------------------------------------- */

/* What identifies a row, and its figure. Strings belong to the JSON. */
struct key {
    const char *model, *test, *mode, *backend;
    int64_t threads;
    double median;
};

static pdvm_status read_key(const char *path, const json_t *row, struct key *k, pdvm_error *err) {
    if (!json_is_object(row))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: a row is %s, not an object", path,
                       pd_json_kind(row));
    PD_TRY(pd_json_string(path, row, "model", true, &k->model, err));
    PD_TRY(pd_json_string(path, row, "test", true, &k->test, err));
    PD_TRY(pd_json_string(path, row, "mode", true, &k->mode, err));
    PD_TRY(pd_json_string(path, row, "backend", true, &k->backend, err));
    PD_TRY(pd_json_int(path, row, "threads", true, 1, INT32_MAX, &k->threads, err));
    return pd_json_number(path, row, "median", true, &k->median, err);
}

static bool same_key(const struct key *a, const struct key *b) {
    return a->threads == b->threads && strcmp(a->model, b->model) == 0 &&
           strcmp(a->test, b->test) == 0 && strcmp(a->mode, b->mode) == 0;
}

static void warn(struct bench_comparison *c, const char *fmt, ...) PD_PRINTF(2, 3);

static void warn(struct bench_comparison *c, const char *fmt, ...) {
    if (c->n_warnings == sizeof c->warnings / sizeof *c->warnings) return;
    char *text = c->warnings[c->n_warnings];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof *c->warnings, fmt, args);
    va_end(args);
    pd_defuse(text);
    for (size_t i = 0; i < c->n_warnings; i++)
        if (strcmp(c->warnings[i], text) == 0) return;
    c->n_warnings++;
}

static pdvm_status compare_machines(const json_t *now, const char *path, const json_t *before,
                                    struct bench_comparison *out, pdvm_error *err) {
    const char *format, *cpu[2] = {"?", "?"};
    int64_t processors[2] = {0, 0};
    json_t *machine;
    PD_TRY(pd_json_string(path, before, "format", true, &format, err));
    if (strcmp(format, BENCH_JSON_FORMAT) != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: its format is \"%s\", this version knows %s",
                       path, format, BENCH_JSON_FORMAT);
    for (int i = 0; i < 2; i++) {
        PD_TRY(pd_json_object(path, i ? now : before, "machine", true, &machine, err));
        PD_TRY(pd_json_string(path, machine, "cpu", true, &cpu[i], err));
        PD_TRY(pd_json_int(path, machine, "processors", true, 0, INT32_MAX, &processors[i], err));
    }
    if (strcmp(cpu[0], cpu[1]) != 0)
        warn(out, "another processor: %s before, %s now", cpu[0], cpu[1]);
    if (processors[0] != processors[1])
        warn(out, "another number of processors: %d before, %d now", (int)processors[0],
             (int)processors[1]);
    return PDVM_OK;
}

/* The median bandwidth with a number of threads; 0 if there is none. */
static double bandwidth_of(const json_t *result, int64_t threads) {
    const json_t *list = json_object_get(result, "bandwidth");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *b = json_array_get(list, i);
        if (json_integer_value(json_object_get(b, "threads")) == threads)
            return json_number_value(json_object_get(b, "median"));
    }
    return 0;
}

static void compare_pair(const json_t *now, const json_t *before, const struct key *a,
                         const struct key *b, struct bench_comparison *out) {
    if (strcmp(a->backend, b->backend) != 0)
        warn(out, "other kernels: %s before, %s now", b->backend, a->backend);
    double was = bandwidth_of(before, a->threads), is = bandwidth_of(now, a->threads);
    if (was > 0 && is > 0 && fabs(is / was - 1) > 0.05)
        warn(out, "the memory was %.0f %% %s this time (%d thread%s: %.1f GB/s before, %.1f now)",
             100 * fabs(is / was - 1), is > was ? "faster" : "slower", (int)a->threads,
             a->threads == 1 ? "" : "s", was / 1e9, is / 1e9);
    out->changes[out->n_changes++] = (struct bench_change){.model = a->model,
                                                           .test = a->test,
                                                           .mode = a->mode,
                                                           .threads = (int)a->threads,
                                                           .before = b->median,
                                                           .now = a->median};
}

static pdvm_status compare(const json_t *now, const char *path, const json_t *before,
                           struct bench_comparison *out, pdvm_error *err) {
    json_t *rows, *old;
    PD_TRY(compare_machines(now, path, before, out, err));
    PD_TRY(pd_json_array(path, before, "rows", true, &old, err));
    PD_TRY(pd_json_array(path, now, "rows", true, &rows, err));
    size_t n = json_array_size(rows), n_old = json_array_size(old);
    struct key *keys;
    PD_TRY(pd_calloc(&out->changes, n, sizeof *out->changes, "a comparison", err));
    PD_TRY(pd_calloc(&keys, n_old, sizeof *keys, "a comparison", err));
    pdvm_status status = PDVM_OK;
    for (size_t i = 0; i < n_old && status == PDVM_OK; i++)
        status = read_key(path, json_array_get(old, i), &keys[i], err);
    for (size_t i = 0; i < n && status == PDVM_OK; i++) {
        struct key key = {0};
        size_t found = 0;
        status = read_key("the new result", json_array_get(rows, i), &key, err);
        if (status != PDVM_OK) break;
        while (found < n_old && !same_key(&key, &keys[found])) found++;
        if (found < n_old)
            compare_pair(now, before, &key, &keys[found], out);
        else
            out->n_new++;
    }
    out->n_missing = n_old > out->n_changes ? n_old - out->n_changes : 0;
    free(keys);
    return status;
}

pdvm_status bench_compare(const json_t *now, const char *path, const json_t *before,
                          struct bench_comparison *out, pdvm_error *err) {
    *out = (struct bench_comparison){0};
    pdvm_status status = compare(now, path, before, out, err);
    if (status != PDVM_OK) bench_comparison_free(out);
    return status;
}

void bench_comparison_free(struct bench_comparison *c) {
    free(c->changes);
    *c = (struct bench_comparison){0};
}
