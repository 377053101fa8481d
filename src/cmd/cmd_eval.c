/* pdvm eval: the perplexity on a text, and the divergence from another model. */
#include "base/alloc.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "compress/convert.h"
#include "engine/engine.h"
#include "eval/evaluation.h"
#include "io/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char description[] =
    "Measures how well a model predicts a text: its perplexity, which is exp of the mean negative "
    "log likelihood (nll) of the tokens. Lower is better; what a coding or sparsity costs is the "
    "difference to the original model on the same text with the same protocol and windows.\n"
    "The protocol says how the text is cut into windows of -c tokens, each computed from an empty "
    "cache, and which tokens count. Values of different protocols or windows cannot be compared.\n"
    "sliding: windows start --stride tokens apart and score the tokens that no window before has "
    "scored, so that every token but the text's first counts once (the Hugging Face guide for "
    "models of fixed length). --stride equal to -c is the fastest.\n"
    "llama.cpp: as its perplexity tool does it: whole windows of 512 without overlap, of which the "
    "second half counts; the token that begins a text stands first in each.\n"
    "papers: as in the papers on pruning and quantisation (GPTQ, SparseGPT, Wanda): whole windows of "
    "2048 without overlap, of which all tokens but the first count.\n"
    "With --reference or --kl-base each prediction is also compared with another model's, normally "
    "the uncompressed one: the Kullback-Leibler divergence from it, how often the likeliest "
    "candidate is the same, and how the right token's probability changed. --save-logits writes the "
    "file that --kl-base reads: 2 bytes per token and candidate.\n"
    "Standard errors take the tokens as independent. Names of special tokens in the text are "
    "ordinary text; the token that begins a text, if the model has one, comes first.";

static const char examples[] =
    "pdvm eval tales.pdvm --text stories.txt\n"
    "pdvm eval tales.pdvm --text stories.txt --protocol papers --reference models/tales\n"
    "pdvm eval models/tales --values source --text stories.txt --save-logits tales.logits\n"
    "pdvm eval tales.pdvm --text stories.txt --kl-base tales.logits\n"
    "pdvm eval tales.pdvm --text stories.txt --json --per-token > scores.json";

static const char *const value_names[] = {"f32",  "bf16", "f16",    "int8",
                                          "lut8", "lut4", "source", NULL};

struct arguments {
    const char *model, *text, *kernels, *backend, *values, *save, *base, *reference;
    int64_t window, stride, threads, batch, max_tokens;
    int type_k, type_v, activations, format, protocol;
    bool json, per_token, quiet, verbose, cache_packed;
};

/* Everything that has to be released. */
struct evaluation {
    const struct arguments *o;
    struct terminal_progress progress;
    pdvm_model *model, *reference;
    pdvm_session *session, *reference_session;
    struct token_list tokens;
    struct logits_file *base;
    struct logits_writer *save;
    double *nll; /* [n tokens], NAN where not scored; NULL: not asked for */
    struct perplexity_options options;
    struct evaluation_result result;
};

static pdvm_status open_model(struct evaluation *e, const char *path, const char *values,
                              pdvm_model **out, pdvm_error *err) {
    const struct arguments *o = e->o;
    struct pd_notify notify = terminal_notify("eval", &e->progress, o->verbose);
    pdvm_model_options options = model_options_with(&notify);
    options.n_threads = (int)o->threads;
    options.kernels = o->kernels;
    options.cache_packed = o->cache_packed;
    options.backend = o->backend;
    options.values = values;
    pdvm_status status = pdvm_model_open(path, &options, out, err);
    terminal_progress_end(&e->progress);
    return status;
}

static pdvm_status tokenize_text(struct evaluation *e, const pdvm_model *model, const char *text,
                                 size_t size, struct token_list *tokens, pdvm_error *err) {
    PD_TRY(model_need_tokenizer(model, err));
    PD_TRY(tokenizer_encode(model->tokenizer, text, size, PDVM_TOKENIZE_ADD_SPECIAL, tokens, err));
    if (e->o->max_tokens > 0 && tokens->n > (size_t)e->o->max_tokens)
        tokens->n = (size_t)e->o->max_tokens;
    return PDVM_OK;
}

static void choose_windows(struct evaluation *e) {
    const struct arguments *o = e->o;
    struct perplexity_options *p = &e->options;
    p->protocol = (enum perplexity_protocol)o->protocol;
    p->n_ctx = (uint32_t)o->window;
    p->stride = (uint32_t)o->stride;
    perplexity_complete(p, e->model, e->tokens.ids, e->tokens.n);
    p->notify = (struct pd_notify){.progress = terminal_progress, .progress_user = &e->progress};
}

