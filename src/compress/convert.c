#include "compress/convert.h"

#include "base/file.h"
#include "base/text.h"
#include "compress/calibrated.h"
#include "io/gguf_set.h"
#include "mdcsr/container.h"
#include "model/encoding.h"
#include "model/tokenizer.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* What goes into the file beside the weights. */
static const char *const side_files[] = {
    SOURCE_CONFIG,           SOURCE_TOKENIZER,         SOURCE_TOKENIZER_MODEL,
    SOURCE_TOKENIZER_CONFIG, SOURCE_GENERATION_CONFIG, SOURCE_CHAT_TEMPLATE};
#define N_SIDE_FILES (sizeof side_files / sizeof *side_files)

struct conversion {
    const struct convert_options *options;
    const struct prune_method *method;
    enum prune_scope scope;
    bool calibrates;
    struct calibrated calibrated; /* the finished layers, if it does */
    struct model_source *source;
    struct container_writer *writer;
    struct pd_threads *threads;
    struct convert_result *result;
    double n_weights; /* of the whole model */
    double done;      /* weights of the tensors before this one */
};

struct convert_options convert_options_default(void) {
    return (struct convert_options){.scope = PRUNE_SCOPE_DEFAULT,
                                    .calibration = {.solver = solver_options_default()},
                                    .plan = {.general = settings_none(), .embed = SETTING_UNSET}};
}

void convert_result_free(struct convert_result *r) {
    report_free(&r->report);
}

/* ---- not writing over the source ------------------------------------------------------- */

static bool same_file(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Whether a file of the model in directory `path` is `st`, by whatever name. */
static pdvm_status directory_holds(const char *path, const struct stat *st, bool *out,
                                   pdvm_error *err) {
    DIR *dir = opendir(path);
    if (!dir) return pd_fail_errno(err, path, "cannot open the directory");
    *out = false;
    pdvm_status status = PDVM_OK;
    for (struct dirent *e = readdir(dir); e && status == PDVM_OK && !*out; e = readdir(dir)) {
        char *name;
        struct stat entry;
        if (!pd_ends_with(e->d_name, ".safetensors") && !pd_ends_with(e->d_name, ".json")) continue;
        status = pd_path_join(path, e->d_name, &name, err);
        if (status != PDVM_OK) break;
        *out = stat(name, &entry) == 0 && same_file(&entry, st);
        free(name);
    }
    closedir(dir);
    return status;
}

/* Whether `st` is a part of the split model whose first file is `path`. */
static pdvm_status split_holds(const char *path, const struct stat *st, bool *out,
                               pdvm_error *err) {
    *out = false;
    for (unsigned number = 2; !*out; number++) {
        char *part;
        struct stat entry;
        PD_TRY(gguf_set_path(path, number, &part, err));
        if (!part) break;
        *out = stat(part, &entry) == 0 && same_file(&entry, st);
        free(part);
    }
    return PDVM_OK;
}

pdvm_status convert_check_output(const char *source, const char *output, pdvm_error *err) {
    struct stat from, to;
    bool same = false;
    if (stat(output, &to) != 0 || stat(source, &from) != 0) return PDVM_OK;
    if (S_ISDIR(from.st_mode))
        PD_TRY(directory_holds(source, &to, &same, err));
    else if (!(same = same_file(&from, &to)))
        PD_TRY(split_holds(source, &to, &same, err));
    if (!same) return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT,
                   "%s: is a file of the source %s, and would be lost; give another name", output,
                   source);
}

/* ---- one tensor ------------------------------------------------------------------------ */

static pdvm_status progress(const struct conversion *c, const struct tensor_info *t, double part,
                            pdvm_error *err) {
    double n = (double)t->rows * (double)t->cols;
    return pd_progress(&c->options->notify, "converting", (c->done + part * n) / c->n_weights, err);
}

static pdvm_status encode_and_write(struct conversion *c, const float *w,
                                    const struct settings_matrix *settings, struct report_tensor *t,
                                    pdvm_error *err) {
    struct mdcsr m;
    struct mdcsr_report report;
    PD_TRY(mdcsr_encode(w, t->tensor.rows, t->tensor.cols, &settings->coding, c->threads, &m,
                        &report, err));
    report_set_encoded(t, &m, &report);
    t->rounding_squares = report.error_squares;
    /* The file tells the error against the source, not against what pruning left. */
    report.sum_squares = t->sum_squares;
    report.error_squares = t->pruning_squares + t->rounding_squares;
    pdvm_status status = progress(c, &t->tensor, 0.9, err);
    if (status == PDVM_OK)
        status = container_write_matrix(c->writer, t->tensor.name, &m, &report, err);
    mdcsr_free(&m);
    return status;
}

