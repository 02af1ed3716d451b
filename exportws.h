/* exportws.h - a WebSocket push server in one file, for your program to embed
 *
 * A browser opens ws://HOST/app/ws/export-task/{token} and waits. You call exportws_send() with
 * that token, and the text is on its screen. Memory is one number, known before the first client:
 * you hand it over, nothing is allocated later, and every slot comes back - on close, on error, on
 * timeout. Add exportws.c (-DEXPORTWS_NO_MAIN) and this:
 *
 *   #include "exportws.h"
 *   static uint64_t memory[1000000];
 *   static void opened(void *user, exportws_id session, const char *token) {
 *       (void)session;
 *       exportws_send(*(exportws **)user, token, "welcome", 7, EXPORTWS_TEXT);
 *   }
 *   int main(void) {
 *       exportws *w; exportws_options o; char why[128];
 *       exportws_defaults(&o);
 *       o.on_open = opened, o.user = &w, o.listen = "127.0.0.1:8080";
 *       w = exportws_start(&o, memory, sizeof memory, why, sizeof why);
 *       while (w && exportws_step(w, 1000) >= 0) {}
 *       return w ? (exportws_end(w), 0) : 1;
 *   }
 *
 * With -DEXPORTWS_NO_PAGES the browser client and the demo page are left out (404): 12 KiB less.
 *
 * Threads: a server belongs to the thread that steps it. Only exportws_post and exportws_stop may
 * be called from another one, between the return of exportws_start and exportws_end; functions that
 * take no server may be called from any. Callbacks run in the server's thread, inside exportws_step
 * and exportws_dispatch (on_log inside whatever else you call, too). From inside them every
 * function here may be called, of this server and of others, but those that take a turn or end it:
 * those answer EXPORTWS_BAD, and exportws_end does nothing.
 *
 * Errors: a negative answer means that what was asked for was not done, and nothing of it is kept.
 *
 * ISC licence, see the end of exportws.c. */
#ifndef EXPORTWS_H
#define EXPORTWS_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXPORTWS_VERSION "0.1.0"

typedef struct exportws exportws;

/* A session; never reused, so that a stale one is refused (EXPORTWS_GONE), not misdelivered. 0 is
 * no session. */
typedef uint64_t exportws_id;

/* What a message is. EXPORTWS_TEXT | EXPORTWS_END: text, and the last message of its token. */
enum { EXPORTWS_TEXT = 1, EXPORTWS_BINARY = 2, EXPORTWS_END = 4 };

/* Errors, and what to do about them. exportws_strerror() says them in words. */
enum {
    EXPORTWS_ABSENT = -1,   /* there is nobody, or nothing, of that name: try later, or tell whoever
                               asked */
    EXPORTWS_FULL = -2,     /* no room for it just now: try again when the loop has had a turn */
    EXPORTWS_TOO_BIG = -3,  /* longer than it may be: cut it, or raise the option that bounds it */
    EXPORTWS_NOT_UTF8 = -4, /* a text that is not UTF-8: mend it, or send it as EXPORTWS_BINARY */
    EXPORTWS_GONE = -5,     /* too late: the session has ended, or the server drains or has stopped;
                               forget the session, or end the server */
    EXPORTWS_BAD = -6       /* never right: NULL, an empty token, an unknown kind, code or door, a
                               turn within a turn; mend the caller */
};

/* Why a session closed: on_close's reason, and the label of exportws_sessions_closed_total. */
enum {
    EXPORTWS_BY_PEER,     /* the peer closed, with a close frame or without */
    EXPORTWS_BY_ERROR,    /* its socket failed */
    EXPORTWS_BY_TIMEOUT,  /* no life in ping_ms + pong_ms, or a message not complete in time */
    EXPORTWS_BY_SLOW,     /* its queue or the buffer was full, it took nothing for
                             write_timeout_ms, or history that it was reading gave way */
    EXPORTWS_BY_PROTOCOL, /* it broke RFC 6455, sent too big a message or bad UTF-8 */
    EXPORTWS_BY_REPLACED, /* a newer session of the same token, past per_token */
    EXPORTWS_BY_ENDED,    /* exportws_close, exportws_kick or DELETE */
    EXPORTWS_BY_SHUTDOWN, /* the server drains */
    EXPORTWS_REASONS
};

