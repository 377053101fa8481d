#include "model/chat_template.h"

#include "base/alloc.h"
#include "base/utf8.h"
#include "io/json.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the strings of the tables: the beginning and the end of sequence, whatever they are called. */
#define BOS "\1"
#define EOS "\2"

enum system_place { SYSTEM_TURN, SYSTEM_IN_FIRST, SYSTEM_IN_LAST };

/* What is written around one role's contents. */
struct turn {
    const char *before, *after;
    bool trim; /* white space around the contents goes */
};

struct family {
    const char *name;
    const char *const marks[4]; /* all must occur in the template */
    const char *const never[3]; /* none may */
    enum system_place place;
    bool writes_bos;     /* at the start; what a recognised template says counts more */
    bool always_system;  /* even an empty one */
    bool trims_together; /* system text and user's text as one */
    bool hides_thoughts; /* what comes before </think> in earlier answers */
    struct turn system, user, assistant;
    const char *prompt; /* where the answer begins */
    const char *end;    /* of a turn; NULL: the end of sequence */
};

#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA_31_DATES "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
#define COHERE(role) "<|START_OF_TURN_TOKEN|><|" role "_TOKEN|>"
#define COHERE_END "<|END_OF_TURN_TOKEN|>"

/* In the order in which a template is compared with them: the first that fits is it. */
static const struct family families[] = {
    {.name = "llama-3.1",
     .marks = {"<|start_header_id|>", "Cutting Knowledge Date"},
     .writes_bos = true,
     .always_system = true,
     .system = {HEADER("system") LLAMA_31_DATES, "<|eot_id|>", true},
     .user = {HEADER("user"), "<|eot_id|>", true},
     .assistant = {HEADER("assistant"), "<|eot_id|>", true},
     .prompt = HEADER("assistant"),
     .end = "<|eot_id|>"},
    {.name = "llama-3",
     .marks = {"<|start_header_id|>", "<|eot_id|>"},
     .writes_bos = true,
     .system = {HEADER("system"), "<|eot_id|>", true},
     .user = {HEADER("user"), "<|eot_id|>", true},
     .assistant = {HEADER("assistant"), "<|eot_id|>", true},
     .prompt = HEADER("assistant"),
     .end = "<|eot_id|>"},
    {.name = "qwen-3",
     .marks = {"<|im_start|>", "<|im_end|>", "</think>"},
     /* QwQ begins answers with thoughts, SmolLM3 writes a system text of its own. */
     .never = {"<|im_sep|>", "assistant\\n<think>", "## Metadata"},
     .hides_thoughts = true,
     .system = {"<|im_start|>system\n", "<|im_end|>\n", false},
     .user = {"<|im_start|>user\n", "<|im_end|>\n", false},
     .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n", false},
     .prompt = "<|im_start|>assistant\n",
     .end = "<|im_end|>"},
    {.name = "chatml",
     .marks = {"<|im_start|>", "<|im_end|>"},
     .never = {"<|im_sep|>", "</think>"},
     .system = {"<|im_start|>system\n", "<|im_end|>\n", false},
     .user = {"<|im_start|>user\n", "<|im_end|>\n", false},
     .assistant = {"<|im_start|>assistant\n", "<|im_end|>\n", false},
     .prompt = "<|im_start|>assistant\n",
     .end = "<|im_end|>"},
    {.name = "gemma",
     .marks = {"<start_of_turn>", "<end_of_turn>"},
     .place = SYSTEM_IN_FIRST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {"<start_of_turn>user\n", "<end_of_turn>\n", true},
     .assistant = {"<start_of_turn>model\n", "<end_of_turn>\n", true},
     .prompt = "<start_of_turn>model\n",
     .end = "<end_of_turn>"},
    {.name = "command-r",
     .marks = {"<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"},
     .never = {"<|START_RESPONSE|>"},
     .writes_bos = true,
     .system = {COHERE("SYSTEM"), COHERE_END, false},
     .user = {COHERE("USER"), COHERE_END, true},
     .assistant = {COHERE("CHATBOT"), COHERE_END, true},
     .prompt = COHERE("CHATBOT"),
     .end = COHERE_END},
    {.name = "phi-3",
     .marks = {"<|user|>", "<|assistant|>", "<|end|>"},
     .system = {"<|system|>\n", "<|end|>\n", false},
     .user = {"<|user|>\n", "<|end|>\n", false},
     .assistant = {"<|assistant|>\n", "<|end|>\n", false},
     .prompt = "<|assistant|>\n",
     .end = "<|end|>"},
    {.name = "zephyr",
     .marks = {"<|user|>", "<|assistant|>", "eos_token"},
     .system = {"<|system|>\n", EOS "\n", false},
     .user = {"<|user|>\n", EOS "\n", false},
     .assistant = {"<|assistant|>\n", EOS "\n", false},
     .prompt = "<|assistant|>\n"},
    {.name = "mistral-v7",
     .marks = {"[INST] ", "[SYSTEM_PROMPT] "},
     .writes_bos = true,
     .system = {"[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]", false},
     .user = {"[INST] ", "[/INST]", false},
     .assistant = {" ", EOS, false},
     .prompt = ""},
    {.name = "mistral-v7-tekken",
     .marks = {"[INST]", "[SYSTEM_PROMPT]"},
     .writes_bos = true,
     .system = {"[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", false},
     .user = {"[INST]", "[/INST]", false},
     .assistant = {"", EOS, false},
     .prompt = ""},
    {.name = "llama-2",
     .marks = {"[INST]", "<<SYS>>"},
     .place = SYSTEM_IN_FIRST,
     .trims_together = true,
     .system = {"<<SYS>>\n", "\n<</SYS>>\n\n", false},
     .user = {BOS "[INST] ", " [/INST]", true},
     .assistant = {" ", " " EOS, true},
     .prompt = ""},
    {.name = "mistral-v1",
     .marks = {" [INST] ", " [/INST]"},
     .place = SYSTEM_IN_FIRST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {" [INST] ", " [/INST]", false},
     .assistant = {" ", EOS, false},
     .prompt = ""},
    {.name = "mistral-v0.1",
     .marks = {"[INST] ", " [/INST]", "eos_token + ' '"},
     .place = SYSTEM_IN_FIRST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {"[INST] ", " [/INST]", false},
     .assistant = {"", EOS " ", false},
     .prompt = ""},
    {.name = "mistral-v0.2",
     .marks = {"[INST] ", " [/INST]"},
     .place = SYSTEM_IN_FIRST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {"[INST] ", " [/INST]", false},
     .assistant = {"", EOS, false},
     .prompt = ""},
    {.name = "mistral-v3",
     .marks = {"[INST] ", "[/INST]"},
     .place = SYSTEM_IN_LAST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {"[INST] ", "[/INST]", false},
     .assistant = {" ", EOS, true},
     .prompt = ""},
    {.name = "mistral-v3-tekken",
     .marks = {"[INST]", "[/INST]"},
     .place = SYSTEM_IN_LAST,
     .writes_bos = true,
     .system = {"", "\n\n", false},
     .user = {"[INST]", "[/INST]", false},
     .assistant = {"", EOS, false},
     .prompt = ""},
};
#define N_FAMILIES (sizeof families / sizeof *families)

