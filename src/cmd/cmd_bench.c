/* pdvm bench: measures how fast prompts and generation are. */
#include "base/alloc.h"
#include "base/file.h"
#include "cmd/bench_table.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/lists.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "compress/settings.h"
#include "engine/engine.h"
#include "model/shapes.h"
#include "pdvm_build.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_RESULT ((size_t)64 << 20)

static const char description[] =
    "Measures how fast a model runs: prompts (pp) and generation (tg), in tokens per second, mean "
    "and standard deviation over the repetitions. The rows are those of llama-bench; -p, -n, -d, "
    "-t, --sparsity and --values take lists with commas, and all combinations take turns in every "
    "repetition, so that a machine whose speed drifts treats them alike.\n"
    "Generation is limited by memory. So each of its rows says how many bytes a token reads "
    "(weights and cache), how many a second that makes, and which share that is of the read "
    "bandwidth, which is measured in the same run with the same threads.\n"
    "With --shape there is no file: the model has the shape of a well-known one and random weights "
    "of the given sparsity and coding. It is as fast as a real one and writes nonsense.";

static const char examples[] =
    "pdvm bench tales.pdvm\n"
    "pdvm bench --shape tinyllama-1.1b --sparsity 0,0.5,0.7,0.9 -p 256 -n 32 -t 1,2\n"
    "pdvm bench --shape llama2-13b --sparsity 0.5 --values lut4 -p 0 -n 16 -r 3 --phases\n"
    "pdvm bench --pdvm-table -n 64 -r 3\n"
    "pdvm bench model.pdvm -o json > before.json; pdvm bench model.pdvm --compare before.json\n";

struct arguments {
    const char *model;
    struct option_list models, shapes;
    const char *sparsity, *values, *prompt, *gen, *depth, *threads, *kernels, *backend, *compare;
    int codebook;
    int64_t group, repetitions, batch, seed, per_launch;
    bool group_given, all_modes, sync, graph, pdvm_table, phases, json, quiet, verbose,
        cache_packed;
    int mode, type_k, type_v, activations, format;
};

/* The arguments as lists. */
struct lists {
    struct bench_model *models;
    size_t n_models, model_capacity;
    struct bench_test *tests;
    size_t n_tests, test_capacity;
    int threads[LISTS_MOST];
    size_t n_threads;
};

static void free_lists(struct lists *l) {
    free(l->models);
    free(l->tests);
}

/* ---- models and tests ------------------------------------------------------------------ */

struct codings {
    enum mdcsr_values items[LISTS_MOST];
    struct share_list
        own[LISTS_MOST]; /* the sparsity of "lut4@0.5"; n is 0 where the general ones hold */
    size_t n;
};

static pdvm_status take_coding(void *user, const char *flag, const char *item, pdvm_error *err) {
    struct codings *c = user;
    struct coding_list value = {.n = 0};
    char name[64];
    const char *at = strchr(item, '@');
    if (c->n == LISTS_MOST) return lists_too_many(flag, err);
    snprintf(name, sizeof name, "%.*s", (int)(at ? at - item : (ptrdiff_t)strlen(item)), item);
    if (at) PD_TRY(lists_shares(flag, at + 1, &c->own[c->n], err));
    PD_TRY(lists_codings(flag, name, &value, err));
    c->items[c->n++] = value.items[0];
    return PDVM_OK;
}

static pdvm_status add_model(struct lists *l, const struct bench_model *m, pdvm_error *err) {
    PD_TRY(pd_grow(&l->models, &l->model_capacity, l->n_models + 1, sizeof *l->models,
                   "the list of models", err));
    l->models[l->n_models++] = *m;
    return PDVM_OK;
}

static const char *const codebook_names[] = {"learned", "linear", NULL};
static const enum mdcsr_codebook codebooks[] = {MDCSR_LEARNED, MDCSR_LINEAR};

