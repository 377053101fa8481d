/* pdvm plan: how sparse and how coarse to make which matrix. */
#include "base/file.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/measuring.h"
#include "cmd/options.h"
#include "cmd/plan_report.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "compress/blas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char description[] =
    "Finds out how sparse and how coarse each matrix of a model should be, so that the file keeps a "
    "budget, decoding reaches a speed on this machine, or the damage stays below a limit. Damage is "
    "the Kullback-Leibler divergence from the uncompressed model on the text of --calib, in nats "
    "per token: 0.01 is that of a good 4-bit coding, 0.1 is noticed.\n"
    "The menu, all combinations of --sparsity and --values, is first applied to all matrices alike "
    "and measured: size, damage, speed. Then the damage of each matrix alone is measured for each "
    "item of the menu. The best choice of one item per matrix follows by dynamic programming, and is "
    "measured again. If one dense coding for all matrices is better than any mixture, that is the "
    "answer.\n"
    "--settings writes the choice for pdvm convert --layers-file, --apply converts at once and "
    "compares what came out with what was predicted. docs/planner.md explains the method, and what "
    "it takes for large models.";

static const char examples[] =
    "pdvm plan models/tales --budget 12MB --calib stories.txt\n"
    "pdvm plan models/tales --max-loss 0.05 --calib stories.txt --apply tales.pdvm --svg plan.svg\n"
    "pdvm plan models/tales --speed 300 --calib stories.txt --quick --settings tales.rules\n"
    "pdvm convert models/tales -o tales.pdvm --method sparsegpt --calib stories.txt \\\n"
    "    --layers-file tales.rules";

/* Windows of the text that the damage is measured on, and their tokens. */
#define DEFAULT_WINDOWS 4
#define DEFAULT_WINDOW 512
#define DEFAULT_FRONT 8
/* The menu is converted item by item: fewer than pdvm convert's. */
#define DEFAULT_CALIB_TOKENS 32768

struct arguments {
    struct measuring m; /* what pdvm sweep has, too */
    const char *budget, *method, *apply, *settings, *svg;
    double speed, max_loss;
    bool speed_given, max_loss_given, quick;
    int64_t windows, layers, front;
    int format;
};

/* What follows from the arguments. */
struct request {
    struct plan_options options;
    struct plan_names names;
};

/* "4.5GB", "800 MiB", "12000000" */
static bool parse_size(const char *text, double *out) {
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},         {"B", 1},        {"kB", 1e3},   {"KB", 1e3},     {"MB", 1e6},
                 {"GB", 1e9},     {"TB", 1e12},    {"KiB", 1024}, {"M", 1e6},      {"G", 1e9},
                 {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"T", 1e12},   {"TiB", 0x1p40}, {"K", 1e3}};
    char number[40];
    size_t n = strspn(text, "0123456789.");
    const char *unit = text + n + strspn(text + n, " ");
    if (n == 0 || n >= sizeof number) return false;
    memcpy(number, text, n);
    number[n] = '\0';
    if (!options_real(number, out)) return false;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(unit, units[i].name) != 0) continue;
        *out *= units[i].bytes;
        return *out > 0;
    }
    return false;
}

static pdvm_status read_goal(const struct arguments *a, struct plan_options *o, pdvm_error *err) {
    int n = (a->budget != NULL) + a->speed_given + a->max_loss_given;
    if (n != 1)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "give one of --budget SIZE, --speed TOKENS and --max-loss KL%s",
                       n > 1 ? ", not several" : "");
    o->goal = a->budget ? PLAN_BUDGET : a->speed_given ? PLAN_SPEED : PLAN_MAX_LOSS;
    o->limit = a->speed_given ? a->speed : a->max_loss;
    if (a->budget && !parse_size(a->budget, &o->limit))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "--budget %s: is no size such as 4.5GB, 800MiB or 12000000", a->budget);
    return PDVM_OK;
}

