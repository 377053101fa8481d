/* pdvm run: generates text from a prompt. */
#include "base/alloc.h"
#include "base/time.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/options.h"
#include "cmd/terminal.h"
#include "engine/engine.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static const char description[] =
    "Generates text that follows a prompt and writes it to standard output as it comes, the prompt "
    "first. Timings and memory use go to standard error at the end. Options have the names and "
    "meanings that users of llama.cpp know.\n"
    "A Hugging Face directory or a GGUF file is converted in memory each time; for a quicker start "
    "and smaller weights make a .pdvm file of it with 'pdvm convert'.\n"
    "Without -n, generation goes on until the model ends the text or the context is full. Ctrl-C "
    "stops it, with the timings; a second Ctrl-C kills. Without a prompt the text starts from the "
    "token that begins texts, if the model has one.\n"
    "The same model, options and --seed give the same text, for any number of threads and in every "
    "--mode.";

static const char examples[] =
    "pdvm run models/tales -p \"Once upon a time\"\n"
    "pdvm run tales.pdvm -p \"The old lighthouse\" -n 200 --temp 0.7 --seed 42\n"
    "cat story.txt | pdvm run tales.pdvm -f - -n 100 --no-display-prompt\n"
    "pdvm run tales.pdvm -p \"A cat\" --session cat.session   # again: the prompt is not computed\n"
    "pdvm run tales.pdvm -p \"A dog\" -o json | jq .timings\n";

static const char *const mode_names[] = {"token", "layer", "phase", "unfused", NULL};

static const char *const stop_names[] = {"length", "end", "string", "context", "interrupt"};

struct settings {
    const char *model, *prompt, *file, *session, *kernels;
    int64_t n_predict, n_ctx, n_batch, n_threads, seed, keep;
    int64_t top_k, repeat_last_n;
    double temp, top_p, min_p, typical, repeat_penalty, frequency_penalty, presence_penalty;
    struct option_list logit_bias, stop;
    int type_k, type_v, mode, format;
    bool json, ignore_eos, rolling, display_prompt, escape, quiet, verbose;
};

/* A run from start to end, and everything that has to be released. */
struct run {
    struct settings o;
    struct terminal_progress progress;
    pdvm_model *model;
    pdvm_session *session;
    pdvm_sampler *sampler;
    pdvm_logit_bias *bias; /* [o.logit_bias.n] */
    char *prompt;
    size_t prompt_size;
    struct token_list tokens; /* of the prompt */
    uint64_t seed;

    char *text; /* what was generated; only kept for JSON */
    size_t text_size, text_capacity;
    char last_byte; /* of what was written */
    int write_error;

    bool finished; /* there is something to report */
    size_t n_generated;
    pdvm_stop_reason reason;
    double load_seconds, prompt_seconds, generate_seconds;
    uint64_t n_prompt_computed, n_prompt_reused;
};

/* ---- the command line ------------------------------------------------------------------ */

/* "TOKEN+BIAS" or "TOKEN-BIAS", where the bias may be "inf". */
static bool parse_bias(const char *text, pdvm_logit_bias *out) {
    char number[16];
    size_t length = strspn(text, "0123456789");
    int64_t token;
    double bias;
    if (length == 0 || length >= sizeof number) return false;
    memcpy(number, text, length);
    number[length] = '\0';
    const char *value = text + length;
    if (*value != '+' && *value != '-') return false;
    if (!options_int(number, &token) || token > INT32_MAX) return false;
    if (strcmp(value, "-inf") == 0)
        bias = -INFINITY;
    else if (strcmp(value, "+inf") == 0 || !options_real(value, &bias) || fabs(bias) > 1e6)
        return false;
    *out = (pdvm_logit_bias){(int32_t)token, (float)bias};
    return true;
}

static int parse_biases(struct run *r, const struct options_page *page) {
    pdvm_error err;
    const struct option_list *list = &r->o.logit_bias;
    if (pd_calloc(&r->bias, list->n, sizeof *r->bias, "logit biases", &err) != PDVM_OK)
        return terminal_fail("run", &err);
    for (size_t i = 0; i < list->n; i++)
        if (!parse_bias(list->items[i], &r->bias[i]))
            return options_error(page,
                                 "--logit-bias '%s': must be a token's number, a sign and a bias, "
                                 "as in 42+1.5 or 42-inf",
                                 list->items[i]);
    return OPTIONS_GO_ON;
}