static pdvm_status list_models(const struct arguments *a, struct lists *l, pdvm_error *err) {
    if (a->model) PD_TRY(add_model(l, &(struct bench_model){.path = a->model}, err));
    for (size_t i = 0; i < a->models.n; i++)
        PD_TRY(add_model(l, &(struct bench_model){.path = a->models.items[i]}, err));
    struct share_list zeros = {0};
    struct codings values = {0};
    PD_TRY(lists_shares("--sparsity", a->sparsity ? a->sparsity : "0.5", &zeros, err));
    PD_TRY(lists_each("--values", a->values ? a->values : "int8", take_coding, &values, err));
    bool standard = a->pdvm_table && a->shapes.n == 0;
    for (size_t s = 0; s < (standard ? 1 : a->shapes.n); s++) {
        for (size_t v = 0; v < values.n; v++) {
            const struct share_list *list = values.own[v].n ? &values.own[v] : &zeros;
            for (size_t z = 0; z < list->n; z++) {
                uint32_t group = a->group_given                  ? (uint32_t)a->group
                                 : values.items[v] == MDCSR_LUT4 ? SETTING_LUT4_GROUP
                                                                 : 0;
                const struct bench_model m = {
                    .synthetic = {.shape = standard ? "llama2-13b" : a->shapes.items[s],
                                  .sparsity = list->items[z],
                                  .values = values.items[v],
                                  .codebook = codebooks[a->codebook],
                                  .group = group,
                                  .seed = (uint64_t)a->seed}};
                PD_TRY(add_model(l, &m, err));
            }
        }
    }
    return PDVM_OK;
}

static pdvm_status add_test(struct lists *l, int64_t prompt, int64_t gen, int64_t depth,
                            pdvm_error *err) {
    PD_TRY(pd_grow(&l->tests, &l->test_capacity, l->n_tests + 1, sizeof *l->tests,
                   "the list of tests", err));
    l->tests[l->n_tests++] = (struct bench_test){
        .n_prompt = (uint32_t)prompt, .n_gen = (uint32_t)gen, .depth = (uint32_t)depth};
    return PDVM_OK;
}

static pdvm_status list_tests(const struct arguments *a, struct lists *l, pdvm_error *err) {
    struct number_list prompt, gen, depth, threads;
    PD_TRY(lists_numbers("-p", a->prompt, 1 << 20, &prompt, err));
    PD_TRY(lists_numbers("-n", a->gen, 1 << 20, &gen, err));
    PD_TRY(lists_numbers("-d", a->depth, 1 << 24, &depth, err));
    PD_TRY(lists_numbers("-t", a->threads, 1024, &threads, err));
    for (size_t d = 0; d < depth.n; d++) {
        for (size_t i = 0; i < prompt.n; i++)
            if (prompt.items[i]) PD_TRY(add_test(l, prompt.items[i], 0, depth.items[d], err));
        for (size_t i = 0; i < gen.n; i++)
            if (gen.items[i]) PD_TRY(add_test(l, 0, gen.items[i], depth.items[d], err));
    }
    for (size_t i = 0; i < threads.n; i++) l->threads[l->n_threads++] = (int)threads.items[i];
    if (l->n_tests == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "nothing to measure: -p and -n are both 0");
    return PDVM_OK;
}

/* ---- running --------------------------------------------------------------------------- */

static pdvm_status read_before(const char *path, json_t **out, pdvm_error *err) {
    char *data;
    size_t size;
    PD_TRY(pd_read_file(path, MAX_RESULT, &data, &size, err));
    pdvm_status status = pd_json_parse_object(path, data, size, out, err);
    free(data);
    return status;
}

/* The command line as one string; NULL: out of memory. */
static char *command_line(int argc, char **argv) {
    size_t size = sizeof "pdvm", n = 4;
    for (int i = 0; i < argc; i++) size += strlen(argv[i]) + 1;
    char *text = NULL;
    if (pd_calloc(&text, size, 1, "the command line", NULL) != PDVM_OK) return NULL;
    memcpy(text, "pdvm", 4);
    for (int i = 0; i < argc; i++) {
        size_t length = strlen(argv[i]);
        text[n++] = ' ';
        memcpy(text + n, argv[i], length);
        n += length;
    }
    return text;
}

