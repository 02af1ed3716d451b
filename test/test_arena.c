/* Arena: what layout() measures is what it places. */
#define EXPORTWS_NO_MAIN
#include "../exportws.c"
#include "test.h"

/* ===== Pieces ===== */

static void pieces_are_aligned_and_follow_each_other(void **state)
{
    static const struct {
        size_t count, size, used; /* used: behind it */
    } rows[] = {{1, 1, 8},  {1, 8, 16}, {3, 3, 32}, {0, 100, 32},
                {1, 9, 48}, {7, 1, 56}, {8, 1, 64}, {2, 16, 96}};
    static uint64_t block[12];
    struct arena measured = {NULL, 0}, placed = {(uint8_t *)block, 0};
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        size_t at = placed.used;
        assert_null(arena_take(&measured, rows[i].count, rows[i].size));
        assert_ptr_equal(arena_take(&placed, rows[i].count, rows[i].size), (uint8_t *)block + at);
        assert_int_equal(measured.used, rows[i].used);
        assert_int_equal(placed.used, rows[i].used);
    }
}

/* More than half of what a size_t can say is too many, and stays so: a sum never wraps. */
static void pieces_that_are_too_many_stay_so(void **state)
{
    static const struct {
        const char *name;
        size_t used, count, size;
    } rows[] = {
        {"half", 0, SIZE_MAX / 2 + 1, 1},
        {"half and a quarter", SIZE_MAX / 2 + 1, SIZE_MAX / 4 + 1, 1},
        {"half and all", SIZE_MAX / 2 - 7, SIZE_MAX - 31, 1},
        {"half and half", SIZE_MAX / 2 + 1, SIZE_MAX / 2 + 1, 1},
        {"all at once", 0, SIZE_MAX, 1},
        {"all but seven", 0, SIZE_MAX - 7, 1},
        {"rounded up it is all but seven", 0, SIZE_MAX - 8, 1},
        {"all but fifteen", 0, SIZE_MAX - 15, 1},
        {"the last eight", SIZE_MAX - 31, 16, 1},
        {"rounded up it is the end", SIZE_MAX - 31, 23, 1},
        {"one more", SIZE_MAX - 31, 25, 1},
        {"the product wraps to nothing", 0, SIZE_MAX / 2 + 1, 2},
        {"the product wraps to little", 0, SIZE_MAX / 8 + 2, 8},
        {"the product wraps to much", 0, SIZE_MAX / 2, 3},
    };
    (void)state;
    for (size_t i = 0; i < COUNT(rows); i++) {
        for (size_t more = 0; more < 100; more++) {
            struct arena a = {NULL, rows[i].used};
            assert_null(arena_take(&a, rows[i].count, rows[i].size));
            if (a.used <= SIZE_MAX / 2) fail_msg("%s: wraps to %zx", rows[i].name, a.used);
            assert_null(arena_take(&a, more, 1));
            if (a.used <= SIZE_MAX / 2)
                fail_msg("%s, then %zu: wraps to %zx", rows[i].name, more, a.used);
            assert_null(arena_take(&a, 1, more + 1));
            if (a.used <= SIZE_MAX / 2)
                fail_msg("%s, then more: wraps to %zx", rows[i].name, a.used);
        }
    }
}

static void power_of_two_is_the_least_that_holds(void **state)
{
    (void)state;
    assert_int_equal(power_of_two(0), 1);
    assert_int_equal(power_of_two(1), 1);
    for (unsigned shift = 1; shift < 30; shift++) {
        size_t power = (size_t)1 << shift;
        assert_int_equal(power_of_two(power), power);
        assert_int_equal(power_of_two(power + 1), 2 * power);
        if (shift > 1) assert_int_equal(power_of_two(power - 1), power);
    }
    assert_int_equal(power_of_two((size_t)1 << 30), 1U << 30);
    assert_int_equal(power_of_two(((size_t)1 << 30) + 1), 1U << 30);
    assert_int_equal(power_of_two(SIZE_MAX), 1U << 30);
}

/* ===== Layouts ===== */

/* Options that differ from the defaults in sizes; 0: the default. */
struct shape {
    const char *name;
    size_t capacity, handshakes, pushers, per_address, max_token, max_message, max_push, buffer;
};