static int check_settings(struct run *r, const struct options_page *page) {
    struct settings *o = &r->o;
    if (!o->model) return options_error(page, "no model: pdvm run MODEL -p PROMPT");
    if (o->prompt && o->file)
        return options_error(page, "-p and -f both give a prompt: leave one out");
    if (o->json) o->format = OUTPUT_JSON;
    for (size_t i = 0; i < o->stop.n; i++)
        if (o->stop.items[i][0] == '\0')
            return options_error(page,
                                 "--reverse-prompt: the text is empty and would stop at once");
    return parse_biases(r, page);
}

/* ---- before generating ----------------------------------------------------------------- */

static pdvm_status read_prompt(struct run *r, pdvm_error *err) {
    const struct settings *o = &r->o;
    if (o->file) {
        PD_TRY(read_text(o->file, &r->prompt, &r->prompt_size, err));
        return check_utf8(strcmp(o->file, "-") ? o->file : "the prompt on standard input",
                          r->prompt, r->prompt_size, err);
    }
    const char *prompt = o->prompt ? o->prompt : "";
    r->prompt_size = strlen(prompt);
    PD_TRY(pd_calloc(&r->prompt, r->prompt_size + 1, 1, "the prompt", err));
    memcpy(r->prompt, prompt, r->prompt_size);
    if (o->escape) r->prompt_size = unescape(r->prompt);
    return check_utf8("the prompt", r->prompt, r->prompt_size, err);
}

static pdvm_status open_model(struct run *r, pdvm_error *err) {
    static char name[] = "run";
    pdvm_model_options options = pdvm_model_options_default();
    options.n_threads = (int)r->o.n_threads;
    options.kernels = r->o.kernels;
    options.progress = terminal_progress;
    options.progress_user = &r->progress;
    options.log = r->o.verbose ? terminal_log_verbose : terminal_log;
    options.log_user = name;
    double start = pd_seconds();
    PD_TRY(pdvm_model_open(r->o.model, &options, &r->model, err));
    r->load_seconds = pd_seconds() - start;
    terminal_progress_end(&r->progress);
    return PDVM_OK;
}

/* The prompt's tokens; those of an empty prompt are the one that begins a text. */
static pdvm_status tokenize_prompt(struct run *r, pdvm_error *err) {
    const pdvm_model *m = r->model;
    if (!m->tokenizer)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: the model has no %s", r->o.model,
                       SOURCE_TOKENIZER);
    PD_TRY(tokenizer_encode(m->tokenizer, r->prompt, r->prompt_size,
                            PDVM_TOKENIZE_ADD_SPECIAL | PDVM_TOKENIZE_PARSE_SPECIAL, &r->tokens,
                            err));
    if (r->tokens.n > 0) return PDVM_OK;
    if (m->config.bos_token_id < 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "the prompt is empty, and the model has no token that begins a text: give a "
                       "prompt with -p or -f");
    PD_TRY(pd_grow(&r->tokens.ids, &r->tokens.capacity, 1, sizeof *r->tokens.ids, "tokens", err));
    r->tokens.ids[r->tokens.n++] = m->config.bos_token_id;
    return PDVM_OK;
}

static pdvm_status create_session(struct run *r, pdvm_error *err) {
    const struct settings *o = &r->o;
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = (uint32_t)o->n_ctx;
    options.n_batch = (uint32_t)o->n_batch;
    options.type_k = kv_type_of(o->type_k);
    options.type_v = kv_type_of(o->type_v);
    options.mode = (pdvm_mode)o->mode;
    options.rolling = o->rolling;
    if (o->keep >= 0) options.n_sink = (uint32_t)o->keep;
    options.progress = terminal_progress;
    options.progress_user = &r->progress;
    PD_TRY(pdvm_session_create(r->model, &options, &r->session, err));
    uint32_t n_ctx = r->session->options.n_ctx;
    if (r->tokens.n > n_ctx && !o->rolling)
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the prompt has %zu tokens and the context holds %u: shorten it, raise -c, "
                       "or let old tokens go with --rolling",
                       r->tokens.n, n_ctx);
    return PDVM_OK;
}

static uint64_t random_seed(void) {
    uint32_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        seed = (uint32_t)(pd_seconds() * 1e6) ^ (uint32_t)getpid();
    return seed;
}

