/*
 * test_rfc6455.c - every MUST and SHOULD of RFC 6455 for a server, as a named row over a socket.
 *
 * A row is its own cmocka test, named after the section it follows. The rows of a table share one
 * server and one control session: after each row the control session is served as before, and
 * /metrics has counted exactly what the row did, so that opened - sum(closed) == sessions.
 *
 * Frames go to test/echo.c, which shows what the server made of them; the handshake and the closes
 * that the server begins are those of the program itself. $EXPORTWS_ECHO is the echo server (words
 * are split as in $EXPORTWS); default: "echo" in the folder of this binary.
 */
#include "server.h"

#define COUNT(rows) (sizeof(rows) / sizeof *(rows))

/* ===== A server, a control session, and what /metrics must say ===== */

enum { BY_PEER, BY_PROTOCOL, BY_ENDED, REASONS };

static const char *const reason_metrics[REASONS] = {
    "exportws_sessions_closed_total{reason=\"peer\"}",
    "exportws_sessions_closed_total{reason=\"protocol\"}",
    "exportws_sessions_closed_total{reason=\"ended\"}",
};

/* What the rows of a table share. */
static struct fixture {
    const char *program;            /* NULL: the server under test */
    const char *const *args;
    struct server server;
    struct peer control;
    long long opened, closed[REASONS], received, refused;
    int running, whole;             /* whole: the last row came to its end */
} fx;

static char echo_program[1024];

/* Starts fx.program; $EXPORTWS is put back. */
static void program_start(void)
{
    char *usual = getenv("EXPORTWS");
    char copy[1024];
    snprintf(copy, sizeof copy, "%s", usual ? usual : "");
    if (fx.program != NULL)
        setenv("EXPORTWS", fx.program, 1);
    server_start(&fx.server, fx.args);
    if (usual != NULL)
        setenv("EXPORTWS", copy, 1);
    else
        unsetenv("EXPORTWS");
}

/* A server for the next row: that of the row before, unless that one failed. */
static int row_setup(void **state)
{
    (void)state;
    if (!fx.running || !fx.whole) {
        server_kill_all();
        conn_close(&fx.control.c);
        fx.opened = fx.received = fx.refused = 0;
        memset(fx.closed, 0, sizeof fx.closed);
        program_start();
        peer_open(&fx.server, &fx.control, "control", NULL);
        fx.opened = 1;
        fx.running = 1;
    }
    fx.whole = 0;
    return 0;
}

/* In the end the server stops as it should. */
static int table_teardown(void **state)
{
    (void)state;
    fx.running = 0;
    if (fx.whole) {
        peer_leave(&fx.control);
        server_stop(&fx.server);
    }
    server_kill_all();
    conn_close(&fx.control.c);
    return 0;
}

/* The counters are what the rows have made them; the control session is the only one. */
static void books_check(void)
{
    struct reply r;
    long long closed = 0;
    size_t i;
    server_page(&fx.server, "/metrics", &r);
    for (i = 0; i < REASONS; i++) {
        assert_int_equal(metric_in(r.body, reason_metrics[i]), fx.closed[i]);
        closed += fx.closed[i];
    }
    assert_int_equal(metric_sum_in(r.body, "exportws_sessions_closed_total"), closed);
    assert_int_equal(metric_in(r.body, "exportws_sessions_opened_total"), fx.opened);
    assert_int_equal(metric_in(r.body, "exportws_sessions"), 1);
    assert_int_equal(fx.opened - closed, 1);
    assert_int_equal(metric_in(r.body, "exportws_messages_received_total"), fx.received);
    assert_int_equal(metric_sum_in(r.body, "exportws_refused_total"), fx.refused);
}

/* What every row ends with. */
static void row_done(void)
{
    peer_expect_alive(&fx.control);
    books_check();
    fx.whole = 1;
}

/*
 * Returns when the server has read all that was sent before: two rounds of the control session,
 * since the first may be answered in a turn whose poll() was earlier than our bytes.
 */
static void server_settle(void)
{
    peer_expect_alive(&fx.control);
    peer_expect_alive(&fx.control);
}

/* Sends bytes in segments of `piece`, each read before the next is sent when `settled`. */
static void segments_send(struct peer *p, const unsigned char *bytes, size_t n, size_t piece,
                          int settled)
{
    size_t at, size;
    for (at = 0; at < n; at += size) {
        size = n - at < piece ? n - at : piece;
        if (peer_send_raw(p, bytes + at, size) != 0)
            return;                 /* the server has closed: what it said is still to be read */
        if (settled)
            server_settle();
    }
}

/* Sends two segments; the server has read the first before the second comes. */
static void segments_cut(struct peer *p, const unsigned char *bytes, size_t n, size_t cut)
{
    segments_send(p, bytes, cut, cut, 1);
    segments_send(p, bytes + cut, n - cut, n - cut + 1, 0);
}

static void row_open(struct peer *p)
{
    peer_open(&fx.server, p, "row", NULL);
    fx.opened++;
}

/* The session is as it should be: it answers, and leaves in good order. */
static void row_leave(struct peer *p)
{
    peer_expect_alive(p);
    peer_leave(p);
    fx.closed[BY_PEER]++;
}

/* The next frame is a close with this code, whose reason is text; then the connection ends. */
static void row_fails(struct peer *p, int code)
{
    peer_expect_close(p, code);
    peer_expect_eof(p);
    peer_close(p);
    fx.closed[BY_PROTOCOL]++;
}

/* Tests made of the rows of a table, each with the row as its state. */
static struct tests {
    struct CMUnitTest tests[512];
    const void *rows[512];          /* each test's initial state points to one */
    size_t n;
} tests;

static void tests_add(const char *name, CMUnitTestFunction run, const void *row)
{
    struct CMUnitTest *t = &tests.tests[tests.n];
    assert_true(tests.n < COUNT(tests.tests));
    tests.rows[tests.n] = row;
    t->name = name;
    t->test_func = run;
    t->setup_func = row_setup;
    t->teardown_func = NULL;
    t->initial_state = &tests.rows[tests.n];
    tests.n++;
}

/* Runs what was added against a program; the number that failed. */
static int tests_run(const char *name, const char *program, const char *const *args)
{
    size_t n = tests.n;
    fx.program = program;
    fx.args = args;
    tests.n = 0;
    return _cmocka_run_group_tests(name, tests.tests, n, NULL, table_teardown);
}

/* The row that a test was made for. */
static const void *row_of(void **state)
{
    return *(const void *const *)*state;
}

/* ===== Scripts of frames ===== */

/*
 * A script is a list of frames FIRST[MODE]:PAYLOAD, a blank between two.
 *
 *     FIRST    the frame's first byte (FIN, RSV, opcode) in hex
 *     MODE     u        unmasked
 *              w W      the length in 16 or 64 bits, whatever it is
 *              =N       this length, whatever the payload's
 *              kHHHHHHHH    this masking key
 *     PAYLOAD  'text' and hex bytes; each may be repeated: 'x'*125 00*65536
 */
struct bytes {
    unsigned char *p;
    size_t n, size;
};

struct spec {
    int first, masked, length_bytes;    /* -1: as few as will do */
    unsigned long long length;          /* ULLONG_MAX: the payload's */
    uint32_t key;
    struct bytes payload;
};