static pdvm_status make_request(struct arguments *a, struct terminal_progress *bar,
                                struct request *q, pdvm_error *err) {
    struct plan_options *o = &q->options;
    const struct prune_method *method;
    const struct pd_notify notify = terminal_notify("plan", bar, a->m.verbose);
    PD_TRY(read_goal(a, o, err));
    PD_TRY(measuring_read_lists(&a->m, err));
    PD_TRY(find_method("--method", a->method, &method, err));
    o->sparsities = a->m.sparsities.items;
    o->n_sparsities = a->m.sparsities.n;
    o->values = a->m.codings.items;
    o->n_values = a->m.codings.n;
    o->convert = measuring_convert(&a->m, method->calibration != PRUNE_NO_CALIBRATION);
    o->convert.method = method;
    o->baseline = measuring_baseline(&a->m, PERPLEXITY_PAPERS, &notify);
    o->baseline.n_windows = (size_t)a->windows;
    o->layers_per_group = (uint32_t)a->layers;
    o->quick = a->quick;
    o->n_front = (size_t)a->front;
    o->speed_tokens = (size_t)a->m.speed_tokens;
    o->apply = a->apply;
    q->names = (struct plan_names){.source = a->m.source,
                                   .text = a->m.text,
                                   .method = method->name,
                                   .apply = a->apply,
                                   .goal = o->goal,
                                   .limit = o->limit};
    return PDVM_OK;
}

/*
 * There is a text to calibrate on anyway, and calibrating costs little beside measuring every
 * matrix; but not every system has OpenBLAS.
 */
static const char *default_method(void) {
    const struct blas *blas;
    if (blas_open(&blas, NULL) == PDVM_OK) return "sparsegpt";
    fprintf(stderr,
            "pdvm plan: there is no OpenBLAS, which better methods need: --method magnitude\n");
    return "magnitude";
}

/* One rule a line, for pdvm convert --layers-file. */
static pdvm_status write_settings(const struct arguments *a, const struct plan_result *r,
                                  pdvm_error *err) {
    struct pd_writer *w;
    char line[512];
    bool calibrates = prune_method_find(a->method)->calibration != PRUNE_NO_CALIBRATION;
    PD_TRY(pd_writer_open(a->settings, &w, err));
    int n = snprintf(line, sizeof line,
                     "# made by pdvm plan: pdvm convert SOURCE -o FILE --method %s%s --layers-file "
                     "THIS\n",
                     a->method, calibrates ? " --calib TEXT" : "");
    pdvm_status status = pd_writer_append(w, line, (size_t)n, err);
    for (size_t i = 0; i < r->n_rules && status == PDVM_OK; i++) {
        n = snprintf(line, sizeof line, "%s\n", r->rules[i]);
        status = pd_writer_append(w, line, (size_t)n, err);
    }
    if (status == PDVM_OK) return pd_writer_commit(w, err);
    pd_writer_abort(w);
    return status;
}

static pdvm_status plan(const struct arguments *a, const struct request *q, struct plan_result *r,
                        pdvm_error *err) {
    char *text;
    size_t size;
    const char *const outputs[] = {a->settings, a->svg, a->apply};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        if (!outputs[i]) continue;
        PD_TRY(convert_check_output(a->m.source, outputs[i], err));
        PD_TRY(convert_check_output(a->m.calib, outputs[i], err));
        PD_TRY(convert_check_output(a->m.text, outputs[i], err));
    }
    PD_TRY(read_utf8(a->m.text, &text, &size, err));
    pdvm_status status = plan_run(a->m.source, a->m.text, text, size, &q->options, r, err);
    free(text);
    if (status == PDVM_OK && a->settings) status = write_settings(a, r, err);
    if (status == PDVM_OK && a->svg) status = plan_write_svg(a->svg, r, err);
    return status;
}

static int run(const struct options_page *page, struct arguments *a) {
    struct terminal_progress bar = {.quiet = a->m.quiet};
    struct request q = {.names = {0}};
    struct plan_result r = {0};
    pdvm_error err;
    if (make_request(a, &bar, &q, &err) != PDVM_OK) return options_error(page, "%s", err.message);
    pdvm_status status = plan(a, &q, &r, &err);
    terminal_progress_end(&bar);
    int code = CMD_OK;
    if (status != PDVM_OK)
        code = terminal_fail("plan", &err);
    else if (a->m.json || a->format == OUTPUT_JSON)
        code = print_json("plan", plan_json(&q.names, &r));
    else
        plan_print(&q.names, &r);
    plan_result_free(&r);
    return code;
}