/* ---- finding the family ---------------------------------------------------------------- */

const char *chat_template_name_at(size_t i) {
    return i < N_FAMILIES ? families[i].name : NULL;
}

const char *chat_template_name(const struct chat_template *t) {
    return families[t->family].name;
}

const char *chat_template_end(const struct chat_template *t) {
    return families[t->family].end;
}

bool chat_template_find(const char *name, struct chat_template *out) {
    for (size_t i = 0; i < N_FAMILIES; i++) {
        if (strcmp(families[i].name, name) != 0) continue;
        *out = (struct chat_template){.family = i, .writes_bos = families[i].writes_bos};
        return true;
    }
    return false;
}

pdvm_status chat_template_refuse(const char *path, const char *what, pdvm_error *err) {
    char names[512] = "";
    size_t used = 0;
    for (size_t i = 0; i < N_FAMILIES && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "",
                                 families[i].name);
    return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                   "%s: %s; choose one with --chat-template NAME, which is one of %s", path, what,
                   names);
}

static const char *find(const char *text, size_t size, const char *mark) {
    return memmem(text, size, mark, strlen(mark));
}

static bool fits(const struct family *f, const char *jinja, size_t size) {
    const size_t n_marks = sizeof f->marks / sizeof *f->marks;
    const size_t n_never = sizeof f->never / sizeof *f->never;
    for (size_t i = 0; i < n_marks && f->marks[i]; i++)
        if (!find(jinja, size, f->marks[i])) return false;
    for (size_t i = 0; i < n_never && f->never[i]; i++)
        if (find(jinja, size, f->never[i])) return false;
    return true;
}

