/* Starting and ending: every size of memory and every misalignment, options that are out of range,
 * addresses, and each system call on the way failing with each errno. What can't start says why and
 * leaves nothing behind. */
#include "faults.h"

enum { PATH_ROOM = 128 }; /* more than a Unix socket's path may have */

/* Options of the smallest server, with both doors shut. */
static exportws_options small_options(void)
{
    exportws_options o;
    exportws_defaults(&o);
    o.capacity = o.handshakes = o.pushers = 1;
    o.max_message_bytes = o.max_push_bytes = 100, o.buffer_bytes = 2048;
    return o;
}

/* ===== Memory ===== */

/* In every size below what is needed nothing is started and nothing is written; in the right one,
 * the server lives in just these bytes: what stands before and behind stays as it is. */
static void start_with_every_size(void **state)
{
    exportws_options o = small_options();
    const size_t need = exportws_memory(&o), room = need + 64;
    uint8_t *memory = world_memory(room);
    char why[64];
    unsigned fds = fds_open();
    (void)state;
    assert_true(need > 0 && need % 8 == 0);
    for (size_t bytes = 0; bytes <= need + 1; bytes++) {
        why[0] = '\0';
        exportws *w = exportws_start(&o, memory, bytes, why, sizeof why);
        if ((w != NULL) != (bytes >= need))
            fail_msg("%zu of %zu bytes: %s", bytes, need, w ? "started" : why);
        if (!w && strcmp(why, "memory is too small") != 0) fail_msg("%zu bytes: %s", bytes, why);
        if (!w && (memory[0] != 0xa5 || (bytes > 0 && memory[bytes - 1] != 0xa5)))
            fail_msg("%zu bytes: written to", bytes);
        if (w) assert_int_equal(exportws_step(w, 0), 0);
        if (w && audit(w)) fail_msg("%s", audit(w));
        exportws_end(w);
        for (size_t i = need; i < room; i++) assert_int_equal(memory[i], 0xa5);
    }
    assert_int_equal(fds_open(), fds);
}

static void start_with_every_misalignment(void **state)
{
    exportws_options o = small_options();
    const size_t need = exportws_memory(&o);
    uint8_t *memory = world_memory(need + 64);
    unsigned fds = fds_open();
    (void)state;
    memory -= (uintptr_t)memory % 16;
    for (unsigned by = 0; by < 16; by++) {
        char why[64] = "";
        exportws *w = exportws_start(&o, memory + by, need, why, sizeof why);
        int aligned = by % sizeof(uint64_t) == 0;
        if ((w != NULL) != aligned) fail_msg("misaligned by %u: %s", by, w ? "started" : why);
        if (!w) assert_string_equal(why, "memory is not aligned for uint64_t");
        exportws_end(w);
    }
    assert_null(exportws_start(&o, NULL, need, NULL, 0));
    assert_int_equal(fds_open(), fds);
}

/* The reason is cut to fit, and may be unwanted. */
static void start_says_why_in_what_room_there_is(void **state)
{
    static const char whole[] = "memory is too small";
    exportws_options o = small_options();
    uint8_t *memory = world_memory(64);
    (void)state;
    for (size_t size = 0; size <= sizeof whole + 1; size++) {
        char why[sizeof whole + 2];
        memset(why, 'x', sizeof why);
        assert_null(exportws_start(&o, memory, 8, why, size));
        size_t n = size == 0 ? 0 : smaller(size - 1, sizeof whole - 1);
        assert_memory_equal(why, whole, n);
        if (size > 0) assert_int_equal(why[n], '\0');
        for (size_t i = size > 0 ? n + 1 : 0; i < sizeof why; i++) assert_int_equal(why[i], 'x');
    }
    assert_null(exportws_start(&o, memory, 8, NULL, 64));
}

/* ===== Options that are out of range ===== */

static const char *const some_origin = "https://a";