static pdvm_status create_sampler(struct run *r, pdvm_error *err) {
    const struct settings *o = &r->o;
    uint32_t n_vocab = r->model->config.n_vocab;
    for (size_t i = 0; i < o->logit_bias.n; i++)
        if ((uint32_t)r->bias[i].token >= n_vocab)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "--logit-bias %s: token %d is outside the vocabulary of %u",
                           o->logit_bias.items[i], (int)r->bias[i].token, n_vocab);
    r->seed = o->seed < 0 ? random_seed() : (uint64_t)o->seed;
    pdvm_sampler_options options = {.temperature = (float)o->temp,
                                    .top_k = (int32_t)o->top_k,
                                    .top_p = (float)o->top_p,
                                    .min_p = (float)o->min_p,
                                    .typical_p = (float)o->typical,
                                    .repeat_penalty = (float)o->repeat_penalty,
                                    .repeat_last_n = (int32_t)o->repeat_last_n,
                                    .frequency_penalty = (float)o->frequency_penalty,
                                    .presence_penalty = (float)o->presence_penalty,
                                    .seed = r->seed,
                                    .logit_bias = r->bias,
                                    .n_logit_bias = o->logit_bias.n};
    PD_TRY(pdvm_sampler_create(&options, &r->sampler, err));
    for (size_t i = 0; i < r->tokens.n; i++)
        PD_TRY(pdvm_sampler_accept(r->sampler, r->tokens.ids[i], err));
    return PDVM_OK;
}

static pdvm_status load_session(struct run *r, pdvm_error *err) {
    pdvm_error why;
    if (!r->o.session || access(r->o.session, F_OK) != 0) return PDVM_OK;
    pdvm_status status = pdvm_session_load(r->session, r->o.session, &why);
    if (status == PDVM_OK) return PDVM_OK;
    return pd_fail(err, status, "%s; to start a new session there, delete the file", why.message);
}

/* Everything that can be refused without computing. */
static pdvm_status prepare(struct run *r, pdvm_error *err) {
    PD_TRY(read_prompt(r, err));
    PD_TRY(open_model(r, err));
    PD_TRY(tokenize_prompt(r, err));
    PD_TRY(create_session(r, err));
    PD_TRY(create_sampler(r, err));
    return load_session(r, err);
}

/* ---- generating ------------------------------------------------------------------------ */

/* Writes to standard output at once; false if that fails. */
static bool write_text(struct run *r, const char *text, size_t size) {
    if (size == 0) return true;
    errno = 0;
    if (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0) {
        if (!terminal_interrupted()) r->write_error = errno ? errno : EIO;
        return false;
    }
    r->last_byte = text[size - 1];
    return true;
}

/* A pdvm_text_fn. */
static bool on_text(void *user, const char *text, size_t size) {
    struct run *r = user;
    if (terminal_interrupted()) return false;
    if (r->o.format == OUTPUT_TEXT) return write_text(r, text, size);
    if (pd_grow(&r->text, &r->text_capacity, r->text_size + size, 1, "the text", NULL) != PDVM_OK) {
        r->write_error = ENOMEM;
        return false;
    }
    memcpy(r->text + r->text_size, text, size);
    r->text_size += size;
    return true;
}

static pdvm_status compute_prompt(struct run *r, pdvm_error *err) {
    pdvm_session_stats before, after;
    pdvm_session_get_stats(r->session, &before);
    r->progress.unit = "tokens";
    r->progress.total = (double)r->tokens.n;
    double start = pd_seconds();
    pdvm_status status = pdvm_session_sync(r->session, r->tokens.ids, r->tokens.n, err);
    r->prompt_seconds = pd_seconds() - start;
    terminal_progress_end(&r->progress);
    pdvm_session_get_stats(r->session, &after);
    r->n_prompt_computed = after.n_computed - before.n_computed;
    r->n_prompt_reused = after.n_reused - before.n_reused;
    return status;
}

static pdvm_status generate(struct run *r, pdvm_error *err) {
    const struct settings *o = &r->o;
    const pdvm_generate_options options = {.n_predict = o->n_predict,
                                           .stop = o->stop.items,
                                           .n_stop = o->stop.n,
                                           .ignore_end = o->ignore_eos};
    PD_TRY(compute_prompt(r, err));
    r->finished = true;
    /* Not before: a progress bar would wipe it off the terminal. */
    if (o->format == OUTPUT_TEXT && o->display_prompt && !write_text(r, r->prompt, r->prompt_size))
        return PDVM_OK;
    double start = pd_seconds();
    pdvm_status status = pdvm_generate(r->session, r->sampler, &options, on_text, r,
                                       &r->n_generated, &r->reason, err);
    r->generate_seconds = pd_seconds() - start;
    return status;
}

