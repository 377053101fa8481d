/* pdvm chat: a conversation with a model. */
#include "base/alloc.h"
#include "base/file.h"
#include "cmd/chat_input.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/conversation.h"
#include "cmd/generate_options.h"
#include "engine/engine.h"
#include "io/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char description[] =
    "Talks with a model that was trained for conversations. A line is a message, the answer comes "
    "as it is made. Lines are edited as in a shell, and the arrow keys bring earlier ones back. "
    "Without a terminal the lines of standard input are the messages and nothing but the answers "
    "is written to standard output.\n"
    "The chat template says how a conversation becomes a text for the model. It is recognised in "
    "the model's files; --chat-template gives another.\n"
    "Ctrl-C stops an answer, clears a line, and at an empty line ends the program the second time; "
    "so does Ctrl-D. Lines that begin with / are commands:\n"
    "/reset forgets the conversation; /system TEXT sets the system text, or removes it if there is "
    "no TEXT; /regen makes another answer; /save FILE and /load FILE write and read the "
    "conversation as JSON; /help; /quit. A message that begins with / is written with //.";

static const char examples[] =
    "pdvm chat SmolLM2-135M-Instruct\n"
    "pdvm chat model.pdvm --system \"Answer in one sentence.\" --temp 0.3\n"
    "echo \"What is a lighthouse?\" | pdvm chat model.pdvm -q\n"
    "pdvm chat models/tales --chat-template chatml   # a model that knows no conversations\n";

static const char commands_help[] =
    "/reset        forget the conversation; the system text stays\n"
    "/system TEXT  set the system text; without TEXT: remove it\n"
    "/regen        make another answer to the last message\n"
    "/save FILE    write the conversation\n"
    "/load FILE    go on with a conversation that was saved\n"
    "/quit         leave; so does Ctrl-D\n"
    "Ctrl-C stops an answer. //... is a message that begins with /.\n";

struct chat {
    struct generate_settings g;
    const char *prompt, *system, *template_name;
    struct terminal_progress progress;
    pdvm_model *model;
    pdvm_session *session;
    pdvm_sampler *sampler;
    uint64_t seed;
    struct chat_input *input;

    struct chat_template template;
    char *bos, *eos; /* names of tokens; NULL: not known */
    int32_t end;     /* token that ends a turn; -1: none */
    const char **stop;
    size_t n_stop;

    struct conversation conversation;
    struct chat_text text;
    struct token_list tokens;
    char *answer;
    size_t answer_size, answer_capacity;
    char last_byte;
    int write_error;
    bool failed; /* something was refused: the exit status of a piped conversation */
};

/* ---- before the conversation ----------------------------------------------------------- */

static pdvm_status template_from_file(struct chat *c, pdvm_error *err) {
    char *text;
    size_t size;
    PD_TRY(pd_read_file(c->template_name, (size_t)16 << 20, &text, &size, err));
    pdvm_status status = chat_template_recognise(c->template_name, text, size, &c->template, err);
    free(text);
    return status;
}

static pdvm_status choose_template(struct chat *c, pdvm_error *err) {
    const char *jinja, *config;
    size_t jinja_size, config_size;
    if (c->template_name) {
        if (chat_template_find(c->template_name, &c->template)) return PDVM_OK;
        if (access(c->template_name, F_OK) == 0) return template_from_file(c, err);
        return chat_template_refuse(c->template_name,
                                    "neither the name of a chat template nor a file", err);
    }
    source_file(c->model->source, SOURCE_CHAT_TEMPLATE, &jinja, &jinja_size);
    source_file(c->model->source, SOURCE_TOKENIZER_CONFIG, &config, &config_size);
    return chat_template_of_model(c->g.model, jinja, jinja_size, config, config_size, &c->template,
                                  err);
}