static const struct shape shapes[] = {
    {"defaults", 0, 0, 0, 0, 0, 0, 0, 0},
    {"least of all", 1, 1, 1, 1, 1, 1, 1, 2048},
    {"per address", 0, 0, 0, 4, 0, 0, 0, 0},
    {"capacity of no power of two", 1000, 7, 3, 1, 0, 0, 0, 0},
    {"longest token", 3, 3, 3, 3, 1024, 0, 0, 100000},
    {"odd sizes", 17, 5, 9, 2, 33, 4097, 65537, 77777},
    {"large messages", 2, 2, 2, 0, 0, 1000000, 3000000, 0},
    {"one session, large buffer", 1, 1, 1, 0, 1, 1, 1, 10000000},
    {"many sessions", 20000, 1, 1, 0, 0, 0, 0, 2048},
};

static void shape_options(const struct shape *shape, exportws_options *o)
{
    exportws_defaults(o);
    if (shape->capacity) o->capacity = shape->capacity;
    if (shape->handshakes) o->handshakes = shape->handshakes;
    if (shape->pushers) o->pushers = shape->pushers;
    if (shape->per_address) o->per_address = shape->per_address;
    if (shape->max_token) o->max_token_bytes = shape->max_token;
    if (shape->max_message) o->max_message_bytes = shape->max_message;
    if (shape->max_push) o->max_push_bytes = shape->max_push;
    if (shape->buffer) o->buffer_bytes = shape->buffer;
}

/* Everything placed, in its order. */
struct region {
    const char *name;
    const void *at;
    size_t bytes;
};

static size_t layout_regions(const struct exportws *w, struct region *r)
{
    const size_t entries = (size_t)w->conns_end + 3,
                 pieces = w->o.per_address > 0 ? w->capacity : 0, n = w->input_count;
    size_t count = 0;
    r[count++] = (struct region){"server", w, sizeof *w};
    r[count++] = (struct region){"counters", w->m, sizeof *w->m};
    r[count++] = (struct region){"polls", w->polls, entries * sizeof *w->polls};
    r[count++] = (struct region){"owners", w->owners, entries * sizeof *w->owners};
    r[count++] = (struct region){"conns", w->conns, w->conns_end * sizeof *w->conns};
    r[count++] = (struct region){"tokens", w->tokens, (w->token_count + 1) * sizeof *w->tokens};
    r[count++] =
        (struct region){"buckets", w->buckets, ((size_t)w->bucket_mask + 1) * sizeof *w->buckets};
    r[count++] = (struct region){"names", w->names, w->capacity * w->name_bytes};
    r[count++] =
        (struct region){"pushes", w->pushes, (w->conns_end - w->pushers_at) * sizeof *w->pushes};
    if (pieces > 0) {
        size_t bytes = ((size_t)w->address_mask + 1) * sizeof *w->address_buckets;
        r[count++] = (struct region){"addresses", w->addresses, pieces * sizeof *w->addresses};
        r[count++] = (struct region){"address buckets", w->address_buckets, bytes};
    }
    r[count++] = (struct region){"blocks", w->blocks, w->block_count * w->block_bytes};
    r[count++] = (struct region){"links", w->links, w->block_count * sizeof *w->links};
    r[count++] = (struct region){"inputs", w->inputs, (n + 1) * sizeof *w->inputs};
    for (size_t i = 0; i <= n; i++)
        r[count++] = (struct region){"input", w->inputs[i].data, w->inputs[i].size};
    r[count++] = (struct region){"stage", w->stage, w->stage_size};
    r[count++] = (struct region){"answers", w->answers, w->answers_size};
    r[count++] = (struct region){"ring", w->ring.bytes, w->ring.size};
    return count;
}

static void layout_places_as_many_bytes_as_it_measures(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct exportws measured;
        shape_options(&shapes[i], &measured.o);
        size_t bytes = layout(&measured, NULL);
        assert_int_equal(bytes, exportws_memory(&measured.o));
        assert_int_equal(bytes % sizeof(uint64_t), 0);
        struct guard g = guard_map(bytes);
        struct exportws *w = (struct exportws *)(void *)(g.end - bytes);
        shape_options(&shapes[i], &w->o);
        if (layout(w, g.end - bytes) != bytes)
            fail_msg("%s: places something else", shapes[i].name);
        guard_unmap(&g);
    }
}