/* ---- reporting ------------------------------------------------------------------------- */

/* "12.3" or "1234": a rate with as many digits as make sense. */
static const char *format_rate(char buf[32], double value) {
    snprintf(buf, 32, "%.*f", value < 999.5 ? 1 : 0, value);
    return buf;
}

static double rate(double amount, double seconds) {
    return seconds > 0 ? amount / seconds : 0;
}

static void print_timings(const struct run *r) {
    static const char *const endings[] = {"as many as asked for", "end of the text",
                                          "stop text found", "context full", "interrupted"};
    pdvm_model_info info;
    pdvm_session_stats stats;
    char a[32], b[32], c[32];
    pdvm_model_get_info(r->model, &info);
    pdvm_session_get_stats(r->session, &stats);
    double speed = rate((double)r->n_generated, r->generate_seconds);
    fprintf(stderr, "\nload      %s, %s\n", terminal_duration(a, r->load_seconds), info.backend);
    fprintf(stderr, "prompt    %zu token%s in %s, %s tokens/s", r->tokens.n,
            r->tokens.n == 1 ? "" : "s", terminal_duration(a, r->prompt_seconds),
            format_rate(b, rate((double)r->n_prompt_computed, r->prompt_seconds)));
    if (r->n_prompt_reused > 0)
        fprintf(stderr, ", %llu taken from the session", (unsigned long long)r->n_prompt_reused);
    fprintf(stderr, "\ngenerate  %zu token%s in %s, %s tokens/s, %.2f GB/s: %s\n", r->n_generated,
            r->n_generated == 1 ? "" : "s", terminal_duration(a, r->generate_seconds),
            format_rate(b, speed), speed * (double)info.token_bytes / 1e9, endings[r->reason]);
    fprintf(stderr, "memory    weights %s, KV cache %s, peak %s\n",
            terminal_size(a, info.stored_bytes), terminal_size(b, stats.kv_bytes),
            terminal_size(c, peak_memory()));
    fprintf(stderr, "seed      %llu\n", (unsigned long long)r->seed);
}

static json_t *timings_json(const struct run *r, const pdvm_model_info *info) {
    double speed = rate((double)r->n_generated, r->generate_seconds);
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "load_seconds", r->load_seconds,
                     "prompt_seconds", r->prompt_seconds, "prompt_tokens_per_second",
                     rate((double)r->n_prompt_computed, r->prompt_seconds), "generate_seconds",
                     r->generate_seconds, "generate_tokens_per_second", speed,
                     "generate_gigabytes_per_second", speed * (double)info->token_bytes / 1e9);
}

/* The tokens that the session holds after the prompt's. The last one may be missing: it was chosen
 * and nothing had to follow it. */
static json_t *tokens_json(const struct run *r) {
    size_t n;
    const int32_t *tokens = pdvm_session_tokens(r->session, &n);
    json_t *list = json_array();
    for (size_t i = r->tokens.n; i < n; i++) json_array_append_new(list, json_integer(tokens[i]));
    return list;
}

static int print_result(const struct run *r) {
    pdvm_model_info info;
    pdvm_session_stats stats;
    pdvm_model_get_info(r->model, &info);
    pdvm_session_get_stats(r->session, &stats);
    json_t *memory =
        json_pack("{s:I, s:I, s:I}", "weight_bytes", (json_int_t)info.stored_bytes, "kv_bytes",
                  (json_int_t)stats.kv_bytes, "peak_bytes", (json_int_t)peak_memory());
    return print_json(
        "run",
        json_pack("{s:o, s:o, s:o, s:I, s:I, s:I, s:s, s:I, s:s, s:o, s:o}", "prompt",
                  json_text(r->prompt, r->prompt_size), "text", json_text(r->text, r->text_size),
                  "tokens", tokens_json(r), "n_prompt", (json_int_t)r->tokens.n, "n_prompt_reused",
                  (json_int_t)r->n_prompt_reused, "n_generated", (json_int_t)r->n_generated,
                  "stop_reason", stop_names[r->reason], "seed", (json_int_t)r->seed, "backend",
                  info.backend, "timings", timings_json(r, &info), "memory", memory));
}