/*
 * Copies the literal that begins at s up to "<|im_end|>"; false if something else than letters
 * comes before that (the literal ends, an expression begins), or if it is too long.
 */
static bool copy_literal(const char *s, size_t n, char out[CHAT_MAX_SYSTEM]) {
    static const char end[] = "<|im_end|>";
    size_t used = 0;
    for (size_t i = 0; i < n && used + 1 < CHAT_MAX_SYSTEM; i++) {
        if (n - i >= sizeof end - 1 && memcmp(s + i, end, sizeof end - 1) == 0) {
            out[used] = '\0';
            return used > 0 && pd_utf8_check(out, used) == used;
        }
        char c = s[i];
        if (strchr("'\"{}", c)) return false; /* a zero byte as well */
        if (c == '\\') {
            if (++i == n) return false;
            if (!strchr("n'\"\\", s[i]) || s[i] == '\0') return false;
            c = s[i] == 'n' ? '\n' : s[i];
        }
        out[used++] = c;
    }
    return false;
}

/* The system text that templates like Qwen2's write where there is none. */
static void find_default_system(const char *jinja, size_t size, struct chat_template *t) {
    static const char mark[] = "<|im_start|>system";
    const char *end = jinja + size, *s = jinja;
    while ((s = find(s, (size_t)(end - s), mark))) {
        s += sizeof mark - 1;
        size_t newline = s < end && *s == '\n'                         ? 1
                         : end - s >= 2 && s[0] == '\\' && s[1] == 'n' ? 2
                                                                       : 0;
        if (newline == 0) continue;
        t->has_default_system =
            copy_literal(s + newline, (size_t)(end - s) - newline, t->default_system);
        if (t->has_default_system) return;
    }
}

pdvm_status chat_template_recognise(const char *path, const char *jinja, size_t size,
                                    struct chat_template *out, pdvm_error *err) {
    for (size_t i = 0; i < N_FAMILIES; i++) {
        const struct family *f = &families[i];
        if (!fits(f, jinja, size)) continue;
        *out = (struct chat_template){.family = i};
        /* llama-2 writes it before every user turn, llama-3 by name in some conversions. */
        out->writes_bos = f->user.before[0] != BOS[0] && (find(jinja, size, "bos_token") ||
                                                          find(jinja, size, "<|begin_of_text|>"));
        if (find(f->system.before, strlen(f->system.before), "<|im_start|>"))
            find_default_system(jinja, size, out);
        return PDVM_OK;
    }
    return chat_template_refuse(path, "the chat template is of no known family", err);
}

/* The template of tokenizer_config.json, or NULL. */
static pdvm_status template_of_config(const char *path, const json_t *config, const char **out,
                                      pdvm_error *err) {
    const json_t *value = pd_json_member(config, "chat_template");
    *out = NULL;
    if (!value || json_is_string(value)) {
        *out = json_string_value(value);
        return PDVM_OK;
    }
    if (!json_is_array(value))
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"chat_template\" is %s; expected a string or a list", path,
                       pd_json_kind(value));
    size_t n = json_array_size(value);
    for (size_t i = 0; i < n && !*out; i++) {
        const json_t *item = json_array_get(value, i);
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name && strcmp(name, "default") == 0)
            *out = json_string_value(json_object_get(item, "template"));
    }
    if (*out) return PDVM_OK;
    return chat_template_refuse(path, "field \"chat_template\" has no template called \"default\"",
                                err);
}

pdvm_status chat_template_of_model(const char *path, const char *jinja, size_t jinja_size,
                                   const char *config, size_t config_size,
                                   struct chat_template *out, pdvm_error *err) {
    if (jinja) return chat_template_recognise(path, jinja, jinja_size, out, err);
    if (!config) return chat_template_refuse(path, "the model has no chat template", err);
    json_t *root;
    const char *found;
    PD_TRY(pd_json_parse_object(path, config, config_size, &root, err));
    pdvm_status status = template_of_config(path, root, &found, err);
    if (status == PDVM_OK)
        status = found ? chat_template_recognise(path, found, strlen(found), out, err)
                       : chat_template_refuse(path, "the model has no chat template", err);
    json_decref(root);
    return status;
}

/* ---- writing --------------------------------------------------------------------------- */

struct writer {
    const struct family *family;
    const struct chat_tokens *tokens;
    struct chat_text *out;
    pdvm_error *err;
};

