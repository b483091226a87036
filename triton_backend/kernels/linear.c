/* Linear layers in bfloat16 on the processor's matrix units (Intel's AMX): out = rows weight^T + bias; and two of them
 * as the gate and the numbers of a feed-forward layer: out = silu(gate) * numbers.
 *
 * Sums are float32, rounded once.  A line of a tile (tiles.h) has 32 inputs of a row; or of weights a pair of inputs
 * for each of 16 outputs; or of sums 16 outputs.
 *
 * Weights lie in memory in the order in which they are read: panels of 32 outputs, each from its first inputs to its
 * last, two tiles for the same inputs at a time.  One has the even outputs and one the odd, so that two lines of
 * sums are a pair (vectors.h).  What is missing to whole tiles is zero.
 *
 * With few rows the weights' way from memory is all that takes time.  So every thread fetches a panel while it works
 * on the one before; and it takes the next that nobody has, as cores that others use too differ in speed.
 *
 * With many rows the products' own time counts, and they leave most of a core idle.  So the sums of 32 rows and 32
 * outputs, a square, are rounded and written line by line during the products of the next square.  What is written
 * over is in another core's cache or in none: if it is not asked for in time, all that comes after it waits.
 */
#include "linear.h"

#ifdef HAS_TILES

enum {
    OUTPUTS = 2 * LINES,         /* Of a panel. */
    STEP_BYTES = 2 * TILE_BYTES, /* What a panel has for the same inputs. */
    SQUARE = 2 * LINES,          /* Rows of one. */
    BLOCK_ROWS = 256,            /* That a panel is multiplied with while it is at hand, */
    BLOCK_BYTES = 1 << 20,       /* and that stay in a core's own cache meanwhile: both at most. */
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

/* Of a square's rows, its even outputs and its odd ones; LINES before the first are of rows before it. */
typedef struct {
    floats even[LINES + SQUARE], odd[LINES + SQUARE];
} sums;

struct square {
    int64_t row, num_rows; /* The first, and how many. */
    int64_t panel;
    sums *sums; /* With a gate, its, and after them the numbers'. */
};

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

/* Blocks are of about the same size, and of whole squares but for the last. */
static int64_t block_rows(const struct linear *linear)
{
    const int64_t fitting = least(BLOCK_ROWS, BLOCK_BYTES / (linear->inputs * 2)) / SQUARE * SQUARE;
    const int64_t blocks = ceiling(linear->num_rows, fitting ? fitting : SQUARE);
    return ceiling(ceiling(linear->num_rows, blocks), SQUARE) * SQUARE;
}

static const char *panel_of(const struct linear *linear, int64_t panel)
{
    return linear->weight + panel * (linear->inputs / NUMBERS) * STEP_BYTES;
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

INLINE char *out_of(const struct linear *linear, const struct square *square, int64_t line)
{
    return linear->out + ((square->row + line) * linear->outputs + square->panel * OUTPUTS) * 2;
}

INLINE pair sums_of(const struct linear *linear, const sums *sums, int64_t line, int64_t panel)
{
    pair numbers = {sums->even[LINES + line], sums->odd[LINES + line]};
    if (linear->bias) {
        pair bias = load(linear->bias + panel * OUTPUTS * 2, BFLOAT16);
        numbers.a += bias.a;
        numbers.b += bias.b;
    }
    return numbers;
}

/* Some lines of a square. */
INLINE void finish(const struct linear *linear, const struct square *square, int64_t line, int64_t end)
{
    for (; line < end; line++) {
        pair numbers = sums_of(linear, &square->sums[0], line, square->panel);
        if (linear->is_gated) {
            pair gate = numbers;
            numbers = sums_of(linear, &square->sums[1], line, square->panel + ceiling(linear->outputs, OUTPUTS));
            numbers.a *= silu(gate.a);
            numbers.b *= silu(gate.b);
        }
        store_some(out_of(linear, square, line), numbers, linear->outputs - square->panel * OUTPUTS, BFLOAT16);
    }
}

/* A square's sums for a panel: the first, or the second for the numbers of a gate.  The square before is finished
 * meanwhile, and memory asked for this one's outputs.
 *
 * A last tile that would have lines of no rows has rows before its own instead, whose sums are the same again. */
INLINE void multiply(const struct linear *linear, const struct square *given, const struct square *given_before,
                     int number, struct ahead *given_ahead, int has_lower)
{
    /* Here, gcc keeps them in registers. */
    const struct square square = *given, before = *given_before;
    struct ahead ahead = *given_ahead;
    const int64_t steps = linear->inputs / NUMBERS, stride = linear->inputs * 2;
    const int64_t rest = linear->num_rows - square.row, lower = least(LINES, rest - LINES);
    const int64_t upper = linear->num_rows > LINES ? least(0, rest - LINES) : 0;
    const char *rows = linear->rows + square.row * stride;
    const char *panel = panel_of(linear, square.panel + number * ceiling(linear->outputs, OUTPUTS));
    const int64_t lines_per_step = ceiling(SQUARE, steps * (linear->is_gated ? 2 : 1));
    int64_t line = number * steps * lines_per_step;
    _tile_zero(UPPER_EVEN);
    _tile_zero(UPPER_ODD);
    _tile_zero(LOWER_EVEN);
    _tile_zero(LOWER_ODD);
    for (int64_t step = 0; step < steps; step++, line += lines_per_step) {
        _tile_loadd(EVEN, panel + step * STEP_BYTES, LINE_BYTES);
        _tile_loadd(UPPER, rows + upper * stride + step * LINE_BYTES, stride);
        _tile_loadd(ODD, panel + step * STEP_BYTES + TILE_BYTES, LINE_BYTES);
        _tile_dpbf16ps(UPPER_EVEN, UPPER, EVEN);
        _tile_dpbf16ps(UPPER_ODD, UPPER, ODD);
        if (has_lower) {
            _tile_loadd(LOWER, rows + lower * stride + step * LINE_BYTES, stride);
            _tile_dpbf16ps(LOWER_EVEN, LOWER, EVEN);
            _tile_dpbf16ps(LOWER_ODD, LOWER, ODD);
        }
        fetch(&ahead);
        for (int64_t at = line; at < least(line + lines_per_step, square.num_rows); at++)
            __builtin_prefetch(out_of(linear, &square, at), 1);
        finish(linear, &before, line, least(line + lines_per_step, before.num_rows));
    }
    sums *sums = &square.sums[number];
    _tile_stored(UPPER_EVEN, sums->even + LINES + upper, LINE_BYTES);
    _tile_stored(UPPER_ODD, sums->odd + LINES + upper, LINE_BYTES);
    if (has_lower) {
        _tile_stored(LOWER_EVEN, sums->even + LINES + lower, LINE_BYTES);
        _tile_stored(LOWER_ODD, sums->odd + LINES + lower, LINE_BYTES);
    }
    *given_ahead = ahead;
}

/* A block of rows times a panel, or two.  The last square is left to be finished, and so it is given. */
static void multiply_block(const struct linear *linear, int64_t first, int64_t panel, int64_t next_panel,
                           sums (*sums)[2], struct square *before)
{
    const int64_t panels = ceiling(linear->outputs, OUTPUTS);
    const int64_t end = least(first + block_rows(linear), linear->num_rows);
    const int num = linear->is_gated ? 2 : 1;
    struct ahead ahead[2] = {0};
    for (int number = 0; number < num && next_panel < panels; number++)
        ahead[number] = ahead_of(linear, next_panel + number * panels, ceiling(end - first, SQUARE));
    for (int64_t row = first; row < end; row += SQUARE) {
        const struct square square = {
            .row = row,
            .num_rows = least(end - row, SQUARE),
            .panel = panel,
            .sums = sums[before->sums == sums[0]],
        };
        for (int number = 0; number < num; number++)
            if (square.num_rows > LINES)
                multiply(linear, &square, before, number, &ahead[number], 1);
            else
                multiply(linear, &square, before, number, &ahead[number], 0);
        *before = square;
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
    const int64_t panels = ceiling(linear->outputs, OUTPUTS), size = block_rows(linear);
    const int64_t parts = ceiling(linear->num_rows, size) * panels;
    /* In memory, as threads share it: gcc does not know that loading it reads it all. */
    const struct registers registers = registers_for(linear->num_rows);
    int64_t untaken = 0;
#pragma omp parallel num_threads(linear->threads)
    {
        sums sums[2][2];
        struct square last = {0};
        _tile_loadconfig(&registers);
        for (int64_t part = take(&untaken), next; part < parts; part = next) {
            next = take(&untaken);
            multiply_block(linear, part / panels * size, part % panels, next < parts ? next % panels : panels, sums,
                           &last);
        }
        _tile_release();
        finish(linear, &last, 0, last.num_rows);
    }
}

#endif
