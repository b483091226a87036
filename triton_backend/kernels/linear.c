/* Linear layers in bfloat16 on the processor's matrix units (Intel's AMX): out = rows weight^T + bias; and two of them
 * as the gate and the numbers of a feed-forward layer: out = silu(gate) * numbers.
 *
 * Sums are float32, rounded once.  A line of a tile (tiles.h) has 32 inputs of a row; or of weights a pair of inputs for
 * each of 16 outputs; or of sums 16 outputs.
 *
 * Weights lie in memory in the order in which they are read: panels of 32 outputs, each from its first inputs to its
 * last, two tiles for the same inputs at a time.  One has the even outputs and one the odd, so that two lines of
 * sums are a pair (vectors.h).  What is missing to whole tiles is zero.
 *
 * With few rows the weights' way from memory is all that takes time.  So every thread fetches a panel while it works
 * on the one before; and it takes the next that nobody has, as cores that others use too differ in speed.
 */
#include "linear.h"

#ifdef HAS_TILES

enum {
    OUTPUTS = 2 * LINES,         /* Of a panel. */
    STEP_BYTES = 2 * TILE_BYTES, /* What a panel has for the same inputs. */
    BLOCK_ROWS = 256,            /* Whose inputs stay in a core's own cache, beside two panels. */
};

/* The registers; the instructions want plain numbers. */
#define UPPER_EVEN 0
#define UPPER_ODD 1
#define LOWER_EVEN 2
#define LOWER_ODD 3
#define UPPER 4
#define LOWER 5
#define EVEN 6
#define ODD 7

/* Of 32 rows and 32 outputs: the upper rows' even outputs, their odd ones, and the same of the lower rows. */
typedef struct {
    floats of[2][2][LINES];
} sums;

/* A line less of rows is a line less of work. */
static struct registers registers_for(int64_t num_rows)
{
    const uint8_t lines = least(num_rows, LINES);
    return (struct registers){
        .palette = 1,
        .line_bytes = {[UPPER_EVEN ... ODD] = LINE_BYTES},
        .lines = {[UPPER_EVEN ... LOWER] = lines, [EVEN ... ODD] = LINES},
    };
}

/* One tile of rows.  Lines of rows that are not there stay as they are, and so do sums that nobody reads. */
static void gather(const struct linear *linear, int64_t upper, int64_t step, char *tile)
{
    const int64_t inputs = least(linear->inputs - step * NUMBERS, NUMBERS);
    const char *from = linear->rows + (upper * linear->inputs + step * NUMBERS) * 2;
    const int64_t lines = least(linear->num_rows - upper, LINES);
    for (int64_t line = 0; line < lines; line++, from += linear->inputs * 2, tile += LINE_BYTES) {
        if (inputs == NUMBERS) {
            memcpy(tile, from, LINE_BYTES);
        } else {
            memset(tile, 0, LINE_BYTES);
            memcpy(tile, from, inputs * 2);
        }
    }
}

static const char *panel_of(const struct linear *linear, int64_t panel)
{
    return linear->weight + panel * ceiling(linear->inputs, NUMBERS) * STEP_BYTES;
}

/* What is to come from memory meanwhile, some of it at each step. */
struct ahead {
    const char *next, *end;
    int64_t lines_per_step;
};

/* In the time of so many passes over a panel. */
static struct ahead ahead_of(const struct linear *linear, int64_t panel, int64_t passes)
{
    return (struct ahead){
        .next = panel_of(linear, panel),
        .end = panel_of(linear, panel + 1),
        .lines_per_step = ceiling(STEP_BYTES / LINE_BYTES, passes),
    };
}

INLINE void fetch(struct ahead *ahead)
{
    for (int64_t line = 0; line < ahead->lines_per_step && ahead->next < ahead->end; line++) {
        _mm_prefetch(ahead->next, _MM_HINT_T1);
        ahead->next += LINE_BYTES;
    }
}