static void set_capacity_0(exportws_options *o) { o->capacity = 0; }
static void set_capacity_much(exportws_options *o) { o->capacity = 1000001; }
static void set_handshakes(exportws_options *o) { o->handshakes = 0; }
static void set_pushers(exportws_options *o) { o->pushers = 100001; }
static void set_per_token(exportws_options *o) { o->per_token = 0; }
static void set_per_address(exportws_options *o) { o->per_address = SIZE_MAX; }
static void set_max_token(exportws_options *o) { o->max_token_bytes = 1025; }
static void set_max_message(exportws_options *o) { o->max_message_bytes = 0; }
static void set_max_push(exportws_options *o) { o->max_push_bytes = ((size_t)1 << 30) + 1; }
static void set_queue(exportws_options *o) { o->queue = 0; }
static void set_buffer(exportws_options *o) { o->buffer_bytes = 1023; }
static void set_hold(exportws_options *o) { o->hold_ms = 86400001; }
static void set_ping(exportws_options *o) { o->ping_ms = 0; }
static void set_pong(exportws_options *o) { o->pong_ms = 0; }
static void set_handshake_timeout(exportws_options *o) { o->handshake_timeout_ms = 0; }
static void set_close_timeout(exportws_options *o) { o->close_timeout_ms = UINT_MAX; }
static void set_write_timeout(exportws_options *o) { o->write_timeout_ms = 0; }
static void set_drain(exportws_options *o) { o->drain_ms = 86400001; }
static void set_path_null(exportws_options *o) { o->path = NULL; }
static void set_path_empty(exportws_options *o) { o->path = ""; }
static void set_path_open(exportws_options *o) { o->path = "/a"; }
static void set_path_relative(exportws_options *o) { o->path = "a/"; }
static void set_path_blank(exportws_options *o) { o->path = "/a b/"; }
static void set_path_high(exportws_options *o) { o->path = "/\x80/"; }
static void set_path_query(exportws_options *o) { o->path = "/a?/"; }
static void set_heartbeat_null(exportws_options *o) { o->heartbeat = NULL; }
static void set_heartbeat_utf8(exportws_options *o) { o->heartbeat = "\xff"; }
static void set_secret(exportws_options *o) { o->push_secret = ""; }
static void set_origins(exportws_options *o) { o->origin_count = 1; }
static void set_listen_empty(exportws_options *o) { o->listen = ""; }
static void set_listen_port(exportws_options *o) { o->listen = "127.0.0.1:65536"; }
static void set_listen_name(exportws_options *o) { o->listen = "host:80"; }
static void set_listen_v6(exportws_options *o) { o->listen = "[::g]:80"; }
static void set_push_unix(exportws_options *o) { o->push = "unix:"; }
static void set_push_fd(exportws_options *o) { o->push = "fd:x"; }
static void set_push_long(exportws_options *o)
{
    static char path[PATH_ROOM + 6] = "unix:/";
    memset(path + 6, 'x', sizeof path - 7);
    o->push = path;
}

static void set_path_long(exportws_options *o)
{
    static char path[1026];
    memset(path, '/', 1025);
    o->path = path;
}

static void set_heartbeat_long(exportws_options *o)
{
    static char text[CONTROL_MAX + 2];
    memset(text, 'x', CONTROL_MAX + 1);
    o->heartbeat = text;
}