static int print_result(const struct arguments *a, const struct bench_result *r,
                        const struct bench_context *context, const json_t *before) {
    struct bench_comparison comparison = {0};
    pdvm_error err;
    json_t *value = NULL;
    int code = CMD_OK;
    if (a->format == TABLE_JSON || before) {
        value = bench_to_json(r, context);
        if (!value) {
            terminal_error("bench", "out of memory while making JSON");
            return CMD_FAILED;
        }
    }
    if (before && bench_compare(value, a->compare, before, &comparison, &err) != PDVM_OK)
        code = terminal_fail("bench", &err);
    if (a->format == TABLE_JSON) {
        int printed = print_json("bench", value);
        value = NULL;
        if (code == CMD_OK) code = printed;
    } else if (a->format == TABLE_CSV) {
        print_bench_csv(stdout, r, context);
    } else {
        print_bench_markdown(stdout, r, context);
        if (before && code == CMD_OK) print_bench_comparison(stdout, &comparison, a->compare);
    }
    bench_comparison_free(&comparison);
    json_decref(value);
    return code;
}

static struct bench_options options_of(const struct arguments *a, const struct lists *l,
                                       struct terminal_progress *progress) {
    return (struct bench_options){
        .models = l->models,
        .n_models = l->n_models,
        .tests = l->tests,
        .n_tests = l->n_tests,
        .threads = l->threads,
        .n_threads = l->n_threads,
        .all_modes = a->all_modes,
        .mode = (pdvm_mode)a->mode,
        .sync = a->sync,
        .graph = a->graph,
        .per_launch = (uint32_t)a->per_launch,
        .phases = a->phases,
        .repetitions = (uint32_t)a->repetitions,
        .kernels = a->kernels,
        .cache_packed = a->cache_packed,
        .backend = a->backend,
        .values = a->shapes.n == 0 ? a->values : NULL,
        .n_batch = (uint32_t)a->batch,
        .prompt_activations = activations_of(a->activations),
        .type_k = kv_type_of(a->type_k),
        .type_v = kv_type_of(a->type_v),
        .seed = (uint64_t)a->seed,
        .notify = terminal_notify("bench", progress, a->verbose),
    };
}

static pdvm_status measure(const struct arguments *a, const struct lists *l,
                           struct bench_result *result, pdvm_error *err) {
    struct terminal_progress progress = {.quiet = a->quiet};
    const struct bench_options options = options_of(a, l, &progress);
    pdvm_status status = bench_run(&options, result, err);
    terminal_progress_end(&progress);
    return status;
}

/* The first test's tokens count, those of the first synthetic model. */
static int pdvm_table(const struct arguments *a, const struct lists *l,
                      const struct bench_context *context) {
    struct terminal_progress progress = {.quiet = a->quiet};
    const struct bench_options options = options_of(a, l, &progress);
    struct pdvm_table table;
    pdvm_error err;
    uint32_t n_gen = 128;
    for (size_t i = 0; i < l->n_tests; i++)
        if (l->tests[i].n_gen) n_gen = l->tests[i].n_gen;
    pdvm_status status = pdvm_table_run(&options, n_gen, &table, &err);
    terminal_progress_end(&progress);
    if (status != PDVM_OK) return terminal_fail("bench", &err);
    print_pdvm_table(stdout, &table, context);
    return CMD_OK;
}