/* Ends the output, saves the session, reports; returns the exit status. */
static int finish(struct run *r) {
    int code = CMD_OK;
    pdvm_error err;
    if (r->write_error != 0) {
        terminal_error("run", "cannot write to standard output: %s", strerror(r->write_error));
        return CMD_FAILED;
    }
    if (r->o.format == OUTPUT_TEXT && r->last_byte != '\0' && r->last_byte != '\n')
        if (!write_text(r, "\n", 1)) code = CMD_FAILED;
    if (r->o.session && pdvm_session_save(r->session, r->o.session, &err) != PDVM_OK)
        code = terminal_fail("run", &err);
    if (r->o.format == OUTPUT_JSON) {
        int printed = print_result(r);
        if (printed != CMD_OK) code = printed;
    } else if (!r->o.quiet) {
        print_timings(r);
    }
    return terminal_interrupted() && code == CMD_OK ? terminal_interrupt_status() : code;
}

static int execute(struct run *r) {
    pdvm_error err;
    pdvm_status status = prepare(r, &err);
    if (status == PDVM_OK) status = generate(r, &err);
    terminal_progress_end(&r->progress);
    if (status == PDVM_OK) return finish(r);
    if (r->last_byte != '\0' && r->last_byte != '\n') write_text(r, "\n", 1);
    int code = terminal_fail("run", &err);
    if (r->finished && r->o.format == OUTPUT_TEXT && !r->o.quiet) print_timings(r);
    return code;
}

static void release(struct run *r) {
    pdvm_sampler_free(r->sampler);
    pdvm_session_free(r->session);
    pdvm_model_close(r->model);
    free(r->tokens.ids);
    free(r->prompt);
    free(r->text);
    free(r->bias);
    option_list_free(&r->o.logit_bias);
    option_list_free(&r->o.stop);
}

/* ---------------------------------------------------------------------------------------- */