/* The name of a token by the configuration's field (a string or an added token), or by its id. */
static pdvm_status token_name(const struct chat *c, const json_t *config, const char *field,
                              int32_t id, char **out, pdvm_error *err) {
    const json_t *value = json_object_get(config, field);
    if (json_is_object(value)) value = json_object_get(value, "content");
    const char *name = json_string_value(value);
    size_t length = name ? strlen(name) : 0;
    if (!name && id >= 0) name = tokenizer_bytes(c->model->tokenizer, id, true, &length);
    if (!name) return PDVM_OK;
    PD_TRY(pd_calloc(out, length + 1, 1, "a token's name", err));
    memcpy(*out, name, length);
    return PDVM_OK;
}

static pdvm_status name_tokens(struct chat *c, pdvm_error *err) {
    const struct model_config *m = &c->model->config;
    const char *text;
    size_t size;
    json_t *config = NULL;
    source_file(c->model->source, SOURCE_TOKENIZER_CONFIG, &text, &size);
    if (text) PD_TRY(pd_json_parse_object(SOURCE_TOKENIZER_CONFIG, text, size, &config, err));
    pdvm_status status = token_name(c, config, "bos_token", m->bos_token_id, &c->bos, err);
    if (status == PDVM_OK)
        status = token_name(c, config, "eos_token", m->n_eos > 0 ? m->eos_token_ids[0] : -1,
                            &c->eos, err);
    json_decref(config);
    return status;
}

/* A vocabulary without the token that ends turns gets it as a stop text. */
static pdvm_status find_ends(struct chat *c, pdvm_error *err) {
    const struct option_list *given = &c->g.stop;
    const char *end = chat_template_end(&c->template);
    if (!end) end = c->eos ? c->eos : "</s>";
    c->end = tokenizer_find(c->model->tokenizer, end, strlen(end));
    PD_TRY(pd_calloc(&c->stop, given->n + 1, sizeof *c->stop, "stop texts", err));
    for (size_t i = 0; i < given->n; i++) c->stop[c->n_stop++] = given->items[i];
    if (c->end >= 0) return PDVM_OK;
    c->stop[c->n_stop++] = end;
    if (!c->g.quiet)
        terminal_error("chat",
                       "warning: the vocabulary has no %s, which ends a turn in the template %s: "
                       "the model was not trained for it",
                       end, chat_template_name(&c->template));
    return PDVM_OK;
}

static pdvm_status prepare(struct chat *c, pdvm_error *err) {
    if (c->prompt) PD_TRY(check_utf8("the message of -p", c->prompt, strlen(c->prompt), err));
    if (c->system) {
        PD_TRY(check_utf8("the system text", c->system, strlen(c->system), err));
        PD_TRY(conversation_set_system(&c->conversation, c->system, err));
    }
    PD_TRY(generate_open_model(&c->g, "chat", &c->progress, &c->model, err));
    PD_TRY(model_need_tokenizer(c->model, err));
    PD_TRY(choose_template(c, err));
    PD_TRY(name_tokens(c, err));
    PD_TRY(generate_create_session(&c->g, c->model, &c->progress, &c->session, err));
    PD_TRY(generate_create_sampler(&c->g, c->model, &c->seed, &c->sampler, err));
    PD_TRY(find_ends(c, err));
    return chat_input_open(&c->input, err);
}

/* ---- answering ------------------------------------------------------------------------- */

static bool write_text(struct chat *c, const char *text, size_t size) {
    if (size == 0) return true;
    errno = 0;
    if (fwrite(text, 1, size, stdout) != size || fflush(stdout) != 0) {
        if (!terminal_interrupted()) c->write_error = errno ? errno : EIO;
        return false;
    }
    c->last_byte = text[size - 1];
    return true;
}