static pdvm_status create_session(const struct evaluation *e, pdvm_model *model, pdvm_session **out,
                                  pdvm_error *err) {
    const struct arguments *o = e->o;
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = e->options.n_ctx;
    options.n_batch = (uint32_t)o->batch;
    options.prompt_activations = activations_of(o->activations);
    options.type_k = kv_type_of(o->type_k);
    options.type_v = kv_type_of(o->type_v);
    return pdvm_session_create(model, &options, out, err);
}

/* The reference must cut the text into the same tokens. */
static pdvm_status open_reference(struct evaluation *e, const char *text, size_t size,
                                  pdvm_error *err) {
    const char *path = e->o->reference;
    struct token_list tokens = {0};
    PD_TRY(open_model(e, path, "source", &e->reference, err));
    pdvm_status status = tokenize_text(e, e->reference, text, size, &tokens, err);
    if (status == PDVM_OK &&
        (tokens.n != e->tokens.n ||
         (tokens.n > 0 && memcmp(tokens.ids, e->tokens.ids, tokens.n * sizeof *tokens.ids) != 0)))
        status = pd_fail(err, PDVM_ERR_ARGUMENT,
                         "%s: cuts the text into other tokens than %s: only models with the same "
                         "tokenizer can be compared",
                         path, e->o->model);
    free(tokens.ids);
    if (status == PDVM_OK) status = create_session(e, e->reference, &e->reference_session, err);
    e->options.reference = e->reference_session;
    return status;
}

/* Opens what is read and written beside the model, before anything is computed. */
static pdvm_status open_files(struct evaluation *e, const char *text, size_t size,
                              pdvm_error *err) {
    const struct arguments *o = e->o;
    struct logits_key key = logits_key_of(text, size, e->tokens.ids, e->tokens.n,
                                          e->model->config.n_vocab, &e->options);
    if (o->base) {
        PD_TRY(logits_file_open(o->base, &e->base, err));
        PD_TRY(logits_file_check(e->base, &key, err));
    }
    if (!o->save) return PDVM_OK;
    const char *const inputs[] = {o->model, o->text, o->base, o->reference};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        if (inputs[i]) PD_TRY(convert_check_output(inputs[i], o->save, err));
    return logits_writer_open(o->save, &key, o->model, &e->save, err);
}

static pdvm_status measure(struct evaluation *e, const char *text, size_t size, pdvm_error *err) {
    const struct arguments *o = e->o;
    PD_TRY(open_model(e, o->model, o->values, &e->model, err));
    PD_TRY(tokenize_text(e, e->model, text, size, &e->tokens, err));
    choose_windows(e);
    PD_TRY(perplexity_check(e->tokens.n, &e->options, err));
    PD_TRY(create_session(e, e->model, &e->session, err));
    if (o->reference) PD_TRY(open_reference(e, text, size, err));
    if (o->per_token) PD_TRY(pd_calloc(&e->nll, e->tokens.n, sizeof *e->nll, "likelihoods", err));
    PD_TRY(open_files(e, text, size, err));
    e->progress.unit = "tokens";
    e->progress.total = (double)perplexity_extent(e->tokens.n, &e->options).n_computed;
    const struct evaluation_task task = {.session = e->session,
                                         .tokens = e->tokens.ids,
                                         .n = e->tokens.n,
                                         .options = &e->options,
                                         .base = e->base,
                                         .save = e->save,
                                         .nll = e->nll};
    PD_TRY(evaluation_run(&task, &e->result, err));
    struct logits_writer *save = e->save;
    e->save = NULL;
    return save ? logits_writer_commit(save, err) : PDVM_OK;
}

/* ---- printing -------------------------------------------------------------------------- */

static const char *reference_name(const struct evaluation *e) {
    return e->o->reference ? e->o->reference : logits_file_model(e->base);
}

static void print_divergence(const struct evaluation *e) {
    const struct divergence_result *d = &e->result.divergence;
    printf("\ncompared with ");
    print_escaped(reference_name(e), strlen(reference_name(e)));
    printf(", perplexity %.4f\n", d->reference_perplexity);
    printf("ratio       %.5f +- %.5f of its perplexity\n", d->perplexity_ratio.value,
           d->perplexity_ratio.error);
    printf("KL          %.6f +- %.6f nats per token, at most %.4f\n", d->kl.value, d->kl.error,
           d->max);
    printf("quantiles  ");
    for (int i = 0; i < DIVERGENCE_N_QUANTILES; i++)
        printf(" %s%g %%: %.3g", i ? " " : "", 100 * divergence_quantiles[i], d->quantiles[i]);
    printf("\nsame top    %.3f +- %.3f %% of the tokens\n", 100 * d->same_top.value,
           100 * d->same_top.error);
    printf("p(token)    changed by %.3f +- %.3f %%, RMS %.3f +- %.3f %%\n", 100 * d->dp.value,
           100 * d->dp.error, 100 * d->dp_rms.value, 100 * d->dp_rms.error);
}