int cmd_plan(int argc, char **argv) {
    struct arguments a = {
        .m = measuring_default(), .windows = DEFAULT_WINDOWS, .layers = 1, .front = DEFAULT_FRONT};
    a.m.sparsity = "0,0.3,0.5,0.7";
    a.m.calib_tokens = DEFAULT_CALIB_TOKENS;
    a.m.window = DEFAULT_WINDOW;
    const struct operand operands[] = {
        {"SOURCE", "A Hugging Face model directory, a GGUF file, or a .pdvm file.", &a.m.source,
         false},
        OPERAND_END};
    struct option_spec options[] = {
        OPTION_GROUP("Goal (one of)"),
        OPTION_STRING("--budget", "SIZE",
                      "Most bytes of the file, as in 4.5GB, 800MiB: least damage.", &a.budget),
        OPTION_REAL("--speed", "TOKENS",
                    "Tokens per second that decoding must reach on this machine: least damage.",
                    &a.speed, 1e-3, 1e9),
        OPTION_REAL("--max-loss", "KL", "Most damage, in nats per token: smallest file.",
                    &a.max_loss, 1e-9, 100),
        OPTION_GROUP("Text"),
        OPTION_STRING("--calib", "FILE",
                      "The text to measure on, and to calibrate on where the method needs that; in "
                      "UTF-8. Required.",
                      &a.m.calib),
        OPTION_STRING("-f, --text, --file", "FILE", "Another text to measure on.", &a.m.text),
        OPTION_INT("--windows", "N",
                   "Windows of it that the damage is measured on, spread over its second half. [4]",
                   &a.windows, 1, 1 << 20),
        OPTION_INT("-c, --ctx-size", "N", "Tokens of a window. [512]", &a.m.window, 2, 1 << 24),
        OPTION_INT("--calib-tokens", "N", "Tokens to calibrate on. [32768]", &a.m.calib_tokens, 1,
                   INT32_MAX),
        OPTION_INT("--calib-seq", "N",
                   "Tokens of a window to calibrate on. [2048, or the model's context if that is "
                   "shorter]",
                   &a.m.calib_seq, 1, 1 << 24),
        OPTION_GROUP("Menu"),
        OPTION_STRING("--method", "METHOD",
                      "How weights become zero; see pdvm convert. [sparsegpt; magnitude without "
                      "OpenBLAS]",
                      &a.method),
        OPTION_STRING("--sparsity", "LIST", "Shares of zeros. [0,0.3,0.5,0.7]", &a.m.sparsity),
        SHARED_OPTION_VALUES(&a.m.values),
        SHARED_OPTION_GROUP(&a.m.group),
        SHARED_OPTION_EMBED(&a.m.embed),
        OPTION_GROUP("Effort"),
        OPTION_FLAG("--quick",
                    "Measure two items of the menu per matrix and derive the others from them.",
                    &a.quick),
        OPTION_INT("--layers-per-group", "N",
                   "Decide on the matrices of N layers together, role by role. [1]", &a.layers, 1,
                   1 << 20),
        OPTION_INT("--front", "N", "Also find and measure the best mixtures of N sizes. [8]",
                   &a.front, 0, 1000),
        OPTION_INT("--speed-tokens", "N", "Tokens decoded to measure each speed. [64]",
                   &a.m.speed_tokens, 1, 65536),
        OPTION_GROUP("Output"),
        OPTION_STRING("--apply", "FILE", "Convert to this .pdvm file, and verify it.", &a.apply),
        OPTION_STRING("--settings", "FILE", "Write the choice for pdvm convert --layers-file.",
                      &a.settings),
        OPTION_STRING("--svg", "FILE", "Draw damage against size and speed.", &a.svg),
        OPTION_CHOICE("-o, --output", "text|json", "How to print the result. [text]", &a.format,
                      output_formats),
        SHARED_OPTION_JSON(&a.m.json),
        SHARED_OPTION_QUIET(&a.m.quiet),
        SHARED_OPTION_VERBOSE(&a.m.verbose),
        OPTION_GROUP("Engine"),
        SHARED_OPTION_THREADS(&a.m.threads),
        SHARED_OPTION_KERNELS(&a.m.kernels),
        SHARED_OPTION_CALIBRATION_BACKEND(&a.m.backend),
        OPTION_END,
    };
    options[2].given = &a.speed_given;
    options[3].given = &a.max_loss_given;
    const struct options_page page = {
        .command = "plan",
        .usage = "SOURCE --budget SIZE|--speed T|--max-loss KL --calib FILE [...]",
        .description = description,
        .operands = operands,
        .options = options,
        .examples = examples,
        .operand_hint = "a text's file is given with --calib"};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!a.m.source) return options_error(&page, "no source: pdvm plan SOURCE --budget SIZE ...");
    if (!a.m.calib) return options_error(&page, "no text: give one with --calib FILE");
    if (!a.m.text) a.m.text = a.m.calib;
    if (!a.method) a.method = default_method();
    return run(&page, &a);
}