static void options_out_of_range_are_named(void **state)
{
    static const struct {
        void (*set)(exportws_options *);
        const char *name;
    } wrongs[] = {{set_capacity_0, "capacity"},
                  {set_capacity_much, "capacity"},
                  {set_handshakes, "handshakes"},
                  {set_pushers, "pushers"},
                  {set_per_token, "per-token"},
                  {set_per_address, "per-address"},
                  {set_max_token, "max-token"},
                  {set_max_message, "max-message"},
                  {set_max_push, "max-push"},
                  {set_queue, "queue"},
                  {set_buffer, "buffer"},
                  {set_hold, "hold"},
                  {set_ping, "ping"},
                  {set_pong, "pong"},
                  {set_handshake_timeout, "handshake-timeout"},
                  {set_close_timeout, "close-timeout"},
                  {set_write_timeout, "write-timeout"},
                  {set_drain, "drain"},
                  {set_path_null, "path"},
                  {set_path_empty, "path"},
                  {set_path_open, "path"},
                  {set_path_relative, "path"},
                  {set_path_blank, "path"},
                  {set_path_high, "path"},
                  {set_path_query, "path"},
                  {set_path_long, "path"},
                  {set_heartbeat_null, "heartbeat"},
                  {set_heartbeat_utf8, "heartbeat"},
                  {set_heartbeat_long, "heartbeat"},
                  {set_secret, "push-secret"},
                  {set_origins, "origin"},
                  {set_listen_empty, "listen"},
                  {set_listen_port, "listen"},
                  {set_listen_name, "listen"},
                  {set_listen_v6, "listen"},
                  {set_push_unix, "push"},
                  {set_push_fd, "push"},
                  {set_push_long, "push"}};
    uint8_t *memory = world_memory(WORLD_MEMORY);
    unsigned fds = fds_open();
    (void)state;
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        exportws_options o = small_options();
        char why[64] = "", want[64];
        wrongs[i].set(&o);
        snprintf(want, sizeof want, "out of range: %s", wrongs[i].name);
        if (exportws_memory(&o) != 0) fail_msg("row %zu: has a size, but wants %s", i, want);
        if (exportws_start(&o, memory, WORLD_MEMORY, why, sizeof why))
            fail_msg("row %zu: started, but wants %s", i, want);
        assert_string_equal(why, want);
    }
    assert_int_equal(exportws_memory(NULL), 0);
    assert_null(exportws_start(NULL, memory, WORLD_MEMORY, NULL, 0));
    assert_int_equal(fds_open(), fds);
}

/* Every bound itself is in range. */
static void options_at_their_bounds_are_fine(void **state)
{
    const char *origins[1] = {some_origin};
    exportws_options o = small_options();
    (void)state;
    o.per_token = o.per_address = o.queue = 1,
    o.max_token_bytes = o.max_message_bytes = o.max_push_bytes = 1;
    o.hold_ms = o.drain_ms = 0, o.ping_ms = o.pong_ms = o.handshake_timeout_ms = 1;
    o.close_timeout_ms = o.write_timeout_ms = 1;
    o.path = "/", o.heartbeat = "", o.origins = origins, o.origin_count = 1;
    assert_true(exportws_memory(&o) > 0);
    exportws *w = exportws_start(&o, world_memory(WORLD_MEMORY), WORLD_MEMORY, NULL, 0);
    assert_non_null(w);
    assert_null(audit_left(w, 0));
    exportws_end(w);
    o.capacity = o.handshakes = o.per_token = o.per_address = o.queue = 1000000, o.pushers = 100000;
    o.max_token_bytes = 1024, o.max_message_bytes = o.max_push_bytes = (size_t)1 << 30;
    o.hold_ms = o.ping_ms = o.pong_ms = o.handshake_timeout_ms = 86400000;
    o.close_timeout_ms = o.write_timeout_ms = o.drain_ms = 86400000;
    if (sizeof(size_t) > 4) assert_true(exportws_memory(&o) > (size_t)1 << 31);
    else assert_int_equal(exportws_memory(&o), 0);
}

/* ===== Doors, each call on the way failing ===== */

enum stale { STALE_NONE, STALE_SOCKET, STALE_IN_USE, STALE_FILE, STALE_DEAF };

/* How a server is started: addresses ("unix:" gets a path), and what stands at the client door's
 * path. */
static const struct start {
    const char *name, *listen, *push;
    enum stale stale;
    int fails; /* even without a fault */
} starts[] = {
    {"doors_shut", NULL, NULL, STALE_NONE, 0},
    {"tcp", "127.0.0.1:0", "localhost:0", STALE_NONE, 0},
    {"tcp_v6", "[::1]:0", NULL, STALE_NONE, 0},
    {"all_addresses", ":0", NULL, STALE_NONE, 0},
    {"unix", "unix:", "unix:", STALE_NONE, 0},
    {"unix_after_a_crash", "unix:", NULL, STALE_SOCKET, 0},
    {"unix_in_use", "unix:", "127.0.0.1:0", STALE_IN_USE, 1},
    {"unix_at_a_file", "unix:", NULL, STALE_FILE, 1},
    {"push_in_use", "unix:", "unix:", STALE_IN_USE, 1},
    {"descriptor", "fd:", "127.0.0.1:0", STALE_NONE, 0},
    {"no_descriptor", "fd:95", NULL, STALE_NONE, 1},
    {"descriptor_that_is_no_socket", "fd:0", NULL, STALE_NONE, 1},
    {"descriptor_that_does_not_listen", "fd:", NULL, STALE_DEAF, 1},
};

