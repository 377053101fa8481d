/* pdvm sweep: the table of a model card. */
#include "base/file.h"
#include "base/hash.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/measuring.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "io/json.h"
#include "plan/sweep.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Tokens of the text that are used unless the user says otherwise. */
#define DEFAULT_TOKENS 32768

static const char description[] =
    "Compresses a model in many ways and measures each: the table of a model card. All combinations "
    "of --methods, --sparsity and --values are converted one after the other in a temporary "
    "directory and compared with the uncompressed model on the same text: perplexity, "
    "Kullback-Leibler divergence (KL, in nats per token) and how often the likeliest candidate is the "
    "same (pdvm eval and docs/evaluation.md explain them), stored bits per weight of the layers, "
    "size of the file and decoding speed on this machine.\n"
    "With --results a sweep can be stopped and taken up again: what is in the file is not measured "
    "again, if source, texts and settings are the same.";

static const char examples[] =
    "pdvm sweep models/tales --text stories.txt\n"
    "pdvm sweep models/tales --methods magnitude,wanda --sparsity 0,0.5,0.7 --values int8,lut4 \\\n"
    "    --text held-out.txt --calib stories.txt --results sweep.jsonl -o csv";

struct arguments {
    struct measuring m; /* what pdvm plan has, too */
    const char *methods, *results;
    int64_t max_tokens;
    int protocol, format;
};

/* The methods to sweep over. */
struct lists {
    const struct prune_method *methods[LISTS_MOST];
    size_t n_methods;
    bool has_calibration; /* there is a text for it */
    bool calibrated;      /* some method needs it */
};

static pdvm_status take_method(void *user, const char *flag, const char *item, pdvm_error *err) {
    struct lists *l = user;
    const struct prune_method *m;
    PD_TRY(find_method(flag, item, &m, err));
    if (m->calibration && !l->has_calibration)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "%s: %s needs a text: give one with --calib FILE",
                       flag, item);
    if (l->n_methods == LISTS_MOST) return lists_too_many(flag, err);
    l->calibrated |= m->calibration != PRUNE_NO_CALIBRATION;
    l->methods[l->n_methods++] = m;
    return PDVM_OK;
}

static pdvm_status read_lists(struct arguments *a, struct lists *l, pdvm_error *err) {
    l->has_calibration = a->m.calib != NULL;
    PD_TRY(lists_each("--methods", a->methods, take_method, l, err));
    return measuring_read_lists(&a->m, err);
}

/* ---- printing -------------------------------------------------------------------------- */

static const char *number(char buf[32], const char *format, double value) {
    if (isfinite(value))
        snprintf(buf, 32, format, value);
    else
        snprintf(buf, 32, "-");
    return buf;
}

static void print_md(const struct arguments *a, const struct sweep_result *r) {
    char ppl[32], speed[32], size[32];
    printf("%s on %s, %llu tokens in %llu windows of %u, protocol %s\n\n", a->m.source, a->m.text,
           (unsigned long long)r->reference.n_scored, (unsigned long long)r->reference.n_windows,
           r->windows.n_ctx, perplexity_protocol_name(r->windows.protocol));
    printf(
        "| method    | zeros %% | values | perplexity |    +- | KL       | +-       | same top %% | "
        "bits/weight | size      |  tok/s |\n");
    printf("|-----------|--------:|--------|-----------:|------:|---------:|---------:|-----------:"
           "|------------:|----------:|-------:|\n");
    printf("| %-9s | %7s | %-6s | %10s | %5.2f | %8s | %8s | %10s | %11.2f | %9s | %6s |\n", "-",
           "-", "source", number(ppl, "%.4f", r->reference.perplexity),
           r->reference.perplexity_stderr, "0", "-", "100", r->reference_bits,
           terminal_size(size, r->reference_bytes),
           number(speed, "%.1f", r->reference_tokens_per_second));
    for (size_t i = 0; i < r->n; i++) {
        const struct sweep_row *w = &r->rows[i];
        printf("| %-9s | %7.1f | %-6s | %10s | %5.2f | %8.5f | %8.5f | %10.2f | %11.2f | %9s | %6s "
               "|\n",
               w->cell.method->name, 100 * w->zeros, mdcsr_values_name(w->cell.values),
               number(ppl, "%.4f", w->perplexity), w->perplexity_stderr, w->kl, w->kl_stderr,
               100 * w->same_top, w->bits, terminal_size(size, w->bytes),
               number(speed, "%.1f", w->tokens_per_second));
    }
}