/* A pdvm_text_fn. */
static bool on_text(void *user, const char *text, size_t size) {
    struct chat *c = user;
    if (terminal_interrupted()) return false;
    if (pd_grow(&c->answer, &c->answer_capacity, c->answer_size + size + 1, 1, "the answer",
                NULL) != PDVM_OK) {
        c->write_error = ENOMEM;
        return false;
    }
    /* Zero bytes would end the text in the conversation. */
    for (size_t i = 0; i < size; i++)
        if (text[i] != '\0') c->answer[c->answer_size++] = text[i];
    return write_text(c, text, size);
}

static pdvm_status compute_conversation(struct chat *c, pdvm_error *err) {
    const struct chat_tokens names = {c->bos, c->eos};
    const struct conversation *v = &c->conversation;
    PD_TRY(chat_template_render_segments(&c->template, &names, v->messages, v->n, &c->text, err));
    c->tokens.n = 0;
    PD_TRY(chat_text_encode(&c->text, c->model->tokenizer, &c->tokens, err));
    uint32_t n_ctx = c->session->options.n_ctx;
    if (c->tokens.n >= n_ctx && !c->g.rolling)
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the context is full: the conversation has %zu tokens and the context holds "
                       "%u; /reset begins a new one, --rolling lets old tokens go",
                       c->tokens.n, n_ctx);
    size_t n_old, common = 0;
    const int32_t *old = pdvm_session_tokens(c->session, &n_old);
    while (common < n_old && common < c->tokens.n && old[common] == c->tokens.ids[common]) common++;
    pdvm_session_stats before, after;
    pdvm_session_get_stats(c->session, &before);
    c->progress.unit = "tokens";
    c->progress.total = (double)(c->tokens.n - common);
    pdvm_status status = pdvm_session_sync(c->session, c->tokens.ids, c->tokens.n, err);
    terminal_progress_end(&c->progress);
    PD_TRY(status);
    pdvm_session_get_stats(c->session, &after);
    if (c->g.verbose)
        fprintf(stderr, "pdvm chat: %zu tokens, %llu computed\n", c->tokens.n,
                (unsigned long long)(after.n_computed - before.n_computed));
    for (size_t i = common; i < c->tokens.n; i++)
        PD_TRY(pdvm_sampler_accept(c->sampler, c->tokens.ids[i], err));
    return PDVM_OK;
}

static pdvm_status generate_answer(struct chat *c, pdvm_error *err) {
    const pdvm_generate_options options = {.n_predict = c->g.n_predict,
                                           .stop = c->stop,
                                           .n_stop = c->n_stop,
                                           .ignore_end = c->g.ignore_eos,
                                           .end = &c->end,
                                           .n_end = c->end >= 0 ? 1 : 0};
    pdvm_stop_reason reason = PDVM_STOP_LENGTH;
    c->answer_size = 0;
    c->last_byte = '\n';
    pdvm_status status =
        pdvm_generate(c->session, c->sampler, &options, on_text, c, NULL, &reason, err);
    write_text(c, "\n", 1);
    PD_TRY(status);
    if (reason == PDVM_STOP_CONTEXT) {
        terminal_error("chat", "the context is full: /reset begins a new conversation, --rolling "
                               "lets old tokens go");
        c->failed = true;
    }
    PD_TRY(pd_grow(&c->answer, &c->answer_capacity, c->answer_size + 1, 1, "the answer", err));
    c->answer[c->answer_size] = '\0';
    return conversation_add(&c->conversation, CHAT_ASSISTANT, c->answer, err);
}

/* Answers the last message, which is the user's; without an answer it is taken back. */
static void answer(struct chat *c) {
    pdvm_error err;
    pdvm_status status = compute_conversation(c, &err);
    if (status == PDVM_OK) status = generate_answer(c, &err);
    if (status != PDVM_OK) {
        conversation_drop(&c->conversation);
        if (status != PDVM_ERR_CANCELLED || !terminal_interrupted())
            terminal_error("chat", "%s", err.message);
        c->failed = true;
    }
    terminal_interrupt_clear();
}