/* No two things share a byte, none is missing, and little is lost between them. */
static void layout_leaves_no_gaps_and_overlaps_nothing(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct region regions[64];
        exportws_options o;
        shape_options(&shapes[i], &o);
        size_t bytes = exportws_memory(&o), count;
        struct guard g = guard_map(bytes);
        uint8_t *start = g.end - bytes, *end = start;
        struct exportws *w = (struct exportws *)(void *)start;
        w->o = o;
        layout(w, start);
        count = layout_regions(w, regions);
        for (size_t k = 0; k < count; k++) {
            if ((const uint8_t *)regions[k].at != end)
                fail_msg("%s: %s is elsewhere", shapes[i].name, regions[k].name);
            end += (regions[k].bytes + 7) / 8 * 8;
        }
        assert_ptr_equal(end, g.end);
        for (size_t k = 1; k < count; k++) /* all of it can be written */
            for (size_t b = 0; b < regions[k].bytes; b += 512)
                ((uint8_t *)(uintptr_t)regions[k].at)[b] = 1;
        guard_unmap(&g);
    }
}

static void layout_has_room_for_what_it_promises(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct exportws w;
        shape_options(&shapes[i], &w.o);
        layout(&w, NULL);
        const exportws_options *o = &w.o;
        assert_int_equal(w.capacity, o->capacity);
        assert_int_equal(w.pushers_at, o->capacity + o->handshakes);
        assert_true(w.conns_end >= w.pushers_at + o->pushers);
        assert_true(w.token_count > w.capacity + w.block_count - w.reserve);
        assert_int_equal(w.bucket_mask & (w.bucket_mask + 1), 0);
        assert_true(w.name_bytes > o->max_token_bytes);
        assert_true(w.block_count >= 4 && w.block_bytes % 8 == 0);
        assert_true(w.block_bytes >= sizeof(struct message) + o->max_token_bytes + 64);
        assert_true(w.stage_size >= MESSAGE_HEAD_MAX + o->max_push_bytes);
        assert_true(w.stage_size >= MESSAGE_HEAD_MAX + CONTROL_MAX);
        assert_true(w.input_count >= 1 && w.answers_size >= 256);
        assert_true(w.ring.size >= sizeof(struct posted) + o->max_push_bytes + o->max_token_bytes);
        assert_true(w.address_mask == 0 || w.address_mask + 1 >= o->capacity);
        size_t kept = w.block_count - w.reserve; /* those that --buffer pays for */
        size_t each = w.block_bytes + sizeof *w.links + sizeof *w.tokens + sizeof *w.buckets;
        assert_int_equal(kept, larger(o->buffer_bytes / each, 4));
        assert_true(w.reserve * w.block_bytes >=
                    sizeof(struct message) + o->max_token_bytes + o->max_push_bytes);
    }
}

static void inputs_hold_a_whole_message_and_a_control_frame(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        exportws_options o;
        shape_options(&shapes[i], &o);
        size_t bytes = exportws_memory(&o);
        struct guard g = guard_map(bytes);
        struct exportws *w = (struct exportws *)(void *)(g.end - bytes);
        w->o = o;
        layout(w, g.end - bytes);
        for (uint32_t k = 0; k < w->input_count; k++) {
            assert_int_equal(w->inputs[k].size, w->input_bytes);
            assert_true(w->inputs[k].size >= o.max_message_bytes + INPUT_REST);
        }
        assert_true(INPUT_REST >= FRAME_HEAD_MAX + CONTROL_MAX && w->scratch->size >= HEAD_MAX);
        assert_ptr_equal(w->scratch, w->inputs + w->input_count);
        assert_true(w->scratch->size >= o.max_token_bytes);
        guard_unmap(&g);
    }
}

/* ===== Sizes ===== */

