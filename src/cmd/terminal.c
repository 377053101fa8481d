/* Messages, progress and interrupts of the commands. */
#include "cmd/terminal.h"
#include "base/file.h"
#include "base/time.h"
#include "cmd/cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Seconds between two drawings of the bar, and between two plain lines. */
#define BAR_INTERVAL 0.1
#define LINE_INTERVAL 10.0
/* What takes no longer than this shows no plain lines. */
#define LINE_DELAY 2.0

static volatile sig_atomic_t interrupt_signal;

/* Whether a bar is on the screen that a message would be mixed up with. */
static bool bar_on_screen;

/* ---- signals --------------------------------------------------------------------------- */

/* The second one kills, but files that nobody will finish go first. */
static void on_interrupt(int signal_number) {
    if (interrupt_signal != signal_number) {
        interrupt_signal = signal_number;
        return;
    }
    int saved = errno;
    pd_writers_remove_unfinished();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
    errno = saved;
}

/*
 * A program may be started with closed standard streams (`>&-`). The next file opened would take
 * their place, and output would be written into it; these stand-ins make reading and writing fail.
 */
static void fill_closed_streams(void) {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) != -1 || errno != EBADF) continue;
        if (open("/dev/null", fd == STDOUT_FILENO ? O_RDONLY : O_WRONLY) != fd) return;
    }
}