static pdvm_status put(const struct writer *w, const char *s, size_t n, bool is_template) {
    struct chat_text *o = w->out;
    if (n == 0) return PDVM_OK;
    PD_TRY(pd_grow(&o->text, &o->capacity, o->size + n, 1, "a conversation", w->err));
    struct chat_segment *last = o->n_segments ? &o->segments[o->n_segments - 1] : NULL;
    if (!last || last->is_template != is_template) {
        PD_TRY(pd_grow(&o->segments, &o->segment_capacity, o->n_segments + 1, sizeof *o->segments,
                       "a conversation", w->err));
        last = &o->segments[o->n_segments++];
        *last = (struct chat_segment){.offset = o->size, .is_template = is_template};
    }
    memcpy(o->text + o->size, s, n);
    o->size += n;
    last->size += n;
    return PDVM_OK;
}

/* A string of the tables, with the tokens that it refers to. */
static pdvm_status put_template(const struct writer *w, const char *s) {
    while (*s) {
        size_t n = strcspn(s, BOS EOS);
        PD_TRY(put(w, s, n, true));
        s += n;
        if (*s == '\0') break;
        const char *name = *s == BOS[0] ? w->tokens->bos : w->tokens->eos;
        if (!name) name = *s == BOS[0] ? "" : "</s>";
        PD_TRY(put(w, name, strlen(name), true));
        s++;
    }
    return PDVM_OK;
}

/* What Python's str.strip takes for white space. */
static bool is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

static void trim_start(const char **s, size_t *n) {
    while (*n > 0) {
        uint32_t c;
        int length = pd_utf8_decode(*s, *n, &c);
        if (length <= 0 || !is_space(c)) return;
        *s += length;
        *n -= (size_t)length;
    }
}

static void trim_end(const char *s, size_t *n) {
    while (*n > 0) {
        uint32_t c;
        size_t start = *n - 1;
        while (start > 0 && ((uint8_t)s[start] & 0xc0) == 0x80) start--;
        if (pd_utf8_decode(s + start, *n - start, &c) <= 0 || !is_space(c)) return;
        *n = start;
    }
}

/* An answer without the thoughts before it. */
static const char *after_thoughts(const char *s) {
    static const char mark[] = "</think>";
    const char *found = strstr(s, mark);
    if (!found) return s;
    while (found) {
        s = found + sizeof mark - 1;
        found = strstr(s, mark);
    }
    return s + strspn(s, "\n");
}

static pdvm_status put_content(const struct writer *w, const struct turn *turn, const char *s) {
    size_t n = strlen(s);
    if (turn->trim) {
        trim_start(&s, &n);
        trim_end(s, &n);
    }
    return put(w, s, n, false);
}

static pdvm_status put_turn(const struct writer *w, const struct turn *turn, const char *content) {
    PD_TRY(put_template(w, turn->before));
    PD_TRY(put_content(w, turn, content));
    return put_template(w, turn->after);
}

/* A user's turn with the system text in it. */
static pdvm_status put_joined(const struct writer *w, const char *system, const char *content) {
    const struct family *f = w->family;
    PD_TRY(put_template(w, f->user.before));
    PD_TRY(put_template(w, f->system.before));
    PD_TRY(put_content(w, &f->system, system));
    if (!f->trims_together) {
        PD_TRY(put_template(w, f->system.after));
        PD_TRY(put_content(w, &f->user, content));
        return put_template(w, f->user.after);
    }
    size_t n = strlen(content), after = strlen(f->system.after);
    trim_end(content, &n);
    if (n == 0) trim_end(f->system.after, &after);
    PD_TRY(put(w, f->system.after, after, true));
    PD_TRY(put(w, content, n, false));
    return put_template(w, f->user.after);
}

static pdvm_status check_messages(const struct chat_message *messages, size_t n, pdvm_error *err) {
    size_t first = n > 0 && messages[0].role == CHAT_SYSTEM ? 1 : 0;
    if (n <= first || (n - first) % 2 == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "a conversation must end with a user's message");
    for (size_t i = first; i < n; i++) {
        enum chat_role expected = (i - first) % 2 == 0 ? CHAT_USER : CHAT_ASSISTANT;
        if (messages[i].role != expected)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "message %zu of the conversation must be %s: user and assistant take "
                           "turns",
                           i, expected == CHAT_USER ? "a user's" : "the assistant's");
    }
    for (size_t i = 0; i < n; i++) {
        const char *s = messages[i].content;
        size_t size = strlen(s), valid = pd_utf8_check(s, size);
        if (valid < size)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "message %zu of the conversation is not valid UTF-8 at byte %zu", i,
                           valid);
    }
    return PDVM_OK;
}