/* More of anything never takes less memory. */
static void sizes_grow_with_every_option(void **state)
{
    static const size_t members[] = {AT(capacity), AT(handshakes), AT(pushers), AT(max_token_bytes),
                                     AT(max_message_bytes), AT(max_push_bytes), AT(buffer_bytes)};
    (void)state;
    for (size_t i = 0; i < COUNT(members); i++) {
        exportws_options o;
        size_t least = 0, before = 0;
        exportws_defaults(&o);
        for (size_t k = 0; k < OPTIONS; k++)
            if (options[k].at == members[i] && options[k].kind != OPTION_ACTION)
                least = (size_t)options[k].least;
        assert_true(least > 0);
        for (size_t value = least; value <= 200000; value += value / 16 + 1) {
            if (members[i] == AT(max_token_bytes) && value > 1024) break;
            if (members[i] == AT(pushers) && value > 100000) break;
            memcpy((char *)&o + members[i], &value, sizeof value);
            size_t now = exportws_memory(&o);
            if (now < before || now == 0)
                fail_msg("member %zu: %zu bytes with %zu, %zu before", i, now, value, before);
            before = now;
        }
        assert_true(before > exportws_memory(&(exportws_options){0}));
    }
}

static void sizes_of_other_options_take_no_memory(void **state)
{
    exportws_options o;
    exportws_defaults(&o);
    const size_t bytes = exportws_memory(&o);
    (void)state;
    o.per_token = 1000000, o.queue = 1000000, o.hold_ms = 86400000, o.ping_ms = 1;
    assert_int_equal(exportws_memory(&o), bytes);
    o.per_address = 1;
    assert_true(exportws_memory(&o) > bytes);
    const size_t with = exportws_memory(&o);
    o.per_address = 1000000;
    assert_int_equal(exportws_memory(&o), with);
}

/* The bar: 256 bytes a session, everything included, with the default token size. */
static void session_takes_256_bytes_at_most(void **state)
{
    static const size_t capacities[] = {100, 1024, 4096, 10000, 65536, 100000, 1000000};
    (void)state;
    for (size_t i = 0; i + 1 < COUNT(capacities); i++) {
        exportws_options o;
        exportws_defaults(&o);
        o.capacity = capacities[i];
        size_t few = exportws_memory(&o);
        o.capacity = capacities[i + 1];
        size_t each = (exportws_memory(&o) - few + capacities[i + 1] - capacities[i] - 1) /
                      (capacities[i + 1] - capacities[i]);
        if (capacities[i] >= 1024 && each > 256)
            fail_msg("%zu to %zu: %zu bytes", capacities[i], capacities[i + 1], each);
    }
}

static void largest_options_of_all_are_measured_or_refused(void **state)
{
    exportws_options o;
    (void)state;
    exportws_defaults(&o);
    for (size_t i = 0; i < OPTIONS; i++) {
        size_t most = options[i].most > SIZE_MAX ? SIZE_MAX : (size_t)options[i].most;
        if (options[i].kind == OPTION_COUNT || options[i].kind == OPTION_BYTES)
            memcpy((char *)&o + options[i].at, &most, sizeof most);
    }
    size_t bytes = exportws_memory(&o);
    if (SIZE_MAX > UINT32_MAX) assert_true(bytes > (SIZE_MAX > UINT32_MAX ? (uint64_t)1 << 36 : 0));
    else assert_int_equal(bytes, 0);
}

/* ===== Memory that is handed over ===== */

static void start_needs_every_byte_that_memory_says(void **state)
{
    struct unit u;
    char why[64];
    (void)state;
    unit_defaults(&u);
    u.o.capacity = 10;
    const size_t bytes = exportws_memory(&u.o);
    struct guard g = guard_map(bytes + 8);
    uint8_t *p = g.end - bytes;
    assert_null(exportws_start(&u.o, p, bytes - 1, why, sizeof why));
    assert_string_equal(why, "memory is too small");
    assert_null(exportws_start(&u.o, p, 0, why, sizeof why));
    assert_string_equal(why, "memory is too small");
    assert_null(exportws_start(&u.o, NULL, bytes, why, sizeof why));
    assert_string_equal(why, "memory is NULL");
    for (size_t off = 1; off < 8; off++) {
        assert_null(exportws_start(&u.o, p - off, bytes, why, sizeof why));
        assert_string_equal(why, "memory is not aligned for uint64_t");
    }
    exportws *w = exportws_start(&u.o, p, bytes, why, sizeof why);
    assert_ptr_equal(w, p);
    exportws_end(w);
    w = exportws_start(&u.o, p - 8, bytes + 8, NULL, 0);
    assert_ptr_equal(w, p - 8);
    exportws_end(w);
    guard_unmap(&g);
}