static pdvm_status do_matrix(struct conversion *c, float *w, struct report_tensor *t,
                             pdvm_error *err) {
    struct settings_matrix settings;
    struct prune_count count;
    struct prune_result pruned = {0};
    settings_for(&c->options->plan, &t->tensor, &settings);
    PD_TRY(prune_count(w, t->tensor.rows, t->tensor.cols, c->threads, &count, err));
    if (settings.sparsity > 0) {
        struct prune_task task = {.w = w,
                                  .rows = t->tensor.rows,
                                  .cols = t->tensor.cols,
                                  .sparsity = settings.sparsity,
                                  .scope = c->scope,
                                  .threads = c->threads};
        PD_TRY(c->method->prune(&task, &pruned, err));
    }
    t->source_zeros = count.n_zeros;
    t->sum_squares = count.sum_squares;
    t->pruning_squares = pruned.error_squares;
    PD_TRY(progress(c, &t->tensor, 0.4, err));
    return encode_and_write(c, w, &settings, t, err);
}

static pdvm_status do_vector(struct conversion *c, const float *x, struct report_tensor *t,
                             pdvm_error *err) {
    struct prune_count count;
    PD_TRY(prune_count(x, 1, t->tensor.cols, NULL, &count, err));
    t->source_zeros = t->n_zeros = count.n_zeros;
    t->bytes = (uint64_t)t->tensor.cols * sizeof(float);
    snprintf(t->coding, sizeof t->coding, "f32");
    return container_write_vector(c->writer, t->tensor.name, x, t->tensor.cols, err);
}

/* A matrix that calibration has finished. */
static pdvm_status take_matrix(struct conversion *c, struct report_tensor *t, pdvm_error *err) {
    struct mdcsr m = {0};
    PD_TRY(work_read_matrix(&c->calibrated.work, t, &m, err));
    struct mdcsr_report report = {.n_weights = t->tensor.rows * t->tensor.cols,
                                  .n_zeros = t->n_zeros,
                                  .sum_squares = t->sum_squares,
                                  .error_squares = t->pruning_squares + t->rounding_squares,
                                  .stored_bytes = (size_t)t->bytes};
    pdvm_status status = container_write_matrix(c->writer, t->tensor.name, &m, &report, err);
    mdcsr_free(&m);
    return status;
}

static bool is_calibrated(const struct conversion *c, const struct tensor_info *t) {
    return c->calibrates && t->is_matrix && !tensor_is_vocabulary(t->role);
}

static pdvm_status do_tensor(struct conversion *c, size_t i, pdvm_error *err) {
    struct report_tensor t = {.output_error = NAN};
    const char *coding;
    uint64_t bytes;
    float *w;
    tensors_at(&c->source->config, i, &t.tensor);
    PD_TRY(progress(c, &t.tensor, 0, err));
    source_stored(c->source, &t.tensor, &coding, &bytes);
    c->result->source_bytes += bytes;
    if (is_calibrated(c, &t.tensor)) {
        PD_TRY(take_matrix(c, &t, err));
        c->done += (double)t.tensor.rows * (double)t.tensor.cols;
        return report_add(&c->result->report, &t, err);
    }
    PD_TRY(encoding_read_floats(c->source, &t.tensor, c->threads, &w, err));
    source_release(c->source, &t.tensor);
    pdvm_status status = progress(c, &t.tensor, 0.2, err);
    if (status == PDVM_OK) {
        status = t.tensor.is_matrix ? do_matrix(c, w, &t, err) : do_vector(c, w, &t, err);
        if (status == PDVM_ERR_FORMAT || status == PDVM_ERR_ARGUMENT)
            status = pd_prefix(err, status, "%s: %s", c->source->path, t.tensor.name);
    }
    free(w);
    c->done += (double)t.tensor.rows * (double)t.tensor.cols;
    return status == PDVM_OK ? report_add(&c->result->report, &t, err) : status;
}

/* ---- the whole model ------------------------------------------------------------------- */