static pdvm_status render(const struct writer *w, const struct chat_template *t,
                          const struct chat_message *messages, size_t n) {
    const struct family *f = w->family;
    const char *system = NULL;
    size_t first = 0;
    if (messages[0].role == CHAT_SYSTEM)
        system = messages[first++].content;
    else if (t->has_default_system)
        system = t->default_system;
    else if (f->always_system)
        system = "";
    if (t->writes_bos) PD_TRY(put_template(w, BOS));
    if (system && f->place == SYSTEM_TURN) PD_TRY(put_turn(w, &f->system, system));
    size_t joined = f->place == SYSTEM_IN_FIRST ? first : n - 1;
    for (size_t i = first; i < n; i++) {
        const char *content = messages[i].content;
        if (messages[i].role == CHAT_ASSISTANT) {
            if (f->hides_thoughts) content = after_thoughts(content);
            PD_TRY(put_turn(w, &f->assistant, content));
        } else if (system && f->place != SYSTEM_TURN && i == joined) {
            PD_TRY(put_joined(w, system, content));
        } else {
            PD_TRY(put_turn(w, &f->user, content));
        }
    }
    return put_template(w, f->prompt);
}

pdvm_status chat_template_render_segments(const struct chat_template *t,
                                          const struct chat_tokens *tokens,
                                          const struct chat_message *messages, size_t n,
                                          struct chat_text *out, pdvm_error *err) {
    const struct writer w = {&families[t->family], tokens, out, err};
    out->size = out->n_segments = 0;
    PD_TRY(check_messages(messages, n, err));
    return render(&w, t, messages, n);
}

void chat_text_free(struct chat_text *text) {
    free(text->text);
    free(text->segments);
    *text = (struct chat_text){0};
}

/* ---- tokens ---------------------------------------------------------------------------- */

/* The ids of each segment by itself: special tokens in the template's only. */
static pdvm_status encode_segments(const struct chat_text *text, const struct tokenizer *tokenizer,
                                   struct token_list *out, pdvm_error *err) {
    for (size_t i = 0; i < text->n_segments; i++) {
        const struct chat_segment *s = &text->segments[i];
        unsigned flags = s->is_template ? PDVM_TOKENIZE_PARSE_SPECIAL : 0;
        PD_TRY(tokenizer_encode(tokenizer, text->text + s->offset, s->size, flags, out, err));
    }
    return PDVM_OK;
}

/* The next special token at or after *i, or -1; *i moves behind it. */
static int32_t next_special(const struct tokenizer *tokenizer, const struct token_list *list,
                            size_t *i) {
    while (*i < list->n) {
        int32_t id = list->ids[(*i)++];
        if (tokenizer_is_special(tokenizer, id)) return id;
    }
    return -1;
}

static bool same_specials(const struct tokenizer *tokenizer, const struct token_list *a,
                          const struct token_list *b) {
    for (size_t i = 0, j = 0;;) {
        int32_t x = next_special(tokenizer, a, &i), y = next_special(tokenizer, b, &j);
        if (x != y) return false;
        if (x < 0) return true;
    }
}

/*
 * Tokenizers look beyond the ends of a segment (spaces, merges), so the whole text at once is what
 * the model was trained on. It is used if no message had a part in its special tokens: then they
 * are those of the segments, one by one.
 */
pdvm_status chat_text_encode(const struct chat_text *text, const struct tokenizer *tokenizer,
                             struct token_list *out, pdvm_error *err) {
    struct token_list whole = {0}, parts = {0};
    pdvm_status status = encode_segments(text, tokenizer, &parts, err);
    if (status == PDVM_OK)
        status = tokenizer_encode(tokenizer, text->text, text->size, PDVM_TOKENIZE_PARSE_SPECIAL,
                                  &whole, err);
    const struct token_list *chosen = same_specials(tokenizer, &whole, &parts) ? &whole : &parts;
    if (status == PDVM_OK)
        status =
            pd_grow(&out->ids, &out->capacity, out->n + chosen->n, sizeof *out->ids, "tokens", err);
    if (status == PDVM_OK && chosen->n > 0) {
        memcpy(out->ids + out->n, chosen->ids, chosen->n * sizeof *chosen->ids);
        out->n += chosen->n;
    }
    free(whole.ids);
    free(parts.ids);
    return status;
}
