/** A conversation: a system text and turns; to and from a JSON file. */
#ifndef PDVM_CMD_CONVERSATION_H
#define PDVM_CMD_CONVERSATION_H

#include "model/chat_template.h"

/** messages[0] is the system's if there is one; the contents are owned. */
struct conversation {
    struct chat_message *messages;
    size_t n, capacity;
};

/** Frees everything. */
void conversation_free(struct conversation *c);

/** The system text; NULL if there is none. */
const char *conversation_system(const struct conversation *c);

/** Sets the system text, or removes it if `text` is empty. It is copied. */
pdvm_status conversation_set_system(struct conversation *c, const char *text, pdvm_error *err);

/** Appends a message; the text is copied. */
pdvm_status conversation_add(struct conversation *c, enum chat_role role, const char *text,
                             pdvm_error *err);

/** Removes the last message, which must not be the system's. */
void conversation_drop(struct conversation *c);

/** Removes all messages but the system's. */
void conversation_reset(struct conversation *c);

/**
 * Writes {"pdvm_chat": 1, "system": text or null, "turns": [{"role", "content"}, ...]}, atomically.
 */
pdvm_status conversation_save(const struct conversation *c, const char *path, pdvm_error *err);

/** Replaces everything by a file's contents; on failure nothing changes. */
pdvm_status conversation_load(struct conversation *c, const char *path, pdvm_error *err);

#endif