static void say(struct chat *c, const char *text) {
    pdvm_error err;
    pdvm_status status = check_utf8("the message", text, strlen(text), &err);
    if (status == PDVM_OK) status = conversation_add(&c->conversation, CHAT_USER, text, &err);
    if (status == PDVM_OK) {
        answer(c);
        return;
    }
    terminal_error("chat", "%s", err.message);
    c->failed = true;
}

/* ---- commands -------------------------------------------------------------------------- */

static pdvm_status need_file(const char *command, const char *argument, pdvm_error *err) {
    if (argument[0] != '\0') return PDVM_OK;
    return pd_fail(err, PDVM_ERR_ARGUMENT, "%s needs the name of a file", command);
}

static pdvm_status regenerate(struct chat *c, pdvm_error *err) {
    const struct conversation *v = &c->conversation;
    if (v->n == 0 || v->messages[v->n - 1].role != CHAT_ASSISTANT)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "/regen: there is no answer yet");
    conversation_drop(&c->conversation);
    answer(c);
    return PDVM_OK;
}

static void note(const struct chat *c, const char *text) {
    if (chat_input_is_terminal(c->input) && !c->g.quiet) fprintf(stderr, "%s\n", text);
}

static pdvm_status run_command(struct chat *c, const char *command, const char *argument,
                               pdvm_error *err) {
    if (strcmp(command, "/reset") == 0) {
        conversation_reset(&c->conversation);
        pdvm_sampler_reset(c->sampler);
        note(c, "a new conversation");
        return PDVM_OK;
    }
    if (strcmp(command, "/system") == 0) {
        PD_TRY(check_utf8("the system text", argument, strlen(argument), err));
        return conversation_set_system(&c->conversation, argument, err);
    }
    if (strcmp(command, "/regen") == 0) return regenerate(c, err);
    if (strcmp(command, "/save") == 0) {
        PD_TRY(need_file(command, argument, err));
        PD_TRY(conversation_save(&c->conversation, argument, err));
        note(c, "saved");
        return PDVM_OK;
    }
    if (strcmp(command, "/load") == 0) {
        PD_TRY(need_file(command, argument, err));
        PD_TRY(conversation_load(&c->conversation, argument, err));
        note(c, "loaded");
        return PDVM_OK;
    }
    if (strcmp(command, "/help") == 0) {
        fputs(commands_help, stderr);
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown command '%.60s': /help lists them", command);
}

/* A line that begins with a slash; false: the conversation is over. */
static bool on_command(struct chat *c, const char *line) {
    char command[64];
    pdvm_error err;
    size_t length = strcspn(line, " \t");
    if (length >= sizeof command) length = sizeof command - 1;
    memcpy(command, line, length);
    command[length] = '\0';
    const char *argument = line + length;
    argument += strspn(argument, " \t");
    if (strcmp(command, "/quit") == 0 || strcmp(command, "/exit") == 0) return false;
    if (run_command(c, command, argument, &err) != PDVM_OK) {
        terminal_error("chat", "%s", err.message);
        c->failed = true;
    }
    return true;
}

/* ---- the loop -------------------------------------------------------------------------- */

static bool on_line(struct chat *c, const char *line) {
    if (line[0] == '\0') return true;
    if (line[0] == '/' && line[1] != '/') return on_command(c, line);
    say(c, line[0] == '/' ? line + 1 : line);
    return true;
}

static int end_status(const struct chat *c) {
    if (c->write_error != 0) {
        terminal_error("chat", "cannot write to standard output: %s", strerror(c->write_error));
        return CMD_FAILED;
    }
    if (terminal_interrupted()) return terminal_interrupt_status();
    return c->failed && !chat_input_is_terminal(c->input) ? CMD_FAILED : CMD_OK;
}

/* Whether to go on after a signal that came while waiting for a line. */
static bool on_interrupt(const struct chat *c, bool had_text, bool *asked) {
    if (!chat_input_is_terminal(c->input)) return false;
    bool leave = *asked && !had_text;
    *asked = !had_text;
    fputs("\n", stderr);
    if (leave) return false;
    if (!had_text) fputs("Ctrl-C once more leaves, as do Ctrl-D and /quit.\n", stderr);
    terminal_interrupt_clear();
    return !terminal_interrupted(); /* SIGTERM stays */
}

static int converse(struct chat *c) {
    if (chat_input_is_terminal(c->input) && !c->g.quiet)
        fprintf(stderr, "Template %s, a context of %u tokens. /help lists the commands.\n",
                chat_template_name(&c->template), c->session->options.n_ctx);
    if (c->prompt) say(c, c->prompt);
    bool asked = false;
    while (c->write_error == 0 && !terminal_interrupted()) {
        const char *line = NULL;
        bool had_text;
        enum chat_line got = chat_input_line(c->input, &line, &had_text);
        if (got == CHAT_LINE_END) {
            if (chat_input_is_terminal(c->input)) fputs("\n", stderr);
            break;
        }
        if (got == CHAT_LINE_INTERRUPTED) {
            if (!on_interrupt(c, had_text, &asked)) break;
            continue;
        }
        asked = false;
        if (!on_line(c, line)) break;
    }
    return end_status(c);
}

static int execute(struct chat *c) {
    pdvm_error err;
    pdvm_status status = prepare(c, &err);
    terminal_progress_end(&c->progress);
    return status == PDVM_OK ? converse(c) : terminal_fail("chat", &err);
}

static void release(struct chat *c) {
    chat_input_close(c->input);
    pdvm_sampler_free(c->sampler);
    pdvm_session_free(c->session);
    pdvm_model_close(c->model);
    conversation_free(&c->conversation);
    chat_text_free(&c->text);
    generate_settings_free(&c->g);
    free(c->tokens.ids);
    free(c->stop);
    free(c->answer);
    free(c->bos);
    free(c->eos);
}

int cmd_chat(int argc, char **argv) {
    struct chat c = {.end = -1};
    generate_settings_init(&c.g);
    const struct operand operands[] = {
        {"MODEL", "A .pdvm file or a Hugging Face directory.", &c.g.model, false}, OPERAND_END};
    const struct option_spec own[] = {
        OPTION_GROUP("Conversation and length"),
        OPTION_STRING("-m, --model", "MODEL", "The model, if it is not the first argument.",
                      &c.g.model),
        OPTION_STRING("-p, --prompt", "TEXT", "The first message.", &c.prompt),
        OPTION_STRING("-sys, --system, --system-prompt", "TEXT",
                      "What the model is told before the conversation.", &c.system),
        OPTION_STRING("--chat-template", "NAME|FILE",
                      "Use the chat template of this family, or that of a file with a Jinja "
                      "template, instead of the model's. An unknown name gives a list of all.",
                      &c.template_name),
        OPTION_END,
    };
    const struct option_spec output[] = {OPTION_GROUP("Output"), OPTION_END};
    struct option_table table = {0};
    option_table_add(&table, own);
    generate_add_length(&table, &c.g);
    generate_add_sampling(&table, &c.g);
    option_table_add(&table, output);
    generate_add_engine(&table, &c.g);
    const struct options_page page = {.command = "chat",
                                      .usage = "MODEL [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = table.items,
                                      .examples = examples,
                                      .operand_hint = "a message is given with -p, in quotes"};
    int code = options_parse(&page, argc, argv);
    if (code == OPTIONS_GO_ON && !c.g.model)
        code = options_error(&page, "no model: pdvm chat MODEL");
    if (code == OPTIONS_GO_ON) code = generate_settings_check(&c.g, &page);
    if (code == OPTIONS_GO_ON) {
        c.progress.quiet = c.g.quiet;
        code = execute(&c);
    }
    release(&c);
    return code;
}
