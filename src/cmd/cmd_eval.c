/* pdvm eval: the perplexity on a text. */
#include "base/alloc.h"
#include "base/file.h"
#include "base/time.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/options.h"
#include "cmd/terminal.h"
#include "compress/convert.h"
#include "engine/engine.h"
#include "eval/perplexity.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* llama.cpp's default window. */
#define DEFAULT_WINDOW 512

static const char description[] =
    "Measures how well a model predicts a text: its perplexity, which is exp of the mean negative "
    "log likelihood (nll) of the tokens. Lower is better; what a coding or sparsity costs is the "
    "difference to the original model on the same text with the same -c and --stride.\n"
    "The text is cut into windows of -c tokens that start --stride tokens apart. Each window is "
    "computed from an empty cache and scores the tokens that no window before it has scored: the "
    "first window all but its first token, the others their last --stride. So every token but the "
    "text's first is scored exactly once, and after the first window with at least (c - stride) "
    "tokens before it. Small strides give the lowest values and take the longest; --stride equal "
    "to -c is the fastest, and then the first token of each window is not scored. The definition "
    "is that of the Hugging Face guide for models of fixed length; llama.cpp's perplexity tool "
    "scores only the second half of each window, so compare values of one tool only.\n"
    "The standard error takes the tokens as independent. Names of special tokens in the text are "
    "ordinary text; the token that begins a text, if the model has one, comes first.";

static const char examples[] =
    "pdvm eval tales.pdvm --text stories.txt\n"
    "pdvm eval tales.pdvm --text stories.txt -c 1024 --stride 256 -ctk f32 -ctv f32\n"
    "pdvm eval tales.pdvm --text stories.txt --json --per-token > scores.json\n";

struct arguments {
    const char *model, *text, *kernels, *logits;
    int64_t window, stride, threads, batch, max_tokens;
    int type_k, type_v, format;
    bool json, per_token, quiet, verbose;
};

/* What is kept of the scored tokens. */
struct record {
    struct pd_writer *logits; /* NULL: not asked for */
    double *nll;              /* [n tokens], NAN where not scored; NULL: not asked for */
};

/* A perplexity_fn. */
static pdvm_status keep(void *user, size_t position, int32_t token, double nll, const float *logits,
                        size_t n_vocab, pdvm_error *err) {
    struct record *r = user;
    (void)token;
    if (r->nll) r->nll[position] = nll;
    if (!r->logits) return PDVM_OK;
    return pd_writer_append(r->logits, logits, n_vocab * sizeof *logits, err);
}

/* Everything that has to be released. */
struct evaluation {
    const struct arguments *o;
    struct terminal_progress progress;
    pdvm_model *model;
    pdvm_session *session;
    struct token_list tokens;
    struct record record;
    struct perplexity_options options;
    struct perplexity_result result;
    double seconds;
};

static pdvm_status open_model(struct evaluation *e, pdvm_error *err) {
    const struct arguments *o = e->o;
    static char name[] = "eval";
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = (int)o->threads;
    options.kernels = o->kernels;
    options.progress = terminal_progress;
    options.progress_user = &e->progress;
    options.log = o->verbose ? terminal_log_verbose : terminal_log;
    options.log_user = name;
    pdvm_status status = pdvm_model_open(o->model, &options, &e->model, err);
    terminal_progress_end(&e->progress);
    return status;
}

static pdvm_status tokenize_text(struct evaluation *e, const char *text, size_t size,
                                 pdvm_error *err) {
    if (!e->model->tokenizer)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the model has no %s", e->o->model,
                       SOURCE_TOKENIZER);
    PD_TRY(tokenizer_encode(e->model->tokenizer, text, size, PDVM_TOKENIZE_ADD_SPECIAL, &e->tokens,
                            err));
    if (e->o->max_tokens > 0 && e->tokens.n > (size_t)e->o->max_tokens)
        e->tokens.n = (size_t)e->o->max_tokens;
    return PDVM_OK;
}