static pdvm_status check_calibration(const struct conversion *c, pdvm_error *err) {
    const struct convert_calibration *o = &c->options->calibration;
    if (o->refine && !c->method->has_sparsity)
        return pd_fail(
            err, PDVM_ERR_ARGUMENT,
            "--refine fits the weights that pruning leaves: choose a method with --method");
    if (c->calibrates && !o->text.path)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "%s needs a text to calibrate on: add --calib FILE, some megabytes of what "
                       "the model is used for",
                       c->method->calibration ? c->method->name : "--refine");
    if (!c->calibrates && (o->text.path || o->text.n_tokens || o->text.seq))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a calibration text was given, but the method %s does without; choose "
                       "another with --method, or add --refine",
                       c->method->name);
    if (!c->calibrates && o->text.backend && strcmp(o->text.backend, "auto") != 0 &&
        strcmp(o->text.backend, "cpu") != 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "--backend is for methods that calibrate, and %s does not: nothing would be "
                       "left to the GPU",
                       c->method->name);
    if (!c->calibrates && (o->resume || o->layers.rule != LAYER_SPARSITY_UNIFORM))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "--resume and --layer-sparsity are for methods that calibrate, and %s does "
                       "not",
                       c->method->name);
    if (o->layers.rule != LAYER_SPARSITY_UNIFORM && !(c->options->plan.general.sparsity > 0))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "--layer-sparsity %s shares out the general sparsity: add --sparsity 0.5, "
                       "for example",
                       layer_sparsity_name(o->layers.rule));
    return PDVM_OK;
}

static pdvm_status check_options(const struct conversion *c, pdvm_error *err) {
    const struct settings_plan *plan = &c->options->plan;
    bool given = plan->general.sparsity >= 0;
    if (!(c->method->scopes >> c->scope & 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT, "the method %s does not know the scope %s",
                       c->method->name, prune_scope_name(c->scope));
    PD_TRY(check_calibration(c, err));
    for (size_t i = 0; i < plan->n_rules; i++) given |= plan->rules[i].set.sparsity >= 0;
    if (given && !c->method->has_sparsity)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "a sparsity was given, but the method %s %s; add --method magnitude to "
                       "make more zeros",
                       c->method->name, c->method->help);
    if (!given && c->method->has_sparsity)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "the method %s needs the share of zeros to reach: add --sparsity 0.5, for "
                       "example",
                       c->method->name);
    return settings_check(plan, &c->source->config, err);
}

static const char *base_name(const char *path, char *buffer, size_t size) {
    snprintf(buffer, size, "%s", path);
    size_t n = strlen(buffer);
    while (n > 1 && buffer[n - 1] == '/') buffer[--n] = 0;
    const char *slash = strrchr(buffer, '/');
    return slash && slash[1] ? slash + 1 : buffer;
}

static int add_calibration(const struct conversion *c, json_t *object) {
    const struct convert_calibration *o = &c->options->calibration;
    const struct convert_calibration_facts *f = &c->calibrated.facts;
    return json_object_set_new(object, "calibration",
                               json_pack("{s:I, s:I, s:s, s:b, s:f}", "tokens",
                                         (json_int_t)(f->n_windows * f->seq), "window",
                                         (json_int_t)f->seq, "layer_sparsity",
                                         layer_sparsity_name(o->layers.rule), "refine", o->refine,
                                         "damping", o->solver.damping));
}

/* Only what the file was made from and how: nothing that differs from run to run. */
static pdvm_status write_metadata(struct conversion *c, pdvm_error *err) {
    const struct settings_plan *plan = &c->options->plan;
    char name[256];
    json_t *o = json_object(), *rules = json_array();
    int failed = json_object_set_new(o, "source",
                                     json_string(base_name(c->source->path, name, sizeof name)));
    /* A name that is no UTF-8 is left out. */
    if (failed) failed = json_object_set_new(o, "source", json_string(""));
    failed |= json_object_set_new(o, "method", json_string(c->method->name));
    if (c->method->has_sparsity) {
        if (plan->general.sparsity >= 0)
            failed |= json_object_set_new(o, "sparsity", json_real(plan->general.sparsity));
        failed |= json_object_set_new(o, "scope", json_string(prune_scope_name(c->scope)));
    }
    if (c->calibrates) failed |= add_calibration(c, o);
    for (size_t i = 0; i < plan->n_rules; i++)
        failed |= json_array_append_new(rules, json_string(plan->rules[i].text));
    failed |= json_object_set_new(o, "layers", rules);
    failed |= !report_to_metadata(&c->result->report, o);
    char *text = failed ? NULL : json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(o);
    if (!text) return pd_fail_memory(err, 0, "a .pdvm header");
    pdvm_status status = container_write_metadata(c->writer, REPORT_METADATA, text, err);
    free(text);
    return status;
}