static double tokens_per_second(const struct evaluation *e) {
    const struct evaluation_result *r = &e->result;
    return r->seconds > 0 ? (double)r->perplexity.n_computed / r->seconds : 0;
}

static void print_text(const struct evaluation *e) {
    const struct perplexity_result *r = &e->result.perplexity;
    char buf[32], stride[32] = "";
    if (e->options.protocol == PERPLEXITY_SLIDING)
        snprintf(stride, sizeof stride, ", stride %u", e->options.stride);
    printf("perplexity  %.4f +- %.4f\n", r->perplexity, r->perplexity_stderr);
    printf("nll         %.5f +- %.5f per token\n", r->nll, r->nll_stderr);
    printf("tokens      %llu scored in %llu windows of %u%s (protocol %s)\n",
           (unsigned long long)r->n_scored, (unsigned long long)r->n_windows, e->options.n_ctx,
           stride, perplexity_protocol_name(e->options.protocol));
    printf("time        %s, %.1f tokens/s\n", terminal_duration(buf, e->result.seconds),
           tokens_per_second(e));
    if (e->result.compared) print_divergence(e);
}

/* Adds "token_positions", "token_ids" and "token_nll" of the scored tokens. */
static void add_tokens(json_t *value, const struct evaluation *e) {
    json_t *positions = json_array(), *ids = json_array(), *nll = json_array();
    for (size_t i = 0; i < e->tokens.n; i++) {
        if (isnan(e->nll[i])) continue;
        json_array_append_new(positions, json_integer((json_int_t)i));
        json_array_append_new(ids, json_integer(e->tokens.ids[i]));
        json_array_append_new(nll, json_real(e->nll[i]));
    }
    json_object_set_new(value, "token_positions", positions);
    json_object_set_new(value, "token_ids", ids);
    json_object_set_new(value, "token_nll", nll);
}

static void add_mean(json_t *value, const char *name, struct divergence_mean mean) {
    char error[64];
    snprintf(error, sizeof error, "%s_stderr", name);
    json_object_set_new(value, name, pd_json_real(mean.value));
    json_object_set_new(value, error, pd_json_real(mean.error));
}

static json_t *divergence_json(const struct evaluation *e) {
    const struct divergence_result *d = &e->result.divergence;
    json_t *value = json_object(), *quantiles = json_object();
    const char *name = reference_name(e);
    json_object_set_new(value, "reference", json_text(name, strlen(name)));
    json_object_set_new(value, "reference_perplexity", pd_json_real(d->reference_perplexity));
    add_mean(value, "perplexity_ratio", d->perplexity_ratio);
    add_mean(value, "nll_change", d->nll_change);
    add_mean(value, "kl", d->kl);
    json_object_set_new(value, "kl_max", pd_json_real(d->max));
    for (int i = 0; i < DIVERGENCE_N_QUANTILES; i++) {
        char share[32];
        snprintf(share, sizeof share, "%g", divergence_quantiles[i]);
        json_object_set_new(quantiles, share, pd_json_real(d->quantiles[i]));
    }
    json_object_set_new(value, "kl_quantiles", quantiles);
    add_mean(value, "same_top", d->same_top);
    add_mean(value, "p_change", d->dp);
    add_mean(value, "p_change_rms", d->dp_rms);
    return value;
}

static int print_result(const struct evaluation *e) {
    const struct perplexity_result *r = &e->result.perplexity;
    if (e->o->format == OUTPUT_TEXT) {
        print_text(e);
        return CMD_OK;
    }
    json_t *value = json_pack(
        "{s:o, s:o, s:s, s:i, s:I, s:I, s:I, s:o, s:o, s:f, s:f, s:f, s:f}", "model",
        json_text(e->o->model, strlen(e->o->model)), "text",
        json_text(e->o->text, strlen(e->o->text)), "protocol",
        perplexity_protocol_name(e->options.protocol), "n_ctx", (int)e->options.n_ctx, "n_windows",
        (json_int_t)r->n_windows, "n_tokens", (json_int_t)e->tokens.n, "n_scored",
        (json_int_t)r->n_scored, "perplexity", pd_json_real(r->perplexity), "perplexity_stderr",
        pd_json_real(r->perplexity_stderr), "nll", r->nll, "nll_stderr", r->nll_stderr, "seconds",
        e->result.seconds, "tokens_per_second", tokens_per_second(e));
    if (value && e->options.protocol == PERPLEXITY_SLIDING)
        json_object_set_new(value, "stride", json_integer(e->options.stride));
    if (value && e->result.compared) json_object_set_new(value, "divergence", divergence_json(e));
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
    logits_writer_abort(e.save);
    logits_file_close(e.base);
    free(e.nll);
    free(e.tokens.ids);
    free(text);
    pdvm_session_free(e.session);
    pdvm_session_free(e.reference_session);
    pdvm_model_close(e.model);
    pdvm_model_close(e.reference);
    return code;
}