static pdvm_status create_session(struct evaluation *e, pdvm_error *err) {
    const struct arguments *o = e->o;
    uint32_t most = e->model->config.max_position_embeddings;
    uint32_t window = o->window > 0           ? (uint32_t)o->window
                      : most < DEFAULT_WINDOW ? most
                                              : DEFAULT_WINDOW;
    e->options.n_ctx = window;
    e->options.stride = o->stride > 0 ? (uint32_t)o->stride : (window + 1) / 2;
    e->options.notify =
        (struct pd_notify){.progress = terminal_progress, .progress_user = &e->progress};
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = window;
    options.n_batch = (uint32_t)o->batch;
    options.type_k = kv_type_of(o->type_k);
    options.type_v = kv_type_of(o->type_v);
    return pdvm_session_create(e->model, &options, &e->session, err);
}

static pdvm_status measure(struct evaluation *e, const char *text, size_t size, pdvm_error *err) {
    PD_TRY(open_model(e, err));
    PD_TRY(tokenize_text(e, text, size, err));
    PD_TRY(create_session(e, err));
    if (e->o->per_token)
        PD_TRY(pd_calloc(&e->record.nll, e->tokens.n, sizeof *e->record.nll, "likelihoods", err));
    for (size_t i = 0; e->record.nll && i < e->tokens.n; i++) e->record.nll[i] = NAN;
    if (e->o->logits) {
        PD_TRY(convert_check_output(e->o->model, e->o->logits, err));
        PD_TRY(convert_check_output(e->o->text, e->o->logits, err));
    }
    if (e->o->logits) PD_TRY(pd_writer_open(e->o->logits, &e->record.logits, err));
    e->progress.unit = "tokens";
    e->progress.total = (double)perplexity_work(e->tokens.n, e->options.n_ctx, e->options.stride);
    double start = pd_seconds();
    PD_TRY(perplexity_measure(e->session, e->tokens.ids, e->tokens.n, &e->options, keep, &e->record,
                              &e->result, err));
    e->seconds = pd_seconds() - start;
    struct pd_writer *logits = e->record.logits;
    e->record.logits = NULL;
    return logits ? pd_writer_commit(logits, err) : PDVM_OK;
}

static void print_text(const struct evaluation *e) {
    const struct perplexity_result *r = &e->result;
    char buf[32];
    printf("perplexity  %.4f +- %.4f\n", r->perplexity, r->perplexity_stderr);
    printf("nll         %.5f +- %.5f per token\n", r->nll, r->nll_stderr);
    printf("tokens      %llu scored in %llu windows of %u, stride %u\n",
           (unsigned long long)r->n_scored, (unsigned long long)r->n_windows, e->options.n_ctx,
           e->options.stride);
    printf("time        %s, %.1f tokens/s\n", terminal_duration(buf, e->seconds),
           e->seconds > 0 ? (double)r->n_computed / e->seconds : 0);
}

/* Adds "token_positions", "token_ids" and "token_nll" of the scored tokens. */
static void add_tokens(json_t *value, const struct evaluation *e) {
    json_t *positions = json_array(), *ids = json_array(), *nll = json_array();
    for (size_t i = 0; i < e->tokens.n; i++) {
        if (isnan(e->record.nll[i])) continue;
        json_array_append_new(positions, json_integer((json_int_t)i));
        json_array_append_new(ids, json_integer(e->tokens.ids[i]));
        json_array_append_new(nll, json_real(e->record.nll[i]));
    }
    json_object_set_new(value, "token_positions", positions);
    json_object_set_new(value, "token_ids", ids);
    json_object_set_new(value, "token_nll", nll);
}

static int print_result(const struct evaluation *e) {
    const struct perplexity_result *r = &e->result;
    if (e->o->format == OUTPUT_TEXT) {
        print_text(e);
        return CMD_OK;
    }
    json_t *value = json_pack(
        "{s:o, s:o, s:i, s:i, s:I, s:I, s:I, s:o, s:o, s:f, s:f, s:f, s:f}", "model",
        json_text(e->o->model, strlen(e->o->model)), "text",
        json_text(e->o->text, strlen(e->o->text)), "n_ctx", (int)e->options.n_ctx, "stride",
        (int)e->options.stride, "n_windows", (json_int_t)r->n_windows, "n_tokens",
        (json_int_t)e->tokens.n, "n_scored", (json_int_t)r->n_scored, "perplexity",
        json_number(r->perplexity), "perplexity_stderr", json_number(r->perplexity_stderr), "nll",
        r->nll, "nll_stderr", r->nll_stderr, "seconds", e->seconds, "tokens_per_second",
        e->seconds > 0 ? (double)r->n_computed / e->seconds : 0.0);
    if (value && e->o->per_token) add_tokens(value, e);
    return print_json("eval", value);
}