/* The memory's end touches a page that faults, and it need not be zero. */
static void every_shape_starts_in_just_its_memory(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(shapes); i++) {
        struct unit u;
        unit_defaults(&u);
        shape_options(&shapes[i], &u.o);
        u.o.on_log = NULL;
        struct exportws *w = unit_start(&u);
        assert_int_equal(w->memory_bytes, exportws_memory(&u.o));
        assert_int_equal(w->blocks_free, w->block_count);
        assert_int_equal(exportws_step(w, 0), 0);
        assert_int_equal(exportws_sessions(w), 0);
        unit_end(&u);
    }
}

/* Every slot, block and record stands in its free list, once. */
static void free_lists_hold_everything_once(void **state)
{
    struct unit u;
    (void)state;
    unit_defaults(&u);
    u.o.capacity = 37, u.o.handshakes = 5, u.o.pushers = 3, u.o.per_address = 2,
    u.o.buffer_bytes = 10000;
    struct exportws *w = unit_start(&u);
    uint32_t n = 0;
    for (uint32_t i = w->free_session; i != NONE; i = w->conns[i].timer_next)
        assert_int_equal(i, n++);
    assert_int_equal(n, w->capacity);
    for (uint32_t i = w->free_handshake; i != NONE; i = w->conns[i].timer_next)
        assert_int_equal(i, n++);
    assert_int_equal(n, w->pushers_at);
    for (uint32_t i = w->free_pusher; i != NONE; i = w->conns[i].timer_next)
        assert_int_equal(i, n++);
    assert_int_equal(n, w->conns_end);
    n = 0;
    for (uint32_t i = w->free_block; i != NONE; i = w->links[i]) assert_int_equal(i, n++);
    assert_int_equal(n, w->block_count);
    n = 0;
    for (uint32_t i = w->spare[0].first; i != NONE; i = w->tokens[i].messages.last)
        assert_int_equal(i, n++);
    assert_int_equal(n, w->token_count);
    assert_int_equal(w->spare[0].last, n - 1);
    assert_int_equal(w->spare[1].first, NONE);
    n = 0;
    for (uint32_t i = w->free_address; i != NONE; i = w->addresses[i].next)
        assert_int_equal(i, n++);
    assert_int_equal(n, w->capacity);
    for (uint32_t i = 0; i <= w->bucket_mask; i++) assert_int_equal(w->buckets[i], NONE);
    for (uint32_t i = 0; i <= w->address_mask; i++) assert_int_equal(w->address_buckets[i], NONE);
    for (uint32_t i = 0; i < w->input_count; i++) assert_int_equal(w->inputs[i].owner, NONE);
    assert_int_equal(w->free_inputs, w->input_count);
    unit_end(&u);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_are_aligned_and_follow_each_other),
        cmocka_unit_test(pieces_that_are_too_many_stay_so),
        cmocka_unit_test(power_of_two_is_the_least_that_holds),
        cmocka_unit_test(layout_places_as_many_bytes_as_it_measures),
        cmocka_unit_test(layout_leaves_no_gaps_and_overlaps_nothing),
        cmocka_unit_test(layout_has_room_for_what_it_promises),
        cmocka_unit_test(inputs_hold_a_whole_message_and_a_control_frame),
        cmocka_unit_test(sizes_grow_with_every_option),
        cmocka_unit_test(sizes_of_other_options_take_no_memory),
        cmocka_unit_test(session_takes_256_bytes_at_most),
        cmocka_unit_test(largest_options_of_all_are_measured_or_refused),
        cmocka_unit_test(start_needs_every_byte_that_memory_says),
        cmocka_unit_test(every_shape_starts_in_just_its_memory),
        cmocka_unit_test(free_lists_hold_everything_once),
    };
    return cmocka_run_group_tests_name("arena", tests, NULL, NULL);
}