static void bytes_add(struct bytes *b, const void *p, size_t n)
{
    if (b->n + n > b->size) {
        b->size = 2 * (b->n + n) + 64;
        b->p = realloc(b->p, b->size);
        if (b->p == NULL)
            harness_fail("out of memory");
    }
    if (n > 0)
        memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void bytes_free(struct bytes *b)
{
    free(b->p);
    memset(b, 0, sizeof *b);
}

static unsigned hex_read(const char *s, size_t digits)
{
    char text[9];
    char *end;
    unsigned value;
    snprintf(text, sizeof text, "%.*s", (int)digits, s);
    value = (unsigned)strtoul(text, &end, 16);
    if (end != text + digits)
        harness_fail("bad script: wanted hex at '%s'", s);
    return value;
}

/* Reads a payload up to a blank or the end; returns where it ends. */
static const char *payload_read(const char *s, struct bytes *to)
{
    unsigned char piece[64];
    while (*s != '\0' && *s != ' ') {
        unsigned char one;
        size_t at = to->n, n;
        unsigned long times = 1;
        char *end;
        if (*s == '\'') {
            n = strcspn(s + 1, "'");
            assert_true(n <= sizeof piece);
            bytes_add(to, s + 1, n);
            s += n + 2;
        } else {
            one = (unsigned char)hex_read(s, 2);
            bytes_add(to, &one, 1);
            s += 2;
        }
        if (*s == '*') {
            times = strtoul(s + 1, &end, 10);
            s = end;
        }
        for (n = to->n - at; times > 1; times--)
            bytes_add(to, memcpy(piece, to->p + at, n), n);
    }
    return s;
}

/* Reads the next frame of a script: where it ends, or NULL at the script's end. */
static const char *spec_read(const char *s, struct spec *f)
{
    char *end;
    memset(f, 0, sizeof *f);
    s += strspn(s, " ");
    if (*s == '\0')
        return NULL;
    f->first = (int)hex_read(s, 2);
    f->masked = 1, f->length_bytes = -1, f->length = ULLONG_MAX, f->key = 0x37fa213du;
    for (s += 2; *s != ':'; s++) {
        if (*s == 'u')
            f->masked = 0;
        else if (*s == 'w' || *s == 'W')
            f->length_bytes = *s == 'w' ? 2 : 8;
        else if (*s == 'k')
            f->key = hex_read(s + 1, 8), s += 8;
        else if (*s == '=')
            f->length = strtoull(s + 1, &end, 0), s = end - 1;
        else
            harness_fail("bad script at '%s'", s);
    }
    return payload_read(s + 1, &f->payload);
}

/* Writes a frame as its spec says, right or wrong. */
static void spec_build(const struct spec *f, struct bytes *to)
{
    unsigned char head[14];
    unsigned long long length = f->length == ULLONG_MAX ? f->payload.n : f->length;
    int extra = f->length_bytes >= 0 ? f->length_bytes : length < 126 ? 0 : length < 65536 ? 2 : 8;
    int n = 2, i;
    size_t k;
    head[0] = (unsigned char)f->first;
    head[1] = (unsigned char)((f->masked ? 0x80 : 0) | (extra == 0   ? (int)length
                                                        : extra == 2 ? 126
                                                                     : 127));
    for (i = extra - 1; i >= 0; i--)
        head[n++] = (unsigned char)(length >> (8 * i) & 0xff);
    for (i = 3; i >= 0 && f->masked; i--)
        head[n++] = (unsigned char)(f->key >> (8 * i) & 0xff);
    bytes_add(to, head, (size_t)n);
    bytes_add(to, f->payload.p, f->payload.n);
    for (k = 0; k < f->payload.n && f->masked; k++)
        to->p[to->n - f->payload.n + k] ^= (unsigned char)(f->key >> (24 - 8 * (k & 3)) & 0xff);
}

/* All frames of a script, ready to be sent. */
static void script_build(const char *script, struct bytes *to)
{
    struct spec f;
    while ((script = spec_read(script, &f)) != NULL) {
        spec_build(&f, to);
        bytes_free(&f.payload);
    }
}

/* A close frame's payload: nothing, or this code and a reason that is UTF-8 (here: ASCII). */
static void close_check(const struct frame *f, const struct bytes *want)
{
    size_t i;
    assert_int_equal(f->size >= 2 ? f->data[0] << 8 | f->data[1] : (int)f->size,
                     want->n >= 2 ? want->p[0] << 8 | want->p[1] : 0);
    for (i = 2; i < f->size; i++)
        assert_true(f->data[i] >= ' ' && f->data[i] < 0x7f);
}

/* The next frames are exactly those of a script (of a close only the code); 1: the last closed. */
static int script_expect(struct peer *p, const char *script)
{
    struct spec want;
    struct frame got;
    int closed = 0, result;
    while ((script = spec_read(script, &want)) != NULL) {
        result = peer_read_frame(p, &got, deadline_usual());
        if (result != READ_OK)
            harness_fail("wanted a frame %02x, got %s", (unsigned)want.first, read_name(result));
        if (want.first != (got.fin << 7 | got.opcode))
            harness_fail("wanted a frame %02x, got %02x: %.*s", (unsigned)want.first,
                         (unsigned)(got.fin << 7 | got.opcode), (int)(got.size & 127),
                         (const char *)got.data);
        closed = got.opcode == OP_CLOSE;
        if (closed)
            close_check(&got, &want.payload);
        else if (got.size != want.payload.n ||
                 (got.size > 0 && memcmp(got.data, want.payload.p, got.size) != 0))
            harness_fail("wanted %lu other bytes in frame %02x, got %lu: %.*s",
                         (unsigned long)want.payload.n, (unsigned)want.first,
                         (unsigned long)got.size, (int)(got.size & 127), (const char *)got.data);
        fx.received += want.first == 0x81 || want.first == 0x82;
        bytes_free(&want.payload);
    }
    return closed;
}

/* ===== Rows of frames ===== */

enum { STAYS, FAILS, LEAVES, BABBLES }; /* BABBLES: closes, and sends on */

struct row {
    const char *name, *send, *want;
    int ending;
};

static const struct row frame_rows[] = {
    /* 5.2: the length */
    {"5.2: length 0", "81: 82:", "81: 82:", STAYS},
    {"5.2: length 1", "81:'x' 82:00", "81:'x' 82:00", STAYS},
    {"5.2: length 125", "81:'x'*125 82:ff*125", "81:'x'*125 82:ff*125", STAYS},
    {"5.2: length 126", "81:'x'*126 82:ff*126", "81:'x'*126 82:ff*126", STAYS},
    {"5.2: length 127", "81:'x'*127", "81:'x'*127", STAYS},
    {"5.2: length 65535", "81:'x'*65535", "81:'x'*65535", STAYS},
    {"5.2: length 65536", "82:a5*65536", "82:a5*65536", STAYS},
    {"5.2: 16 bits for length 0", "81w:", "88:03ea", FAILS},
    {"5.2: 16 bits for length 125", "82w:00*125", "88:03ea", FAILS},
    {"5.2: 64 bits for length 0", "82W:", "88:03ea", FAILS},
    {"5.2: 64 bits for length 125", "81W:'x'*125", "88:03ea", FAILS},
    {"5.2: 64 bits for length 126", "81W:'x'*126", "88:03ea", FAILS},
    {"5.2: 64 bits for length 65535", "82W:00*65535", "88:03ea", FAILS},
    {"5.2: 16 bits for length 1 of a fragment", "01:'a' 80w:'b'", "88:03ea", FAILS},
    {"5.2: bit 63 alone", "82=0x8000000000000000:", "88:03ea", FAILS},
    {"5.2: bit 63 and all others", "82W=0xfffffffffffffffe:", "88:03ea", FAILS},
    {"5.2: bit 63 and a small length", "82=0x8000000000000001:00", "88:03ea", FAILS},
    {"5.2: the largest length there is", "82=0x7fffffffffffffff:00", "88:03f1", FAILS},
    {"5.2: length 2 to the 32 and a bit", "82=0x100000005:'hello'", "88:03f1", FAILS},
    {"5.2: length 2 to the 31", "81=0x80000000:'hello'", "88:03f1", FAILS},
    /* 5.2, 5.8, 9.1: reserved bits, of no extension */
    {"5.2: RSV1 on a text", "c1:'x'", "88:03ea", FAILS},
    {"5.2: RSV2 on a text", "a1:'x'", "88:03ea", FAILS},
    {"5.2: RSV3 on a text", "91:'x'", "88:03ea", FAILS},
    {"5.2: all RSV on a binary", "f2:'x'", "88:03ea", FAILS},
    {"5.2: RSV1 on a first fragment", "41:'x' 80:'y'", "88:03ea", FAILS},
    {"5.2: RSV1 on a continuation", "01:'x' c0:'y'", "88:03ea", FAILS},
    {"5.2: RSV3 on a continuation between", "01:'x' 10:'y' 80:'z'", "88:03ea", FAILS},
    {"5.2: RSV1 on a ping", "c9:'x'", "88:03ea", FAILS},
    {"5.2: RSV2 on a pong", "aa:", "88:03ea", FAILS},
    {"5.2: RSV3 on a close", "98:03e8", "88:03ea", FAILS},
    {"5.2: RSV1 after good frames", "81:'a' 89:'b' c1:'c'", "81:'a' 8a:'b' 88:03ea", FAILS},
    /* 5.2: reserved opcodes */
    {"5.2: opcode 3", "83:'x'", "88:03ea", FAILS},
    {"5.2: opcode 4", "84:", "88:03ea", FAILS},
    {"5.2: opcode 5", "85:'x'", "88:03ea", FAILS},
    {"5.2: opcode 6", "86:", "88:03ea", FAILS},
    {"5.2: opcode 7", "87:'x'", "88:03ea", FAILS},
    {"5.2: opcode 11", "8b:'x'", "88:03ea", FAILS},
    {"5.2: opcode 12", "8c:", "88:03ea", FAILS},
    {"5.2: opcode 13", "8d:'x'", "88:03ea", FAILS},
    {"5.2: opcode 14", "8e:", "88:03ea", FAILS},
    {"5.2: opcode 15", "8f:'x'", "88:03ea", FAILS},
    {"5.2: opcode 3 without FIN", "03:'x'", "88:03ea", FAILS},
    {"5.2: opcode 11 without FIN", "0b:'x'", "88:03ea", FAILS},
    {"5.2: opcode 3 within a message", "01:'a' 83:'b'", "88:03ea", FAILS},
    {"5.2: opcode 15 within a message", "01:'a' 8f:'b'", "88:03ea", FAILS},
    /* 5.1, 5.3, 10.3: a client masks */
    {"5.1: unmasked text", "81u:'x'", "88:03ea", FAILS},
    {"5.1: unmasked empty text", "81u:", "88:03ea", FAILS},
    {"5.1: unmasked binary", "82u:'x'*200", "88:03ea", FAILS},
    {"5.1: unmasked first fragment", "01u:'x' 80:'y'", "88:03ea", FAILS},
    {"5.1: unmasked continuation", "01:'x' 80u:'y'", "88:03ea", FAILS},
    {"5.1: unmasked ping", "89u:'x'", "88:03ea", FAILS},
    {"5.1: unmasked empty ping", "89u:", "88:03ea", FAILS},
    {"5.1: unmasked pong", "8au:'x'", "88:03ea", FAILS},
    {"5.1: unmasked close", "88u:03e8", "88:03ea", FAILS},
    {"5.1: unmasked after masked", "81:'a' 81u:'b'", "81:'a' 88:03ea", FAILS},
    {"5.3: masking key of zeros", "81k00000000:'clear'", "81:'clear'", STAYS},
    {"5.3: masking key of ones", "81kffffffff:'inverse'", "81:'inverse'", STAYS},
    {"5.3: masking key with four bytes of its own", "82k01020408:00*9", "82:00*9", STAYS},
    {"5.3: a new masking key for each frame",
     "01k11223344:'abcde' 00kdeadbeef:'fghij' 89k00ff00ff:'ping' 80k80000001:'k'",
     "8a:'ping' 81:'abcdefghijk'", STAYS},
    {"5.3: the key is applied afresh in each frame", "02:'abc' 00:'defgh' 80:'ij'",
     "82:'abcdefghij'", STAYS},
    /* 5.4: fragmentation */
    {"5.4: two fragments of a text", "01:'Hel' 80:'lo'", "81:'Hello'", STAYS},
    {"5.4: two fragments of a binary", "02:00ff 80:fe", "82:00fffe", STAYS},
    {"5.4: four fragments", "01:'a' 00:'b' 00:'c' 80:'d'", "81:'abcd'", STAYS},
    {"5.4: first fragment empty", "01: 80:'x'", "81:'x'", STAYS},
    {"5.4: middle fragments empty", "01:'x' 00: 00: 80:'y'", "81:'xy'", STAYS},
    {"5.4: last fragment empty", "01:'x' 80:", "81:'x'", STAYS},
    {"5.4: all fragments empty", "02: 00: 80:", "82:", STAYS},
    {"5.4: large fragments", "01:'x'*30000 00:'y'*30000 80:'z'*5536",
     "81:'x'*30000'y'*30000'z'*5536", STAYS},
    {"5.4: a fragmented message after another", "01:'a' 80:'b' 02:'c' 80:'d'", "81:'ab' 82:'cd'",
     STAYS},
    {"5.4: ping between fragments", "01:'a' 89:'p' 80:'b'", "8a:'p' 81:'ab'", STAYS},
    {"5.4: pings between all fragments", "01: 89:'1' 00:'a' 89:'2' 00: 89:'3' 80:'b' 89:'4'",
     "8a:'1' 8a:'2' 8a:'3' 81:'ab' 8a:'4'", STAYS},
    {"5.4: pong between fragments", "01:'a' 8a:'p' 80:'b'", "81:'ab'", STAYS},
    {"5.4: largest ping between fragments", "01:'a' 89:'p'*125 80:'b'", "8a:'p'*125 81:'ab'",
     STAYS},
    {"5.4: close between fragments ends the message too", "01:'a' 88:03e8", "88:03e8", LEAVES},
    {"5.4: close in the place of a continuation", "02:00 00:00 88:0fa0", "88:0fa0", LEAVES},
    {"5.4: continuation of nothing", "80:'x'", "88:03ea", FAILS},
    {"5.4: empty continuation of nothing", "80:", "88:03ea", FAILS},
    {"5.4: continuation of nothing, to be continued", "00:'x'", "88:03ea", FAILS},
    {"5.4: continuation of a complete message", "81:'a' 80:'b'", "81:'a' 88:03ea", FAILS},
    {"5.4: continuation of a completed message", "01:'a' 80:'b' 80:'c'", "81:'ab' 88:03ea", FAILS},
    {"5.4: continuation after a ping only", "89:'a' 80:'b'", "8a:'a' 88:03ea", FAILS},
    {"5.4: text within a text", "01:'a' 81:'b'", "88:03ea", FAILS},
    {"5.4: empty text within a text", "01: 81:", "88:03ea", FAILS},
    {"5.4: fragmented text within a text", "01:'a' 01:'b' 80:'c'", "88:03ea", FAILS},
    {"5.4: binary within a text", "01:'a' 82:'b' 80:'c'", "88:03ea", FAILS},
    {"5.4: text within a binary", "02:00 00:00 81:'b'", "88:03ea", FAILS},
    {"5.4: text within a text, a ping between", "01:'a' 89: 81:'b'", "8a: 88:03ea", FAILS},
    /* 5.5: control frames */
    {"5.5: ping of 125 bytes", "89:'x'*125", "8a:'x'*125", STAYS},
    {"5.5: ping of 126 bytes", "89:'x'*126", "88:03ea", FAILS},
    {"5.5: ping of 65536 bytes", "89:'x'*65536", "88:03ea", FAILS},
    {"5.5: pong of 126 bytes", "8a:'x'*126", "88:03ea", FAILS},
    {"5.5: close of 126 bytes", "88:03e8'x'*124", "88:03ea", FAILS},
    {"5.5: ping of 5 bytes, length in 16 bits", "89w:'hello'", "88:03ea", FAILS},
    {"5.5: ping of 5 bytes, length in 64 bits", "89W:'hello'", "88:03ea", FAILS},
    {"5.5: close with the length in 16 bits", "88w:03e8", "88:03ea", FAILS},
    {"5.5: ping of 126 bytes within a message", "01:'a' 89:'x'*126", "88:03ea", FAILS},
    {"5.5: fragmented ping", "09:'a' 80:'b'", "88:03ea", FAILS},
    {"5.5: fragmented empty ping", "09: 80:", "88:03ea", FAILS},
    {"5.5: fragmented pong", "0a:'a' 80:'b'", "88:03ea", FAILS},
    {"5.5: fragmented close", "08:03 80:e8", "88:03ea", FAILS},
    {"5.5: fragmented ping within a message", "01:'a' 09:'b' 80:'c'", "88:03ea", FAILS},
    /* 5.5.2, 5.5.3: ping and pong */
    {"5.5.2: empty ping", "89:", "8a:", STAYS},
    {"5.5.2: ping of bytes that are no text", "89:00fffe0d0aed", "8a:00fffe0d0aed", STAYS},
    {"5.5.2: each of many pings", "89:'1' 89:'2' 89:'3' 89: 89:'5'",
     "8a:'1' 8a:'2' 8a:'3' 8a: 8a:'5'", STAYS},
    {"5.5.2: pongs and echoes keep their order", "81:'a' 89:'b' 82:'c' 89:'d'",
     "81:'a' 8a:'b' 82:'c' 8a:'d'", STAYS},
    {"5.5.3: a pong nobody asked for", "8a:'x' 8a: 8a:'y'*125", "", STAYS},
    {"5.5.3: pong, then ping", "8a:'x' 89:'x'", "8a:'x'", STAYS},
    /* 5.6: data frames */
    {"5.6: binary need not be text", "82:ff00fe80c0", "82:ff00fe80c0", STAYS},
    {"5.6: a binary's fragments need not be text", "02:ff 80:c0", "82:ffc0", STAYS},
    {"5.6: text may have any character", "81:00090a0d7f'\"\\'", "81:00090a0d7f'\"\\'", STAYS},
    {"5.6: a text and a binary of the same bytes", "81:'same' 82:'same'", "81:'same' 82:'same'",
     STAYS},
    /* 5.5.1, 7.1, 7.4: close */
    {"5.5.1: empty close", "88:", "88:", LEAVES},
    {"5.5.1: close of 1 byte", "88:03", "88:03ea", FAILS},
    {"5.5.1: close of 2 bytes", "88:03e8", "88:03e8", LEAVES},
    {"5.5.1: close with the longest reason", "88:03e8'x'*123", "88:03e8", LEAVES},
    {"5.5.1: close with a reason in UTF-8", "88:03e9c3bce282acf09f9880", "88:03e9", LEAVES},
    {"5.5.1: close after messages", "81:'a' 82:'b' 88:0bb8'bye'", "81:'a' 82:'b' 88:0bb8", LEAVES},
    {"5.5.1: reason with a lone continuation byte", "88:03e8'a'80", "88:03ef", FAILS},
    {"5.5.1: reason with a surrogate", "88:03e8eda080", "88:03ef", FAILS},
    {"5.5.1: reason with an overlong slash", "88:03e8c0af", "88:03ef", FAILS},
    {"5.5.1: reason above U+10FFFF", "88:03e8f4908080", "88:03ef", FAILS},
    {"5.5.1: reason cut in a character", "88:03e8'abc'e282", "88:03ef", FAILS},
    {"5.5.1: bad code and bad reason", "88:03e7ff", "88:03ea", FAILS},
    {"5.5.1: a text after close is not heard", "88:03e8 81:'late'", "88:03e8", BABBLES},
    {"5.5.1: a binary after close is not heard", "88: 82:'late'", "88:", BABBLES},
    {"5.5.1: a ping after close is not heard", "88:03e8 89:'late'", "88:03e8", BABBLES},
    {"5.5.1: a second close is not answered", "88:03e8 88:03e9", "88:03e8", BABBLES},
    {"5.5.1: nonsense after close is not heard", "88:03e8 ff:'x' 81u:'y'", "88:03e8", BABBLES},
    {"5.5.1: a continuation after close is not heard", "01:'a' 88:03e8 80:'b'", "88:03e8", BABBLES},
    {"7.1.7: frames before the bad one are answered", "81:'a' 89:'b' 80:'c'",
     "81:'a' 8a:'b' 88:03ea", FAILS},
    {"7.1.7: nothing after the bad one is", "80: 81:'a' 89:'b' 88:03e8", "88:03ea", FAILS},
    /* 10.4: a limit on the message, whatever it is made of (--max-message 65536) */
    {"10.4: longest message in one frame", "82:00*65536", "82:00*65536", STAYS},
    {"10.4: one more", "82:00*65537", "88:03f1", FAILS},
    {"10.4: one more, of text", "81:'x'*65537", "88:03f1", FAILS},
    {"10.4: too long by its head alone", "82=65537:", "88:03f1", FAILS},
    {"10.4: longest message in fragments", "02:00*40000 00:00*25535 80:00", "82:00*65536", STAYS},
    {"10.4: longest message, empty fragments behind", "02:00*65536 00: 00: 80:", "82:00*65536",
     STAYS},
    {"10.4: one more by the last fragment", "02:00*65536 80:00", "88:03f1", FAILS},
    {"10.4: one more in the middle", "01:'x'*65535 00:'y' 00:'z' 80:", "88:03f1", FAILS},
    {"10.4: too long by a fragment's head alone", "02:00 00=65536:", "88:03f1", FAILS},
    {"10.4: the limit is each message's own", "82:00*65536 81:'x'*65536",
     "82:00*65536 81:'x'*65536", STAYS},
    {"10.4: control frames between do not count", "02:00*65535 89:'x'*125 80:00",
     "8a:'x'*125 82:00*65536", STAYS},
};

/* How a row's bytes go out. */
enum delivery { IN_ONE, BYTEWISE, SETTLED, IN_TWO };

static void row_send(struct peer *p, const struct bytes *b, enum delivery how, size_t cut)
{
    switch (how) {
    case IN_ONE: segments_send(p, b->p, b->n, b->n + 1, 0); return;
    case BYTEWISE: segments_send(p, b->p, b->n, b->n > 2000 ? 1000 : 1, 0); return;
    case SETTLED: segments_send(p, b->p, b->n, 1, 1); return;
    case IN_TWO: segments_cut(p, b->p, b->n, cut); return;
    }
}

/* One run of a row on a session of its own. */
static void frame_row_run(const struct row *row, const struct bytes *b, enum delivery how,
                          size_t cut)
{
    struct peer p;
    int got;
    row_open(&p);
    row_send(&p, b, how, cut);
    if (!script_expect(&p, row->want)) {
        assert_int_equal(row->ending, STAYS);
        row_leave(&p);
        return;
    }
    assert_int_not_equal(row->ending, STAYS);
    got = p.c.end > p.c.start ? READ_OK : conn_fill(&p.c, deadline_usual());
    if (got != READ_EOF && (row->ending != BABBLES || got != READ_RESET))
        harness_fail("wanted EOF after the close, got %s", read_name(got));
    peer_close(&p);
    fx.closed[row->ending == FAILS ? BY_PROTOCOL : BY_PEER]++;
}

/* A row in one segment, byte by byte, and (when it is short) cut in two at every byte. */
static void frame_row_test(void **state)
{
    const struct row *row = row_of(state);
    struct bytes b = {NULL, 0, 0};
    size_t cut;
    script_build(row->send, &b);
    if (row->ending == FAILS)       /* a failed connection's bytes are not looked at (7.1.7) */
        script_build("81:'after' 89:'after'", &b);
    frame_row_run(row, &b, IN_ONE, 0);
    frame_row_run(row, &b, BYTEWISE, 0);
    if (b.n < 400)
        frame_row_run(row, &b, SETTLED, 0);
    for (cut = 1; cut < b.n && b.n < 80; cut++)
        frame_row_run(row, &b, IN_TWO, cut);
    bytes_free(&b);
    row_done();
}

/* ===== Close codes (7.4) ===== */

static const struct codes {
    const char *name;
    int from, to, valid;
} code_rows[] = {
    {"7.4: codes 0 to 3 are not used", 0, 3, 0},
    {"7.4: codes 255 to 258 are not used", 255, 258, 0},
    {"7.4: code 999 is not used", 999, 999, 0},
    {"7.4.1: code 1000 normal closure", 1000, 1000, 1},
    {"7.4.1: code 1001 going away", 1001, 1001, 1},
    {"7.4.1: code 1002 protocol error", 1002, 1002, 1},
    {"7.4.1: code 1003 unacceptable kind of data", 1003, 1003, 1},
    {"7.4.1: code 1004 is reserved", 1004, 1004, 0},
    {"7.4.1: code 1005 is never sent", 1005, 1005, 0},
    {"7.4.1: code 1006 is never sent", 1006, 1006, 0},
    {"7.4.1: code 1007 inconsistent data", 1007, 1007, 1},
    {"7.4.1: code 1008 policy", 1008, 1008, 1},
    {"7.4.1: code 1009 too big", 1009, 1009, 1},
    {"7.4.1: code 1010 extension wanted", 1010, 1010, 1},
    {"7.4.1: code 1011 internal error", 1011, 1011, 1},
    {"7.4.1: codes 1012 to 1014 of the registry", 1012, 1014, 1},
    {"7.4.1: code 1015 is never sent", 1015, 1015, 0},
    {"7.4.2: codes 1016 to 1030 are not defined", 1016, 1030, 0},
    {"7.4.2: codes 1098 to 1102 are not defined", 1098, 1102, 0},
    {"7.4.2: codes 1999 to 2001 are not defined", 1999, 2001, 0},
    {"7.4.2: code 2999 is not defined", 2998, 2999, 0},
    {"7.4.2: code 3000 of libraries", 3000, 3003, 1},
    {"7.4.2: code 3999 of libraries", 3998, 3999, 1},
    {"7.4.2: code 4000 of applications", 4000, 4003, 1},
    {"7.4.2: code 4999 of applications", 4998, 4999, 1},
    {"7.4: code 5000 is not used", 5000, 5002, 0},
    {"7.4: code 32768 is not used", 32767, 32769, 0},
    {"7.4: code 65535 is not used", 65534, 65535, 0},
};

/* A close with this code and these bytes of a reason is answered with a close of code `want`. */
static void close_code_run(int code, const char *reason, int want, int by)
{
    unsigned char payload[125];
    struct peer p;
    size_t n = strlen(reason);
    payload[0] = (unsigned char)(code >> 8 & 0xff);
    payload[1] = (unsigned char)(code & 0xff);
    memcpy(payload + 2, reason, n);
    row_open(&p);
    peer_send_frame(&p, OP_CLOSE, 1, payload, n + 2, 1);
    peer_expect_close(&p, want);
    peer_expect_eof(&p);
    peer_close(&p);
    fx.closed[by]++;
}

/* /metrics tells an answer of 1002 or 1007 from a complaint with that code. */
static void code_row_test(void **state)
{
    const struct codes *row = row_of(state);
    int code, by = row->valid ? BY_PEER : BY_PROTOCOL;
    for (code = row->from; code <= row->to; code++) {
        close_code_run(code, "", row->valid ? code : 1002, by);
        close_code_run(code, "reason", row->valid ? code : 1002, by);
        close_code_run(code, "bad \xff", row->valid ? 1007 : 1002, BY_PROTOCOL);
    }
    row_done();
}

/* ===== UTF-8 (8.1; RFC 3629) ===== */

enum { VALID = -1, CUT = -2 };      /* CUT: good as far as it goes, but ends in a character */

static const struct text_row {
    const char *name, *text;        /* as a script's payload */
    int bad;                        /* the index of the first byte that no text has there */
} text_rows[] = {
    {"8.1: ASCII", "'plain'", VALID},
    {"8.1: U+0000", "00", VALID},
    {"8.1: U+007F", "7f", VALID},
    {"8.1: U+0080", "c280", VALID},
    {"8.1: U+07FF", "dfbf", VALID},
    {"8.1: U+0800", "e0a080", VALID},
    {"8.1: U+0FFF", "e0bfbf", VALID},
    {"8.1: U+1000", "e18080", VALID},
    {"8.1: U+D7FF before the surrogates", "ed9fbf", VALID},
    {"8.1: U+E000 behind the surrogates", "ee8080", VALID},
    {"8.1: U+FEFF byte order mark", "efbbbf", VALID},
    {"8.1: U+FFFD", "efbfbd", VALID},
    {"8.1: U+FFFF, which is no character but a scalar value", "efbfbf", VALID},
    {"8.1: U+10000", "f0908080", VALID},
    {"8.1: U+1F600", "f09f9880", VALID},
    {"8.1: U+3FFFF", "f0bfbfbf", VALID},
    {"8.1: U+40000", "f1808080", VALID},
    {"8.1: U+FFFFF", "f3bfbfbf", VALID},
    {"8.1: U+100000", "f4808080", VALID},
    {"8.1: U+10FFFF", "f48fbfbf", VALID},
    {"8.1: all lengths in a row", "'a'c3a9e282acf09f9880e282acc3a9'a'", VALID},
    {"8.1: lone continuation byte 80", "80", 0},
    {"8.1: lone continuation byte BF", "bf", 0},
    {"8.1: one continuation byte too many", "c3a980", 2},
    {"8.1: continuation byte after four", "f09f988080", 4},
    {"8.1: overlong U+0000 in two", "c080", 0},
    {"8.1: overlong slash in two", "c0af", 0},
    {"8.1: overlong U+007F in two", "c1bf", 0},
    {"8.1: overlong U+0000 in three", "e08080", 1},
    {"8.1: overlong slash in three", "e080af", 1},
    {"8.1: overlong U+07FF in three", "e09fbf", 1},
    {"8.1: overlong U+0000 in four", "f0808080", 1},
    {"8.1: overlong U+FFFF in four", "f08fbfbf", 1},
    {"8.1: surrogate U+D800", "eda080", 1},
    {"8.1: surrogate U+DBFF", "edafbf", 1},
    {"8.1: surrogate U+DC00", "edb080", 1},
    {"8.1: surrogate U+DFFF", "edbfbf", 1},
    {"8.1: a surrogate pair", "eda0bdedb880", 1},
    {"8.1: U+110000", "f4908080", 1},
    {"8.1: U+13FFFF", "f4bfbfbf", 1},
    {"8.1: U+140000", "f5808080", 0},
    {"8.1: U+1FFFFF", "f7bfbfbf", 0},
    {"8.1: five bytes", "f888808080", 0},
    {"8.1: six bytes", "fc8480808080", 0},
    {"8.1: byte FE", "fe", 0},
    {"8.1: byte FF", "ff", 0},
    {"8.1: ASCII in the place of the 2nd byte of 2", "c3'a'", 1},
    {"8.1: ASCII in the place of the 2nd byte of 3", "e2'a'", 1},
    {"8.1: ASCII in the place of the 3rd byte of 3", "e282'a'", 2},
    {"8.1: ASCII in the place of the 4th byte of 4", "f09f98'a'", 3},
    {"8.1: a lead byte in the place of the 2nd byte", "e2c3a9", 1},
    {"8.1: a lead byte in the place of the 4th byte", "f09f98c3a9", 3},
    {"8.1: bad after good characters of all lengths", "'a'c3a9e282acf09f9880'b'ff", 11},
    {"8.1: cut after 1 byte of 2", "c3", CUT},
    {"8.1: cut after 1 byte of 3", "e2", CUT},
    {"8.1: cut after 2 bytes of 3", "e282", CUT},
    {"8.1: cut after 1 byte of 4", "f0", CUT},
    {"8.1: cut after 2 bytes of 4", "f09f", CUT},
    {"8.1: cut after 3 bytes of 4", "f09f98", CUT},
};

/* The end of a run: the echo and a good leave, or 1007. */
static void text_end(struct peer *p, const struct text_row *row, const struct bytes *text)
{
    if (row->bad != VALID) {
        row_fails(p, 1007);
        return;
    }
    peer_expect_data(p, OP_TEXT, text->p, text->n);
    fx.received++;
    row_leave(p);
}

/* The text as two fragments, cut anywhere, in as many segments. */
static void text_in_fragments(const struct text_row *row, const struct bytes *text, size_t cut)
{
    struct peer p;
    row_open(&p);
    peer_send_frame(&p, OP_TEXT, 0, text->p, cut, 1);
    peer_send_frame(&p, OP_CONTINUATION, 1, text->p + cut, text->n - cut, 1);
    text_end(&p, row, text);
}

/* The text with each byte a fragment, and an empty one to end it. */
static void text_in_bytes(const struct text_row *row, const struct bytes *text)
{
    struct peer p;
    size_t i;
    row_open(&p);
    for (i = 0; i < text->n; i++)
        peer_send_frame(&p, i == 0 ? OP_TEXT : OP_CONTINUATION, 0, text->p + i, 1, 1);
    peer_send_frame(&p, text->n == 0 ? OP_TEXT : OP_CONTINUATION, 1, "", 0, 1);
    text_end(&p, row, text);
}

/* The text in one frame; its segments are cut at a byte of the frame. */
static void text_in_segments(const struct text_row *row, const struct bytes *text, size_t cut)
{
    unsigned char frame[256];
    struct peer p;
    row_open(&p);
    segments_cut(&p, frame, frame_build(frame, 0x81, text->p, text->n, 1, 0xc0ffee11u), cut);
    text_end(&p, row, text);
}

/* The byte that no text has there ends the session at once, though the frame goes on. */
static void text_bad_at_once(const struct bytes *text, size_t bad, int first)
{
    unsigned char frame[256], longer[200] = {0};
    struct peer p;
    size_t n;
    memcpy(longer, text->p, text->n);
    n = frame_build(frame, first, longer, text->n + 100, 1, 0x0badf00du) - text->n - 100;
    row_open(&p);
    peer_send_raw(&p, frame, n + bad);
    server_settle();
    assert_int_equal(conn_fill_now(&p.c), READ_TIMEOUT); /* so far it may become a text */
    peer_send_raw(&p, frame + n + bad, 1);
    row_fails(&p, 1007);
}

/* A text that is cut off is bad only when the message ends there. */
static void text_cut_in_the_end(const struct text_row *row, const struct bytes *text)
{
    struct peer p;
    row_open(&p);
    peer_send_frame(&p, OP_TEXT, 0, text->p, text->n, 1);
    server_settle();
    assert_int_equal(conn_fill_now(&p.c), READ_TIMEOUT);
    peer_send_frame(&p, OP_CONTINUATION, 1, "", 0, 1);
    text_end(&p, row, text);
}

/* All of the above, behind so many letters: the server may well check several bytes at once. */
static void text_row_run(const struct text_row *row, size_t letters)
{
    struct bytes text = {NULL, 0, 0};
    size_t cut;
    bytes_add(&text, "abcdefghijklmnop", letters);
    payload_read(row->text, &text);
    if (row->bad != CUT)
        bytes_add(&text, "behind it", 9);
    for (cut = 0; cut <= text.n; cut++)
        text_in_fragments(row, &text, cut);
    for (cut = 1; cut < text.n + 6; cut++)
        text_in_segments(row, &text, cut);
    text_in_bytes(row, &text);
    if (row->bad >= 0) {
        text_bad_at_once(&text, (size_t)row->bad + letters, 0x81);
        text_bad_at_once(&text, (size_t)row->bad + letters, 0x01);
    }
    if (row->bad == CUT)
        text_cut_in_the_end(row, &text);
    bytes_free(&text);
}

static void text_row_test(void **state)
{
    static const size_t letters[] = {0, 7, 8};
    size_t i;
    for (i = 0; i < COUNT(letters); i++)
        text_row_run(row_of(state), letters[i]);
    row_done();
}

/* RFC 3629, section 4: how long a character with these first two bytes is; 0: it is none. */
static size_t character_size(int lead, int second)
{
    int low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    int high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (lead < 0xc2 || lead > 0xf4 || second < low || second > high)
        return 0;
    return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}

/* Every first byte with each second byte at which something changes. */
static void text_of_any_two_bytes(void **state)
{
    static const unsigned char seconds[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0};
    unsigned char text[4] = {0, 0, 0x80, 0xbf};
    struct peer good, bad;
    int lead;
    size_t i, n;
    (void)state;
    row_open(&good);
    for (lead = 0x80; lead <= 0xff; lead++)
        for (i = 0; i < COUNT(seconds); i++) {
            text[0] = (unsigned char)lead, text[1] = seconds[i];
            n = character_size(lead, seconds[i]);
            if (n > 0) {
                peer_send_frame(&good, OP_TEXT, 1, text, n, 1);
                peer_expect_data(&good, OP_TEXT, text, n);
                fx.received++;
            } else {
                row_open(&bad);
                peer_send_frame(&bad, OP_TEXT, 0, text, 2, 1);
                row_fails(&bad, 1007);
            }
        }
    row_leave(&good);
    row_done();
}

/* ===== Several sessions, half a connection ===== */

/* 5.4: messages under way in many sessions at once do not mix, and hold nobody else up. */
static void messages_of_many_sessions_do_not_mix(void **state)
{
    struct peer peers[24];
    char token[16], text[32];
    size_t i, n = COUNT(peers);
    (void)state;
    for (i = 0; i < n; i++) {
        snprintf(token, sizeof token, "row%lu", (unsigned long)i);
        peer_open(&fx.server, &peers[i], token, NULL);
        snprintf(text, sizeof text, "<%lu \xe2\x82", (unsigned long)i); /* cut in a character */
        peer_send_frame(&peers[i], OP_TEXT, 0, text, strlen(text), 1);
    }
    server_settle();
    for (i = n; i-- > 0;)
        peer_send_frame(&peers[i], OP_CONTINUATION, 1, "\xac>", 2, 1);
    for (i = 0; i < n; i++) {
        snprintf(text, sizeof text, "<%lu \xe2\x82\xac>", (unsigned long)i);
        peer_expect_text(&peers[i], text);
        row_leave(&peers[i]);
    }
    fx.opened += (long long)n;
    fx.received += (long long)n;
    row_done();
}

/* 7.1.4: a client that ends its side without a close frame still gets what it asked for before. */
static void half_closed_client_gets_its_echo(void **state)
{
    struct peer p;
    (void)state;
    row_open(&p);
    peer_send_text(&p, "last words");
    peer_send_frame(&p, OP_TEXT, 0, "cut off", 7, 1);
    assert_int_equal(shutdown(p.c.fd, SHUT_WR), 0);
    peer_expect_text(&p, "last words");
    peer_expect_eof(&p);
    peer_close(&p);
    fx.received++;
    fx.closed[BY_PEER]++;
    row_done();
}

/* ===== Large messages, many frames ===== */

enum { LARGEST = 1 << 24 };

static const struct large_row {
    const char *name;
    int opcode;
    size_t size, fragment;          /* fragment 0: one frame */
} large_rows[] = {
    {"5.2: echo of 65537 bytes", OP_BINARY, 65537, 0},
    {"5.2: echo of 1 MiB of text", OP_TEXT, 1 << 20, 0},
    {"5.2: echo of 16 MiB", OP_BINARY, LARGEST, 0},
    {"5.2: echo of 16 MiB less a byte of text", OP_TEXT, LARGEST - 1, 0},
    {"5.4: echo of 16 MiB in fragments of 65535", OP_TEXT, LARGEST, 65535},
    {"5.4: echo of 16 MiB in fragments of 1 MiB and a byte", OP_BINARY, LARGEST, (1 << 20) + 1},
    {"5.4: echo of 1 MiB in fragments of 125", OP_TEXT, 1 << 20, 125},
    {"10.4: 16 MiB and a byte", OP_BINARY, LARGEST + 1, 0},
    {"10.4: 16 MiB and a byte, in fragments", OP_TEXT, LARGEST + 1, 1 << 20},
};

/* Text whose characters have 1 to 4 bytes, and no short period; it ends in a whole one. */
static unsigned char *large_text(size_t n)
{
    static const char *const characters[] = {"a", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    unsigned char *text = malloc(n);
    unsigned seed = 1;
    size_t at = 0, size;
    if (text == NULL) {
        harness_fail("out of memory");
        return NULL;
    }
    while (at < n) {
        const char *c = characters[(seed = seed * 1103515245u + 12345u) >> 16 & 3];
        size = strlen(c);
        if (size > n - at)
            c = "z", size = 1;
        memcpy(text + at, c, size);
        at += size;
    }
    return text;
}

static void large_row_test(void **state)
{
    const struct large_row *row = row_of(state);
    unsigned char *text = large_text(row->size);
    size_t at, n, step = row->fragment > 0 ? row->fragment : row->size;
    struct peer p;
    row_open(&p);
    for (at = 0; at < row->size; at += n) {
        n = row->size - at < step ? row->size - at : step;
        peer_send_frame(&p, at == 0 ? row->opcode : OP_CONTINUATION, at + n == row->size, text + at,
                        n, 1);
    }
    if (row->size > LARGEST) {
        row_fails(&p, 1009);
    } else {
        peer_expect_data(&p, row->opcode, text, row->size);
        fx.received++;
        row_leave(&p);
    }
    free(text);
    row_done();
}

static const struct many_row {
    const char *name;
    size_t frames;
    int first, rest, last;          /* first bytes of the frames */
    size_t payload;                 /* of each but the last */
    size_t ping_every;              /* 0: no pings */
} many_rows[] = {
    {"5.4: a message of 10,000 fragments of a byte", 10000, 0x01, 0x00, 0x80, 1, 0},
    {"5.4: a byte in 10,000 fragments", 10000, 0x02, 0x00, 0x80, 0, 0},
    {"5.4: 10,000 fragments with a ping in every hundred", 10000, 0x01, 0x00, 0x80, 1, 100},
    {"5.1: 2,000 messages in one segment", 2000, 0x81, 0x81, 0x81, 3, 0},
    {"5.1: 2,000 empty messages in one segment", 2000, 0x82, 0x82, 0x82, 0, 0},
    {"5.1: 2,000 messages and 1,000 pings in one segment", 2000, 0x82, 0x81, 0x81, 5, 2},
};

/* What frame i of a row carries: counting bytes, of one at least in the last. */
static size_t many_payload(const struct many_row *row, size_t i, unsigned char payload[8])
{
    size_t k, n = i + 1 == row->frames && row->payload == 0 ? 1 : row->payload;
    for (k = 0; k < n; k++)
        payload[k] = (unsigned char)('A' + (i + k) % 53);
    return n;
}

static int many_opcode(const struct many_row *row, size_t i)
{
    return i == 0 ? row->first : i + 1 == row->frames ? row->last : row->rest;
}

/* All frames of a row, and behind them what must come back. */
static void many_build(const struct many_row *row, struct bytes *to, struct bytes *message)
{
    unsigned char frame[32], payload[8];
    size_t i, n;
    for (i = 0; i < row->frames; i++) {
        n = many_payload(row, i, payload);
        bytes_add(message, payload, n);
        bytes_add(to, frame, frame_build(frame, many_opcode(row, i), payload, n, 1,
                                         0x9e3779b9u * (uint32_t)(i + 1)));
        if (row->ping_every > 0 && i % row->ping_every == 0)
            bytes_add(to, frame, frame_build(frame, 0x89, "ping", 4, 1, 0x5bd1e995u));
    }
}

/* The echoes of the row's messages, with the pongs where the pings were. */
static void many_expect(const struct many_row *row, struct peer *p, const struct bytes *message)
{
    unsigned char payload[8];
    struct frame f;
    size_t i, n;
    for (i = 0; i < row->frames; i++) {
        n = many_payload(row, i, payload);
        if (row->first & 0x80) {
            peer_expect_data(p, many_opcode(row, i) & 15, payload, n);
            fx.received++;
        }
        if (row->ping_every > 0 && i % row->ping_every == 0) {
            assert_int_equal(peer_read_frame(p, &f, deadline_usual()), READ_OK);
            assert_int_equal(f.opcode, OP_PONG);
            assert_int_equal(f.size, 4);
        }
    }
    if (!(row->first & 0x80)) {
        peer_expect_data(p, row->first & 15, message->p, message->n);
        fx.received++;
    }
}

/* Once in one segment (as far as TCP lets it be one), once byte by byte. */
static void many_row_test(void **state)
{
    const struct many_row *row = row_of(state);
    struct bytes b = {NULL, 0, 0}, message = {NULL, 0, 0};
    struct peer p;
    int piecewise;
    many_build(row, &b, &message);
    for (piecewise = 0; piecewise < 2; piecewise++) {
        row_open(&p);
        segments_send(&p, b.p, b.n, piecewise ? 1 : b.n, 0);
        many_expect(row, &p, &message);
        row_leave(&p);
    }
    bytes_free(&b);
    bytes_free(&message);
    row_done();
}

/* A client that asks for echoes and does not read them gets those that fit, in order, then 1013. */
static void echo_closes_a_client_that_does_not_read(void **state)
{
    static unsigned char frame[65536 + 14], payload[65536];
    long long deadline = deadline_usual();
    size_t sent = 0, at = 0, n;
    struct peer p;
    struct frame f;
    ssize_t took;
    (void)state;
    peer_open_slow(&fx.server, &p, "row", 4096);
    while (server_metric(&fx.server, "exportws_sessions") == 2) {
        assert_true(time_left(deadline) > 0);
        memset(payload, (int)(sent & 0xff), sizeof payload);
        n = frame_build(frame, 0x82, payload, sizeof payload, 1, 0x01020304u);
        for (at = 0; at < n && time_left(deadline) > 0; at += took > 0 ? (size_t)took : 0)
            if ((took = send(p.c.fd, frame + at, n - at, 0)) < 0)
                pause_ms(1);
        sent++;
    }
    for (at = 0; peer_read_message(&p, &f, deadline) == READ_OK && f.opcode == OP_BINARY; at++) {
        memset(payload, (int)(at & 0xff), sizeof payload);
        assert_int_equal(f.size, sizeof payload);
        assert_memory_equal(f.data, payload, sizeof payload);
    }
    assert_true(at >= 32);
    assert_int_equal(f.opcode, OP_CLOSE);
    assert_int_equal(f.data[0] << 8 | f.data[1], 1013);
    peer_close(&p);
    fx.opened++;
    fx.closed[BY_ENDED]++;
    fx.received = server_metric(&fx.server, "exportws_messages_received_total");
    assert_true(fx.received > (long long)at);
    row_done();
}

/* ===== The opening handshake (4.2) ===== */

#define T DEFAULT_PATH "row"
#define LINE "GET " T " HTTP/1.1\r\n"
#define HOST "Host: localhost\r\n"
#define UPGRADE "Upgrade: websocket\r\n"
#define CONNECTION "Connection: Upgrade\r\n"
#define KEY_NAME "Sec-WebSocket-Key: "
#define KEY KEY_NAME SAMPLE_KEY "\r\n"
#define V13 "Sec-WebSocket-Version: 13\r\n"
#define ALL HOST UPGRADE CONNECTION KEY V13
#define NEEDS_13 "Sec-WebSocket-Version: 13"

static const struct handshake_row {
    const char *name, *request;     /* without the empty line at its end */
    int status;
    const char *header;             /* "Name: value", or NULL; of a 101: the accept value */
} handshake_rows[] = {
    /* 4.2.1: what the server reads */
    {"4.2.1: the RFC's own example",
     LINE "Host: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, superchat\r\n"
     "Sec-WebSocket-Version: 13\r\n", 101, SAMPLE_ACCEPT},
    {"4.2.1: order of header fields", LINE V13 KEY CONNECTION UPGRADE HOST, 101, NULL},
    {"4.2.1/1: HTTP/1.0", "GET " T " HTTP/1.0\r\n" ALL, 400, NULL},
    {"4.2.1/1: HTTP/1.2 is higher than 1.1", "GET " T " HTTP/1.2\r\n" ALL, 101, NULL},
    {"4.2.1/1: HTTP/2.0 by this syntax", "GET " T " HTTP/2.0\r\n" ALL, 400, NULL},
    {"4.2.1/1: POST", "POST " T " HTTP/1.1\r\n" ALL, 405, "Allow: GET"},
    {"4.2.1/1: HEAD has no body", "HEAD " T " HTTP/1.1\r\n" ALL, 405, "Allow: GET"},
    {"4.2.1/1: PUT", "PUT " T " HTTP/1.1\r\n" ALL, 405, "Allow: GET"},
    {"4.2.1/1: get", "get " T " HTTP/1.1\r\n" ALL, 405, "Allow: GET"},
    {"4.2.1/1: a query", "GET " T "?a=b&c=%2F HTTP/1.1\r\n" ALL, 101, NULL},
    {"4.2.1/1: an absolute http URI", "GET http://localhost" T " HTTP/1.1\r\n" ALL, 101, NULL},
    {"4.2.1/1: an absolute https URI with a port",
     "GET https://localhost:443" T " HTTP/1.1\r\n" ALL, 101, NULL},
    {"4.2.1/2: no Host", LINE UPGRADE CONNECTION KEY V13, 400, NULL},
    {"4.2.1/2: two Hosts", LINE HOST ALL, 400, NULL},
    {"4.2.1/2: Host with a port", LINE "Host: localhost:8080\r\n" UPGRADE CONNECTION KEY V13, 101,
     NULL},
    {"4.2.1/2: Host of IPv6", LINE "Host: [::1]:8080\r\n" UPGRADE CONNECTION KEY V13, 101, NULL},
    {"4.2.1/3: no Upgrade", LINE HOST CONNECTION KEY V13, 426, "Upgrade: websocket"},
    {"4.2.1/3: WEBSOCKET", LINE HOST CONNECTION KEY V13 "Upgrade: WEBSOCKET\r\n", 101, NULL},
    {"4.2.1/3: wEbSoCkEt", LINE HOST CONNECTION KEY V13 "uPgRaDe:wEbSoCkEt\r\n", 101, NULL},
    {"4.2.1/3: Upgrade with blanks around",
     LINE HOST CONNECTION KEY V13 "Upgrade: \t websocket \t\r\n", 101, NULL},
    {"4.2.1/3: Upgrade to something else", LINE HOST CONNECTION KEY V13 "Upgrade: h2c\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/3: Upgrade to websockets", LINE HOST CONNECTION KEY V13 "Upgrade: websockets\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/3: Upgrade to websocke", LINE HOST CONNECTION KEY V13 "Upgrade: websocke\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/3: Upgrade to one of two", LINE HOST CONNECTION KEY V13 "Upgrade: h2c, websocket\r\n",
     101, NULL},
    {"4.2.1/3: empty Upgrade", LINE HOST CONNECTION KEY V13 "Upgrade:\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/4: no Connection", LINE HOST UPGRADE KEY V13, 426, "Upgrade: websocket"},
    {"4.2.1/4: UPGRADE", LINE HOST UPGRADE KEY V13 "CONNECTION: UPGRADE\r\n", 101, NULL},
    {"4.2.1/4: keep-alive, Upgrade",
     LINE HOST UPGRADE KEY V13 "Connection: keep-alive, Upgrade\r\n", 101, NULL},
    {"4.2.1/4: Upgrade, keep-alive",
     LINE HOST UPGRADE KEY V13 "Connection: Upgrade, keep-alive\r\n", 101, NULL},
    {"4.2.1/4: keep-alive,upgrade without a blank",
     LINE HOST UPGRADE KEY V13 "Connection: keep-alive,upgrade\r\n", 101, NULL},
    {"4.2.1/4: a list with empty members and tabs",
     LINE HOST UPGRADE KEY V13 "Connection: ,, keep-alive\t,\tupgrade ,\r\n", 101, NULL},
    {"4.2.1/4: Upgrade in a second Connection line",
     LINE HOST UPGRADE KEY V13 "Connection: keep-alive\r\n" CONNECTION, 101, NULL},
    {"4.2.1/4: keep-alive only", LINE HOST UPGRADE KEY V13 "Connection: keep-alive\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/4: close only", LINE HOST UPGRADE KEY V13 "Connection: close\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/4: upgraded", LINE HOST UPGRADE KEY V13 "Connection: upgraded\r\n", 426,
     "Upgrade: websocket"},
    {"4.2.1/4: keep-alive upgrade, without a comma",
     LINE HOST UPGRADE KEY V13 "Connection: keep-alive upgrade\r\n", 426, "Upgrade: websocket"},
    {"4.2.1/5: no key", LINE HOST UPGRADE CONNECTION V13, 400, NULL},
    {"4.2.1/5: empty key", LINE HOST UPGRADE CONNECTION V13 KEY_NAME "\r\n", 400, NULL},
    {"4.2.1/5: key of zeros", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAA==\r\n", 101, "ICX+Yqv66kxgM0FcWaLWlFLwTAI="},
    {"4.2.1/5: key of ones", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "/////////////////////w==\r\n", 101, "XXpj4jYzLM2yUE0C7TIgMwTQh2g="},
    {"4.2.1/5: key of plus and slash", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "+/+/+/+/+/+/+/+/+/+/+w==\r\n", 101, "M0DUs3om0SqzerhOhYSMM7WQuBQ="},
    {"4.1: key of the example there, whose spare bits are not zero",
     LINE HOST UPGRADE CONNECTION V13 KEY_NAME "AQIDBAUGBwgJCgsMDQ4PEC==\r\n", 101,
     "OfS0wDaT5NoxF2gqm7Zj2YtetzM="},
    {"4.2.1/5: blanks around the key are not part of it", LINE HOST UPGRADE CONNECTION V13
     "Sec-WebSocket-Key: \t " SAMPLE_KEY " \t \r\n", 101, SAMPLE_ACCEPT},
    {"4.2.1/5: key of 15 bytes", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAA\r\n", 400, NULL},
    {"4.2.1/5: key of 17 bytes", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAAA=\r\n", 400, NULL},
    {"4.2.1/5: key of 18 bytes", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAAAA\r\n", 400, NULL},
    {"4.2.1/5: key without its padding", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAA\r\n", 400, NULL},
    {"4.2.1/5: key with half its padding", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAA=\r\n", 400, NULL},
    {"4.2.1/5: key with more padding", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAAAAAAAAAAAAAA===\r\n", 400, NULL},
    {"4.2.1/5: key with padding in the middle", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAA==AAAAAAAAAA==\r\n", 400, NULL},
    {"4.2.1/5: key in base64url", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "-_-_-_-_-_-_-_-_-_-_-w==\r\n", 400, NULL},
    {"4.2.1/5: key with a blank in it", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAA AAAAAAAAAAA==\r\n", 400, NULL},
    {"4.2.1/5: key with a byte over 127", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     "AAAAAAAAAA\xc1""AAAAAAAAAAA==\r\n", 400, NULL},
    {"4.2.1/5: two keys on one line", LINE HOST UPGRADE CONNECTION V13 KEY_NAME
     SAMPLE_KEY ", " SAMPLE_KEY "\r\n", 400, NULL},
    {"11.3.1: the key twice", LINE ALL KEY, 400, NULL},
    {"4.2.1/6: no version", LINE HOST UPGRADE CONNECTION KEY, 426, NEEDS_13},
    {"4.4: version 0", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 0\r\n", 426,
     NEEDS_13},
    {"4.4: version 7", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 7\r\n", 426,
     NEEDS_13},
    {"4.4: version 8", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 8\r\n", 426,
     NEEDS_13},
    {"4.4: version 14", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 14\r\n", 426,
     NEEDS_13},
    {"4.4: version 113", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 113\r\n", 426,
     NEEDS_13},
    {"4.4: version 255", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 255\r\n", 426,
     NEEDS_13},
    {"4.4: version 269 is not 13 in a byte",
     LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 269\r\n", 426, NEEDS_13},
    {"4.3: version with a leading zero",
     LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 013\r\n", 426, NEEDS_13},
    {"4.3: version with a sign",
     LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: +13\r\n", 426, NEEDS_13},
    {"4.3: a list of versions",
     LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version: 13, 8\r\n", 426, NEEDS_13},
    {"4.3: version empty", LINE HOST UPGRADE CONNECTION KEY "Sec-WebSocket-Version:\r\n", 426,
     NEEDS_13},
    {"11.3.5: the version twice", LINE ALL V13, 400, NULL},
    {"11.3.5: two versions, one good", LINE ALL "Sec-WebSocket-Version: 8\r\n", 400, NULL},
    {"4.2.1/10: unknown header fields are ignored",
     LINE "Cookie: a=b; c=d\r\nX-Unknown:\r\n" ALL "User-Agent: x\r\nDNT: 1\r\n", 101, NULL},
    {"4.2.1/10: the accept field of a response is ignored",
     LINE ALL "Sec-WebSocket-Accept: " SAMPLE_ACCEPT "\r\n", 101, NULL},
    /* 4.2.2: what the server answers */
    {"4.2.2/2: an unknown resource", "GET /elsewhere HTTP/1.1\r\n" ALL, 404, NULL},
    {"4.2.2/4: Origin of the same host", LINE ALL "Origin: http://localhost\r\n", 101, NULL},
    {"4.2.2/4: Origin of the same host, in capitals", LINE ALL "Origin: http://LOCALHOST\r\n", 101,
     NULL},
    {"4.2.2/4: Origin of another port of the host", LINE ALL "Origin: https://localhost:8443\r\n",
     101, NULL},
    {"10.2: Origin of another host", LINE ALL "Origin: http://evil.example\r\n", 403, NULL},
    {"10.2: Origin with the host as its beginning", LINE ALL
     "Origin: http://localhost.evil.example\r\n", 403, NULL},
    {"10.2: Origin with the host as its end", LINE ALL "Origin: http://evil-localhost\r\n", 403,
     NULL},
    {"10.2: Origin null", LINE ALL "Origin: null\r\n", 403, NULL},
    {"10.2: Origin empty", LINE ALL "Origin:\r\n", 403, NULL},
    {"10.2: two Origins", LINE ALL "Origin: http://localhost\r\nOrigin: http://localhost\r\n", 400,
     NULL},
    {"4.2.2/5.5: an unknown subprotocol is not echoed",
     LINE ALL "Sec-WebSocket-Protocol: chat\r\n", 101, NULL},
    {"4.2.2/5.5: of unknown subprotocols none is echoed",
     LINE ALL "Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n", 101, NULL},
    {"4.2.2/5.5: an empty subprotocol is not echoed", LINE ALL "Sec-WebSocket-Protocol:\r\n", 101,
     NULL},
    {"4.2.2/5.6, 9.1: no extension is accepted",
     LINE ALL "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n", 101,
     NULL},
    {"9.1: nor one of several",
     LINE ALL "Sec-WebSocket-Extensions: foo, bar; baz=2\r\nSec-WebSocket-Extensions: mux\r\n", 101,
     NULL},
    {"4.2.1: a body of no bytes", LINE ALL "Content-Length: 0\r\n", 101, NULL},
    {"4.2.1: a body", LINE ALL "Content-Length: 5\r\n", 400, NULL},
    {"4.2.1: a chunked body", LINE ALL "Transfer-Encoding: chunked\r\n", 400, NULL},
};

/* A 101 says each thing once, and nothing that was not asked for. */
static void handshake_check_101(struct reply *r, const char *accept)
{
    static const char *const once[][2] = {
        {"Upgrade", "websocket"}, {"Connection", "Upgrade"}, {"Sec-WebSocket-Accept", NULL}};
    static const char *const never[] = {"Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions",
                                        "Sec-WebSocket-Key", "Content-Length", "Transfer-Encoding"};
    size_t i;
    int count;
    assert_int_equal(strncmp(r->head, "HTTP/1.1 101 ", 13), 0);
    for (i = 0; i < COUNT(once); i++) {
        const char *value = reply_header_count(r, once[i][0], &count);
        assert_int_equal(count, 1);
        assert_string_equal(value, once[i][1] ? once[i][1] : accept ? accept : SAMPLE_ACCEPT);
    }
    for (i = 0; i < COUNT(never); i++)
        assert_null(reply_header(r, never[i]));
}

/* A refusal is a whole response with a line of reason, and the end behind it. */
static void handshake_check_refusal(const struct handshake_row *row, struct conn *c,
                                    struct reply *r)
{
    const char *colon = row->header ? strchr(row->header, ':') : NULL;
    const char *value;
    char name[64];
    int count;
    if (colon != NULL) {
        snprintf(name, sizeof name, "%.*s", (int)(colon - row->header), row->header);
        value = reply_header_count(r, name, &count);
        assert_int_equal(count, 1);
        assert_string_equal(value, colon + 2);
    }
    assert_null(reply_header(r, "Sec-WebSocket-Accept"));
    assert_true(r->body_bytes == 0 || strchr(r->body, '\n') == r->body + r->body_bytes - 1);
    conn_expect_eof(c);
}

/* Reads the answer; that to a HEAD has the length of a body, and none. */
static void handshake_answer_read(const struct handshake_row *row, struct conn *c, struct reply *r)
{
    if (strncmp(row->request, "HEAD ", 5) != 0) {
        reply_read(c, r);
        assert_true(r->status == 101 || r->body_bytes > 0);
        return;
    }
    assert_int_equal(reply_read_head(c, r, deadline_usual()), READ_OK);
    r->status = atoi(r->head + 9);
    r->body_bytes = 0;
}

static void handshake_row_run(const struct handshake_row *row, int bytewise)
{
    static struct reply r;
    char request[4096];
    struct peer p;
    size_t n = (size_t)snprintf(request, sizeof request, "%s\r\n", row->request);
    memset(&p, 0, sizeof p);
    conn_open(&p.c, fx.server.clients);
    segments_send(&p, (unsigned char *)request, n, bytewise ? 1 : n, bytewise);
    handshake_answer_read(row, &p.c, &r);
    assert_int_equal(r.status, row->status);
    if (r.status == 101) {
        handshake_check_101(&r, row->header);
        fx.opened++;
        row_leave(&p);
    } else {
        handshake_check_refusal(row, &p.c, &r);
        peer_close(&p);
        fx.refused++;
    }
}

static void handshake_row_test(void **state)
{
    handshake_row_run(row_of(state), 0);
    handshake_row_run(row_of(state), 1);
    row_done();
}

/* ===== Closes that the server begins (5.5.1, 7.1) ===== */

/* --close-timeout is so long that no test which waits for it could pass. */
static const char *const patient[] = {"--close-timeout", "300", NULL};

static void row_delete(void)
{
    static struct reply r;
    push_request(&fx.server, "DELETE", DEFAULT_PATH "row", NULL, NULL, 0, &r);
    assert_int_equal(r.status, 200);
    assert_int_equal(json_number(r.body, "closed"), 1);
    fx.closed[BY_ENDED]++;
}

/* What a client says when the server has said close 1000, and what it gets to hear. */
static const struct row answer_rows[] = {
    {"7.1.1: the server closes the connection on the answer", "88:03e8", "88:03e8", LEAVES},
    {"7.1.1: the answer may have another code", "88:0fa0'bye'", "88:03e8", LEAVES},
    {"7.1.1: the answer may be empty", "88:", "88:03e8", LEAVES},
    {"7.1.1: even an answer that is wrong ends it", "88:03", "88:03e8", LEAVES},
    {"5.5.1: a message under way is not answered", "81:'late' 88:03e8", "88:03e8", LEAVES},
    {"5.5.1: fragments under way are not answered", "01:'la' 80:'te' 88:03e8", "88:03e8", LEAVES},
    {"5.5.2: a ping before the answer gets its pong", "89:'late' 88:03e8", "88:03e8 8a:'late'",
     LEAVES},
    {"7.1.7: a broken frame in the place of the answer ends it", "83:'x'", "88:03e8", LEAVES},
};

/* The client has the server's close before it speaks. */
static void answer_row_run(const struct row *row, const struct bytes *b, size_t piece)
{
    struct spec close;
    const char *more = spec_read(row->want, &close);
    struct frame f;
    struct peer p;
    row_open(&p);
    row_delete();
    assert_int_equal(peer_read_frame(&p, &f, deadline_usual()), READ_OK);
    assert_int_equal(f.opcode, OP_CLOSE);
    close_check(&f, &close.payload);
    bytes_free(&close.payload);
    segments_send(&p, b->p, b->n, piece, piece == 1);
    script_expect(&p, more);
    peer_expect_eof(&p);
    peer_close(&p);
}

static void answer_row_test(void **state)
{
    const struct row *row = row_of(state);
    struct bytes b = {NULL, 0, 0};
    script_build(row->send, &b);
    answer_row_run(row, &b, b.n);
    answer_row_run(row, &b, 1);
    bytes_free(&b);
    row_done();
}

/* Both closes cross: each side has sent exactly one, and the connection ends. */
static void closes_that_cross_end_the_session(void **state)
{
    struct peer p;
    (void)state;
    row_open(&p);
    row_delete();
    peer_send_close(&p, 4000, "mine");
    peer_expect_close(&p, 1000);
    peer_expect_eof(&p);
    peer_close(&p);
    row_done();
}

/* 5.5.1: no data frame after a close frame. */
static void nothing_is_sent_behind_a_close(void **state)
{
    static struct reply r;
    struct peer p;
    (void)state;
    row_open(&p);
    row_delete();
    push_text(&fx.server, "", "for all", &r);
    assert_int_equal(json_number(r.body, "delivered"), 1); /* the control session alone */
    peer_expect_text(&fx.control, "for all");
    peer_expect_close(&p, 1000);
    server_settle();
    assert_int_equal(conn_fill_now(&p.c), READ_TIMEOUT);
    peer_send_close(&p, 1000, "");
    peer_expect_eof(&p);
    peer_close(&p);
    row_done();
}

/* 7.1.5: what a session that ended is told to have said: 1005 and 1006 are never on the wire. */
static void absent_close_codes_are_1005_and_1006(void **state)
{
    struct peer p;
    (void)state;
    row_open(&p);
    peer_send_close(&p, 0, "");
    peer_expect_close(&p, 0);
    peer_expect_eof(&p);
    peer_close(&p);
    server_log_wait(&fx.server, "reason=peer code=1005", 1);
    row_open(&p);
    peer_close(&p);
    server_log_wait(&fx.server, "reason=peer code=1006", 1);
    row_open(&p);
    peer_send_frame(&p, OP_TEXT, 1, "cut", 3, 1);
    peer_send_frame(&p, OP_TEXT, 0, "off", 3, 1);
    peer_close(&p);
    server_log_wait(&fx.server, "reason=peer code=1006", 2);
    fx.closed[BY_PEER] += 3;
    fx.received++;
    row_done();
}

/* 7.2.1, 7.3: a client that never answers the close loses its connection all the same. */
static void silence_after_close_is_bounded(void **state)
{
    static const char *const args[] = {"--close-timeout", "0.2", NULL};
    static struct server s;
    struct peer p;
    struct reply r;
    (void)state;
    server_start(&s, args);
    peer_open(&s, &p, "row", NULL);
    push_request(&s, "DELETE", DEFAULT_PATH "row", NULL, NULL, 0, &r);
    peer_expect_close(&p, 1000);
    peer_expect_eof(&p);
    peer_close(&p);
    server_check_books(&s);
    server_stop(&s);
}

/* 7.4.1: a server that goes away says 1001, to everybody, and waits for the answers. */
static void going_away_is_1001(void **state)
{
    static const char *const args[] = {"--close-timeout", "60", "--drain", "60", NULL};
    static struct server s;
    struct peer peers[5];
    size_t i;
    (void)state;
    server_start(&s, args);
    for (i = 0; i < COUNT(peers); i++)
        peer_open(&s, &peers[i], i % 2 ? "a" : "b", NULL);
    server_signal(&s, SIGTERM);
    for (i = 0; i < COUNT(peers); i++)
        peer_expect_close(&peers[i], 1001);
    for (i = 0; i < COUNT(peers); i++) {
        peer_send_close(&peers[i], 1001, "");
        peer_expect_eof(&peers[i]);
        peer_close(&peers[i]);
    }
    server_wait(&s, 0, deadline_usual());
}

/* ===== All of it ===== */

#define ADD_ROWS(rows, run)                                                                        \
    do {                                                                                           \
        size_t row_;                                                                               \
        for (row_ = 0; row_ < COUNT(rows); row_++)                                                 \
            tests_add((rows)[row_].name, run, &(rows)[row_]);                                      \
    } while (0)

static int frames_run(void)
{
    static const char *const args[] = {"--max-message", "65536", NULL};
    ADD_ROWS(frame_rows, frame_row_test);
    ADD_ROWS(code_rows, code_row_test);
    ADD_ROWS(text_rows, text_row_test);
    tests_add("8.1: any two bytes", text_of_any_two_bytes, NULL);
    tests_add("5.4: many sessions at once", messages_of_many_sessions_do_not_mix, NULL);
    tests_add("7.1.4: half a connection", half_closed_client_gets_its_echo, NULL);
    return tests_run("rfc6455 frames", echo_program, args);
}

static int large_run(void)
{
    static const char *const args[] = {"--max-message", "16m", NULL};
    ADD_ROWS(large_rows, large_row_test);
    ADD_ROWS(many_rows, many_row_test);
    tests_add("10.4: a client that does not read", echo_closes_a_client_that_does_not_read, NULL);
    return tests_run("rfc6455 large messages", echo_program, args);
}

static int handshakes_run(void)
{
    ADD_ROWS(handshake_rows, handshake_row_test);
    return tests_run("rfc6455 handshakes", NULL, NULL);
}

static int closes_run(void)
{
    ADD_ROWS(answer_rows, answer_row_test);
    tests_add("7.1.1: closes that cross", closes_that_cross_end_the_session, NULL);
    tests_add("5.5.1: nothing is sent behind a close", nothing_is_sent_behind_a_close, NULL);
    tests_add("7.1.5: close codes that are not sent", absent_close_codes_are_1005_and_1006, NULL);
    return tests_run("rfc6455 closes", NULL, patient);
}

static int endings_run(void)
{
    const struct CMUnitTest endings[] = {
        cmocka_unit_test_teardown(silence_after_close_is_bounded, server_teardown),
        cmocka_unit_test_teardown(going_away_is_1001, server_teardown),
    };
    return cmocka_run_group_tests_name("rfc6455 endings", endings, NULL, NULL);
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    const char *given = getenv("EXPORTWS_ECHO");
    int failed;
    if (given != NULL && *given != '\0')
        snprintf(echo_program, sizeof echo_program, "%s", given);
    else
        snprintf(echo_program, sizeof echo_program, "%.*secho",
                 slash ? (int)(slash - argv[0] + 1) : 0, slash ? argv[0] : "");
    failed = frames_run();
    failed += large_run();
    failed += handshakes_run();
    failed += closes_run();
    failed += endings_run();
    return failed > 0;
}