static int check_arguments(const struct options_page *page, const struct arguments *o) {
    int64_t window = o->window;
    if (window == 0) window = perplexity_usual_window((enum perplexity_protocol)o->protocol);
    if (!o->model) return options_error(page, "no model: pdvm eval MODEL --text FILE");
    if (!o->text) return options_error(page, "no text: give one with --text FILE");
    if (o->per_token && o->format != OUTPUT_JSON)
        return options_error(page, "--per-token needs --json");
    if (o->stride > 0 && o->protocol != PERPLEXITY_SLIDING)
        return options_error(page, "--stride: only the protocol sliding has one");
    if (o->base && o->reference)
        return options_error(page, "--kl-base and --reference: only one can be compared with");
    if (o->stride > window)
        return options_error(page,
                             "--stride %lld is longer than the window of %lld tokens: some tokens "
                             "would never be scored",
                             (long long)o->stride, (long long)window);
    return OPTIONS_GO_ON;
}

int cmd_eval(int argc, char **argv) {
    struct arguments o = {
        .type_k = PDVM_KV_F16, .type_v = PDVM_KV_F16, .kernels = "auto", .backend = "auto"};
    int values = -1;
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &o.model, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &o.model),
        OPTION_STRING("-f, --text, --file", "FILE",
                      "The text, in UTF-8; - is standard input. Required.", &o.text),
        OPTION_CHOICE("--protocol", "NAME", "sliding, llama.cpp or papers, see above. [sliding]",
                      &o.protocol, perplexity_protocol_names),
        OPTION_INT("-c, --ctx-size", "N",
                   "Tokens of a window. [512, with --protocol papers 2048; or the model's context "
                   "if that is shorter]",
                   &o.window, 2, 1 << 24),
        OPTION_INT("--stride, --ppl-stride", "N",
                   "Tokens between the starts of two sliding windows. [half of -c]", &o.stride, 1,
                   1 << 24),
        OPTION_INT("--max-tokens", "N", "Use only the first N tokens of the text.", &o.max_tokens,
                   2, INT32_MAX),
        OPTION_GROUP("Comparison"),
        OPTION_STRING("--reference", "MODEL",
                      "Also run this model, with its source's own precision, and compare.",
                      &o.reference),
        OPTION_STRING("--kl-base", "FILE",
                      "Compare with the predictions that --save-logits has saved. They must be of "
                      "the same text, tokenizer, protocol and windows.",
                      &o.base),
        OPTION_STRING("--save-logits", "FILE",
                      "Save the predictions of each scored token, for --kl-base. The file is a "
                      "safetensors file, see docs/evaluation.md.",
                      &o.save),
        OPTION_GROUP("Output"),
        OPTION_CHOICE("-o, --output", "text|json", "How to print the result. [text]", &o.format,
                      output_formats),
        SHARED_OPTION_JSON(&o.json),
        OPTION_FLAG(
            "--per-token",
            "With JSON: also the place in the text (token_positions), the number (token_ids) "
            "and the negative log likelihood in nats (token_nll) of each scored token.",
            &o.per_token),
        SHARED_OPTION_QUIET(&o.quiet),
        SHARED_OPTION_VERBOSE(&o.verbose),
        OPTION_GROUP("Engine"),
        OPTION_CHOICE("--values", "TYPE",
                      "How weights are held that are not coded yet: f32, bf16, f16, int8, lut8, "
                      "lut4, or source, as they are. [int8]",
                      &values, value_names),
        SHARED_OPTION_THREADS(&o.threads),
        OPTION_INT("-b, --batch-size", "N", "Most tokens computed together. [256]", &o.batch, 1,
                   1 << 24),
        SHARED_OPTION_ACTIVATIONS(&o.activations),
        SHARED_OPTION_TYPE_K(&o.type_k),
        SHARED_OPTION_TYPE_V(&o.type_v),
        SHARED_OPTION_BACKEND(&o.backend),
        SHARED_OPTION_KERNELS(&o.kernels),
        SHARED_OPTION_CACHE_PACKED(&o.cache_packed),
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
    if (o.json) o.format = OUTPUT_JSON;
    if (values >= 0) o.values = value_names[values];
    code = check_arguments(&page, &o);
    return code == OPTIONS_GO_ON ? evaluate(&o) : code;
}