static int bench(const struct arguments *a, const struct lists *l, const char *command) {
    struct bench_result result = {0};
    json_t *before = NULL, *text = json_text(command, strlen(command));
    pdvm_error err;
    char date[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    const struct bench_context context = {.version = pdvm_version(),
                                          .commit = PDVM_GIT_COMMIT,
                                          .command = text ? json_string_value(text) : "",
                                          .date = date,
                                          .repetitions = (uint32_t)a->repetitions,
                                          .seed = (uint64_t)a->seed};
    if (a->pdvm_table) {
        int code = pdvm_table(a, l, &context);
        json_decref(text);
        return code;
    }
    pdvm_status status = PDVM_OK;
    if (a->compare) status = read_before(a->compare, &before, &err); /* before it takes minutes */
    if (status == PDVM_OK) status = measure(a, l, &result, &err);
    int code = status == PDVM_OK ? print_result(a, &result, &context, before)
                                 : terminal_fail("bench", &err);
    bench_free(&result);
    json_decref(before);
    json_decref(text);
    return code;
}

static int run(const struct options_page *page, const struct arguments *a, const char *command) {
    struct lists l = {0};
    pdvm_error err;
    pdvm_status status = list_models(a, &l, &err);
    if (status == PDVM_OK) status = list_tests(a, &l, &err);
    int code;
    if (status == PDVM_ERR_ARGUMENT)
        code = options_error(page, "%s", err.message);
    else
        code = status == PDVM_OK ? bench(a, &l, command) : terminal_fail("bench", &err);
    free_lists(&l);
    return code;
}

int cmd_bench(int argc, char **argv) {
    struct arguments a = {.prompt = "512",
                          .gen = "128",
                          .depth = "0",
                          .threads = "0",
                          .repetitions = 5,
                          .kernels = "auto",
                          .backend = "auto",
                          .type_k = PDVM_KV_F16,
                          .type_v = PDVM_KV_F16,
                          .seed = 1,
                          .per_launch = 16};
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &a.model, false},
        OPERAND_END};
    struct option_spec group = OPTION_INT(
        "--group", "N",
        "With --shape: columns that share one scale: 0 (one scale per row), 32, 64, 128 or 256. "
        "[64 for lut4, else 0]",
        &a.group, 0, 256);
    group.given = &a.group_given;
    const struct option_spec options[] = {
        OPTION_LIST("-m, --model", "MODEL", "A model; may be given several times.", &a.models),
        OPTION_LIST("--shape", "SHAPE",
                    "A synthetic model of this shape: tinyllama-1.1b, llama2-7b, llama2-13b, "
                    "llama3-8b, qwen3-0.6b, ... (a wrong name lists them all), or your own as in "
                    "hidden=1024,layers=8. May be given several times.",
                    &a.shapes),
        OPTION_STRING("--sparsity", "LIST",
                      "With --shape: shares of zeros in the layers' matrices. [0.5]", &a.sparsity),
        OPTION_STRING(
            "--values", "LIST",
            "With --shape: codings of the layers' matrices: int8, lut4, lut8, f16, bf16, "
            "f32; lut4@0.5 is lut4 at this sparsity only. Without --shape, the one that a "
            "Hugging Face directory or a GGUF file is converted to. [int8]",
            &a.values),
        OPTION_CHOICE("--codebook", "KIND",
                      "With --shape: what lut4 chooses from: learned values or linear, evenly "
                      "spaced ones. [learned]",
                      &a.codebook, codebook_names),
        group,
        OPTION_GROUP("Tests"),
        OPTION_STRING("-p, --n-prompt", "LIST", "Tokens of a prompt; 0: no such test. [512]",
                      &a.prompt),
        OPTION_STRING("-n, --n-gen", "LIST", "Tokens to generate; 0: no such test. [128]", &a.gen),
        OPTION_STRING("-d, --n-depth", "LIST", "Tokens in the cache before each test. [0]",
                      &a.depth),
        OPTION_STRING("-t, --threads", "LIST", "Threads; 0 is one per physical core. [0]",
                      &a.threads),
        OPTION_INT("-r, --repetitions", "N", "Samples of each test. [5]", &a.repetitions, 1, 10000),
        OPTION_CHOICE("--mode", "MODE",
                      "How the phases of a token are dispatched: token, layer, phase, unfused. "
                      "[token]",
                      &a.mode, engine_mode_names),
        OPTION_FLAG("--modes", "Generation in all four modes side by side.", &a.all_modes),
        OPTION_FLAG("--sync",
                    "On a GPU: wait for it after every launch; with --modes, one more row of mode "
                    "unfused.",
                    &a.sync),
        OPTION_FLAG("--graph", "On a GPU: the phases as a CUDA graph; with --modes, one more row.",
                    &a.graph),
        OPTION_INT("--per-launch", "N",
                   "Tokens that a GPU computes in a launch of mode token; 1 is one launch per "
                   "token. [16]",
                   &a.per_launch, 1, 256),
        OPTION_FLAG("--phases", "Time, bytes and rate of each kind of phase.", &a.phases),
        OPTION_FLAG(
            "--pdvm-table",
            "The comparison of the PDVM document instead: a token in NumPy, on the CPU with "
            "one thread and all, on the GPU unfused with waits and without, fused per layer "
            "and per token. [--shape llama2-13b]",
            &a.pdvm_table),
        OPTION_INT("-s, --seed", "N", "Seed of the weights and tokens. [1]", &a.seed, 0, INT32_MAX),
        OPTION_GROUP("Output"),
        OPTION_CHOICE("-o, --output", "md|csv|json", "How to print the result. [md]", &a.format,
                      table_formats),
        SHARED_OPTION_JSON(&a.json),
        OPTION_STRING("--compare", "FILE",
                      "An earlier result of -o json: also print before, now and ratio of each row.",
                      &a.compare),
        SHARED_OPTION_QUIET(&a.quiet),
        SHARED_OPTION_VERBOSE(&a.verbose),
        OPTION_GROUP("Engine"),
        OPTION_INT("-b, --batch-size", "N", "Most prompt tokens computed together. [256]", &a.batch,
                   1, 1 << 24),
        SHARED_OPTION_ACTIVATIONS(&a.activations),
        SHARED_OPTION_TYPE_K(&a.type_k),
        SHARED_OPTION_TYPE_V(&a.type_v),
        SHARED_OPTION_BACKEND(&a.backend),
        SHARED_OPTION_KERNELS(&a.kernels),
        OPTION_FLAG("--cache-packed",
                    "Keep the weights as packed for this machine in a file beside the model, or in "
                    "the user's cache directory, and start from it the next time. Not for shapes.",
                    &a.cache_packed),
        OPTION_END,
    };
    const struct options_page page = {.command = "bench",
                                      .usage = "MODEL [OPTIONS]\n--shape SHAPE [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples,
                                      .operand_hint = "further models are given with -m"};
    int code = options_parse(&page, argc, argv);
    if (code == OPTIONS_GO_ON) {
        if (a.json) a.format = TABLE_JSON;
        if (a.pdvm_table && (a.model || a.models.n > 0))
            code = options_error(&page, "--pdvm-table is for synthetic models: give a --shape");
        else if (a.pdvm_table && (a.format != TABLE_MD || a.compare))
            code = options_error(&page, "--pdvm-table prints Markdown, and compares with nothing");
        else if (!a.pdvm_table && !a.model && a.models.n == 0 && a.shapes.n == 0)
            code = options_error(&page, "no model: pdvm bench MODEL, or pdvm bench --shape SHAPE");
        else if (!a.pdvm_table && a.shapes.n == 0 && (a.sparsity || a.group_given || a.codebook))
            code = options_error(&page, "%s is for synthetic models: give a --shape",
                                 a.sparsity      ? "--sparsity"
                                 : a.group_given ? "--group"
                                                 : "--codebook");
        else if (a.compare && a.format == TABLE_CSV)
            code = options_error(&page, "--compare needs -o md or json");
    }
    if (code == OPTIONS_GO_ON) {
        char *command = command_line(argc, argv);
        code = run(&page, &a, command ? command : "");
        free(command);
    }
    option_list_free(&a.models);
    option_list_free(&a.shapes);
    return code;
}