static void print_csv(const struct sweep_result *r) {
    char speed[32];
    printf("method,sparsity,zeros,values,perplexity,perplexity_stderr,perplexity_ratio,"
           "perplexity_ratio_stderr,kl,kl_stderr,kl_median,kl_99,same_top,bits_per_weight,"
           "file_bytes,tokens_per_second,convert_seconds\n");
    for (size_t i = 0; i < r->n; i++) {
        const struct sweep_row *w = &r->rows[i];
        printf("%s,%g,%.6f,%s,%.6f,%.6f,%.6f,%.6f,%.8g,%.8g,%.8g,%.8g,%.6f,%.4f,%llu,%s,%.2f\n",
               w->cell.method->name, w->cell.sparsity, w->zeros, mdcsr_values_name(w->cell.values),
               w->perplexity, w->perplexity_stderr, w->perplexity_ratio, w->perplexity_ratio_stderr,
               w->kl, w->kl_stderr, w->kl_median, w->kl_99, w->same_top, w->bits,
               (unsigned long long)w->bytes,
               isfinite(w->tokens_per_second) ? number(speed, "%.2f", w->tokens_per_second) : "",
               w->convert_seconds);
    }
}

static int print_sweep_json(const struct arguments *a, const struct sweep_result *r) {
    json_t *rows = json_array();
    for (size_t i = 0; i < r->n; i++) json_array_append_new(rows, sweep_row_json(&r->rows[i]));
    return print_json(
        "sweep",
        json_pack("{s:o, s:o, s:s, s:i, s:I, s:I, s:{s:o, s:f, s:o, s:f, s:I}, s:o}", "source",
                  json_text(a->m.source, strlen(a->m.source)), "text",
                  json_text(a->m.text, strlen(a->m.text)), "protocol",
                  perplexity_protocol_name(r->windows.protocol), "n_ctx", (int)r->windows.n_ctx,
                  "n_windows", (json_int_t)r->reference.n_windows, "n_scored",
                  (json_int_t)r->reference.n_scored, "reference", "perplexity",
                  pd_json_real(r->reference.perplexity), "perplexity_stderr",
                  r->reference.perplexity_stderr, "tokens_per_second",
                  pd_json_real(r->reference_tokens_per_second), "bits_per_weight",
                  r->reference_bits, "bytes", (json_int_t)r->reference_bytes, "rows", rows));
}

static int print_sweep(const struct arguments *a, const struct sweep_result *r) {
    if (a->format == TABLE_JSON) return print_sweep_json(a, r);
    if (a->format == TABLE_CSV)
        print_csv(r);
    else
        print_md(a, r);
    return CMD_OK;
}

/* ---- running --------------------------------------------------------------------------- */

/* What changes the results beside the lists: settings, and the calibration with its text. */
static pdvm_status hash_settings(const struct arguments *a, const struct lists *l, uint64_t *out,
                                 pdvm_error *err) {
    char text[128];
    struct pd_map map;
    int n = snprintf(text, sizeof text, "%d %d", a->m.embed, a->m.group);
    *out = pd_hash(PD_HASH_INIT, text, (size_t)n);
    if (!l->calibrated) return PDVM_OK;
    n = snprintf(text, sizeof text, "%lld %lld", (long long)a->m.calib_tokens,
                 (long long)a->m.calib_seq);
    *out = pd_hash(*out, text, (size_t)n);
    PD_TRY(pd_map_open(a->m.calib, &map, err));
    *out = pd_hash(*out, map.data, map.size);
    pd_map_close(&map);
    return PDVM_OK;
}

static void make_options(const struct arguments *a, const struct lists *l,
                         struct terminal_progress *bar, struct sweep_options *o) {
    const struct pd_notify notify = terminal_notify("sweep", bar, a->m.verbose);
    *o = (struct sweep_options){
        .methods = l->methods,
        .n_methods = l->n_methods,
        .sparsities = a->m.sparsities.items,
        .n_sparsities = a->m.sparsities.n,
        .values = a->m.codings.items,
        .n_values = a->m.codings.n,
        .convert = measuring_convert(&a->m, l->calibrated),
        .baseline = measuring_baseline(&a->m, (enum perplexity_protocol)a->protocol, &notify),
        .results = a->results,
        .speed_tokens = (size_t)a->m.speed_tokens};
    o->baseline.max_tokens = (size_t)a->max_tokens;
}

