/* pdvm run: generates text from a prompt. */
#include "base/alloc.h"
#include "base/file.h"
#include "base/time.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/generate_options.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static const char *const stop_names[] = {"length", "end", "string", "context", "interrupt"};

struct settings {
    struct generate_settings g; /* what other commands have too */
    const char *prompt, *file, *session;
    int format;
    bool json, display_prompt, escape;
};

/* A run from start to end, and everything that has to be released. */
struct run {
    struct settings o;
    struct terminal_progress progress;
    pdvm_model *model;
    pdvm_session *session;
    pdvm_sampler *sampler;
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

static int check_settings(struct run *r, const struct options_page *page) {
    struct settings *o = &r->o;
    if (!o->g.model) return options_error(page, "no model: pdvm run MODEL -p PROMPT");
    if (o->prompt && o->file)
        return options_error(page, "-p and -f both give a prompt: leave one out");
    if (o->json) o->format = OUTPUT_JSON;
    return generate_settings_check(&o->g, page);
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
    double start = pd_seconds();
    PD_TRY(generate_open_model(&r->o.g, "run", &r->progress, &r->model, err));
    r->load_seconds = pd_seconds() - start;
    return PDVM_OK;
}

/* The prompt's tokens; those of an empty prompt are the one that begins a text. */
static pdvm_status tokenize_prompt(struct run *r, pdvm_error *err) {
    const pdvm_model *m = r->model;
    PD_TRY(model_need_tokenizer(m, err));
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
    PD_TRY(generate_create_session(&r->o.g, r->model, &r->progress, &r->session, err));
    uint32_t n_ctx = r->session->options.n_ctx;
    if (r->tokens.n > n_ctx && !r->o.g.rolling)
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the prompt has %zu tokens and the context holds %u: shorten it, raise -c, "
                       "or let old tokens go with --rolling",
                       r->tokens.n, n_ctx);
    return PDVM_OK;
}

static pdvm_status create_sampler(struct run *r, pdvm_error *err) {
    PD_TRY(generate_create_sampler(&r->o.g, r->model, &r->seed, &r->sampler, err));
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
    if (r->o.session) PD_TRY(pd_writer_try(r->o.session, err));
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
    const pdvm_generate_options options = {.n_predict = o->g.n_predict,
                                           .stop = o->g.stop.items,
                                           .n_stop = o->g.stop.n,
                                           .ignore_end = o->g.ignore_eos};
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
    } else if (!r->o.g.quiet) {
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
    if (r->finished && r->o.format == OUTPUT_TEXT && !r->o.g.quiet) print_timings(r);
    return code;
}

static void release(struct run *r) {
    pdvm_sampler_free(r->sampler);
    pdvm_session_free(r->session);
    pdvm_model_close(r->model);
    free(r->tokens.ids);
    free(r->prompt);
    free(r->text);
    generate_settings_free(&r->o.g);
}

/* ---------------------------------------------------------------------------------------- */

int cmd_run(int argc, char **argv) {
    struct run r = {.o = {.display_prompt = true}};
    struct settings *o = &r.o;
    generate_settings_init(&o->g);
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file, a GGUF file or a Hugging Face directory.", &o->g.model, false},
        OPERAND_END};
    const struct option_spec prompt[] = {
        OPTION_GROUP("Prompt and length"),
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &o->g.model),
        OPTION_STRING("-p, --prompt", "TEXT", "The prompt.", &o->prompt),
        OPTION_STRING("-f, --file", "FILE", "Read the prompt from a file; - is standard input.",
                      &o->file),
        OPTION_FLAG("-e, --escape",
                    "Take \\n, \\t, \\\", \\\\ and \\xNN in -p for the characters they stand for.",
                    &o->escape),
        OPTION_END,
    };
    const struct option_spec session[] = {
        OPTION_STRING("--session, --prompt-cache", "FILE",
                      "Start from the session saved in this file, if it exists, and save to it at "
                      "the end: what a prompt shares with it is not computed again.",
                      &o->session),
        OPTION_END,
    };
    const struct option_spec output[] = {
        OPTION_GROUP("Output"),
        OPTION_CLEAR("--no-display-prompt", "Don't write the prompt before the text.",
                     &o->display_prompt),
        OPTION_CHOICE("-o, --output", "text|json",
                      "json: one object at the end with text, tokens, stop reason, timings and "
                      "memory. [text]",
                      &o->format, output_formats),
        SHARED_OPTION_JSON(&o->json),
        OPTION_END,
    };
    const struct option_spec unsupported[] = {
        OPTION_UNSUPPORTED("-i, --interactive, -cnv, --conversation",
                           "'pdvm run' continues a text; for a conversation there is 'pdvm chat'"),
        OPTION_END,
    };
    struct option_table table = {0};
    option_table_add(&table, prompt);
    generate_add_length(&table, &o->g);
    option_table_add(&table, session);
    generate_add_sampling(&table, &o->g);
    option_table_add(&table, output);
    generate_add_engine(&table, &o->g);
    option_table_add(&table, unsupported);
    const struct options_page page = {.command = "run",
                                      .usage = "MODEL -p PROMPT [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = table.items,
                                      .examples = examples,
                                      .operand_hint = "a prompt is given with -p, in quotes"};
    int code = options_parse(&page, argc, argv);
    if (code == OPTIONS_GO_ON) code = check_settings(&r, &page);
    if (code == OPTIONS_GO_ON) {
        r.progress.quiet = o->g.quiet;
        code = execute(&r);
    }
    release(&r);
    return code;
}
