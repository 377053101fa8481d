/* What was said, in memory and in files. */
#include "cmd/conversation.h"
#include "base/alloc.h"
#include "base/file.h"
#include "io/json.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FILE ((size_t)64 << 20)

static const char *const role_names[] = {"system", "user", "assistant"};

static void free_message(const struct chat_message *m) {
    free((void *)m->content);
}

void conversation_free(struct conversation *c) {
    for (size_t i = 0; i < c->n; i++) free_message(&c->messages[i]);
    free(c->messages);
    *c = (struct conversation){0};
}

const char *conversation_system(const struct conversation *c) {
    return c->n > 0 && c->messages[0].role == CHAT_SYSTEM ? c->messages[0].content : NULL;
}

/* Makes a message at position i. */
static pdvm_status insert(struct conversation *c, size_t i, enum chat_role role, const char *text,
                          pdvm_error *err) {
    size_t size = strlen(text) + 1;
    char *copy;
    PD_TRY(pd_grow(&c->messages, &c->capacity, c->n + 1, sizeof *c->messages, "messages", err));
    PD_TRY(pd_calloc(&copy, size, 1, "a message", err));
    memcpy(copy, text, size);
    memmove(c->messages + i + 1, c->messages + i, (c->n - i) * sizeof *c->messages);
    c->messages[i] = (struct chat_message){role, copy};
    c->n++;
    return PDVM_OK;
}

pdvm_status conversation_set_system(struct conversation *c, const char *text, pdvm_error *err) {
    bool had = conversation_system(c) != NULL;
    if (text[0] != '\0') PD_TRY(insert(c, 0, CHAT_SYSTEM, text, err));
    if (!had) return PDVM_OK;
    size_t old = text[0] != '\0' ? 1 : 0;
    free_message(&c->messages[old]);
    memmove(c->messages + old, c->messages + old + 1, (c->n - old - 1) * sizeof *c->messages);
    c->n--;
    return PDVM_OK;
}

pdvm_status conversation_add(struct conversation *c, enum chat_role role, const char *text,
                             pdvm_error *err) {
    return insert(c, c->n, role, text, err);
}

void conversation_drop(struct conversation *c) {
    if (c->n > 0) free_message(&c->messages[--c->n]);
}

void conversation_reset(struct conversation *c) {
    size_t kept = conversation_system(c) ? 1 : 0;
    while (c->n > kept) conversation_drop(c);
}

/* ---- files ----------------------------------------------------------------------------- */

static json_t *to_json(const struct conversation *c) {
    size_t first = conversation_system(c) ? 1 : 0;
    json_t *turns = json_array();
    for (size_t i = first; i < c->n; i++)
        if (json_array_append_new(turns,
                                  json_pack("{s:s, s:s}", "role", role_names[c->messages[i].role],
                                            "content", c->messages[i].content)) != 0) {
            json_decref(turns);
            return NULL;
        }
    return json_pack("{s:i, s:s?, s:o}", "pdvm_chat", 1, "system", conversation_system(c), "turns",
                     turns);
}

pdvm_status conversation_save(const struct conversation *c, const char *path, pdvm_error *err) {
    json_t *root = to_json(c);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return pd_fail(err, PDVM_ERR_MEMORY, "%s: out of memory for the text", path);
    size_t size = strlen(text);
    text[size] = '\n'; /* where the zero byte was */
    pdvm_status status = pd_write_file(path, text, size + 1, err);
    free(text);
    return status;
}

static pdvm_status read_turn(struct conversation *c, const char *path, size_t i, const json_t *turn,
                             pdvm_error *err) {
    const char *role, *content;
    enum chat_role expected = i % 2 == 0 ? CHAT_USER : CHAT_ASSISTANT;
    if (!json_is_object(turn))
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: turn %zu is %s; expected an object", path, i,
                       pd_json_kind(turn));
    PD_TRY(pd_json_string(path, turn, "role", true, &role, err));
    PD_TRY(pd_json_string(path, turn, "content", true, &content, err));
    if (strcmp(role, role_names[expected]) != 0)
        return pd_fail(err, PDVM_ERR_FORMAT,
                       "%s: field \"role\" of turn %zu is \"%.60s\"; expected \"%s\"", path, i,
                       role, role_names[expected]);
    return conversation_add(c, expected, content, err);
}

static pdvm_status read_json(struct conversation *c, const char *path, const json_t *root,
                             pdvm_error *err) {
    int64_t version = 0;
    const char *system = NULL;
    json_t *turns;
    PD_TRY(pd_json_int(path, root, "pdvm_chat", true, 1, 1, &version, err));
    PD_TRY(pd_json_string(path, root, "system", false, &system, err));
    PD_TRY(pd_json_array(path, root, "turns", true, &turns, err));
    if (system) PD_TRY(conversation_set_system(c, system, err));
    for (size_t i = 0; i < json_array_size(turns); i++)
        PD_TRY(read_turn(c, path, i, json_array_get(turns, i), err));
    if (json_array_size(turns) % 2 != 0)
        return pd_fail(err, PDVM_ERR_FORMAT, "%s: the last turn must be the assistant's", path);
    return PDVM_OK;
}

pdvm_status conversation_load(struct conversation *c, const char *path, pdvm_error *err) {
    char *text;
    size_t size;
    json_t *root;
    struct conversation loaded = {0};
    PD_TRY(pd_read_file(path, MAX_FILE, &text, &size, err));
    pdvm_status status = pd_json_parse_object(path, text, size, &root, err);
    free(text);
    PD_TRY(status);
    status = read_json(&loaded, path, root, err);
    json_decref(root);
    if (status != PDVM_OK) {
        conversation_free(&loaded);
        return status;
    }
    conversation_free(c);
    *c = loaded;
    return PDVM_OK;
}