int cmd_run(int argc, char **argv) {
    const pdvm_sampler_options sampling = pdvm_sampler_options_default();
    struct run r = {.o = {.kernels = "auto",
                          .n_predict = -1,
                          .seed = -1,
                          .keep = -1,
                          .type_k = PDVM_KV_F16,
                          .type_v = PDVM_KV_F16,
                          .temp = (double)sampling.temperature,
                          .top_k = sampling.top_k,
                          .top_p = (double)sampling.top_p,
                          .min_p = (double)sampling.min_p,
                          .typical = (double)sampling.typical_p,
                          .repeat_penalty = (double)sampling.repeat_penalty,
                          .repeat_last_n = sampling.repeat_last_n,
                          .frequency_penalty = (double)sampling.frequency_penalty,
                          .presence_penalty = (double)sampling.presence_penalty,
                          .display_prompt = true}};
    struct settings *o = &r.o;
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &o->model, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_GROUP("Prompt and length"),
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &o->model),
        OPTION_STRING("-p, --prompt", "TEXT", "The prompt.", &o->prompt),
        OPTION_STRING("-f, --file", "FILE", "Read the prompt from a file; - is standard input.",
                      &o->file),
        OPTION_FLAG("-e, --escape",
                    "Take \\n, \\t, \\\", \\\\ and \\xNN in -p for the characters they stand for.",
                    &o->escape),
        OPTION_INT(
            "-n, --predict, --n-predict", "N",
            "Tokens to generate at most; -1: until the model ends the text or the context is "
            "full. [-1]",
            &o->n_predict, -1, INT64_MAX),
        OPTION_LIST("-r, --reverse-prompt, --stop", "TEXT",
                    "Stop before this text would be written. May be repeated.", &o->stop),
        OPTION_FLAG("--ignore-eos", "Go on when the model ends the text.", &o->ignore_eos),
        OPTION_INT("-c, --ctx-size", "N",
                   "Tokens that the context holds; 0: as many as the model was trained for. [0]",
                   &o->n_ctx, 0, 1 << 24),
        OPTION_FLAG("--rolling",
                    "When the context is full, drop the oldest tokens and go on. With --ignore-eos "
                    "this never ends.",
                    &o->rolling),
        OPTION_INT("--keep", "N",
                   "With --rolling: tokens at the start that are never dropped (attention sinks). "
                   "[4]",
                   &o->keep, 0, 1 << 24),
        OPTION_STRING("--session, --prompt-cache", "FILE",
                      "Start from the session saved in this file, if it exists, and save to it at "
                      "the end: what a prompt shares with it is not computed again.",
                      &o->session),

        OPTION_GROUP("Sampling, in this order"),
        OPTION_LIST(
            "-l, --logit-bias", "ID(+|-)BIAS",
            "Add to the logit of a token, given by its number (see 'pdvm tokenize'): 42+1.5, "
            "or 42-inf to ban it. May be repeated.",
            &o->logit_bias),
        OPTION_REAL("--repeat-penalty", "X",
                    "Make tokens that have occurred less likely; 1: off. [1]", &o->repeat_penalty,
                    0.01, 100),
        OPTION_INT("--repeat-last-n", "N",
                   "How many tokens the penalties look back; -1: all, 0: off. [64]",
                   &o->repeat_last_n, -1, INT32_MAX),
        OPTION_REAL("--frequency-penalty", "X",
                    "Subtracted from a logit for each time that the token has occurred. [0]",
                    &o->frequency_penalty, -100, 100),
        OPTION_REAL("--presence-penalty", "X",
                    "Subtracted from a logit once if the token has occurred. [0]",
                    &o->presence_penalty, -100, 100),
        OPTION_INT("--top-k", "K", "Keep the K likeliest tokens; 0: all. [40]", &o->top_k, 0,
                   INT32_MAX),
        OPTION_REAL("--typical, --typical-p", "P", "Locally typical sampling; 1: off. [1]",
                    &o->typical, 0, 1),
        OPTION_REAL("--top-p", "P",
                    "Keep the likeliest tokens that together have this probability; 1: off. [0.95]",
                    &o->top_p, 0, 1),
        OPTION_REAL("--min-p", "P",
                    "Drop tokens less likely than P times the likeliest; 0: off. [0.05]", &o->min_p,
                    0, 1),
        OPTION_REAL("--temp, --temperature", "T",
                    "Temperature: higher is more surprising; 0 always takes the likeliest token. "
                    "[0.8]",
                    &o->temp, 0, 100),
        OPTION_INT("-s, --seed", "N", "Seed of the random numbers; -1: a new one each time. [-1]",
                   &o->seed, -1, INT64_MAX),

        OPTION_GROUP("Output"),
        OPTION_CLEAR("--no-display-prompt", "Don't write the prompt before the text.",
                     &o->display_prompt),
        OPTION_CHOICE("-o, --output", "text|json",
                      "json: one object at the end with text, tokens, stop reason, timings and "
                      "memory. [text]",
                      &o->format, output_formats),
        OPTION_FLAG("--json", "The same as -o json.", &o->json),
        OPTION_FLAG("-q, --quiet, --no-perf", "No progress and no timings.", &o->quiet),
        OPTION_FLAG("-v, --verbose", "Print what the engine has to say.", &o->verbose),

        OPTION_GROUP("Engine"),
        OPTION_INT("-t, --threads", "N", "Threads; 0 is one per processor. [0]", &o->n_threads, 0,
                   1024),
        OPTION_INT("-b, --batch-size", "N", "Most prompt tokens computed together. [64]",
                   &o->n_batch, 1, 1 << 24),
        OPTION_CHOICE("-ctk, --cache-type-k", "TYPE",
                      "How the keys in the KV cache are stored: f32, f16, int8 (also called q8_0). "
                      "[f16]",
                      &o->type_k, kv_type_names),
        OPTION_CHOICE("-ctv, --cache-type-v", "TYPE",
                      "How the values in the KV cache are stored. [f16]", &o->type_v,
                      kv_type_names),
        OPTION_CHOICE("--mode", "MODE",
                      "How often the threads are dispatched: once a token, layer or phase, or six "
                      "times a layer (unfused). The results are the same. [token]",
                      &o->mode, mode_names),
        OPTION_STRING("--kernels", "SET",
                      "Instruction set of the kernels: auto, scalar, avx512. [auto]", &o->kernels),

        OPTION_UNSUPPORTED("-ngl, --gpu-layers, --n-gpu-layers",
                           "this version computes on the CPU; leave the option out"),
        OPTION_UNSUPPORTED("-i, --interactive, -cnv, --conversation",
                           "there is no chat mode; 'pdvm run' continues a text"),
        OPTION_UNSUPPORTED("-fa, --flash-attn",
                           "attention never holds a full row of scores anyway; leave it out"),
        OPTION_UNSUPPORTED("-ub, --ubatch-size", "use -b, --batch-size"),
        OPTION_END,
    };
    const struct options_page page = {.command = "run",
                                      .usage = "MODEL -p PROMPT [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples,
                                      .operand_hint = "a prompt is given with -p, in quotes"};
    int code = options_parse(&page, argc, argv);
    if (code == OPTIONS_GO_ON) code = check_settings(&r, &page);
    if (code == OPTIONS_GO_ON) {
        r.progress.quiet = o->quiet;
        code = execute(&r);
    }
    release(&r);
    return code;
}