static int sweep(const struct arguments *a, const struct lists *l) {
    struct terminal_progress bar = {.quiet = a->m.quiet};
    struct sweep_options options;
    struct sweep_result result = {0};
    pdvm_error err;
    char *text = NULL;
    size_t size = 0;
    make_options(a, l, &bar, &options);
    pdvm_status status = hash_settings(a, l, &options.convert_key, &err);
    if (status == PDVM_OK) status = read_utf8(a->m.text, &text, &size, &err);
    if (status == PDVM_OK)
        status = sweep_run(a->m.source, a->m.text, text, size, &options, &result, &err);
    terminal_progress_end(&bar);
    int code = status == PDVM_OK ? print_sweep(a, &result) : terminal_fail("sweep", &err);
    if (status != PDVM_OK && result.n > 0 && a->results)
        fprintf(stderr, "pdvm sweep: %zu results are in %s; the same command goes on from there\n",
                result.n, a->results);
    sweep_free(&result);
    free(text);
    return code;
}

int cmd_sweep(int argc, char **argv) {
    struct arguments a = {.m = measuring_default(),
                          .methods = "magnitude",
                          .max_tokens = DEFAULT_TOKENS,
                          .protocol = PERPLEXITY_PAPERS};
    a.m.sparsity = "0,0.3,0.5,0.6,0.7,0.8";
    struct lists lists = {.n_methods = 0};
    pdvm_error err;
    const struct operand operands[] = {
        {"SOURCE", "A Hugging Face model directory, a GGUF file, or a .pdvm file.", &a.m.source,
         false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_GROUP("What to measure"),
        OPTION_STRING("--methods", "LIST", "Methods of pdvm convert. [magnitude]", &a.methods),
        OPTION_STRING("--sparsity", "LIST", "Shares of zeros. [0,0.3,0.5,0.6,0.7,0.8]",
                      &a.m.sparsity),
        SHARED_OPTION_VALUES(&a.m.values),
        SHARED_OPTION_GROUP(&a.m.group),
        SHARED_OPTION_EMBED(&a.m.embed),
        OPTION_GROUP("Text"),
        OPTION_STRING("-f, --text, --file", "FILE",
                      "The text to measure on, in UTF-8; - is standard input. Required.",
                      &a.m.text),
        OPTION_STRING("--calib", "FILE", "The text to calibrate on, for methods that need one.",
                      &a.m.calib),
        OPTION_INT("--calib-tokens", "N", "Tokens of it to use. [262144]", &a.m.calib_tokens, 1,
                   INT32_MAX),
        OPTION_INT("--calib-seq", "N",
                   "Tokens of a window of it. [2048, or the model's context if that is shorter]",
                   &a.m.calib_seq, 1, 1 << 24),
        OPTION_CHOICE("--protocol", "NAME", "As for pdvm eval. [papers]", &a.protocol,
                      perplexity_protocol_names),
        OPTION_INT("-c, --ctx-size", "N",
                   "Tokens of a window. [512, with --protocol papers 2048; or the model's context "
                   "if that is shorter]",
                   &a.m.window, 2, 1 << 24),
        OPTION_INT("--max-tokens", "N", "Use the text's first N tokens; 0: all. [32768]",
                   &a.max_tokens, 0, INT32_MAX),
        OPTION_INT("--speed-tokens", "N", "Tokens decoded to measure the speed; 0: don't. [64]",
                   &a.m.speed_tokens, 0, 65536),
        OPTION_GROUP("Output"),
        OPTION_STRING("--results", "FILE",
                      "Append each result to this file (JSON lines), and don't measure again what "
                      "it holds.",
                      &a.results),
        OPTION_CHOICE("-o, --output", "md|csv|json", "How to print the table. [md]", &a.format,
                      table_formats),
        SHARED_OPTION_JSON(&a.m.json),
        SHARED_OPTION_QUIET(&a.m.quiet),
        SHARED_OPTION_VERBOSE(&a.m.verbose),
        OPTION_GROUP("Engine"),
        SHARED_OPTION_THREADS(&a.m.threads),
        SHARED_OPTION_KERNELS(&a.m.kernels),
        SHARED_OPTION_CALIBRATION_BACKEND(&a.m.backend),
        OPTION_END,
    };
    const struct options_page page = {.command = "sweep",
                                      .usage = "SOURCE --text FILE [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples,
                                      .operand_hint = "a text's file is given with --text"};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!a.m.source) return options_error(&page, "no source: pdvm sweep SOURCE --text FILE");
    if (!a.m.text) return options_error(&page, "no text: give one with --text FILE");
    if (a.m.json) a.format = TABLE_JSON;
    if (read_lists(&a, &lists, &err) != PDVM_OK) return options_error(&page, "%s", err.message);
    return sweep(&a, &lists);
}
