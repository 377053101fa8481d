/*
 * Tells the beginning of a story with the public interface alone.
 *
 *     generate MODEL [PROMPT [N_TOKENS]]
 *
 * Build: cc -std=c11 generate.c $(pkg-config --cflags --libs pdvm)
 */
#include <pdvm.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A pdvm_text_fn: text comes in whole UTF-8 characters. Returning false stops the generation. */
static bool print_text(void *user, const char *text, size_t len) {
    FILE *f = user;
    return fwrite(text, 1, len, f) == len && fflush(f) == 0;
}

/* The tokens of a text in a new array. The first call only counts. */
static int32_t *tokenize(const pdvm_model *model, const char *text, size_t *n, pdvm_error *err) {
    const unsigned flags = PDVM_TOKENIZE_ADD_SPECIAL;
    pdvm_status status = pdvm_tokenize(model, text, strlen(text), flags, NULL, 0, n, err);
    if (status != PDVM_OK && status != PDVM_ERR_RANGE) return NULL;
    int32_t *tokens = malloc((*n > 0 ? *n : 1) * sizeof *tokens);
    if (!tokens) {
        snprintf(err->message, sizeof err->message, "out of memory");
        return NULL;
    }
    if (pdvm_tokenize(model, text, strlen(text), flags, tokens, *n, n, err) != PDVM_OK) {
        free(tokens);
        return NULL;
    }
    return tokens;
}

/* Continues the prompt by n_predict tokens at most; false with a message in `err`. */
static bool tell(pdvm_model *model, const char *prompt, int64_t n_predict, pdvm_error *err) {
    pdvm_session *session = NULL;
    pdvm_sampler *sampler = NULL;
    size_t n_prompt = 0, n_generated = 0;
    int32_t *tokens = tokenize(model, prompt, &n_prompt, err);
    bool done = false;

    pdvm_sampler_options sampling = pdvm_sampler_options_default();
    sampling.seed = 42;
    sampling.repeat_penalty = 1.1f;
    const char *const stop[] = {"\n\n\n"};
    const pdvm_generate_options options = {.n_predict = n_predict, .stop = stop, .n_stop = 1};

    if (!tokens) goto out;
    if (pdvm_session_create(model, NULL, &session, err) != PDVM_OK) goto out;
    if (pdvm_sampler_create(&sampling, &sampler, err) != PDVM_OK) goto out;
    /* The penalties count the prompt's words, too. */
    for (size_t i = 0; i < n_prompt; i++)
        if (pdvm_sampler_accept(sampler, tokens[i], err) != PDVM_OK) goto out;

    if (pdvm_session_sync(session, tokens, n_prompt, err) != PDVM_OK) goto out;
    printf("%s", prompt);
    pdvm_stop_reason reason;
    if (pdvm_generate(session, sampler, &options, print_text, stdout, &n_generated, &reason, err) !=
        PDVM_OK)
        goto out;
    printf("\n");
    fprintf(stderr, "%zu tokens after %zu, %s\n", n_generated, n_prompt,
            reason == PDVM_STOP_END ? "the story ended" : "cut off");
    done = true;
out:
    pdvm_sampler_free(sampler);
    pdvm_session_free(session);
    free(tokens);
    return done;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [PROMPT [N_TOKENS]]\n", argv[0]);
        return 2;
    }
    const char *prompt = argc > 2 ? argv[2] : "Once upon a time";
    int64_t n_predict = argc > 3 ? strtoll(argv[3], NULL, 10) : 64;

    pdvm_error err;
    pdvm_model *model;
    if (pdvm_model_open(argv[1], NULL, &model, &err) != PDVM_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    pdvm_model_info info;
    pdvm_model_get_info(model, &info);
    fprintf(stderr, "%u layers of width %u on %s\n", info.n_layers, info.hidden_size, info.backend);

    bool done = tell(model, prompt, n_predict, &err);
    if (!done) fprintf(stderr, "%s\n", err.message);
    pdvm_model_close(model);
    return done && fflush(stdout) == 0 ? 0 : 1;
}
