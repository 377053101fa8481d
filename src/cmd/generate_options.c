/* What generating commands have in common. */
#include "cmd/generate_options.h"
#include "base/alloc.h"
#include "base/time.h"
#include "cmd/common.h"
#include "cmd/shared_options.h"
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* ---- the tables ------------------------------------------------------------------------ */

void generate_settings_init(struct generate_settings *o) {
    const pdvm_sampler_options sampling = pdvm_sampler_options_default();
    *o = (struct generate_settings){.kernels = "auto",
                                    .backend = "auto",
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
                                    .presence_penalty = (double)sampling.presence_penalty};
}

void generate_settings_free(struct generate_settings *o) {
    free(o->bias);
    option_list_free(&o->logit_bias);
    option_list_free(&o->stop);
}

void option_table_add(struct option_table *table, const struct option_spec *options) {
    const size_t room = sizeof table->items / sizeof *table->items - 1;
    while (options->kind != OPTION_KIND_END && table->n < room)
        table->items[table->n++] = *options++;
    table->items[table->n].kind = OPTION_KIND_END;
}

void generate_add_length(struct option_table *table, struct generate_settings *o) {
    const struct option_spec options[] = {
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
        OPTION_END,
    };
    option_table_add(table, options);
}

void generate_add_sampling(struct option_table *table, struct generate_settings *o) {
    const struct option_spec options[] = {
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
        OPTION_END,
    };
    option_table_add(table, options);
}

void generate_add_engine(struct option_table *table, struct generate_settings *o) {
    const struct option_spec options[] = {
        OPTION_FLAG("-q, --quiet, --no-perf", "No progress and no timings.", &o->quiet),
        SHARED_OPTION_VERBOSE(&o->verbose),
        OPTION_GROUP("Engine"),
        SHARED_OPTION_THREADS(&o->n_threads),
        OPTION_INT("-b, --batch-size", "N", "Most prompt tokens computed together. [256]",
                   &o->n_batch, 1, 1 << 24),
        SHARED_OPTION_ACTIVATIONS(&o->activations),
        SHARED_OPTION_TYPE_K(&o->type_k),
        SHARED_OPTION_TYPE_V(&o->type_v),
        OPTION_CHOICE("--mode", "MODE",
                      "How often the threads are dispatched: once a token, layer or phase, or six "
                      "times a layer (unfused). The results are the same. [token]",
                      &o->mode, engine_mode_names),
        SHARED_OPTION_BACKEND(&o->backend),
        SHARED_OPTION_KERNELS(&o->kernels),
        SHARED_OPTION_CACHE_PACKED(&o->cache_packed),
        OPTION_UNSUPPORTED("-ngl, --gpu-layers, --n-gpu-layers",
                           "this version computes on the CPU; leave the option out"),
        OPTION_UNSUPPORTED("-fa, --flash-attn",
                           "attention never holds a full row of scores anyway; leave it out"),
        OPTION_UNSUPPORTED("-ub, --ubatch-size", "use -b, --batch-size"),
        OPTION_END,
    };
    option_table_add(table, options);
}

/* ---- checking -------------------------------------------------------------------------- */

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

static int parse_biases(struct generate_settings *o, const struct options_page *page) {
    pdvm_error err;
    const struct option_list *list = &o->logit_bias;
    if (pd_calloc(&o->bias, list->n, sizeof *o->bias, "logit biases", &err) != PDVM_OK)
        return terminal_fail(page->command, &err);
    for (size_t i = 0; i < list->n; i++)
        if (!parse_bias(list->items[i], &o->bias[i]))
            return options_error(page,
                                 "--logit-bias '%s': must be a token's number, a sign and a bias, "
                                 "as in 42+1.5 or 42-inf",
                                 list->items[i]);
    return OPTIONS_GO_ON;
}

int generate_settings_check(struct generate_settings *o, const struct options_page *page) {
    for (size_t i = 0; i < o->stop.n; i++)
        if (o->stop.items[i][0] == '\0')
            return options_error(page,
                                 "--reverse-prompt: the text is empty and would stop at once");
    return parse_biases(o, page);
}

/* ---- making what they describe --------------------------------------------------------- */

pdvm_status generate_open_model(const struct generate_settings *o, const char *command,
                                struct terminal_progress *progress, pdvm_model **out,
                                pdvm_error *err) {
    struct pd_notify notify = terminal_notify(command, progress, o->verbose);
    pdvm_model_options options = model_options_with(&notify);
    options.n_threads = (int)o->n_threads;
    options.kernels = o->kernels;
    options.cache_packed = o->cache_packed;
    options.backend = o->backend;
    PD_TRY(pdvm_model_open(o->model, &options, out, err));
    terminal_progress_end(progress);
    return PDVM_OK;
}

pdvm_status generate_create_session(const struct generate_settings *o, pdvm_model *model,
                                    struct terminal_progress *progress, pdvm_session **out,
                                    pdvm_error *err) {
    pdvm_session_options options = pdvm_session_options_default();
    options.n_ctx = (uint32_t)o->n_ctx;
    options.n_batch = (uint32_t)o->n_batch;
    options.type_k = kv_type_of(o->type_k);
    options.type_v = kv_type_of(o->type_v);
    options.mode = (pdvm_mode)o->mode;
    options.prompt_activations = activations_of(o->activations);
    options.rolling = o->rolling;
    if (o->keep >= 0) options.n_sink = (uint32_t)o->keep;
    options.progress = terminal_progress;
    options.progress_user = progress;
    return pdvm_session_create(model, &options, out, err);
}

static uint64_t random_seed(void) {
    uint32_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        seed = (uint32_t)(pd_seconds() * 1e6) ^ (uint32_t)getpid();
    return seed;
}

pdvm_status generate_create_sampler(const struct generate_settings *o, const pdvm_model *model,
                                    uint64_t *seed, pdvm_sampler **out, pdvm_error *err) {
    uint32_t n_vocab = model->config.n_vocab;
    for (size_t i = 0; i < o->logit_bias.n; i++)
        if ((uint32_t)o->bias[i].token >= n_vocab)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "--logit-bias %s: token %d is outside the vocabulary of %u",
                           o->logit_bias.items[i], (int)o->bias[i].token, n_vocab);
    *seed = o->seed < 0 ? random_seed() : (uint64_t)o->seed;
    pdvm_sampler_options options = {.temperature = (float)o->temp,
                                    .top_k = (int32_t)o->top_k,
                                    .top_p = (float)o->top_p,
                                    .min_p = (float)o->min_p,
                                    .typical_p = (float)o->typical,
                                    .repeat_penalty = (float)o->repeat_penalty,
                                    .repeat_last_n = (int32_t)o->repeat_last_n,
                                    .frequency_penalty = (float)o->frequency_penalty,
                                    .presence_penalty = (float)o->presence_penalty,
                                    .seed = *seed,
                                    .logit_bias = o->bias,
                                    .n_logit_bias = o->logit_bias.n};
    return pdvm_sampler_create(&options, out, err);
}