static int evaluate(const struct arguments *o) {
    struct evaluation e = {.o = o, .progress = {.quiet = o->quiet}};
    pdvm_error err;
    char *text = NULL;
    size_t size;
    pdvm_status status = read_text(o->text, &text, &size, &err);
    if (status == PDVM_OK) status = check_utf8(o->text, text, size, &err);
    if (status == PDVM_OK) status = measure(&e, text, size, &err);
    terminal_progress_end(&e.progress);
    int code = status == PDVM_OK ? print_result(&e) : terminal_fail("eval", &err);
    pd_writer_abort(e.record.logits);
    free(e.record.nll);
    free(e.tokens.ids);
    free(text);
    pdvm_session_free(e.session);
    pdvm_model_close(e.model);
    return code;
}

int cmd_eval(int argc, char **argv) {
    struct arguments o = {.type_k = PDVM_KV_F16, .type_v = PDVM_KV_F16, .kernels = "auto"};
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &o.model, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &o.model),
        OPTION_STRING("-f, --text, --file", "FILE",
                      "The text, in UTF-8; - is standard input. Required.", &o.text),
        OPTION_INT("-c, --ctx-size", "N",
                   "Tokens of a window. [512, or the model's context if that is shorter]",
                   &o.window, 2, 1 << 24),
        OPTION_INT("--stride, --ppl-stride", "N",
                   "Tokens between the starts of two windows. [half of -c]", &o.stride, 1, 1 << 24),
        OPTION_INT("--max-tokens", "N", "Use only the first N tokens of the text.", &o.max_tokens,
                   2, INT32_MAX),
        OPTION_GROUP("Output"),
        OPTION_CHOICE("-o, --output", "text|json", "How to print the result. [text]", &o.format,
                      output_formats),
        OPTION_FLAG("--json", "The same as -o json.", &o.json),
        OPTION_FLAG(
            "--per-token",
            "With JSON: also the place in the text (token_positions), the number (token_ids) "
            "and the negative log likelihood in nats (token_nll) of each scored token.",
            &o.per_token),
        OPTION_STRING("--save-logits", "FILE",
                      "Write the logits that each token was scored with: one row of n_vocab "
                      "little-endian 32-bit floats per scored token, nothing else in the file.",
                      &o.logits),
        OPTION_FLAG("-q, --quiet", "Show no progress.", &o.quiet),
        OPTION_FLAG("-v, --verbose", "Print what the engine has to say.", &o.verbose),
        OPTION_GROUP("Engine"),
        OPTION_INT("-t, --threads", "N", "Threads; 0 is one per processor. [0]", &o.threads, 0,
                   1024),
        OPTION_INT("-b, --batch-size", "N", "Most tokens computed together. [64]", &o.batch, 1,
                   1 << 24),
        OPTION_CHOICE("-ctk, --cache-type-k", "TYPE",
                      "How the keys in the KV cache are stored: f32, f16, int8. [f16]", &o.type_k,
                      kv_type_names),
        OPTION_CHOICE("-ctv, --cache-type-v", "TYPE",
                      "How the values in the KV cache are stored. [f16]", &o.type_v, kv_type_names),
        OPTION_STRING("--kernels", "SET",
                      "Instruction set of the kernels: auto, scalar, avx512. [auto]", &o.kernels),
        OPTION_END,
    };
    const struct options_page page = {.command = "eval",
                                      .usage = "MODEL --text FILE [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples,
                                      .operand_hint = "a text's file is given with --text"};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!o.model) return options_error(&page, "no model: pdvm eval MODEL --text FILE");
    if (!o.text) return options_error(&page, "no text: give one with --text FILE");
    if (o.json) o.format = OUTPUT_JSON;
    if (o.per_token && o.format != OUTPUT_JSON)
        return options_error(&page, "--per-token needs --json");
    if (o.stride > 0 && o.stride > (o.window > 0 ? o.window : DEFAULT_WINDOW))
        return options_error(&page,
                             "--stride %lld is longer than the window of %lld tokens: some tokens "
                             "would never be scored",
                             (long long)o.stride,
                             (long long)(o.window > 0 ? o.window : DEFAULT_WINDOW));
    return evaluate(&o);
}