/* The sums of up to 32 rows for a panel.  `rows` has a tile a step of the upper ones, then of the lower, if any. */
INLINE void multiply(sums *sums, const char *rows, const char *panel, int64_t steps, struct ahead *ahead,
                     int has_lower)
{
    const char *upper = rows, *lower = rows + steps * TILE_BYTES;
    _tile_zero(UPPER_EVEN);
    _tile_zero(UPPER_ODD);
    _tile_zero(LOWER_EVEN);
    _tile_zero(LOWER_ODD);
    for (int64_t step = 0; step < steps; step++) {
        _tile_loadd(EVEN, panel + step * STEP_BYTES, LINE_BYTES);
        _tile_loadd(UPPER, upper + step * TILE_BYTES, LINE_BYTES);
        _tile_loadd(ODD, panel + step * STEP_BYTES + TILE_BYTES, LINE_BYTES);
        _tile_dpbf16ps(UPPER_EVEN, UPPER, EVEN);
        _tile_dpbf16ps(UPPER_ODD, UPPER, ODD);
        if (has_lower) {
            _tile_loadd(LOWER, lower + step * TILE_BYTES, LINE_BYTES);
            _tile_dpbf16ps(LOWER_EVEN, LOWER, EVEN);
            _tile_dpbf16ps(LOWER_ODD, LOWER, ODD);
        }
        fetch(ahead);
    }
    _tile_stored(UPPER_EVEN, sums->of[0][0], LINE_BYTES);
    _tile_stored(UPPER_ODD, sums->of[0][1], LINE_BYTES);
    _tile_stored(LOWER_EVEN, sums->of[1][0], LINE_BYTES);
    _tile_stored(LOWER_ODD, sums->of[1][1], LINE_BYTES);
}

INLINE pair sums_of(const struct linear *linear, const sums *sums, int64_t row, int64_t panel)
{
    const floats(*lines)[LINES] = sums->of[row / LINES];
    pair numbers = {lines[0][row % LINES], lines[1][row % LINES]};
    if (linear->bias) {
        pair bias = load(linear->bias + panel * OUTPUTS * 2, BFLOAT16);
        numbers.a += bias.a;
        numbers.b += bias.b;
    }
    return numbers;
}

/* A block of rows times a panel, or two. */
static void multiply_block(const struct linear *linear, int64_t block, int64_t panel, int64_t next_panel)
{
    const int64_t steps = ceiling(linear->inputs, NUMBERS), panels = ceiling(linear->outputs, OUTPUTS);
    const int64_t first = block * BLOCK_ROWS, end = least(first + BLOCK_ROWS, linear->num_rows);
    const int num = linear->is_gated ? 2 : 1;
    struct ahead ahead[2] = {0};
    for (int at = 0; at < num && next_panel < panels; at++)
        ahead[at] = ahead_of(linear, next_panel + at * panels, ceiling(end - first, 2 * LINES));
    for (int64_t row = first; row < end; row += 2 * LINES) {
        const char *rows = linear->tiles + row / LINES * steps * TILE_BYTES;
        const int64_t num_rows = least(end - row, 2 * LINES);
        sums sums[2];
        for (int at = 0; at < num; at++) {
            const char *weight = panel_of(linear, panel + at * panels);
            if (num_rows > LINES)
                multiply(&sums[at], rows, weight, steps, &ahead[at], 1);
            else
                multiply(&sums[at], rows, weight, steps, &ahead[at], 0);
        }
        char *out = linear->out + (row * linear->outputs + panel * OUTPUTS) * 2;
        for (int64_t line = 0; line < num_rows; line++, out += linear->outputs * 2) {
            pair numbers = sums_of(linear, &sums[0], line, panel);
            if (linear->is_gated) {
                pair gate = numbers;
                numbers = sums_of(linear, &sums[1], line, panel + panels);
                numbers.a *= silu(gate.a);
                numbers.b *= silu(gate.b);
            }
            store_some(out, numbers, linear->outputs - panel * OUTPUTS, BFLOAT16);
        }
    }
}

static int64_t take(int64_t *next)
{
    return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
}

void linear(const struct linear *linear)
{
    if (!linear->num_rows)
        return; /* Tiles without lines are an error. */
    const int64_t steps = ceiling(linear->inputs, NUMBERS), tiles = ceiling(linear->num_rows, LINES) * steps;
    const int64_t panels = ceiling(linear->outputs, OUTPUTS);
    const int64_t parts = ceiling(linear->num_rows, BLOCK_ROWS) * panels;
    /* In memory, as threads share it: gcc does not know that loading it reads it all. */
    const struct registers registers = registers_for(linear->num_rows);
    int64_t untaken = 0;
#pragma omp parallel num_threads(linear->threads)
    {
#pragma omp for
        for (int64_t tile = 0; tile < tiles; tile++)
            gather(linear, tile / steps * LINES, tile % steps, linear->tiles + tile * TILE_BYTES);

        _tile_loadconfig(&registers);
        for (int64_t part = take(&untaken), next; part < parts; part = next) {
            next = take(&untaken);
            multiply_block(linear, part / panels, part % panels, next < parts ? next % panels : panels);
        }
        _tile_release();
    }
}

#endif
