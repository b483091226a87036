/* A softmax that runs along in blocks (arXiv:1805.02867). */
#ifndef SOFTMAX_H
#define SOFTMAX_H

#include <math.h>

#include "attention.h"

enum { BLOCK = 256 }; /* Positions whose keys and values stay in the nearest cache. */

/* What is known of a query head so far. */
struct open {
    float most, sum; /* The largest score, and the sum of weights. */
};

/* scores [first .. end] become weights, and those around them, in the same vectors or before, as good as zero; returns
 * what the weights of blocks before have to be scaled by. */
static float soften(float *scores, int first, int end, struct open *open, struct scores by)
{
    float scaling = by.scaling;
    const float softcap = by.softcap;
    floats *lanes = (floats *)scores;
    const int vectors = (end + LANES - 1) / LANES;
    if (softcap) {
        for (int at = 0; at < vectors; at++)
            lanes[at] = softcap * hyperbolic_tangent(lanes[at] * (scaling / softcap));
        scaling = 1;
    }
    for (int at = 0; at < first; at++)
        scores[at] = -INFINITY;
    for (int at = end; at % LANES; at++)
        scores[at] = -INFINITY;
    floats most = lanes[0], sum = {0};
    for (int at = 1; at < vectors; at++)
        most = larger(lanes[at], most);
    const float before = open->most, here = largest(most) * scaling;
    open->most = here > before ? here : before;
    for (int at = 0; at < vectors; at++) {
        lanes[at] = exponential(lanes[at] * scaling - open->most);
        sum += lanes[at];
    }
    float factor = exponential(all(before - open->most))[0];
    open->sum = open->sum * factor + total(sum);
    return factor;
}

#endif