/* A tokenizer that cannot be used is kept, as the weights are worth something without it. */
static void warn_of_tokenizer(const struct conversion *c) {
    struct tokenizer *t;
    pdvm_error why;
    if (source_open_tokenizer(c->source, &t, &why) == PDVM_OK)
        tokenizer_free(t);
    else
        pd_log(&c->options->notify, PDVM_LOG_WARN, "%s; the model will not run on text",
               why.message);
}

static pdvm_status write_all(struct conversion *c, pdvm_error *err) {
    size_t n = tensors_count(&c->source->config);
    for (size_t i = 0; i < N_SIDE_FILES; i++) {
        const char *data;
        size_t size;
        source_file(c->source, side_files[i], &data, &size);
        if (!data) continue;
        PD_TRY(container_write_file(c->writer, side_files[i], data, size, err));
        c->result->source_bytes += size;
        c->result->has_tokenizer |= strcmp(side_files[i], SOURCE_TOKENIZER) == 0 ||
                                    strcmp(side_files[i], SOURCE_TOKENIZER_MODEL) == 0;
    }
    warn_of_tokenizer(c);
    for (size_t i = 0; i < n; i++) PD_TRY(do_tensor(c, i, err));
    PD_TRY(write_metadata(c, err));
    return pd_progress(&c->options->notify, "converting", 1, err);
}

static pdvm_status calibrate(struct conversion *c, const char *output, pdvm_error *err) {
    if (!c->calibrates) return PDVM_OK;
    PD_TRY(calibrated_run(c->source, output, c->options, c->method, c->scope, c->threads,
                          &c->calibrated, err));
    c->result->calibration = c->calibrated.facts;
    return PDVM_OK;
}

static pdvm_status write_file(struct conversion *c, const char *output, pdvm_error *err) {
    const struct model_config *config = &c->source->config;
    size_t n = tensors_count(config);
    size_t reserve =
        container_header_reserve(n + N_SIDE_FILES, sizeof((struct tensor_info){0}).name);
    /* Our own metadata: its strings are escaped once more in the header. */
    reserve += n * 384;
    for (size_t i = 0; i < c->options->plan.n_rules; i++)
        reserve += 12 * strlen(c->options->plan.rules[i].text) + 16;
    c->n_weights = tensors_elements(config);
    PD_TRY(pd_threads_create(c->options->n_threads, &c->threads, err));
    pdvm_status status = calibrate(c, output, err);
    if (status == PDVM_OK) status = container_writer_open(output, reserve, &c->writer, err);
    if (status == PDVM_OK) {
        status = write_all(c, err);
        if (status == PDVM_OK)
            status = container_writer_commit(c->writer, err);
        else
            container_writer_abort(c->writer);
    }
    calibrated_free(&c->calibrated, status == PDVM_OK);
    pd_threads_free(c->threads);
    return status;
}

pdvm_status convert_model(const char *source, const char *output,
                          const struct convert_options *options, struct convert_result *out,
                          pdvm_error *err) {
    struct conversion c = {.options = options, .result = out};
    c.method = options->method ? options->method : prune_method_at(0);
    c.calibrates = c.method->calibration || options->calibration.refine;
    c.scope = options->scope == PRUNE_SCOPE_DEFAULT ? c.method->scope : options->scope;
    out->report.pruned = c.method->has_sparsity;
    PD_TRY(source_open(source, &c.source, err));
    pdvm_status status = check_options(&c, err);
    if (status == PDVM_OK) status = convert_check_output(source, output, err);
    if (status == PDVM_OK && options->calibration.text.path)
        status = convert_check_output(options->calibration.text.path, output, err);
    if (status == PDVM_OK) status = write_file(&c, output, err);
    source_close(c.source);
    struct stat st;
    if (status == PDVM_OK && stat(output, &st) == 0) out->file_bytes = (uint64_t)st.st_size;
    return status;
}
