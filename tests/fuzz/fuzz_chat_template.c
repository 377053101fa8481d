// Fuzz target: any bytes as a chat template and as tokenizer_config.json. What is recognised must
// render a conversation made of the same bytes, whose segments cover the text.

#include "model/chat_template.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void check(const struct chat_template *t, const char *content) {
    const struct chat_message messages[] = {{CHAT_SYSTEM, content},
                                            {CHAT_USER, content},
                                            {CHAT_ASSISTANT, content},
                                            {CHAT_USER, content}};
    const struct chat_tokens tokens = {"<s>", "</s>"};
    struct chat_text text = {0};
    pdvm_error err;
    if (!chat_template_name(t)) abort();
    for (size_t first = 0; first < 2; first++) {
        if (chat_template_render_segments(t, &tokens, messages + first, 4 - first, &text, &err) !=
            PDVM_OK)
            break;
        size_t end = 0;
        for (size_t i = 0; i < text.n_segments; i++) {
            if (text.segments[i].offset != end || text.segments[i].size == 0) abort();
            end += text.segments[i].size;
        }
        if (end != text.size) abort();
        if (text.size > 4 * strlen(content) + CHAT_MAX_SYSTEM + 1024) abort();
    }
    chat_text_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *bytes = (const char *)data;
    struct chat_template t;
    pdvm_error err;
    char *content = malloc(size + 1);
    if (!content) return 0;
    if (size > 0) memcpy(content, data, size);
    content[size] = '\0';
    if (chat_template_recognise("fuzz", bytes, size, &t, &err) == PDVM_OK)
        check(&t, content);
    else if (err.message[0] == 0)
        abort();
    if (chat_template_of_model("fuzz", NULL, 0, bytes, size, &t, &err) == PDVM_OK)
        check(&t, content);
    for (size_t i = 0; chat_template_name_at(i); i++)
        if (chat_template_find(chat_template_name_at(i), &t)) check(&t, content);
    free(content);
    return 0;
}