/* Log levels: each includes those above it. */
enum { EXPORTWS_LOG_ERROR, EXPORTWS_LOG_WARN, EXPORTWS_LOG_INFO, EXPORTWS_LOG_DEBUG };

/* The doors, for exportws_address. */
enum { EXPORTWS_CLIENTS, EXPORTWS_PUSH };

/* The upgrade request while on_upgrade looks at it; gone when on_upgrade returns. */
typedef struct exportws_request exportws_request;

/* The token, percent-decoded, NUL-terminated. Valid until on_upgrade returns. */
const char *exportws_request_token(const exportws_request *r);

/* What follows '?' in the request target, as sent (still percent-encoded), NUL-terminated; "" when
 * there is none. Valid until on_upgrade returns. */
const char *exportws_request_query(const exportws_request *r);

/* Copies the value of header `name` (any case; the first one of that name) to `value`, cut to size
 * - 1 bytes and NUL-terminated when size > 0; value may be NULL. Returns the value's whole length:
 * it was cut when that is not below size. 0 when it is absent or empty. All three take NULL for a
 * request without anything. */
size_t exportws_request_header(const exportws_request *r, const char *name, char *value,
                               size_t size);

/* All sizes are in bytes, all times in milliseconds. exportws_defaults fills every member; set what
 * you want to differ. Strings and arrays are borrowed until exportws_end: they must stay as they
 * are, but for the text of the two secrets, which is read at every use: you may change it in place
 * between turns (to a line that is not empty). Every callback may be NULL; `user` is handed to
 * each. */
typedef struct exportws_options {
    /* "HOST:PORT", "[V6]:PORT", ":PORT" (all addresses), "unix:PATH", or "fd:N": a socket that
     * listens already and is the server's from now on. HOST is a numeric address or localhost.
     * NULL: that door stays shut. */
    const char *listen, *push;
    const char *path;        /* starts and ends with '/': what stands before the token */
    const char *heartbeat;   /* a client's text that is swallowed and counts as life */
    const char *push_secret; /* NULL, or what the push door wants as "Authorization: Bearer ..." */
    /* NULL, or the secret that a client's token must be signed with: NAME.EXPIRES.SIGNATURE, where
     * EXPIRES is in seconds since 1970 and SIGNATURE the base64url of HMAC-SHA-256 over
     * NAME.EXPIRES; the session's token is NAME. Two lines are two secrets, both good, so that one
     * can be replaced by the other. */
    const char *client_secret;
    const char *const
        *origins; /* allowed Origins, "*" for any; none: the Origin's host must be the Host's */
    size_t origin_count;
    /* "IP", "IP/BITS", or "unix:" for all on a Unix socket: peers at the client door whose last
     * X-Forwarded-For entry is taken for the peer's address. Nobody else's is. */
    const char *const *trusted_proxies;
    size_t trusted_proxy_count;
    size_t capacity, per_token,
        per_address; /* sessions: in all, of one token, from one peer address (0: no bound) */
    size_t handshakes, pushers; /* connections: with an incomplete head, at the push door */
    size_t queue, history;      /* messages: waiting for one session; kept for who reconnects,
                                   of each token and of those for all (0: none) */
    size_t max_token_bytes, max_message_bytes, max_push_bytes, buffer_bytes;
    unsigned hold_ms, ping_ms, pong_ms, handshake_timeout_ms, close_timeout_ms, write_timeout_ms,
        drain_ms;
    int heartbeat_reply, demo; /* demo: whether the demo page is served at / of the client door */

    /* A well-formed upgrade that all other rules let in. 0: accept, else the HTTP status (400 to
     * 599; another number is 403) to refuse with. */
    int (*on_upgrade)(void *user, const exportws_request *request);

    /* The session is in the table and its 101 is on its way: a message sent now reaches it. `token`
     * is valid during the call, here and below. */
    void (*on_open)(void *user, exportws_id session, const char *token);

    /* A whole message of a client that is not the heartbeat; kind is EXPORTWS_TEXT (checked UTF-8)
     * or EXPORTWS_BINARY. `data` is valid during the call and not NUL-terminated. */
    void (*on_message)(void *user, exportws_id session, const char *token, const void *data,
                       size_t size, int kind);

    /* Once for every session that on_open was called for (or would have been), when it is open no
     * more. reason is EXPORTWS_BY_..., code the close code sent or received (1005: a close frame
     * without one, 1006: none). Runs in exportws_step or exportws_dispatch. */
    void (*on_close)(void *user, exportws_id session, const char *token, int reason, int code);

    /* One line of the log, without newline; valid during the call. Not called from inside itself,
     * but from inside every function that takes a server and does something, and from inside
     * exportws_start, before that has returned the server. */
    void (*on_log)(void *user, int level, const char *line);
    void *user;

    int log_level; /* EXPORTWS_LOG_...: lines below it are not made; tokens are whole only at
                      EXPORTWS_LOG_DEBUG */
} exportws_options;