static void catch_signal(int signal_number) {
    struct sigaction old, action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    /* Without SA_RESTART, so that waiting for input ends. */
    action.sa_flags = 0;
    /* Jobs in the background are started with SIGINT ignored, and must stay so. */
    if (sigaction(signal_number, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
        sigaction(signal_number, &action, NULL);
}

void terminal_init(void) {
    fill_closed_streams();
    catch_signal(SIGINT);
    catch_signal(SIGTERM);
    signal(SIGPIPE, SIG_IGN);
}

void terminal_interrupt_clear(void) {
    if (interrupt_signal != SIGINT) return;
    interrupt_signal = 0;
    catch_signal(SIGINT);
}

bool terminal_interrupted(void) {
    return interrupt_signal != 0;
}

int terminal_interrupt_status(void) {
    return 128 + (interrupt_signal ? (int)interrupt_signal : SIGINT);
}

/* ---- messages -------------------------------------------------------------------------- */

static void clear_bar(void) {
    if (bar_on_screen) fputs("\r\033[K", stderr);
    bar_on_screen = false;
}

void terminal_error(const char *command, const char *fmt, ...) {
    bool colors = terminal_colors(stderr);
    fflush(stdout);
    clear_bar();
    fprintf(stderr, "%spdvm %s:%s ", colors ? "\033[1;31m" : "", command, colors ? "\033[0m" : "");
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

int terminal_fail(const char *command, const pdvm_error *err) {
    if (err->status == PDVM_ERR_CANCELLED && terminal_interrupted()) {
        terminal_error(command, "interrupted");
        return terminal_interrupt_status();
    }
    terminal_error(command, "%s", err->message);
    return CMD_FAILED;
}

void terminal_log_verbose(void *user, pdvm_log_level level, const char *message) {
    clear_bar();
    fprintf(stderr, "pdvm %s: %s%s\n", (const char *)user,
            level == PDVM_LOG_WARN ? "warning: " : "", message);
}

void terminal_log(void *user, pdvm_log_level level, const char *message) {
    if (level >= PDVM_LOG_WARN) terminal_log_verbose(user, level, message);
}

/* ---- the terminal ---------------------------------------------------------------------- */

bool terminal_colors(FILE *f) {
    const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");
    if (no_color && no_color[0] != '\0') return false;
    return term && strcmp(term, "dumb") != 0 && isatty(fileno(f));
}

int terminal_width(FILE *f) {
    struct winsize size;
    if (ioctl(fileno(f), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
    return 80;
}

const char *terminal_size(char buf[32], uint64_t bytes) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    if (bytes < 1024) {
        snprintf(buf, 32, "%u bytes", (unsigned)bytes);
        return buf;
    }
    double size = (double)bytes / 1024;
    size_t unit = 0;
    while (size >= 999.5 && unit + 1 < sizeof units / sizeof *units) {
        size /= 1024;
        unit++;
    }
    snprintf(buf, 32, "%.*f %s", size < 9.995 ? 2 : size < 99.95 ? 1 : 0, size, units[unit]);
    return buf;
}

const char *terminal_duration(char buf[32], double seconds) {
    if (seconds < 0) seconds = 0;
    if (seconds > 1e9) seconds = 1e9;
    unsigned long whole = (unsigned long)(seconds + 0.5);
    if (seconds < 0.00995)
        snprintf(buf, 32, "%.1f ms", 1e3 * seconds);
    else if (seconds < 0.9995)
        snprintf(buf, 32, "%.0f ms", 1e3 * seconds);
    else if (seconds < 9.95)
        snprintf(buf, 32, "%.1f s", seconds);
    else if (whole < 60)
        snprintf(buf, 32, "%lu s", whole);
    else if (whole < 3600)
        snprintf(buf, 32, "%lu:%02lu min", whole / 60, whole % 60);
    else
        snprintf(buf, 32, "%lu:%02lu:%02lu h", whole / 3600, whole / 60 % 60, whole % 60);
    return buf;
}

/* ---- progress -------------------------------------------------------------------------- */

/* "42 %  1.2 GiB/s, 12 s left" */
static void describe(const struct terminal_progress *p, double fraction, double now, char *text,
                     size_t size) {
    char buf[32], rate[48] = "", left[48] = "";
    double elapsed = now - p->started;
    if (elapsed > 0.3 && fraction > 0) {
        double per_second = p->total * fraction / elapsed;
        if (p->total > 0 && p->unit && strcmp(p->unit, "bytes") == 0)
            snprintf(rate, sizeof rate, "  %s/s", terminal_size(buf, (uint64_t)per_second));
        else if (p->total > 0 && p->unit)
            snprintf(rate, sizeof rate, "  %.*f %.20s/s", per_second < 10 ? 1 : 0, per_second,
                     p->unit);
        double rest = elapsed / fraction * (1 - fraction);
        if (elapsed > 1 && rest < 60)
            snprintf(left, sizeof left, "  %.0f s left", rest);
        else if (elapsed > 1)
            snprintf(left, sizeof left, "  %s left", terminal_duration(buf, rest));
    }
    snprintf(text, size, "%3.0f %%%s%s", 100 * fraction, rate, left);
}

static void draw_bar(const struct terminal_progress *p, double fraction, double now) {
    static const char hashes[] = "########################################";
    char text[160];
    describe(p, fraction, now, text, sizeof text);
    int bar = terminal_width(stderr) - 1 - (int)strlen(p->stage) - (int)strlen(text) - 5;
    if (bar > 30) bar = 30;
    fprintf(stderr, "\r%s ", p->stage);
    if (bar >= 5) {
        int filled = (int)(fraction * bar);
        fprintf(stderr, "[%.*s%*s] ", filled, hashes, bar - filled, "");
    }
    fprintf(stderr, "%s\033[K", text);
    fflush(stderr);
    bar_on_screen = true;
}

bool terminal_progress(void *user, const char *stage, double fraction) {
    struct terminal_progress *p = user;
    if (terminal_interrupted()) return false;
    if (!p || p->quiet) return true;
    double now = pd_seconds();
    if (strncmp(p->stage, stage, sizeof p->stage - 1) != 0) {
        terminal_progress_end(p);
        snprintf(p->stage, sizeof p->stage, "%s", stage);
        p->started = p->shown = now;
    }
    if (!(fraction >= 0)) fraction = 0;
    if (fraction > 1) fraction = 1;
    if (isatty(STDERR_FILENO)) {
        if (now - p->shown < BAR_INTERVAL) return true;
        p->shown = now;
        draw_bar(p, fraction, now);
    } else {
        double since = p->visible ? now - p->shown : now - p->started;
        if (since < (p->visible ? LINE_INTERVAL : LINE_DELAY)) return true;
        char text[160];
        describe(p, fraction, now, text, sizeof text);
        fprintf(stderr, "%s %s\n", p->stage, text);
        p->shown = now;
        p->visible = true;
    }
    return true;
}

void terminal_progress_end(struct terminal_progress *p) {
    clear_bar();
    p->stage[0] = '\0';
    p->visible = false;
}

struct pd_notify terminal_notify(const char *command, struct terminal_progress *progress,
                                 bool verbose) {
    return (struct pd_notify){.progress = terminal_progress,
                              .progress_user = progress,
                              .log = verbose ? terminal_log_verbose : terminal_log,
                              .log_user = (void *)(uintptr_t)command};
}
