/* Reading lines: libedit at a terminal, getline otherwise. */
#include "cmd/chat_input.h"
#include "base/alloc.h"
#include "cmd/terminal.h"

#include <errno.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#define HISTORY_SIZE 1000

struct chat_input {
    EditLine *editor; /* NULL: no terminal */
    History *history;
    bool had_text; /* when the interrupt came: el_gets then forgets the line */
    char *line;
    size_t capacity;
};

static char *prompt(EditLine *editor) {
    static char text[] = "> ";
    (void)editor;
    return text;
}

/*
 * libedit's own reader goes on after an interrupt. This one ends the line instead, so that the
 * caller sees it.
 */
static int read_char(EditLine *editor, wchar_t *out) {
    mbstate_t state = {0};
    struct chat_input *in = NULL;
    el_get(editor, EL_CLIENTDATA, &in);
    const LineInfo *info = el_line(editor);
    in->had_text = info->lastchar > info->buffer;
    for (int n = 0; n < 8;) {
        char byte;
        ssize_t got = read(STDIN_FILENO, &byte, 1);
        if (got < 0 && errno == EINTR && !terminal_interrupted()) continue;
        if (got <= 0) return (int)got;
        n++;
        size_t used = mbrtowc(out, &byte, 1, &state);
        if (used == (size_t)-2) continue;
        if (used != (size_t)-1) return 1;
        break;
    }
    *out = L'\xfffd';
    return 1;
}

/* libedit decodes by the locale; the program's texts are UTF-8. */
static void use_utf8(void) {
    if (setlocale(LC_CTYPE, "") && strcmp(nl_langinfo(CODESET), "UTF-8") == 0) return;
    setlocale(LC_CTYPE, "C.UTF-8");
}

static pdvm_status open_editor(struct chat_input *in, pdvm_error *err) {
    HistEvent event;
    use_utf8();
    in->editor = el_init("pdvm", stdin, stdout, stderr);
    in->history = history_init();
    if (!in->editor || !in->history)
        return pd_fail(err, PDVM_ERR_MEMORY, "the line editor cannot be started");
    history(in->history, &event, H_SETSIZE, HISTORY_SIZE);
    history(in->history, &event, H_SETUNIQUE, 1);
    el_set(in->editor, EL_PROMPT, prompt);
    el_set(in->editor, EL_EDITOR, "emacs");
    el_set(in->editor, EL_HIST, history, in->history);
    el_set(in->editor, EL_CLIENTDATA, in);
    el_set(in->editor, EL_GETCFN, read_char);
    return PDVM_OK;
}

pdvm_status chat_input_open(struct chat_input **out, pdvm_error *err) {
    PD_TRY(pd_calloc(out, 1, sizeof **out, "the input", err));
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) return PDVM_OK;
    pdvm_status status = open_editor(*out, err);
    if (status == PDVM_OK) return PDVM_OK;
    chat_input_close(*out);
    *out = NULL;
    return status;
}

void chat_input_close(struct chat_input *in) {
    if (!in) return;
    if (in->editor) el_end(in->editor);
    if (in->history) history_end(in->history);
    free(in->line);
    free(in);
}

bool chat_input_is_terminal(const struct chat_input *in) {
    return in->editor != NULL;
}

static enum chat_line edit_line(struct chat_input *in, const char **line, bool *had_text) {
    int n = 0;
    HistEvent event;
    el_resize(in->editor);
    const char *text = el_gets(in->editor, &n);
    if (terminal_interrupted()) {
        *had_text = in->had_text;
        el_reset(in->editor);
        return CHAT_LINE_INTERRUPTED;
    }
    if (!text || n <= 0) return CHAT_LINE_END;
    size_t length = strcspn(text, "\r\n");
    if (pd_grow(&in->line, &in->capacity, length + 1, 1, "a line", NULL) != PDVM_OK)
        return CHAT_LINE_END;
    memcpy(in->line, text, length);
    in->line[length] = '\0';
    if (length > 0) history(in->history, &event, H_ENTER, in->line);
    *line = in->line;
    return CHAT_LINE;
}

enum chat_line chat_input_line(struct chat_input *in, const char **line, bool *had_text) {
    *had_text = false;
    if (in->editor) return edit_line(in, line, had_text);
    ssize_t n = getline(&in->line, &in->capacity, stdin);
    if (terminal_interrupted()) return CHAT_LINE_INTERRUPTED;
    if (n < 0) return CHAT_LINE_END;
    while (n > 0 && (in->line[n - 1] == '\n' || in->line[n - 1] == '\r')) in->line[--n] = '\0';
    /* Texts end at the first zero byte here: none may be lost silently. */
    for (ssize_t i = 0; i < n; i++)
        if (in->line[i] == '\0') in->line[i] = ' ';
    *line = in->line;
    return CHAT_LINE;
}
