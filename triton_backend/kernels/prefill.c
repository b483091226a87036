/* Attention of a chunk of a prompt in bfloat16, on the processor's matrix units (Intel's AMX): it writes the chunk's
 * keys and values to where they belong (cache.py), and reads what is there of the tokens before.
 *
 * A softmax that runs along in blocks of keys (arXiv:1805.02867).  Scores and sums are float32, weights are rounded to
 * bfloat16.  A tile is 16 lines of 64 bytes (Intel's manual, TDPBF16PS).  Here a tile's columns are always queries, 16
 * side by side, a stripe: scores are keys times queries, sums are columns of values times weights.  So whatever is done
 * to a query's scores is done to vectors of 16 queries, nothing is summed across a vector, and weights lie where the
 * next product wants them, two keys' under each other.
 *
 * Weights take longer than both products.  So a stripe's are drawn up while the next one's scores are multiplied, and
 * the sums of the one before.
 */
#include "attention.h"
#include "tiles.h"

#ifdef HAS_TILES

#include <math.h>

enum {
    QUERIES = 128,    /* Positions for which keys and values are put into tiles once. */
    KEYS = 128,       /* Of a block. */
    TO_ZERO = 0x8040, /* Of the MXCSR register: results that are denormal, and operands. */
};

/* A score whose weight is zero; differences of infinities would be no numbers. */
#define UNSEEN (-0x1p100f)

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static const struct registers WHOLE = {
    .palette = 1,
    .line_bytes = {[0 ... 7] = LINE_BYTES},
    .lines = {[0 ... 7] = LINES},
};

/* Tiles, so many bytes from a line to the next, from a tile to the one beside it, and to the one a step on. */
struct tiles {
    const char *numbers;
    int64_t line_bytes, tile_bytes, step_bytes;
};

/* sums [num][LINES] = lines [num][steps] times columns [steps], or grow by that.  It may be done bit by bit. */
struct product {
    floats *sums;
    struct tiles lines;
    const char *columns;
    int64_t num, steps;
    int grows;
};

/* One tile of sums, or two. */
INLINE void multiply(struct product *product, int num)
{
    floats *sums = product->sums;
    const struct tiles lines = product->lines;
    /* gcc does not know that tiles are loaded from memory. */
    __asm__ volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    if (product->grows) {
        _tile_loadd(0, sums, LINE_BYTES);
        if (num == 2)
            _tile_loadd(1, sums + LINES, LINE_BYTES);
    }
    for (int64_t step = 0; step < product->steps; step++) {
        const char *tile = lines.numbers + step * lines.step_bytes;
        _tile_loadd(2, product->columns + step * TILE_BYTES, LINE_BYTES);
        _tile_loadd(3, tile, lines.line_bytes);
        _tile_dpbf16ps(0, 3, 2);
        if (num == 2) {
            _tile_loadd(4, tile + lines.tile_bytes, lines.line_bytes);
            _tile_dpbf16ps(1, 4, 2);
        }
    }
    _tile_stored(0, sums, LINE_BYTES);
    if (num == 2)
        _tile_stored(1, sums + LINES, LINE_BYTES);
    product->sums += num * LINES;
    product->lines.numbers += num * lines.tile_bytes;
    product->num -= num;
}

/* So many of the tiles that are left. */
static void go_on(struct product *product, int64_t num)
{
    num = least(num, product->num);
    for (; num >= 2; num -= 2)
        multiply(product, 2);
    if (num)
        multiply(product, 1);
}

/* Half a line; missing numbers are zero. */
INLINE halves halves_of(const char *numbers, int64_t count)
{
    halves half = {0};
    if (count >= LANES)
        memcpy(&half, numbers, sizeof half);
    else
        memcpy(&half, numbers, count * 2);
    return half;
}

INLINE void store_halves(char *to, floats numbers, int64_t count)
{
    const halves narrow = __builtin_convertvector(rounded(numbers) >> 16, halves);
    if (count >= LANES)
        memcpy(to, &narrow, sizeof narrow);
    else
        memcpy(to, &narrow, count * 2);
}

