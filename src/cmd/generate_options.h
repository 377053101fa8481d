/**
 * The options that 'pdvm run' and 'pdvm chat' have in common: length, sampling, engine; and what is
 * made by them. The names and meanings are llama.cpp's.
 */
#ifndef PDVM_CMD_GENERATE_OPTIONS_H
#define PDVM_CMD_GENERATE_OPTIONS_H

#include "cmd/options.h"
#include "cmd/terminal.h"

/** Values of the shared options. */
struct generate_settings {
    const char *model, *kernels, *backend;
    int64_t n_predict, n_ctx, n_batch, n_threads, seed, keep;
    int64_t top_k, repeat_last_n;
    double temp, top_p, min_p, typical, repeat_penalty, frequency_penalty, presence_penalty;
    struct option_list logit_bias, stop;
    pdvm_logit_bias *bias; /**< [logit_bias.n], by generate_settings_check */
    int type_k, type_v, mode, activations;
    bool ignore_eos, rolling, quiet, verbose, cache_packed;
};

/** A command's options, put together from parts; always ended by OPTION_END. Starts zeroed. */
struct option_table {
    struct option_spec items[64];
    size_t n;
};

/** Appends a part, up to its OPTION_END. */
void option_table_add(struct option_table *table, const struct option_spec *options);

/** Sets the defaults. */
void generate_settings_init(struct generate_settings *o);

/** Frees the lists. */
void generate_settings_free(struct generate_settings *o);

/** Append -n, -r, -c and the like; the group of sampling options; -q, -v and the engine's group. */
void generate_add_length(struct option_table *table, struct generate_settings *o);
void generate_add_sampling(struct option_table *table, struct generate_settings *o);
void generate_add_engine(struct option_table *table, struct generate_settings *o);

/** Checks what the parser cannot; OPTIONS_GO_ON, or an exit status after a message. */
int generate_settings_check(struct generate_settings *o, const struct options_page *page);

/** Opens the model, with progress and warnings for people. `command`, its name in
 * messages, must live as long as the model. */
pdvm_status generate_open_model(const struct generate_settings *o, const char *command,
                                struct terminal_progress *progress, pdvm_model **out,
                                pdvm_error *err);

/** Makes a session; `progress` must live as long as it. */
pdvm_status generate_create_session(const struct generate_settings *o, pdvm_model *model,
                                    struct terminal_progress *progress, pdvm_session **out,
                                    pdvm_error *err);

/** Makes a sampler; *seed is the seed in use, a new one where none was given. */
pdvm_status generate_create_sampler(const struct generate_settings *o, const pdvm_model *model,
                                    uint64_t *seed, pdvm_sampler **out, pdvm_error *err);

#endif