/* Fills *o with the defaults: those of the command line, with both doors shut. */
void exportws_defaults(exportws_options *o);

/* The bytes that a server with these options needs; 0 when an option is out of range
 * (exportws_start says which). */
size_t exportws_memory(const exportws_options *o);

/* Starts a server in memory[0..bytes), which must be aligned for uint64_t, hold exportws_memory(o)
 * bytes or more and stay the server's until exportws_end; what it holds before does not matter. *o
 * itself is copied. Opens the doors. Returns NULL when it can't, with one line on what and why in
 * why[0..why_size) (cut to fit; why may be NULL): an option out of range, by name; memory that is
 * NULL, too small or misaligned; a door's address and the system's reason. Then nothing is left
 * open and the memory is the caller's again: mend what it says, and start again. */
exportws *exportws_start(const exportws_options *o, void *memory, size_t bytes, char *why,
                         size_t why_size);

/* One turn of the loop: waits at most timeout_ms (negative: as long as nothing is due) and serves
 * what is ready. Returns the number of events handled, 0 on timeout or when a signal came;
 * EXPORTWS_GONE once the server has drained after exportws_stop: leave the loop; EXPORTWS_BAD when
 * w is NULL or a turn is already running (called from a callback). */
int exportws_step(exportws *w, int timeout_ms);

/* For a host with a poll() loop of its own: fills fds[0..max) with what the server waits for and
 * lowers *timeout_ms (negative: no bound) to when it next has to be dispatched. Returns how many it
 * filled; EXPORTWS_TOO_BIG when max is too small (capacity + handshakes + pushers + 5 always do);
 * EXPORTWS_GONE as above; EXPORTWS_BAD on NULL. */
int exportws_pollfds(exportws *w, struct pollfd *fds, size_t max, int *timeout_ms);

/* ... and hands back the same fds, unchanged but for revents, after poll() returned, on timeout
 * too. Other functions may be called in between. Returns as exportws_step; EXPORTWS_BAD also when
 * fds are not those that exportws_pollfds filled in last. */
int exportws_dispatch(exportws *w, const struct pollfd *fds, size_t count);

/* Begins to drain: every session gets close 1001, and exportws_step returns EXPORTWS_GONE once all
 * have left or drain_ms have passed. Async-signal-safe, from any thread, as often as you like. NULL
 * is ignored. */
void exportws_stop(exportws *w);

/* Closes everything at once, without callbacks; the memory is the caller's again, and w is no
 * server any more. Other threads must be done with it before. From inside a callback it does
 * nothing, nor does a second call while the memory is as the first one left it. NULL is ignored. */
void exportws_end(exportws *w);

/* Hands a message to all sessions of a token. token is NUL-terminated, 1 to max_token_bytes long,
 * without '/'; data[0..size) is at most max_push_bytes long, and may be NULL when size is 0; kind
 * is EXPORTWS_TEXT or EXPORTWS_BINARY, with | EXPORTWS_END the token's last message: its sessions
 * get it and then close 1000, later ones too. Both are the caller's again when it returns: what no
 * socket has taken by then was copied, and stays until it is sent or its session ends; as history
 * it stays until it gives way to what is newer, or hold_ms have passed. Never waits. Sessions that
 * are too slow for it are closed meanwhile, and those of other tokens that are still reading history
 * which gives way to it; also the one whose callback is running.
 * Returns the number of sessions reached; 0: nobody is there, it is held for the token's next
 * session, for hold_ms. EXPORTWS_ABSENT: nobody is there, and hold_ms is 0. EXPORTWS_FULL: nobody
 * is there, and there is no room to hold it; raise buffer_bytes when that is often.
 * EXPORTWS_TOO_BIG: the token or the message; EXPORTWS_NOT_UTF8; EXPORTWS_GONE: draining;
 * EXPORTWS_BAD. */