/* Lines become columns: halves of the square change places, then halves of those. */
INLINE void transpose(ints lines[LINES])
{
    const ints lane = LANE_NUMBERS;
    for (int width = LINES / 2; width; width /= 2)
        for (int line = 0; line < LINES; line++)
            if (!(line & width)) {
                const ints upper = lines[line], lower = lines[line + width], is_right = (lane & width) != 0;
                lines[line] = __builtin_shuffle(upper, lower, lane + (is_right & (LANES - width)));
                lines[line + width] = __builtin_shuffle(upper, lower, lane + (is_right & LANES) + (~is_right & width));
            }
}

/* Keys [count][dim], those to a whole step zero. */
static void lay(char *to, const char *keys, int64_t count, int64_t dim)
{
    const int64_t bytes = ceiling(dim, NUMBERS) * LINE_BYTES, num = ceiling(count, NUMBERS) * NUMBERS;
    if (dim % NUMBERS || count < num)
        memset(to, 0, num * bytes);
    if (dim % NUMBERS)
        for (int64_t key = 0; key < count; key++)
            memcpy(to + key * bytes, keys + key * dim * 2, dim * 2);
    else
        memcpy(to, keys, count * bytes);
}

/* Up to 16 queries, `stride` bytes apart, as columns [steps]: a pair of a query's numbers under each other. */
static void stand(char *tiles, const char *queries, int64_t stride, int64_t count, int64_t dim)
{
    for (int64_t at = 0; at < dim; at += NUMBERS, tiles += TILE_BYTES) {
        ints lines[LINES] = {0};
        for (int64_t query = 0; query < count; query++)
            memcpy(&lines[query], queries + query * stride + at * 2, least(dim - at, NUMBERS) * 2);
        transpose(lines);
        memcpy(tiles, lines, TILE_BYTES);
    }
}

/* Values [count][dim] as lines [LINES of dim a tile][KEYS]; those to a whole step are zero. */
static void turn(char *tiles, const char *values, int64_t count, int64_t dim)
{
    for (int64_t column = 0; column < dim; column += LINES)
        for (int64_t first = 0; first < KEYS; first += NUMBERS, tiles += TILE_BYTES) {
            if (first >= count)
                continue;
            ints lines[LINES];
            for (int64_t pair = 0; pair < LINES; pair++) {
                const int64_t at = first + 2 * pair;
                const char *value = values + (at * dim + column) * 2;
                const halves zeros = {0};
                const halves even = at < count ? halves_of(value, dim - column) : zeros;
                const halves odd = at + 1 < count ? halves_of(value + dim * 2, dim - column) : zeros;
                const words low = __builtin_convertvector(even, words), high = __builtin_convertvector(odd, words);
                lines[pair] = (ints)(low | high << 16);
            }
            transpose(lines);
            memcpy(tiles, lines, TILE_BYTES);
        }
}

/* 2^x, to within a part in ten thousand: a twentieth of what rounding to bfloat16 does.  The polynomial is fitted to
 * the least relative error; it is 1 at 0. */