static char unix_paths[2][PATH_ROOM];

static int listen_unix(const char *path)
{
    struct sockaddr_un at = {0};
    int fd = __real_socket(AF_UNIX, SOCK_STREAM, 0);
    at.sun_family = AF_UNIX;
    snprintf(at.sun_path, sizeof at.sun_path, "%s", path);
    assert_int_equal(__real_bind(fd, (const struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(__real_listen(fd, 4), 0);
    return fd;
}

/* Puts what is stale to a path. Returns a descriptor to close, or -1. */
static int stale_make(enum stale stale, const char *path)
{
    int fd = -1;
    if (stale == STALE_FILE) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fclose(file);
    }
    if (stale == STALE_SOCKET || stale == STALE_IN_USE) fd = listen_unix(path);
    if (stale != STALE_SOCKET) return fd;
    __real_close(fd);
    return -1;
}

static int path_stands(const char *path)
{
    struct stat st;
    return __real_lstat(path, &st) == 0;
}

/* One start under `faults.plan`, and its end. */
struct attempt {
    const struct start *start;
    exportws_options o;
    exportws *w;
    char listen[PATH_ROOM + 8], push[PATH_ROOM + 8], why[160];
    int stale_fd, given_fd;
};

static const char *attempt_address(char *out, size_t size, const char *address, const char *path)
{
    if (address && strcmp(address, "unix:") == 0) snprintf(out, size, "unix:%s", path);
    else if (address) snprintf(out, size, "%s", address);
    return address ? out : NULL;
}

static void attempt_begin(struct attempt *a, const struct start *start)
{
    int second = strcmp(start->name, "push_in_use") == 0;
    memset(a, 0, sizeof *a);
    a->start = start;
    a->o = small_options();
    for (int i = 0; i < 2; i++) snprintf(unix_paths[i], PATH_ROOM, "%s/%d", world_folder(), i);
    a->o.listen = attempt_address(a->listen, sizeof a->listen, start->listen, unix_paths[0]);
    a->o.push = attempt_address(a->push, sizeof a->push, start->push, unix_paths[1]);
    for (int i = 0; i < 2; i++) __real_unlink(unix_paths[i]);
    a->stale_fd = stale_make(start->stale, unix_paths[second]);
    a->given_fd = -1;
    if (!start->listen || strcmp(start->listen, "fd:") != 0) return;
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/given", world_folder());
    a->given_fd = listen_unix(path);
    __real_unlink(path);
    if (start->stale == STALE_DEAF) {
        __real_close(a->given_fd);
        a->given_fd = __real_socket(AF_UNIX, SOCK_STREAM, 0);
    }
    snprintf(a->listen, sizeof a->listen, "fd:%d", a->given_fd);
}

/* Whether the server that was started answers at its client door. */
static int attempt_answers(struct attempt *a)
{
    union {
        struct sockaddr any;
        struct sockaddr_storage storage;
    } at;
    socklen_t size = sizeof at;
    char text[256] = "";
    if (a->w->doors[0].fd < 0) return exportws_step(a->w, 0) == 0;
    if (__real_getsockname(a->w->doors[0].fd, &at.any, &size) < 0) return 0;
    if (a->given_fd >= 0) return 1; /* its path is gone */
    int fd = __real_socket(at.any.sa_family, SOCK_STREAM, 0);
    if (__real_connect(fd, &at.any, size) == 0 &&
        __real_send(fd, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", 34, 0) == 34)
        for (int i = 0; i < 1000 && text[0] == '\0'; i++) {
            if (i > 1) __real_poll(NULL, 0, 1);
            exportws_step(a->w, 0);
            if (__real_recv(fd, text, sizeof text - 1, MSG_DONTWAIT) < 0) text[0] = '\0';
        }
    __real_close(fd);
    return strncmp(text, "HTTP/1.1 200 ", 13) == 0;
}

/* What has to be so after the end, whatever came before. NULL, or what is not. */
static const char *attempt_left(const struct attempt *a, int second)
{
    enum stale stale = a->start->stale;
    if (stale == STALE_IN_USE && !path_stands(unix_paths[second]))
        return "somebody else's socket was removed";
    if (stale == STALE_FILE && !path_stands(unix_paths[0]))
        return "a file that is no socket was removed";
    if (faults.plan.call == CALL_UNLINK && faults.injected > 0) return NULL;
    if (path_stands(unix_paths[!second]) && (stale == STALE_IN_USE || stale == STALE_NONE))
        return "a socket's file is left";
    if (path_stands(unix_paths[second]) && stale == STALE_NONE) return "a socket's file is left";
    return NULL;
}

static void attempt_clean(const struct attempt *a)
{
    if (a->stale_fd >= 0) __real_close(a->stale_fd);
    for (int i = 0; i < 2; i++) __real_unlink(unix_paths[i]);
}

/* What is wrong with how it came out, or NULL. */
static const char *attempt_wrong(struct attempt *a)
{
    if (a->w && a->why[0] != '\0') return "started, with a reason why not";
    if (a->w && a->start->fails) return "started";
    if (a->w && audit(a->w)) return audit(a->w);
    if (a->w) return attempt_answers(a) ? NULL : "started, but does not answer";
    if (!a->start->fails && faults.injected == 0) return "did not start";
    if (!strchr(a->why, ':')) return "no reason why";
    return strstr(a->why, strerror(0)) ? "the reason is success" : NULL;
}

/* Starts and ends once; name: of the run. The number of uses of each call is in `faults`. */
static void attempt_run(const struct start *start, const struct fault *plan, const char *name)
{
    static struct attempt a;
    unsigned fds = fds_open();
    faults_clear();
    attempt_begin(&a, start);
    faults.plan = *plan;
    size_t bytes = exportws_memory(&a.o);
    uint8_t *memory = world_memory(bytes);
    errno = 0;
    faults.inside = 1;
    a.w = exportws_start(&a.o, memory, bytes, a.why, sizeof a.why);
    faults.inside = 0;
    const char *wrong = attempt_wrong(&a);
    faults.inside = 1;
    exportws_end(a.w);
    faults.inside = 0;
    if (!wrong) wrong = attempt_left(&a, strcmp(start->name, "push_in_use") == 0);
    attempt_clean(&a);
    /* one that was handed over and not taken is the caller's; the number of all tells which */
    if (!a.w && a.given_fd >= 0 && fds_open() > fds) __real_close(a.given_fd);
    if (wrong) fail_msg("%s: %s: %s", name, wrong, a.why);
    if (fds_open() != fds) fail_msg("%s: %u descriptors before, %u after", name, fds, fds_open());
}

static const struct {
    unsigned call;
    int errors[6];
} start_errors[] = {
    {CALL_OPEN, {EMFILE, ENFILE, ENOMEM, EINTR, EACCES, ENOENT}},
    {CALL_READ, {EINTR, EAGAIN, EIO, FAULT_SHORT, FAULT_BYTE, 0}},
    {CALL_PIPE, {EMFILE, ENFILE, 0}},
    {CALL_FCNTL, {EINTR, ENOMEM, 0}},
    {CALL_SOCKET, {EMFILE, ENFILE, ENOBUFS, ENOMEM, EAFNOSUPPORT, EACCES}},
    {CALL_SETSOCKOPT, {ENOBUFS, ENOMEM, EINVAL, 0}},
    {CALL_BIND, {EADDRINUSE, EACCES, ENOBUFS, ENOMEM, EADDRNOTAVAIL, EINVAL}},
    {CALL_LISTEN, {EADDRINUSE, ENOBUFS, EACCES, 0}},
    {CALL_LSTAT, {ENOENT, EACCES, ENOMEM, 0}},
    {CALL_CONNECT, {EINTR, EAGAIN, ECONNREFUSED, EACCES, ETIMEDOUT, 0}},
    {CALL_UNLINK, {EACCES, ENOENT, EIO, 0}},
    {CALL_CLOSE, {EINTR, EIO, 0}},
    {CALL_GETSOCKOPT, {ENOBUFS, ENOMEM, 0}},
    {CALL_CLOCK, {EINVAL, 0}},
};

static void start_row(const struct start *start, unsigned call, int error, unsigned uses)
{
    for (unsigned n = 1; n <= uses; n++)
        for (int ever = 0; ever < 2; ever++) {
            char name[128];
            snprintf(name, sizeof name, "%s %s %u %s %s", start->name, fault_names[call], n,
                     fault_error_name(error), ever ? "ever" : "once");
            attempt_run(start, &(struct fault){call, n, ever ? UINT_MAX : 1, error}, name);
        }
}

static void start_survives_every_fault(void **state)
{
    const struct start *start = *state;
    const struct fault none = {0, 0, 0, 0};
    unsigned uses[CALLS];
    attempt_run(start, &none, start->name);
    memcpy(uses, faults.uses, sizeof uses);
    for (size_t i = 0; i < sizeof start_errors / sizeof *start_errors; i++)
        for (int k = 0; k < 6 && start_errors[i].errors[k] != 0; k++) {
            int error = start_errors[i].errors[k];
            /* where that says that nobody listens there, the path may be taken from who does */
            if (start->stale == STALE_IN_USE && start_errors[i].call == CALL_CONNECT &&
                error == ECONNREFUSED)
                continue;
            start_row(start, start_errors[i].call, error, uses[start_errors[i].call]);
        }
}

/* The reason names the address, and says what the system said. */
static void start_says_what_the_system_said(void **state)
{
    static const struct {
        unsigned call;
        int error;
        const char *before;
    } said[] = {{CALL_OPEN, EMFILE, "cannot read /dev/urandom: "},
                {CALL_PIPE, ENFILE, "cannot start: "},
                {CALL_READ, EIO, "cannot read /dev/urandom: "},
                {CALL_FCNTL, EINVAL, "cannot start: "},
                {CALL_SOCKET, EMFILE, "cannot listen on 127.0.0.1:0: "},
                {CALL_BIND, EACCES, "cannot listen on 127.0.0.1:0: "},
                {CALL_LISTEN, EADDRINUSE, "cannot listen on 127.0.0.1:0: "}};
    (void)state;
    for (size_t i = 0; i < sizeof said / sizeof *said; i++) {
        exportws_options o = small_options();
        size_t bytes = exportws_memory(&o);
        char why[128] = "", want[128];
        faults_clear();
        faults.plan = (struct fault){said[i].call, 1, 1, said[i].error};
        o.listen = "127.0.0.1:0";
        uint8_t *memory = world_memory(bytes);
        faults.inside = 1;
        assert_null(exportws_start(&o, memory, bytes, why, sizeof why));
        faults.inside = 0;
        snprintf(want, sizeof want, "%s%s", said[i].before, strerror(said[i].error));
        assert_string_equal(why, want);
    }
}

/* Where the machine has no IPv6, ":PORT" means all IPv4 addresses. */
static void all_addresses_without_ipv6(void **state)
{
    static const int errors[] = {EAFNOSUPPORT, EADDRNOTAVAIL};
    static const unsigned calls[] = {CALL_SOCKET, CALL_BIND};
    (void)state;
    for (int i = 0; i < 2; i++) {
        exportws_options o = small_options();
        size_t bytes = exportws_memory(&o);
        char why[128] = "", address[64];
        o.listen = ":0";
        faults_clear();
        faults.plan = (struct fault){calls[i], 1, 1, errors[i]};
        uint8_t *memory = world_memory(bytes);
        faults.inside = 1;
        exportws *w = exportws_start(&o, memory, bytes, why, sizeof why);
        faults.inside = 0;
        if (!w) fail_msg("%s", why);
        assert_true(exportws_address(w, EXPORTWS_CLIENTS, address, sizeof address) > 8);
        assert_memory_equal(address, "0.0.0.0:", 8);
        faults.plan = (struct fault){CALL_GETSOCKNAME, 1, 1, ENOBUFS};
        assert_int_equal(INSIDE(exportws_address(w, EXPORTWS_CLIENTS, address, sizeof address)),
                         EXPORTWS_ABSENT);
        assert_int_equal(exportws_address(w, EXPORTWS_PUSH, address, sizeof address),
                         EXPORTWS_ABSENT);
        exportws_end(w);
    }
}

/* Somebody listens there, and as many wait at his door as may: that is told at once. */
static void start_does_not_queue_at_a_crowded_socket(void **state)
{
    int waiting[64], n = 0;
    struct sockaddr_un at = {0};
    exportws_options o = small_options();
    size_t bytes = exportws_memory(&o);
    char address[PATH_ROOM + 8], why[160] = "";
    (void)state;
    faults_clear();
    snprintf(unix_paths[0], PATH_ROOM, "%s/0", world_folder());
    snprintf(address, sizeof address, "unix:%s", unix_paths[0]);
    int fd = listen_unix(unix_paths[0]);
    assert_int_equal(__real_getsockname(fd, (struct sockaddr *)&at, &(socklen_t){sizeof at}), 0);
    for (int error = 0; error == 0; n++) {
        assert_true(n < 64);
        waiting[n] = __real_socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(__real_fcntl(waiting[n], F_SETFL, O_NONBLOCK), 0);
        error = __real_connect(waiting[n], (const struct sockaddr *)&at, sizeof at);
    }
    o.listen = address, o.push = NULL;
    alarm(20); /* else it waits for ever */
    assert_null(exportws_start(&o, world_memory(bytes), bytes, why, sizeof why));
    alarm(0);
    assert_non_null(strstr(why, strerror(EADDRINUSE)));
    assert_true(path_stands(unix_paths[0]));
    while (n > 0) __real_close(waiting[--n]);
    __real_close(fd);
    __real_unlink(unix_paths[0]);
}

/* Whatever is connected when it ends is closed, and the file of its socket goes. */
static void end_closes_everything(void **state)
{
    static struct world s;
    (void)state;
    for (int error = 0; error < 3; error++) {
        faults_clear();
        world_init(&s, "end");
        world_doors(&s);
        world_start(&s);
        struct peer *a = world_join(&s, "a"), *silent = world_dial(&s, EXPORTWS_CLIENTS),
                    *p = world_pusher(&s);
        a->deaf = 1;
        exportws_send(s.w, "a", "m1", 2, EXPORTWS_TEXT),
            exportws_send(s.w, "x", "m1", 2, EXPORTWS_TEXT);
        exportws_kick(s.w, "a");
        peer_post(p, "a", "m");
        world_settle(&s);
        if (error > 0)
            faults.plan = (struct fault){CALL_CLOSE, 1, UINT_MAX, error == 1 ? EINTR : EIO};
        faults.inside = 1;
        exportws_end(s.w);
        faults.inside = 0;
        s.w = NULL;
        a->deaf = 0;
        peer_pump(a), peer_pump(silent), peer_pump(p);
        assert_true(a->ended && silent->ended && p->ended);
        world_end(&s);
        if (s.wrong[0] != '\0') fail_msg("%s", s.wrong);
    }
    exportws_end(NULL);
}

enum { STARTS = sizeof starts / sizeof *starts, OTHERS = 9 };

int main(int argc, char **argv)
{
    static struct CMUnitTest tests[STARTS + OTHERS] = {
        cmocka_unit_test(start_with_every_size),
        cmocka_unit_test(start_with_every_misalignment),
        cmocka_unit_test(start_says_why_in_what_room_there_is),
        cmocka_unit_test(options_out_of_range_are_named),
        cmocka_unit_test(options_at_their_bounds_are_fine),
        cmocka_unit_test(start_says_what_the_system_said),
        cmocka_unit_test(all_addresses_without_ipv6),
        cmocka_unit_test(start_does_not_queue_at_a_crowded_socket),
        cmocka_unit_test(end_closes_everything),
    };
    for (size_t i = 0; i < STARTS; i++)
        tests[OTHERS + i] = (struct CMUnitTest){starts[i].name, start_survives_every_fault, NULL,
                                                NULL, (void *)(uintptr_t)&starts[i]};
    if (argc > 1) cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests_name("start", tests, NULL, world_folder_remove);
}