int exportws_send(exportws *w, const char *token, const void *data, size_t size, int kind);

/* The same to every open session, without EXPORTWS_END. Returns how many, 0 or more: it is never
 * held. EXPORTWS_TOO_BIG, EXPORTWS_NOT_UTF8, EXPORTWS_GONE or EXPORTWS_BAD, as above. */
int exportws_broadcast(exportws *w, const void *data, size_t size, int kind);

/* The same to one session, without EXPORTWS_END. Returns 1; EXPORTWS_GONE when the session has
 * ended; EXPORTWS_FULL when it has `queue` messages waiting or the buffer has no room: it reads too
 * slowly, try again later, or close it; EXPORTWS_TOO_BIG, EXPORTWS_NOT_UTF8 or EXPORTWS_BAD, as
 * above. */
int exportws_reply(exportws *w, exportws_id session, const void *data, size_t size, int kind);

/* Closes one session, after what waits for it: code as an RFC 6455 endpoint may send it (1000-1003,
 * 1007-1014, 3000-4999), reason NULL or UTF-8 of at most 123 bytes, which is copied. Returns 0, and
 * the session is gone at once; EXPORTWS_GONE when it was before; EXPORTWS_BAD on another code;
 * EXPORTWS_TOO_BIG or EXPORTWS_NOT_UTF8 for the reason. on_close follows in the running or next
 * turn. */
int exportws_close(exportws *w, exportws_id session, int code, const char *reason);

/* Closes all sessions of a token with 1000 and drops what is held for it and its history, as DELETE
 * does. Returns the number of sessions closed, 0 when there were only held messages; EXPORTWS_ABSENT
 * when there was neither, though its history may have been; EXPORTWS_TOO_BIG or EXPORTWS_BAD for the
 * token. */
int exportws_kick(exportws *w, const char *token);

/* The id that the last exportws_send, exportws_broadcast or exportws_reply gave its message: what a
 * client with exportws.v1 sees of it and resumes from with ?last=. Ids only grow, across restarts
 * too, as long as the clock does. 0 on NULL. */
uint64_t exportws_last_id(const exportws *w);

/* Distinct tokens connected, and sessions open; EXPORTWS_BAD on NULL. */
int exportws_online(const exportws *w);
int exportws_sessions(const exportws *w);

/* The real address of a door (EXPORTWS_CLIENTS or EXPORTWS_PUSH), as in `listen` but with the port
 * that port 0 became, cut to fit and NUL-terminated; text may be NULL. Returns its whole length;
 * EXPORTWS_ABSENT when that door is shut; EXPORTWS_BAD when there is no such door, or w is NULL. */
int exportws_address(const exportws *w, int door, char *text, size_t size);

/* From ANY thread: queues a message for a token (NULL: for all), which the loop then sends as
 * exportws_send or exportws_broadcast. token, data, size and kind as there; both are copied.
 * Messages of one thread keep their order. Never waits for more than another thread's copy. Returns
 * 0 once it is in the ring, which is there for one message of the largest size, or many small ones;
 * EXPORTWS_FULL when it does not fit: try again after a moment (poll(NULL, 0, 1)); EXPORTWS_GONE:
 * the server drains, stop posting; EXPORTWS_TOO_BIG, EXPORTWS_NOT_UTF8 or EXPORTWS_BAD. What the
 * loop can then neither deliver nor hold is logged and counted (exportws_posts_refused_total). Must
 * not be called before exportws_start returned or after exportws_end began. */
int exportws_post(exportws *w, const char *token, const void *data, size_t size, int kind);

/* A few words for an error; static; never NULL. */
const char *exportws_strerror(int error);

#ifdef __cplusplus
}
#endif
#endif