INLINE floats power(floats x)
{
    const floats whole = (floats)_mm512_roundscale_ps((__m512)x, 0), part = x - whole;
    const floats p = ((5.500893097e-2f * part + 2.422109593e-1f) * part + 6.932829271e-1f) * part + 1;
    return (floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
}

/* Two keys' weights as bfloat16, those of each query under each other. */
INLINE void store_pair(char *to, floats even, floats odd)
{
    const ints lane = LANE_NUMBERS;
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
    _mm512_store_si512(to, _mm512_permutexvar_epi16((__m512i)(lane * 0x10001 + (LANES << 16)), halves));
}

/* What the query heads that share a KV head see. */
struct part {
    char *keys, *values; /* [capacity, dim] */
    int64_t kv_head;
};

static struct part part_of(const struct chunk *chunk, int64_t kv_head)
{
    return (struct part){
        .keys = chunk->tensors[2 * chunk->layer] + kv_head * chunk->capacity * chunk->key_dim * 2,
        .values = chunk->tensors[2 * chunk->layer + 1] + kv_head * chunk->capacity * chunk->value_dim * 2,
        .kv_head = kv_head,
    };
}

static void keep(const struct chunk *chunk, struct part part)
{
    for (int64_t at = 0; at < chunk->length; at++) {
        const int64_t position = chunk->start + at;
        memcpy(part.keys + position * chunk->key_dim * 2, head_of(&chunk->key, 0, part.kv_head, at),
               chunk->key_dim * 2);
        memcpy(part.values + position * chunk->value_dim * 2, head_of(&chunk->value, 0, part.kv_head, at),
               chunk->value_dim * 2);
    }
}

/* 16 queries of a head. */
struct stripe {
    int64_t head, at; /* The first's position in the chunk. */
    const char *queries;
    floats *sums;
    floats most, total; /* Of each: its largest score, as a power of two, and the sum of its weights. */
};

/* Keys of a block, in whole steps. */
struct range {
    int64_t start, end;
};

/* What a stripe sees of a block. */
struct view {
    struct stripe *stripe;
    int64_t first; /* Where its first query is in the block. */
    struct range keys;
};

/* Those that some query of a stripe sees, if any. */
INLINE struct range range_of(int64_t first, int64_t width, int64_t window)
{
    const int64_t oldest = window && window <= first ? first + 1 - window : 0, end = least(first + LINES, width);
    if (end <= oldest)
        return (struct range){0};
    return (struct range){oldest / NUMBERS * NUMBERS, ceiling(end, NUMBERS) * NUMBERS};
}

/* Scores of keys become weights, in tiles; returns what sums of blocks before have to be scaled by.  Meanwhile two
 * products are done. */
static floats weigh(floats *scores, char *weights, struct view view, struct scores by, struct product *next,
                    struct product *last)
{
    struct stripe *stripe = view.stripe;
    const struct range keys = view.keys;
    const int64_t first = view.first;
    float scaling = by.scaling;
    if (by.softcap) {
        for (int64_t key = keys.start; key < keys.end; key++)
            scores[key] = capped(scores[key], by);
        scaling = 1;
    }
    scaling *= M_LOG2E;
    /* Each query sees the keys up to its own, or so many of them. */
    const ints lane = LANE_NUMBERS, own = lane + (int)first;
    for (int64_t key = first > 0 ? first : 0; key < keys.end; key++)
        scores[key] = either(own >= (int)key, scores[key], all(UNSEEN));
    if (by.window)
        for (int64_t key = keys.start; key < least(keys.end, first + LINES - by.window); key++)
            scores[key] = either(own - (int)by.window < (int)key, scores[key], all(UNSEEN));

    floats even = scores[keys.start], odd = scores[keys.start + 1];
    for (int64_t key = keys.start + 2; key < keys.end; key += 2) {
        even = larger(scores[key], even);
        odd = larger(scores[key + 1], odd);
    }
    const floats before = stripe->most, most = larger(larger(even, odd) * scaling, before);
    floats even_sum = {0}, odd_sum = {0};
    const int64_t steps = (keys.end - keys.start) / NUMBERS;
    const int64_t next_num = ceiling(next->num, steps), last_num = ceiling(last->num, steps);
    for (int64_t step = keys.start; step < keys.end; step += NUMBERS) {
        go_on(next, next_num);
        go_on(last, last_num);
        for (int64_t key = step; key < step + NUMBERS; key += 2) {
            even = power(scores[key] * scaling - most);
            odd = power(scores[key + 1] * scaling - most);
            even_sum += even;
            odd_sum += odd;
            store_pair(weights + key / 2 * LINE_BYTES, even, odd);
        }
    }
    const floats factor = power(before - most);
    stripe->most = most;
    stripe->total = stripe->total * factor + (even_sum + odd_sum);
    return factor;
}

static void scale(floats *sums, int64_t num, floats factor)
{
    if (_mm512_cmp_ps_mask((__m512)factor, (__m512)all(1), _CMP_NEQ_UQ))
        for (int64_t at = 0; at < num; at++)
            sums[at] *= factor;
}

/* Some positions: `first` of the chunk and those after it. */
static void attend(const struct chunk *chunk, struct part part, int64_t first)
{
    const int64_t share = chunk->heads / chunk->kv_heads;
    const int64_t steps = ceiling(chunk->key_dim, NUMBERS), columns = ceiling(chunk->value_dim, LINES);
    const int64_t count = least(chunk->length - first, QUERIES), position = chunk->start + first;
    const int64_t end = position + count, window = chunk->scores.window;
    const int64_t seen = window && window <= position ? position + 1 - window : 0;
    const int64_t num = share * ceiling(count, LINES), key_bytes = steps * LINE_BYTES;

    struct stripe stripes[num];
    struct view views[num];
    char queries[num][steps * TILE_BYTES] __attribute__((aligned(64)));
    floats sums[num][columns * LINES];
    floats scores[2][KEYS];
    char keys[KEYS * key_bytes] __attribute__((aligned(64)));
    char values[KEYS / NUMBERS * columns * TILE_BYTES] __attribute__((aligned(64)));
    char weights[2][KEYS / NUMBERS * TILE_BYTES] __attribute__((aligned(64)));

    memset(sums, 0, sizeof sums);
    for (int64_t number = 0; number < num; number++) {
        const int64_t head = part.kv_head * share + number % share, at = first + number / share * LINES;
        stand(queries[number], head_of(&chunk->query, 0, head, at), chunk->query.position_stride,
              least(chunk->length - at, LINES), chunk->key_dim);
        stripes[number] = (struct stripe){head, at, queries[number], sums[number], all(UNSEEN), {0}};
    }

    for (int64_t from = seen; from < end; from += KEYS) {
        const int64_t width = least(end - from, KEYS);
        lay(keys, part.keys + from * chunk->key_dim * 2, width, chunk->key_dim);
        turn(values, part.values + from * chunk->value_dim * 2, width, chunk->value_dim);
        int64_t num_views = 0;
        for (struct stripe *stripe = stripes; stripe < stripes + num; stripe++) {
            const struct view view = {stripe, chunk->start + stripe->at - from,
                                      range_of(chunk->start + stripe->at - from, width, window)};
            if (view.keys.start < view.keys.end)
                views[num_views++] = view;
        }
        struct product next = {0}, last = {0};
        for (int64_t at = 0; at <= num_views; at++) {
            if (at < num_views)
                next = (struct product){
                    .sums = &scores[at % 2][views[at].keys.start],
                    .lines = {keys + views[at].keys.start * key_bytes, key_bytes, LINES * key_bytes, LINE_BYTES},
                    .columns = views[at].stripe->queries,
                    .num = (views[at].keys.end - views[at].keys.start) / LINES,
                    .steps = steps,
                };
            if (at > 0) {
                const struct view view = views[at - 1];
                char *own = weights[(at - 1) % 2];
                const floats factor = weigh(scores[(at - 1) % 2], own, view, chunk->scores, &next, &last);
                go_on(&last, last.num);
                scale(view.stripe->sums, columns * LINES, factor);
                const int64_t skipped_bytes = view.keys.start / NUMBERS * TILE_BYTES;
                last = (struct product){
                    .sums = view.stripe->sums,
                    .lines = {values + skipped_bytes, LINE_BYTES, KEYS / NUMBERS * TILE_BYTES, TILE_BYTES},
                    .columns = own + skipped_bytes,
                    .num = columns,
                    .steps = (view.keys.end - view.keys.start) / NUMBERS,
                    .grows = 1,
                };
            }
            go_on(&next, next.num);
        }
        go_on(&last, last.num);
    }

    for (const struct stripe *stripe = stripes; stripe < stripes + num; stripe++)
        for (int64_t column = 0; column < columns; column++) {
            floats *lines = stripe->sums + column * LINES;
            for (int64_t line = 0; line < LINES; line++)
                lines[line] /= stripe->total;
            transpose((ints *)lines);
            for (int64_t line = 0; line < least(chunk->length - stripe->at, LINES); line++)
                store_halves(head_of(&chunk->out, 0, stripe->head, stripe->at + line) + column * LINES * 2,
                             lines[line], chunk->value_dim - column * LINES);
        }
}

void prefill_attention(const struct chunk *chunk)
{
    const int64_t parts = chunk->kv_heads, blocks = ceiling(chunk->length, QUERIES);
#pragma omp parallel num_threads(chunk->threads)
    {
#pragma omp for
        for (int64_t number = 0; number < parts; number++)
            keep(chunk, part_of(chunk, number));

        /* Denormal numbers take a processor many times as long, and no weight that small matters. */
        const unsigned before = _mm_getcsr();
        _mm_setcsr(before | TO_ZERO);
        _tile_loadconfig(&WHOLE);
#pragma omp for schedule(dynamic)
        for (int64_t number = 0; number < parts * blocks; number++) {
            /* The last positions see most, and go first. */
            const int64_t first = (blocks - 1 - number / parts) * QUERIES;
            attend(chunk, part_of(chunk, number % parts), first);
        }
        _tile_release();
        _mm_setcsr(before);
    }
}

#endif
