/* A decoder's blocks: what each does to rows before attention and after it; or all that all of them do, by one call, as
 * what surrounds a call takes as long as a kernel that has few rows.
 *
 * It is the other kernels, called one after the other; all numbers are bfloat16 and adjacent.
 */
#include "attention.h"
#include "linear.h"
#include "rows.h"

#ifdef HAS_TILES

struct norm { /* Weight null: none. */
    const char *weight;
    double offset, epsilon;
};

struct block {
    int64_t threads, layer;
    int64_t heads, kv_heads, key_dim, rotated_dim;
    struct scores scores;
    struct norm attention_norm, feed_forward_norm;
    struct norm query_norm, key_norm;
    struct linear joint, attended, gated, down; /* Their rows, the rows' number and outputs are the call's. */
};

static void norm(const struct block *block, const struct norm *norm, int64_t tokens, int64_t heads, int64_t dim,
                 const char *in, char *out, int64_t stride)
{
    rms_norm(BFLOAT16, block->threads, tokens, heads, dim, in, stride, norm->weight, norm->offset, norm->epsilon, out,
             stride);
}

static void multiply(const struct block *block, const struct linear *weights, int64_t num_rows, const char *rows,
                     char *out)
{
    struct linear call = *weights;
    call.threads = block->threads;
    call.num_rows = num_rows;
    call.rows = rows;
    call.out = out;
    linear(&call);
}

/* joint [rows, outputs]: queries, normed and rotated, then keys, the same, then values. */
void before_attention(const struct block *block, int64_t num_rows, const char *rows, const char *cosines,
                      const char *sines, char *normed, char *joint)
{
    const int64_t hidden = block->joint.inputs, stride = block->joint.outputs * 2;
    char *keys = joint + block->heads * block->key_dim * 2;
    norm(block, &block->attention_norm, num_rows, 1, hidden, rows, normed, hidden * 2);
    multiply(block, &block->joint, num_rows, normed, joint);
    if (block->query_norm.weight)
        norm(block, &block->query_norm, num_rows, block->heads, block->key_dim, joint, joint, stride);
    if (block->key_norm.weight)
        norm(block, &block->key_norm, num_rows, block->kv_heads, block->key_dim, keys, keys, stride);
    rotate(BFLOAT16, block->threads, num_rows, block->heads, block->rotated_dim, joint, stride, block->key_dim * 2,
           cosines, sines);
    rotate(BFLOAT16, block->threads, num_rows, block->kv_heads, block->rotated_dim, keys, stride, block->key_dim * 2,
           cosines, sines);
}

/* rows [rows, hidden] += attention's, and that += the feed-forward layer's. */
void after_attention(const struct block *block, int64_t num_rows, char *rows, const char *attended, char *normed,
                     char *gated)
{
    const int64_t hidden = block->attended.outputs, count = num_rows * hidden;
    multiply(block, &block->attended, num_rows, attended, normed);
    add(block->threads, count, rows, normed, rows);
    norm(block, &block->feed_forward_norm, num_rows, 1, hidden, rows, normed, hidden * 2);
    multiply(block, &block->gated, num_rows, normed, gated);
    multiply(block, &block->down, num_rows, gated, normed);
    add(block->threads, count, rows, normed, rows);
}

struct part { /* Some rows' attention: one of these. */
    const struct step *step;
    const struct chunk *chunk;
};

static void attend(const struct block *block, const struct part *part)
{
    if (part->step) {
        struct step step = *part->step;
        step.layer = block->layer;
        step.scores = block->scores;
        decode_attention(&step);
    } else {
        struct chunk chunk = *part->chunk;
        chunk.layer = block->layer;
        chunk.scores = block->scores;
        prefill_attention(&chunk);
    }
}

/* All blocks, over rows in place; parts have their queries in `joint`, and say what they attend to in `attended`. */
void run_blocks(const struct block *const *blocks, int64_t num_blocks, const struct part *parts, int64_t num_parts,
                int64_t num_rows, char *rows, const char *cosines, const char *sines, char *normed, char *joint,
                const char *attended, char *gated)
{
    for (const struct block *const *block = blocks; block < blocks + num_blocks; block++) {
        before_attention(*block, num_rows, rows, cosines, sines, normed, joint);
        for (const struct part *part = parts; part < parts + num_parts; part++)
            attend(*block, part);
        after_attention(*block, num_rows, rows, attended, normed, gated);
    }
}

#endif
